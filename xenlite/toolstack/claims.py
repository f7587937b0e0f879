# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what a kernel says about itself to Xen.

Where Xen looks, and so do we, in this order:

1. notes in PT_NOTE segments whose ``p_offset`` is not 0,
2. notes in SHT_NOTE sections,
3. the string in the section ``__xen_guest`` (kernels older than the notes).

Only notes whose owner is ``Xen`` count. Of two notes of one kind the later one holds.

Source: public/elfnote.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    PAGE_SIZE,
    XEN_ELFNOTE_ENTRY,
    XEN_ELFNOTE_FEATURES,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_GUEST_VERSION,
    XEN_ELFNOTE_HV_START_LOW,
    XEN_ELFNOTE_HYPERCALL_PAGE,
    XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_NAMES,
    XEN_ELFNOTE_PADDR_OFFSET,
    XEN_ELFNOTE_PAE_MODE,
    XEN_ELFNOTE_SUPPORTED_FEATURES,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
    XENFEAT_NAMES,
)
from xenlite.toolstack.elf import PT_NOTE, SHT_NOTE

if TYPE_CHECKING:
    from xenlite.toolstack.elf import ElfFile, Program, Section

MAX_NOTES: Final = 1024  # of one file, whoever owns them
MAX_STRING: Final = 4096
MAX_NUMBER: Final = 20  # digits of a number in __xen_guest, prefix included

_NOTE: Final = Struct("<III")
_OWNER: Final = b"Xen"
_FEATURES: Final = {name.removeprefix("XENFEAT_"): bit for bit, name in XENFEAT_NAMES.items()}
# Features that a kernel may demand and that a PV domain cannot have.
_IMPOSSIBLE: Final = frozenset(
    {
        "writable_descriptor_tables",
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "hvm_callback_vector",
        "dom0",
    }
)
_TEXT_NOTES: Final = {
    XEN_ELFNOTE_XEN_VERSION: "xen_version",
    XEN_ELFNOTE_GUEST_OS: "guest_os",
    XEN_ELFNOTE_GUEST_VERSION: "guest_version",
    XEN_ELFNOTE_LOADER: "loader",
    XEN_ELFNOTE_PAE_MODE: "pae",
    XEN_ELFNOTE_FEATURES: "feature_list",
}
_NUMBER_NOTES: Final = {
    XEN_ELFNOTE_ENTRY: "entry",
    XEN_ELFNOTE_HYPERCALL_PAGE: "hypercall_page",
    XEN_ELFNOTE_VIRT_BASE: "virt_base",
    XEN_ELFNOTE_PADDR_OFFSET: "paddr_offset",
    XEN_ELFNOTE_HV_START_LOW: "hv_start_low",
    XEN_ELFNOTE_SUPPORTED_FEATURES: "feature_bits",
}
_TEXT_KEYS: Final = {
    "XEN_VER": "xen_version",
    "GUEST_OS": "guest_os",
    "GUEST_VER": "guest_version",
    "GUEST_VERSION": "guest_version",
    "LOADER": "loader",
    "PAE": "pae",
    "FEATURES": "feature_list",
}
_NUMBER_KEYS: Final = {
    "VIRT_BASE": "virt_base",
    "VIRT_ENTRY": "entry",
    "ELF_PADDR_OFFSET": "paddr_offset",
    "HYPERCALL_PAGE": "hypercall_page",
}


@dataclass(slots=True)
class Claims:
    """What one kernel says: None, or nothing, where it is silent. Addresses are virtual.

    ``is_legacy`` tells that it said so in ``__xen_guest``.
    """

    is_legacy: bool = False
    entry: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    hypercall_page: int | None = None
    hv_start_low: int | None = None
    feature_bits: int = 0
    feature_list: str = ""
    xen_version: str = ""
    guest_os: str = ""
    guest_version: str = ""
    loader: str = ""
    pae: str = "no"
    notes_seen: int = field(default=0, repr=False)

    @property
    def has_extended_cr3(self) -> bool:
        """Tell whether the L3 table may lie above 4 GiB; a note's plain ``yes`` says so too."""
        return "[extended-cr3]" in self.pae or (self.pae == "yes" and not self.is_legacy)

    @property
    def features(self) -> frozenset[str]:
        """Return the features that it knows or demands, by Xen's names."""
        named = {word.removeprefix("!") for word in self.feature_list.split("|") if word}
        return frozenset(
            named | {f for f, bit in _FEATURES.items() if self.feature_bits >> bit & 1}
        )


