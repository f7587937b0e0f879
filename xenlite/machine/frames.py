# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame table: who owns each machine frame, and what it may be used for.

One column per fact, indexed by mfn::

    owner       domid, DOMID_XEN for the hypervisor's own, DOMID_INVALID for free frames
    kind        the frame's one type at this moment (FrameType)
    type_count  uses that rely on that type: page-table entries, pins, CR3s, GDT and LDT slots
    allocated   1 until the domain has given the frame back; worth one reference
    refs        all references: those above, read-only mappings, the allocation, and those that
                the hypervisor holds
    executable  L1 entries that let code run in it
    pinned      frames whose type a guest has pinned (a set)

Invariants (``core/audit.py`` recomputes them from the page tables):

1. ``kind`` is NONE exactly when ``type_count`` is 0; it changes only then.
2. A frame is free exactly when ``refs`` is 0; it is scrubbed, and no engine can still write it,
   before anyone gets it again.
3. ``type_count <= refs``; counts are Python integers and cannot overflow.

Ownership: ``core/paging.py`` alone gives and takes the page-table and descriptor types.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import islice
from math import gcd
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import DOMID_INVALID, DOMID_XEN, EBUSY, EINVAL, ENOMEM
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.tlb import StaleTlbs

if TYPE_CHECKING:
    from xenlite.machine.memory import MachineMemory

INVALID_M2P_ENTRY: Final = 0xFFFFFFFF


class FrameType(IntEnum):
    """What a frame is used as; Xen's PGT_* types under PAE."""

    NONE = 0
    L1 = 1
    L2 = 2
    L2XEN = 3  # the L2 of the top gigabyte, which holds the hypervisor's hole
    L3 = 4
    SEGDESC = 5
    WRITABLE = 6


# Plain integers for the paths that compare them on every trap.
NONE: Final = int(FrameType.NONE)
WRITABLE: Final = int(FrameType.WRITABLE)


