# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a kernel: the bytes of a file in, a ``KernelImage`` out, or one clear ConfigError.

The file is hostile until proved otherwise. Every offset is checked against the file before it is
used, every count and every expansion has a limit, and addresses are unbounded integers until they
have been found to lie between the kernel's base and the hypervisor's hole.

The parser is our own: it must answer for every byte of a broken file, and importing a general one
costs a tenth of the time a domain may take to start.

Where Xen looks for what a kernel says about itself, and so do we, in this order:

1. notes in PT_NOTE segments whose ``p_offset`` is not 0,
2. notes in SHT_NOTE sections,
3. the string in the section ``__xen_guest`` (kernels older than the notes).

Only notes whose owner is ``Xen`` count.

Sources: System V ABI, chapters 4 and 5 (ELF); public/elfnote.h (notes and ``__xen_guest`` keys).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    HYPERVISOR_VIRT_START,
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
from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_IMAGE_BYTES: Final = 128 << 20
MAX_HEADERS: Final = 4096
MAX_NOTES: Final = 1024
MAX_STRING: Final = 4096

# Features that a kernel may demand and that a PV domain cannot have.
IMPOSSIBLE_FEATURES: Final = frozenset(
    {
        "writable_descriptor_tables",
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "hvm_callback_vector",
        "dom0",
    }
)

# ELF, 32-bit, little-endian.
_HEADER: Final = Struct("<16sHHIIIIIHHHHHH")
_PROGRAMS: Final = ("program header", Struct("<IIIIIIII"))
_SECTIONS: Final = ("section header", Struct("<IIIIIIIIII"))
_NOTE: Final = Struct("<III")
_ELF_MAGIC: Final = b"\x7fELF"
_CLASS_32: Final = 1
_CLASS_64: Final = 2
_LITTLE_ENDIAN: Final = 1
_ET_EXEC: Final = 2
_ET_DYN: Final = 3
_EM_386: Final = 3
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PF_ANY: Final = 7
_SHT_NOTE: Final = 7
_SHT_NOBITS: Final = 8

_PACKED_OTHERWISE: Final = {
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\x00\x00": "lzma",
    b"\x89LZO": "lzo",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of the kernel: ``data`` at ``vaddr``, zeros from there up to ``size`` bytes."""

    vaddr: int
    data: memoryview
    size: int

    @property
    def end(self) -> int:
        """Return the first address behind the segment."""
        return self.vaddr + self.size


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel that can be built into a domain. All addresses are virtual.

    Page 0 of the domain is at ``virt_base``; the kernel occupies [start, end).
    """

    segments: tuple[Segment, ...]
    entry: int
    virt_base: int
    start: int
    end: int
    hypercall_page: int | None
    extended_cr3: bool
    guest_os: str
    guest_version: str
    features: frozenset[str]


@dataclass(slots=True)
class _Claims:
    """What the kernel says about itself; None for what it leaves unsaid."""

    found: bool = False
    legacy: bool = False
    entry: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    hypercall_page: int | None = None
    hv_start_low: int | None = None
    supported_features: int = 0
    texts: dict[int, str] = field(default_factory=dict)


def parse_kernel(data: bytes, name: str) -> KernelImage:
    """Read a kernel from the bytes of file ``name``, packed or not."""
    return _Reader(unpack(data, name), name).image()


def unpack(data: bytes, name: str) -> bytes:
    """Undo gzip or xz, to at most MAX_IMAGE_BYTES; return other bytes as they are."""
    if data[:2] == b"\x1f\x8b":
        import zlib

        try:
            return _expand(zlib.decompressobj(wbits=31), data, name, "gzip")
        except zlib.error as error:
            raise _fault(name, f"broken gzip file: {error}") from None
    if data[:6] == b"\xfd7zXZ\0":
        import lzma

        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_IMAGE_BYTES)
        try:
            return _expand(unpacker, data, name, "xz")
        except lzma.LZMAError as error:
            raise _fault(name, f"broken xz file: {error}") from None
    return data


