# SPDX-License-Identifier: GPL-2.0-or-later
"""Make ELF kernels for tests, sound or broken in one chosen place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from struct import pack

from xenlite.abi.x86_32p import (
    XEN_ELFNOTE_FEATURES,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_HYPERCALL_PAGE,
    XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_PAE_MODE,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
)

PT_LOAD, PT_NOTE = 1, 4
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE = 1, 2, 3, 7
EXECUTABLE = 4


def note(kind: int, value: bytes | str | int, owner: bytes = b"Xen\0") -> bytes:
    """Encode one note: text, a 32-bit number, or raw bytes."""
    if isinstance(value, int):
        value = pack("<I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    padded_owner = owner + bytes(-len(owner) % 4)
    return (
        pack("<III", len(owner), len(value), kind) + padded_owner + value + bytes(-len(value) % 4)
    )


NOTES = (
    note(XEN_ELFNOTE_GUEST_OS, "test")
    + note(XEN_ELFNOTE_XEN_VERSION, "xen-3.0")
    + note(XEN_ELFNOTE_LOADER, "generic")
    + note(XEN_ELFNOTE_PAE_MODE, "yes")
)


@dataclass(frozen=True)
class Load:
    """One PT_LOAD; ``size`` in memory, as large as the data when None."""

    paddr: int
    data: bytes
    size: int | None = None
    flags: int = 7
    file_size: int | None = None


@dataclass(frozen=True)
class Section:
    """One section with contents."""

    name: str
    kind: int
    data: bytes
    vaddr: int = 0
    flags: int = 0
    link: int = 0


@dataclass(frozen=True)
class KernelFile:
    """A kernel to be; ``notes`` go into a PT_NOTE, None for no such segment."""

    loads: tuple[Load, ...] = (Load(0x100000, b"\xf4" * 0x1000, 0x3000),)
    notes: bytes | None = NOTES
    sections: tuple[Section, ...] = ()
    entry: int = 0x100000
    elf_class: int = 1
    machine: int = 3
    kind: int = 2
    header: dict[str, int] = field(default_factory=dict)
    extra_notes: int = 0  # how many more PT_NOTEs show the same bytes

    def build(self) -> bytes:
        """Lay the file out: header, program headers, contents, section headers."""
        programs, contents = [], b""
        count = len(self.loads) + (self.notes is not None) + self.extra_notes
        start = 52 + 32 * count
        for load in self.loads:
            size = len(load.data) if load.size is None else load.size
            file_size = len(load.data) if load.file_size is None else load.file_size
            offset = start + len(contents)
            programs.append(
                pack("<8I", PT_LOAD, offset, load.paddr, load.paddr, file_size, size, load.flags, 1)
            )
            contents += load.data
        if self.notes is not None:
            size = len(self.notes)
            place = pack("<8I", PT_NOTE, start + len(contents), 0, 0, size, size, 4, 4)
            programs += [place] * (1 + self.extra_notes)
            contents += self.notes
        contents += bytes(-len(contents) % 4)
        tables, section_bytes = self._sections(start + len(contents))
        contents += section_bytes
        fields = {
            "phoff": 52,
            "shoff": start + len(contents) if tables else 0,
            "phentsize": 32,
            "phnum": count,
            "shentsize": 40,
            "shnum": len(tables),
            "shstrndx": len(tables) - 1 if tables else 0,
            **self.header,
        }
        ident = b"\x7fELF" + bytes((self.elf_class, 1, 1)) + bytes(9)
        header = ident + pack(
            "<HHIIIIIHHHHHH",
            self.kind,
            self.machine,
            1,
            self.entry,
            fields["phoff"],
            fields["shoff"],
            0,
            52,
            fields["phentsize"],
            fields["phnum"],
            fields["shentsize"],
            fields["shnum"],
            fields["shstrndx"],
        )
        return header + b"".join(programs) + contents + b"".join(tables)

    def _sections(self, start: int) -> tuple[list[bytes], bytes]:
        if not self.sections:
            return [], b""
        names = b"\0" + b"".join(s.name.encode() + b"\0" for s in self.sections) + b".shstrtab\0"
        tables, contents, name = [bytes(40)], b"", 1
        everything = (*self.sections, Section(".shstrtab", SHT_STRTAB, names))
        for section in everything:
            entry = 16 if section.kind == SHT_SYMTAB else 0
            tables.append(
                pack(
                    "<10I",
                    name,
                    section.kind,
                    section.flags,
                    section.vaddr,
                    start + len(contents),
                    len(section.data),
                    section.link,
                    0,
                    1,
                    entry,
                )
            )
            contents += section.data
            name += len(section.name) + 1
        return tables, contents


def with_notes(*more: bytes, base: bytes = NOTES) -> KernelFile:
    """Return a sound kernel with further notes."""
    return KernelFile(notes=base + b"".join(more))


def with_features(features: str) -> KernelFile:
    """Return a sound kernel that names features."""
    return with_notes(note(XEN_ELFNOTE_FEATURES, features))


def based_at(virt_base: int, *, hypercall_page: int | None = None) -> KernelFile:
    """Return a sound kernel of three pages, one MiB above ``virt_base``."""
    notes = [note(XEN_ELFNOTE_VIRT_BASE, virt_base)]
    if hypercall_page is not None:
        notes.append(note(XEN_ELFNOTE_HYPERCALL_PAGE, hypercall_page))
    return replace(with_notes(*notes), entry=virt_base + 0x100000)
