# SPDX-License-Identifier: GPL-2.0-or-later
"""Write an assembled kernel, or a program for one, as an ELF32 executable.

::

    ELF header | program headers: a PT_LOAD per section, PT_NOTE | each section from a page
    boundary of the file | .note.Xen | .symtab .strtab .debug_* .shstrtab | section headers

What is for debuggers is not loaded. Physical addresses count from VIRT_BASE, as Xen's builder reads
them when notes are present. A program, which has no notes, has none of what belongs to them, and no
page boundaries in the file, for its loader copies: a RAM disk of many small programs would be
mostly padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from xenlite.devkit.dwarf_writer import debug_sections

if TYPE_CHECKING:
    from xenlite.devkit.assembler import AssembledKernel, AssembledSection

PAGE_SIZE = 4096
PROGRAM_ALIGNMENT = 16

# Source: the ELF specification, version 1.2 (names without their prefixes).
_HEADER = Struct("<16sHHIIIIIHHHHHH")
_PROGRAM = Struct("<IIIIIIII")
_SECTION = Struct("<IIIIIIIIII")
_SYMBOL = Struct("<IIIBBH")
_NOTE = Struct("<III")
_IDENT = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
_ET_EXEC, _EM_386, _EV_CURRENT = 2, 3, 1
_PT_LOAD, _PT_NOTE = 1, 4
_PF = {"x": 1, "w": 2, "a": 4}
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 2, 3, 7, 8
_SHF = {"w": 1, "a": 2, "x": 4}
_STB_GLOBAL, _STT_OBJECT, _STT_FUNC = 1 << 4, 1, 2


@dataclass(slots=True)
class _Part:
    """One section of the file."""

    name: str
    kind: int
    data: bytes
    flags: int = 0
    address: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0
    offset: int = 0


def write(kernel: AssembledKernel, directory: str | None) -> bytes:
    """Return the file; ``directory`` is where debuggers look for the sources, None for no lines."""
    alignment = PAGE_SIZE if kernel.notes else PROGRAM_ALIGNMENT
    loaded = [_loaded(section, alignment) for section in kernel.sections]
    notes = [_Part(".note.Xen", _SHT_NOTE, _notes(kernel.notes), align=4)] if kernel.notes else []
    strings_at = 2 + len(loaded) + len(notes)  # section 0 is the null section
    symbols, strings, locals_ = _symbol_table(kernel)
    symtab = _Part(
        ".symtab", _SHT_SYMTAB, symbols, link=strings_at, info=locals_, align=4,
        entry_size=_SYMBOL.size,
    )  # fmt: skip
    strtab = _Part(".strtab", _SHT_STRTAB, strings)
    code = [(s.name, s.address, s.address + s.size) for s in kernel.sections if "x" in s.flags]
    debug = (
        {} if directory is None else debug_sections(kernel.source, directory, code, kernel.lines)
    )
    parts = [
        *loaded, *notes, symtab, strtab,
        *(_Part(name, _SHT_PROGBITS, data) for name, data in debug.items()),
        _Part(".shstrtab", _SHT_STRTAB, b""),
    ]  # fmt: skip
    names = _Strings()
    name_offsets = [names.add(part.name) for part in parts]
    parts[-1].data = bytes(names.data)

    program_headers = len(loaded) + len(notes)
    body, headers_at = _place(parts, _HEADER.size + _PROGRAM.size * program_headers)
    out = bytearray(body)
    _HEADER.pack_into(
        out, 0, _IDENT, _ET_EXEC, _EM_386, _EV_CURRENT, kernel.entry, _HEADER.size, headers_at, 0,
        _HEADER.size, _PROGRAM.size, program_headers, _SECTION.size, len(parts) + 1, len(parts),
    )  # fmt: skip
    at = _HEADER.size
    for part, section in zip(loaded, kernel.sections, strict=True):
        protection = sum(_PF[flag] for flag in section.flags)
        _PROGRAM.pack_into(
            out, at, _PT_LOAD, part.offset, part.address, part.address - kernel.virt_base,
            len(part.data), part.size, protection, alignment,
        )  # fmt: skip
        at += _PROGRAM.size
    for part in notes:
        length = len(part.data)
        _PROGRAM.pack_into(out, at, _PT_NOTE, part.offset, 0, 0, length, length, _PF["a"], 4)
    out += bytes(_SECTION.size)
    for part, name in zip(parts, name_offsets, strict=True):
        out += _SECTION.pack(
            name, part.kind, part.flags, part.address, part.offset,
            part.size or len(part.data), part.link, part.info, part.align, part.entry_size,
        )  # fmt: skip
    return bytes(out)


def _loaded(section: AssembledSection, alignment: int) -> _Part:
    return _Part(
        section.name,
        _SHT_PROGBITS if section.data else _SHT_NOBITS,
        section.data,
        flags=sum(_SHF[flag] for flag in section.flags),
        address=section.address,
        size=section.size,
        align=alignment,
    )


def _place(parts: list[_Part], at: int) -> tuple[bytes, int]:
    """Give each part its offset; return the bytes up to the section headers and their offset."""
    out = bytearray(at)
    for part in parts:
        out += bytes(-len(out) % part.align)
        part.offset = len(out)
        out += part.data
    out += bytes(-len(out) % 4)
    return bytes(out), len(out)


def _notes(notes: tuple[tuple[int, bytes], ...]) -> bytes:
    out = bytearray()
    for kind, value in notes:
        out += _NOTE.pack(len(b"Xen\0"), len(value), kind) + b"Xen\0" + value
        out += bytes(-len(out) % 4)
    return bytes(out)


def _symbol_table(kernel: AssembledKernel) -> tuple[bytes, bytes, int]:
    """Return the table, its strings, and how many entries are local (they come first)."""
    strings = _Strings()
    index = {section.name: number for number, section in enumerate(kernel.sections, 1)}
    ordered = sorted(kernel.symbols, key=lambda symbol: symbol.is_global)
    out = bytearray(_SYMBOL.size)
    for symbol in ordered:
        info = _STT_FUNC if symbol.is_function else _STT_OBJECT
        info |= _STB_GLOBAL if symbol.is_global else 0
        name = strings.add(symbol.name)
        out += _SYMBOL.pack(name, symbol.address, symbol.size, info, 0, index[symbol.section])
    locals_ = 1 + sum(not symbol.is_global for symbol in ordered)
    return bytes(out), bytes(strings.data), locals_


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at
