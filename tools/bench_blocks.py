# SPDX-License-Identifier: GPL-2.0-or-later
"""Time block requests from a guest's frontend to an image: one part of ``tools/bench rings``.

The image is in the page cache, so this is the price of the way, not of a disk. *Floor*: preadv or
pwritev of the same bytes into the same scattered frames, in the same run. Times are the least of
several rounds, of both: what else the host does only ever adds. They are the wall's, or what all
threads have had of a processor, which says more on a busy host. Every configuration runs once more
with both ends adding up every word they see; the sums must agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter_ns
from typing import Final

from tests.support.guest import BootedGuest, add_guest
from tools.bench_front import front
from xenlite.abi.x86_32p import BLKIF_OP_READ, BLKIF_OP_WRITE
from xenlite.dom0.blkback import BlockRing, Offer
from xenlite.dom0.blkif import SECTOR, Disk
from xenlite.dom0.image import ImageWorker, RawImage
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor

ClockNs = Callable[[], int]

KERNEL: Final = front(Path(__file__).with_name("bench_blocks.s"))
PAGE: Final = 4096
IMAGE_BYTES: Final = 64 << 20
RING_REF, BUFFER_REF, TABLE_REF = 8, 16, 480
CHECKED: Final = 48  # requests whose every word is added up
_WORD: Final = 0xFFFFFFFF
SMALL, LARGE = 1, 11  # segments: 4 KiB and 44 KiB
DEEP: Final = 32
REACH_OF_FLOOR: Final = 0.25
REACH_PER_S: Final = {DEEP: 60_000, 1: 6_000}
REACH_PER_EVENT: Final = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One way to use a ring; ``segments`` of 4 KiB each."""

    operation: int
    segments: int
    depth: int
    random: bool = False
    persistent: bool = False
    indirect: bool = False

    @property
    def about(self) -> str:
        """Describe it in a line."""
        words = [
            "read" if self.operation == BLKIF_OP_READ else "write",
            f"{4 * self.segments} KiB",
            "random" if self.random else "sequential",
            f"depth {self.depth}",
            "persistent" if self.persistent else "",
            "indirect" if self.indirect else "",
        ]
        return " ".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class Result:
    """What a case reached: the least of the rounds; requests per event each way."""

    case: Case
    about: str
    requests_per_s: float
    mb_per_s: float
    floor_mb_per_s: float
    of_floor: float
    requests_per_event: float
    requests_per_notification: float
    missed: tuple[str, ...]


CASES: Final = tuple(
    Case(operation, segments, depth, random, persistent, indirect)
    for operation in (BLKIF_OP_READ, BLKIF_OP_WRITE)
    for segments in (SMALL, LARGE)
    for depth in (1, DEEP)
    for random in (False, True)
    for persistent in (False, True)
    for indirect in (False, True)
)


