# SPDX-License-Identifier: GPL-2.0-or-later
"""Time network frames of guests through a bridge: one part of ``tools/bench rings``.

*Streams*: one guest sends to another, which sends back one frame of 64; several such pairs at once.
*Through the host*: the bridge's service host sends back what a guest sends to its echo port.
*Ping*: one frame at a time, there and back. *Floor*: Python copies the same bytes from page to
page, and moves as many slots through rings that nobody serves, in the same run. The order of frames
is always checked; every configuration runs once more with their contents checked.
Times are the least of several rounds, of the floor too; the wall's, or what all threads have had of
a processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from statistics import median
from typing import Final

from tools.bench_packets_run import LARGE, SMALL, STEP, Case, ClockNs, Run, Way

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
    """What a case reached. A frame that comes back counts once.

    ``of_share`` is what the slowest of several pairs had got when the first was done, as a part of
    what all would have got alike: the median of the rounds.
    """

    case: Case
    about: str
    packets_per_s: float
    mb_per_s: float
    floor_per_s: float
    of_floor: float
    round_trip_us: float | None
    packets_per_event: float
    packets_per_notification: float
    of_share: float
    missed: tuple[str, ...]


def run(words: Sequence[str], rounds: int, scale: float, clock_ns: ClockNs) -> list[Result]:
    """Check and time the cases that have all these words."""
    results = []
    for case in CASES:
        if all(word in case.about for word in words):
            check(case, CHECKED)
            results.append(measure(case, rounds, scale, clock_ns))
    return results


def check(case: Case, count: int) -> None:
    """Run a case with every word of every frame looked at; AssertionError where one differs."""
    with ExitStack() as undo:
        Run(case, count, undo, check=True).time_ns()


def measure(case: Case, rounds: int, scale: float, clock_ns: ClockNs) -> Result:
    """Time a case."""
    base = 3_000 if case.window == 1 else 30_000 // case.pairs
    count = max(1, int(base * scale) // STEP) * STEP
    times, floors, shares = [], [], []
    events = notifications = 0
    for _ in range(rounds):
        with ExitStack() as undo:
            made = Run(case, count, undo, check=False)
            floors.append(made.floor_ns(clock_ns) / made.packets)
            times.append(made.time_ns(clock_ns) / made.packets)
            shares.append(made.of_share)
            events += sum(one.events for one in made.counters)
            notifications += sum(one.notifications for one in made.counters)
    packets = rounds * count * case.pairs
    spent, floor = min(times), min(floors)
    result = Result(
        case,
        case.about,
        1e9 / spent,
        case.size * 1e3 / spent,
        1e9 / floor,
        floor / spent,
        spent / 1e3 if case.window == 1 else None,
        packets / max(events, 1),
        packets / max(notifications, 1),
        median(shares),
        (),
    )
    return replace(result, missed=tuple(_missed(case, result)))


def reach_per_s(case: Case) -> float | None:
    """Return how many packets a second a case shall come to."""
    is_plain_stream = case.way is Way.STREAM and case.pairs == 1
    return REACH_PER_S[case.size] if is_plain_stream else None


def reach_us(case: Case) -> float | None:
    """Return how long a round trip of a case may take."""
    return REACH_PING_US if case.way is Way.PING else None


def _missed(case: Case, result: Result) -> Iterator[str]:
    """Name the bars that a result does not reach."""
    if result.packets_per_s < (reach_per_s(case) or 0):
        yield "packets"
    if (result.round_trip_us or 0) > (reach_us(case) or inf):
        yield "round trip"
    fewest = min(result.packets_per_event, result.packets_per_notification)
    if case.way is Way.STREAM and fewest < REACH_PER_EVENT:
        yield "events"
    if case.pairs == 2 and result.of_share < REACH_SHARE:
        yield "share"


def table(results: Sequence[Result]) -> str:
    """Lay the results out; * marks a bar that is missed, and the last column says which."""
    lines = [
        f"{'packets':40} {'per s':>8} {'MB/s':>7} {'floor':>9} {'of it':>6}"
        f" {'trip us':>8} {'per event':>10} {'per answer':>10} {'share':>6}"
    ]
    for one in results:
        trip = "" if one.round_trip_us is None else f"{one.round_trip_us:.1f}"
        lines.append(
            f"{one.about:40} {one.packets_per_s:8.0f} {one.mb_per_s:7.0f} {one.floor_per_s:9.0f}"
            f" {one.of_floor:6.2f} {trip:>8} {one.packets_per_event:10.1f}"
            f" {one.packets_per_notification:10.1f} {one.of_share:6.2f}"
            f" {'* ' + ', '.join(one.missed) if one.missed else ''}".rstrip()
        )
    return "\n".join(lines)