class FrameTable:
    """The frame table, the free list and the M2P of one machine."""

    def __init__(self, memory: MachineMemory) -> None:
        self.memory = memory
        count = memory.nr_frames
        self.nr_frames = count
        self.owner = array("H", [DOMID_INVALID]) * count
        self.kind = bytearray(count)
        self.type_count = [0] * count
        self.refs = [0] * count
        self.executable = [0] * count
        self.allocated = bytearray(count)
        self.pinned: set[int] = set()
        self.owned: dict[int, set[int]] = {}
        self.free = count  # how many frames have no owner
        self.stale_tlbs = StaleTlbs()
        self._recycled: list[int] = []
        self._is_recycled = bytearray(count)
        self._never_used = _scattered(count)
        self._reserve_m2p()

    def close(self) -> None:
        """Let go of the memory, which its owner is about to close."""
        self.m2p.release()

    # -- allocation ---------------------------------------------------------------------------

    def allocate(self, domid: int, count: int) -> list[int]:
        """Give ``domid`` that many zeroed frames, one reference each; count them as its pages.

        Frames come scattered and out of order, so that code which confuses mfn and pfn fails at
        once. Raises Refused(ENOMEM) and takes nothing where the machine has too few.
        """
        mfns = self._take(domid, count)
        self.owned.setdefault(domid, set()).update(mfns)
        return mfns

    def allocate_uncounted(self, domid: int) -> int:
        """Allocate a frame that is not one of the domain's pages (shared_info, grant frames)."""
        return self._take(domid, 1)[0]

    def allocate_xen(self) -> int:
        """Allocate a frame for the hypervisor's own use."""
        return self._take(DOMID_XEN, 1)[0]

    def allocate_extent(self, domid: int, order: int) -> int:
        """Give ``domid`` 2**order neighbouring frames, aligned to that; return the first.

        Raises Refused(ENOMEM) where no such run is free.
        """
        return self.allocate_extents(domid, order, 1)[0]

    def allocate_extents(self, domid: int, order: int, wanted: int) -> list[int]:
        """Give ``domid`` that many extents, or none; return the first frame of each.

        One search finds them all, for it may pass over all of memory: 1 ms in 4 GiB.
        """
        if not order:
            return self.allocate(domid, wanted)
        firsts = list(islice(self._free_runs(1 << order), wanted))
        if len(firsts) < wanted:
            raise Refused(ENOMEM, "frames.no-extent-of-that-order", order)
        for first in firsts:
            mfns = range(first, first + (1 << order))
            self._give(mfns, domid)
            self.owned.setdefault(domid, set()).update(mfns)
        return firsts

    def _free_runs(self, count: int) -> Iterator[int]:
        """Yield the first frame of each free, aligned run of ``count``; take none meanwhile."""
        owners = self.owner.tobytes()
        free = array("H", [DOMID_INVALID] * count).tobytes()
        at = owners.find(free)
        while at >= 0:
            first = -(-(at // self.owner.itemsize) // count) * count
            if first * self.owner.itemsize == at:
                yield first
                first += count
            at = owners.find(free, first * self.owner.itemsize)

    def require(self, count: int) -> None:
        """Raise Refused(ENOMEM) unless that many frames are free, for whoever takes them singly."""
        if self.free < count:
            raise Refused(ENOMEM, "frames.machine-memory-exhausted", count)

    def pages_of(self, domid: int) -> set[int]:
        """Return the frames that count as the domain's pages."""
        return self.owned.get(domid, set())

    def is_owner(self, domid: int) -> bool:
        """Tell whether any frame belongs to ``domid``, counted as its page or not: 0.1 ms."""
        owners, wanted = self.owner.tobytes(), array("H", [domid]).tobytes()
        at = owners.find(wanted)
        while at % self.owner.itemsize and at >= 0:
            at = owners.find(wanted, at + 1)
        return at >= 0

    def _take(self, domid: int, count: int) -> list[int]:
        self.require(count)
        mfns: list[int] = []
        for mfn in islice(self._free_frames(), count):
            self.owner[mfn] = domid  # at once: both lists may name it
            mfns.append(mfn)
        self._give(mfns, domid)
        return mfns

    def _free_frames(self) -> Iterator[int]:
        """Yield frames that nobody has. An extent may have taken what the lists still name."""
        owner = self.owner
        while self._recycled:
            mfn = self._recycled.pop()
            self._is_recycled[mfn] = 0
            if owner[mfn] == DOMID_INVALID:
                yield mfn
        for mfn in self._never_used:
            if owner[mfn] == DOMID_INVALID:
                yield mfn

    def _recycle(self, mfn: int) -> None:
        if not self._is_recycled[mfn]:
            self._is_recycled[mfn] = 1
            self._recycled.append(mfn)

    def _give(self, mfns: Sequence[int], domid: int) -> None:
        self.free -= len(mfns)
        for mfn in mfns:
            self.owner[mfn] = domid
            self.refs[mfn] = 1
            self.allocated[mfn] = 1

    def _free(self, mfn: int) -> None:
        assert self.type_count[mfn] == 0, f"mfn {mfn:#x} freed while typed"
        assert not self.allocated[mfn], f"mfn {mfn:#x} freed while allocated"
        self.stale_tlbs.flush()
        owned = self.owned.get(self.owner[mfn])
        if owned is not None:
            owned.discard(mfn)
        self.owner[mfn] = DOMID_INVALID
        self.free += 1
        self.m2p[mfn] = INVALID_M2P_ENTRY
        self.memory.release(mfn)
        self.memory.scrub(mfn)
        self._recycle(mfn)

    def _reserve_m2p(self) -> None:
        pages = -(-self.nr_frames * 4 // PAGE_SIZE)
        self._give(range(pages), DOMID_XEN)
        self.m2p_frames = range(pages)
        size = pages << PAGE_SHIFT
        self.memory.m8[:size] = b"\xff" * size
        self.m2p = self.memory.m32[: self.nr_frames]

    # -- from one domain to another -----------------------------------------------------------

    def can_be_stolen(self, mfn: int, domid: int) -> bool:
        """Tell whether this is a page of ``domid`` to which its allocation alone refers."""
        return mfn in self.pages_of(domid) and bool(self.allocated[mfn]) and self.refs[mfn] == 1

    def steal(self, mfn: int) -> None:
        """Take a page that can be stolen from its domain, with what is in it.

        Nobody reaches it afterwards. It is to be handed over, or its allocation dropped.
        """
        self.stale_tlbs.flush()
        self.memory.release(mfn)
        self.owned[self.owner[mfn]].discard(mfn)
        self.m2p[mfn] = INVALID_M2P_ENTRY

    def hand_over(self, mfn: int, domid: int) -> None:
        """Make a stolen frame a page of ``domid``."""
        self.owner[mfn] = domid
        self.owned.setdefault(domid, set()).add(mfn)

    # -- references ---------------------------------------------------------------------------

    def is_owned(self, mfn: int, domid: int) -> bool:
        """Tell whether ``mfn`` exists and belongs to ``domid``."""
        return 0 <= mfn < self.nr_frames and self.owner[mfn] == domid

    def get_page(self, mfn: int, domid: int, errno: int = EINVAL) -> None:
        """Take one general reference on a frame of ``domid``."""
        if not self.is_owned(mfn, domid):
            raise Refused(errno, "frames.not-owned", mfn)
        self.refs[mfn] += 1

    def put_page(self, mfn: int) -> None:
        """Drop one general reference; the last one frees the frame."""
        left = self.refs[mfn] - 1
        assert left >= 0, f"mfn {mfn:#x} dropped below zero"
        self.refs[mfn] = left
        if not left:
            self._free(mfn)

    def drop_allocation(self, mfn: int) -> bool:
        """Give a frame back once; it is freed when nothing refers to it any more.

        Returns False where that was done before.
        """
        if not self.allocated[mfn]:
            return False
        self.allocated[mfn] = 0
        self.put_page(mfn)
        return True

    def get_writable(self, mfn: int, domid: int, errno: int = EBUSY) -> None:
        """Take a general and a writable reference on a frame of ``domid``."""
        if not self.is_owned(mfn, domid):
            raise Refused(errno, "frames.not-owned", mfn)
        if self.kind[mfn] != WRITABLE:
            if self.type_count[mfn]:
                raise Refused(errno, "paging.writable-page-table", mfn)
            self.kind[mfn] = WRITABLE
        self.type_count[mfn] += 1
        self.refs[mfn] += 1

    def put_writable(self, mfn: int) -> None:
        """Drop a general and a writable reference."""
        assert self.kind[mfn] == WRITABLE, f"mfn {mfn:#x} is not writable"
        self.drop_type(mfn)
        self.put_page(mfn)

    def drop_type(self, mfn: int) -> int:
        """Drop one type reference; return how many are left (at 0 the frame has no type)."""
        left = self.type_count[mfn] - 1
        assert left >= 0, f"mfn {mfn:#x} untyped below zero"
        self.type_count[mfn] = left
        if not left:
            self.kind[mfn] = NONE
        return left


def _scattered(count: int) -> Iterator[int]:
    """Yield every frame number once, neighbours far apart, without a shuffled list in memory.

    The top eighth comes last and in order: extents need neighbours that nobody has.
    """
    scattered = count - count // 8
    stride = int(scattered * 0.618033988) | 1
    while gcd(stride, scattered) != 1:
        stride += 2
    yield from ((n * stride + scattered // 3) % scattered for n in range(scattered))
    yield from range(scattered, count)
