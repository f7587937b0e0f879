# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry one domain's requests and answers through the ring that it shares with the store.

States of a ring::

    OPEN ------ guest breaks the ring, --> BROKEN    the store forgets the client; the ring is left
      |         or never reads                |       alone
      +-------------- close() --------------+----> CLOSED   page and port are given back

Per event no more is taken than the ring holds, and nothing while the guest leaves its answers
unread. The word for the server's features stays 0: a ring can't be joined again.

Source: public/io/xs_wire.h, xenstore_domain_interface.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    GNTTAB_RESERVED_XENSTORE,
    XENSTORE_DOMAIN_INTERFACE_REQ,
    XENSTORE_DOMAIN_INTERFACE_REQ_CONS,
    XENSTORE_DOMAIN_INTERFACE_REQ_PROD,
    XENSTORE_DOMAIN_INTERFACE_RSP,
    XENSTORE_DOMAIN_INTERFACE_RSP_CONS,
    XENSTORE_DOMAIN_INTERFACE_RSP_PROD,
    XENSTORE_RING_SIZE,
)
from xenlite.dom0.ring import Consumer, Place, Producer
from xenlite.errors import PeerError

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.server import Server
    from xenlite.doors import Link

REQUESTS: Final = Place(
    "store requests",
    data=XENSTORE_DOMAIN_INTERFACE_REQ,
    size=XENSTORE_RING_SIZE,
    cons=XENSTORE_DOMAIN_INTERFACE_REQ_CONS,
    prod=XENSTORE_DOMAIN_INTERFACE_REQ_PROD,
)
ANSWERS: Final = Place(
    "store answers",
    data=XENSTORE_DOMAIN_INTERFACE_RSP,
    size=XENSTORE_RING_SIZE,
    cons=XENSTORE_DOMAIN_INTERFACE_RSP_CONS,
    prod=XENSTORE_DOMAIN_INTERFACE_RSP_PROD,
)


class RingState(Enum):
    """What a ring is doing; the module's head draws it."""

    OPEN = "open"
    BROKEN = "broken"
    CLOSED = "closed"


class GuestRing:
    """One domain's ring behind a ``Link``. ``broken`` is told once if the guest breaks it."""

    def __init__(
        self,
        link: Link,
        server: Server,
        domid: int,
        remote_port: int,
        broken: Callable[[PeerError], None],
    ) -> None:
        self._link = link
        self._server = server
        self._broken = broken
        self.state = RingState.OPEN
        with ExitStack() as undo:
            page = link.map_grant(domid, GNTTAB_RESERVED_XENSTORE, writable=True)
            undo.callback(link.unmap_grant, page)
            self._requests = Consumer(page, REQUESTS)
            self._answers = Producer(page, ANSWERS)
            self._port = link.bind_interdomain(domid, remote_port)
            undo.callback(link.close, self._port)
            link.on_event(self._port, self.pump)
            self._connection = server.add_domain(domid, self._give)
            undo.callback(server.remove_domain, domid)
            self._undo = undo.pop_all()

    def pump(self) -> None:
        """Take what the guest has asked, if it reads its answers, and answer it."""
        if self.state is not RingState.OPEN:
            return
        self._give()
        try:
            # What it sent before it was last heard comes first.
            self._server.serve(self._connection)
            if self._server.hears(self._connection):
                data = self._requests.take()
                if data:
                    self._link.notify(self._port)
                    self._server.receive(self._connection, data)
        except PeerError as error:
            self._break(error)

    def close(self) -> None:
        """Forget the domain, and give page and port back."""
        self.state = RingState.CLOSED
        self._undo.close()

    def _give(self) -> None:
        """Move what waits for the guest into the ring, as far as there is room."""
        if self.state is not RingState.OPEN:
            return
        outbox = self._connection.outbox
        given = False
        try:
            while count := self._answers.put(outbox.head()):
                outbox.advance(count)
                given = True
            self._server.check_unread(self._connection)
        except PeerError as error:
            self._break(error)
            return
        if given:
            self._link.notify(self._port)

    def _break(self, error: PeerError) -> None:
        self.state = RingState.BROKEN
        self._server.disconnect(self._connection)
        self._broken(error)
