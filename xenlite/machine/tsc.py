# SPDX-License-Identifier: GPL-2.0-or-later
"""Relate the time stamp counter that guests read to the machine's clock.

A guest computes its system time itself::

    system_time + ((((tsc - tsc_timestamp) << shift) * mul) >> 32)

(public/xen.h, vcpu_time_info). The engine's RDTSC shows the host's counter, 14 ns a read. Its rate
is measured against the clock, ever better as the distance grows, and then again and again, because
the host's clock is itself steered. What ``sample`` hands out lies on or above the line of the
sample before, so a guest's time never goes back; where it runs ahead, the next line is less steep.

Where the host's counter can't be read, or the clock is not the host's, RDTSC is a trap that shows
the clock itself, one tick a nanosecond: ``CountedTime``.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from xenlite.machine.clock import HostClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.machine.clock import Clock

_FIRST_BASELINE_NS: Final = 1_000_000
_BEST_BASELINE_NS: Final = 4_000_000_000
_GOOD_NS: Final = 1_000_000
_CATCH_UP: Final = 1000  # a guest's clock that is ahead runs slower by one part in so many
_READ_TSC: Final = bytes.fromhex(
    "0f31"  # rdtsc
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)


class TimeSample(NamedTuple):
    """One moment by both counts, and how ticks become nanoseconds from there."""

    tsc: int
    system_ns: int
    mul: int
    shift: int


class TimeSource(Protocol):
    """Where a guest's time comes from."""

    rdtsc: Callable[[], int] | None
    """What RDTSC shall answer; None leaves it to the host's counter."""

    def sample(self) -> TimeSample:
        """Take the time by both counts."""
        ...

    def line(self, now_ns: int) -> TimeSample:
        """Return a sample that leads to the present time: all vCPUs that run now have the same."""
        ...


class CountedTime:
    """The clock itself is the counter; RDTSC is a trap."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.rdtsc: Callable[[], int] | None = clock.monotonic_ns

    def sample(self) -> TimeSample:
        """Take the time; both counts agree."""
        now_ns = self._clock.monotonic_ns()
        return TimeSample(now_ns, now_ns, 1 << 31, 1)

    def line(self, now_ns: int) -> TimeSample:
        """Take the time; there is no cheaper way."""
        del now_ns
        return self.sample()


class HostTime:
    """The host's counter, related to the host's clock."""

    def __init__(self, clock: Clock, read_tsc: Callable[[], int]) -> None:
        self._clock = clock
        self._read_tsc = read_tsc
        self.rdtsc: Callable[[], int] | None = None
        self._origin_tsc, self._origin_ns = self._pair()
        while self._clock.monotonic_ns() - self._origin_ns < _FIRST_BASELINE_NS:
            pass
        self._baseline_ns = 0
        tsc, now_ns = self._pair()
        self._measure(tsc, now_ns)
        self._last = TimeSample(tsc, now_ns, self._mul, self._shift)

    def sample(self) -> TimeSample:
        """Take the time by both counts, never before what the last sample leads to."""
        tsc, now_ns = self._pair()
        last = self._last
        led_to_ns = last.system_ns + _scaled(tsc - last.tsc, last.mul, last.shift)
        if now_ns - self._origin_ns >= min(2 * self._baseline_ns, _BEST_BASELINE_NS):
            self._measure(*self._pair())
        mul = self._mul - self._mul // _CATCH_UP if led_to_ns > now_ns else self._mul
        self._last = TimeSample(tsc, max(now_ns, led_to_ns), mul, self._shift)
        return self._last

    def line(self, now_ns: int) -> TimeSample:
        """Return the last sample while it is young: what it leads to is the time."""
        last = self._last
        return last if now_ns - last.system_ns < _GOOD_NS else self.sample()

    def _pair(self) -> tuple[int, int]:
        """Read both counters at one moment, as nearly as three tries get it."""
        best: tuple[int, int, int] | None = None
        for _ in range(3):
            before = self._read_tsc()
            now_ns = self._clock.monotonic_ns()
            after = self._read_tsc()
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, now_ns)
        assert best is not None
        return best[1], best[2]

    def _measure(self, tsc: int, now_ns: int) -> None:
        self._baseline_ns = now_ns - self._origin_ns
        ticks = tsc - self._origin_tsc
        self._mul, self._shift = _scale(self._baseline_ns, ticks)
        if self._baseline_ns >= _BEST_BASELINE_NS:
            self._origin_tsc, self._origin_ns = tsc, now_ns


def time_source(clock: Clock) -> TimeSource:
    """Choose how guests of a machine with this clock tell the time."""
    read_tsc = _native_read_tsc()
    if isinstance(clock, HostClock) and read_tsc is not None:
        return HostTime(clock, read_tsc)
    return CountedTime(clock)


def _scale(elapsed_ns: int, ticks: int) -> tuple[int, int]:
    """Return (mul, shift) so that ``(ticks << shift) * mul >> 32`` is nearly ``elapsed_ns``."""
    assert elapsed_ns > 0, elapsed_ns
    assert ticks > 0, ticks
    shift = 0
    mul = (elapsed_ns << 32) // ticks
    while mul >= 1 << 32:
        mul >>= 1
        shift += 1
    while mul < 1 << 31:
        shift -= 1
        mul = ((elapsed_ns << 32) << -shift) // ticks
    return mul, shift


def _scaled(ticks: int, mul: int, shift: int) -> int:
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return ticks * mul >> 32


def _native_read_tsc() -> Callable[[], int] | None:
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page[: len(_READ_TSC)] = _READ_TSC
    _pages.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function: Callable[[], int] = ctypes.PYFUNCTYPE(ctypes.c_uint64)(address)
    return function


_pages: Final[list[mmap.mmap]] = []