@dataclass(frozen=True, slots=True)
class Section:
    """One section of an ELF file; ``contents`` is empty for what the file does not hold."""

    kind: int
    flags: int
    vaddr: int
    size: int
    link: int
    contents: memoryview


def sections(image: bytes) -> list[Section]:
    """Read the sections of an unpacked kernel, for explanations: none where they are broken."""
    reader = _Reader(image, "")
    found = []
    try:
        place = reader.header().sections
        for _, kind, flags, vaddr, offset, size, link, *_ in reader.table(_SECTIONS, *place):
            stored = memoryview(image)[offset : offset + size] if kind != _SHT_NOBITS else b""
            found.append(Section(kind, flags, vaddr, size, link, memoryview(stored)))
    except ConfigError:
        return []
    return found


def _expand(unpacker: object, data: bytes, name: str, kind: str) -> bytes:
    image: bytes = unpacker.decompress(data, MAX_IMAGE_BYTES + 1)  # type: ignore[attr-defined]
    if len(image) > MAX_IMAGE_BYTES:
        raise _fault(name, f"unpacks to more than {MAX_IMAGE_BYTES >> 20} MiB")
    if not unpacker.eof:  # type: ignore[attr-defined]
        raise _fault(name, f"{kind} file cut off after {len(data)} bytes")
    return image


def _fault(name: str, what: str) -> ConfigError:
    return ConfigError(Fault(name, what))


