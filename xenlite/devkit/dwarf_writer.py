# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell debuggers which line of which source an instruction comes from: DWARF 4.

One compilation unit for the whole kernel, without children: a debugger takes labels from the ELF
symbols and all else from the line table. A macro's instructions belong to the line that uses it.
Source: DWARF Debugging Information Format, version 4: 3.1.1, 6.2, 7.5, 7.21.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSION = 4
_ADDRESS_SIZE = 4
_UNIT = Struct("<IHIB")
_LINE_HEAD = Struct("<IHI")
_LINE_FIXED = Struct("<BBBbBB")  # of the header, behind its length
_ADDRESS = Struct("<I")
_LANGUAGE = Struct("<H")

_TAG_COMPILE_UNIT, _CHILDREN_NO = 0x11, 0
_AT_NAME, _AT_STMT_LIST, _AT_LOW_PC, _AT_HIGH_PC = 0x03, 0x10, 0x11, 0x12
_AT_LANGUAGE, _AT_COMP_DIR, _AT_PRODUCER = 0x13, 0x1B, 0x25
_FORM_ADDR, _FORM_DATA2, _FORM_DATA4, _FORM_STRING, _FORM_SEC_OFFSET = 0x01, 0x05, 0x06, 0x08, 0x17
_LANG_MIPS_ASSEMBLER = 0x8001

_OPCODE_LENGTHS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))
_LINE_BASE, _LINE_RANGE, _OPCODE_BASE = -3, 12, len(_OPCODE_LENGTHS) + 1
_LNS_COPY, _LNS_ADVANCE_PC, _LNS_ADVANCE_LINE, _LNS_SET_FILE = 1, 2, 3, 4
_LNE_END_SEQUENCE, _LNE_SET_ADDRESS = 1, 2


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The first instruction of a line; ``file`` is relative to the directory of the source."""

    section: str
    address: int
    file: str
    line: int


def debug_sections(
    name: str, directory: str, code: Sequence[tuple[str, int, int]], lines: Iterable[SourceLine]
) -> dict[str, bytes]:
    """Return the sections' contents by name.

    ``code`` is (section, first address, end) of each section with instructions, ``directory``
    where ``name`` and the files of ``lines`` are.
    """
    abbreviations = _abbreviations()
    return {
        ".debug_abbrev": abbreviations,
        ".debug_info": _unit(name, directory, code),
        ".debug_line": _line_table(code, sorted(lines, key=lambda line: line.address)),
    }


def _abbreviations() -> bytes:
    attributes = (
        (_AT_PRODUCER, _FORM_STRING), (_AT_LANGUAGE, _FORM_DATA2), (_AT_NAME, _FORM_STRING),
        (_AT_COMP_DIR, _FORM_STRING), (_AT_STMT_LIST, _FORM_SEC_OFFSET), (_AT_LOW_PC, _FORM_ADDR),
        (_AT_HIGH_PC, _FORM_DATA4), (0, 0),
    )  # fmt: skip
    pairs = b"".join(_unsigned(word) for pair in attributes for word in pair)
    return _unsigned(1) + _unsigned(_TAG_COMPILE_UNIT) + bytes((_CHILDREN_NO,)) + pairs + b"\0"


def _unit(name: str, directory: str, code: Sequence[tuple[str, int, int]]) -> bytes:
    low = min((start for _, start, _ in code), default=0)
    high = max((end for _, _, end in code), default=0)
    body = _unsigned(1) + _string("xenlite") + _LANGUAGE.pack(_LANG_MIPS_ASSEMBLER)
    body += _string(name) + _string(directory)
    body += _ADDRESS.pack(0) + _ADDRESS.pack(low) + _ADDRESS.pack(high - low)
    length = _UNIT.size - 4 + len(body)
    return _UNIT.pack(length, VERSION, 0, _ADDRESS_SIZE) + body


def _line_table(code: Sequence[tuple[str, int, int]], lines: Sequence[SourceLine]) -> bytes:
    files = list(dict.fromkeys(line.file for line in lines))
    folders = list(dict.fromkeys(_folder(file) for file in files if _folder(file)))
    tables = b"".join(map(_string, folders)) + b"\0"
    for file in files:
        folder = folders.index(_folder(file)) + 1 if _folder(file) else 0
        tables += _string(PurePath(file).name) + _unsigned(folder) + b"\0\0"  # no time, no length
    tables += b"\0"
    fixed = _LINE_FIXED.pack(1, 1, 1, _LINE_BASE, _LINE_RANGE, _OPCODE_BASE) + _OPCODE_LENGTHS
    program = b"".join(
        _sequence([line for line in lines if line.section == section], files, end)
        for section, _, end in code
    )
    header = fixed + tables
    length = _LINE_HEAD.size - 4 + len(header) + len(program)
    return _LINE_HEAD.pack(length, VERSION, len(header)) + header + program


def _folder(file: str) -> str:
    folder = str(PurePath(file).parent)
    return "" if folder == "." else folder


def _sequence(lines: Sequence[SourceLine], files: Sequence[str], end: int) -> bytes:
    """Write the rows of one section; several lines at one address leave the last."""
    if not lines:
        return b""
    rows = [list(group)[-1] for _, group in groupby(lines, key=lambda line: line.address)]
    address, file, number = rows[0].address, 1, 1
    out = bytearray(_extended(_LNE_SET_ADDRESS, _ADDRESS.pack(address)))
    for row in rows:
        index = files.index(row.file) + 1
        if index != file:
            out += bytes((_LNS_SET_FILE,)) + _unsigned(index)
        out += _row(row.address - address, row.line - number)
        address, file, number = row.address, index, row.line
    out += bytes((_LNS_ADVANCE_PC,)) + _unsigned(end - address)
    return bytes(out + _extended(_LNE_END_SEQUENCE, b""))


def _row(advance: int, lines: int) -> bytes:
    """Write one row, in one byte where that can be."""
    opcode = lines - _LINE_BASE + _LINE_RANGE * advance + _OPCODE_BASE
    if 0 <= lines - _LINE_BASE < _LINE_RANGE and opcode < 256:
        return bytes((opcode,))
    advanced = bytes((_LNS_ADVANCE_PC,)) + _unsigned(advance)
    return advanced + bytes((_LNS_ADVANCE_LINE,)) + _signed(lines) + bytes((_LNS_COPY,))


def _extended(opcode: int, operand: bytes) -> bytes:
    return b"\0" + _unsigned(1 + len(operand)) + bytes((opcode,)) + operand


def _string(text: str) -> bytes:
    return text.encode(errors="surrogateescape") + b"\0"


def _unsigned(value: int) -> bytes:
    """Return a number as LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    """Return a number with a sign as LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
