# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve tools of the host over a Unix socket: listening, clients, and whose turn it is.

One thread waits for sockets and does nothing else: what is ready it hands to the hypervisor's loop,
where all reading, answering and writing happens. Each socket is reported once and watched again
when the loop has seen to it, so a tool that sends without end costs one read per round of the loop.

What the bytes mean is a ``Session``'s, which knows no socket. A client that breaks its protocol, or
leaves too much unread, is cut off.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.errors import PeerError

if TYPE_CHECKING:
    import socket

    from xenlite.doors import Link

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
"""Make a new client's session; it calls what it is given when something waits to go out."""


class SocketServer:
    """Serve a listening socket until ``close``."""

    def __init__(self, listener: socket.socket, link: Link, greet: Greet, *, name: str) -> None:
        self.greet = greet
        self.poll = select.epoll()
        self._listener = listener
        self._link = link
        self._clients: dict[int, _Client] = {}
        self._stop_read, self._stop_write = os.pipe()
        self.poll.register(self._stop_read, select.EPOLLIN)
        self.poll.register(listener.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        self._thread = threading.Thread(target=self._wait, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect everybody and stop listening."""
        os.write(self._stop_write, b"\0")
        self._thread.join()
        for client in list(self._clients.values()):
            client.close()
        self._listener.close()
        self.poll.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def forget(self, fd: int) -> None:
        """Hear that a client is gone; there is room for another."""
        del self._clients[fd]
        self._watch_listener()

    def _wait(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                if fd == self._stop_read:
                    return
                self._link.defer(partial(self._serve, fd))

    def _serve(self, fd: int) -> None:
        """See to a socket that was ready, in the loop; it may be gone by now."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._clients:
            self._clients[fd].serve()

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has left again
            self._watch_listener()
            return
        except OSError:  # no descriptor for it; there may be one when a client has left
            return
        connected.setblocking(False)
        self._clients[connected.fileno()] = _Client(self, connected)
        self._watch_listener()

    def _watch_listener(self) -> None:
        if len(self._clients) < MAX_CLIENTS and self._listener.fileno() >= 0:
            self.poll.modify(self._listener.fileno(), select.EPOLLIN | select.EPOLLONESHOT)


class _Client:
    """One connected tool: its socket, and its session."""

    def __init__(self, owner: SocketServer, connected: socket.socket) -> None:
        self._owner = owner
        self._socket = connected
        self._fd = connected.fileno()
        owner.poll.register(self._fd, select.EPOLLIN | select.EPOLLONESHOT)
        self._session = owner.greet(self.send)

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
            self._owner.poll.unregister(fd)
            self._socket.close()
            self._owner.forget(fd)

    def _watch(self) -> None:
        """Have the thread report the socket when it can go on."""
        if self._fd < 0:
            return
        wanted = select.EPOLLONESHOT
        if self._session.hears():
            wanted |= select.EPOLLIN
        if self._session.head():
            wanted |= select.EPOLLOUT
        self._owner.poll.modify(self._fd, wanted)
