# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong below or beside a block ring costs whom it concerns, and nobody else.

Disks that fail in part, are full, shrink, or do not answer; frontends that die in the middle.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.support.block_front import Front, front
from tests.support.front_domain import PAGE
from tests.support.full_disk import files_no_larger_than
from xenlite.abi.x86_32p import (
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    GTF_permit_access,
)
from xenlite.dom0.blkif import Operation, Request
from xenlite.dom0.image import RawImage
from xenlite.dom0.transfer import MOST_PAGES, join
from xenlite.hypervisor import Hypervisor

SECTORS = 512
CONTENT = Random(5).randbytes(SECTORS * 512)
TIMES = 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make an image of 256 KiB."""
    image = tmp_path / "disk.img"
    image.write_bytes(CONTENT)
    return image


class UncachedImage(RawImage):
    """An image that has nothing in the cache."""

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Have nothing."""
        return False


class HeldImage(UncachedImage):
    """An image whose reads wait until they are let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.may_go = threading.Event()
        self.calls: list[tuple[int, int]] = []

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Wait, note what is read, and read."""
        assert self.may_go.wait(20)
        self.calls.append((offset, sum(map(len, views))))
        super().read_into(views, offset)


class BadSector(UncachedImage):
    """An image of which one sector can be neither read nor written."""

    bad = 20

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fail if the bad sector is among what is wanted."""
        self._check(views, offset)
        super().read_into(views, offset)

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Fail if the bad sector is among what is written."""
        self._check(views, offset)
        super().write_from(views, offset)

    def _check(self, views: Sequence[memoryview], offset: int) -> None:
        if offset <= self.bad * 512 < offset + sum(map(len, views)):
            raise OSError(errno.EIO, "injected")


def put_in_a_row(guest: Front, operation: int, count: int) -> list[int]:
    """Put page-sized requests that follow each other on the disk, from its start on."""
    for page in range(20, 20 + count):
        guest.offer(page, page)
    return [guest.put(operation, 8 * n, [(20 + n, 0, 7)]) for n in range(count)]


# -- joined requests ------------------------------------------------------------------------------


def test_requests_in_a_row_are_read_in_one_call(path: Path) -> None:
    image = HeldImage(path)
    image.may_go.set()
    with front(path, image=image) as guest:
        guest.connect()
        ids = put_in_a_row(guest, BLKIF_OP_READ, 32)
        assert guest.answers() == dict.fromkeys(ids, BLKIF_RSP_OKAY)
        assert image.calls == [(0, 32 * PAGE)]
        for n in range(32):
            assert guest.page(20 + n).read(0, PAGE) == CONTENT[n * PAGE : (n + 1) * PAGE]


@pytest.mark.parametrize("operation", [BLKIF_OP_READ, BLKIF_OP_WRITE])
@pytest.mark.parametrize("persistent", [False, True])
def test_of_joined_requests_the_one_with_a_bad_grant_fails(
    path: Path, operation: int, *, persistent: bool
) -> None:
    with front(path) as guest:
        guest.connect(persistent=persistent)
        for _ in range(2):
            ids = put_in_a_row(guest, operation, 8)
            guest.offer(23, 23, flags=GTF_permit_access ^ 3)  # of another type
            expected = dict.fromkeys(ids, BLKIF_RSP_OKAY)
            expected[ids[3]] = BLKIF_RSP_ERROR
            assert guest.answers() == expected
            assert guest.control.audit() == []


