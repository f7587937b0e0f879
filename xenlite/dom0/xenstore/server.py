# SPDX-License-Identifier: GPL-2.0-or-later
"""The store: one tree, its clients, and who hears of what.

Everything here is bytes and values. ``receive`` takes what a client has sent; answers and events
land in the ``outbox`` of a connection, and its ``on_output`` tells whoever carries bytes. A request
that fails is answered with the name of the error; bytes that are no request raise PeerError, and
the caller disconnects that client.

Each request happens whole or not at all, is answered, and only then do watches hear of it. What the
requests mean is in ``requests.py``; ``docs/xenstore.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from xenlite.abi.x86_32p import ENOENT, ENOMEM, ENOSPC
from xenlite.dom0.xenstore import paths
from xenlite.dom0.xenstore.connection import Connection
from xenlite.dom0.xenstore.permissions import Actor
from xenlite.dom0.xenstore.quota import TOOL_OUTSTANDING, TOOL_UNREAD, Quotas
from xenlite.dom0.xenstore.requests import Requests
from xenlite.dom0.xenstore.tree import Change, Overlay, Tree
from xenlite.dom0.xenstore.view import View
from xenlite.dom0.xenstore.watches import Watch, Watches
from xenlite.dom0.xenstore.wire import Message, refusal, reply
from xenlite.errors import PeerError, Refused

Answer = TypeVar("Answer")


class Server:
    """The store. ``join`` and ``part`` bring a domain's ring when a tool asks for that."""

    def __init__(
        self,
        join: Callable[[int, int], None],
        part: Callable[[int], None],
        quotas: Quotas | None = None,
    ) -> None:
        self.tree = Tree()
        self.quotas = quotas or Quotas()
        self.domains: dict[int, Connection] = {}
        self._shut_down: set[int] = set()
        self.watches = Watches()
        self._connections: set[Connection] = set()
        self._requests = Requests(self, join, part)
        self._news: list[Change | tuple[Watch, str]] = []
        self._is_answering = False

    # -- connections --------------------------------------------------------------------------

    def connect(self, actor: Actor, on_output: Callable[[], None]) -> Connection:
        """Take a client."""
        connection = Connection(actor, on_output)
        self._connections.add(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a client, with its watches and open transactions."""
        self._connections.discard(connection)
        self.reset(connection)

    def reset(self, connection: Connection) -> None:
        """End a client's transactions and watches."""
        connection.transactions.clear()
        self.watches.remove_all(connection)

    def receive(self, connection: Connection, data: bytes) -> None:
        """Take bytes from a client and answer what is whole. Raises PeerError."""
        connection.feed(data)
        self.serve(connection)

    def serve(self, connection: Connection) -> None:
        """Answer requests until there is none, or the client has to read first."""
        while self.hears(connection):
            request = connection.next_request()
            if request is None:
                break
            connection.outbox.add_reply(self._answer(connection, request).encode())
            connection.on_output()
            self._tell_news()

    def hears(self, connection: Connection) -> bool:
        """Tell whether the client is there, and keeps up with the answers to what it asks."""
        if connection not in self._connections:
            return False
        is_tool = connection.actor.is_privileged
        most = TOOL_OUTSTANDING if is_tool else self.quotas.outstanding
        return connection.outbox.replies < most

    def check_unread(self, connection: Connection) -> None:
        """Raise PeerError where more waits for a client than it may leave unread."""
        most = TOOL_UNREAD if connection.actor.is_privileged else self.quotas.unread
        if connection.outbox.size_bytes > most:
            raise PeerError(f"leaves {connection.outbox.size_bytes} bytes of events unread")

    # -- domains ------------------------------------------------------------------------------

    def add_domain(self, domid: int, on_output: Callable[[], None]) -> Connection:
        """Take a domain as a client, and tell who waits for new ones."""
        assert domid not in self.domains, domid
        connection = self.connect(Actor(domid, is_privileged=False), on_output)
        self.domains[domid] = connection
        self.announce(paths.INTRODUCE_DOMAIN)
        return connection

    def remove_domain(self, domid: int) -> None:
        """Forget a domain: its connection, the nodes that it owns, and what names it."""
        self.disconnect(self.domains.pop(domid))
        self._shut_down.discard(domid)
        for other in self.domains.values():
            if other.actor.target == domid:
                other.actor.target = None
        self._news += self.tree.forget_domain(domid)
        self.announce(paths.RELEASE_DOMAIN)

    def domain_shut_down(self, domid: int) -> None:
        """Tell, once, that a domain has shut down or crashed, though it still exists."""
        if domid in self.domains and domid not in self._shut_down:
            self._shut_down.add(domid)
            self.announce(paths.RELEASE_DOMAIN)

    def resume_domain(self, domid: int) -> None:
        """Make the next shutdown of a domain news again."""
        self._shut_down.discard(domid)

    def announce(self, special: str) -> None:
        """Tell the watches of a special name: now, or behind the answer that is being made."""
        node = self.tree.get(special)
        assert node is not None
        self._news.append(Change(special, is_exact=True, visible_by=(node.permissions,)))
        self._tell_news()

    # -- the tree -----------------------------------------------------------------------------

    def act(self, connection: Connection, tx_id: int, do: Callable[[View], Answer]) -> Answer:
        """Do something with nodes, within a transaction where ``tx_id`` names one.

        Raises Refused, after which nothing has changed.
        """
        transaction = self.transaction(connection, tx_id) if tx_id else None
        overlay = Overlay(self.tree if transaction is None else transaction)
        answer = do(View(overlay, connection.actor, self.quotas))
        self._check_quotas(connection, overlay, is_in_transaction=transaction is not None)
        if transaction is None:
            self._news += self.tree.commit(overlay)
        else:
            transaction.absorb(overlay)
        return answer

    def act_as_tool(self, do: Callable[[View], Answer]) -> Answer:
        """Do something with nodes as Dom0 itself, and tell the watches."""
        overlay = Overlay(self.tree)
        answer = do(View(overlay, Actor(0, is_privileged=True), self.quotas))
        self._news += self.tree.commit(overlay)
        self._tell_news()
        return answer

    def act_at_once(self, connection: Connection, do: Callable[[View], Answer]) -> Answer:
        """Do something with nodes for a client that sends no messages, and tell the watches."""
        answer = self.act(connection, 0, do)
        self._tell_news()
        return answer

    def transaction(self, connection: Connection, tx_id: int) -> Overlay:
        """Return an open transaction. Raises Refused(ENOENT)."""
        transaction = connection.transactions.get(tx_id)
        if transaction is None:
            raise Refused(ENOENT, "xenstore.no-such-transaction", tx_id)
        return transaction

    def commit(self, connection: Connection, transaction: Overlay) -> None:
        """Make a transaction's changes. Raises Refused: EAGAIN, or what quotas say."""
        if transaction.fits():
            self._check_quotas(connection, transaction, is_in_transaction=False)
        self._news += self.tree.commit(transaction)

    def note_first(self, watch: Watch, path: str) -> None:
        """Have a new watch told once, after the answer: clients begin with it."""
        self._news.append((watch, path))

    def check_room(self, connection: Connection, more_bytes: int) -> None:
        """Refuse (ENOMEM) to keep more for a client than its memory quota."""
        actor = connection.actor
        if not actor.is_privileged:
            kept = connection.kept_bytes() + self.tree.usage(actor.domid).size_bytes
            if kept + more_bytes > self.quotas.memory:
                raise Refused(ENOMEM, "xenstore.memory-quota", actor.domid)

    def audit(self) -> list[str]:
        """Recount the tree, and what connections are charged for; return what differs."""
        wrong = self.tree.audit()
        watches = self.watches.all()
        for connection in self._connections:
            own = [watch for watch in watches if watch.connection is connection]
            counted = (len(own), sum(watch.size for watch in own))
            if counted != (connection.watches, connection.watch_bytes):
                wrong.append(f"xenstore: domain {connection.actor.domid}: watches {counted}")
        strays = [each.path for each in watches if each.connection not in self._connections]
        wrong += [f"xenstore: a watch of {path} has no owner" for path in strays]
        return wrong

    # -- inside -------------------------------------------------------------------------------

    def _answer(self, connection: Connection, request: Message) -> Message:
        self._is_answering = True
        try:
            return reply(request, self._requests.answer(connection, request))
        except Refused as refused:
            return refusal(request, refused.errno)
        finally:
            self._is_answering = False

    def _check_quotas(
        self, connection: Connection, overlay: Overlay, *, is_in_transaction: bool
    ) -> None:
        if connection.actor.is_privileged:
            return
        for owner, added in overlay.charges():
            usage = overlay.usage(owner)
            if owner and added.nodes > 0 and usage.nodes > self.quotas.nodes:
                raise Refused(ENOSPC, "xenstore.nodes-quota", owner)
            if owner and added.size_bytes > 0 and usage.size_bytes > self.quotas.memory:
                raise Refused(ENOMEM, "xenstore.memory-quota", owner)
        if is_in_transaction:
            self.check_room(connection, overlay.size_bytes)

    def _tell_news(self) -> None:
        if self._is_answering:
            return
        news, self._news = self._news, []
        told: dict[Connection, None] = {}  # in the order of the news: runs repeat
        for item in news:
            if isinstance(item, Change):
                told.update(dict.fromkeys(self.watches.fire(item)))
            else:
                watch, path = item
                watch.tell(path)
                told[watch.connection] = None
        for connection in told:
            connection.on_output()
