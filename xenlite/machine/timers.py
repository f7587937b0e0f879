# SPDX-License-Identifier: GPL-2.0-or-later
"""Timers of the machine: what is to happen when, in nanoseconds of its monotonic clock.

A timer is armed for one moment at a time. Arming it again, or disarming it, leaves its old entry in
the queue; it is passed over when it comes up. Any deadline is good: one in the past is due at once,
one beyond the end of time never comes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable


class Timer:
    """One thing that may be due: ``fire`` is called outside any trap."""

    __slots__ = ("deadline_ns", "fire")

    def __init__(self, fire: Callable[[], None]) -> None:
        self.fire = fire
        self.deadline_ns: int | None = None

    @property
    def is_armed(self) -> bool:
        """Tell whether it is still to fire."""
        return self.deadline_ns is not None


class TimerQueue:
    """The armed timers of one machine; none is due before ``earliest_ns``, which costs no call."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Timer]] = []
        self._count = 0  # orders entries of one deadline, first armed first
        self.earliest_ns: float = math.inf

    def arm(self, timer: Timer, deadline_ns: int) -> None:
        """Let ``timer`` fire at ``deadline_ns``, and not when it would have before."""
        if timer.deadline_ns == deadline_ns:
            return
        timer.deadline_ns = deadline_ns
        self._count += 1
        heapq.heappush(self._entries, (deadline_ns, self._count, timer))
        self.earliest_ns = self._entries[0][0]
        if len(self._entries) > 64 and self._count % 64 == 0:
            self._drop_stale()

    def disarm(self, timer: Timer) -> None:
        """Let ``timer`` not fire."""
        timer.deadline_ns = None

    def next_deadline_ns(self) -> int | None:
        """Return when the first armed timer is due; None where none is armed."""
        entries = self._entries
        while entries and entries[0][2].deadline_ns != entries[0][0]:
            heapq.heappop(entries)
        if not entries:
            self.earliest_ns = math.inf
            return None
        self.earliest_ns = entries[0][0]
        return entries[0][0]

    def fire_due(self, now_ns: int) -> None:
        """Fire every timer that is due; one that arms itself again for the past waits its turn."""
        due = []
        while True:
            deadline_ns = self.next_deadline_ns()
            if deadline_ns is None or deadline_ns > now_ns:
                break
            timer = heapq.heappop(self._entries)[2]
            timer.deadline_ns = None
            due.append(timer)
        for timer in due:
            timer.fire()

    def _drop_stale(self) -> None:
        """Forget entries of timers that were armed again: a guest may do that without end."""
        live = [entry for entry in self._entries if entry[2].deadline_ns == entry[0]]
        if len(live) < len(self._entries) // 2:
            heapq.heapify(live)
            self._entries = live
