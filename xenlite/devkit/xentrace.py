# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn recorded events into xentrace's records, for xenalyze; ``--cpu-hz 1G``: a cycle is a ns.

One processor has it all. Each domain's runstates come from its turns: who doesn't run is runnable
or blocked. Events and upcalls have no record of Xen's.
Source: public/trace.h, t_rec and TRC_PV_HYPERCALL_V2; what the others hold is in the reader,
tools/xentrace/xenalyze.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    TRACE_EXTRA_SHIFT,
    TRC_HD_CYCLE_FLAG,
    TRC_PV_HYPERCALL_V2,
    TRC_PV_PAGE_FAULT,
    TRC_PV_TRAP,
    TRC_SCHED_DOM_ADD,
    TRC_SCHED_DOM_REM,
    TRC_SCHED_RUNSTATE_CHANGE,
    TRC_TRACE_CPU_CHANGE,
    RUNSTATE_runnable,
    RUNSTATE_running,
    TRAP_page_fault,
)
from xenlite.toolstack.event_text import Happening, happenings
from xenlite.trace_format import Cause, Hypercall, Kind, Trap, Turn, view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.devkit.trace_file import Trace

_HEAD: Final = Struct("<IQ")
_CPU_CHANGE: Final = Struct("<III")
_ARGUMENTS: Final = 5
_ALL_PRESENT: Final = sum(1 << (20 + 2 * n) for n in range(_ARGUMENTS))  # each of 32 bits
_OLD_STATE, _NEW_STATE = 8, 4  # where TRC_SCHED_RUNSTATE_CHANGE has them
_ERROR_CODE: Final = 1 << 15
_VECTORS: Final = 0xFF
_STATES: Final = 3


def to_xentrace(trace: Trace) -> bytes:
    """Return the bytes of a file as xentrace writes it."""
    records: list[tuple[int, bytes]] = []
    for happening in happenings(trace.records):
        records += _records(happening)
    records.sort(key=lambda record: record[0])
    body = b"".join(data for _, data in records)
    head = TRC_TRACE_CPU_CHANGE | 2 << TRACE_EXTRA_SHIFT
    return _CPU_CHANGE.pack(head, 0, len(body)) + body


def _records(happening: Happening) -> Iterator[tuple[int, bytes]]:
    record = happening.record
    time_ns = record.time_ns
    match record.kind:
        case Kind.START:
            yield time_ns, _record(time_ns, TRC_SCHED_DOM_ADD, record.domid)
        case Kind.END:
            yield time_ns, _record(time_ns, TRC_SCHED_DOM_REM, record.domid)
        case Kind.TURN:
            turn = view(Turn, record)
            who = record.domid << 16 | record.vcpu
            yield time_ns, _runstate(time_ns, RUNSTATE_runnable, RUNSTATE_running, who)
            end_ns = record.end_ns
            yield end_ns, _runstate(end_ns, RUNSTATE_running, turn.state & _STATES, who)
        case Kind.HYPERCALL:
            arguments = view(Hypercall, record).arguments
            number = happening.number & 0xFFFFF | _ALL_PRESENT
            yield time_ns, _record(time_ns, TRC_PV_HYPERCALL_V2, number, *arguments)
        case Kind.TRAP:
            yield from _trap(time_ns, view(Trap, record))
        case _:
            pass


def _trap(time_ns: int, trap: Trap) -> Iterator[tuple[int, bytes]]:
    if trap.cause not in (Cause.FAULT, Cause.SOFTWARE):
        return
    if trap.cause == Cause.FAULT and trap.vector == TRAP_page_fault:
        words = (trap.eip, trap.cr2, trap.error_code)
        yield time_ns, _record(time_ns, TRC_PV_PAGE_FAULT, *words)
        return
    code = (trap.error_code & 0xFFFF) << 16 | _ERROR_CODE if trap.error_code else 0
    yield time_ns, _record(time_ns, TRC_PV_TRAP, trap.eip, code | trap.vector & _VECTORS)


def _runstate(time_ns: int, old: int, new: int, who: int) -> bytes:
    event = TRC_SCHED_RUNSTATE_CHANGE | old << _OLD_STATE | new << _NEW_STATE
    return _record(time_ns, event, who)


def _record(time_ns: int, event: int, *words: int) -> bytes:
    head = event | len(words) << TRACE_EXTRA_SHIFT | TRC_HD_CYCLE_FLAG
    return _HEAD.pack(head, time_ns) + Struct(f"<{len(words)}I").pack(*words)
