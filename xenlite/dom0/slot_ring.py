# SPDX-License-Identifier: GPL-2.0-or-later
r"""Move requests and responses through a ring of slots in shared pages: both ends, all protocols.

A frontend puts requests in and takes responses out; a backend does the reverse. Both kinds use the
same slots, and all four indexes only grow, modulo 2^32::

    shared:   | req_prod | req_event | rsp_prod | rsp_event | ... | slot 0 | slot 1 | ...
                    \___ of this end or that ___/                     ring_head

    backend   taken  ---- waiting ---->  req_prod         taken - answered: requests in work
              answered (rsp_prod)                         never more than there are slots
    frontend  taken  ---- waiting ---->  rsp_prod         asked - taken: requests without an answer
              asked (req_prod)                            never more than there are slots

What each end has put in or taken is its own; it keeps that and never reads it back from the page,
where the other one can write. The other end's index is read once per step and checked before it is
used: one that claims more than can be is a PeerError, and nothing is taken. A slot is copied once,
several that lie together in one piece: ``take_slots`` and ``put_slots`` move whole slots, joined.

Events: an end says by its event index from which entry on it wants to be told. ``publish`` tells
whether the other end must be. ``has_more`` is the final check before an end rests: it asks to be
told of the next entry, then looks again, so that nothing put in meanwhile is missed.

Source: public/io/ring.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xenlite.abi.x86_32p import (
    SIZEOF_SRING,
    SRING_REQ_EVENT,
    SRING_REQ_PROD,
    SRING_RSP_EVENT,
    SRING_RSP_PROD,
)
from xenlite.dom0.ring import INDEX_MASK, Page
from xenlite.errors import PeerError

PAGE_SIZE: Final = 4096


class JoinedPages:
    """Several pages as one (``ring.Page``), for a ring that is larger than a page."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = pages

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out, of several pages where they cross."""
        page, at = divmod(offset, PAGE_SIZE)
        data = self._pages[page].read(at, min(size, PAGE_SIZE - at))
        while len(data) < size:
            page += 1
            data += self._pages[page].read(0, min(size - len(data), PAGE_SIZE))
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in, to several pages where they cross."""
        page, at = divmod(offset, PAGE_SIZE)
        self._pages[page].write(at, data[: PAGE_SIZE - at])
        for start in range(PAGE_SIZE - at, len(data), PAGE_SIZE):
            page += 1
            self._pages[page].write(0, data[start : start + PAGE_SIZE])

    def read_u32(self, offset: int) -> int:
        """Read one aligned little-endian word."""
        return self._pages[offset // PAGE_SIZE].read_u32(offset % PAGE_SIZE)

    def write_u32(self, offset: int, value: int) -> None:
        """Write one aligned little-endian word."""
        self._pages[offset // PAGE_SIZE].write_u32(offset % PAGE_SIZE, value)


@dataclass(frozen=True, slots=True)
class Shape:
    """The slots of one protocol in so many pages: their number, and sizes in bytes.

    ``request`` and ``response`` are what is copied; a slot is as large as the larger of them.
    """

    name: str
    request: int
    response: int
    slots: int

    @property
    def slot(self) -> int:
        """Return the size of a slot."""
        return max(self.request, self.response)


def shape(name: str, request: int, response: int, pages: int = 1) -> Shape:
    """Work out how many slots there are: a power of two, as many as fit."""
    fit = (pages * PAGE_SIZE - SIZEOF_SRING) // max(request, response)
    return Shape(name, request, response, 1 << (fit.bit_length() - 1))


class _End:
    """What both ends do, given which index is whose."""

    _their_prod: int
    _their_event: int
    _our_prod: int
    _our_event: int

    def __init__(self, page: Page, shape: Shape, put: int, taken: int) -> None:
        self._page = page
        self._shape = shape
        self._slot = shape.slot
        self._mask = shape.slots - 1
        self._put = put & INDEX_MASK
        self._published = self._put
        self._seen = 0  # entries that the last look at their index has found, and not taken
        self._taken = taken & INDEX_MASK

    def _may_wait(self) -> int:
        """Count the entries that the other end can have put in since the last was taken."""
        raise NotImplementedError

    def waiting(self) -> int:
        """Count the entries to take. Raises PeerError where there cannot be as many."""
        waiting = (self._page.read_u32(self._their_prod) - self._taken) & INDEX_MASK
        if waiting and waiting > self._may_wait():
            raise PeerError(
                f"{self._shape.name}: {waiting} entries at index {self._taken:#x}, "
                f"and no more than {self._may_wait()} can be"
            )
        self._seen = waiting
        return waiting

    def has_more(self, wanted: int = 1) -> bool:
        """Make the final check: False where fewer wait, and the last of those will be told."""
        self._page.write_u32(self._our_event, (self._taken + wanted) & INDEX_MASK)
        return self.waiting() >= wanted

    def take_slots(self, count: int) -> bytes:
        """Copy out so many slots, which the last ``waiting`` or ``has_more`` has found."""
        assert count <= self._seen, self._shape.name
        self._seen -= count
        at, slot = self._taken & self._mask, self._slot
        first = min(count, self._shape.slots - at)
        raw = self._page.read(SIZEOF_SRING + at * slot, first * slot)
        if first < count:
            raw += self._page.read(SIZEOF_SRING, (count - first) * slot)
        self._taken = (self._taken + count) & INDEX_MASK
        return raw

    def publish(self) -> bool:
        """Let the other end see what was put in; tell whether it wants an event for it."""
        old, new = self._published, self._put
        if old == new:
            return False
        self._page.write_u32(self._our_prod, new)
        self._published = new
        wanted = self._page.read_u32(self._their_event)
        return (new - wanted) & INDEX_MASK < (new - old) & INDEX_MASK

    def _take(self, size: int, limit: int) -> list[bytes]:
        raw = self.take_slots(min(self.waiting(), limit))
        return [raw[at : at + size] for at in range(0, len(raw), self._slot)]

    def _put_slots(self, raw: bytes) -> None:
        at, slot = self._put & self._mask, self._slot
        first = (self._shape.slots - at) * slot
        self._page.write(SIZEOF_SRING + at * slot, raw[:first])
        if first < len(raw):
            self._page.write(SIZEOF_SRING, raw[first:])
        self._put = (self._put + len(raw) // slot) & INDEX_MASK

    def _write(self, entry: bytes) -> None:
        self._page.write(SIZEOF_SRING + (self._put & self._mask) * self._slot, entry)
        self._put = (self._put + 1) & INDEX_MASK


class BackRing(_End):
    """The end that takes requests and puts in responses; it joins a ring that is there."""

    _their_prod = SRING_REQ_PROD
    _their_event = SRING_RSP_EVENT
    _our_prod = SRING_RSP_PROD
    _our_event = SRING_REQ_EVENT

    def __init__(self, page: Page, shape: Shape) -> None:
        start = page.read_u32(SRING_RSP_PROD)
        super().__init__(page, shape, start, start)

    @property
    def in_work(self) -> int:
        """Count the requests that were taken and have no response yet."""
        return (self._taken - self._put) & INDEX_MASK

    def _may_wait(self) -> int:
        return self._shape.slots - self.in_work

    def take(self, limit: int) -> list[bytes]:
        """Copy out up to ``limit`` requests. Raises PeerError for an impossible index."""
        return self._take(self._shape.request, limit)

    def indexes(self) -> dict[str, int]:
        """Return where everybody stands: the frontend's index as it is in the page, unchecked."""
        return {
            "req_prod": self._page.read_u32(SRING_REQ_PROD),
            "req_cons": self._taken,
            "rsp_prod": self._published,
        }

    def put(self, response: bytes) -> None:
        """Put in the response to one request that was taken; it shows at the next ``publish``."""
        assert self.in_work, self._shape.name
        self._write(response)

    def put_slots(self, responses: bytes) -> None:
        """Put in responses, each as large as a slot, to as many requests that were taken."""
        assert self.in_work * self._slot >= len(responses), self._shape.name
        self._put_slots(responses)


class FrontRing(_End):
    """The end that puts in requests and takes responses; it makes the ring."""

    _their_prod = SRING_RSP_PROD
    _their_event = SRING_REQ_EVENT
    _our_prod = SRING_REQ_PROD
    _our_event = SRING_RSP_EVENT

    def __init__(self, page: Page, shape: Shape, start: int = 0) -> None:
        for index in (SRING_REQ_PROD, SRING_RSP_PROD):
            page.write_u32(index, start & INDEX_MASK)
        for event in (SRING_REQ_EVENT, SRING_RSP_EVENT):
            page.write_u32(event, (start + 1) & INDEX_MASK)
        super().__init__(page, shape, start, start)

    @property
    def room(self) -> int:
        """Count the requests that can be put in before a response is taken."""
        return self._shape.slots - self._unanswered

    @property
    def _unanswered(self) -> int:
        return (self._put - self._taken) & INDEX_MASK

    def _may_wait(self) -> int:
        return (self._published - self._taken) & INDEX_MASK

    def put(self, request: bytes) -> None:
        """Put in a request, for which there must be room; it shows at the next ``publish``."""
        assert self.room, self._shape.name
        self._write(request)

    def put_slots(self, requests: bytes) -> None:
        """Put in requests, each as large as a slot, for which there must be room."""
        assert self.room * self._slot >= len(requests), self._shape.name
        self._put_slots(requests)

    def take(self, limit: int) -> list[bytes]:
        """Copy out up to ``limit`` responses. Raises PeerError for an impossible index."""
        return self._take(self._shape.response, limit)
