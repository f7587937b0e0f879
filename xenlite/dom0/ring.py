# SPDX-License-Identifier: GPL-2.0-or-later
"""Move bytes through a ring in a shared page: the arithmetic of both ends.

A ring of ``size`` bytes (a power of two) has two indexes that only grow, modulo 2^32::

    consumer                 producer
    cons  ------ used ------> prod        used = prod - cons, never more than size
    byte n of the stream is at data[n % size]

Each end owns one index. It keeps its own copy and never reads it back from the page, because the
other end can write there too; the other end's index is read once per step and checked before it is
used. An index that claims more than the ring holds is a PeerError, and nothing is moved.

Publication: data is written before the index that announces it, and taken before the index that
frees its room. Guests and backends never run at the same time, so no barrier is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xenlite.errors import PeerError

INDEX_MASK = 0xFFFFFFFF


class Page(Protocol):
    """The shared page; ``doors.GrantMapping`` is one. Offsets and sizes in bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out of the page."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the page."""
        ...

    def read_u32(self, offset: int) -> int:
        """Read one little-endian word."""
        ...

    def write_u32(self, offset: int, value: int) -> None:
        """Write one little-endian word."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a ring lies in its page: byte offsets, and the size of its data."""

    name: str
    data: int
    size: int
    cons: int
    prod: int


class Consumer:
    """The end that takes bytes out; it owns ``cons``."""

    def __init__(self, page: Page, place: Place) -> None:
        self._page = page
        self._place = place
        self._cons = page.read_u32(place.cons)

    def indexes(self) -> tuple[int, int]:
        """Return ``cons``, and ``prod`` as it is in the page, unchecked."""
        return self._cons, self._page.read_u32(self._place.prod)

    def take(self) -> bytes:
        """Take all that is there: at most the size of the ring."""
        place = self._place
        used = _used(place, self._page.read_u32(place.prod), self._cons)
        if not used:
            return b""
        start = self._cons % place.size
        first = min(used, place.size - start)
        data = self._page.read(place.data + start, first)
        if used > first:
            data += self._page.read(place.data, used - first)
        self._cons = (self._cons + used) & INDEX_MASK
        self._page.write_u32(place.cons, self._cons)
        return data


class Producer:
    """The end that puts bytes in; it owns ``prod``."""

    def __init__(self, page: Page, place: Place) -> None:
        self._page = page
        self._place = place
        self._prod = page.read_u32(place.prod)

    def indexes(self) -> tuple[int, int]:
        """Return ``cons`` as it is in the page, unchecked, and ``prod``."""
        return self._page.read_u32(self._place.cons), self._prod

    def room(self) -> int:
        """Count the bytes that fit now."""
        place = self._place
        return place.size - _used(place, self._prod, self._page.read_u32(place.cons))

    def put(self, data: bytes) -> int:
        """Put in as much of ``data`` as fits; return how many bytes that was."""
        place = self._place
        count = min(len(data), self.room())
        if not count:
            return 0
        start = self._prod % place.size
        first = min(count, place.size - start)
        self._page.write(place.data + start, data[:first])
        if count > first:
            self._page.write(place.data, data[first:count])
        self._prod = (self._prod + count) & INDEX_MASK
        self._page.write_u32(place.prod, self._prod)
        return count


def _used(place: Place, prod: int, cons: int) -> int:
    used = (prod - cons) & INDEX_MASK
    if used > place.size:
        raise PeerError(
            f"{place.name}: indexes {cons:#x} to {prod:#x} claim {used} bytes of {place.size}"
        )
    return used