class _Reader:
    """One pass over one ELF file."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name

    def fail(self, what: str) -> ConfigError:
        return _fault(self.name, what)

    def image(self) -> KernelImage:
        header = self.header()
        programs = list(self.table(_PROGRAMS, *header.programs))
        claims = self._claims(header, programs)
        self._check_claims(claims)
        return self._place(header, programs, claims)

    # -- headers ------------------------------------------------------------------------------

    def header(self) -> _Header:
        data = self.data
        if data[:4] != _ELF_MAGIC:
            raise self.fail(_what_it_is(data))
        if len(data) < _HEADER.size:
            raise self.fail(f"cut off: {len(data)} bytes, less than an ELF header")
        ident, kind, machine, _, entry, phoff, shoff, _, _, phsize, phnum, shsize, shnum, names = (
            _HEADER.unpack_from(data)
        )
        if ident[4] == _CLASS_64:
            raise self.fail("a 64-bit kernel; xenlite runs 32-bit PAE kernels (x86_32p)")
        if ident[4] != _CLASS_32 or ident[5] != _LITTLE_ENDIAN or machine != _EM_386:
            raise self.fail(f"made for another machine (ELF machine {machine}), not for i386")
        if kind not in (_ET_EXEC, _ET_DYN):
            raise self.fail(f"not a linked kernel but an ELF file of type {kind}")
        return _Header(entry, (phoff, phnum, phsize), (shoff, shnum, shsize), names)

    def table(
        self, table: tuple[str, Struct], offset: int, count: int, size: int
    ) -> Iterator[tuple[int, ...]]:
        what, layout = table
        if not count:
            return
        if count > MAX_HEADERS:
            raise self.fail(f"claims {count} {what}s; no kernel has more than {MAX_HEADERS}")
        if size < layout.size:
            raise self.fail(f"claims {what}s of {size} bytes; they have {layout.size}")
        self._check_inside(f"the {what}s", offset, count * size)
        for start in range(offset, offset + count * size, size):
            yield layout.unpack_from(self.data, start)

    def _check_inside(self, what: str, offset: int, size: int) -> None:
        if offset + size > len(self.data):
            raise self.fail(
                f"cut off: {what} would be at bytes {offset:#x} to {offset + size:#x} of a file of"
                f" {len(self.data):#x} bytes"
            )

    # -- what the kernel says about itself ----------------------------------------------------

    def _claims(self, header: _Header, programs: list[tuple[int, ...]]) -> _Claims:
        claims = _Claims()
        for kind, offset, _, _, size, *_ in programs:
            if kind == _PT_NOTE and offset:
                self._notes(claims, offset, size)
        if claims.found:
            return claims
        sections = list(self.table(_SECTIONS, *header.sections))
        for _, kind, _, _, offset, size, *_ in sections:
            if kind == _SHT_NOTE:
                self._notes(claims, offset, size)
        if not claims.found:
            self._guest_section(claims, header, sections)
        return claims

    def _notes(self, claims: _Claims, offset: int, size: int) -> None:
        """Read the notes of one region.

        The last one may claim more bytes than the file has: GRUB's does, and Xen reads it up to
        its zero byte (tests/unit/toolstack/test_image.py, GRUB).
        """
        self._check_inside("notes", offset, size)
        end = offset + size
        for _ in range(MAX_NOTES):
            if offset + _NOTE.size > end:
                return
            name_size, value_size, kind = _NOTE.unpack_from(self.data, offset)
            owner = offset + _NOTE.size
            value = owner + _aligned(name_size, 4)
            if value > len(self.data):
                raise self.fail(
                    f"the note at byte {offset:#x} claims a name of {name_size} bytes,"
                    f" past the end of the file"
                )
            if self.data[owner : owner + name_size].rstrip(b"\0") == b"Xen":
                claims.found = True
                self._note(claims, kind, self.data[value : value + value_size], value_size)
            offset = value + _aligned(value_size, 4)
        raise self.fail(f"more than {MAX_NOTES} notes in one place")

    def _note(self, claims: _Claims, kind: int, value: bytes, claimed: int) -> None:
        if kind in _TEXT_NOTES:
            claims.texts[kind] = _text(value)
        elif kind in _NUMBER_NOTES:
            if claimed not in (1, 2, 4, 8) or len(value) < claimed:
                note = XEN_ELFNOTE_NAMES[kind]
                raise self.fail(f"note {note} holds {len(value)} bytes, which make no number")
            setattr(claims, _NUMBER_NOTES[kind], int.from_bytes(value, "little"))

    def _guest_section(
        self, claims: _Claims, header: _Header, sections: list[tuple[int, ...]]
    ) -> None:
        """Read the older ``__xen_guest`` section: ``KEY=value,KEY=value``."""
        text = self._section_text(b"__xen_guest", header, sections)
        if text is None:
            raise self.fail("says nothing about Xen: no Xen notes and no __xen_guest section")
        claims.found = claims.legacy = True
        hypercall_pfn = None
        for word in text.split(","):
            key, _, value = word.partition("=")
            if key in _TEXT_KEYS:
                claims.texts[_TEXT_KEYS[key]] = value
            elif key in _NUMBER_KEYS:
                setattr(claims, _NUMBER_KEYS[key], self._number(key, value))
            elif key == "HYPERCALL_PAGE":
                hypercall_pfn = self._number(key, value)
        if hypercall_pfn is not None:
            claims.hypercall_page = (claims.virt_base or 0) + hypercall_pfn * PAGE_SIZE

    def _section_text(
        self, wanted: bytes, header: _Header, sections: list[tuple[int, ...]]
    ) -> str | None:
        if header.names >= len(sections):
            return None
        _, kind, _, _, names, names_size, *_ = sections[header.names]
        if kind == _SHT_NOBITS:
            return None
        self._check_inside("the section names", names, names_size)
        for name, kind, _, _, offset, size, *_ in sections:
            start = names + name
            if (
                self.data[start : min(start + len(wanted) + 1, names + names_size)]
                != wanted + b"\0"
            ):
                continue
            if kind == _SHT_NOBITS:
                continue
            self._check_inside(wanted.decode(), offset, size)
            return _text(self.data[offset : offset + min(size, MAX_STRING)])
        return None

    def _number(self, key: str, text: str) -> int:
        try:
            return int(text[:20], 0)
        except ValueError:
            raise self.fail(f"__xen_guest: {key}={text[:20]!r} is not a number") from None

    def _check_claims(self, claims: _Claims) -> None:
        texts = claims.texts
        version = texts.get(XEN_ELFNOTE_XEN_VERSION, "")
        if not version.startswith("xen-3.0"):
            raise self.fail(f"made for Xen version {version!r}; the guest ABI is 'xen-3.0'")
        loader = texts.get(XEN_ELFNOTE_LOADER, "")
        if not loader.startswith("generic") and not _guest_os(claims).startswith("linux"):
            raise self.fail(f"wants the loader {loader!r}; only 'generic' exists")
        pae = texts.get(XEN_ELFNOTE_PAE_MODE, "no")
        if not (pae.startswith("yes") or "bimodal" in pae):
            raise self.fail("a kernel without PAE; xenlite runs 32-bit PAE kernels (x86_32p)")
        for feature in texts.get(XEN_ELFNOTE_FEATURES, "").split("|"):
            demanded = feature.removeprefix("!")
            if demanded != feature and (
                demanded in IMPOSSIBLE_FEATURES or demanded not in _FEATURES
            ):
                raise self.fail(f"demands the feature {demanded!r}, which a PV domain lacks")

    # -- where it goes ------------------------------------------------------------------------

    def _place(
        self, header: _Header, programs: list[tuple[int, ...]], claims: _Claims
    ) -> KernelImage:
        if claims.paddr_offset is not None and claims.virt_base is None:
            raise self.fail("gives PADDR_OFFSET without VIRT_BASE")
        virt_base = claims.virt_base or 0
        if claims.paddr_offset is not None:
            paddr_offset = claims.paddr_offset
        else:
            paddr_offset = virt_base if claims.legacy else 0
        if virt_base % PAGE_SIZE:
            raise self.fail(f"VIRT_BASE {virt_base:#x} is not on a page boundary")
        segments = tuple(self._segments(programs, virt_base - paddr_offset, virt_base))
        if not segments:
            raise self.fail("nothing to load: no PT_LOAD segment")
        start = min(segment.vaddr for segment in segments)
        end = max(segment.end for segment in segments)
        entry = header.entry if claims.entry is None else claims.entry
        if not start <= entry < end:
            raise self.fail(f"entry point {entry:#x} is outside the kernel, {_span(start, end)}")
        page = claims.hypercall_page
        if page is not None and (page % PAGE_SIZE or not start <= page <= end - PAGE_SIZE):
            raise self.fail(f"hypercall page {page:#x} is not a page of {_span(start, end)}")
        low = claims.hv_start_low
        if low is not None and low > HYPERVISOR_VIRT_START:
            raise self.fail(
                f"needs the addresses up to HV_START_LOW {low:#x};"
                f" the hypervisor begins at {HYPERVISOR_VIRT_START:#x}"
            )
        return KernelImage(
            segments=segments,
            entry=entry,
            virt_base=virt_base,
            start=start,
            end=end,
            hypercall_page=page,
            extended_cr3=_has_extended_cr3(claims),
            guest_os=_guest_os(claims),
            guest_version=claims.texts.get(XEN_ELFNOTE_GUEST_VERSION, ""),
            features=frozenset(_features(claims)),
        )

    def _segments(
        self, programs: list[tuple[int, ...]], shift: int, virt_base: int
    ) -> Iterator[Segment]:
        view = memoryview(self.data)
        for kind, offset, _, paddr, file_size, size, flags, _ in programs:
            if kind != _PT_LOAD or not flags & _PF_ANY or not size:
                continue
            if file_size > size:
                raise self.fail(f"a segment has {file_size:#x} bytes in the file, {size:#x} in all")
            self._check_inside("a segment", offset, file_size)
            vaddr = paddr + shift
            if vaddr < virt_base or vaddr + size > HYPERVISOR_VIRT_START:
                raise self.fail(
                    f"a segment at {_span(vaddr, vaddr + size)} is not between VIRT_BASE"
                    f" {virt_base:#x} and the hypervisor at {HYPERVISOR_VIRT_START:#x}"
                )
            yield Segment(vaddr, view[offset : offset + file_size], size)


@dataclass(frozen=True, slots=True)
class _Header:
    entry: int
    programs: tuple[int, int, int]  # offset, count, size of one
    sections: tuple[int, int, int]
    names: int


_TEXT_NOTES: Final = frozenset(
    {
        XEN_ELFNOTE_XEN_VERSION,
        XEN_ELFNOTE_GUEST_OS,
        XEN_ELFNOTE_GUEST_VERSION,
        XEN_ELFNOTE_LOADER,
        XEN_ELFNOTE_PAE_MODE,
        XEN_ELFNOTE_FEATURES,
    }
)
_NUMBER_NOTES: Final = {
    XEN_ELFNOTE_ENTRY: "entry",
    XEN_ELFNOTE_HYPERCALL_PAGE: "hypercall_page",
    XEN_ELFNOTE_VIRT_BASE: "virt_base",
    XEN_ELFNOTE_PADDR_OFFSET: "paddr_offset",
    XEN_ELFNOTE_HV_START_LOW: "hv_start_low",
    XEN_ELFNOTE_SUPPORTED_FEATURES: "supported_features",
}
_TEXT_KEYS: Final = {
    "XEN_VER": XEN_ELFNOTE_XEN_VERSION,
    "GUEST_OS": XEN_ELFNOTE_GUEST_OS,
    "GUEST_VER": XEN_ELFNOTE_GUEST_VERSION,
    "GUEST_VERSION": XEN_ELFNOTE_GUEST_VERSION,
    "LOADER": XEN_ELFNOTE_LOADER,
    "PAE": XEN_ELFNOTE_PAE_MODE,
    "FEATURES": XEN_ELFNOTE_FEATURES,
}
_FEATURES: Final = {name.removeprefix("XENFEAT_"): bit for bit, name in XENFEAT_NAMES.items()}
_NUMBER_KEYS: Final = {
    "VIRT_BASE": "virt_base",
    "VIRT_ENTRY": "entry",
    "ELF_PADDR_OFFSET": "paddr_offset",
}


def _what_it_is(data: bytes) -> str:
    for magic, kind in _PACKED_OTHERWISE.items():
        if data.startswith(magic):
            return f"packed with {kind}; xenlite unpacks gzip and xz"
    if data[0x202:0x206] == b"HdrS":
        return "a Linux boot image; give the ELF file inside it (vmlinux)"
    return "empty" if not data else "not an ELF file"


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to


def _text(value: bytes) -> str:
    """Decode up to the first zero byte or the end; strange bytes become readable escapes."""
    return value[:MAX_STRING].split(b"\0", 1)[0].decode("ascii", "backslashreplace")


def _guest_os(claims: _Claims) -> str:
    return claims.texts.get(XEN_ELFNOTE_GUEST_OS, "")


def _has_extended_cr3(claims: _Claims) -> bool:
    """Tell whether the L3 table may lie above 4 GiB; a note's plain ``yes`` says so too."""
    pae = claims.texts.get(XEN_ELFNOTE_PAE_MODE, "")
    return "[extended-cr3]" in pae or (pae == "yes" and not claims.legacy)


def _features(claims: _Claims) -> set[str]:
    text = claims.texts.get(XEN_ELFNOTE_FEATURES, "")
    named = {word.removeprefix("!") for word in text.split("|") if word}
    bits = claims.supported_features
    return named | {name for name, bit in _FEATURES.items() if bits >> bit & 1}


def _span(start: int, end: int) -> str:
    return f"{start:#x}-{end:#x}"
