# SPDX-License-Identifier: GPL-2.0-or-later
"""XenStore for backends: they live in one house with the store (``xenbus.DeviceStore``).

A backend has the rights of the domain that it runs in: those of Dom0 do anything, those of a driver
domain what the toolstack lets them.

Watches go the way that every client's go, through a connection and its messages; what they tell is
handed on in the hypervisor's loop, so that a backend's own writes never come back into it; at the
expense of whoever wrote first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenlite.dom0.xenstore.permissions import Actor
from xenlite.dom0.xenstore.wire import Decoder, strings
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.server import Server
    from xenlite.dom0.xenstore.watches import Watch
    from xenlite.doors import Link


class Dom0Store:
    """The store that Dom0 runs, as the backends of one domain see it."""

    def __init__(self, link: Link, server: Server) -> None:
        self._link = link
        self._server = server
        actor = Actor(link.domid, is_privileged=link.domid == 0)
        self._connection = server.connect(actor, self._has_output)
        self._decoder = Decoder()
        self._changed: dict[bytes, Callable[[], None]] = {}  # by a watch's token
        self._next_token = 0
        self._is_queued = False

    def read(self, path: str) -> str | None:
        """Return a node's value; None where there is none, or it may not be read."""
        try:
            value = self._server.act_at_once(self._connection, lambda view: view.read(path))
        except Refused:
            return None
        return value.rstrip(b"\0").decode(errors="replace")

    def write(self, path: str, value: str) -> None:
        """Set a node's value; watches hear of it later. Raises Refused."""
        raw = value.encode()
        self._server.act_at_once(self._connection, lambda view: view.write(path, raw))

    def watch(self, path: str, changed: Callable[[], None]) -> object:
        """Call ``changed`` after each change of a node or what is below; and once at first."""
        token = b"%d" % self._next_token
        self._next_token += 1
        watch = self._server.watches.add(self._connection, path.encode(), token, None)
        self._changed[token] = changed
        self._link.defer(lambda: self._tell(token))
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End what ``watch`` returned."""
        self._server.watches.remove(self._connection, watch.path.encode(), watch.token)
        del self._changed[watch.token]

    def close(self) -> None:
        """Leave the store."""
        self._server.disconnect(self._connection)
        self._changed.clear()

    def _has_output(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._link.defer(self._take_output, charge=self._link.payer())

    def _take_output(self) -> None:
        """Hand on what the watches tell, each of them once."""
        self._is_queued = False
        outbox = self._connection.outbox
        while data := outbox.head():
            outbox.advance(len(data))
            self._decoder.feed(data)
        tokens: dict[bytes, None] = {}
        while (message := self._decoder.next()) is not None:
            tokens[strings(message.payload, 2)[1]] = None
        for token in tokens:
            self._tell(token)

    def _tell(self, token: bytes) -> None:
        changed = self._changed.get(token)
        if changed is not None:
            changed()
