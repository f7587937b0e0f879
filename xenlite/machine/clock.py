# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell the time: nanoseconds since some start, and since 1970."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The one source of time of a machine."""

    def monotonic_ns(self) -> int:
        """Read the time since a fixed moment; it never goes back."""
        ...

    def wall_ns(self) -> int:
        """Read the time since 1970-01-01 00:00 UTC; it may be set."""
        ...


class HostClock:
    """The host's own clocks, counted from this object's making."""

    __slots__ = ("_start_ns",)

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Read the time since this clock was made."""
        return time.monotonic_ns() - self._start_ns

    def wall_ns(self) -> int:
        """Read the host's time of day."""
        return time.time_ns()


class ManualClock:
    """A clock that moves when told to, for tests and deterministic runs."""

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
