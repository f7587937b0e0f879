# SPDX-License-Identifier: GPL-2.0-or-later
"""A clock that a busy host does not disturb."""

from __future__ import annotations

import threading
from time import thread_time_ns


class WorkClock:
    """Tell how long its maker's thread has worked; who waits on it for a moment is there at once.

    So times are what things cost, whatever else the host does. Slices end by their blocks alone.
    """

    def __init__(self) -> None:
        self._skipped_ns = -thread_time_ns()

    def monotonic_ns(self) -> int:
        return thread_time_ns() + self._skipped_ns

    def wall_ns(self) -> int:
        return self.monotonic_ns()

    def wait(self, wake: threading.Event, until_ns: int | None) -> None:
        if until_ns is None:
            wake.wait()
        elif not wake.is_set():
            self._skipped_ns += max(until_ns - self.monotonic_ns(), 0)
