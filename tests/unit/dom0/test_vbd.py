# SPDX-License-Identifier: GPL-2.0-or-later
"""The block backend on real images, against frontends good and hostile (SECURITY G1 to G5)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.block_front import Front, front
from tests.support.front_domain import PAGE
from xenlite.abi.x86_32p import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SIZEOF_BLKIF_X86_64_REQUEST,
    SRING_REQ_PROD,
    GTF_readonly,
)
from xenlite.dom0 import blkback
from xenlite.dom0.blkback import MOST_AT_ONCE, MOST_PAGES_AT_ONCE
from xenlite.dom0.blkif import (
    MAX_INDIRECT_SEGMENTS,
    WIRES,
    Bad,
    Disk,
    Indirect,
    Request,
    Wire,
    decode,
)
from xenlite.dom0.image import ImageWorker, Job, RawImage
from xenlite.dom0.xenbus import BLOCK_TRANSITIONS, NET_TRANSITIONS, Action, State, Transitions, step
from xenlite.errors import ConfigError
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock
from xenlite.machine.timers import Timer

SECTORS = 512
CONTENT = Random(1).randbytes(SECTORS * 512)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make an image of 256 KiB."""
    image = tmp_path / "disk.img"
    image.write_bytes(CONTENT)
    return image


def at(sector: int, size: int = PAGE) -> bytes:
    """Return what stands on the disk."""
    return CONTENT[sector * 512 : sector * 512 + size]


# -- what it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("pages", [1, 2, 8])
@pytest.mark.parametrize("start", [0, 0xFFFFFFF0])
def test_bytes_come_and_go_whole(path: Path, pages: int, start: int, *, persistent: bool) -> None:
    with front(path) as guest:
        guest.connect(pages=pages, persistent=persistent, start=start)
        assert guest.seen == "4"
        for page in range(20, 31):
            guest.offer(page, page)
        # Eleven pages, of which each is used in another part.
        segments = [(page, page % 3, 4 + page % 4) for page in range(20, 31)]
        assert guest.ask(BLKIF_OP_READ, 3, segments) == BLKIF_RSP_OKAY
        sector = 3
        for page, first, last in segments:
            size = (last - first + 1) * 512
            assert guest.page(page).read(first * 512, size) == at(sector, size)
            assert guest.page(page).read(0, first * 512) == bytes(first * 512)
            sector += last - first + 1
        assert guest.ask(BLKIF_OP_WRITE, 300, segments) == BLKIF_RSP_OKAY
        assert guest.ask(BLKIF_OP_FLUSH_DISKCACHE) == BLKIF_RSP_OKAY
        size = (sector - 3) * 512
        assert path.read_bytes()[300 * 512 : 300 * 512 + size] == at(3, size)
        assert guest.ask(BLKIF_OP_WRITE_BARRIER, 0, [(20, 0, 7)]) == BLKIF_RSP_OKAY
        assert guest.ask(BLKIF_OP_WRITE_BARRIER) == BLKIF_RSP_OKAY
        assert path.read_bytes()[:PAGE] == guest.page(20).read(0, PAGE)
        uses = len(list(guest.domain.grants.uses()))
        assert uses == pages + (11 if persistent else 0)


@pytest.mark.parametrize("protocol", [None, "", "x86_32-abi", "x86_64-abi"])
@pytest.mark.parametrize("pages", [1, 4])
def test_each_kind_of_frontend_is_understood(path: Path, protocol: str | None, pages: int) -> None:
    with front(path) as guest:
        guest.connect(pages=pages, protocol=protocol)
        for page in range(20, 42):
            guest.offer(page, page)
        segments = [(page, 0, 7) for page in range(20, 31)]
        for n in range(40):  # round the ring
            sector = 8 * (n % 50)
            assert guest.ask(BLKIF_OP_READ, sector, segments) == BLKIF_RSP_OKAY
            assert guest.page(30).read(0, PAGE) == at(sector + 80)
        number = guest.put_indirect(BLKIF_OP_READ, 8, [(20 + n, 0, 7) for n in range(20)], 100)
        assert guest.answers() == {number: BLKIF_RSP_OKAY}
        assert guest.page(39).read(0, PAGE) == at(8 + 8 * 19)
        assert guest.ask(BLKIF_OP_WRITE, 400, segments) == BLKIF_RSP_OKAY
        number = guest.put_discard(408, 8)
        assert guest.answers() == {number: BLKIF_RSP_OKAY}
        assert guest.ask(BLKIF_OP_FLUSH_DISKCACHE) == BLKIF_RSP_OKAY
        written = path.read_bytes()[400 * 512 :]
        assert written[:PAGE] == at(8)
        assert written[PAGE : 2 * PAGE] == bytes(PAGE)
        assert written[2 * PAGE : 11 * PAGE] == at(24, 9 * PAGE)
        assert guest.ask(9) == BLKIF_RSP_EOPNOTSUPP
        assert guest.ask(BLKIF_OP_READ, SECTORS, segments) == BLKIF_RSP_ERROR


