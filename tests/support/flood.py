# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that flood a network, and guests that mind their own business beside them.

What each costs is counted by a clock of work done (``WorkClock``), and by what the scheduler was
told to charge; so nothing here is decided by how busy the host is.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.guest import START, BootedGuest, add_guest
from tests.support.guests import SMP, TIME, TIMER_EVENTS
from tests.support.work_clock import WorkClock
from tools import bench_blocks, bench_front
from tools.bench_packets_run import BRIDGE, SMALL, Station, template
from xenlite.abi.x86_32p import BLKIF_OP_READ
from xenlite.dom0.blkback import BlockRing, Offer
from xenlite.dom0.blkif import SECTOR, Disk
from xenlite.dom0.ethernet import BROADCAST
from xenlite.dom0.image import ImageWorker, RawImage
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.networks import Networks
from xenlite.toolstack.poller import Poller

KERNEL = SMP + bench_front.START + Path(__file__).with_name("flood.s").read_text()
DEPTH = 32
EVERYBODY = 0  # no station's number
FOR_EVER = 0x7FFFFFFF
TICK_NS = 10_000_000
TICKER = (
    SMP
    + TIME
    + START
    + TIMER_EVENTS
    + f"""
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
again:
    add eax, {TICK_NS}
    adc edx, 0
    mov [due], eax
    mov [due + 4], edx
    SET_TIMER
    SCHED_OP block
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov eax, [due]
    mov edx, [due + 4]
    jmp again
.data
due: .space 8
.text
"""
)
SPINNER = "spin: inc dword ptr [count]\njmp spin\n.data\ncount: .long 0\n.text\n"


@dataclass(frozen=True, slots=True)
class DiskUser:
    """A guest that is busy with its disk, and that disk's backend."""

    guest: BootedGuest
    ring: BlockRing


class Machine:
    """One machine with a network; domains are added, and then run together."""

    def __init__(self, undo: ExitStack, memory_mb: int = 80) -> None:
        self.clock = WorkClock()
        self.hypervisor = Hypervisor(memory_mb << 20, self.clock)
        undo.callback(self.hypervisor.close)
        self.link = self.hypervisor.link(0)
        self._undo = undo
        poller = Poller(self.link)
        undo.callback(poller.close)
        networks = Networks(self.link, poller, self.clock.wall_ns, print)
        undo.callback(networks.close)
        self.bridge = networks.network(BRIDGE).bridge
        self.charged: Counter[int] = Counter()
        self._listen_to_charges()

    def _listen_to_charges(self) -> None:
        scheduler = self.hypervisor.scheduler
        charge = scheduler.charge

        def note(domid: int, spent_ns: int, now_ns: int) -> None:
            self.charged[domid] += spent_ns
            charge(domid, spent_ns, now_ns)

        # As every charge comes by; it is handed on.
        scheduler.charge = note  # type: ignore[method-assign]

    def sender(self, number: int, to: int, size: int = SMALL) -> Station:
        """Add a guest that sends to another station, or to EVERYBODY, once it may begin."""
        headers = template(number, number if to == EVERYBODY else to, size)
        if to == EVERYBODY:
            headers = BROADCAST + headers[len(BROADCAST) :]
        return self._station(number, headers, {"SENDS": 1, "READS": 1, "SIZE": size})

    def receiver(self, number: int, *, reads: bool) -> Station:
        """Add a guest that takes what it is sent, or lets it lie, once it may begin."""
        return self._station(number, b"", {"SENDS": 0, "READS": int(reads), "SIZE": SMALL})

    def _station(self, number: int, headers: bytes, defines: dict[str, int]) -> Station:
        return Station(self.hypervisor, self.bridge, number, headers, defines, self._undo, KERNEL)

    def disk_user(self, image: Path, operation: int = BLKIF_OP_READ) -> DiskUser:
        """Add a guest that reads or writes a disk without end, DEPTH pages at a time."""
        defines = {
            "DEPTH": DEPTH,
            "SEGMENTS": 1,
            "COUNT": FOR_EVER,
            "OPERATION": operation,
            "SPAN": image.stat().st_size // bench_blocks.PAGE,
            "RANDOM": 0,
            "INDIRECT": 0,
            "CHECK": 0,
        }
        guest = self._add(bench_blocks.KERNEL, defines)
        guest.domain.grants.grow(2)
        self._offer(guest, bench_blocks.RING_REF, "ring", 0)
        for page in range(DEPTH):
            self._offer(guest, bench_blocks.BUFFER_REF + page, "data", page)
        guest.control.unpause(guest.domid)
        assert guest.run(20, lambda: guest.word("port") != 0), guest.crash
        guest.run(0.01, lambda: False)  # it polls by now
        disk = RawImage(image, read_only=False)
        self._undo.callback(disk.close)
        worker = ImageWorker(self.link, frontend=guest.domid)
        self._undo.callback(worker.close)
        ring = BlockRing(
            self.link,
            Offer(guest.domid, (bench_blocks.RING_REF,), guest.word("port"), False),
            Disk(image.stat().st_size // SECTOR),
            disk,
            worker,
            broken=_broken,
        )
        self._undo.callback(ring.close, lambda: None)
        ring.start()
        self.link.notify(ring.port)
        return DiskUser(guest, ring)

    def guest(self, source: str) -> BootedGuest:
        """Add a guest of some lines, and let it run."""
        guest = self._add(source, {})
        guest.control.unpause(guest.domid)
        return guest

    def run(self, for_ns: int) -> int:
        """Let all run for so long; return how long it was. ``charged`` tells who paid for it."""
        self.charged.clear()
        begun_ns = self.clock.monotonic_ns()
        self.hypervisor.run(lambda: False, begun_ns + for_ns)
        assert not self.hypervisor.crashes
        return self.clock.monotonic_ns() - begun_ns

    def _add(self, source: str, defines: dict[str, int]) -> BootedGuest:
        name = f"guest{len(self.hypervisor.domains)}"
        return add_guest(
            self.hypervisor, source, self._undo, name=name, memory_mb=8, defines=defines
        )

    def _offer(self, guest: BootedGuest, ref: int, label: str, page: int) -> None:
        vaddr = guest.symbols[label] + page * bench_blocks.PAGE
        maddr = guest.control.translate(guest.domid, 0, vaddr)
        assert maddr is not None, hex(vaddr)
        guest.control.seed_grant(guest.domid, ref, maddr // bench_blocks.PAGE, 0)


def _broken(error: PeerError) -> None:
    raise error
