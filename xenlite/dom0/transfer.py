# SPDX-License-Identifier: GPL-2.0-or-later
"""Do requests together that follow each other, in the ring and on the disk.

A frontend that reads a file asks for it in pieces, because a request holds no more. Joined again
they are one system call, and one check of all their grants::

    ring   R 0-7   R 8-15   R 16-23   W 90-97   R 24-31
           `--- one transfer ----'    `- one -'   `- one -'

The order of the ring is kept, and each request has an outcome of its own: where the whole fails,
each part is tried alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from xenlite.dom0.blkif import MAX_INDIRECT_SEGMENTS, Operation, Request

if TYPE_CHECKING:
    from xenlite.dom0.image import Image

MOST_PAGES: Final = MAX_INDIRECT_SEGMENTS  # as many as one request can have
_READ: Final = Operation.READ
_WRITE: Final = Operation.WRITE


class Transfer:
    """Requests that are done together; ``start`` and ``end`` in bytes of the disk."""

    __slots__ = ("end", "failed", "is_whole", "operation", "refs", "requests", "start")

    def __init__(self, request: Request) -> None:
        self.requests = [request]
        self.operation = request.operation
        self.start = request.start
        self.end = request.start + request.size
        self.refs = list(request.refs)
        self.is_whole = request.pieces is None  # all that is used of the pages
        self.failed: set[int] = set()  # which of the requests the image refused

    def add(self, request: Request) -> None:
        """Take one more that begins where this ends."""
        self.requests.append(request)
        self.end += request.size
        self.refs += request.refs
        self.is_whole = self.is_whole and request.pieces is None

    def alone(self) -> list[Transfer]:
        """Return a transfer for each of the requests."""
        return list(map(Transfer, self.requests))

    def views(self, pages: list[memoryview]) -> list[memoryview]:
        """Return the bytes to be moved, given the whole pages."""
        if self.is_whole:
            return pages
        views, left = [], iter(pages)
        for request in self.requests:
            if request.pieces is None:
                views += [next(left) for _ in request.refs]
            else:
                views += [next(left)[at : at + size] for at, size in request.pieces]
        return views

    def do(self, image: Image, views: list[memoryview]) -> None:
        """Do it, and note which requests the image refuses. May block."""
        try:
            _act(self.operation, image, self.start, self.end, views)
        except OSError:
            if len(self.requests) == 1:
                self.failed.add(0)
                return
            self._do_each(image, views)

    def _do_each(self, image: Image, views: list[memoryview]) -> None:
        first = 0
        for n, request in enumerate(self.requests):
            after = first + len(request.refs)
            end = request.start + request.size
            try:
                _act(self.operation, image, request.start, end, views[first:after])
            except OSError:
                self.failed.add(n)
            first = after


def join(requests: Iterable[Request]) -> list[Transfer]:
    """Join what follows each other, in the order given."""
    transfers: list[Transfer] = []
    last: Transfer | None = None
    for request in requests:
        if (
            last is not None
            and request.start == last.end
            and request.operation is last.operation
            and (request.operation is _READ or request.operation is _WRITE)
            and len(last.refs) + len(request.refs) <= MOST_PAGES
        ):
            last.add(request)
        else:
            last = Transfer(request)
            transfers.append(last)
    return transfers


def _act(operation: Operation, image: Image, start: int, end: int, views: list[memoryview]) -> None:
    match operation:
        case Operation.READ:
            image.read_into(views, start)
        case Operation.WRITE:
            image.write_from(views, start)
        case Operation.BARRIER:
            image.flush()
            if views:
                image.write_from(views, start)
                image.flush()
        case Operation.FLUSH:
            image.flush()
        case Operation.DISCARD:
            image.discard(start, end - start)
