# SPDX-License-Identifier: GPL-2.0-or-later
"""Assemble guest kernels, their programs, and fragments: Intel syntax, Keystone inside.

`assemble` gives a kernel or a program as a value, `assemble_fragment` a few instructions at an
address; for the ELF file of a kernel, kept as long as no source changes, see kernel_cache.py. What
a source may say stands in assembly_source.py; every fault is an `AssemblyError` with file and line.

A unit goes to Keystone whole, all sections in one address space, so that it resolves labels and
chooses jump forms. It gives no symbols back: a table of `.long label` at the end of the unit does.
Sections start on pages of their own; the padding that this takes depends on their sizes, so a unit
is assembled until the padding fits (twice, as a rule).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, zip_longest
from pathlib import Path
from struct import iter_unpack
from typing import Any

from xenlite.abi import x86_32p
from xenlite.devkit import elf_writer, keystone_child
from xenlite.devkit.assembly_expression import LABEL
from xenlite.devkit.assembly_source import Line, Section, Source
from xenlite.devkit.assembly_text import AssemblyError, Place
from xenlite.devkit.dwarf_writer import SourceLine
from xenlite.devkit.kernel_cache import build_kernel, include_directories
from xenlite.errors import Fault

__all__ = [
    "AssembledKernel",
    "AssembledSection",
    "AssembledSymbol",
    "Fragment",
    "assemble",
    "assemble_fragment",
    "build_kernel",
]

PAGE_SIZE = 4096
ENTRY_SYMBOL = "_start"
_MAX_PASSES = 8


@dataclass(frozen=True, slots=True)
class AssembledSection:
    """One section of a kernel; `data` is empty for one that only has a size."""

    name: str
    flags: str
    address: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AssembledSymbol:
    """A label, or a name that `.equ` gave to an address."""

    name: str
    address: int
    size: int
    section: str
    is_function: bool
    is_global: bool


@dataclass(frozen=True, slots=True)
class AssembledKernel:
    """A kernel or a program at its virtual addresses, before it is a file.

    `virt_base` is what the kernel's note says, 0 without one. A program has no notes.
    """

    virt_base: int
    entry: int
    sections: tuple[AssembledSection, ...]
    symbols: tuple[AssembledSymbol, ...]
    notes: tuple[tuple[int, bytes], ...]
    source: str = ""
    lines: tuple[SourceLine, ...] = ()

    def address_of(self, name: str) -> int:
        """Return the address of a symbol. Raise `KeyError`."""
        for symbol in self.symbols:
            if symbol.name == name:
                return symbol.address
        raise KeyError(name)

    def elf(self, directory: str | None = None) -> bytes:
        """Return the ELF file; with the lines of its sources if `directory` says where they are."""
        return elf_writer.write(self, directory)


@dataclass(frozen=True, slots=True)
class Fragment:
    """Instructions and data at `origin`, with the address of every label."""

    code: bytes
    symbols: Mapping[str, int]
    origin: int


def assemble(
    source: Path,
    *,
    base: int | None = None,
    include_dirs: Sequence[Path] = (),
    defines: Mapping[str, int] | None = None,
) -> AssembledKernel:
    """Assemble a kernel or, at `base`, a program. Raise `AssemblyError`.

    A kernel's base is its note VIRT_BASE; `defines` are constants as if by `.equ`.
    """
    program = Source((*include_dirs, *include_directories()), defines or {})
    program.read_file(source)
    virt_base = _virt_base(program)
    rows = _mark_lines(program)
    image = _assemble_unit(program, virt_base if base is None else base, PAGE_SIZE, list(rows))
    entry = image.symbols.get(ENTRY_SYMBOL)
    if entry is None:
        raise _error(str(source), f"no label {ENTRY_SYMBOL}: execution starts there")
    return AssembledKernel(
        virt_base,
        entry,
        image.sections,
        _symbols(program, image),
        _notes(program, image),
        source.name,
        _source_lines(program, source.parent, rows, image),
    )


def assemble_fragment(
    text: str, origin: int = 0, defines: Mapping[str, int] | None = None
) -> Fragment:
    """Assemble `text` for the address `origin`; Xen's ABI constants are known without an include.

    `defines` adds constants or hides some of them. Sections follow each other, data behind code.
    Raise `AssemblyError`.
    """
    return _fragment(text, origin, tuple((defines or {}).items()))


@lru_cache(maxsize=1024)
def _fragment(text: str, origin: int, defines: tuple[tuple[str, int], ...]) -> Fragment:

    program = Source(include_directories(), {**_abi_constants(), **dict(defines)})
    program.read_text(text, "fragment")
    image = _assemble_unit(program, origin, 1)
    return Fragment(b"".join(part.data for part in image.padded()), image.symbols, origin)


@lru_cache(maxsize=1)
def _abi_constants() -> dict[str, int]:
    return {name: value for name, value in vars(x86_32p).items() if type(value) is int}


# A unit


@dataclass(slots=True)
class _Image:
    sections: tuple[AssembledSection, ...]
    symbols: dict[str, int]

    def padded(self) -> list[AssembledSection]:
        """Give the sections with the gaps between them filled, and what has no data as zeros."""
        out = []
        for section, following in zip_longest(self.sections, self.sections[1:]):
            size = following.address - section.address if following else section.size
            data = section.data.ljust(size, b"\0")
            out.append(AssembledSection(section.name, section.flags, section.address, size, data))
        return out


def _assemble_unit(program: Source, base: int, boundary: int, marks: Sequence[str] = ()) -> _Image:
    """Assemble all sections; the image's symbols include the labels `marks`."""
    sections = sorted((s for s in program.sections.values() if s.lines), key=_order)
    edges = {s.name: (_edge(s, "start"), _edge(s, "end")) for s in sections}
    program.finish(edge for pair in edges.values() for edge in pair)
    if not sections:
        return _Image((), {})
    names = [*program.labels, *(edge for pair in edges.values() for edge in pair), *marks]
    pads = [0] * len(sections)
    for _ in range(_MAX_PASSES):
        lines = _unit_lines(sections, edges, pads, names)
        code = _encode(lines, base)
        table = code[len(code) - 4 * len(names) :]
        addresses = dict(zip(names, (n for (n,) in iter_unpack("<I", table)), strict=True))
        wanted = [0]
        for before, section in pairwise(sections):
            end = addresses[edges[before.name][1]]
            wanted.append(-end % max(boundary, section.alignment))
        if wanted == pads:
            break
        pads = wanted
    else:
        raise AssertionError(f"the sections of {names[:3]} find no place")
    for name, value in program.symbols.items():
        if not value.is_constant and all(label in addresses for label in value.labels):
            addresses[name] = value.resolve(addresses)
    placed = []
    for section in sections:
        start, end = (addresses[edge] for edge in edges[section.name])
        data = b"" if section.nobits else code[start - base : end - base]
        placed.append(AssembledSection(section.name, section.flags, start, end - start, data))
    return _Image(tuple(placed), addresses)


