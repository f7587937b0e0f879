# SPDX-License-Identifier: GPL-2.0-or-later
"""Limit how many bytes pass in a time, as ``rate=`` of a network card asks (a token bucket).

Each interval brings the same credit, and none is kept beyond one interval's. What passes may be
more than what is left by one frame; that is waited off, so that any rate lets any frame pass.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many bytes in each interval."""

    bytes: int
    interval_ns: int

    def __post_init__(self) -> None:
        assert self.bytes > 0, self
        assert self.interval_ns > 0, self


class RateLimit:
    """What may pass now. Time is given, and never goes back."""

    def __init__(self, rate: Rate, now_ns: int) -> None:
        self._rate = rate
        self._credit = rate.bytes
        self._began_ns = now_ns  # the current interval

    def credit(self, now_ns: int) -> int:
        """Return how many bytes may pass now; none or less where they have to wait."""
        rate = self._rate
        intervals = (now_ns - self._began_ns) // rate.interval_ns
        if intervals > 0:
            self._began_ns += intervals * rate.interval_ns
            self._credit = min(rate.bytes, self._credit + intervals * rate.bytes)
        return self._credit

    def spend(self, size: int) -> None:
        """Note that so many bytes have passed."""
        self._credit -= size

    def next_ns(self) -> int:
        """Return when there is credit again, given that there is none now."""
        debt_in_intervals = -self._credit // self._rate.bytes
        return self._began_ns + (debt_in_intervals + 1) * self._rate.interval_ns
