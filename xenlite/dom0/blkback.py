# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve one connected block ring: requests in, image I/O on a worker, responses out.

A batch of requests on its way::

    slots --copy--> decode --> join --> hold their pages --> worker: preadv/pwritev into them
                      |                       |                          |
                      `--------- bad ---------+--> error responses   give back, responses
                                                            `-- publish, notify once --'

What the host has in its cache is read at once instead, where nothing else is in work: then no page
needs to be held. Everything but the I/O happens on the main thread, after the guest has been left.
Pages are held from before the I/O until after it, so a frontend that revokes a grant, or dies,
harms nothing.

A frontend that breaks the ring loses the device: ``broken`` is told, once. Requests that are in
work then are finished, and answered to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from xenlite.dom0.blkif import (
    NATIVE,
    Bad,
    Disk,
    Indirect,
    Operation,
    Request,
    Wire,
    decode,
    resolve,
    ring_shape,
)
from xenlite.dom0.frontend_pages import FrontendPages, LastingPages, PassingPages
from xenlite.dom0.image import Image, ImageWorker, Job
from xenlite.dom0.slot_ring import BackRing, JoinedPages
from xenlite.dom0.transfer import Transfer, join
from xenlite.errors import PeerError, Refused

if TYPE_CHECKING:
    from xenlite.doors import Link

_READ: Final = Operation.READ
MOST_AT_ONCE: Final = 64  # requests that are taken before others have their turn
MOST_CACHED_BYTES: Final = 2 << 20  # and bytes that are copied meanwhile, which is 1 ms


@dataclass(frozen=True, slots=True)
class Offer:
    """What a frontend has offered: its ring's pages, its port, and how it does things."""

    domid: int
    ring_refs: tuple[int, ...]
    port: int
    persistent: bool
    wire: Wire = NATIVE


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
        self._wire = offer.wire
        self._passing = PassingPages(link, offer.domid)
        self._pages: FrontendPages = (
            LastingPages(link, offer.domid) if offer.persistent else self._passing
        )
        self._answers: list[bytes] = []  # slots, not in the ring yet
        self.in_work = 0
        self.is_open = True
        self.requests = 0
        self.notifications = 0
        self.events = 0
        self._drained: Callable[[], None] | None = None
        with ExitStack() as undo:
            pages = []
            for ref in offer.ring_refs:
                page = link.map_grant(offer.domid, ref, writable=True)
                undo.callback(link.unmap_grant, page)
                pages.append(page)
            memory = pages[0] if len(pages) == 1 else JoinedPages(pages)
            shape = ring_shape(len(pages), offer.wire)
            self._ring = BackRing(memory, shape)
            response = offer.wire.response
            self._pack = Struct(f"{response.format}{shape.slot - response.size}x").pack
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
            self._pages.close()
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
        try:
            slots = self._ring.take(MOST_AT_ONCE)
            self.requests += len(slots)
            transfers = join(self._good(slots))
            done = self._read_at_once(transfers)
            jobs = [job for transfer in transfers[done:] for job in self._start(transfer)]
            if jobs:
                self._worker.give(jobs)
            self._publish()
            if self._ring.has_more():
                self._link.defer(self._pump, charge=self._frontend)
        except PeerError as error:
            self._let_go()
            self._broken(error)

    def _good(self, slots: list[bytes]) -> list[Request]:
        """Decode requests, and answer those that can't be done."""
        disk, wire = self._disk, self._wire
        found = [decode(slot, disk, wire) for slot in slots]
        indirect = [request for request in found if isinstance(request, Indirect)]
        segments = iter(self._segments(indirect) if indirect else ())
        good = []
        for request in found:
            if isinstance(request, Indirect):
                request = self._resolve(request, next(segments))
            if isinstance(request, Bad):
                self._answer(request.id, request.operation, request.status)
            else:
                good.append(request)
        return good

    def _segments(self, asked: list[Indirect]) -> list[bytes | None]:
        """Copy the pages that hold the segments of indirect requests; None where one is refused."""
        refs = [ref for request in asked for ref in request.refs]
        ends = list(accumulate(len(request.refs) for request in asked))

        def copy(pages: list[memoryview]) -> list[bytes | None]:
            return [
                b"".join(pages[end - len(request.refs) : end])
                for request, end in zip(asked, ends, strict=True)
            ]

        try:
            return self._passing.use(refs, copy, writable=False)
        except Refused:
            if len(asked) == 1:
                return [None]
            return [raw for request in asked for raw in self._segments([request])]

    def _resolve(self, request: Indirect, segments: bytes | None) -> Request | Bad:
        if segments is None:
            why = "its segments are not granted"
            return Bad(request.id, BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, why)
        return resolve(request, segments[: request.size], self._disk)

    def _read_at_once(self, transfers: list[Transfer]) -> int:
        """Do the reads that come first and need no waiting; return how many.

        Never past a request that is in work. What is refused is left to ``_start``.
        """
        if self.in_work or self._latency_ns:
            return 0
        reads: list[Transfer] = []
        refs: list[int] = []
        left = MOST_CACHED_BYTES
        for transfer in transfers:
            left -= transfer.end - transfer.start
            if transfer.operation is not _READ or left < 0:
                break
            reads.append(transfer)
            refs += transfer.refs
        if not reads:
            return 0
        try:
            done = self._pages.use(refs, partial(self._read_cached, reads), writable=True)
        except Refused:
            return 0
        for transfer in reads[:done]:
            self._answer_all(transfer)
        return done

    def _read_cached(self, reads: list[Transfer], pages: list[memoryview]) -> int:
        """Read until something is not in the host's cache; return how many were read."""
        read_cached, first = self._image.read_cached, 0
        for n, transfer in enumerate(reads):
            after = first + len(transfer.refs)
            if not read_cached(transfer.views(pages[first:after]), transfer.start):
                return n
            first = after
        return len(reads)

    def _start(self, transfer: Transfer) -> list[Job]:
        """Begin a transfer: what the worker has to do, nothing where it is answered already."""
        try:
            pages, give_back = self._pages.hold(transfer.refs, writable=transfer.operation is _READ)
        except Refused:
            if len(transfer.requests) > 1:
                return [job for alone in transfer.alone() for job in self._start(alone)]
            transfer.failed.add(0)
            self._answer_all(transfer)
            return []
        self.in_work += len(transfer.requests)
        do = partial(transfer.do, self._image, transfer.views(pages))
        due_ns = self._link.now_ns() + self._latency_ns
        return [Job(do, partial(self._finish, transfer, give_back), due_ns)]

    def _finish(self, transfer: Transfer, give_back: Callable[[], None]) -> None:
        """Answer what is done."""
        give_back()
        self.in_work -= len(transfer.requests)
        if self.is_open:
            self._answer_all(transfer)
        else:
            self._check_drained()

    def _answer_all(self, transfer: Transfer) -> None:
        number, failed, answer = transfer.operation.value, transfer.failed, self._answer
        for n, request in enumerate(transfer.requests):
            answer(request.id, number, BLKIF_RSP_ERROR if n in failed else BLKIF_RSP_OKAY)

    def _answer(self, request_id: int, operation: int, status: int) -> None:
        """Keep a response for the next time that anything is published."""
        self._answers.append(self._pack(request_id, operation, status))

    def _publish(self) -> None:
        if not self.is_open:
            return
        self._ring.put_slots(b"".join(self._answers))
        self._answers.clear()
        if self._ring.publish():
            self.notifications += 1
            self._link.notify(self.port)