def _order(section: Section) -> tuple[bool, bool, bool]:
    """Sort code before constants before data before what is only a size; else as first named."""
    return ("w" in section.flags, "x" not in section.flags, section.nobits)


def _edge(section: Section, side: str) -> str:
    return f"__{section.name.lstrip('.').replace('.', '_')}_{side}"


def _unit_lines(
    sections: Sequence[Section],
    edges: Mapping[str, tuple[str, str]],
    pads: Sequence[int],
    names: Sequence[str],
) -> list[Line]:
    def own(text: str) -> Line:
        return Line(Place("(layout)", 0), text, 1)

    lines: list[Line] = []
    for section, pad in zip(sections, pads, strict=True):
        if pad:
            lines.append(own(f".fill {pad:#x}, 0x1, 0x0"))
        start, end = edges[section.name]
        lines += [own(f"{LABEL}{start}:"), *section.lines, own(f"{LABEL}{end}:")]
    return [*lines, *(own(f".long {LABEL}{name}") for name in names)]


def _encode(lines: Sequence[Line], origin: int) -> bytes:
    text = "\n".join(line.text for line in lines)
    answer = keystone_child.ask({"text": text, "origin": origin})
    expected = sum(line.statements for line in lines)
    if answer and not answer["error"] and answer["count"] == expected:
        return bytes.fromhex(answer["code"])
    raise _culprits(lines, answer)