class Run:
    """One guest with one ring over one image."""

    def __init__(
        self, case: Case, image: Path, count: int, undo: ExitStack, *, check: bool
    ) -> None:
        self.case = case
        self.count = count
        self.hypervisor = Hypervisor(48 << 20)
        undo.callback(self.hypervisor.close)
        self.span = IMAGE_BYTES // (case.segments * PAGE)
        defines = {
            "DEPTH": case.depth,
            "SEGMENTS": case.segments,
            "COUNT": count,
            "OPERATION": case.operation,
            "SPAN": self.span,
            "RANDOM": int(case.random),
            "INDIRECT": int(case.indirect),
            "CHECK": int(check),
        }
        guest = add_guest(self.hypervisor, KERNEL, undo, memory_mb=8, defines=defines)
        self.guest: BootedGuest = guest
        guest.domain.grants.grow(2)
        self._offer(RING_REF, "ring", 0)
        for page in range(case.depth * case.segments):
            self._offer(BUFFER_REF + page, "data", page)
        for page in range(case.depth):
            self._offer(TABLE_REF + page, "tables", page)
        guest.control.unpause(guest.domid)
        assert guest.run(20, lambda: guest.word("port") != 0), guest.crash
        guest.run(0.01, lambda: False)  # it polls by now
        self._image = RawImage(image, read_only=False)
        undo.callback(self._image.close)
        link = self.hypervisor.link(0)
        self._worker = ImageWorker(link, guest.domid)
        undo.callback(self._worker.close)
        self.ring = BlockRing(
            link,
            Offer(guest.domid, (RING_REF,), guest.word("port"), case.persistent),
            Disk(IMAGE_BYTES // SECTOR),
            self._image,
            self._worker,
            broken=_broken,
        )
        undo.callback(self.ring.close, lambda: None)
        self.ring.start()

    def time_ns(self, clock_ns: ClockNs = perf_counter_ns) -> int:
        """Let the guest do all its requests."""
        begun = clock_ns()
        self.hypervisor.link(0).notify(self.ring.port)
        finished = self.guest.run(120)
        spent = clock_ns() - begun
        assert finished, "the guest did not finish"
        assert self.guest.reason == 1, (self.guest.reason, self.guest.crash)
        return spent

    def floor_ns(self, clock_ns: ClockNs = perf_counter_ns) -> int:
        """Do the same I/O on the same frames, and nothing else."""
        case, size = self.case, self.case.segments * PAGE
        memory = self.hypervisor.machine.memory
        pages = [self._maddr("data", n) for n in range(case.depth * case.segments)]
        views = [memory.m8[maddr : maddr + PAGE] for maddr in pages]
        each = [views[n : n + case.segments] for n in range(0, len(views), case.segments)]
        random = Random(1)
        where = [
            (random.randrange(self.span) if case.random else n % self.span) * size
            for n in range(self.count)
        ]
        do = self._image.read_into if case.operation == BLKIF_OP_READ else self._image.write_from
        begun = clock_ns()
        for n, offset in enumerate(where):
            do(each[n % case.depth], offset)
        return clock_ns() - begun

    def _maddr(self, label: str, page: int) -> int:
        vaddr = self.guest.symbols[label] + page * PAGE
        maddr = self.guest.control.translate(self.guest.domid, 0, vaddr)
        assert maddr is not None, hex(vaddr)
        return maddr

    def _offer(self, ref: int, label: str, page: int) -> None:
        self.guest.control.seed_grant(self.guest.domid, ref, self._maddr(label, page) >> 12, 0)


def places(case: Case, span: int, count: int) -> list[int]:
    """Return where on the disk the guest's requests are, as its own code chooses."""
    if not case.random:
        return [n % span for n in range(count)]
    found, seed = [], 12345
    for _ in range(count):
        seed = (seed * 1664525 + 1013904223) & _WORD
        found.append(seed * span >> 32)
    return found


def add_up(total: int, data: bytes) -> int:
    """Add words up as the guest does: the order counts."""
    for word in memoryview(data).cast("I"):
        total = (total + word) & _WORD
        total = (total << 1 | total >> 31) & _WORD
    return total


def check(case: Case, image: Path, count: int) -> None:
    """Run a case with both ends adding up what they see; AssertionError where they differ."""
    size = case.segments * PAGE
    with ExitStack() as undo:
        made = Run(case, image, count, undo, check=True)
        made.time_ns()
        seen = made.guest.word("sum")
        where = places(case, made.span, count)
    total = 0
    with image.open("rb") as file:
        if case.operation == BLKIF_OP_WRITE:
            assert len(set(where)) == len(where), "a place is written twice"
        for place in where:
            file.seek(place * size)
            total = add_up(total, file.read(size))
    assert total == seen, f"{case.about}: {total:#x} on the host, {seen:#x} in the guest"


def measure(case: Case, image: Path, rounds: int, scale: float, clock_ns: ClockNs) -> Result:
    """Time a case."""
    base = 12_000 if case.depth == DEEP else 3_000
    count = max(64, int(base * scale) // (3 if case.segments == LARGE else 1))
    size = case.segments * PAGE
    times, floors, events, notifications = [], [], 0, 0
    for _ in range(rounds):
        with ExitStack() as undo:
            made = Run(case, image, count, undo, check=False)
            floors.append(made.floor_ns(clock_ns))
            times.append(made.time_ns(clock_ns))
            events, notifications = made.ring.events, made.ring.notifications
    spent, floor = min(times), min(floors)
    per_s, of_floor = count * 1e9 / spent, floor / spent
    per_event, per_notification = count / max(events, 1), count / max(notifications, 1)
    missed = []
    if case.segments == LARGE and case.depth == DEEP and case.operation == BLKIF_OP_READ:
        missed += ["floor"] if of_floor < REACH_OF_FLOOR else []
    if case.segments == SMALL and per_s < REACH_PER_S[case.depth]:
        missed.append("requests")
    if case.depth == DEEP and min(per_event, per_notification) < REACH_PER_EVENT:
        missed.append("events")
    return Result(
        case,
        case.about,
        per_s,
        count * size * 1e3 / spent,
        count * size * 1e3 / floor,
        of_floor,
        per_event,
        per_notification,
        tuple(missed),
    )


def run(words: Sequence[str], rounds: int, scale: float, clock_ns: ClockNs) -> list[Result]:
    """Check and time the cases that have all of the words."""
    chosen = [case for case in CASES if all(word in case.about for word in words)]
    results = []
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "disk.img"
        image.write_bytes(Random(7).randbytes(IMAGE_BYTES))
        for case in chosen:
            check(case, image, CHECKED)
            results.append(measure(case, image, rounds, scale, clock_ns))
    return results


def table(results: Sequence[Result]) -> str:
    """Lay the results out; * marks a bar that is missed, and the last column says which."""
    lines = [
        f"{'block requests':52} {'req/s':>8} {'MB/s':>7} {'floor':>7} {'of it':>6}"
        f" {'per event':>10} {'per answer':>10}"
    ]
    lines += [
        f"{one.about:52} {one.requests_per_s:8.0f} {one.mb_per_s:7.0f} {one.floor_mb_per_s:7.0f}"
        f" {one.of_floor:6.2f} {one.requests_per_event:10.1f}"
        f" {one.requests_per_notification:10.1f}"
        f" {'* ' + ', '.join(one.missed) if one.missed else ''}".rstrip()
        for one in results
    ]
    return "\n".join(lines)


def _broken(error: PeerError) -> None:
    raise error
