# SPDX-License-Identifier: GPL-2.0-or-later
"""Write recorded events (``trace_format.py``) as lines that a kernel's author can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.abi.x86_32p import (
    HYPERCALL_NAMES,
    RUNSTATE_NAMES,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    TRAP_alignment_check,
    TRAP_bounds,
    TRAP_copro_error,
    TRAP_debug,
    TRAP_divide_error,
    TRAP_double_fault,
    TRAP_gp_fault,
    TRAP_int3,
    TRAP_invalid_op,
    TRAP_invalid_tss,
    TRAP_machine_check,
    TRAP_nmi,
    TRAP_no_device,
    TRAP_no_segment,
    TRAP_overflow,
    TRAP_page_fault,
    TRAP_simd_error,
    TRAP_stack_error,
)
from xenlite.toolstack.call_text import call_text, result_text
from xenlite.trace_format import (
    Cause,
    Cpuid,
    Event,
    Hypercall,
    Kind,
    Outcome,
    Record,
    RefusedCall,
    Trap,
    Turn,
    Upcall,
    view,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xenlite.doors import TrapRecord
    from xenlite.toolstack.symbols import Symbols

_MNEMONICS: Final = {
    TRAP_divide_error: "#DE",
    TRAP_debug: "#DB",
    TRAP_nmi: "NMI",
    TRAP_int3: "#BP",
    TRAP_overflow: "#OF",
    TRAP_bounds: "#BR",
    TRAP_invalid_op: "#UD",
    TRAP_no_device: "#NM",
    TRAP_double_fault: "#DF",
    TRAP_invalid_tss: "#TS",
    TRAP_no_segment: "#NP",
    TRAP_stack_error: "#SS",
    TRAP_gp_fault: "#GP",
    TRAP_page_fault: "#PF",
    TRAP_copro_error: "#MF",
    TRAP_alignment_check: "#AC",
    TRAP_machine_check: "#MC",
    TRAP_simd_error: "#XM",
}
_FIRST_ERROR: Final = 0xFFFFF000  # as a result of 32 bits
_PF_WORDS: Final = ((16, "fetch"), (2, "write"), (0, "read"))
_SPECIAL: Final[dict[int, str]] = {
    Outcome.REGISTERS_SET: "?",
    Outcome.RESTARTS: "? (is called again)",
    Outcome.CRASHED: "? (the domain crashed)",
}


class Happening(NamedTuple):
    """One event, and why, where it is a hypercall that was refused."""

    record: Record
    refusal: Record | None = None

    @property
    def name(self) -> str:
        """Return what the event is called in filters, counts and tracks."""
        record = self.record
        match record.kind:
            case Kind.HYPERCALL:
                number = self.number
                return HYPERCALL_NAMES.get(number, f"hypercall {number}")
            case Kind.TRAP:
                return _trap_name(view(Trap, record))
            case _:
                return record.kind.name.lower()

    @property
    def number(self) -> int:
        """Return a hypercall's number; the last entry of the table stands for many."""
        if self.refusal is not None:
            return self.refusal.words[0]
        return self.record.words[1]

    @property
    def duration_ns(self) -> int | None:
        """Return how long it took, where it took time."""
        takes_time = self.record.kind in (Kind.HYPERCALL, Kind.TRAP, Kind.TURN)
        return self.record.duration_ns if takes_time else None

    @property
    def is_error(self) -> bool:
        """Tell whether it is a hypercall that answers an error, or a crash."""
        record = self.record
        if record.kind is Kind.HYPERCALL:
            call = view(Hypercall, record)
            if call.outcome == Outcome.RETURNED:
                return call.result >= _FIRST_ERROR
            return call.outcome in (Outcome.REFUSED, Outcome.CRASHED)
        return record.kind is Kind.CRASH


def happenings(records: Iterable[Record]) -> Iterator[Happening]:
    """Join each refused hypercall with the rule that follows it."""
    held: Record | None = None
    for record in records:
        if held is not None:
            is_its = record.kind is Kind.REFUSAL and record.domid == held.domid
            yield Happening(held, record if is_its else None)
            held = None
            if is_its:
                continue
        if record.kind is Kind.HYPERCALL and record.words[0] == Outcome.REFUSED:
            held = record
        else:
            yield Happening(record)
    if held is not None:
        yield Happening(held)


def event_line(happening: Happening, symbols: Symbols, zero_ns: int) -> str:
    """Write one event: time in seconds from ``zero_ns``, domain, vCPU, and what happened."""
    record = happening.record
    when = f"{(record.time_ns - zero_ns) / 1e9:11.6f}"
    return f"{when} d{record.domid}v{record.vcpu} {what(happening, symbols)}"


