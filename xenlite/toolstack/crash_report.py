# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain a crash, and a refused hypercall, in the words of the guest's own kernel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from xenlite.toolstack.call_text import call_line, refused_line
from xenlite.toolstack.event_text import event_line, happenings, remembered_trap
from xenlite.trace_format import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenlite.doors import Control, CrashRecord, Refusal
    from xenlite.toolstack.symbols import Symbols
    from xenlite.trace_format import Record

STACK_WORDS: Final = 32
CODE_BYTES: Final = 15  # the longest instruction
EVENTS: Final = 64
REGISTER_ROWS: Final = (
    ("eax", "ebx", "ecx", "edx"),
    ("esi", "edi", "ebp", "esp"),
    ("eip", "eflags", "cr2", "cr3"),
    ("cs", "ss", "ds", "es"),
    ("fs", "gs"),
)
_UNSEEN: Final = (Kind.TURN, Kind.SYMBOLS)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the stack; ``label`` where it points into the kernel's code."""

    address: int
    value: int
    label: str | None


@dataclass(frozen=True, slots=True)
class Walk:
    """The way through the page tables to one address, a line a level; the last is the page."""

    register: str
    address: int
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CrashReport:
    """All that is told of one crash; ``events`` only where they were recorded.

    Their times are seconds up to the last of them.
    """

    domain: str
    domid: int
    vcpu: int
    rule: str
    detail: str
    registers: dict[str, int]
    place: str
    instruction: str
    walks: tuple[Walk, ...]
    stack: tuple[Word, ...]
    hypercalls: tuple[str, ...]
    traps: tuple[str, ...]
    events: tuple[str, ...]
    console: tuple[str, ...]


def crash_report(
    control: Control,
    name: str,
    record: CrashRecord,
    symbols: Symbols,
    console_tail: Sequence[str],
    events: Sequence[Record] = (),
) -> CrashReport:
    """Gather the report while the domain is still there; ``events`` are of all domains."""
    eip, esp = record.registers["eip"], record.registers["esp"]
    own = [one for one in events if one.domid == record.domid and one.kind not in _UNSEEN]
    end_ns = own[-1].time_ns if own else 0
    return CrashReport(
        domain=name,
        domid=record.domid,
        vcpu=record.vcpu,
        rule=record.rule,
        detail=record.detail,
        registers=dict(record.registers),
        place=symbols.show(eip),
        instruction=_disassemble(
            control.read_virtual(record.domid, record.vcpu, eip, CODE_BYTES), eip
        ),
        walks=tuple(_walk(control, record, register) for register in ("cr2", "eip", "esp")),
        stack=tuple(_stack(control, record, symbols, esp)),
        hypercalls=tuple(map(call_line, record.hypercalls)),
        traps=tuple(remembered_trap(one, symbols) for one in record.traps),
        events=tuple(event_line(one, symbols, end_ns) for one in list(happenings(own))[-EVENTS:]),
        console=tuple(console_tail),
    )


def as_text(report: CrashReport) -> str:
    """Write the whole report: why, registers, instruction, page tables, stack, calls, console."""
    title = f"domain {report.domain!r} (domid {report.domid}) crashed: {report.rule}"
    lines = [f"{title}: {report.detail}" if report.detail else title]
    lines.append(f"`xenlite explain {report.rule}` says what that rule is for, and what to do")
    lines.append(f"registers of vcpu {report.vcpu}:")
    lines += _registers(report.registers)
    lines.append(f"at {report.place}: {report.instruction}")
    for walk in report.walks:
        lines.append(f"page tables at {walk.register} {walk.address:08x}:")
        lines += [f"  {step}" for step in walk.steps]
    lines += _stack_lines(report)
    lines.append(f"hypercalls, the newest last ({len(report.hypercalls)} remembered):")
    lines += [f"  {one}" for one in report.hypercalls]
    lines.append(f"other traps, the newest last ({len(report.traps)} remembered):")
    lines += [f"  {one}" for one in report.traps]
    if report.events:
        lines.append(f"the last {len(report.events)} events:")
        lines += [f"  {one}" for one in report.events]
    lines.append("end of the console:")
    lines += [f"  {line}" for line in report.console]
    return "\n".join(lines)


def as_json(report: CrashReport) -> str:
    """Write the report for programs, in one line; numbers are numbers."""
    return json.dumps(asdict(report))


def refusal_line(refusal: Refusal, symbols: Symbols) -> str:
    """Say in one line which hypercall was refused, by which rule, and who made it.

    The caller is the return address on the stack where that is code (a call of the hypercall
    page), else the ``int`` itself.
    """
    caller = refusal.caller
    place = caller if caller is not None and symbols.is_code(caller) else refusal.eip
    return f"{refused_line(refusal)}, from {symbols.show(place)}"


def _registers(registers: dict[str, int]) -> Iterator[str]:
    for row in REGISTER_ROWS:
        yield "  " + "  ".join(f"{r:>6} {registers[r]:08x}" for r in row if r in registers)
    rest = [r for r in registers if not any(r in row for row in REGISTER_ROWS)]
    if rest:
        yield "  " + "  ".join(f"{r:>6} {registers[r]:08x}" for r in rest)


def _disassemble(code: bytes, address: int) -> str:
    import capstone

    if not code:
        return "not mapped"
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    for _, size, mnemonic, operands in engine.disasm_lite(code, address, 1):
        return f"{code[:size].hex(' ')}   {mnemonic} {operands}".rstrip()
    return f"{code.hex(' ')}   not an instruction"


def _walk(control: Control, record: CrashRecord, register: str) -> Walk:
    address = record.registers[register]
    steps = []
    for step in control.page_walk(record.domid, record.vcpu, address):
        text = f"L{step.level}[{step.index}] = {step.entry:#x}"
        if step.mfn is None:
            steps.append(f"{text}, not present")
            continue
        rights = ("rw" if step.writable else "ro") + (" user" if step.user else "")
        rights += "" if step.executable else " nx"
        frame = control.frame(step.mfn)
        owner = "nobody" if frame.owner is None else f"d{frame.owner}"
        pinned = ", pinned" if frame.is_pinned else ""
        steps.append(
            f"{text}: {rights} -> mfn {step.mfn:#x} of {owner}, {frame.type},"
            f" {frame.type_count} uses as that, {frame.references} references{pinned}"
        )
    return Walk(register, address, tuple(steps))


def _stack(control: Control, record: CrashRecord, symbols: Symbols, esp: int) -> Iterator[Word]:
    stack = control.read_virtual(record.domid, record.vcpu, esp, STACK_WORDS * 4)
    for at in range(0, len(stack) - 3, 4):
        value = int.from_bytes(stack[at : at + 4], "little")
        yield Word(esp + at, value, symbols.name(value) if symbols.is_code(value) else None)


def _stack_lines(report: CrashReport) -> Iterator[str]:
    esp, words = report.registers["esp"], report.stack
    if not words:
        yield f"stack at {esp:08x}: not mapped"
        return
    yield f"stack at {esp:08x}:"
    for at in range(0, len(words), 8):
        row = words[at : at + 8]
        yield f"  {row[0].address:08x}  " + " ".join(f"{word.value:08x}" for word in row)
    named = [word for word in words if word.label is not None]
    if named:
        yield "stack words that point into the kernel's code:"
        for word in named:
            yield f"  {word.address:08x}  {word.value:08x} <{word.label}>"