def test_of_indirect_requests_the_one_whose_segments_are_not_granted_fails(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        for page in range(20, 40):
            guest.offer(page, page)
        ids = []
        for n in range(5):
            segments = [(20 + 4 * n + page, 0, 7) for page in range(4)]
            ids.append(guest.put_indirect(BLKIF_OP_READ, 32 * n, segments, 100 + n))
        guest.offer(102, 102, flags=GTF_permit_access ^ 3)
        expected = dict.fromkeys(ids, BLKIF_RSP_OKAY)
        expected[ids[2]] = BLKIF_RSP_ERROR
        assert guest.answers() == expected
        for page in (20, 27, 32, 39):
            number = page - 20
            assert guest.page(page).read(0, PAGE) == CONTENT[number * PAGE : (number + 1) * PAGE]
        assert guest.page(28).read(0, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("operation", [BLKIF_OP_READ, BLKIF_OP_WRITE])
def test_of_joined_requests_the_one_on_a_bad_sector_fails(path: Path, operation: int) -> None:
    with front(path, image=BadSector(path, read_only=False)) as guest:
        guest.connect()
        ids = put_in_a_row(guest, operation, 8)
        for n in range(8):
            guest.page(20 + n).write(0, bytes([n]) * PAGE)
        expected = dict.fromkeys(ids, BLKIF_RSP_OKAY)
        expected[ids[BadSector.bad // 8]] = BLKIF_RSP_ERROR
        assert guest.answers() == expected
    if operation == BLKIF_OP_WRITE:
        written = path.read_bytes()
        assert written[7 * PAGE : 8 * PAGE] == b"\x07" * PAGE
        assert written[2 * PAGE : 3 * PAGE] == CONTENT[2 * PAGE : 3 * PAGE]


def test_only_what_follows_each_other_is_joined() -> None:
    read, write = Operation.READ, Operation.WRITE
    asked = [
        Request(1, read, 0, PAGE, (1,)),
        Request(2, read, PAGE, 512, (2,), ((0, 512),)),
        Request(3, read, PAGE + 512, PAGE, (3,)),
        Request(4, write, 2 * PAGE + 512, PAGE, (4,)),
        Request(5, write, 3 * PAGE + 512, PAGE, (5,)),
        Request(6, Operation.FLUSH, 0, 0),
        Request(7, Operation.FLUSH, 0, 0),
        Request(8, read, 0, PAGE, (6,)),
        Request(9, read, 0, PAGE, (7,)),
        Request(10, read, PAGE, MOST_PAGES * PAGE, tuple(range(MOST_PAGES))),
    ]
    transfers = join(asked)
    ids = [[request.id for request in transfer.requests] for transfer in transfers]
    assert ids == [[1, 2, 3], [4, 5], [6], [7], [8], [9], [10]]
    assert transfers[0].refs == [1, 2, 3]
    pages = [memoryview(bytearray(PAGE)) for _ in range(3)]
    assert [len(view) for view in transfers[0].views(pages)] == [PAGE, 512, PAGE]


# -- images that change, or are full --------------------------------------------------------------


@pytest.mark.parametrize("is_cached", [True, False])
def test_what_an_image_has_lost_cannot_be_read_and_the_rest_can(
    path: Path, *, is_cached: bool
) -> None:
    """Truncated, then removed, while requests in a row go on both sides of its new end."""
    image = (RawImage if is_cached else UncachedImage)(path, read_only=False)
    with front(path, image=image) as guest:
        guest.connect()
        with path.open("r+b") as file:
            file.truncate(5 * PAGE)
        path.unlink()
        ids = put_in_a_row(guest, BLKIF_OP_READ, 8)
        statuses = guest.answers()
        assert [statuses[one] for one in ids] == [BLKIF_RSP_OKAY] * 5 + [BLKIF_RSP_ERROR] * 3
        assert guest.page(24).read(0, PAGE) == CONTENT[4 * PAGE : 5 * PAGE]
        assert guest.seen == "4"


def test_a_write_that_the_host_cuts_short_fails_and_what_fits_is_written(path: Path) -> None:
    with front(path) as guest:
        guest.connect()
        ids = put_in_a_row(guest, BLKIF_OP_WRITE, 8)
        with files_no_larger_than(3 * PAGE + 512):
            statuses = guest.answers()
        assert [statuses[one] for one in ids] == [BLKIF_RSP_OKAY] * 3 + [BLKIF_RSP_ERROR] * 5
        assert guest.ask(BLKIF_OP_WRITE, 56, [(20, 0, 7)]) == BLKIF_RSP_OKAY
    assert path.read_bytes()[: 3 * PAGE] == bytes(3 * PAGE)


# -- backends that do not answer ------------------------------------------------------------------


@contextmanager
def two_disks(first: RawImage, second: RawImage, latency_ns: int = 0) -> Iterator[list[Front]]:
    """Make two domains with a disk each, of which the first is as slow as given."""
    hypervisor = Hypervisor(64 << 20)
    fronts = [
        Front(first, hypervisor=hypervisor, latency_ns=latency_ns),
        Front(second, hypervisor=hypervisor),
    ]
    for guest in fronts:
        guest.connect()
        guest.offer(20, 20)
    yield fronts
    for guest in fronts:
        guest.close()
    hypervisor.close()


def test_a_disk_that_does_not_answer_stops_no_other(path: Path, tmp_path: Path) -> None:
    (tmp_path / "second.img").write_bytes(CONTENT)
    image = HeldImage(path)
    with two_disks(image, RawImage(tmp_path / "second.img", read_only=False)) as (slow, other):
        slow.put(BLKIF_OP_READ, 8, [(20, 0, 7)])
        slow.send()
        for n in range(200):
            operation = BLKIF_OP_WRITE if n % 2 else BLKIF_OP_READ
            assert other.ask(operation, 8 * (n % 50), [(20, 0, 7)]) == BLKIF_RSP_OKAY
        assert slow.vbd.ring is not None
        assert slow.vbd.ring.in_work == 1
        assert slow.ring.take(9) == []
        image.may_go.set()
        assert list(slow.answers().values()) == [BLKIF_RSP_OKAY]


def test_a_disk_that_is_late_makes_no_other_late(path: Path, tmp_path: Path) -> None:
    """Seconds that nobody waits for: the other's requests are answered before they are over."""
    (tmp_path / "second.img").write_bytes(CONTENT)
    second = RawImage(tmp_path / "second.img", read_only=False)
    image = RawImage(path, read_only=False)
    with two_disks(image, second, latency_ns=3_600_000_000_000) as (slow, other):
        slow.put(BLKIF_OP_READ, 8, [(20, 0, 7)])
        slow.send()
        for n in range(50):
            assert other.ask(BLKIF_OP_WRITE, 8 * n, [(20, 0, 7)]) == BLKIF_RSP_OKAY
        assert slow.vbd.ring is not None
        assert slow.vbd.ring.in_work == 1
        assert slow.ring.take(9) == []


class LeftImage(UncachedImage):
    """An image whose writes wait until somebody waits for its worker."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.has_begun, self.may_go = threading.Event(), threading.Event()
        self.writes = 0

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Count, wait, and write."""
        self.writes += 1
        self.has_begun.set()
        assert self.may_go.wait(20)
        super().write_from(views, offset)


@pytest.mark.parametrize("persistent", [False, True])
def test_whoever_takes_a_disk_away_waits_for_one_request_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, persistent: bool
) -> None:
    """A guest that ends with a ring full of work must not hold up the others for all of it."""
    image = LeftImage(path)
    with front(path, image=image) as guest:
        guest.connect(persistent=persistent)
        guest.offer(20, 20)
        for _ in range(20):
            guest.put(BLKIF_OP_WRITE, 8, [(20, 0, 7)])
        guest.send()
        guest.settle(in_work(guest))
        assert image.has_begun.wait(20)
        join = threading.Thread.join

        def let_go(thread: threading.Thread, timeout: float | None = None) -> None:
            image.may_go.set()
            join(thread, timeout)

        monkeypatch.setattr(threading.Thread, "join", let_go)
        guest.vbd.close()
        assert image.writes == 1
        monkeypatch.setattr(guest.vbd, "close", lambda: None)


# -- frontends that die ---------------------------------------------------------------------------


def test_frontends_that_die_in_the_middle_of_their_io_leave_nothing(path: Path) -> None:
    """The image has nothing in the cache, so each dies while a worker is at its pages."""
    image = UncachedImage(path, read_only=False)
    hypervisor = Hypervisor(32 << 20)
    threads, free = threading.active_count(), free_frames(hypervisor)
    for n in range(TIMES):
        guest = Front(image, hypervisor=hypervisor, pages=64)
        guest.connect(persistent=n % 3 == 0)
        put_in_a_row(guest, BLKIF_OP_READ if n % 4 else BLKIF_OP_WRITE, 1 + n % 8)
        guest.send()
        if n % 2:
            guest.settle(in_work(guest))
        guest.control.destroy_domain(guest.domid)
        guest.vbd.close()
        assert guest.said == []
        if n % 100 == 99:
            assert guest.control.audit() == []
        guest.settle(lambda: True)
        assert free_frames(hypervisor) == free, n
    assert threading.active_count() == threads
    assert list(hypervisor.domains[0].maptrack.pins()) == []
    assert not any(map(hypervisor.domains[0].events.channel, range(1, 1024)))
    image.close()
    hypervisor.close()


def in_work(guest: Front) -> Callable[[], bool]:
    """Tell, by and by, that the backend has taken what is in the ring."""
    return lambda: guest.vbd.ring is None or guest.vbd.ring.requests > 0


def free_frames(hypervisor: Hypervisor) -> int:
    """Count the frames that nobody has."""
    return hypervisor.machine.frames.refs.count(0)