def read_claims(elf: ElfFile, programs: list[Program]) -> Claims:
    """Read what the kernel says; ConfigError where it is silent, broken, or not for us."""
    claims = Claims()
    found = False
    for program in programs:
        if program.kind == PT_NOTE and program.offset:
            found |= _read_notes(elf, claims, program.offset, program.file_size)
    if not found:
        sections = elf.sections()
        for section in sections:
            if section.kind == SHT_NOTE:
                found |= _read_notes(elf, claims, section.offset, section.size)
        if not found:
            _read_guest_section(elf, claims, sections)
    _check(elf, claims)
    return claims


def _read_notes(elf: ElfFile, claims: Claims, offset: int, size: int) -> bool:
    """Read the notes of one region; tell whether any is Xen's.

    The last one may claim more bytes than the file has: GRUB's does, and Xen reads it up to its
    zero byte (tests/compat/test_images.py).
    """
    elf.check_inside("notes", offset, size)
    end = offset + size
    found = False
    while offset + _NOTE.size <= end:
        claims.notes_seen += 1
        if claims.notes_seen > MAX_NOTES:
            raise elf.fault(f"more than {MAX_NOTES} notes")
        name_size, value_size, kind = _NOTE.unpack_from(elf.data, offset)
        name = offset + _NOTE.size
        value = name + _aligned(name_size)
        if value > len(elf.data):
            raise elf.fault(
                f"the note at byte {offset:#x} claims a name of {name_size} bytes, past the end of"
                " the file"
            )
        owner = elf.data[name : name + min(name_size, len(_OWNER) + 1)]
        if owner.rstrip(b"\0") == _OWNER:
            found = True
            _read_note(elf, claims, kind, value, value_size)
        offset = value + _aligned(value_size)
    return found


def _read_note(elf: ElfFile, claims: Claims, kind: int, offset: int, size: int) -> None:
    stored = elf.data[offset : offset + min(size, MAX_STRING)]
    if kind in _TEXT_NOTES:
        setattr(claims, _TEXT_NOTES[kind], _text(stored))
    elif kind in _NUMBER_NOTES:
        if size not in (1, 2, 4, 8) or len(stored) < size:
            note = XEN_ELFNOTE_NAMES[kind]
            raise elf.fault(f"note {note} holds {len(stored)} bytes, which make no number")
        setattr(claims, _NUMBER_NOTES[kind], int.from_bytes(stored, "little"))


def _read_guest_section(elf: ElfFile, claims: Claims, sections: list[Section]) -> None:
    """Read ``KEY=value,KEY=value``; the hypercall page is a page number there."""
    stored = elf.section_named(b"__xen_guest", sections)
    if stored is None:
        raise elf.fault("says nothing about Xen: no Xen notes and no __xen_guest section")
    claims.is_legacy = True
    for word in _text(bytes(stored[:MAX_STRING])).split(","):
        key, _, value = word.partition("=")
        if key in _TEXT_KEYS:
            setattr(claims, _TEXT_KEYS[key], value)
        elif key in _NUMBER_KEYS:
            setattr(claims, _NUMBER_KEYS[key], _number(elf, key, value))
    if claims.hypercall_page is not None:
        claims.hypercall_page = (claims.virt_base or 0) + claims.hypercall_page * PAGE_SIZE


def _number(elf: ElfFile, key: str, text: str) -> int:
    try:
        number = int(text[:MAX_NUMBER], 0)
    except ValueError:
        number = -1
    if number < 0:
        raise elf.fault(f"__xen_guest: {key}={text[:MAX_NUMBER]!r} is not a number")
    return number


def _check(elf: ElfFile, claims: Claims) -> None:
    """Refuse a kernel that is not made for what a 32-bit PV domain is."""
    if not claims.xen_version.startswith("xen-3.0"):
        raise elf.fault(f"made for Xen version {claims.xen_version!r}; the guest ABI is 'xen-3.0'")
    if not claims.loader.startswith("generic") and not claims.guest_os.startswith("linux"):
        raise elf.fault(f"wants the loader {claims.loader!r}; only 'generic' exists")
    if not (claims.pae.startswith("yes") or "bimodal" in claims.pae):
        raise elf.fault("a kernel without PAE; xenlite runs 32-bit PAE kernels (x86_32p)")
    for word in claims.feature_list.split("|"):
        feature = word.removeprefix("!")
        if feature != word and (feature in _IMPOSSIBLE or feature not in _FEATURES):
            raise elf.fault(f"demands the feature {feature!r}, which a PV domain lacks")


def _aligned(size: int) -> int:
    """Round up to whole words, as notes are."""
    return -(-size // 4) * 4


def _text(value: bytes) -> str:
    """Decode up to the first zero byte or the end; strange bytes become readable escapes."""
    return value.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
