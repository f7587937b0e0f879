# SPDX-License-Identifier: GPL-2.0-or-later
"""mmu_update, update_va_mapping and mmuext_op: the guest's way to its own page tables.

Both list calls report how many entries were done through ``*pdone``, on every path. Long ones stop
between entries and restart with the rest (public/xen.h; the preempted count is Xen's own flag).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EACCES,
    EFAULT,
    EINVAL,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_OP_ARG1_MFN,
    MMUEXT_OP_ARG2_SRC_MFN,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNPIN_TABLE,
    SIZEOF_MMU_UPDATE,
    SIZEOF_MMUEXT_OP,
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_update_va_mapping,
)
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import L1, L2, L2XEN, L3, LEAST_WORK, Preempted
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.frames import FrameType
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L2_SHIFT,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_P,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlite.core.domain import Domain

_WORD: Final = 0xFFFFFFFF
_OFFSET: Final = PAGE_SIZE - 1
_READ_RIGHTS: Final = PTE_P | PTE_A
_COMMAND: Final = 7  # entries are 8-aligned, so Xen keeps the command in the low bits
_PINNABLE: Final = {
    MMUEXT_PIN_L1_TABLE: FrameType.L1,
    MMUEXT_PIN_L2_TABLE: FrameType.L2,
    MMUEXT_PIN_L3_TABLE: FrameType.L3,
}
_TABLE_AND_COMMAND: Final = ~(_OFFSET & ~_COMMAND)
_NO_TABLE: Final = -1
assert MMUEXT_OP_ARG1_MFN == 4
assert MMUEXT_OP_ARG2_SRC_MFN == 8


class MmuCalls:
    """The paging hypercalls of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._paging = domain.paging
        self._guest_memory = domain.guest_memory
        self._memory = domain.machine.memory
        self._frames = domain.machine.frames
        self._tlb = domain.tlb
        self._engine = domain.engine
        self._m64 = self._memory.m64
        self._nr_frames = self._frames.nr_frames
        self._owner = self._frames.owner
        self._kind = self._frames.kind
        self._set_l1 = self._paging.set_l1
        self.update_va_mapping = self._make_update_va_mapping()
        self.mmu_update = self._make_mmu_update()

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_mmu_update: self.mmu_update,
            HYPERVISOR_update_va_mapping: self.update_va_mapping,
            HYPERVISOR_mmuext_op: self.mmuext_op,
        }

    # -- update_va_mapping --------------------------------------------------------------------

    def _make_update_va_mapping(self) -> Handler:
        """Bind ``update_va_mapping``: replace the L1 entry that maps an address; flush as asked."""
        l1_bases, set_l1 = self._paging.l1_bases, self._paging.set_l1
        find_slot, flush = self._find_slot, self._flush_mapping
        flush_page = self._engine.flush_page

        def update_va_mapping(vaddr: int, low: int, high: int, flags: int, _: int) -> int:
            base = l1_bases.get(vaddr >> L2_SHIFT)
            if base is None or vaddr >= HOLE_START:
                slot = find_slot(vaddr)
            else:
                slot = base + (vaddr >> PAGE_SHIFT & INDEX_MASK)
            set_l1(slot, low | high << 32)
            if flags:
                if flags == UVMF_INVLPG:  # of this vCPU, for all share one engine
                    flush_page(vaddr)
                else:
                    flush(vaddr, flags)
            return 0

        return update_va_mapping

    def _find_slot(self, vaddr: int) -> int:
        """Walk to the L1 entry of an address that a guest may map something at."""
        slot = self._paging.slot_of(vaddr)
        if slot is None or vaddr >= HOLE_START:
            raise Refused(EINVAL, "paging.no-l1-entry", vaddr)
        return slot

    def _flush_mapping(self, vaddr: int, flags: int) -> None:
        if flags & ~UVMF_FLUSHTYPE_MASK & ~UVMF_ALL:
            self._read_vcpu_mask(flags & ~UVMF_FLUSHTYPE_MASK)
        kind = flags & UVMF_FLUSHTYPE_MASK
        if kind == UVMF_INVLPG:
            self._engine.flush_page(vaddr)
        elif kind == UVMF_TLB_FLUSH:
            self._tlb.flush()
        elif kind:
            raise Refused(EINVAL, "paging.flush-kind", flags)

    # -- mmu_update ---------------------------------------------------------------------------

    def _make_mmu_update(self) -> Handler:
        """Bind ``mmu_update``: apply (pointer | command, value) pairs up to the first refused."""
        paging, m64 = self._paging, self._m64
        nr_frames, owner, kind, domid = self._nr_frames, self._owner, self._kind, self._domid
        set_l1, update_other, locate = paging.set_l1, self._update_other, self._make_locate()

        def mmu_update(requests: int, count: int, pdone: int, foreign: int, _: int) -> int:
            done = 0
            if paging.work_left < LEAST_WORK:
                paging.begin_work()
            if count & MMU_UPDATE_PREEMPTED:
                count ^= MMU_UPDATE_PREEMPTED
                done = self._done_so_far(pdone)
            finished = 0
            at = 0  # where requests are read in m64; 0 before the first
            # ``finished`` may grow to this: L1s are updated by the unit, which nothing else takes.
            limit = paging.work_left
            try:
                if foreign != DOMID_SELF and foreign != domid:
                    self._check_foreign(foreign)
                if requests + count * SIZEOF_MMU_UPDATE > HOLE_START:
                    raise Refused(EFAULT, "memory.bad-pointer", requests)
                table = _NO_TABLE  # the L1 that the last request was for, all checked
                while finished < count:
                    if finished >= limit:
                        raise Preempted
                    at, page_end = locate(requests + finished * SIZEOF_MMU_UPDATE)
                    # Copied in once: nothing below reads the requests again.
                    if finished + 1 == count:
                        pointer, value = m64[at], m64[at + 1]
                        mfn = pointer >> PAGE_SHIFT
                        if (
                            mfn < nr_frames
                            and owner[mfn] == domid
                            and kind[mfn] == L1
                            and not pointer & _COMMAND
                        ):
                            set_l1(pointer >> 3, value)  # alone: no list of it, 10 % less
                            finished = count
                            break
                        stop = count
                        pairs: Iterable[tuple[int, int]] = ((pointer, value),)
                    else:
                        stop = min(finished + (page_end - at + 1) // 2, count, limit)
                        words = m64[at : at + 2 * (stop - finished)].tolist()
                        pairs = zip(words[::2], words[1::2], strict=True)
                    for pointer, value in pairs:
                        if pointer & _TABLE_AND_COMMAND != table:
                            table = pointer & _TABLE_AND_COMMAND
                            mfn = pointer >> PAGE_SHIFT
                            if mfn >= nr_frames or owner[mfn] != domid:
                                raise Refused(EINVAL, "frames.not-owned", mfn)
                            if kind[mfn] != L1 or pointer & _COMMAND:
                                table = _NO_TABLE
                                paging.work_left = limit - finished - 1
                                update_other(pointer, value)
                                finished += 1
                                if paging.deferred and not paging.drain():
                                    raise Preempted
                                limit = finished + paging.work_left
                                if limit < stop:
                                    break
                                continue
                        set_l1(pointer >> 3, value)
                        finished += 1
                paging.work_left = limit - finished
            except Preempted:
                paging.work_left = min(paging.work_left, limit - finished)
                if pdone:
                    self._write_done(pdone, done + finished)
                self._leave_to_drain()
                if finished < count:
                    left = (count - finished) | MMU_UPDATE_PREEMPTED
                    rest = requests + finished * SIZEOF_MMU_UPDATE
                    raise Restart((rest, left, pdone, foreign, 0)) from None
                return 0
            except Refused as refused:
                refused.entry = finished if at else None  # else none was looked at
                paging.work_left = min(paging.work_left, limit - finished - 1)
                if pdone:
                    self._write_done(pdone, done + finished)
                if not paging.drain():
                    self._leave_to_drain()
                raise
            if pdone:
                self._guest_memory.write_u32(pdone, (done + finished) & _WORD)
            return 0

        return mmu_update

    def _make_locate(self) -> Callable[[int], tuple[int, int]]:
        """Bind ``locate(vaddr)``: where a request below the hole lies in ``memory.m64``.

        Returns that and the end of its page. Raises Refused where it cannot be read.
        """
        l1_bases, m64, locate_slowly = self._paging.l1_bases, self._m64, self._locate_slowly

        def locate(vaddr: int) -> tuple[int, int]:
            base = l1_bases.get(vaddr >> L2_SHIFT)
            if base is None or vaddr & 7:
                return locate_slowly(vaddr)
            entry = m64[base + (vaddr >> PAGE_SHIFT & INDEX_MASK)]
            if entry & _READ_RIGHTS != _READ_RIGHTS:
                return locate_slowly(vaddr)
            page = (entry & PTE_ADDRESS) >> 3
            at = page + ((vaddr & _OFFSET) >> 3)
            end = page + ENTRIES - 1
            return (at, end) if at < end else locate_slowly(vaddr)

        return locate

    def _locate_slowly(self, vaddr: int) -> tuple[int, int]:
        """Gather a request that is not aligned, or crosses into another page, in a page of ours."""
        request = self._guest_memory.read(vaddr, SIZEOF_MMU_UPDATE)
        maddr = self._domain.hole.scratch_maddr
        self._memory.m8[maddr : maddr + SIZEOF_MMU_UPDATE] = request
        return maddr >> 3, (maddr >> 3) + 2

    def _update_other(self, pointer: int, value: int) -> None:
        """Apply anything but a plain L1 update, to a frame that the domain owns."""
        command = pointer & _COMMAND
        mfn = pointer >> PAGE_SHIFT
        if command == MMU_MACHPHYS_UPDATE:
            self._frames.m2p[mfn] = value & 0xFFFFFFFF
            return
        if command not in (MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD):
            raise Refused(ENOSYS, "paging.update-command", command)
        slot = pointer >> 3
        if command == MMU_PT_UPDATE_PRESERVE_AD:
            old = self._m64[slot]
            if old & PTE_P and value & PTE_P:
                value |= old & (PTE_A | PTE_D)
        kind = self._kind[mfn]
        if kind == L1:
            self._paging.set_l1(slot, value)
        elif kind in (L2, L2XEN):
            self._paging.set_l2(slot, value)
        elif kind == L3:
            self._paging.set_l3(slot, value)
        else:
            self._frames.get_writable(mfn, self._domid, EINVAL)
            self._memory.write(pointer & ~_COMMAND, value.to_bytes(8, "little"))
            self._frames.put_writable(mfn)

    # -- mmuext_op ----------------------------------------------------------------------------

    def mmuext_op(self, operations: int, count: int, pdone: int, foreign: int, _: int) -> int:
        """Apply a list of operations; stop at the first refused one."""
        done = 0
        paging = self._paging
        if paging.work_left < LEAST_WORK:
            paging.begin_work()
        if count & MMU_UPDATE_PREEMPTED:
            count ^= MMU_UPDATE_PREEMPTED
            done = self._done_so_far(pdone)
        finished = 0
        try:
            if foreign != DOMID_SELF and foreign != self._domid:
                self._check_foreign(foreign)
            self._guest_memory.check_range(operations, count * SIZEOF_MMUEXT_OP)
            while finished < count:
                if paging.work_left <= 0:
                    raise Preempted
                paging.work_left -= 1
                at = operations + finished * SIZEOF_MMUEXT_OP
                operation = self._guest_memory.read(at, SIZEOF_MMUEXT_OP)
                command = int.from_bytes(operation[:4], "little")
                arg1 = int.from_bytes(operation[4:8], "little")
                arg2 = int.from_bytes(operation[8:], "little")
                try:
                    self._extended(command, arg1, arg2)
                except Refused as refused:
                    refused.entry = finished
                    raise
                finished += 1
                if paging.deferred and not paging.drain():
                    raise Preempted
        except Preempted:
            if pdone:
                self._write_done(pdone, done + finished)
            self._leave_to_drain()
            if finished < count:
                left = (count - finished) | MMU_UPDATE_PREEMPTED
                rest = operations + finished * SIZEOF_MMUEXT_OP
                raise Restart((rest, left, pdone, foreign, 0)) from None
            return 0
        except Refused:
            if pdone:
                self._write_done(pdone, done + finished)
            if not paging.drain():
                self._leave_to_drain()
            raise
        if pdone:
            self._guest_memory.write_u32(pdone, (done + finished) & _WORD)
        return 0

    def _extended(self, command: int, arg1: int, arg2: int) -> None:
        paging = self._paging
        kind = _PINNABLE.get(command)
        if kind is not None:
            paging.pin(arg1, kind)
        elif command == MMUEXT_UNPIN_TABLE:
            paging.unpin(arg1)
        elif command == MMUEXT_NEW_BASEPTR:
            paging.new_baseptr(arg1)
        elif command in (MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_ALL):
            self._tlb.flush()
        elif command in (MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_ALL):
            self._engine.flush_page(arg1)
        elif command == MMUEXT_TLB_FLUSH_MULTI:
            self._read_vcpu_mask(arg2)
            self._tlb.flush()
        elif command == MMUEXT_INVLPG_MULTI:
            self._read_vcpu_mask(arg2)
            self._engine.flush_page(arg1)
        elif command == MMUEXT_SET_LDT:
            self._domain.descriptors.set_ldt(arg1, arg2)
        elif command == MMUEXT_CLEAR_PAGE:
            self._overwrite(arg1, None)
        elif command == MMUEXT_COPY_PAGE:
            self._overwrite(arg1, arg2)
        elif command == MMUEXT_PIN_L4_TABLE:
            pass  # Xen ignores levels that the guest's paging does not have
        elif command == MMUEXT_FLUSH_CACHE:
            raise Refused(EACCES, "paging.flush-cache-needs-a-device")
        elif command == MMUEXT_FLUSH_CACHE_GLOBAL:
            raise Refused(EPERM, "paging.flush-cache-needs-privilege")
        elif command == MMUEXT_NEW_USER_BASEPTR:
            raise Refused(EOPNOTSUPP, "paging.no-user-baseptr")
        else:
            raise Refused(ENOSYS, "paging.extended-command", command)

    def _overwrite(self, mfn: int, source: int | None) -> None:
        """Clear a page, or copy another one into it; never a table, never somebody else's."""
        frames = self._frames
        if source is not None:
            frames.get_page(source, self._domid)
        try:
            frames.get_writable(mfn, self._domid, EINVAL)
            start = mfn << PAGE_SHIFT
            page = bytes(PAGE_SIZE)
            if source is not None:
                page = self._memory.read(source << PAGE_SHIFT, PAGE_SIZE)
            self._memory.write(start, page)
            frames.put_writable(mfn)
        finally:
            if source is not None:
                frames.put_page(source)

    # -- common -------------------------------------------------------------------------------

    def _check_foreign(self, foreign: int) -> None:
        """Refuse another domain's tables (low half) and frames (high half, plus one)."""
        if foreign & 0xFFFF not in (DOMID_SELF, self._domid):
            raise Refused(EPERM, "paging.foreign-domain", foreign)
        if foreign >> 16 and (foreign >> 16) - 1 not in (DOMID_SELF, self._domid):
            raise Refused(EPERM, "paging.foreign-domain", foreign)

    def _read_vcpu_mask(self, vaddr: int) -> int:
        """Copy in the set of vCPUs to flush. All share one engine, so all are always flushed."""
        size = (len(self._domain.vcpus) + 7) // 8
        return int.from_bytes(self._guest_memory.read(vaddr, size), "little")

    def _done_so_far(self, pdone: int) -> int:
        return self._guest_memory.read_u32(pdone) if pdone else 0

    def _write_done(self, pdone: int, done: int) -> None:
        """Write the count beside an error that is on its way; a bad pointer can't add to it."""
        with suppress(Refused):
            self._guest_memory.write_u32(pdone, done & _WORD)

    def _leave_to_drain(self) -> None:
        if self._paging.deferred:
            self._engine.stop()
