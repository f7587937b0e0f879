# SPDX-License-Identifier: GPL-2.0-or-later
"""Print what each operation costs: ns, as a multiple of the floor, and against its two bars.

*Floor*: the same run's price of an INTR callback that does nothing. *Reach*: the multiple of the
floor that an operation shall stay under. *Mark*: what the same operation costs on real Xen, release
build, on QEMU's emulator, on the same kind of machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.bench_measure import bench, host, measure_start
from tools.bench_sharing import (
    Fairness,
    Idle,
    WakeUps,
    measure_fairness,
    measure_idle,
    measure_wake_ups,
)
from tools.bench_tracing import Traced, measure_tracing

ROOT: Final = Path(__file__).resolve().parent.parent
START: Final = "start"
START_CONFIG: Final = ROOT / "guestos/dom.yaml"
ROUND_NS: Final = 12_000_000  # of an operation, the smaller of the two stretches
FLOOR_COUNT: Final = 10_000
FIRST_LINE_REACH_MS: Final = 200
FIRST_LINE_MARK_MS: Final = 1080
RESIDENT_REACH_MB: Final = 80
RESIDENT_MARK_MB: Final = 82
WAKE_UP: Final = "wake_up"
IDLE: Final = "idle"
FAIRNESS: Final = "fairness"
TRACING: Final = "tracing"
IDLE_DOMAINS: Final = (1, 100)
SHARING_NS: Final = 1_000_000_000  # for idling; waking takes twice that, fairness five times
WAKE_UP_REACH_US: Final = {"a free CPU": 300, "a busy CPU": 2000}
IDLE_REACH_PERCENT: Final = 1
IDLE_REACH_MB: Final = 8
SHARE_REACH_PERCENT: Final = 5
EVENT_REACH: Final = 7  # floors: 1 us on an idle machine, where the floor is 140 ns
LATE_REACH_US: Final = 4000  # two slices


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. ``name`` is the kernel's; ``batch`` what one call of it does.

    ``reach`` is a multiple of the floor and ``mark_ns`` the time on real Xen, per single item;
    ``around_ns`` is a guess at a whole call, to choose how many make a round.
    """

    name: str
    about: str
    around_ns: float
    reach: float | None = None
    mark_ns: float | None = None
    batch: int = 1

    def count(self, round_ns: float) -> int:
        """Return how many calls fill a round."""
        return max(1, int(round_ns / self.around_ns))


OPERATIONS: Final = (
    Operation("null_hypercall", "xen_version(XENVER_version)", 500, 3.4, 450),
    Operation("update_va_mapping", "the entry as it is", 800, 9, 700),
    Operation("update_va_mapping_rw", "RW and RO by turns", 1000, 9, 700),
    Operation("update_va_mapping_invlpg", "RW and RO by turns, INVLPG", 1200, 12, 1100),
    Operation("mmu_update", "a list of one entry, RW and RO by turns", 1500, 11, 1100),
    Operation("mmu_update_32", "a list of 32 entries, per entry", 24_000, 6, 490, 32),
    Operation("multicall_32", "32 update_va_mapping, per call", 32_000, None, 680, 32),
    Operation("page_table_write", "a store to an L1 table (vm_assist 2)", 3000, 20, 2200),
    Operation("fault_skipped", "page fault, handler skips the load", 1400, 9, 1500),
    Operation("fault_map_retry", "page fault, handler maps; then unmapped", 4000, None, 3600),
    Operation("divide_error", "#DE, handler skips the division", 1200, None, 1300),
    Operation("int80_native_iret", "ring 3 to ring 1 and back by iretd", 800, 5, 500),
    Operation("int80_hypercall_iret", "ring 3 to ring 1 and back by HYPERVISOR_iret", 1400, 5, 900),
    Operation("stack_switch", "stack_switch, two stacks by turns", 500, None, 400),
    Operation("new_baseptr", "mmuext_op of one NEW_BASEPTR, two by turns", 4000, None, 8300),
    Operation("console_io_64", "console_io of 64 bytes", 1500, None, 77_000),
    Operation("event_self", "an IPI to itself, masked", 900, None, 1600),
    Operation("event_self_upcall", "the same, taken, HYPERVISOR_iret", 2500, 10, None),
    Operation("event_round_trip", "to another domain and back, both block", 60_000, 30, None),
    Operation("block_timer", "set_timer_op for the past, block, upcall", 30_000, None, None),
    Operation("yield", "sched_op yield, nobody else there", 20_000, 25, 3900),
    Operation("vcpu_switch", "one vCPU yields to another, per switch", 60_000, None, None, 2),
)
PROCESSOR: Final = {
    "cpu_register": ("add eax, edx; dec; jnz", 3),
    "cpu_load": ("mov eax, [edi]; dec; jnz", 3),
    "cpu_store": ("mov [edi], eax; dec; jnz", 3),
    "cpu_call": ("call; ret; dec; jnz", 4),
}
"""Loops, with their instructions."""
SHARING: Final = (WAKE_UP, IDLE, FAIRNESS)
GROUPS: Final = {
    "guestos": "tools.bench_guestos",
    "rings": "tools.bench_rings",
    "grub_menu": "tools.bench_grub",
}
"""First words that stand for a bench with a command line of its own, a module with ``main``."""
NAMES: Final = (*(operation.name for operation in OPERATIONS), *PROCESSOR, *SHARING, TRACING, START)


