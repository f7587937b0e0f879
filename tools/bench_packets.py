# SPDX-License-Identifier: GPL-2.0-or-later
"""Time network frames of guests through a bridge, and show them against a plain copy.

*Streams*: one guest sends to another, which sends back one frame of 64; several such pairs at once.
*Through the host*: the bridge's service host sends back what a guest sends to its echo port.
*Ping*: one frame at a time, there and back. *Floor*: Python copies the same bytes from page to
page, and moves as many slots through rings that nobody serves, in the same run. The order of frames
is always checked; every configuration runs once more with their contents checked.
``tools/bench packets``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import Final

from tools.bench_packets_run import LARGE, SMALL, STEP, Case, Run, Way

PAIRS: Final = (1, 2, 4, 8)
CHECKED: Final = 10 * STEP

REACH_PER_S: Final = {SMALL: 75_000, LARGE: 60_000}
REACH_PER_EVENT: Final = 8
REACH_PING_US: Final = 60
REACH_SHARE: Final = 0.9  # two busy pairs within 10 % of half


CASES: Final = (
    *(Case(Way.STREAM, size, pairs) for size in (SMALL, LARGE) for pairs in PAIRS),
    *(Case(way, size) for way in (Way.HOST, Way.PING, Way.HOST_PING) for size in (SMALL, LARGE)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a case reached: medians over the rounds. A frame that comes back counts once.

    ``processor_us`` is what a packet costs of the thread that does it all, guests included: on a
    busy host, that is what to compare. ``of_share`` is what the slowest of several pairs had got
    when the first was done, as a part of what all of them would have got alike.
    """

    about: str
    packets_per_s: float
    mb_per_s: float
    floor_per_s: float
    of_floor: float
    processor_us: float
    round_trip_us: float | None
    packets_per_event: float
    packets_per_notification: float
    of_share: float
    missed: tuple[str, ...]


def check(case: Case, count: int) -> None:
    """Run a case with every word of every frame looked at; AssertionError where one differs."""
    with ExitStack() as undo:
        Run(case, count, undo, check=True).time_ns()


def measure(case: Case, rounds: int, scale: float) -> Result:
    """Time a case."""
    base = 3_000 if case.window == 1 else 30_000 // case.pairs
    count = max(1, int(base * scale) // STEP) * STEP
    times, processor, floors, shares = [], [], [], []
    events = notifications = 0
    for _ in range(rounds):
        with ExitStack() as undo:
            made = Run(case, count, undo, check=False)
            floors.append(made.floor_ns() / made.packets)
            begun = thread_time_ns()
            times.append(made.time_ns() / made.packets)
            processor.append((thread_time_ns() - begun) / made.packets)
            shares.append(made.of_share)
            events += sum(one.events for one in made.counters)
            notifications += sum(one.notifications for one in made.counters)
    packets = rounds * count * case.pairs
    spent, floor = median(times), median(floors)
    result = Result(
        case.about,
        1e9 / spent,
        case.size * 1e3 / spent,
        1e9 / floor,
        floor / spent,
        median(processor) / 1e3,
        spent / 1e3 if case.window == 1 else None,
        packets / max(events, 1),
        packets / max(notifications, 1),
        median(shares),
        (),
    )
    return replace(result, missed=tuple(_missed(case, result)))


def _missed(case: Case, result: Result) -> Iterator[str]:
    """Name the bars that a result does not reach."""
    if case.way is Way.STREAM and case.pairs == 1 and result.packets_per_s < REACH_PER_S[case.size]:
        yield "packets"
    if case.way is Way.STREAM:
        if min(result.packets_per_event, result.packets_per_notification) < REACH_PER_EVENT:
            yield "events"
        if result.of_share < REACH_SHARE:
            yield "share"
    if case.way is Way.PING and (result.round_trip_us or 0) > REACH_PING_US:
        yield "ping"


def table(results: Sequence[Result]) -> str:
    """Lay the results out; * marks a bar that is missed, and the last column says which."""
    lines = [
        f"{'packets':40} {'per s':>8} {'MB/s':>7} {'floor':>9} {'of it':>6} {'CPU us':>7}"
        f" {'trip us':>8}"
        f" {'per event':>10} {'per answer':>10} {'share':>6}"
    ]
    for one in results:
        trip = "" if one.round_trip_us is None else f"{one.round_trip_us:.1f}"
        lines.append(
            f"{one.about:40} {one.packets_per_s:8.0f} {one.mb_per_s:7.0f} {one.floor_per_s:9.0f}"
            f" {one.of_floor:6.2f} {one.processor_us:7.1f} {trip:>8} {one.packets_per_event:10.1f}"
            f" {one.packets_per_notification:10.1f} {one.of_share:6.2f}"
            f" {'* ' + ', '.join(one.missed) if one.missed else ''}".rstrip()
        )
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw packets a second against the floor."""
    pyplot = import_module("matplotlib.pyplot")  # an extra of ours, and without types
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(results) + 1.5))
    rows = range(len(results))
    axes.barh(rows, [one.floor_per_s for one in results], color="#dddddd", label="floor")
    axes.barh(rows, [one.packets_per_s for one in results], color="#336699", label="packets")
    axes.set_yticks(rows, [one.about for one in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("packets per second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench packets", description="Time network frames of guests."
    )
    parser.add_argument(
        "words", nargs="*", help="words that a case must have, e.g. 'guest to guest' '64 bytes'"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1, help="of the number of packets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="draw it too (needs matplotlib)")
    options = parser.parse_args(arguments)
    chosen = [case for case in CASES if all(word in case.about for word in options.words)]
    results = []
    for case in chosen:
        check(case, CHECKED)
        results.append(measure(case, options.rounds, options.scale))
    if options.plot is not None:
        plot(results, options.plot)
    if options.json:
        print(json.dumps([asdict(one) for one in results], indent=2))
    else:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
