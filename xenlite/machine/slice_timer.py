# SPDX-License-Identifier: GPL-2.0-or-later
"""End slices that last too long: a thread that looks at the clock while the run loop can't.

A slice is a budget of translated blocks, which says nothing about hypercalls: a guest that does
nothing but long ones would stay in its slice for minutes. So a thread looks every ``period_ns``,
and kicks an engine whose slice should be over. It rests while no engine runs.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from xenlite.machine.clock import Clock

_NS_PER_S: Final = 10**9


class Kickable(Protocol):
    """What is kicked."""

    def kick(self) -> None:
        """End the run soon; from any thread."""


class SliceTimer:
    """The thread, and what it watches. ``begin`` and ``end`` enclose each slice."""

    def __init__(self, clock: Clock, period_ns: int) -> None:
        self._clock = clock
        self._period_ns = period_ns
        self._running: tuple[Kickable, int] | None = None
        self._is_resting = True
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._look, name="xenlite-slices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._work.set()
        self._thread.join()

    def begin(self, engine: Kickable, now_ns: int) -> None:
        """Watch a slice that begins now."""
        self._running = engine, now_ns + self._period_ns
        if self._is_resting:
            self._work.set()

    def end(self) -> None:
        """Watch nothing."""
        self._running = None

    def _look(self) -> None:
        while not self._closed:
            running = self._running
            if running is None:
                self._rest()
            elif self._clock.monotonic_ns() >= running[1]:
                running[0].kick()
            time.sleep(self._period_ns / _NS_PER_S)

    def _rest(self) -> None:
        """Wait for a slice to begin; one that has begun before we say so is seen here."""
        self._is_resting = True
        if self._running is None:
            self._work.wait()
        self._work.clear()
        self._is_resting = False
