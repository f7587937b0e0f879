# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell the time: nanoseconds since some start, and since 1970."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from typing import Final, Protocol

_NS_PER_S: Final = 10**9
_EARLY_NS: Final = 100_000
"""The host wakes a thread so late, and more where it may put its timers together."""
_PR_SET_TIMERSLACK: Final = 29  # linux/prctl.h
_LEAST_SLACK_NS: Final = 1


class Clock(Protocol):
    """The one source of time of a machine."""

    def monotonic_ns(self) -> int:
        """Read the time since a fixed moment; it never goes back."""
        ...

    def wall_ns(self) -> int:
        """Read the time since 1970-01-01 00:00 UTC; it may be set."""
        ...

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        """Let time pass until ``wake`` is set, or until ``until_ns`` on the monotonic clock."""
        ...


class HostClock:
    """The host's own clocks, counted from this object's making."""

    __slots__ = ("_start_ns",)

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        if sys.platform == "linux":  # 50 us of slack otherwise, of the thread that calls this
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _LEAST_SLACK_NS, 0, 0, 0)

    def monotonic_ns(self) -> int:
        """Read the time since this clock was made."""
        return time.monotonic_ns() - self._start_ns

    def wall_ns(self) -> int:
        """Read the host's time of day."""
        return time.time_ns()

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        """Sleep; far too long a time is cut short, and the caller looks again.

        The sleep ends early, and the last stretch is spent looking at the clock: 0.1 ms of a
        processor for each deadline, to be there 0.1 ms sooner.
        """
        if until_ns is None:
            wake.wait()
            return
        left_ns = until_ns - self.monotonic_ns() - _EARLY_NS
        if left_ns > 0 and wake.wait(min(left_ns / _NS_PER_S, threading.TIMEOUT_MAX)):
            return
        while self.monotonic_ns() < until_ns and not wake.is_set():
            pass


class ManualClock:
    """A clock that moves when told to, for tests and deterministic runs.

    Who waits on it for a moment is there at once.
    """

    __slots__ = ("_now_ns", "_wall_start_ns")

    def __init__(self, wall_start_ns: int = 0) -> None:
        self._now_ns = 0
        self._wall_start_ns = wall_start_ns

    def monotonic_ns(self) -> int:
        """Read the time by which the clock was advanced."""
        return self._now_ns

    def wall_ns(self) -> int:
        """Read the time of day at the start plus that."""
        return self._wall_start_ns + self._now_ns

    def advance(self, by_ns: int) -> None:
        """Move on; time never goes back."""
        assert by_ns >= 0, by_ns
        self._now_ns += by_ns

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        """Be at ``until_ns``; without one, sleep until another thread wakes us."""
        if until_ns is None:
            wake.wait()
        elif not wake.is_set():
            self._now_ns = max(self._now_ns, until_ns)
