# SPDX-License-Identifier: GPL-2.0-or-later
"""A block frontend whose guest is the test: real domain, real grants and ports, no kernel.

Its pages are read and written in machine memory, as a guest would; the backend behind is the real
one, and everything it defers runs in the hypervisor's own loop (``settle``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, pack

from tests.support.front_domain import PAGE, GuestPage, PlainStore
from xenlite.abi.x86_32p import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    XEN_IO_PROTO_ABI_X86_32,
    XEN_IO_PROTO_ABI_X86_64,
    BlkifRequestSegment,
    GTF_permit_access,
)
from xenlite.dom0.image import Image, RawImage
from xenlite.dom0.ring import Page
from xenlite.dom0.slot_ring import FrontRing, JoinedPages, shape
from xenlite.dom0.vbd import Vbd, vbd_paths
from xenlite.dom0.xenbus import State
from xenlite.hypervisor import Hypervisor

NUMBER = 51712
FIRST_REF = 16  # of the pages; the ring's come before


@dataclass(frozen=True)
class Layout:
    """What a frontend's compiler makes of blkif.h, written down apart from the backend's."""

    request: Struct
    indirect: Struct
    discard: Struct
    response: Struct
    slot: int


LAYOUTS = {
    XEN_IO_PROTO_ABI_X86_32: Layout(
        Struct("<BBHQQ88s"), Struct("<BBHQQH2x8I"), Struct("<BBHQQQ"), Struct("<QBxh"), 108
    ),
    XEN_IO_PROTO_ABI_X86_64: Layout(
        Struct("<BBH4xQQ88s"), Struct("<BBH4xQQH2x8I"), Struct("<BBH4xQQQ"), Struct("<QBxh4x"), 112
    ),
}


class Front:
    """The frontend, and the backend that it talks to."""

    def __init__(
        self,
        image: Image,
        *,
        read_only: bool = False,
        latency_ns: int = 0,
        hypervisor: Hypervisor | None = None,
        pages: int = 600,
    ) -> None:
        self._image = image
        self._is_alone = hypervisor is None
        self.hypervisor = hypervisor or Hypervisor(32 << 20)
        self.layout = LAYOUTS[XEN_IO_PROTO_ABI_X86_32]
        control = self.control = self.hypervisor.control()
        self.domid = control.create_domain("front", max_pages=pages, max_vcpus=1)
        self.mfns = control.populate(self.domid, pages)
        self.domain = self.hypervisor.domains[self.domid]
        self.domain.grants.grow(2)
        link = self.hypervisor.link(0)
        self.store = PlainStore(link.defer)
        self.paths = vbd_paths(0, self.domid, NUMBER)
        self.write("state", State.INITIALISING.value)
        self.said: list[str] = []
        self.vbd = Vbd(
            link,
            self.store,
            self.paths,
            image,
            read_only=read_only,
            broken=lambda error: self.said.append(str(error)),
            latency_ns=latency_ns,
        )
        self.ring: FrontRing
        self.port = 0
        self._next_id = 0

    # -- the domain ---------------------------------------------------------------------------

    def offer(self, ref: int, page: int, flags: int = 0) -> None:
        """Offer a page to Dom0."""
        content = pack("<HHI", GTF_permit_access | flags, 0, self.mfns[page])
        table, index = divmod(ref, 512)
        maddr = self.domain.grants.mfns[table] * PAGE + index * 8
        self.hypervisor.machine.memory.write(maddr, content)

    def page(self, number: int) -> GuestPage:
        """Return a page of the domain."""
        return GuestPage(self.hypervisor, self.mfns[number])

    def settle(self, until: Callable[[], bool] | None = None, seconds: float = 10) -> None:
        """Let the backend work until it has nothing to do, or something holds."""
        done = until or (lambda: not self.vbd.ring or not self.vbd.ring.in_work)
        for _ in range(3):  # what one turn defers is done in the next
            deadline = self.hypervisor.machine.clock.monotonic_ns() + int(seconds * 1e9)
            assert self.hypervisor.run(done, deadline)

    # -- the device ---------------------------------------------------------------------------

    def show(self, state: State | int) -> None:
        """Show a state."""
        number = state.value if isinstance(state, State) else state
        self.store.write(f"{self.paths.frontend}/state", str(number))
        self.settle()

    @property
    def seen(self) -> str | None:
        """Return the state that the backend shows."""
        return self.store.read(f"{self.paths.backend}/state")

    def write(self, name: str, value: object) -> None:
        """Write a node of the frontend."""
        self.store.write(f"{self.paths.frontend}/{name}", str(value))

    def connect(
        self,
        *,
        pages: int = 1,
        persistent: bool = False,
        start: int = 0,
        protocol: str | None = XEN_IO_PROTO_ABI_X86_32,
    ) -> None:
        """Make a ring of the first pages, and let the backend join it."""
        self.layout = LAYOUTS[protocol or XEN_IO_PROTO_ABI_X86_32]
        for ref in range(pages):
            self.offer(ref, ref)
        joined: Page = JoinedPages([self.page(n) for n in range(pages)])
        self.ring = FrontRing(
            joined, shape("front", self.layout.slot, self.layout.response.size, pages), start
        )
        self.port = self.domain.events.alloc_unbound(0)
        if pages == 1:
            self.write("ring-ref", 0)
        else:
            self.write("ring-page-order", pages.bit_length() - 1)
            for n in range(pages):
                self.write(f"ring-ref{n}", n)
        self.write("event-channel", self.port)
        if protocol is not None:
            self.write("protocol", protocol)
        self.write("feature-persistent", int(persistent))
        self.show(State.INITIALISED)

    # -- requests -----------------------------------------------------------------------------

    def put(
        self,
        operation: int,
        sector: int = 0,
        segments: Sequence[tuple[int, int, int]] = (),
        *,
        count: int | None = None,
    ) -> int:
        """Put a request into the ring; return its id. Segments are (ref, first, last)."""
        self._next_id += 1
        raw = b"".join(BlkifRequestSegment(*segment).pack() for segment in segments)
        nr_segments = len(segments) if count is None else count
        self._put(
            self.layout.request.pack(operation, nr_segments, 0, self._next_id, sector, raw[:88])
        )
        return self._next_id

    def put_indirect(
        self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]], page: int
    ) -> int:
        """Put a request whose segments lie in a page of the domain, offered under its number."""
        self._next_id += 1
        raw = b"".join(BlkifRequestSegment(*segment).pack() for segment in segments)
        for n in range(0, max(len(raw), 1), PAGE):
            self.page(page + n // PAGE).write(0, raw[n : n + PAGE])
            self.offer(page + n // PAGE, page + n // PAGE)
        head = (BLKIF_OP_INDIRECT, operation, len(segments), self._next_id, sector, 0)
        self._put(self.layout.indirect.pack(*head, *range(page, page + 8)))
        return self._next_id

    def put_discard(self, sector: int, sectors: int) -> int:
        """Put a request to discard sectors; return its id."""
        self._next_id += 1
        head = (BLKIF_OP_DISCARD, 0, 0, self._next_id)
        self._put(self.layout.discard.pack(*head, sector, sectors))
        return self._next_id

    def _put(self, request: bytes) -> None:
        self.ring.put(request.ljust(self.layout.slot, b"\0"))

    def send(self) -> None:
        """Publish what was put in, and notify if the backend wants it."""
        if self.ring.publish():
            self.domain.events.send(self.port)

    def answers(self) -> dict[int, int]:
        """Wait until the backend is idle; return the status of each answered request."""
        self.send()
        self.settle()
        layout = self.layout.response
        found = [layout.unpack_from(raw) for raw in self.ring.take(999)]
        self.ring.has_more()
        statuses = {request: status for request, _, status in found}
        assert len(statuses) == len(found), "an id twice"
        return statuses

    def ask(
        self,
        operation: int,
        sector: int = 0,
        segments: Sequence[tuple[int, int, int]] = (),
        *,
        count: int | None = None,
    ) -> int:
        """Make one request: its status."""
        number = self.put(operation, sector, segments, count=count)
        answers = self.answers()
        assert list(answers) == [number]
        return answers[number]

    def read(self, sector: int, page: int = 20) -> bytes:
        """Read a page of the disk."""
        self.offer(page, page)
        assert self.ask(BLKIF_OP_READ, sector, [(page, 0, 7)]) == 0
        return self.page(page).read(0, PAGE)

    def close(self) -> None:
        """Take everything down, device first, and demand that nothing is left."""
        self.vbd.close()
        self._image.close()
        assert self.control.audit() == []
        assert list(self.domain.grants.uses()) == []
        pins = self.hypervisor.domains[0].maptrack.pins()
        assert [ref for table, ref, _, _ in pins if table is self.domain.grants] == []
        if self._is_alone:
            self.hypervisor.close()


@contextmanager
def front(
    path: Path, *, read_only: bool = False, latency_ns: int = 0, image: Image | None = None
) -> Iterator[Front]:
    """Make a disk of a file, and a frontend for it."""
    made = Front(
        image or RawImage(path, read_only=read_only), read_only=read_only, latency_ns=latency_ns
    )
    try:
        yield made
    except BaseException:
        made.vbd.close()
        made.hypervisor.close()
        raise
    made.close()