def what(happening: Happening, symbols: Symbols) -> str:
    """Write what happened, without when and where."""
    record = happening.record
    words = record.words
    match record.kind:
        case Kind.HYPERCALL:
            return _hypercall(happening, symbols)
        case Kind.REFUSAL:
            return f"refused: {_rule(record)}"
        case Kind.TRAP:
            return _trap(view(Trap, record), symbols)
        case Kind.UPCALL:
            upcall = view(Upcall, record)
            return f"upcall at {symbols.show(upcall.eip)} -> {symbols.show(upcall.target)}"
        case Kind.EVENT:
            return _event(view(Event, record))
        case Kind.TURN:
            turn = view(Turn, record)
            state = RUNSTATE_NAMES.get(turn.state, "").removeprefix("RUNSTATE_")
            return f"ran for {record.duration_ns / 1e3:.1f} us, then {state}"
        case Kind.CRASH:
            rule, _, detail = "\0".join(record.texts()).partition("\0")
            return f"crashed: {rule}{f': {detail}' if detail else ''}"
        case Kind.CPUID:
            cpuid = view(Cpuid, record)
            at = symbols.show(cpuid.eip)
            return f"cpuid leaf {cpuid.leaf:#x} subleaf {cpuid.subleaf:#x} at {at}"
        case Kind.START:
            return f"domain {record.texts()[0]!r} starts"
        case Kind.END:
            return "domain is taken apart"
        case Kind.SYMBOLS:
            return "symbols"
        case Kind.LOST:
            return f"{words[0]} events were lost: the buffer was full"


def caller_of(call: Hypercall, symbols: Symbols) -> int:
    """Return who made a hypercall: the return address where that is code, else the ``int``."""
    return call.caller if symbols.is_code(call.caller) else call.eip


def _hypercall(happening: Happening, symbols: Symbols) -> str:
    record = happening.record
    call = view(Hypercall, record)
    text = call_text(happening.number, call.arguments, record.copies())
    result = _SPECIAL.get(call.outcome) or result_text(call.result)
    why = "" if happening.refusal is None else f": {_rule(happening.refusal)}"
    took = f"<{record.duration_ns / 1e3:.1f} us>"
    return f"{text} = {result}{why} {took} from {symbols.show(caller_of(call, symbols))}"


def _rule(refusal: Record) -> str:
    rule, _, argument = "\0".join(refusal.texts()).partition("\0")
    entry = view(RefusedCall, refusal).entry
    where = f" in entry {entry - 1}" if entry else ""
    return f"{rule} ({argument}){where}" if argument else f"{rule}{where}"


def _trap_name(trap: Trap) -> str:
    match trap.cause:
        case Cause.SOFTWARE:
            return f"int {trap.vector:#x}"
        case Cause.IO:
            return "io"
        case Cause.SYSCALL:
            return "sysenter" if trap.vector else "syscall"
        case Cause.STEP:
            return "step"
        case _:
            return _MNEMONICS.get(trap.vector, f"#{trap.vector}")


def remembered_trap(trap: TrapRecord, symbols: Symbols) -> str:
    """Write a trap that the hypervisor remembers of every domain."""
    ring = "" if trap.ring == 1 else f" ring {trap.ring}"
    if trap.is_software:
        return f"int {trap.vector:#x} at {symbols.show(trap.eip)}{ring}"
    name = _fault(trap.vector, trap.error_code, trap.cr2)
    return f"{name} at {symbols.show(trap.eip)}{ring}"


def _fault(vector: int, error_code: int, cr2: int) -> str:
    name = _MNEMONICS.get(vector, f"#{vector}")
    if vector == TRAP_page_fault:
        access = next(word for bit, word in _PF_WORDS if error_code & bit == bit)
        return f"{name} {access} {cr2:#x} (error {error_code:#x})"
    return f"{name} (error {error_code:#x})" if error_code else name


def _trap(trap: Trap, symbols: Symbols) -> str:
    name = _trap_name(trap)
    if trap.cause == Cause.IO:
        name = f"io port {trap.vector:#x}"
    elif trap.cause == Cause.FAULT:
        name = _fault(trap.vector, trap.error_code, trap.cr2)
    ring = "" if trap.cpl == 1 else f" ring {trap.cpl}"
    is_entered = trap.target != trap.eip
    went_on = f"-> {symbols.show(trap.target)}" if is_entered else "(no handler entered)"
    return f"{name} at {symbols.show(trap.eip)}{ring} {went_on}"


def _event(event: Event) -> str:
    if event.state == EVTCHNSTAT_interdomain:
        return f"event at port {event.port} from d{event.remote} port {event.remote_port}"
    kind = "an IPI" if event.state == EVTCHNSTAT_ipi else "a VIRQ"
    return f"event at port {event.port}, {kind}"
