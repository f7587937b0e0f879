# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve one connected block ring: requests in, image I/O on a worker, responses out.

A request on its way::

    slot --copy--> decode --> pin its pages --> worker: preadv/pwritev straight into them
                     |            |                              |
                     `--- bad ----+--> error response     unpin, response, publish, notify

What the host has in its cache is read at once instead, where nothing else is in work. Everything
but the I/O happens on the main thread, after the guest has been left. Pages are pinned from before
the I/O until after it, so a frontend that revokes a grant, or dies, harms nothing. With persistent
grants a page stays mapped from its first use, which the frontend has to agree to.

A frontend that breaks the ring loses the device: ``broken`` is told, once. Requests that are in
work then are finished, and answered to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from xenlite.dom0.blkif import (
    Bad,
    Disk,
    Indirect,
    Operation,
    Request,
    decode,
    resolve,
    response,
    ring_shape,
)
from xenlite.dom0.image import Image, ImageWorker, Job
from xenlite.dom0.slot_ring import BackRing, JoinedPages
from xenlite.errors import PeerError, Refused

if TYPE_CHECKING:
    from xenlite.doors import GrantMapping, Link

MAX_PERSISTENT: Final = 1056  # pages that stay mapped for one ring; Linux keeps as many
MOST_AT_ONCE: Final = 64  # requests that are taken before others have their turn
MOST_CACHED_BYTES: Final = 2 << 20  # and bytes that are copied meanwhile, which is 1 ms


@dataclass(frozen=True, slots=True)
class Offer:
    """What a frontend has offered: its ring's pages, its port, and whether grants are lasting."""

    domid: int
    ring_refs: tuple[int, ...]
    port: int
    persistent: bool


class BlockRing:
    """One frontend's ring while it is connected."""

    def __init__(
        self,
        link: Link,
        offer: Offer,
        disk: Disk,
        image: Image,
        worker: ImageWorker,
        *,
        broken: Callable[[PeerError], None],
        latency_ns: int = 0,
    ) -> None:
        """Join what is offered. Raises Refused where it isn't, PeerError where it can't be."""
        self._link = link
        self._frontend = offer.domid
        self._disk = disk
        self._image = image
        self._worker = worker
        self._broken = broken
        self._latency_ns = latency_ns
        self._lasting: dict[int, GrantMapping] | None = {} if offer.persistent else None
        self.in_work = 0
        self.is_open = True
        self.requests = 0
        self.notifications = 0
        self.events = 0
        self._cached_bytes = 0  # read at once since the others' last turn
        self._drained: Callable[[], None] | None = None
        with ExitStack() as undo:
            pages = []
            for ref in offer.ring_refs:
                page = link.map_grant(offer.domid, ref, writable=True)
                undo.callback(link.unmap_grant, page)
                pages.append(page)
            memory = pages[0] if len(pages) == 1 else JoinedPages(pages)
            self._ring = BackRing(memory, ring_shape(len(pages)))
            self.port = link.bind_interdomain(offer.domid, offer.port)
            undo.callback(link.close, self.port)
            link.on_event(self.port, self._on_event)
            self._undo = undo.pop_all()

    def indexes(self) -> dict[str, int]:
        """Return the ring's indexes as they stand."""
        return self._ring.indexes()

    def counts(self) -> dict[str, int]:
        """Return what is going on, and what has been since it connected."""
        return {
            "port": self.port,
            "in work": self.in_work,
            "requests": self.requests,
            "events": self.events,
            "notifications": self.notifications,
        }

    def start(self) -> None:
        """Serve what is in the ring already: its event may have come before anybody listened."""
        self._worker.when_collected = self._publish
        self._pump()

    def close(self, drained: Callable[[], None]) -> None:
        """Give ring and port back now, and the pages when their I/O is done; then ``drained``."""
        self._let_go()
        self._drained = drained
        self._check_drained()

    def _let_go(self) -> None:
        if self.is_open:
            self.is_open = False
            self._undo.close()

    def _check_drained(self) -> None:
        if not self.is_open and not self.in_work and self._drained is not None:
            for mapping in (self._lasting or {}).values():
                self._link.unmap_grant(mapping)
            self._lasting = None
            drained, self._drained = self._drained, None
            drained()

    # -- requests -----------------------------------------------------------------------------

    def _on_event(self) -> None:
        self.events += 1
        self._pump()

    def _pump(self) -> None:
        """Take what is there, and rest only after the final check."""
        if not self.is_open:
            return
        self._cached_bytes = 0
        try:
            jobs = []
            for slot in self._ring.take(MOST_AT_ONCE):
                job = self._start(slot)
                if job is not None:
                    jobs.append(job)
            if jobs:
                self._worker.give(jobs)
            self._publish()
            if self._ring.has_more():
                self._link.defer(self._pump)
        except PeerError as error:
            self._let_go()
            self._broken(error)

    def _start(self, slot: bytes) -> Job | None:
        """Begin one request; None where it is answered already."""
        self.requests += 1
        request = decode(slot, self._disk)
        if isinstance(request, Indirect):
            request = self._resolve(request)
        if isinstance(request, Bad):
            self._ring.put(response(request.id, request.operation, request.status))
            return None
        try:
            views, release = self._views(request)
        except Refused:
            self._ring.put(response(request.id, request.operation.value, BLKIF_RSP_ERROR))
            return None
        if self._is_done_at_once(request, views):
            release()
            self._ring.put(response(request.id, request.operation.value, BLKIF_RSP_OKAY))
            return None
        self.in_work += 1
        do = self._work(request, views)
        due_ns = self._link.now_ns() + self._latency_ns
        return Job(do, partial(self._finish, request, release), due_ns)

    def _is_done_at_once(self, request: Request, views: list[memoryview]) -> bool:
        """Read what needs no waiting; never past a request that is in work."""
        if request.operation is not Operation.READ or self.in_work or self._latency_ns:
            return False
        self._cached_bytes += request.size
        if self._cached_bytes > MOST_CACHED_BYTES:
            return False
        return self._image.read_cached(views, request.start)

    def _resolve(self, request: Indirect) -> Request | Bad:
        """Copy the pages that hold an indirect request's segments, and decode them."""
        try:
            pages = self._link.pin_grants(self._frontend, request.refs, writable=False)
        except Refused as refused:
            return Bad(request.id, BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, str(refused))
        raw = b"".join(pages.views(request.pieces))
        self._link.unpin_grants(pages)
        return resolve(request, raw, self._disk)

    def _views(self, request: Request) -> tuple[list[memoryview], Callable[[], None]]:
        """Return the bytes that a request is about, and what gives them back."""
        if not request.refs:
            return [], _nothing
        is_read = request.operation is Operation.READ
        lasting = self._lasting
        if lasting is not None and len(lasting) + len(request.refs) <= MAX_PERSISTENT:
            mappings = [self._mapping(lasting, ref) for ref in request.refs]
            views = [
                mapping.view(offset, size)
                for mapping, (offset, size) in zip(mappings, request.pieces, strict=True)
            ]
            return views, partial(_wrote, mappings) if is_read else _nothing
        link = self._link
        pages = link.pin_grants(self._frontend, request.refs, writable=is_read)
        return pages.views(request.pieces), partial(link.unpin_grants, pages)

    def _mapping(self, lasting: dict[int, GrantMapping], ref: int) -> GrantMapping:
        mapping = lasting.get(ref)
        if mapping is None:
            mapping = lasting[ref] = self._link.map_grant(self._frontend, ref, writable=True)
        return mapping

    def _work(self, request: Request, views: list[memoryview]) -> Callable[[], None]:
        """Return what the worker is to do."""
        image, start = self._image, request.start
        match request.operation:
            case Operation.READ:
                return partial(image.read_into, views, start)
            case Operation.WRITE:
                return partial(image.write_from, views, start)
            case Operation.BARRIER:
                return partial(_barrier, image, views, start)
            case Operation.FLUSH:
                return image.flush
            case Operation.DISCARD:
                return partial(image.discard, start, request.size)

    def _finish(self, request: Request, release: Callable[[], None], job: Job) -> None:
        """Answer a request whose I/O is done."""
        job.do = _nothing  # it holds views of the guest's pages
        release()
        self.in_work -= 1
        if self.is_open:
            status = BLKIF_RSP_OKAY if job.error is None else BLKIF_RSP_ERROR
            self._ring.put(response(request.id, request.operation.value, status))
        else:
            self._check_drained()

    def _publish(self) -> None:
        if self.is_open and self._ring.publish():
            self.notifications += 1
            self._link.notify(self.port)


def _barrier(image: Image, views: list[memoryview], start: int) -> None:
    """Write with everything before it on the disk first, and itself when it is done."""
    image.flush()
    if views:
        image.write_from(views, start)
        image.flush()


def _wrote(mappings: list[GrantMapping]) -> None:
    for mapping in mappings:
        mapping.wrote()


def _nothing() -> None:
    """Do nothing: there is nothing to give back."""
