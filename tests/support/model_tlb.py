# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPU that runs nothing but caches translations as the emulator does.

An entry is filled by a walk of the raw tables, which sets A (and D by a write); it keeps its
rights when the table changes, is looked up again where it lacks a right, and goes only by a flush.
That is what ENGINES.md 4.2 measured, and what makes a missing flush dangerous.
"""

from __future__ import annotations

from struct import pack_into
from typing import TYPE_CHECKING

from xenlite.machine.memory import MachineMemory
from xenlite.machine.processor import NullEngine

if TYPE_CHECKING:
    from typing_extensions import override
else:
    from xenlite.abi.codec import override

_P, _RW, _A, _D = 1, 2, 0x20, 0x40
_ADDRESS = 0x000F_FFFF_FFFF_F000


class ModelTlb(NullEngine):
    """An engine whose guest is the test: it reads and writes by virtual address."""

    def __init__(self, memory: MachineMemory) -> None:
        super().__init__()
        self.cached: dict[int, tuple[int, bool]] = {}  # virtual page -> mfn, writable
        self.stops = 0
        self._cr3 = 0
        self._memory = memory
        memory.attach(self)

    def close(self) -> None:
        """Leave the memory."""
        self._memory.detach(self)

    # -- the guest ----------------------------------------------------------------------------

    def store(self, vaddr: int, value: int) -> bool:
        """Store a 32-bit word, from ring 1; False for a page fault."""
        maddr = self._translate(vaddr, writing=True)
        if maddr is None:
            return False
        pack_into("<I", self._memory.m8, maddr, value)
        return True

    def load(self, vaddr: int) -> int | None:
        """Load a 32-bit word, from ring 1; None for a page fault."""
        maddr = self._translate(vaddr, writing=False)
        return None if maddr is None else self._memory.m32[maddr >> 2]

    def _translate(self, vaddr: int, *, writing: bool) -> int | None:
        page = vaddr >> 12
        hit = self.cached.get(page)
        if hit is None or (writing and not hit[1]):
            hit = self._fill(vaddr, writing=writing)
            if hit is None:
                return None
            self.cached[page] = hit
        return hit[0] << 12 | (vaddr & 0xFFF)

    def _fill(self, vaddr: int, *, writing: bool) -> tuple[int, bool] | None:
        m64 = self._memory.m64
        l3e = m64[(self._cr3 >> 3) + (vaddr >> 30)]
        if not l3e & _P:
            return None
        l2_at = ((l3e & _ADDRESS) >> 3) + (vaddr >> 21 & 511)
        l2e = m64[l2_at]
        if not l2e & _P:
            return None
        l1_at = ((l2e & _ADDRESS) >> 3) + (vaddr >> 12 & 511)
        l1e = m64[l1_at]
        may_write = bool(l1e & l2e & _RW)
        if not l1e & _P or (writing and not may_write):
            return None
        m64[l2_at] = l2e | _A
        m64[l1_at] = l1e = l1e | _A | (_D if writing else 0)
        # Without D a write walks once more, to set it.
        return (l1e & _ADDRESS) >> 12, may_write and bool(l1e & _D)

    # -- Engine -------------------------------------------------------------------------------

    @override
    def flush_tlb(self) -> None:
        self.cached.clear()

    @override
    def flush_page(self, vaddr: int, /) -> None:
        self.cached.pop(vaddr >> 12, None)

    @override
    def load_cr3(self, maddr: int) -> None:
        self._cr3 = maddr
        self.cached.clear()

    @override
    def stop(self) -> None:
        self.stops += 1
