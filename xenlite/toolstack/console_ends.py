# SPDX-License-Identifier: GPL-2.0-or-later
"""The outer ends of a console: a PTY, a socket. Neither ever waits for who reads there.

Whoever does not read loses the oldest of what waits: as much is kept as XenStore says (``limit``),
and what a PTY's own buffer in the kernel holds. Output is the guest's, unescaped: who shows it on a
terminal filters it.
"""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.errors import PeerError
from xenlite.toolstack.socket_server import SocketServer
from xenlite.toolstack.store_nodes import CONSOLE_LIMIT_BYTES

if TYPE_CHECKING:
    import socket

    from xenlite.toolstack.poller import Poller

MOST_WAITING: Final = CONSOLE_LIMIT_BYTES
READ_BYTES: Final = 4 << 10


class Waiting:
    """The newest MOST_WAITING bytes of what nobody has taken yet."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.has_lost = False

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def add(self, data: bytes) -> None:
        """Append; the oldest goes."""
        self._bytes += data
        # Cut rarely, so that short writes do not each move all of it.
        if len(self._bytes) > 2 * MOST_WAITING:
            self._cut()

    def head(self) -> bytes:
        """Return what is next."""
        if len(self._bytes) > MOST_WAITING:
            self._cut()
        return bytes(self._bytes[:READ_BYTES])

    def advance(self, count: int) -> None:
        """Note that so many bytes of the head were taken."""
        del self._bytes[:count]

    def _cut(self) -> None:
        del self._bytes[:-MOST_WAITING]
        self.has_lost = True


class Pty:
    """A raw pseudo-terminal at ``path``: what is typed goes to ``typed`` while that wants input.

    The other side is held open here, so that readers may come and go.
    """

    def __init__(
        self, poller: Poller, typed: Callable[[bytes], None], wants_input: Callable[[], bool]
    ) -> None:
        """Make it. Raises OSError where the system has none to give."""
        self._master, self._slave = os.openpty()
        try:
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self.path = os.ttyname(self._slave)
        except (OSError, termios.error) as error:  # the latter is no OSError
            os.close(self._master)
            os.close(self._slave)
            raise OSError(*error.args) from None
        self._poller = poller
        self._typed = typed
        self._wants_input = wants_input
        self._waiting = Waiting()
        self._wanted = select.EPOLLIN
        poller.watch(self._master, self._wanted, self._serve)

    def write(self, data: bytes) -> None:
        """Have a reader see output, if there is one in time."""
        if not self._waiting:
            data = data[self._write(data) :]
        if data:
            self._waiting.add(data)
            self._want()

    def look(self) -> None:
        """Take what was typed when there was no room for it."""
        self._want()

    def freshen(self) -> None:
        """For a reader that comes now: forget what lies before something that was lost."""
        if self._waiting.has_lost:
            termios.tcflush(self._slave, termios.TCIFLUSH)
            self._waiting.has_lost = False
            self._send()

    def close(self) -> None:
        """Hang up."""
        self._poller.forget(self._master)
        os.close(self._master)
        os.close(self._slave)

    def _serve(self) -> None:
        self._wanted = 0
        self._send()
        if self._wants_input():
            try:
                data = os.read(self._master, READ_BYTES)
            except BlockingIOError:
                data = b""
            if data:
                self._typed(data)
        self._want()

    def _send(self) -> None:
        while self._waiting:
            count = self._write(self._waiting.head())
            if not count:
                break
            self._waiting.advance(count)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def _want(self) -> None:
        wanted = select.EPOLLIN if self._wants_input() else 0
        if self._waiting:
            wanted |= select.EPOLLOUT
        if wanted != self._wanted:
            self._wanted = wanted
            self._poller.want(self._master, wanted)


class ConsoleSocket:
    """A listening socket: whoever connects sees the output from then on, and types."""

    def __init__(
        self,
        listener: socket.socket,
        poller: Poller,
        typed: Callable[[bytes], None],
        wants_input: Callable[[], bool],
    ) -> None:
        self._typed = typed
        self._wants_input = wants_input
        self._sessions: list[_ConsoleSession] = []
        self._server = SocketServer(listener, poller, self._greet)
        self.close = self._server.close

    def write(self, data: bytes) -> None:
        """Have all that are connected see output."""
        for session in list(self._sessions):
            session.write(data)

    def look(self) -> None:
        """Take what was typed when there was no room for it."""
        for session in list(self._sessions):
            session.look()

    def _greet(self, has_output: Callable[[], None]) -> _ConsoleSession:
        session = _ConsoleSession(has_output, self._typed, self._wants_input, self._sessions.remove)
        self._sessions.append(session)
        return session


class _ConsoleSession:
    """One that is connected."""

    def __init__(
        self,
        has_output: Callable[[], None],
        typed: Callable[[bytes], None],
        wants_input: Callable[[], bool],
        gone: Callable[[_ConsoleSession], None],
    ) -> None:
        self._has_output = has_output
        self._gone = gone
        self._waiting = Waiting()
        self.look = has_output
        self.receive = typed
        self.hears = wants_input
        self.head = self._waiting.head
        self.advance = self._waiting.advance

    def write(self, data: bytes) -> None:
        was_waiting = bool(self._waiting)
        self._waiting.add(data)
        if not was_waiting or self._waiting.has_lost:
            self._has_output()

    def go_on(self) -> None:
        """Nothing is kept of what has come."""

    def check_unread(self) -> None:
        """Raise PeerError for one that does not read: what is between would be missing."""
        if self._waiting.has_lost:
            raise PeerError("does not read its console")

    def close(self) -> None:
        self._gone(self)
