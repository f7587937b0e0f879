# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve tools of the host over a Unix socket: listening, clients, and whose turn it is.

All reading, answering and writing happens in the hypervisor's loop (``poller.py``), one read per
client and round of it.

What the bytes mean is a ``Session``'s, which knows no socket. A client that breaks its protocol, or
leaves too much unread, is cut off.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.errors import PeerError

if TYPE_CHECKING:
    import socket

    from xenlite.toolstack.poller import Poller

READ_BYTES: Final = 4 << 10
MAX_CLIENTS: Final = 200


class Session(Protocol):
    """One client, as bytes: what it sends comes in, what it is sent waits here."""

    def go_on(self) -> None:
        """Do what can be done with what has come already. Raises PeerError."""

    def hears(self) -> bool:
        """Tell whether more may come now."""

    def receive(self, data: bytes) -> None:
        """Take what the client has sent. Raises PeerError."""

    def head(self) -> bytes:
        """Return the bytes that go out next; empty where there are none."""

    def advance(self, count: int) -> None:
        """Note that ``count`` bytes of the head are out."""

    def check_unread(self) -> None:
        """Raise PeerError where more waits than a client may leave unread."""

    def close(self) -> None:
        """Hear that the client is gone."""


Greet = Callable[[Callable[[], None]], Session]
"""Make a new client's session; it calls what it is given when something waits to go out, later.

Raises OSError where the system has not what that takes.
"""


class SocketServer:
    """Serve a listening socket until ``close``."""

    def __init__(self, listener: socket.socket, poller: Poller, greet: Greet) -> None:
        self.greet = greet
        self.poller = poller
        self._listener = listener
        self._clients: dict[int, _Client] = {}
        poller.watch(listener.fileno(), select.EPOLLIN, self._accept)

    def close(self) -> None:
        """Disconnect everybody and stop listening."""
        self.poller.forget(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients.values()):
            client.close()

    def forget(self, fd: int) -> None:
        """Hear that a client is gone; there is room for another."""
        del self._clients[fd]
        self._watch_listener()

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has left again
            self._watch_listener()
            return
        except OSError:  # no descriptor for it; there may be one later, whoever gives it back
            self.poller.later(self._watch_listener)
            return
        connected.setblocking(False)
        try:
            self._clients[connected.fileno()] = _Client(self, connected)
        except OSError:  # nor one for what a session reads at first, which may be its own code
            connected.close()
            self.poller.later(self._watch_listener)
            return
        self._watch_listener()

    def _watch_listener(self) -> None:
        if len(self._clients) < MAX_CLIENTS and self._listener.fileno() >= 0:
            self.poller.want(self._listener.fileno(), select.EPOLLIN)


class _Client:
    """One connected tool: its socket, and its session."""

    def __init__(self, owner: SocketServer, connected: socket.socket) -> None:
        self._owner = owner
        self._socket = connected
        self._fd = connected.fileno()
        self._session = owner.greet(self.send)
        owner.poller.watch(self._fd, select.EPOLLIN, self.serve)

    def serve(self) -> None:
        """Send what waits, then take one piece of what has come."""
        self.send()
        session = self._session
        try:
            session.go_on()
            if self._fd >= 0 and session.hears():
                data = self._socket.recv(READ_BYTES)
                if not data:
                    self.close()
                    return
                session.receive(data)
        except BlockingIOError:
            pass
        except (PeerError, OSError):
            self.close()
            return
        self._watch()

    def send(self) -> None:
        """Send what waits, as far as the socket takes it."""
        session = self._session
        try:
            while self._fd >= 0 and (data := session.head()):
                session.advance(self._socket.send(data))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        try:
            session.check_unread()
        except PeerError:
            self.close()
            return
        self._watch()

    def close(self) -> None:
        """Disconnect, if that has not been done."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._session.close()
            self._owner.poller.forget(fd)
            self._socket.close()
            self._owner.forget(fd)

    def _watch(self) -> None:
        """Have the thread report the socket when it can go on.

        Where nothing is wanted nothing is asked: that a client has hung up is reported whatever is
        wanted, and would be without end as long as it may not be heard.
        """
        if self._fd < 0:
            return
        wanted = 0
        if self._session.hears():
            wanted |= select.EPOLLIN
        if self._session.head():
            wanted |= select.EPOLLOUT
        if wanted:
            self._owner.poller.want(self._fd, wanted)
