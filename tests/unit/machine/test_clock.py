# SPDX-License-Identifier: GPL-2.0-or-later
"""Clocks: the host's, and one that moves when told to."""

from __future__ import annotations

import time

import pytest

from xenlite.machine.clock import HostClock, ManualClock


def test_the_hosts_clock_starts_near_zero_and_never_goes_back() -> None:
    clock = HostClock()
    readings = [clock.monotonic_ns() for _ in range(1000)]
    assert readings == sorted(readings)
    assert 0 <= readings[0] < 10**9


def test_the_hosts_clock_tells_the_time_of_day() -> None:
    before = time.time_ns()
    assert before <= HostClock().wall_ns() <= time.time_ns()


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(wall_start_ns=5_000)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (0, 5_000)
    clock.advance(70)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (70, 5_070)


def test_a_manual_clock_does_not_go_back() -> None:
    clock = ManualClock()
    with pytest.raises(AssertionError):
        clock.advance(-1)
