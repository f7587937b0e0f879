# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the structure of an ELF file that may be hostile: headers, segments, sections.

Every offset is checked against the file before it is used, and every count has a limit; whatever
is wrong is one ConfigError about the file.

The parser is our own: it must answer for every byte of a broken file, and importing a general one
costs a tenth of the time a domain may take to start.

Source: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_HEADERS: Final = 4096

PT_LOAD: Final = 1
PT_NOTE: Final = 4
SHT_SYMTAB: Final = 2
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHF_EXECINSTR: Final = 4

# 32-bit, little-endian.
_HEADER: Final = Struct("<16sHHIIIIIHHHHHH")
_PROGRAM: Final = Struct("<IIIIIIII")
_SECTION: Final = Struct("<IIIIIIIIII")
_MAGIC: Final = b"\x7fELF"
_CLASS_32: Final = 1
_CLASS_64: Final = 2
_LITTLE_ENDIAN: Final = 1
_ET_EXEC: Final = 2
_ET_DYN: Final = 3
_EM_386: Final = 3


class Program(NamedTuple):
    """One program header; offsets and sizes in bytes."""

    kind: int
    offset: int
    vaddr: int
    paddr: int
    file_size: int
    size: int
    flags: int
    alignment: int


class Section(NamedTuple):
    """One section header; offsets and sizes in bytes."""

    name: int
    kind: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class ElfFile:
    """A 32-bit kernel for i386; ``name`` is the file's, for messages."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        if data[:4] != _MAGIC:
            raise self.fault(_what_it_is(data))
        if len(data) < _HEADER.size:
            raise self.fault(f"cut off: {len(data)} bytes, less than an ELF header")
        ident, kind, machine, _, entry, phoff, shoff, _, _, phsize, phnum, shsize, shnum, names = (
            _HEADER.unpack_from(data)
        )
        if ident[4] == _CLASS_64:
            raise self.fault("a 64-bit kernel; xenlite runs 32-bit PAE kernels (x86_32p)")
        if ident[4] != _CLASS_32 or ident[5] != _LITTLE_ENDIAN or machine != _EM_386:
            raise self.fault(f"made for another machine (ELF machine {machine}), not for i386")
        if kind not in (_ET_EXEC, _ET_DYN):
            raise self.fault(f"not a linked kernel but an ELF file of type {kind}")
        self.entry: int = entry
        self._program_table = (phoff, phnum, phsize)
        self._section_table = (shoff, shnum, shsize)
        self._names_index: int = names

    def fault(self, what: str) -> ConfigError:
        """Make the error that says what is wrong with this file."""
        return ConfigError(Fault(self.name, what))

    def programs(self) -> list[Program]:
        """Read the program headers."""
        rows = self._table("program header", _PROGRAM, *self._program_table)
        return [Program._make(row) for row in rows]

    def sections(self) -> list[Section]:
        """Read the section headers."""
        rows = self._table("section header", _SECTION, *self._section_table)
        return [Section._make(row) for row in rows]

    def contents(self, section: Section) -> memoryview:
        """Return the bytes of a section; none for one that the file does not hold."""
        if section.kind == SHT_NOBITS:
            return memoryview(b"")
        self.check_inside("a section", section.offset, section.size)
        return memoryview(self.data)[section.offset : section.offset + section.size]

    def section_named(self, wanted: bytes, sections: list[Section]) -> memoryview | None:
        """Return the bytes of the first section of that name."""
        if self._names_index >= len(sections):
            return None
        names = bytes(self.contents(sections[self._names_index]))
        for section in sections:
            if section.kind != SHT_NOBITS and names.startswith(wanted + b"\0", section.name):
                return self.contents(section)
        return None

    def check_inside(self, what: str, offset: int, size: int) -> None:
        """Refuse a place that is not wholly inside the file."""
        if offset + size > len(self.data):
            raise self.fault(
                f"cut off: {what} would be at bytes {offset:#x} to {offset + size:#x} of a file of"
                f" {len(self.data):#x} bytes"
            )

    def _table(
        self, what: str, layout: Struct, offset: int, count: int, size: int
    ) -> Iterator[tuple[int, ...]]:
        if not count:
            return
        if count > MAX_HEADERS:
            raise self.fault(f"claims {count} {what}s; no kernel has more than {MAX_HEADERS}")
        if size < layout.size:
            raise self.fault(f"claims {what}s of {size} bytes; they have {layout.size}")
        self.check_inside(f"the {what}s", offset, count * size)
        for start in range(offset, offset + count * size, size):
            yield layout.unpack_from(self.data, start)


def _what_it_is(data: bytes) -> str:
    if data[0x202:0x206] == b"HdrS":
        return "a Linux boot image; give the ELF file inside it (vmlinux)"
    return "not an ELF file" if data else "empty"
