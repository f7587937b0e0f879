# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that ends slices which last too long, and nothing else."""

from __future__ import annotations

import threading

from xenlite.machine.clock import HostClock
from xenlite.machine.slice_timer import SliceTimer


class Engine:
    """Remember that it was kicked."""

    def __init__(self) -> None:
        self.kicked = threading.Event()

    def kick(self) -> None:
        self.kicked.set()


def test_a_slice_that_lasts_too_long_is_ended_also_after_a_rest() -> None:
    clock = HostClock()
    timer = SliceTimer(clock, 1_000_000)
    for _ in range(3):
        engine = Engine()
        timer.begin(engine, clock.monotonic_ns())
        assert engine.kicked.wait(30.0)
        timer.end()
    timer.close()


def test_the_thread_goes_at_work_or_at_rest() -> None:
    before = threading.active_count()
    for works in (False, True):
        clock = HostClock()
        timer = SliceTimer(clock, 1_000_000)
        if works:
            timer.begin(Engine(), clock.monotonic_ns())
        timer.close()
    assert threading.active_count() == before
