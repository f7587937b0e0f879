# SPDX-License-Identifier: GPL-2.0-or-later
"""Time what it costs to record an event: the same operations with a recorder and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from tools.bench_measure import TimedGuest, bench

FLOOR_COUNT: Final = 10_000
TRACED: Final = {
    "null_hypercall": "a hypercall",
    "update_va_mapping": "the same, its arguments looked at",
    "mmu_update": "a list of one entry, copied",
    "event_self": "a structure copied, and an event",
    "page_table_write": "a fault and a single step",
}
"""Operations that Python serves either way, so that nothing but recording differs."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One operation: ns without and with a recorder, how many events it made, what one cost.

    ``ratio`` is that cost as a multiple of the floor.
    """

    name: str
    about: str
    off_ns: float
    on_ns: float
    events: float
    event_ns: float
    ratio: float


def measure_tracing(count: Callable[[str], int], rounds: int) -> list[Traced]:
    """Measure each operation by turns; ``count(name)`` says how often it is done in a round."""
    with bench() as plain, bench(records=True) as recorded:
        counts = {name: count(name) for name in TRACED}
        off = {name: plain.add(name, n) for name, n in counts.items()}
        on = {name: recorded.add(name, n) for name, n in counts.items()}
        guests = [*off.values(), *on.values()]
        times: dict[TimedGuest, list[float]] = {guest: [] for guest in guests}
        events: dict[str, float] = {}
        floors: dict[str, list[float]] = {name: [] for name in TRACED}
        for guest in guests:
            guest.measure()  # untimed: translations and caches fill
        recorded.take_events()
        for _ in range(rounds):
            for name in TRACED:
                floors[name].append(plain.floor.measure(FLOOR_COUNT))
                times[off[name]].append(off[name].measure())
                times[on[name]].append(on[name].measure())
                made, lost = recorded.take_events()
                assert not lost, f"{name}: {lost} events found no room"
                events[name] = made / (3 * counts[name])
    results = []
    for name, about in TRACED.items():
        without, with_one = median(times[off[name]]), median(times[on[name]])
        added = median(b - a for a, b in zip(times[off[name]], times[on[name]], strict=True))
        event_ns = added / round(events[name])
        ratio = event_ns / median(floors[name])
        results.append(Traced(name, about, without, with_one, events[name], event_ns, ratio))
    return results