@dataclass(frozen=True, slots=True)
class Result:
    """What one operation cost: medians, and the least, over all rounds."""

    name: str
    about: str
    ns: float
    min_ns: float
    floor_ns: float
    ratio: float
    reach: float | None
    mark_ns: float | None


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one loop ran."""

    name: str
    about: str
    million_per_s: float


@dataclass(frozen=True, slots=True)
class StartResult:
    """How a process came to its guest's first line."""

    first_line_ms: float
    min_first_line_ms: float
    processor_ms: float
    resident_mb: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found."""

    host: str
    results: list[Result]
    speeds: list[Speed]
    wake_ups: list[WakeUps]
    idle: list[Idle]
    fairness: Fairness | None
    tracing: list[Traced]
    start: StartResult | None


def run(
    names: Sequence[str],
    rounds: int,
    round_ns: float = ROUND_NS,
    sharing_ns: int = SHARING_NS,
) -> Report:
    """Measure what is named, ``rounds`` times by turns, each next to a floor of its own."""
    operations = [operation for operation in OPERATIONS if operation.name in names]
    loops = [name for name in PROCESSOR if name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    floors: dict[str, list[float]] = {name: [] for name in names}
    with bench() as made:
        guests = {o.name: made.add(o.name, o.count(round_ns)) for o in operations}
        guests |= {name: made.add(name, max(1, int(round_ns))) for name in loops}
        made.floor.measure(FLOOR_COUNT)
        for guest in guests.values():
            guest.measure()  # untimed: translations and caches fill
        for _ in range(rounds):
            for name, guest in guests.items():
                floors[name].append(made.floor.measure(FLOOR_COUNT))
                times[name].append(guest.measure())
    return Report(
        host=host(),
        results=[_result(one, times[one.name], floors[one.name]) for one in operations],
        speeds=[
            Speed(name, PROCESSOR[name][0], PROCESSOR[name][1] * 1e3 / median(times[name]))
            for name in loops
        ],
        wake_ups=_wake_ups(2 * sharing_ns) if WAKE_UP in names else [],
        idle=[measure_idle(n, sharing_ns) for n in IDLE_DOMAINS] if IDLE in names else [],
        fairness=measure_fairness(5 * sharing_ns) if FAIRNESS in names else None,
        tracing=_tracing(rounds, round_ns) if TRACING in names else [],
        start=_start(rounds) if START in names else None,
    )


def _result(operation: Operation, times: list[float], floors: list[float]) -> Result:
    return Result(
        operation.name,
        operation.about,
        median(times) / operation.batch,
        min(times) / operation.batch,
        median(floors),
        median(t / f for t, f in zip(times, floors, strict=True)) / operation.batch,
        operation.reach,
        operation.mark_ns,
    )


def _wake_ups(for_ns: int) -> list[WakeUps]:
    free, busy = WAKE_UP_REACH_US
    return [measure_wake_ups(free, (), for_ns), measure_wake_ups(busy, ("spin",), for_ns)]


def _tracing(rounds: int, round_ns: float) -> list[Traced]:
    known = {operation.name: operation for operation in OPERATIONS}
    return measure_tracing(lambda name: known[name].count(round_ns), rounds)


def _start(rounds: int) -> StartResult:
    measure_start(START_CONFIG)  # untimed: compiles Python files, assembles the kernel
    starts = [measure_start(START_CONFIG) for _ in range(rounds)]
    first_lines = [start.seen_ms for start in starts]
    processor = median(start.processor_ms for start in starts)
    resident = max(start.resident_mb for start in starts)
    return StartResult(median(first_lines), min(first_lines), processor, resident)


def table(report: Report) -> str:
    """Lay the report out for reading; `*` stands where a bar is missed."""
    lines = [report.host, ""]
    if report.results:
        lines.append(
            f"{'operation':24} {'ns':>7} {'least':>7} {'floor':>6} {'ratio':>6}"
            f" {'reach':>7} {'mark ns':>8}   what"
        )
    for r in report.results:
        reach = "" if r.reach is None else f"{r.reach:g}{_missed(r.ratio, r.reach)}"
        mark = "" if r.mark_ns is None else f"{r.mark_ns:.0f}{_missed(r.ns, r.mark_ns)}"
        lines.append(
            f"{r.name:24} {r.ns:7.0f} {r.min_ns:7.0f} {r.floor_ns:6.0f} {r.ratio:6.1f}"
            f" {reach:>7} {mark:>8}   {r.about}"
        )
    if report.speeds:
        lines += ["", f"{'loop':24} {'M insn/s':>8}"]
        lines += [f"{s.name:24} {s.million_per_s:8.0f}   {s.about}" for s in report.speeds]
    lines += _sharing(report)
    if report.tracing:
        head = f"{'off ns':>7} {'on ns':>7} {'events':>6} {'ns each':>7} {'ratio':>6} {'reach':>7}"
        lines += ["", f"{'recorded':24} {head}"]
    for one in report.tracing:
        reach = f"{EVENT_REACH}{_missed(one.ratio, EVENT_REACH)}"
        lines.append(
            f"{one.name:24} {one.off_ns:7.0f} {one.on_ns:7.0f} {one.events:6.2f}"
            f" {one.event_ns:7.0f} {one.ratio:6.1f} {reach:>7}   {one.about}"
        )
    if report.start is not None:
        start = report.start
        late = _missed(start.first_line_ms, FIRST_LINE_REACH_MS)
        large = _missed(start.resident_mb, RESIDENT_REACH_MB)
        lines += [
            "",
            f"from process start to guestos's first line: {start.first_line_ms:.0f} ms, least"
            f" {start.min_first_line_ms:.0f} (reach {FIRST_LINE_REACH_MS}{late},"
            f" mark {FIRST_LINE_MARK_MS}); {start.processor_ms:.0f} ms on a processor",
            f"most memory resident with its 32 MB: {start.resident_mb:.0f} MB"
            f" (reach {RESIDENT_REACH_MB}{large}, mark {RESIDENT_MARK_MB})",
        ]
    return "\n".join(lines)


def _sharing(report: Report) -> list[str]:
    lines = []
    if report.wake_ups:
        lines += [
            "",
            f"{'from deadline to first instruction':36} {'p50 us':>7} {'p99':>7} {'most':>7}",
        ]
    for woken in report.wake_ups:
        reach = WAKE_UP_REACH_US[woken.about]
        lines.append(f"{_late(woken)}   reach {reach}{_missed(woken.p99_us, reach)}")
    if report.idle:
        lines += ["", f"{'idle domains of 4 MB':36} {'CPU %':>7} {'MB each':>7}"]
    for one in report.idle:
        lines.append(
            f"{one.domains:<36} {one.cpu_percent:7.2f} {one.resident_mb_each:7.1f}"
            f"   reach {IDLE_REACH_PERCENT} %{_missed(one.cpu_percent, IDLE_REACH_PERCENT)}"
            f" {IDLE_REACH_MB} MB{_missed(one.resident_mb_each, IDLE_REACH_MB)}"
        )
    if report.fairness is not None:
        fair = report.fairness
        lines += ["", f"{'spinning domain of weight':36} {'share %':>7} {'due':>7}"]
        for weight, share, wanted in zip(fair.weights, fair.shares, fair.wanted, strict=True):
            off = abs(share - wanted) * 100 / wanted
            due = f"reach {SHARE_REACH_PERCENT} % off{_missed(off, SHARE_REACH_PERCENT)}"
            lines.append(f"{weight:<36} {share:7.2f} {wanted:7.2f}   {due}")
        late = _missed(fair.sleeper.max_us, LATE_REACH_US)
        lines.append(f"{_late(fair.sleeper)}   reach {LATE_REACH_US}{late} us, at most")
    return lines


def _late(woken: WakeUps) -> str:
    return f"{woken.about:36} {woken.p50_us:7.0f} {woken.p99_us:7.0f} {woken.max_us:7.0f}"


def _missed(value: float, bar: float) -> str:
    return "*" if value > bar else " "


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in GROUPS:
        status: int = import_module(GROUPS[words[0]]).main(words[1:])
        return status
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Time operations of the hypervisor; * marks a bar that is missed.",
        epilog=f"names: {', '.join(NAMES)}; benches of their own: {', '.join(GROUPS)} --help",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to time (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=11, help="how often (default: %(default)s)")
    options = parser.parse_args(words)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such operation: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    report = run(options.names or NAMES, options.rounds)
    print(json.dumps(asdict(report), indent=2) if options.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
