# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain a crash, and a refused hypercall, in the words of the guest's own kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import HYPERVISOR_iret
from xenlite.toolstack.call_text import call_text, result_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenlite.doors import Control, CrashRecord, HypercallRecord, Refusal
    from xenlite.toolstack.symbols import Symbols

_WORD: Final = 0xFFFFFFFF
STACK_WORDS: Final = 32
CODE_BYTES: Final = 15  # the longest instruction
REGISTER_ROWS: Final = (
    ("eax", "ebx", "ecx", "edx"),
    ("esi", "edi", "ebp", "esp"),
    ("eip", "eflags", "cr2", "cr3"),
    ("cs", "ss", "ds", "es"),
    ("fs", "gs"),
)


def crash_report(
    control: Control,
    name: str,
    record: CrashRecord,
    symbols: Symbols,
    console_tail: Sequence[str],
) -> str:
    """Write the whole report: why, registers, instruction, stack, hypercalls, console."""
    title = f"domain {name!r} (domid {record.domid}) crashed: {record.rule}"
    lines = [f"{title}: {record.detail}" if record.detail else title]
    lines.append(f"`xenlite explain {record.rule}` says what that rule is for, and what to do")
    lines.append(f"registers of vcpu {record.vcpu}:")
    lines += _registers(record.registers)
    lines += _code(control, record, symbols)
    lines += _stack(control, record, symbols)
    lines.append(f"hypercalls, the newest last ({len(record.hypercalls)} remembered):")
    lines += [f"  {_hypercall(one)}" for one in record.hypercalls]
    lines.append("end of the console:")
    lines += [f"  {line}" for line in console_tail]
    return "\n".join(lines)


def refusal_line(refusal: Refusal, symbols: Symbols) -> str:
    """Say in one line which hypercall was refused, by which rule, and who made it.

    The caller is the return address on the stack where that is code (a call of the hypercall
    page), else the ``int`` itself.
    """
    call = call_text(refusal.number, refusal.arguments)
    argument = refusal.argument
    what = hex(argument) if isinstance(argument, int) else argument
    rule = refusal.rule if what is None else f"{refusal.rule} ({what})"
    if refusal.entry is not None:
        rule += f" in entry {refusal.entry}"
    caller = refusal.caller
    place = caller if caller is not None and symbols.is_code(caller) else refusal.eip
    return f"{call} = {result_text(-refusal.errno & _WORD)}: {rule}, from {symbols.show(place)}"


def _registers(registers: dict[str, int]) -> Iterator[str]:
    for row in REGISTER_ROWS:
        yield "  " + "  ".join(f"{r:>6} {registers[r]:08x}" for r in row if r in registers)
    rest = [r for r in registers if not any(r in row for row in REGISTER_ROWS)]
    if rest:
        yield "  " + "  ".join(f"{r:>6} {registers[r]:08x}" for r in rest)


def _code(control: Control, record: CrashRecord, symbols: Symbols) -> Iterator[str]:
    eip = record.registers["eip"]
    code = control.read_virtual(record.domid, record.vcpu, eip, CODE_BYTES)
    yield f"at {symbols.show(eip)}: {_disassemble(code, eip)}"


def _disassemble(code: bytes, address: int) -> str:
    import capstone

    if not code:
        return "not mapped"
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    for _, size, mnemonic, operands in engine.disasm_lite(code, address, 1):
        return f"{code[:size].hex(' ')}   {mnemonic} {operands}".rstrip()
    return f"{code.hex(' ')}   not an instruction"


def _stack(control: Control, record: CrashRecord, symbols: Symbols) -> Iterator[str]:
    esp = record.registers["esp"]
    stack = control.read_virtual(record.domid, record.vcpu, esp, STACK_WORDS * 4)
    words = [int.from_bytes(stack[at : at + 4], "little") for at in range(0, len(stack) - 3, 4)]
    if not words:
        yield f"stack at {esp:08x}: not mapped"
        return
    yield f"stack at {esp:08x}:"
    for at in range(0, len(words), 8):
        yield f"  {esp + at * 4:08x}  " + " ".join(f"{word:08x}" for word in words[at : at + 8])
    named = [(esp + at * 4, word) for at, word in enumerate(words) if symbols.is_code(word)]
    if named:
        yield "stack words that point into the kernel's code:"
        for address, word in named:
            yield f"  {address:08x}  {symbols.show(word)}"


def _hypercall(record: HypercallRecord) -> str:
    call = call_text(record.number, record.arguments)
    if record.number == HYPERVISOR_iret:
        return call  # goes elsewhere and has no result
    return f"{call} = {'not finished' if record.result is None else result_text(record.result)}"
