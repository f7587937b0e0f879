# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait for descriptors on a thread that does nothing else: what is ready is dealt with in the loop.

Each descriptor is reported once and watched again when ``want`` says so, so whoever sends without
end costs one read per round of the loop.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenlite.doors import Link

AGAIN_NS: Final = 100_000_000


class Poller:
    """Watch descriptors until ``close``; their owners forget them before that, and close them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._stop_read, self._stop_write = os.pipe()
        self._poll.register(self._stop_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._wait, name="poller", daemon=True)
        self._thread.start()

    def watch(self, fd: int, wanted: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` in the loop, once, when ``wanted`` (EPOLLIN, EPOLLOUT) can be done."""
        self._ready[fd] = ready
        self._poll.register(fd, wanted | select.EPOLLONESHOT)

    def want(self, fd: int, wanted: int) -> None:
        """Call it again then."""
        self._poll.modify(fd, wanted | select.EPOLLONESHOT)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more."""
        del self._ready[fd]
        self._poll.unregister(fd)

    def later(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the loop in a while: what the system has run out of may be there then."""
        self._link.call_at(self._link.now_ns() + AGAIN_NS, work)

    def close(self) -> None:
        """End the thread."""
        os.write(self._stop_write, b"\0")
        self._thread.join()
        self._poll.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _wait(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._stop_read:
                    return
                self._link.defer(partial(self._tell, fd))

    def _tell(self, fd: int) -> None:
        """Report a descriptor; it may be gone by now, or be another's, which does no harm."""
        ready = self._ready.get(fd)
        if ready is not None:
            ready()
