# SPDX-License-Identifier: GPL-2.0-or-later
"""Who wants to hear of which paths.

A watch of a path hears of that node and of all below it, and of a special name of nothing else. It
is told the path in the way it asked: relative to the domain's own, if the watch was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.abi.x86_32p import E2BIG, EEXIST, ENOENT, XENSTORE_PAYLOAD_MAX
from xenlite.dom0.xenstore import paths, wire
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.connection import Connection
    from xenlite.dom0.xenstore.tree import Change

WATCH_OVERHEAD_BYTES: Final = 64


class Watch(NamedTuple):
    """One watch; ``hidden`` is how much of a path its owner left out."""

    connection: Connection
    path: str
    token: bytes
    hidden: int

    @property
    def size(self) -> int:
        """Return the bytes that count against the owner's memory quota."""
        return WATCH_OVERHEAD_BYTES + len(self.path) + len(self.token)

    def tell(self, path: str) -> None:
        """Send an event; one that no message could hold is left out, as by Xen's own store."""
        shown = path[self.hidden :].encode()
        if len(shown) + len(self.token) + 2 <= XENSTORE_PAYLOAD_MAX:
            self.connection.outbox.add_event(wire.event(shown, self.token).encode())


class Watches:
    """All watches of all connections, found by path."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[tuple[Connection, bytes], Watch]] = {}

    def add(self, connection: Connection, text: bytes, token: bytes, most: int | None) -> Watch:
        """Watch what ``text`` names, unless the connection has ``most`` watches.

        Raises Refused: EINVAL for a bad path, EEXIST for the same watch again, E2BIG for too many.
        """
        domid = connection.actor.domid
        path = paths.resolve_watched(text, domid)
        if (connection, token) in self._by_path.get(path, ()):
            raise Refused(EEXIST, "xenstore.watched-already", path)
        if most is not None and connection.watches >= most:
            raise Refused(E2BIG, "xenstore.watches-quota", most)
        is_relative = not text.startswith(b"/") and path not in paths.SPECIAL
        hidden = len(paths.home(domid)) + 1 if is_relative else 0
        watch = Watch(connection, path, token, hidden)
        self._by_path.setdefault(path, {})[connection, token] = watch
        connection.watches += 1
        connection.watch_bytes += watch.size
        return watch

    def remove(self, connection: Connection, text: bytes, token: bytes) -> None:
        """Forget one watch. Raises Refused(ENOENT) where it does not exist."""
        path = paths.resolve_watched(text, connection.actor.domid)
        watch = self._by_path.get(path, {}).get((connection, token))
        if watch is None:
            raise Refused(ENOENT, "xenstore.no-such-watch", path)
        self._drop(watch)

    def remove_all(self, connection: Connection) -> None:
        """Forget every watch of a connection."""
        if connection.watches:
            for watch in self.all():
                if watch.connection is connection:
                    self._drop(watch)
        assert connection.watches == connection.watch_bytes == 0

    def all(self) -> list[Watch]:
        """List every watch."""
        return [watch for found in self._by_path.values() for watch in found.values()]

    def fire(self, change: Change) -> Iterator[Connection]:
        """Tell every watch that a change concerns and whose owner may know; yield the owners."""
        for watch in self._concerned(change):
            if any(map(watch.connection.actor.may_read, change.visible_by)):
                watch.tell(change.path)
                yield watch.connection

    def _concerned(self, change: Change) -> list[Watch]:
        at = change.path
        found = list(self._by_path.get(at, {}).values())
        while not change.is_exact and at != "/" and at not in paths.SPECIAL:
            at = paths.parent(at)
            found += self._by_path.get(at, {}).values()
        return found

    def _drop(self, watch: Watch) -> None:
        same_path = self._by_path[watch.path]
        del same_path[watch.connection, watch.token]
        if not same_path:
            del self._by_path[watch.path]
        watch.connection.watches -= 1
        watch.connection.watch_bytes -= watch.size