def _culprits(lines: Sequence[Line], answer: dict[str, Any] | None) -> AssemblyError:
    """Find the lines that Keystone cannot encode, each tried alone."""
    symbols = sorted(
        {line.text[:-1] for line in lines if line.text.endswith(":")}
        | {line.text.split()[1][:-1] for line in lines if line.text.startswith(".equ ")}
    )
    candidates = [line for line in lines if not line.text.endswith(":")]
    found = keystone_child.ask({"each": [line.text for line in candidates], "symbols": symbols})
    if found is None:
        index = keystone_child.last_index()
        stuck = candidates[index]
        what = f"Keystone does not come back from {_shown(stuck.text)}"
        return AssemblyError(Fault(str(stuck.place), what))
    faults = [(candidates[index], error) for index, error in found["faults"]]
    if not faults and answer is not None:
        faults = [(line, "the label is too far away") for line in _too_far(lines)]
    if not faults:
        reason = answer["error"] if answer else "it does not come back"
        raise AssertionError(f"Keystone refuses the whole, and no line alone: {reason}")
    return AssemblyError(
        *(Fault(str(at.place), f"{_readable(text)}: {_shown(at.text)}") for at, text in faults)
    )


def _too_far(lines: Sequence[Line]) -> list[Line]:
    """Find the short-only branches that do not reach: with all others gone the unit still fails."""
    branches = [line for line in lines if line.text.startswith(("jecxz", "jcxz", "loop"))]
    culprits = []
    for branch in branches:
        others = [line.text for line in lines if line is branch or line not in branches]
        answer = keystone_child.ask({"text": "\n".join(others), "origin": 0})
        if answer is None or answer["error"]:
            culprits.append(branch)
    return culprits


def _shown(text: str) -> str:

    return repr(text.replace(LABEL, ""))


def _readable(error: str) -> str:
    return re.sub(r"\s*\(KS_ERR_\w+\)", "", error).strip().lower()


def _error(where: str, what: str) -> AssemblyError:

    return AssemblyError(Fault(where, what))


# What an ELF file needs beside the bytes


def _mark_lines(program: Source) -> dict[str, tuple[str, Place]]:
    """Put a label before the first instruction of each line; return section and place of each."""
    marks: dict[str, tuple[str, Place]] = {}
    for section in program.sections.values():
        marked: list[Line] = []
        last: Place | None = None
        for line in section.lines:
            place = line.place.outermost
            if line.is_code and place != last:
                label = f".Lline{len(marks)}"
                marks[label] = (section.name, place)
                marked.append(Line(place, f"{LABEL}{label}:", 1))
                last = place
            elif not line.is_code:
                last = None
            marked.append(line)
        section.lines = marked
    return marks


def _source_lines(
    program: Source, directory: Path, marks: Mapping[str, tuple[str, Place]], image: _Image
) -> tuple[SourceLine, ...]:
    """Say which line each marked instruction comes from, its file relative to `directory`."""
    files = {name: os.path.relpath(path, directory) for name, path in program.files.items()}
    return tuple(
        SourceLine(section, image.symbols[label], files[place.file], place.line)
        for label, (section, place) in marks.items()
    )


def _virt_base(program: Source) -> int:
    for note in program.notes:
        if note.name == "VIRT_BASE" and not isinstance(note.value, bytes):
            return note.value.constant
    return 0


def _notes(program: Source, image: _Image) -> tuple[tuple[int, bytes], ...]:
    constants = _abi_constants()
    notes = []
    for note in program.notes:
        number = constants.get(f"XEN_ELFNOTE_{note.name}")
        if number is None:
            raise _error(str(note.place), f"Xen has no ELF note {note.name}")
        if isinstance(note.value, bytes):
            notes.append((number, note.value + b"\0"))
        else:
            notes.append((number, note.value.resolve(image.symbols).to_bytes(4, "little")))
    return tuple(notes)


def _symbols(program: Source, image: _Image) -> tuple[AssembledSymbol, ...]:
    """Give every label but `.L` ones; one reaches to the next of its section."""
    by_name = {section.name: section for section in image.sections}
    functions = _before_code(program)
    visible = sorted(
        (image.symbols[name], name, section)
        for name, (_, section) in program.labels.items()
        if not name.startswith(".L")
    )
    out = []
    for index, (address, name, section) in enumerate(visible):
        home = by_name[section]
        later = (a for a, _, s in visible[index + 1 :] if s == section and a > address)
        size = next(later, home.address + home.size) - address
        kind = program.types.get(name, "function" if name in functions else "object")
        out.append(
            AssembledSymbol(
                name, address, size, section, kind == "function", name in program.globals
            )
        )
    return tuple(out)


def _before_code(program: Source) -> set[str]:
    """Find the labels that an instruction follows, perhaps behind other labels."""
    found = set()
    for section in program.sections.values():
        code_follows = False
        for line in reversed(section.lines):
            if not line.text.endswith(":"):
                code_follows = line.is_code
            elif code_follows:
                found.add(line.text[len(LABEL) : -1])
    return found
