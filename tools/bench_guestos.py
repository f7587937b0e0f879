# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/bench guestos: what a Unix-like kernel pays for system calls, processes and faults.

guestos runs its own program `bench` under three words of the kernel's command line: page-table
changes collected into lists (the default), a hypercall for each (`nobatch`), and a plain store for
each, which the hypervisor emulates (`assist`). The three run in one process by turns, each next to
a floor of its own; docs/benchmarks.md says how.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import thread_time_ns, time_ns
from types import FrameType
from typing import Final

from tools.bench_measure import Floor, host, measure_start
from xenlite import traps
from xenlite.cli.run import load
from xenlite.core import page_writes, paging
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock, ManualClock
from xenlite.toolstack.lifecycle import Guest

CONFIG: Final = Path(__file__).resolve().parent.parent / "guestos/dom.yaml"
PROMPT: Final = "guestos> "
MODES: Final = {"batched": "", "nobatch": "nobatch", "assist": "assist"}
"""How page-table changes are made, and the words for it on the kernel's command line."""
FLOOR_COUNT: Final = 10_000
BOOT_REACH_MS: Final = 300
SPEEDUP_REACH: Final = 3
SPEEDUP_OF: Final = ("fork", "fork_exit_wait")
_LIMIT_NS: Final = 60 * 10**9  # of a processor's time, for whatever the guest does
_BEGIN: Final = re.compile(r" times\r?\n")
_END: Final = re.compile(r"^  (\d+) ns each\r?\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. ``name`` is that of guestos's `bench`; ``count`` how many make a round.

    ``reach`` is a multiple of the floor, with batching.
    """

    name: str
    about: str
    count: int
    reach: float | None = None


OPERATIONS: Final = (
    Operation("getpid", "the shortest system call", 20_000, 6),
    Operation("fork", "the system call alone, of a process of 64 pages", 16),
    Operation("fork_exit_wait", "its child ends at once", 16, 1500),
    Operation("fork_exec_wait", "its child becomes bin/true", 16),
    Operation("demand_fault", "first touch of a page", 128),
    Operation("cow_fault", "first store to a page that fork shares", 128),
    Operation("pipe_round_trip", "a byte to another process and one back", 100),
    Operation("switch", "one process gives way to another", 200),
)
NAMES: Final = tuple(operation.name for operation in OPERATIONS)
COUNTED: Final = tuple(name for name in NAMES if name != "fork")
"""Those whose calls can be counted from outside: of a fork alone only the guest sees the end."""


@dataclass(frozen=True, slots=True)
class Calls:
    """What one operation asks of the hypervisor, on average."""

    hypercalls: float  # those inside a multicall are one
    stores: float  # to page tables, emulated
    changes: float  # of entries of L1 tables, by either


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation costs in one mode: medians over all rounds, and the least."""

    ns: float
    min_ns: float
    ratio: float
    calls: Calls | None


@dataclass(frozen=True, slots=True)
class Result:
    """One operation in the three modes."""

    name: str
    about: str
    reach: float | None
    costs: dict[str, Cost]


@dataclass(frozen=True, slots=True)
class Boot:
    """From the start of a process to the shell's prompt, in one mode."""

    mode: str
    prompt_ms: float
    min_prompt_ms: float
    processor_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found."""

    host: str
    floor_ns: float
    results: list[Result]
    speedups: dict[str, float]  # of batching against nobatch
    boots: list[Boot]


class ProcessorClock:
    """Time that this thread, which guests run on, had a processor. Waiting takes none of it.

    So what others do on a busy host is not in what a guest measures by its own clock.
    """

    def __init__(self) -> None:
        self._waited_ns = 0

    def monotonic_ns(self) -> int:
        return thread_time_ns() + self._waited_ns

    def wall_ns(self) -> int:
        return time_ns()

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        """Be there at once; without a moment to wait for, sleep until another thread wakes us."""
        if until_ns is None:
            wake.wait()
        elif not wake.is_set():
            self._waited_ns += max(0, until_ns - self.monotonic_ns())


class TimedSystem:
    """A guestos in one mode, at its prompt; it runs only in ``measure``."""

    def __init__(self, hypervisor: Hypervisor, mode: str) -> None:
        self._hypervisor = hypervisor
        self._control = hypervisor.control()
        self._output = ""
        self._heard: Callable[[str], None] = _ignore
        self._guest = Guest(load(CONFIG, [f"name={mode}", f"cmdline={MODES[mode]}"]))
        link = hypervisor.link(0)
        store = XenStore(link, lambda _domid, error: _broken(error))
        self.domid = self._guest.start(
            self._control, link, store, sink=self._hear, broken=_broken
        ).domid
        self._run_to_prompt()

    def measure(
        self, operation: str, count: int, heard: Callable[[str], None] | None = None
    ) -> int:
        """Have the guest do something so often; return what it says one took, in ns.

        ``heard`` gets all that it has said in this call so far, each time that it says more.
        """
        self._heard = heard or _ignore
        self._output = ""
        assert self._guest.console is not None
        self._control.unpause(self.domid)
        self._guest.console.feed(f"bench {operation} {count}\r".encode())
        self._run_to_prompt()
        found = _END.findall(self._output)
        if len(found) != 1:
            raise RuntimeError(f"bench {operation} {count}: the guest says {self._output!r}")
        return int(found[0])

    def close(self) -> None:
        """Destroy the domain."""
        self._guest.stop()

    def _run_to_prompt(self) -> None:
        domain = self._hypervisor.domains[self.domid]
        deadline_ns = self._hypervisor.machine.clock.monotonic_ns() + _LIMIT_NS
        self._hypervisor.run(
            lambda: self._is_at_prompt() or domain.shutdown_reason is not None, deadline_ns
        )
        self._control.pause(self.domid)
        if not self._is_at_prompt():
            raise RuntimeError(f"guestos does not come to its prompt: {self._output!r}")

    def _is_at_prompt(self) -> bool:
        """Tell whether the shell waits: the prompt stands behind the last line."""
        return self._output.rpartition("\n")[2].lstrip("\r") == PROMPT

    def _hear(self, _domid: int, data: bytes) -> None:
        self._output += data.decode("ascii", "replace")
        self._heard(self._output)


def _ignore(_text: str) -> None:
    pass


def _broken(error: PeerError) -> None:
    raise error


class CallCounter:
    """Counts calls of the hypervisor's own functions while the guest is between its two lines."""

    def __init__(self) -> None:
        self._functions = {
            (traps.__file__, "hypercall"): "hypercalls",
            (page_writes.__file__, "finish"): "stores",
            (paging.__file__, "set_l1"): "changes",
        }
        self._counts: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def heard(self, text: str) -> None:
        """Begin with the guest's first line, and keep what was counted at its second."""
        if _END.search(text):
            sys.setprofile(None)
            self.counts = self.counts or self._counts.copy()
        elif _BEGIN.search(text) and sys.getprofile() is None:
            sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            code = frame.f_code
            name = self._functions.get((code.co_filename, code.co_name))
            if name is not None:
                self._counts[name] += 1


def count_calls(system: TimedSystem, operation: str, count: int) -> Calls:
    """Count what one operation asks of the hypervisor, in runs that are not timed.

    The difference of ``count`` and twice as many: what the lines themselves take falls out. The
    first run leaves things as the next ones find them.
    """
    system.measure(operation, count)
    counters = (CallCounter(), CallCounter())
    for repeat, counter in zip((count, 2 * count), counters, strict=True):
        try:
            system.measure(operation, repeat, counter.heard)
        finally:
            sys.setprofile(None)
    once, twice = (counter.counts for counter in counters)
    each = {
        name: (twice[name] - once[name]) / count for name in ("hypercalls", "stores", "changes")
    }
    return Calls(**each)


def run(rounds: int, names: Sequence[str] = NAMES) -> Report:
    """Measure what is named ``rounds`` times, all operations and modes by turns."""
    operations = [operation for operation in OPERATIONS if operation.name in names]
    keys = [(operation.name, mode) for operation in operations for mode in MODES]
    times: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    floors: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    calls: dict[tuple[str, str], Calls] = {}
    with _systems(ManualClock()) as systems:  # it stands still while they run: no ticks to count
        for operation in operations:
            if operation.name in COUNTED:
                for mode, system in systems.items():
                    key = operation.name, mode
                    calls[key] = count_calls(system, operation.name, operation.count)
    with _systems(ProcessorClock()) as systems, closing(Floor()) as floor:
        for operation in operations:
            for system in systems.values():
                system.measure(operation.name, operation.count)  # untimed: caches fill
        for _ in range(rounds):
            for operation in operations:
                for mode, system in systems.items():
                    floors[operation.name, mode].append(floor.measure(FLOOR_COUNT))
                    ns = system.measure(operation.name, operation.count)
                    times[operation.name, mode].append(ns)
    results = [
        Result(
            operation.name,
            operation.about,
            operation.reach,
            {
                mode: cost_of(times[key], floors[key], calls.get(key))
                for mode in MODES
                for key in [(operation.name, mode)]
            },
        )
        for operation in operations
    ]
    return Report(
        host=host(),
        floor_ns=median(ns for some in floors.values() for ns in some),
        results=results,
        speedups={
            name: speedup(times[name, "batched"], times[name, "nobatch"])
            for name in SPEEDUP_OF
            if name in names
        },
        boots=[_boot(mode, rounds) for mode in MODES],
    )


@contextmanager
def _systems(clock: Clock) -> Iterator[dict[str, TimedSystem]]:
    """Make a machine with a guestos per mode, all at their prompts; take it apart at the end."""
    hypervisor = Hypervisor(clock=clock)
    systems: dict[str, TimedSystem] = {}
    try:
        for mode in MODES:
            systems[mode] = TimedSystem(hypervisor, mode)
        yield systems
    finally:
        for system in systems.values():
            system.close()
        hypervisor.close()


def cost_of(times: list[float], floors: list[float], calls: Calls | None) -> Cost:
    """Take the medians of all rounds; each time has its own floor."""
    ratio = median(t / f for t, f in zip(times, floors, strict=True))
    return Cost(median(times), min(times), ratio, calls)


def speedup(fast: list[float], slow: list[float]) -> float:
    """Return how many times faster the first is: the median of the rounds' ratios."""
    return median(s / f for f, s in zip(fast, slow, strict=True))


def _boot(mode: str, rounds: int) -> Boot:
    words = [f"cmdline={MODES[mode]}"]
    measure_start(CONFIG, words, until=PROMPT.encode())  # untimed: compiles, assembles, packs
    starts = [measure_start(CONFIG, words, until=PROMPT.encode()) for _ in range(rounds)]
    seen = [start.seen_ms for start in starts]
    return Boot(mode, median(seen), min(seen), median(start.processor_ms for start in starts))


# -- for reading -----------------------------------------------------------------------------------


def table(report: Report) -> str:
    """Lay the report out for reading; `*` stands where a bar is missed."""
    lines = [
        f"{report.host}; floor {report.floor_ns:.0f} ns",
        "",
        "us each; times the floor; hypercalls + emulated stores (changes of L1 entries)",
        f"{'operation':16}" + "".join(f" {mode:^30}" for mode in MODES) + "   reach",
    ]
    for result in report.results:
        cells = "".join(f" {_cell(result.costs[mode])}" for mode in MODES)
        reach = ""
        if result.reach is not None:
            reach = f"{result.reach:g}{_missed(result.costs['batched'].ratio, result.reach)}"
        lines.append(f"{result.name:16}{cells}   {reach:7} {result.about}".rstrip())
    for name, times in report.speedups.items():
        short = "*" if times < SPEEDUP_REACH else ""
        lines += ["", f"{name}: batched {times:.1f} times faster (reach {SPEEDUP_REACH}{short})"]
    lines.append("")
    for boot in report.boots:
        late = _missed(boot.prompt_ms, BOOT_REACH_MS) if boot.mode == "batched" else ""
        lines.append(
            f"from process start to the prompt, {boot.mode}: {boot.prompt_ms:.0f} ms, least"
            f" {boot.min_prompt_ms:.0f}; {boot.processor_ms:.0f} ms on a processor"
            f" (reach {BOOT_REACH_MS}{late})"
        )
    return "\n".join(lines)


def _cell(cost: Cost) -> str:
    calls = ""
    if cost.calls is not None:
        each = cost.calls
        calls = f"{each.hypercalls:.3g}+{each.stores:.3g} ({each.changes:.3g})"
    return f"{cost.ns / 1000:7.1f} {cost.ratio:6.0f}x {calls:14}"


def _missed(value: float, bar: float) -> str:
    return "*" if value > bar else ""


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench guestos",
        description="Time guestos with its page-table changes made in three ways;"
        " * marks a bar that is missed.",
        epilog=f"names: {', '.join(NAMES)}",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to time (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=11, help="how often (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, too (PNG)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no such operation: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: tools/setup bench")
    report = run(options.rounds, options.names or NAMES)
    print(json.dumps(asdict(report), indent=2) if options.json else table(report))
    if options.plot is not None:
        from tools.bench_guestos_plot import draw

        draw(report, options.plot)
    return 0
