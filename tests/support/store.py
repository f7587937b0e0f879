# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of a XenStore server in the test's own process: they speak the protocol and nothing else.

``client.ask(XS_READ, b"/local")`` returns the payload of the answer, or raises ``StoreError`` with
the name that the store gives. Events are kept in ``client.events`` as (path, token).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from xenlite.abi.x86_32p import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlite.dom0.xenstore.connection import Connection
from xenlite.dom0.xenstore.permissions import Actor
from xenlite.dom0.xenstore.quota import Quotas
from xenlite.dom0.xenstore.server import Server
from xenlite.dom0.xenstore.wire import Decoder, Message


class StoreError(Exception):
    """The store's answer was this error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def refused(name: str) -> AbstractContextManager[object]:
    """Expect the store to answer with this error."""
    return pytest.raises(StoreError, match=f"^{name}$")


class Client:
    """One client; ``reads`` says whether it takes what the store has for it."""

    def __init__(self, server: Server, domid: int) -> None:
        self.server = server
        self.domid = domid
        self.events: list[tuple[str, str]] = []
        self.reads = True
        self._answers: list[Message] = []
        self._decoder = Decoder()
        self._requests = 0
        self.connection: Connection
        if domid:
            self.connection = server.add_domain(domid, self.take)
        else:
            self.connection = server.connect(Actor(0, is_privileged=True), self.take)

    def take(self) -> None:
        """Read what waits, unless this client does not read."""
        outbox = self.connection.outbox
        while self.reads and outbox:
            data = outbox.head()
            self._decoder.feed(data)
            outbox.advance(len(data))
        while (message := self._decoder.next()) is not None:
            if message.type == XS_WATCH_EVENT:
                path, token = message.payload.split(b"\0")[:2]
                self.events.append((path.decode(), token.decode("latin-1")))
            else:
                self._answers.append(message)

    def send(self, request: int, payload: bytes, tx: int = 0) -> None:
        """Send a request and wait for nothing."""
        self._requests += 1
        message = Message(request, self._requests, tx, payload)
        self.server.receive(self.connection, message.encode())

    def ask(self, request: int, *strings: bytes, tx: int = 0, rest: bytes = b"") -> bytes:
        """Send a request of NUL-terminated strings and what follows them; return the answer."""
        self.send(request, b"".join(text + b"\0" for text in strings) + rest, tx)
        (answer,) = self.answers()
        assert (answer.req_id, answer.tx_id) == (self._requests, tx)
        if answer.type == XS_ERROR:
            raise StoreError(answer.payload.rstrip(b"\0").decode())
        assert answer.type == request
        return answer.payload

    def answers(self) -> list[Message]:
        """Return the answers since the last call, errors among them."""
        answers, self._answers = self._answers, []
        return answers

    def news(self) -> list[tuple[str, str]]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events

    # -- what most tests ask ------------------------------------------------------------------

    def read(self, path: str, tx: int = 0) -> bytes:
        return self.ask(XS_READ, path.encode(), tx=tx)

    def write(self, path: str, value: bytes = b"", tx: int = 0) -> None:
        assert self.ask(XS_WRITE, path.encode(), rest=value, tx=tx) == b"OK\0"

    def mkdir(self, path: str, tx: int = 0) -> None:
        assert self.ask(XS_MKDIR, path.encode(), tx=tx) == b"OK\0"

    def rm(self, path: str, tx: int = 0) -> None:
        assert self.ask(XS_RM, path.encode(), tx=tx) == b"OK\0"

    def directory(self, path: str, tx: int = 0) -> list[str]:
        names = self.ask(XS_DIRECTORY, path.encode(), tx=tx)
        return [name.decode() for name in names.split(b"\0")[:-1]]

    def chmod(self, path: str, *entries: str, tx: int = 0) -> None:
        parts = [path.encode(), *(entry.encode() for entry in entries)]
        assert self.ask(XS_SET_PERMS, *parts, tx=tx) == b"OK\0"

    def watch(self, path: str, token: str = "t") -> None:
        assert self.ask(XS_WATCH, path.encode(), token.encode()) == b"OK\0"

    def begin(self) -> int:
        return int(self.ask(XS_TRANSACTION_START, b"")[:-1])

    def commit(self, tx: int) -> None:
        assert self.ask(XS_TRANSACTION_END, b"T", tx=tx) == b"OK\0"

    def abort(self, tx: int) -> None:
        assert self.ask(XS_TRANSACTION_END, b"F", tx=tx) == b"OK\0"


def new_server(quotas: Quotas | None = None) -> Server:
    """Make a store that can neither join nor part rings: there are none."""
    return Server(_no_ring, _no_ring_to_part, quotas)


def owners(server: Server) -> set[int]:
    """Return the domids that own any node."""
    return {node.owner for node in server.tree._nodes.values()}


def named(server: Server) -> set[int]:
    """Return the domids that any node's permissions name."""
    nodes = server.tree._nodes.values()
    return {entry.domid for node in nodes for entry in node.permissions}


def home(tool: Client, domid: int) -> str:
    """Make a domain a home of its own, as a toolstack does; return its path."""
    path = f"/local/domain/{domid}"
    tool.mkdir(path)
    tool.chmod(path, f"n{domid}")
    return path


def _no_ring(domid: int, port: int) -> None:
    raise AssertionError((domid, port))


def _no_ring_to_part(domid: int) -> None:
    raise AssertionError(domid)
