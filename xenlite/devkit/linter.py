# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a kernel's machine code for what does not work in ring 1, and its notes for what is missing.

Code is what can be reached: from the entry point and every function of the symbol table, along
branches, falling through, and by numbers in instructions that are the address of something which
begins as compiled functions do. So data between functions is not taken for code; and what is only
reached by a table in data, of a kernel without symbols, is not seen.

A forced emulation (``ud2; .ascii "xen"``) is how a kernel asks for CPUID: nothing to complain of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final, NamedTuple

import capstone

from xenlite.abi.x86_32p import XEN_PAGE_SHIFT
from xenlite.devkit.sensitive import ADVICE, COST, advice_name
from xenlite.toolstack.image import parse_kernel
from xenlite.toolstack.packed import unpack
from xenlite.toolstack.symbols import read_symbols

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.toolstack.image import KernelImage
    from xenlite.toolstack.symbols import Symbols

_PF_X: Final = 1
_PF_WX: Final = 3
_FORCED: Final = b"xen"
_CHUNK: Final = 1024  # bytes decoded at a time
_NUMBER: Final = re.compile(r"\b0x[0-9a-f]{1,8}\b")
# Pushes of what a function keeps, then `mov ebp, esp`, `sub esp` or another move: no text.
_PROLOGUE: Final = re.compile(rb"[\x53\x55-\x57]{1,4}(\x89\xe5|\x83\xec|\x81\xec|\x8b)")
_PROLOGUE_SIZE: Final = 6
_ENDS: Final = frozenset({"ret", "retf", "jmp", "ljmp", "iret", "iretd", "sysexit", "sysret"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. ``name`` is that of the advice; ``address`` None for the whole file."""

    name: str
    what: str
    address: int | None = None
    function: str = ""
    place: str = ""  # file:line, where the kernel has line information
    instruction: str = ""

    def __str__(self) -> str:
        if self.address is None:
            return f"{self.name}: {self.what}"
        named = f" <{self.function}>" if self.function else ""
        line = f" {self.place}" if self.place else ""
        return f"{self.address:08x}{named}{line}: {self.instruction}: {self.what}"


def lint(data: bytes, name: str) -> list[Finding]:
    """Return what is to be looked at in the kernel of file ``name``, the file's own faults first.

    Raises ConfigError for a file that is no kernel.
    """
    image = parse_kernel(data, name)
    plain = unpack(data, name)
    return [*_claims(image), *_code(image, read_symbols(plain), _lines(plain))]


def _claims(image: KernelImage) -> Iterator[Finding]:
    if image.hypercall_page is None:
        yield Finding(
            "no hypercall page", "no note HYPERCALL_PAGE: calls must be made by `int 0x82`"
        )
    if not image.extended_cr3:
        yield Finding(
            "CR3 below 4 GB", "the kernel does not say that its L3 may be anywhere (extended-cr3)"
        )
    if image.entry not in _Memory(image):
        yield Finding("entry", f"the entry point {image.entry:#x} is in no executable segment")
    for segment in image.segments:
        if segment.flags & _PF_WX == _PF_WX:
            yield Finding(
                "writable code", f"the segment at {segment.vaddr:#x} is writable and executable"
            )


def _code(image: KernelImage, symbols: Symbols, lines: dict[int, str]) -> Iterator[Finding]:
    for instruction in _reached(_Memory(image), image, symbols):
        name = advice_name(instruction.mnemonic, instruction.operands)
        if name is None:
            continue
        effect, what, instead = ADVICE[name]
        yield Finding(
            name,
            f"{effect} in ring 1{COST[effect]}: {what}; instead: {instead}",
            instruction.address,
            symbols.name(instruction.address) or "",
            lines.get(instruction.address, ""),
            f"{instruction.mnemonic} {instruction.operands}".strip(),
        )


class _Memory:
    """The kernel's code as it is in the file, by virtual address."""

    def __init__(self, image: KernelImage) -> None:
        self._pieces = [
            (range(segment.vaddr, segment.vaddr + len(segment.data)), segment.data)
            for segment in image.segments
            if segment.flags & _PF_X
        ]

    def __contains__(self, address: object) -> bool:
        return any(address in span for span, _ in self._pieces)

    def read(self, address: int, size: int) -> bytes:
        """Return what is there, up to the end of its segment."""
        for span, data in self._pieces:
            if address in span:
                at = address - span.start
                return bytes(data[at : at + size])
        return b""


class _Instruction(NamedTuple):
    """One decoded instruction, as Capstone writes it."""

    address: int
    size: int
    mnemonic: str
    operands: str


def _reached(memory: _Memory, image: KernelImage, symbols: Symbols) -> list[_Instruction]:
    """Return every instruction that can be reached, by address."""
    page = image.hypercall_page
    filled = (
        range(0) if page is None else range(page, page + (1 << XEN_PAGE_SHIFT))
    )  # by the builder
    todo = [image.entry, *(a for a in symbols.functions if a in memory)]
    found: dict[int, _Instruction] = {}
    while todo:
        start = todo.pop()
        if start not in found and start in memory and start not in filled:
            for instruction in _straight(memory, start):
                if instruction.address in found:
                    break
                found[instruction.address] = instruction
                todo += _named(instruction, memory)
    return [found[address] for address in sorted(found)]


def _straight(memory: _Memory, start: int) -> Iterator[_Instruction]:
    """Yield what runs from an address on, up to where nothing falls through."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    address = start
    while code := memory.read(address, _CHUNK):
        for decoded in engine.disasm_lite(code, address):
            instruction = _Instruction(*decoded)
            address = instruction.address + instruction.size
            if instruction.mnemonic == "ud2":
                if memory.read(address, len(_FORCED)) != _FORCED:
                    return
                address += len(_FORCED)
                break
            yield instruction
            if instruction.mnemonic in _ENDS:
                return
        else:
            if len(code) < _CHUNK or address <= start:
                return
        start = address


def _named(instruction: _Instruction, memory: _Memory) -> Iterator[int]:
    """Yield the addresses of code that an instruction goes to, or speaks of."""
    is_branch = instruction.mnemonic.startswith(("j", "call", "loop"))
    for number in _NUMBER.findall(re.sub(r"\[.*?\]", "", instruction.operands)):
        target = int(number, 16)
        if target in memory and (is_branch or _PROLOGUE.match(memory.read(target, _PROLOGUE_SIZE))):
            yield target


def _lines(elf: bytes) -> dict[int, str]:
    """Return ``file:line`` by address; empty where the kernel has no line information."""
    from elftools.common.exceptions import DWARFError, ELFError
    from elftools.elf.elffile import ELFFile

    found: dict[int, str] = {}
    try:
        file = ELFFile(BytesIO(elf))
        if not file.has_dwarf_info():
            return found
        dwarf = file.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            files = program["file_entry"]
            first = 0 if program["version"] >= 5 else 1
            for entry in program.get_entries():
                state = entry.state
                if state is not None and not state.end_sequence:
                    name = files[state.file - first].name.decode(errors="backslashreplace")
                    found.setdefault(state.address, f"{name}:{state.line}")
    except (ELFError, DWARFError, IndexError, KeyError):
        return found  # broken information for debuggers is no fault of the code
    return found
