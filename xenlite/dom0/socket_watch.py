# SPDX-License-Identifier: GPL-2.0-or-later
"""Hear from the host's sockets in the hypervisor's loop.

One thread waits for all of them and does nothing else: what is ready is handed to the loop, where
all reading happens. Each is reported once and waited for again when the loop has seen to it. So
what comes without end costs one piece of work per round of the loop, and waits meanwhile in the
kernel's buffer, which is bounded.
"""

from __future__ import annotations

import os
import select
import threading
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.doors import Link


class SocketWatch:
    """Waits for descriptors until ``close``; the thread exists from the first of them on."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._ready: dict[int, Callable[[], None]] = {}
        self._poll = select.epoll()
        self._stop_read, self._stop_write = os.pipe()
        self._poll.register(self._stop_read, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def add(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` in the loop whenever there is something to read, until ``remove``.

        It may be called for nothing, and need not read all.
        """
        self._ready[fd] = ready
        self._poll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="networks", daemon=True)
            self._thread.start()

    def remove(self, fd: int) -> None:
        """Wait for a descriptor no longer; it is still open."""
        del self._ready[fd]
        self._poll.unregister(fd)

    def close(self) -> None:
        """End the thread; all descriptors have been removed."""
        assert not self._ready, self._ready
        if self._thread is not None:
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
                self._link.defer(partial(self._serve, fd))

    def _serve(self, fd: int) -> None:
        """See to a descriptor that was ready; it may be gone by now, or be another's."""
        ready = self._ready.get(fd)
        if ready is not None:
            ready()
        if fd in self._ready:
            self._poll.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