def test_a_ring_full_is_answered_with_one_event_each_way(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        ring = guest.vbd.ring
        assert ring is not None
        for n in range(32):
            guest.offer(20 + n, 20 + n)
        for round_ in range(10):
            events, notifications = ring.events, ring.notifications
            ids = [guest.put(BLKIF_OP_READ, 8 * n, [(20 + n, 0, 7)]) for n in range(32)]
            assert guest.answers() == dict.fromkeys(ids, BLKIF_RSP_OKAY), round_
            assert ring.events - events <= 1
            assert ring.notifications - notifications <= 2
        for n in range(32):
            assert guest.page(20 + n).read(0, PAGE) == at(8 * n)


def test_a_request_of_many_segments_is_described_in_pages_of_its_own(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        pages = range(100, 164)
        for page in pages:
            guest.offer(page, page)
        number = guest.put_indirect(BLKIF_OP_READ, 0, [(page, 0, 7) for page in pages], 20)
        assert guest.answers() == {number: BLKIF_RSP_OKAY}
        assert b"".join(guest.page(page).read(0, PAGE) for page in pages) == CONTENT
        for bad in ([], [(100, 0, 7)] * 257, [(100, 0, 8)], [(100, 5, 4)]):
            number = guest.put_indirect(BLKIF_OP_WRITE, 0, bad, 20)
            assert guest.answers() == {number: BLKIF_RSP_ERROR}
        number = guest.put_indirect(BLKIF_OP_FLUSH_DISKCACHE, 0, [(100, 0, 7)], 20)
        assert guest.answers() == {number: BLKIF_RSP_EOPNOTSUPP}
        assert path.read_bytes() == CONTENT


def test_discarded_sectors_read_as_zeros(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        for sector, sectors, status in (
            (8, 8, BLKIF_RSP_OKAY),
            (SECTORS - 1, 2, BLKIF_RSP_ERROR),
            (1 << 63, 1 << 63, BLKIF_RSP_ERROR),
        ):
            number = guest.put_discard(sector, sectors)
            assert guest.answers() == {number: status}
        assert path.read_bytes()[8 * 512 : 16 * 512] == bytes(PAGE)
        assert path.read_bytes()[16 * 512 :] == CONTENT[16 * 512 :]


def test_a_read_only_disk_is_never_written(path: Path) -> None:
    with front(path, read_only=True) as guest:
        guest.connect()
        assert guest.store.read(f"{guest.paths.backend}/info") == "4"
        assert guest.read(8) == at(8)
        for operation in (BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_DISCARD):
            assert guest.ask(operation, 0, [(20, 0, 7)]) == BLKIF_RSP_ERROR
    assert path.read_bytes() == CONTENT


# -- G1 to G3: hostile requests -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "sector", "segments", "count"),
    [
        (BLKIF_OP_READ, 0, [], None),
        (BLKIF_OP_READ, 0, [], 12),
        (BLKIF_OP_READ, 0, [(20, 0, 7)], 255),
        (BLKIF_OP_FLUSH_DISKCACHE, 0, [(20, 0, 7)], None),
        (BLKIF_OP_READ, 0, [(20, 7, 0)], None),
        (BLKIF_OP_READ, 0, [(20, 0, 8)], None),
        (BLKIF_OP_READ, 0, [(20, 255, 255)], None),
        (BLKIF_OP_READ, SECTORS, [(20, 0, 0)], None),
        (BLKIF_OP_READ, SECTORS - 7, [(20, 0, 7)], None),
        (BLKIF_OP_READ, 1 << 63, [(20, 0, 7)], None),
        (BLKIF_OP_WRITE, (1 << 64) - 1, [(20, 0, 7)], None),
        (BLKIF_OP_READ, 0, [(0xFFFFFFFF, 0, 7)], None),
        (BLKIF_OP_READ, 0, [(21, 0, 7)], None),
        (BLKIF_OP_READ, 0, [(20, 0, 7), (20, 0, 7), (1024, 0, 7)], None),
        (BLKIF_OP_READ, 0, [(22, 0, 7)], None),
        (9, 0, [(20, 0, 7)], None),
        (4, 0, [(20, 0, 7)], None),
        (255, 0, [(20, 0, 7)], None),
    ],
)
def test_a_bad_request_costs_itself_alone(
    path: Path, operation: int, sector: int, segments: list[tuple[int, int, int]], count: int | None
) -> None:
    with front(path) as guest:
        guest.connect()
        guest.offer(20, 20)
        guest.offer(22, 22, GTF_readonly)
        known = operation in (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE)
        status = BLKIF_RSP_ERROR if known else BLKIF_RSP_EOPNOTSUPP
        assert guest.ask(operation, sector, segments, count=count) == status
        assert guest.control.audit() == []
        assert guest.read(8) == at(8)
        assert len(list(guest.domain.grants.uses())) == 1, "the ring alone"
    assert path.read_bytes() == CONTENT


def test_one_page_may_be_in_every_segment(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        guest.offer(20, 20)
        assert guest.ask(BLKIF_OP_READ, 0, [(20, 0, 7)] * 11) == BLKIF_RSP_OKAY
        assert guest.page(20).read(0, PAGE) == at(80)


@given(
    st.binary(min_size=SIZEOF_BLKIF_X86_64_REQUEST, max_size=SIZEOF_BLKIF_X86_64_REQUEST),
    st.booleans(),
    st.sampled_from(list(WIRES.values())),
)
@settings(max_examples=1000)
def test_no_bytes_upset_the_decoder(raw: bytes, read_only: object, wire: Wire) -> None:
    disk = Disk(SECTORS, bool(read_only), can_discard=True)
    sector = wire.request.size - 96  # the sector number comes before eleven segments
    tame = bytes([raw[0] % 7, raw[1] % 13]) + raw[2:sector] + bytes(8) + raw[sector + 8 :]
    for slot in (raw, tame):
        found = decode(slot[: wire.request.size], disk, wire)
        if isinstance(found, Request):
            assert 0 <= found.start <= found.start + found.size <= SECTORS * 512
            pieces = ((0, PAGE),) * len(found.refs) if found.pieces is None else found.pieces
            assert len(pieces) == len(found.refs)
            assert sum(size for _, size in pieces) in (found.size, 0)
            assert all(0 <= o < o + size <= PAGE for o, size in pieces)
        elif isinstance(found, Indirect):
            assert 1 <= len(found.refs) <= 8
            assert 0 < found.size <= len(found.refs) * PAGE
        else:
            assert isinstance(found, Bad)
            assert found.status < 0


@pytest.mark.parametrize("jump", [33, 1 << 31, 0xFFFFFFFF])
def test_an_impossible_index_closes_the_device_and_nothing_else(path: Path, jump: int) -> None:
    with front(path) as guest:
        guest.connect()
        guest.read(0)
        page = guest.page(0)
        page.write_u32(SRING_REQ_PROD, (page.read_u32(SRING_REQ_PROD) + jump) & 0xFFFFFFFF)
        guest.domain.events.send(guest.port)
        guest.settle()
        assert guest.seen == "5"
        assert len(guest.said) == 1
        assert list(guest.domain.grants.uses()) == []
        # The frontend may come back.
        guest.show(State.CLOSED)
        assert guest.seen == "6"
        guest.show(State.INITIALISING)
        assert guest.seen == "2"
        guest.connect()
        assert guest.read(8) == at(8)


def test_an_impossible_index_before_the_backend_looks_is_no_worse(path: Path) -> None:
    with front(path) as guest:
        for ref in range(1):
            guest.offer(ref, ref)
        guest.page(0).write_u32(SRING_REQ_PROD, 1 << 31)
        guest.write("ring-ref", 0)
        guest.write("event-channel", guest.domain.events.alloc_unbound(0))
        guest.show(State.INITIALISED)
        assert guest.seen == "5"
        assert guest.vbd.ring is None


def test_an_event_storm_is_served_once(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        ring = guest.vbd.ring
        assert ring is not None
        before = ring.events
        for _ in range(1000):
            guest.domain.events.send(guest.port)
        guest.settle()
        assert ring.events - before == 1


def test_a_ring_full_is_taken_in_turns_however_many_events_come(path: Path) -> None:
    with front(path) as guest:
        guest.connect(pages=16)
        ring = guest.vbd.ring
        assert ring is not None
        for _ in range(8 * MOST_AT_ONCE):
            guest.put(255)
        guest.send()
        taken = []
        for _ in range(8):
            guest.domain.events.send(guest.port)
            before = ring.requests
            assert guest.hypervisor.run(lambda: True)
            taken.append(ring.requests - before)
        assert taken == [MOST_AT_ONCE] * 8


def test_large_requests_are_fewer_in_a_turn(path: Path) -> None:
    """Each page costs a check and a pin, so a full ring of them would be 50 ms for everybody."""
    image = SlowImage(path)
    with front(path, image=image) as guest:
        guest.connect(pages=16)
        for ref in range(100, 100 + MAX_INDIRECT_SEGMENTS):
            guest.offer(ref, ref)
        segments = [(100 + n, 0, 0) for n in range(MAX_INDIRECT_SEGMENTS)]
        ids = [guest.put_indirect(BLKIF_OP_READ, 0, segments, 20 + n) for n in range(9)]
        ids += [guest.put(BLKIF_OP_READ, 0, [(100, 0, 7)])]
        guest.send()
        ring = guest.vbd.ring
        assert ring is not None
        each = MOST_PAGES_AT_ONCE // MAX_INDIRECT_SEGMENTS
        for taken in (each, 2 * each, 10, 10):
            assert guest.hypervisor.run(lambda: True)
            assert ring.in_work == taken
        image.may_go.set()
        assert guest.answers() == dict.fromkeys(ids, BLKIF_RSP_OKAY)
        assert list(guest.ring.take(9)) == []


@pytest.mark.parametrize("start", ["closes", "breaks"])
def test_what_was_left_for_the_next_turn_goes_with_its_ring(path: Path, start: str) -> None:
    with front(path) as guest:
        guest.connect(pages=16)
        guest.offer(100, 100)
        segments = [(100, 0, 0)] * MAX_INDIRECT_SEGMENTS
        for n in range(9):
            guest.put_indirect(BLKIF_OP_READ, 0, segments, 20 + n)
        guest.send()
        assert guest.hypervisor.run(lambda: True)
        if start == "closes":
            guest.show(State.CLOSED)
            assert guest.seen == "6"
        else:
            guest.page(0).write_u32(SRING_REQ_PROD, 1 << 31)
            guest.settle(lambda: guest.vbd.ring is None)
            assert guest.seen == "5"


class SteppingImage(RawImage):
    """An image that takes a millisecond to copy what it has in the cache."""

    clock = ManualClock()

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Let the time pass, and copy."""
        self.clock.advance(1_000_000)
        return super().read_cached(views, offset)


def test_the_time_that_requests_take_is_their_frontends_in_all_turns(path: Path) -> None:
    image = SteppingImage(path, read_only=False)
    hypervisor = Hypervisor(32 << 20, image.clock)
    guest = Front(image, hypervisor=hypervisor)
    guest.connect(pages=16)
    guest.offer(20, 20)
    for _ in range(3 * MOST_AT_ONCE):
        guest.put(BLKIF_OP_READ, 0, [(20, 0, 0)])  # none begins where another ends
    spent_ns = hypervisor.scheduler.account(guest.domid).virtual_ns
    guest.answers()
    spent_ns = hypervisor.scheduler.account(guest.domid).virtual_ns - spent_ns
    assert spent_ns == 3 * MOST_AT_ONCE * 1_000_000
    guest.close()
    hypervisor.close()


def test_the_end_of_what_a_worker_does_is_at_its_frontends_expense(path: Path) -> None:
    image = SlowImage(path)
    with front(path, image=image) as guest:
        guest.connect()
        guest.offer(20, 20)
        guest.put(BLKIF_OP_READ, 8, [(20, 0, 7)])
        guest.send()
        guest.settle(lambda: guest.vbd.ring is not None and guest.vbd.ring.in_work == 1)
        account = guest.hypervisor.scheduler.account(guest.domid)
        begun_ns = account.virtual_ns
        image.may_go.set()
        assert list(guest.answers().values()) == [BLKIF_RSP_OKAY]
        assert account.virtual_ns > begun_ns


# -- G5: states in any order ----------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["state", "ring", "gone", "again"]), st.integers(0, 9))))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_states_in_any_order_survive(tmp_path: Path, changes: list[tuple[str, int]]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    with front(path) as guest:
        guest.offer(0, 0)
        port = guest.domain.events.alloc_unbound(0)
        guest.write("event-channel", port)
        guest.write("ring-ref", 0)
        for what, number in changes:
            if what == "state":
                guest.show(number)
            elif what == "ring":
                guest.write("ring-ref", number * 7)
            elif what == "gone":
                guest.store.remove(guest.paths.frontend)
                guest.settle()
            elif guest.vbd.ring is None:
                guest.write("ring-ref", 0)
                guest.write("event-channel", guest.domain.events.alloc_unbound(0))
        guest.show(State.CLOSED)
        assert guest.seen == "6"
        assert list(guest.domain.grants.uses()) == []
        guest.show(State.INITIALISING)
        guest.connect()
        assert guest.seen == "4"
        assert guest.read(8) == at(8)


def test_states_six_and_one_a_thousand_times(path: Path) -> None:
    with front(path) as guest:
        for _ in range(250):
            guest.show(1)
            guest.show(6)
        ports = len([port for port in range(1024) if guest.domain.events.channel(port)])
        guest.show(1)
        for _ in range(50):
            guest.connect()
            guest.domain.events.close(guest.port)
            guest.show(6)
            guest.show(1)
        assert len([p for p in range(1024) if guest.domain.events.channel(p)]) == ports
        assert guest.seen == "2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ring-ref", "x"),
        ("ring-ref", "-1"),
        ("ring-ref", "99"),
        ("ring-ref", "4294967296"),
        ("event-channel", ""),
        ("event-channel", "77"),
        ("protocol", "mips-abi"),
        ("ring-page-order", "5"),
        ("feature-persistent", "2"),
    ],
)
def test_a_bad_offer_is_said_and_closed(path: Path, name: str, value: str) -> None:
    with front(path) as guest:
        guest.offer(0, 0)
        guest.write("ring-ref", 0)
        guest.write("event-channel", guest.domain.events.alloc_unbound(0))
        guest.write(name, value)
        guest.show(State.INITIALISED)
        assert guest.seen == "5"
        assert len(guest.said) == 1
        assert "\n" not in guest.said[0]


def test_a_frontend_that_is_wrong_without_end_is_told_of_ten_times(path: Path) -> None:
    with front(path) as guest:
        guest.write("ring-ref", "\x1b[2J" * 500)
        for _ in range(30):
            for state in (3, 6, 1):
                guest.show(state)
        assert len(guest.said) == 10
        assert len(guest.said[0]) < 200
        assert "\x1b" not in guest.said[0]


def test_a_rewritten_ring_ref_counts_at_the_next_connection(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        guest.write("ring-ref", 300)
        guest.show(State.CONNECTED)
        assert guest.read(16) == at(16)


@pytest.mark.parametrize("last", [State.CLOSED, State.INITIALISING])
def test_a_disk_is_served_until_its_frontend_lets_go(path: Path, last: State) -> None:
    with front(path) as disk:
        disk.connect()
        released: list[str] = []
        disk.vbd.ask_to_close(lambda: released.append("now"))
        assert disk.store.read(f"{disk.paths.backend}/online") == "0"
        assert disk.seen == "5"
        assert disk.read(8) == at(8)
        assert not released
        disk.show(State.CLOSING)
        assert (disk.vbd.ring, released) == (None, [])
        disk.show(last)
        assert released == ["now"]


@pytest.mark.parametrize("wait", [State.INITIALISING, State.CLOSED])
def test_a_disk_that_no_frontend_has_is_let_go_at_once(path: Path, wait: State) -> None:
    with front(path) as disk:
        disk.show(wait)
        released: list[str] = []
        disk.vbd.ask_to_close(lambda: released.append("now"))
        assert not released, "inside the call"
        disk.settle()
        assert released == ["now"]


@pytest.mark.parametrize(
    ("transitions", "ready"),
    [(BLOCK_TRANSITIONS, State.INITIALISED), (NET_TRANSITIONS, State.CONNECTED)],
)
def test_every_transition_leads_somewhere_with_an_end(
    transitions: Transitions, ready: State
) -> None:
    """From any state, a frontend that goes away and comes back finds the backend waiting."""
    for state in transitions:
        own = state
        for seen in (State.CLOSED, State.CLOSED, State.INITIALISING):
            own = step(transitions, own, seen)[1]
        assert own is State.INIT_WAIT
        assert step(transitions, own, ready) == (Action.CONNECT, State.CONNECTED)


# -- I/O that fails, waits, or outlives its guest -------------------------------------------------


class SlowImage(RawImage):
    """An image whose reads wait until they are let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.may_go = threading.Event()

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Have nothing in the cache."""
        return False

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Wait, then read."""
        assert self.may_go.wait(20)
        super().read_into(views, offset)


def test_a_short_read_and_a_removed_image(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        os.truncate(path, 10 * 512)
        guest.offer(20, 20)
        assert guest.ask(BLKIF_OP_READ, 8, [(20, 0, 7)]) == BLKIF_RSP_ERROR
        assert guest.ask(BLKIF_OP_READ, 100, [(20, 0, 7)]) == BLKIF_RSP_ERROR
        assert guest.read(0) == at(0)
        path.unlink()
        assert guest.read(0) == at(0)


class CountingImage(RawImage):
    """An image that counts the reads that its worker makes."""

    waited = 0

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Count, and read."""
        self.waited += 1
        super().read_into(views, offset)


def test_much_that_is_cached_is_left_to_the_worker(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring full of large requests is some milliseconds of copying, in which nobody else runs."""
    monkeypatch.setattr(blkback, "MOST_CACHED_BYTES", 0)
    image = CountingImage(path, read_only=False)
    with front(path, image=image) as guest:
        guest.connect()
        guest.offer(20, 20)
        ids = [guest.put(BLKIF_OP_READ, 8, [(20, 0, 7)]) for _ in range(3)]
        assert guest.answers() == dict.fromkeys(ids, BLKIF_RSP_OKAY)
        assert image.waited == 3
        assert guest.page(20).read(0, PAGE) == at(8)


class Engine:
    """What has translated a frame, and hears what it has to forget."""

    slot = 0

    def __init__(self) -> None:
        self.forgotten: list[int] = []

    def invalidate_code(self, maddr: int, _size: int) -> None:
        """Hear it."""
        self.forgotten.append(maddr // PAGE)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", [RawImage, CountingImage])
def test_code_that_a_disk_is_read_over_is_translated_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RawImage], *, persistent: bool
) -> None:
    if kind is CountingImage:  # by the worker
        monkeypatch.setattr(blkback, "MOST_CACHED_BYTES", 0)
    with front(path, image=kind(path, read_only=False)) as guest:
        guest.connect(persistent=persistent)
        guest.offer(20, 20)
        memory, mfn, engine = guest.hypervisor.machine.memory, guest.mfns[20], Engine()
        memory.attach(engine)
        memory.mark_code(mfn, engine)
        assert guest.ask(BLKIF_OP_WRITE, 0, [(20, 0, 7)]) == BLKIF_RSP_OKAY
        assert engine.forgotten == []
        assert guest.ask(BLKIF_OP_READ, 8, [(20, 0, 0)]) == BLKIF_RSP_OKAY
        assert engine.forgotten == [mfn]
        memory.detach(engine)


class FailingImage(RawImage):
    """An image whose disk reports an error."""

    number = errno.EIO

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Have nothing in the cache."""
        return False

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fail."""
        raise OSError(self.number, "injected")

    write_from = read_into

    def flush(self) -> None:
        """Fail."""
        raise OSError(self.number, "injected")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_of_the_disk_is_an_error_of_the_request(
    path: Path, number: int, *, persistent: bool
) -> None:
    image = FailingImage(path, read_only=False)
    image.number = number
    with front(path, image=image) as guest:
        guest.connect(persistent=persistent)
        guest.offer(20, 20)
        assert guest.ask(BLKIF_OP_READ, 0, [(20, 0, 7)]) == BLKIF_RSP_ERROR
        assert guest.ask(BLKIF_OP_WRITE, 0, [(20, 0, 7)]) == BLKIF_RSP_ERROR
        assert guest.ask(BLKIF_OP_FLUSH_DISKCACHE) == BLKIF_RSP_ERROR
        assert guest.seen == "4"


@pytest.mark.parametrize("end", ["closes", "dies", "device goes"])
def test_pages_stay_until_their_io_is_done(path: Path, end: str) -> None:
    image = SlowImage(path)
    with front(path, image=image) as guest:
        guest.connect()
        guest.offer(20, 20)
        mfn = guest.mfns[20]
        refs = guest.hypervisor.machine.frames.refs
        guest.put(BLKIF_OP_READ, 8, [(20, 0, 7)])
        guest.send()
        guest.settle(lambda: guest.vbd.ring is not None and guest.vbd.ring.in_work == 1)
        assert guest.control.audit() == []
        if end == "closes":
            guest.store.write(f"{guest.paths.frontend}/state", "6")
            guest.settle(lambda: guest.vbd.ring is None)
            assert guest.seen == "4", "not before the page is free"
            image.may_go.set()
            guest.settle(lambda: guest.seen == "6")
            assert guest.page(20).read(0, PAGE) == at(8)
            assert list(guest.domain.grants.uses()) == []
        elif end == "dies":
            guest.control.destroy_domain(guest.domid)
            assert refs[mfn] == 1
            assert guest.control.audit() == []
            image.may_go.set()
            guest.store.remove(guest.paths.frontend)
            guest.settle(lambda: guest.seen == "6")
            assert refs[mfn] == 0
        else:
            image.may_go.set()
            guest.vbd.close()
            assert refs[mfn] == 1
            guest.vbd.close = lambda: None  # type: ignore[method-assign]


def test_an_outcome_is_seen_when_it_is_due(path: Path) -> None:
    with front(path, latency_ns=30_000_000) as guest:
        guest.connect()
        guest.offer(20, 20)
        clock = guest.hypervisor.machine.clock
        begun = clock.monotonic_ns()
        ids = [guest.put(BLKIF_OP_READ, 0, [(20, 0, 7)]) for _ in range(3)]
        assert list(guest.answers()) == ids
        assert clock.monotonic_ns() - begun >= 30_000_000


def test_one_timer_waits_for_outcomes_however_often_there_are_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hypervisor = Hypervisor(16 << 20)
    timers = hypervisor.machine.timers
    armed: list[int] = []
    arm = timers.arm

    def note(timer: Timer, deadline_ns: int) -> None:
        armed.append(deadline_ns)
        arm(timer, deadline_ns)

    monkeypatch.setattr(timers, "arm", note)
    worker = ImageWorker(hypervisor.link(0), frontend=1)
    collected: list[int] = []
    finished: list[int] = []
    worker.when_collected = lambda: collected.append(len(finished))
    due_ns = 3_600_000_000_000
    for n in range(10):
        worker.give([Job(lambda: None, partial(finished.append, n), due_ns)])
        assert hypervisor.run(partial(_has_more, collected, n))
    assert armed == [due_ns]
    worker.close()
    assert collected == [0] * 10 + [10]
    hypervisor.close()


def _has_more(found: Sequence[object], count: int) -> bool:
    return len(found) > count


def open_files() -> int:
    """Count the open files of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "fifo"])
def test_what_is_no_image_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "fifo":
        os.mkfifo(path)
    fds = open_files()
    with pytest.raises(ConfigError):
        RawImage(path, read_only=kind != "missing")
    assert open_files() == fds


def test_an_image_that_is_written_is_used_once(path: Path) -> None:
    writer = RawImage(path, read_only=False)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="in use"):
            RawImage(path, read_only=read_only)
    writer.close()
    readers = [RawImage(path, read_only=True) for _ in range(2)]
    with pytest.raises(ConfigError, match="in use"):
        RawImage(path, read_only=False)
    for reader in readers:
        reader.close()


def test_a_front_leaves_no_thread_behind(path: Path) -> None:
    before = threading.active_count()
    with front(path) as guest:
        guest.connect()
        guest.read(0)
        assert isinstance(guest, Front)
    assert threading.active_count() == before
