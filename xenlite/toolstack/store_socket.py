# SPDX-License-Identifier: GPL-2.0-or-later
"""Let tools of the host talk to the store over a Unix socket, in the protocol that guests use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xenlite.dom0.xenstore.permissions import Actor
from xenlite.toolstack.socket_server import SocketServer

if TYPE_CHECKING:
    import socket

    from xenlite.dom0.xenstore.connection import Connection
    from xenlite.dom0.xenstore.server import Server
    from xenlite.toolstack.poller import Poller


def serve_store(listener: socket.socket, poller: Poller, server: Server) -> SocketServer:
    """Serve the store to whoever connects, until that is closed."""
    return SocketServer(listener, poller, partial(_StoreSession, server))


class _StoreSession:
    """One connected tool, which acts as Dom0."""

    def __init__(self, server: Server, has_output: Callable[[], None]) -> None:
        self._server = server
        actor = Actor(0, is_privileged=True)
        self._connection: Connection = server.connect(actor, has_output)
        self._outbox = self._connection.outbox
        self.head = self._outbox.head
        self.advance = self._outbox.advance

    def go_on(self) -> None:
        self._server.serve(self._connection)

    def hears(self) -> bool:
        return self._server.hears(self._connection)

    def receive(self, data: bytes) -> None:
        self._server.receive(self._connection, data)

    def check_unread(self) -> None:
        self._server.check_unread(self._connection)

    def close(self) -> None:
        self._server.disconnect(self._connection)
