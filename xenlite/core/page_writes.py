# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct writes to page tables, for a guest that asked for them (vm_assist, type 2).

The guest stores to an L1 or L2 that it maps read-only. The faulting address is pointed at a scratch
copy of the table, the guest's own instruction runs once by the trap flag, and what it changed in
the copy is validated like any mmu_update. That covers every form of store, with no decoder to
trust::

    idle --begin (#PF)--> stepping --finish (#DB)--> idle    changes committed or refused
                             `-----abort (any other trap, or a stop)--> idle, nothing happened

While stepping, one L1 entry of the guest leads to the scratch page. Nothing but that instruction,
and nothing else of the hypervisor, runs before ``finish`` or ``abort`` has put it back: events
wait, and any other trap aborts.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EINVAL, VMASST_TYPE_writable_pagetables
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import L1, L2, L2XEN, LEAST_WORK
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT
from xenlite.machine.trap import EFLAGS, EFLAGS_TF, HFLAGS
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L2_SHIFT,
    PF_PRESENT,
    PF_USER,
    PF_WRITE,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_RW,
)

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ASSIST: Final = 1 << VMASST_TYPE_writable_pagetables
_KERNEL_WRITE: Final = PF_PRESENT | PF_WRITE
_FAULT_BITS: Final = PF_PRESENT | PF_WRITE | PF_USER
_SCRATCH: Final = PTE_P | PTE_RW | PTE_A | PTE_D | PTE_NX
_INTEGER_STATE: Final = slice(0, 4 * HFLAGS)  # general registers, EIP and the flags
_LOW: Final = 0xFFFFFFFF
_ENTRY: Final = Struct("<Q")


class PageWrites:
    """The one emulated store that a domain may have under way."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._paging = domain.paging
        self._engine = domain.engine
        self._memory = domain.machine.memory
        self._frames = domain.machine.frames
        self._writable_bases = self._paging.writable_l1_bases
        self._set_l1 = self._paging.set_l1
        self._owner, self._kind = self._frames.owner, self._frames.kind
        self._m64 = self._memory.m64
        self._regs = self._engine.regs
        self._integers = self._engine.regs8[_INTEGER_STATE]
        self._flush_page = self._engine.flush_page
        self._upcalls_held = self._engine.upcalls_held
        # Xen emulates writes to L1s only; a validated L2 entry is no less safe.
        self._setters = {L1: self._paging.set_l1, L2: self._set_l2, L2XEN: self._set_l2}
        self._scratch: int | None = None
        self._scratch_page = memoryview(b"")
        self._scratch_entry = 0
        self.is_stepping = False
        self.guest_steps = False  # the store is made under the guest's own trap flag
        self._vaddr = 0
        self._slot = 0
        self._entry = 0
        self._table = -1
        self._table_page = memoryview(b"")
        self._before = b""
        self._registers = b""

    def begin(self, vaddr: int, error_code: int) -> bool:
        """Start to emulate a kernel's store that faulted; False where it is not one of ours."""
        if not self._domain.assists & _ASSIST or error_code & _FAULT_BITS != _KERNEL_WRITE:
            return False
        base = self._writable_bases.get(vaddr >> L2_SHIFT)
        if base is None or vaddr >= HOLE_START:
            slot = self._paging.write_slot_of(vaddr)
            if slot is None or vaddr >= HOLE_START:
                return False
        else:
            slot = base + (vaddr >> PAGE_SHIFT & INDEX_MASK)
        entry = self._m64[slot]
        table = (entry & PTE_ADDRESS) >> PAGE_SHIFT
        if entry & (PTE_P | PTE_RW) != PTE_P or self._owner[table] != self._domid:
            return False
        if self._kind[table] not in self._setters:
            return False
        if self._scratch is None and not self._allocate_scratch():
            return False
        if table != self._table:
            self._table = table
            self._table_page = self._page(table)
        self._before = self._scratch_page[:] = self._table_page.tobytes()
        self._vaddr, self._slot, self._entry = vaddr, slot, entry
        self._registers = self._integers.tobytes()
        # No flush: the engine walks again when a cached entry lacks the right.
        self._m64[slot] = self._scratch_entry
        flags = self._regs[EFLAGS]
        self.guest_steps = flags & EFLAGS_TF != 0
        self._regs[EFLAGS] = flags | EFLAGS_TF
        self.is_stepping = True
        self._upcalls_held[0] = 1
        return True

    def finish(self) -> bool:
        """Commit what the one instruction changed, after its #DB.

        Returns False, with the registers as before the instruction, where a change is refused:
        the store is then a plain page fault of the guest's.
        """
        self._m64[self._slot] = self._entry
        self._flush_page(self._vaddr)
        self.is_stepping = False
        self._upcalls_held[0] = 0
        if not self.guest_steps:
            self._regs[EFLAGS] &= ~EFLAGS_TF & _LOW
        try:
            self._commit()
        except Refused:
            self._integers[:] = self._registers
            return False
        return True

    def abort(self) -> None:
        """Put everything back as it was before the instruction."""
        self._m64[self._slot] = self._entry
        self._flush_page(self._vaddr)
        self.is_stepping = False
        self._upcalls_held[0] = 0
        self._integers[:] = self._registers

    def release(self) -> None:
        """Give the scratch page back; the domain must not run again."""
        for view in (self._scratch_page, self._table_page, self._integers):
            view.release()
        if self._scratch is not None:
            self._frames.drop_allocation(self._scratch)
            self._scratch = None

    def _allocate_scratch(self) -> bool:
        """Get the scratch page; False where the machine is full: to the guest, a plain fault."""
        try:
            self._scratch = scratch = self._frames.allocate_xen()
        except Refused:
            return False
        self._scratch_page = self._page(scratch)
        self._scratch_entry = scratch << PAGE_SHIFT | _SCRATCH
        return True

    def _page(self, mfn: int) -> memoryview:
        return self._memory.m8[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT]

    def _commit(self) -> None:
        """Validate and set the one entry that the scratch page has changed."""
        assert self._scratch is not None
        m64, before, table = self._m64, self._before, self._table
        index = self._vaddr >> 3 & (ENTRIES - 1)
        changed = self._scratch * ENTRIES + index
        slot = table * ENTRIES + index
        old, new = m64[slot], m64[changed]
        m64[changed] = old
        if self._scratch_page.tobytes() != before:
            # Either more was written, or the walker has set bits in the real entry meanwhile.
            now = old
            (old,) = _ENTRY.unpack_from(before, index * _ENTRY.size)
            m64[changed] = old
            if self._scratch_page.tobytes() != before:
                raise Refused(EINVAL, "paging.write-spans-entries", self._vaddr)
            new |= (now ^ old) & (PTE_A | PTE_D)
        kind = self._kind[table]
        set_entry = self._set_l1 if kind == L1 else self._setters[kind]
        try:
            set_entry(slot, new)
        except Refused:
            # Half of an entry at a time, upper half first: what is not whole is not present.
            if (old ^ new) & _LOW or not new & PTE_P:
                raise
            set_entry(slot, new & ~PTE_P)

    def _set_l2(self, slot: int, new: int) -> None:
        """Set an L2 entry: at most one table to validate, so the budget cannot run out."""
        paging = self._paging
        if paging.work_left < LEAST_WORK:
            paging.begin_work()
        try:
            paging.set_l2(slot, new)
        finally:  # refused or not, it may have ended a promotion that was interrupted
            if not paging.drain():
                self._engine.stop()
