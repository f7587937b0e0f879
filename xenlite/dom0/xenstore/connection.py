# SPDX-License-Identifier: GPL-2.0-or-later
"""One client of the store: what it has sent, what it has still to be sent, what it holds open.

Bytes in, bytes out: what carries them is the caller's (``guest.py`` a ring, the toolstack a
socket). A client that does not read is heard no more once ``outstanding`` answers wait for it, so
it blocks itself alone. Events do not count there, for nobody asks for them: one that waits already
is not sent twice, and a client with too many bytes of them is cut off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from xenlite.dom0.xenstore.wire import Decoder, Message

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.permissions import Actor
    from xenlite.dom0.xenstore.tree import Overlay


class Outbox:
    """Messages on their way out, in order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._events: set[bytes] = set()
        self._sent = 0  # bytes of the first message that are out already
        self.replies = 0
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add_reply(self, data: bytes) -> None:
        """Send an answer."""
        self._waiting.append((data, False))
        self.replies += 1
        self.size_bytes += len(data)

    def add_event(self, data: bytes) -> None:
        """Send an event, unless the same one waits already and nothing of it is out."""
        if data in self._events:
            return
        self._waiting.append((data, True))
        self._events.add(data)
        self.size_bytes += len(data)

    def head(self) -> bytes:
        """Return the bytes that go out next; empty where there are none."""
        if not self._waiting:
            return b""
        return self._waiting[0][0][self._sent :]

    def advance(self, count: int) -> None:
        """Note that ``count`` bytes of the head are out."""
        self._sent += count
        self.size_bytes -= count
        data, is_event = self._waiting[0]
        if is_event:
            # From now on the client may have read it: the same event again is news.
            self._events.discard(data)
        if self._sent == len(data):
            self._waiting.popleft()
            self._sent = 0
            self.replies -= not is_event


class Connection:
    """One client; it is compared by identity. ``on_output`` is told when something waits for it."""

    def __init__(self, actor: Actor, on_output: Callable[[], None]) -> None:
        self.actor = actor
        self.on_output = on_output
        self.outbox = Outbox()
        self.transactions: dict[int, Overlay] = {}
        self.watches = 0
        self.watch_bytes = 0
        self._decoder = Decoder()
        self._last_transaction = 0

    def feed(self, data: bytes) -> None:
        """Take bytes that the client has sent."""
        self._decoder.feed(data)

    def next_request(self) -> Message | None:
        """Return the next whole request. Raises PeerError for bytes that are no message."""
        return self._decoder.next()

    def open_transaction(self, overlay: Overlay) -> int:
        """Keep a transaction open; return its number, which is never 0."""
        number = 0
        while not number or number in self.transactions:
            self._last_transaction = number = (self._last_transaction + 1) & 0xFFFFFFFF
        self.transactions[number] = overlay
        return number

    def kept_bytes(self) -> int:
        """Return what watches and open transactions cost the store."""
        return self.watch_bytes + sum(each.size_bytes for each in self.transactions.values())
