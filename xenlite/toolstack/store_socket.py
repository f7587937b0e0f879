# SPDX-License-Identifier: GPL-2.0-or-later
"""Let tools of the host talk to the store over a Unix socket, in the protocol that guests use.

One thread waits for sockets and does nothing else: what is ready it hands to the hypervisor's loop,
where all reading, answering and writing happens. Each socket is reported once and watched again
when the loop has seen to it, so a tool that sends without end costs one read per round of the loop.

A client that breaks the protocol, or leaves too much unread, is cut off.
"""

from __future__ import annotations

import os
import select
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from xenlite.dom0.xenstore.permissions import Actor
from xenlite.errors import PeerError

if TYPE_CHECKING:
    import socket

    from xenlite.dom0.xenstore.connection import Connection
    from xenlite.dom0.xenstore.server import Server
    from xenlite.doors import Link

READ_BYTES: Final = 4 << 10
MAX_CLIENTS: Final = 200


class StoreSocket:
    """Serve a listening socket until ``close``."""

    def __init__(self, listener: socket.socket, link: Link, server: Server) -> None:
        self.server = server
        self.poll = select.epoll()
        self._listener = listener
        self._link = link
        self._clients: dict[int, _Client] = {}
        self._stop_read, self._stop_write = os.pipe()
        self.poll.register(self._stop_read, select.EPOLLIN)
        self.poll.register(listener.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        self._thread = threading.Thread(target=self._wait, name="store socket", daemon=True)
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
    """One connected tool, which acts as Dom0."""

    def __init__(self, owner: StoreSocket, connected: socket.socket) -> None:
        self._owner = owner
        self._socket = connected
        self._fd = connected.fileno()
        actor = Actor(0, is_privileged=True)
        self._connection: Connection = owner.server.connect(actor, self.send)
        owner.poll.register(self._fd, select.EPOLLIN | select.EPOLLONESHOT)

    def serve(self) -> None:
        """Send what waits, then take one piece of what has come."""
        self.send()
        server, connection = self._owner.server, self._connection
        try:
            server.serve(connection)
            if server.hears(connection):
                data = self._socket.recv(READ_BYTES)
                if not data:
                    self.close()
                    return
                server.receive(connection, data)
        except BlockingIOError:
            pass
        except (PeerError, OSError):
            self.close()
            return
        self._watch()

    def send(self) -> None:
        """Send what waits, as far as the socket takes it."""
        outbox = self._connection.outbox
        try:
            while outbox:
                outbox.advance(self._socket.send(outbox.head()))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        try:
            self._owner.server.check_unread(self._connection)
        except PeerError:
            self.close()
            return
        self._watch()

    def close(self) -> None:
        """Disconnect, if that has not been done."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._owner.server.disconnect(self._connection)
            self._owner.poll.unregister(fd)
            self._socket.close()
            self._owner.forget(fd)

    def _watch(self) -> None:
        """Have the thread report the socket when it can go on."""
        if self._fd < 0:
            return
        wanted = select.EPOLLONESHOT
        if self._owner.server.hears(self._connection):
            wanted |= select.EPOLLIN
        if self._connection.outbox:
            wanted |= select.EPOLLOUT
        self._owner.poll.modify(self._fd, wanted)
