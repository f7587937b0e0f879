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

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EINVAL, VMASST_TYPE_writable_pagetables
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import L1, L2, L2XEN, LEAST_WORK
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import EFLAGS, EFLAGS_TF, HFLAGS
from xenlite.machine.x86_32p import (
    ENTRIES,
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


class PageWrites:
    """The one emulated store that a domain may have under way."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._paging = domain.paging
        self._engine = domain.engine
        self._memory = domain.machine.memory
        self._frames = domain.machine.frames
        self._m8 = self._memory.m8
        self._m64 = self._memory.m64
        # Xen emulates writes to L1s only; a validated L2 entry is no less safe.
        self._setters = {L1: self._paging.set_l1, L2: self._set_l2, L2XEN: self._set_l2}
        self._scratch: int | None = None
        self.is_stepping = False
        self.guest_steps = False  # the last store was made under the guest's own trap flag
        self._vaddr = 0
        self._slot = 0
        self._entry = 0
        self._table = 0
        self._before = b""
        self._registers = b""

    def begin(self, vaddr: int, error_code: int) -> bool:
        """Start to emulate a kernel's store that faulted; False where it is not one of ours."""
        if not self._domain.assists & _ASSIST or error_code & _FAULT_BITS != _KERNEL_WRITE:
            return False
        slot = self._paging.write_slot_of(vaddr)
        if slot is None or vaddr >= HOLE_START:
            return False
        entry = self._m64[slot]
        table = (entry & PTE_ADDRESS) >> PAGE_SHIFT
        if entry & (PTE_P | PTE_RW) != PTE_P or self._frames.owner[table] != self._domid:
            return False
        if self._frames.kind[table] not in self._setters:
            return False
        scratch = self._scratch
        if scratch is None:
            try:
                scratch = self._scratch = self._frames.allocate_xen()
            except Refused:  # the machine is full: to the guest, a plain page fault
                return False
        start = table << PAGE_SHIFT
        self._before = bytes(self._m8[start : start + PAGE_SIZE])
        self._m8[scratch << PAGE_SHIFT : (scratch + 1) << PAGE_SHIFT] = self._before
        self._vaddr, self._slot, self._entry, self._table = vaddr, slot, entry, table
        self._registers = bytes(self._engine.regs8[_INTEGER_STATE])
        # No flush: the engine walks again when a cached entry lacks the right.
        self._m64[slot] = (scratch << PAGE_SHIFT) | _SCRATCH
        self._engine.regs[EFLAGS] |= EFLAGS_TF
        self.is_stepping = True
        return True

    def finish(self) -> bool:
        """Commit what the one instruction changed, after its #DB.

        Returns False, with the registers as before the instruction, where a change is refused:
        the store is then a plain page fault of the guest's.
        """
        self._put_back()
        scratch = self._scratch
        assert scratch is not None
        start = scratch << PAGE_SHIFT
        after = bytes(self._m8[start : start + PAGE_SIZE])
        old_flags = int.from_bytes(self._registers[4 * EFLAGS : 4 * EFLAGS + 4], "little")
        self.guest_steps = bool(old_flags & EFLAGS_TF)
        if not self.guest_steps:
            self._engine.regs[EFLAGS] &= ~EFLAGS_TF & _LOW
        if after == self._before:
            return True
        try:
            self._commit(after)
        except Refused:
            self._engine.regs8[_INTEGER_STATE] = self._registers
            return False
        return True

    def abort(self) -> None:
        """Put everything back as it was before the instruction."""
        self._put_back()
        self._engine.regs8[_INTEGER_STATE] = self._registers

    def release(self) -> None:
        """Give the scratch page back; the domain must not run again."""
        if self._scratch is not None:
            self._frames.drop_allocation(self._scratch)
            self._scratch = None

    def _put_back(self) -> None:
        self._m64[self._slot] = self._entry
        self._engine.flush_page(self._vaddr)
        self.is_stepping = False

    def _commit(self, after: bytes) -> None:
        before = self._before
        index = self._vaddr >> 3 & (ENTRIES - 1)
        at = index * 8
        if after[:at] != before[:at] or after[at + 8 :] != before[at + 8 :]:
            raise Refused(EINVAL, "paging.write-spans-entries", self._vaddr)
        slot = self._table * ENTRIES + index
        old = int.from_bytes(before[at : at + 8], "little")
        new = int.from_bytes(after[at : at + 8], "little")
        # The walker may have set bits in the real entry during the step.
        new |= (self._m64[slot] ^ old) & (PTE_A | PTE_D)
        set_entry = self._setters[self._frames.kind[self._table]]
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
