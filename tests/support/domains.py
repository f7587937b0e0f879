# SPDX-License-Identifier: GPL-2.0-or-later
"""Real domains without a running guest: the hypervisor's own parts, driven by the test.

Each guest starts as Xen's builder leaves one: its memory mapped at ``BASE`` from PFN 0, the tables
in the last pages and mapped read-only, an L3 pinned and in CR3. Requests go through the hypercall
handlers and lie in the guest's own mapped memory, in the pages ``LISTS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from struct import Struct

from tests.support.model_tlb import ModelTlb
from xenlite.abi.x86_32p import DOMID_SELF, MMUEXT_NEW_BASEPTR, MMUEXT_UNPIN_TABLE
from xenlite.core.assembly import assemble, take_apart
from xenlite.core.audit import audit
from xenlite.core.domain import Domain
from xenlite.core.hole import M2pWindow
from xenlite.core.paging import WORK_BUDGET, Preempted
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.hypercalls.memory import MemoryCalls
from xenlite.hypercalls.mmu import MmuCalls
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.clock import ManualClock
from xenlite.machine.frames import FrameTable, FrameType
from xenlite.machine.machine import Machine
from xenlite.machine.memory import MachineMemory
from xenlite.machine.processor import Engine, NullEngine
from xenlite.machine.x86_32p import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US

MEGABYTE = 1 << 20
PAGE = 4096
BASE = 0xC0000000
PAGES = 1024  # of each guest: 4 MB, two L1 tables
L3_PFN, L2_PFN, L1_PFNS = PAGES - 4, PAGES - 3, (PAGES - 2, PAGES - 1)
LISTS = 2  # PFN of the first of the pages where a test keeps its request lists
LIST_PAGES = 6
FREE_PFN = 16  # PFNs from here to the tables are plain data
KERNEL = PTE_P | PTE_RW | PTE_A | PTE_NX
READ_ONLY = PTE_P | PTE_A | PTE_NX
TABLE = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
_UPDATE = Struct("<QQ")
_OPERATION = Struct("<III")


def entry(mfn: int, flags: int) -> int:
    """Make a page-table entry."""
    return mfn << 12 | flags


class Guest:
    """One domain and the pages it was given."""

    def __init__(self, world: World, domain: Domain, engine: ModelTlb) -> None:
        self.world = world
        self.domain = domain
        self.engine = engine
        self.mfns = world.machine.frames.allocate(domain.domid, PAGES)
        self.mmu = MmuCalls(domain)
        self.memory = MemoryCalls(domain)
        memory, m2p = world.machine.memory, world.machine.frames.m2p
        tables = {L3_PFN, L2_PFN, *L1_PFNS}
        for pfn, mfn in enumerate(self.mfns):
            m2p[mfn] = pfn
            flags = READ_ONLY if pfn in tables else KERNEL
            memory.m64[self.mfns[L1_PFNS[pfn >> 9]] * 512 + (pfn & 511)] = entry(mfn, flags)
        for n, pfn in enumerate(L1_PFNS):
            memory.m64[self.mfns[L2_PFN] * 512 + n] = entry(self.mfns[pfn], TABLE)
        memory.m64[self.mfns[L3_PFN] * 512 + 3] = entry(self.mfns[L2_PFN], TABLE)
        paging = domain.paging
        while True:
            paging.work_left = WORK_BUDGET
            try:
                paging.pin(self.mfns[L3_PFN], FrameType.L3)
                break
            except Preempted:
                continue
        vcpu = domain.current
        paging.take_baseptr(self.mfns[L3_PFN])
        vcpu.cr3_mfn = self.mfns[L3_PFN]
        engine.load_cr3(self.mfns[L3_PFN] << 12)
        vcpu.state = VcpuState.RUNNABLE
        domain.paused = False

    # -- where things are ---------------------------------------------------------------------

    @staticmethod
    def vaddr(pfn: int) -> int:
        """Return where a page is mapped at first."""
        return BASE + pfn * PAGE

    def slot(self, pfn: int) -> int:
        """Return the machine address of the entry that maps a page at first."""
        return self.mfns[L1_PFNS[pfn >> 9]] * PAGE + (pfn & 511) * 8

    def read_slot(self, maddr: int) -> int:
        """Read one page-table entry."""
        return self.world.machine.memory.m64[maddr >> 3]

    # -- calls --------------------------------------------------------------------------------

    def call(self, handler: Handler, *arguments: int) -> int:
        """Make one hypercall to its end, restarts and deferred work included."""
        a, b, c, d, e = (*arguments, 0, 0, 0, 0, 0)[:5]
        while True:
            try:
                result = handler(a, b, c, d, e)
            except Refused as refused:
                self.settle()
                return -refused.errno
            except Restart as restart:
                a, b, c, d, e = restart.arguments
                self.settle()
                continue
            self.settle()
            assert result is not None
            return result

    def settle(self) -> None:
        """Do what the run loop does before it enters the guest again."""
        paging = self.domain.paging
        while not paging.drain():
            paging.work_left = WORK_BUDGET

    def place(self, data: bytes) -> int:
        """Put a request list where the guest keeps them; return its address."""
        assert len(data) <= LIST_PAGES * PAGE
        self.domain.guest_memory.write(self.vaddr(LISTS), data)
        return self.vaddr(LISTS)

    def mmu_update(self, *updates: tuple[int, int], foreign: int = DOMID_SELF) -> int:
        """Apply (machine address | command, value) pairs."""
        at = self.place(b"".join(_UPDATE.pack(*update) for update in updates))
        return self.call(self.mmu.mmu_update, at, len(updates), 0, foreign)

    def mmuext(self, *operations: tuple[int, int, int], foreign: int = DOMID_SELF) -> int:
        """Apply (command, arg1, arg2) operations."""
        at = self.place(b"".join(_OPERATION.pack(*operation) for operation in operations))
        return self.call(self.mmu.mmuext_op, at, len(operations), 0, foreign)

    def update_va(self, vaddr: int, new: int, flags: int = 0) -> int:
        """Replace the entry that maps an address."""
        low, high = new & 0xFFFFFFFF, new >> 32
        return self.call(self.mmu.update_va_mapping, vaddr, low, high, flags)

    def memory_op(self, command: int, argument: bytes | int) -> int:
        """Ask for or about memory; the structure is placed as a list is, and can be read there."""
        if isinstance(argument, bytes):
            argument = self.place(argument)
        return self.call(self.memory.memory_op, command, argument)

    # -- shorthands ---------------------------------------------------------------------------

    def remap(self, pfn: int, flags: int) -> int:
        """Map a page where it was at first, with other rights; 0 removes it."""
        return self.update_va(self.vaddr(pfn), entry(self.mfns[pfn], flags) if flags else 0)

    def fill(self, pfn: int, entries: dict[int, int] | Sequence[int]) -> int:
        """Write a future table into a page that is mapped writable; return its mfn."""
        items = entries.items() if isinstance(entries, dict) else enumerate(entries)
        page = bytearray(PAGE)
        for index, value in items:
            page[index * 8 : index * 8 + 8] = value.to_bytes(8, "little")
        self.domain.guest_memory.write(self.vaddr(pfn), bytes(page))
        return self.mfns[pfn]

    def make_table(self, pfn: int, entries: dict[int, int] | Sequence[int]) -> int:
        """Write a future table and take away the guest's right to write it."""
        mfn = self.fill(pfn, entries)
        assert self.remap(pfn, READ_ONLY) == 0
        return mfn

    def leave(self) -> None:
        """Unpin and unmap as much as a guest can: its first L3 stays in CR3."""
        self.mmuext((MMUEXT_UNPIN_TABLE, self.mfns[L3_PFN], 0))
        self.mmuext((MMUEXT_NEW_BASEPTR, self.mfns[L3_PFN], 0))


