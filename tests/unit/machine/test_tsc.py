# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests' system time: it agrees with the clock and never goes back."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from xenlite.machine.clock import HostClock, ManualClock
from xenlite.machine.tsc import CountedTime, HostTime, TimeSample, time_source

GIGA = 10**9


def system_time(sample: TimeSample, tsc: int) -> int:
    """Compute what a guest does (public/xen.h, vcpu_time_info)."""
    ticks = tsc - sample.tsc
    ticks = ticks << sample.shift if sample.shift >= 0 else ticks >> -sample.shift
    return sample.system_ns + (ticks * sample.mul >> 32)


class Oscillator:
    """A counter of a known rate beside a clock that is moved by hand; it reads what it is."""

    def __init__(self, hertz: int) -> None:
        self.clock = ManualClock()
        self.hertz = hertz

    def monotonic_ns(self) -> int:
        self.clock.advance(1000)  # reading takes time
        return self.clock.monotonic_ns()

    def wall_ns(self) -> int:
        return self.clock.wall_ns()

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        self.clock.wait(wake, until_ns)

    def tsc(self) -> int:
        return self.clock.monotonic_ns() * self.hertz // GIGA


@given(st.integers(100_000_000, 6_000_000_000), st.lists(st.integers(1, 10**9), max_size=20))
def test_a_guests_time_follows_the_clock_and_never_goes_back(hertz: int, steps: list[int]) -> None:
    host = Oscillator(hertz)
    source = HostTime(host, host.tsc)
    sample = source.sample()
    for step in steps:
        host.clock.advance(step)
        before = system_time(sample, host.tsc())
        sample = source.sample()
        after = system_time(sample, host.tsc())
        assert after >= before
        assert abs(after - host.clock.monotonic_ns()) < 10_000 + step // 1000


def test_counted_time_is_the_clock_itself() -> None:
    clock = ManualClock()
    source = CountedTime(clock)
    assert source.rdtsc is not None
    clock.advance(12345)
    sample = source.sample()
    clock.advance(1000)
    assert system_time(sample, source.rdtsc()) == 13345


def test_the_host_s_own_counter_agrees_with_its_clock() -> None:
    clock = HostClock()
    source = time_source(clock)
    before = clock.monotonic_ns()
    sample = source.sample()
    assert before - 1000 <= sample.system_ns


def test_a_clock_moved_by_hand_is_never_measured_against_the_host() -> None:
    assert isinstance(time_source(ManualClock()), CountedTime)


class SteeredOscillator(Oscillator):
    """One whose clock is made to go slower or faster than it did while it was measured."""

    def __init__(self, hertz: int) -> None:
        super().__init__(hertz)
        self.ticks = 0

    def tsc(self) -> int:
        return self.ticks

    def pass_by(self, real_ns: int, parts_per_million: int) -> None:
        self.ticks += real_ns * self.hertz // GIGA
        self.clock.advance(real_ns + real_ns * parts_per_million // 1_000_000)

    def monotonic_ns(self) -> int:
        self.pass_by(1000, 0)
        return self.clock.monotonic_ns()


def test_a_guests_time_stays_near_a_clock_that_is_steered() -> None:
    host = SteeredOscillator(2_400_000_000)
    source = HostTime(host, host.tsc)
    sample = source.sample()
    for parts_per_million in (0, -500, 500, -500, 0):
        for _ in range(3000):
            host.pass_by(2_000_000, parts_per_million)
            before = system_time(sample, host.tsc())
            sample = source.sample()
            assert sample.system_ns >= before
            assert abs(sample.system_ns - host.clock.monotonic_ns()) < 10_000