class World:
    """One machine with Dom0 and guests in it."""

    def __init__(self, megabytes: int = 16) -> None:
        memory = MachineMemory(megabytes * MEGABYTE)
        self.machine = Machine(memory, FrameTable(memory), ManualClock())
        self.m2p = M2pWindow(self.machine)
        self.peers: dict[int, Domain] = {}
        self.guests: dict[int, Guest] = {}
        self.dom0 = self._assemble(0, NullEngine(), max_pages=0)

    def add(
        self, domid: int | None = None, *, max_pages: int = PAGES + 64, max_vcpus: int = 1
    ) -> Guest:
        """Make a guest of 4 MB on its boot page tables; only its first vCPU is up."""
        if domid is None:
            domid = max(self.peers) + 1
        engine = ModelTlb(self.machine.memory)
        domain = self._assemble(domid, engine, max_pages=max_pages, max_vcpus=max_vcpus)
        guest = Guest(self, domain, engine)
        self.guests[domid] = guest
        return guest

    def remove(self, guest: Guest) -> None:
        """Destroy a domain at once, whatever it is doing."""
        del self.guests[guest.domain.domid]
        take_apart(guest.domain)
        guest.engine.close()

    def audit(self) -> list[str]:
        """Recompute everything."""
        return audit(self.machine, self.peers.values())

    def snapshot(self) -> tuple[object, ...]:
        """Return all that a refused request may not change."""
        frames, memory = self.machine.frames, self.machine.memory
        return (
            bytes(frames.kind),
            list(frames.type_count),
            list(frames.refs),
            bytes(frames.allocated),
            frames.owner.tobytes(),
            set(frames.pinned),
            bytes(memory.m8),
        )

    def close(self) -> None:
        """Destroy all guests and give the memory back."""
        for guest in list(self.guests.values()):
            self.remove(guest)
        take_apart(self.dom0)
        self.machine.frames.close()
        self.machine.memory.close()

    def _assemble(
        self, domid: int, engine: Engine, *, max_pages: int, max_vcpus: int = 1
    ) -> Domain:
        return assemble(
            self.machine,
            self.m2p,
            self.peers,
            engine,
            domid=domid,
            name=f"guest{domid}",
            max_pages=max_pages,
            max_vcpus=max_vcpus,
        )


@contextmanager
def world(megabytes: int = 16) -> Iterator[World]:
    """Make a world, and check at the end that what was in it is as it must be."""
    made = World(megabytes)
    try:
        yield made
        assert made.audit() == []
    finally:
        made.close()


def flat(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Lay out mmu_update requests."""
    return b"".join(_UPDATE.pack(*pair) for pair in pairs)
