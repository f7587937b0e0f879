# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct paging: the guest's own page tables, made safe by validating every entry.

The structure, each arrow a counted reference (a type and a general one)::

    CR3, pin -> L3 -> entries 0..2 -> L2    -> L1 -> pages: a general reference, and where
                   -> entry 3      -> L2XEN -> L1          the entry is writable a type one

*Promotion* gives an untyped frame a table type: every entry is validated and its references are
taken; on failure all are given back. *Demotion*, when the last type reference goes, undoes it.

Invariants (SECURITY.md A1 to A11, recomputed by ``core/audit.py``):

1. A frame is never a table and mapped writable: both are types, and a frame has one.
2. A table lists frames of its own domain, and pages that a live grant lets it map, as the grant
   lets it; never a table of its own level or above.
3. A live L3 has its entry 3; the L2XEN there has one reference, no pin, and the hole's entries.

Long work. Validating a full L3 is a million entries, so work is counted in units of about a
microsecond and stops at table boundaries when ``work_left`` is used up:

- a promotion raises ``Preempted``; tables completed so far stay typed in ``kept``, so that the
  restarted call finds them done. The next table operation that ends gives them back.
- references to drop wait in ``deferred``, and ``drain`` drops them; the guest is not entered
  again before it is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EBUSY, EINVAL, EPERM
from xenlite.core.hole import HOLE_SLOT
from xenlite.errors import Refused
from xenlite.machine.frames import NONE, WRITABLE, FrameType
from xenlite.machine.memory import PAGE_SHIFT
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L1_REFUSED,
    L2_REFUSED,
    L3_ENTRIES,
    L3_REFUSED,
    PTE_A,
    PTE_ADDRESS,
    PTE_IDENTITY,
    PTE_NX,
    PTE_P,
    PTE_RW,
)

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

L1: Final = int(FrameType.L1)
L2: Final = int(FrameType.L2)
L2XEN: Final = int(FrameType.L2XEN)
L3: Final = int(FrameType.L3)
SEGDESC: Final = int(FrameType.SEGDESC)

WORK_BUDGET: Final = 2048  # units per hypercall, about 2 ms
LEAST_WORK: Final = WORK_BUDGET // 2  # what a hypercall begins with at least
_BLOCKS_PER_UNIT: Final = 200  # of the shortest guest code, in the time that a unit takes
_L1_WORK: Final = 64  # one table of 512 entries, measured against one list entry
_SEGDESC_WORK: Final = 64  # and 14 of them, a whole GDT, are less than LEAST_WORK
_MORE_THAN_L1_FLAGS: Final = L1_REFUSED | PTE_ADDRESS | PTE_NX | PTE_P
_TABLE = Struct(f"<{ENTRIES}Q")
_EXTENDED_CR3_LIMIT: Final = 1 << 20


class Preempted(Exception):  # noqa: N818 - not an error: the call goes on after a restart
    """Stop validating: the budget is used up, and what is done is kept."""


class PageTables:
    """The page tables of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._tlb = domain.tlb
        self._engine = domain.engine
        self._frames = domain.machine.frames
        self._memory = domain.machine.memory
        # Columns of the frame table, held here because the trap path reads them on every entry.
        self._nr_frames = self._frames.nr_frames
        self._owner = self._frames.owner
        self._kind = self._frames.kind
        self._type_count = self._frames.type_count
        self._refs = self._frames.refs
        self._executable = self._frames.executable
        self._m64 = self._memory.m64
        self._code = self._memory.code
        # Where the L1 of each 2 MiB region lies in ``m64``, for the current address space.
        self.l1_bases: dict[int, int] = {}
        self.writable_l1_bases: dict[int, int] = {}
        self.work_left = WORK_BUDGET
        self.kept: set[int] = set()  # one reference of each
        self.deferred: list[int] = []
        self._put_l1_entries = self._make_put_l1_entries()
        self._get_l1_entries = self._make_get_l1_entries()
        self.set_l1 = self._make_set_l1()
        self._validators: dict[int, Callable[[int], None]] = {
            L1: self._promote_l1,
            L2: self._promote_l2,
            L2XEN: self._promote_l2,
            L3: self._promote_l3,
        }

    # -- work ---------------------------------------------------------------------------------

    def begin_work(self) -> None:
        """Give a hypercall its budget; what the last ones have used counts against the turn.

        Without that, a turn of so many blocks would be one of so many hypercalls of 2 ms each. To
        be called where ``work_left`` is below LEAST_WORK. A multicall has one budget for all.
        """
        if not self._domain.in_multicall:
            self._engine.charge((WORK_BUDGET - self.work_left) * _BLOCKS_PER_UNIT)
            self.work_left = WORK_BUDGET

    # -- walks --------------------------------------------------------------------------------

    def slot_of(self, vaddr: int) -> int | None:
        """Return where in ``memory.m64`` the L1 entry of ``vaddr`` lies; None without a table.

        The current address space; any address, the hole included.
        """
        base = self.l1_bases.get(vaddr >> 21)
        if base is None:
            base = self._walk(vaddr >> 21)
            if base is None:
                return None
        return base + (vaddr >> 12 & INDEX_MASK)

    def write_slot_of(self, vaddr: int) -> int | None:
        """Like ``slot_of``, but None where the L2 entry forbids writing."""
        base = self.writable_l1_bases.get(vaddr >> 21)
        if base is None:
            self._walk(vaddr >> 21)
            base = self.writable_l1_bases.get(vaddr >> 21)
            if base is None:
                return None
        return base + (vaddr >> 12 & INDEX_MASK)

    def forget_walks(self) -> None:
        """Drop remembered walks: an L2 or L3 entry, or CR3, has changed."""
        self.l1_bases.clear()
        self.writable_l1_bases.clear()
        self._engine.ways.close()

    def _walk(self, region: int) -> int | None:
        cr3_mfn = self._domain.current.cr3_mfn
        if cr3_mfn is None:
            return None
        m64 = self._m64
        l3e = m64[cr3_mfn * ENTRIES + (region >> 9)]
        if not l3e & PTE_P:
            return None
        l2e = m64[((l3e & PTE_ADDRESS) >> 3) + (region & INDEX_MASK)]
        if not l2e & PTE_P:
            return None
        base = (l2e & PTE_ADDRESS) >> 3
        self.l1_bases[region] = base
        if l2e & PTE_RW:
            self.writable_l1_bases[region] = base
        return base

    # -- single entries -----------------------------------------------------------------------

    def _make_set_l1(self) -> Callable[[int, int], None]:
        """Bind ``set_l1(slot, new)``: replace an entry of a validated L1.

        ``slot`` is an index into ``memory.m64``. Raises Refused: EINVAL for bits, EBUSY for a frame
        that may not be mapped so.

        Here an entry comes, or goes, or only flags of it change, and none that would have to be
        refused: the rest of it was validated before. 0.3 us where the long way takes 0.5.
        """
        m64, kind, type_count, tlb = self._m64, self._kind, self._type_count, self._tlb
        owner, domid = self._owner, self._domid
        get_write, replace_l1 = self._get_write, self._replace_l1
        get_l1_entries, put_l1_entries = self._get_l1_entries, self._put_l1_entries

        def set_l1(slot: int, new: int) -> None:
            old = m64[slot]
            changed = old ^ new
            if not old & PTE_P:
                if new & PTE_P:
                    get_l1_entries((new,), EBUSY)
                m64[slot] = new
            elif not new & PTE_P:
                m64[slot] = new
                if old & PTE_A and not tlb.stale:
                    tlb.revoke()
                put_l1_entries((old,))
            elif changed & _MORE_THAN_L1_FLAGS:
                replace_l1(slot, old, new)
            elif changed:
                if changed & PTE_RW:
                    mfn = (new & PTE_ADDRESS) >> 12
                    if owner[mfn] != domid:
                        raise Refused(EBUSY, "paging.granted-entry", mfn)
                    if not new & PTE_RW:
                        left = type_count[mfn] - 1
                        type_count[mfn] = left
                        if not left:
                            kind[mfn] = NONE
                    elif kind[mfn] == WRITABLE:
                        type_count[mfn] += 1
                    else:
                        get_write(mfn)
                m64[slot] = new
                if old & PTE_A and not tlb.stale:
                    tlb.revoke()

        return set_l1

    def _replace_l1(self, slot: int, old: int, new: int) -> None:
        """Replace a present entry of a validated L1 by a different one that is present, too."""
        changed = old ^ new
        if changed & PTE_ADDRESS:
            self._get_l1_entries((new,), EBUSY)
            self._m64[slot] = new
            if old & PTE_A and not self._tlb.stale:
                self._tlb.revoke()
            self._put_l1_entries((old,))
            return
        # The frame keeps its reference: at most the rights to write and to execute come or go.
        if new & L1_REFUSED:
            raise Refused(EINVAL, "paging.l1-bits", new)
        mfn = (new & PTE_ADDRESS) >> 12
        if self._owner[mfn] != self._domid and changed & (PTE_RW | PTE_NX):
            raise Refused(EBUSY, "paging.granted-entry", mfn)
        if changed & PTE_RW:
            if new & PTE_RW:
                self._get_write(mfn)
            else:
                self._put_write(mfn)
        self._m64[slot] = new
        if changed >= PTE_NX:
            if new < PTE_NX:
                self._get_execute(mfn)
            else:
                self._put_execute(mfn)
        if old & PTE_A and not self._tlb.stale:
            self._tlb.revoke()

    def _get_write(self, mfn: int) -> None:
        """Take a writable type reference on a frame whose owner was checked."""
        if self._kind[mfn] != WRITABLE:
            if self._type_count[mfn]:
                raise Refused(EBUSY, "paging.writable-page-table", mfn)
            if self._owner[mfn] != self._domid:
                raise Refused(EBUSY, "frames.not-owned", mfn)
            self._kind[mfn] = WRITABLE
        self._type_count[mfn] += 1

    def _put_write(self, mfn: int) -> None:
        left = self._type_count[mfn] - 1
        self._type_count[mfn] = left
        if not left:
            self._kind[mfn] = NONE

    # -- entries of granted pages -------------------------------------------------------------

    def set_granted(self, slot: int, mfn: int, flags: int) -> None:
        """Let an entry of a validated L1 map a frame that a grant has pinned for this domain.

        The entry takes references of its own, as every entry does; so nothing but the rights that
        the grant gave must hold for as long as it stands. It is never executable: the frame's owner
        runs on another engine, and neither learns what the other one writes.
        """
        old = self._m64[slot]
        if flags & PTE_RW:
            self._type_count[mfn] += 1
        self._refs[mfn] += 1
        self._m64[slot] = mfn << PAGE_SHIFT | flags | PTE_P | PTE_NX
        if old & PTE_P:
            self._tlb.revoke()
            self._put_l1_entries((old,))

    def clear_granted(self, slot: int, mfn: int, *, writable: bool) -> None:
        """Remove an entry that ``set_granted`` made, if it still stands there with that right."""
        old = self._m64[slot]
        is_same = bool(old & PTE_P) and (old & PTE_ADDRESS) >> PAGE_SHIFT == mfn
        if not is_same or bool(old & PTE_RW) != writable:
            raise Refused(EINVAL, "paging.entry-maps-something-else", slot << 3)
        self._m64[slot] = 0
        self._tlb.revoke()
        self._put_l1_entries((old,))

    def move_l1(self, source: int, target: int) -> None:
        """Move an entry, with its references, to a place of a validated L1 that is empty."""
        assert not self._m64[target] & PTE_P, target
        self._m64[target], self._m64[source] = self._m64[source], 0
        self._tlb.revoke()

    def l1_slot_at(self, maddr: int) -> int | None:
        """Return the slot of the L1 entry at a machine address; None where none of ours is."""
        mfn = maddr >> PAGE_SHIFT
        if maddr & 7 or mfn >= self._nr_frames or self._owner[mfn] != self._domid:
            return None
        return maddr >> 3 if self._kind[mfn] == L1 else None

    # -- upper entries ------------------------------------------------------------------------

    def set_l2(self, slot: int, new: int) -> None:
        """Replace entry ``slot`` (an index into ``memory.m64``) of a validated L2.

        Raises Refused, or Preempted with nothing changed.
        """
        table, index = slot >> 9, slot & INDEX_MASK
        if self._kind[table] == L2XEN and index >= HOLE_SLOT:
            raise Refused(EPERM, "paging.hole-entry", new)
        self._set_upper(slot, new, L2_REFUSED, "paging.l2-bits", L1)

    def set_l3(self, slot: int, new: int) -> None:
        """Replace entry ``slot`` (an index into ``memory.m64``) of a validated L3.

        Entry 3 cannot change while the table is validated: it holds the hole.
        Raises Refused, or Preempted with nothing changed.
        """
        if slot & INDEX_MASK >= L3_ENTRIES - 1:
            raise Refused(EINVAL, "paging.l3-fixed-entry", slot & INDEX_MASK)
        self._set_upper(slot, new, L3_REFUSED, "paging.l3-bits", L2)

    def _set_upper(self, slot: int, new: int, refused: int, rule: str, child: int) -> None:
        m64 = self._m64
        old = m64[slot]
        if new & PTE_P:
            if new & refused:
                raise Refused(EINVAL, rule, new)
            if old & PTE_P and not (old ^ new) & PTE_IDENTITY:
                m64[slot] = new
                if old != new:
                    self._tlb.revoke()
                return
            try:
                self.get_table((new & PTE_ADDRESS) >> 12, child)
            except Refused:
                self._end_promotion()
                raise
            self._end_promotion()
        m64[slot] = new
        if self._is_in_use(slot >> 9):
            self.forget_walks()
        if old & PTE_P:
            self._tlb.revoke()
            self.deferred.append((old & PTE_ADDRESS) >> 12)

    def _is_in_use(self, table: int) -> bool:
        """Tell whether the current address space goes through this L3 or L2: walks remember it.

        A kernel that makes another one, as for a fork, keeps its walks, and the stub's ways.
        """
        l3 = self._domain.current.cr3_mfn
        if l3 is None or l3 == table:
            return True
        entries = self._m64[l3 * ENTRIES : l3 * ENTRIES + L3_ENTRIES]
        return any((entry & PTE_ADDRESS) >> PAGE_SHIFT == table for entry in entries)

    def _get_execute(self, mfn: int) -> None:
        """Count a mapping that code may run through; the first finds no translations.

        What the guest has written through an alias with NX since the last one was taken away has
        left the old ones as they were (tests/architecture/test_engine_facts.py).
        """
        self._executable[mfn] += 1
        if self._executable[mfn] == 1 and self._code[mfn]:
            self._memory.wrote(mfn)
        self._memory.mark_code(mfn, self._engine)

    def _put_execute(self, mfn: int) -> None:
        """Count a mapping less that code may run through; behind the last one, drop the mark.

        Every write of ours to a marked frame costs 1.1 us more, and a kernel's first mapping is
        executable as a whole. (Where a table is dropped the mark may stay: it does no harm.)
        """
        self._executable[mfn] -= 1
        if not self._executable[mfn] and self._code[mfn]:
            self._tlb.flush()
            self._memory.release(mfn)

    def _make_get_l1_entries(self) -> Callable[[tuple[int, ...], int], None]:
        """Bind ``get_l1_entries(entries, errno)``: take the references of the present ones.

        All or, where it raises Refused, none: EINVAL for bits, ``errno`` for a foreign frame, EBUSY
        for one that must not be written. It takes lists, because a table has up to 512 entries and
        a call costs as much as half of one.
        """
        nr_frames, owner, domid, refs = self._nr_frames, self._owner, self._domid, self._refs
        kind, type_count = self._kind, self._type_count
        get_write, get_execute = self._get_write, self._get_execute
        put_l1_entries = self._put_l1_entries

        def get_l1_entries(entries: tuple[int, ...], errno: int) -> None:
            done = 0
            try:
                for entry in entries:
                    if entry & PTE_P:
                        if entry & L1_REFUSED:
                            raise Refused(EINVAL, "paging.l1-bits", entry)
                        mfn = (entry & PTE_ADDRESS) >> 12
                        if mfn >= nr_frames or owner[mfn] != domid:
                            raise Refused(errno, "frames.not-owned", mfn)
                        if entry & PTE_RW:
                            if kind[mfn] == WRITABLE:
                                type_count[mfn] += 1
                            else:
                                get_write(mfn)
                        refs[mfn] += 1
                        if entry < PTE_NX:
                            get_execute(mfn)
                    done += 1
            except Refused:
                put_l1_entries(entries[:done])
                raise

        return get_l1_entries

    def _make_put_l1_entries(self) -> Callable[[tuple[int, ...]], None]:
        """Bind ``put_l1_entries(entries)``: give back the references of those that were present."""
        kind, type_count, refs = self._kind, self._type_count, self._refs
        executable, put_page = self._executable, self._frames.put_page

        def put_l1_entries(entries: tuple[int, ...]) -> None:
            for entry in entries:
                if entry & PTE_P:
                    mfn = (entry & PTE_ADDRESS) >> 12
                    if entry < PTE_NX:
                        executable[mfn] -= 1
                    if entry & PTE_RW:
                        left = type_count[mfn] - 1
                        type_count[mfn] = left
                        if not left:
                            kind[mfn] = NONE
                    left = refs[mfn] - 1
                    if left:
                        refs[mfn] = left
                    else:
                        put_page(mfn)

        return put_l1_entries

    # -- pins and CR3 -------------------------------------------------------------------------

    def pin(self, mfn: int, kind: FrameType) -> None:
        """Validate ``mfn`` as a table of that kind and keep it so until ``unpin``.

        Raises Refused(EINVAL), or Preempted with what was validated kept.
        """
        if mfn in self._frames.pinned and self._frames.is_owned(mfn, self._domid):
            raise Refused(EINVAL, "paging.already-pinned", mfn)
        try:
            self.get_table(mfn, kind)
        except Refused:
            self._end_promotion()
            raise
        self._frames.pinned.add(mfn)
        self._end_promotion()

    def unpin(self, mfn: int) -> None:
        """Give back a pin, of whatever level. Raises Refused(EINVAL) where there is none."""
        if not self._frames.is_owned(mfn, self._domid):
            raise Refused(EINVAL, "frames.not-owned", mfn)
        if mfn not in self._frames.pinned:
            raise Refused(EINVAL, "paging.not-pinned", mfn)
        self._frames.pinned.discard(mfn)
        self.deferred.append(mfn)

    def new_baseptr(self, mfn: int) -> None:
        """Make the L3 ``mfn`` the current vCPU's address space, validating it if need be.

        Raises Refused(EINVAL), or Preempted with the address space unchanged.
        """
        vcpu = self._domain.current
        old = vcpu.cr3_mfn
        if old != mfn:
            self.take_baseptr(mfn)
            vcpu.cr3_mfn = mfn
            self._domain.descriptors.drop_ldt()
            if old is not None:
                self.deferred.append(old)
        self.forget_walks()
        self._engine.load_cr3(mfn << PAGE_SHIFT)
        self._tlb.flushed_by_cr3()

    def take_baseptr(self, mfn: int) -> None:
        """Take the references that a CR3 holds, without loading it (a vCPU's first one)."""
        if mfn >= _EXTENDED_CR3_LIMIT:
            raise Refused(EINVAL, "paging.cr3-above-4gb", mfn)
        try:
            self.get_table(mfn, L3)
        except Refused:
            self._end_promotion()
            raise
        self._end_promotion()

    # -- types --------------------------------------------------------------------------------

    def get_table(self, mfn: int, kind: int) -> None:
        """Take a type and a general reference on a table, promoting the frame if it has none.

        Raises Refused(EINVAL), or Preempted.
        """
        if mfn >= self._nr_frames or self._owner[mfn] != self._domid:
            raise Refused(EINVAL, "frames.not-owned", mfn)
        if not self._type_count[mfn]:
            self._promote(mfn, kind, self._validators[kind])
        elif self._kind[mfn] != kind:
            raise Refused(EINVAL, "paging.type-conflict", mfn)
        elif kind == L2XEN:
            raise Refused(EINVAL, "paging.l3-entry-3-shared", mfn)
        self._type_count[mfn] += 1
        self._refs[mfn] += 1
        self.work_left -= 1

    def get_descriptor_frame(self, mfn: int, validate: Callable[[int], None]) -> None:
        """Take a segdesc and a general reference; ``validate(mfn)`` may raise Refused."""
        if mfn >= self._nr_frames or self._owner[mfn] != self._domid:
            raise Refused(EINVAL, "frames.not-owned", mfn)
        if not self._type_count[mfn]:
            try:
                self._promote(mfn, SEGDESC, validate)
            finally:
                self.work_left -= _SEGDESC_WORK
        elif self._kind[mfn] != SEGDESC:
            raise Refused(EINVAL, "paging.type-conflict", mfn)
        self._type_count[mfn] += 1
        self._refs[mfn] += 1

    def put_descriptor_frame(self, mfn: int) -> None:
        """Drop a segdesc and a general reference, at once."""
        assert self._kind[mfn] == SEGDESC, f"mfn {mfn:#x} is not a descriptor frame"
        self._frames.drop_type(mfn)
        self._frames.put_page(mfn)

    def _promote(self, mfn: int, kind: int, validate: Callable[[int], None]) -> None:
        if self.work_left <= 0:
            raise Preempted
        # Nobody may go on writing what is validated now through a stale translation.
        self._frames.stale_tlbs.flush()
        # Typed while it is looked at: a table that maps itself must meet its own type.
        self._kind[mfn] = kind
        self._type_count[mfn] = 1
        if self._code[mfn]:
            self._memory.wrote(mfn)  # from here on Python writes it, entry by entry
        try:
            validate(mfn)
        except (Refused, Preempted):
            self._type_count[mfn] = 0
            self._kind[mfn] = NONE
            raise
        self._type_count[mfn] = 0  # the caller takes the first reference

    def _promote_l1(self, mfn: int) -> None:
        self.work_left -= _L1_WORK
        entries = _TABLE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)
        self._get_l1_entries(tuple(filter(None, entries)), EINVAL)

    def _promote_l2(self, mfn: int) -> None:
        base = mfn * ENTRIES
        guest_slots = ENTRIES
        if self._kind[mfn] == L2XEN:
            guest_slots = HOLE_SLOT
        entries = _TABLE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)[:guest_slots]
        self._take_children(entries, L2_REFUSED, "paging.l2-bits", [L1] * guest_slots)
        if guest_slots == HOLE_SLOT:
            for i, pde in enumerate(self._domain.hole.pdes, base + HOLE_SLOT):
                self._m64[i] = pde

    def _promote_l3(self, mfn: int) -> None:
        base = mfn * ENTRIES
        entries = tuple(self._m64[base : base + L3_ENTRIES])
        if not entries[3] & PTE_P:
            raise Refused(EINVAL, "paging.l3-entry-3-missing", mfn)
        self._take_children(entries, L3_REFUSED, "paging.l3-bits", [L2, L2, L2, L2XEN])
        # The engine reads four entries; the rest must hold nothing that could ever count.
        self._memory.m8[(mfn << PAGE_SHIFT) + 8 * L3_ENTRIES : (mfn + 1) << PAGE_SHIFT] = bytes(
            8 * (ENTRIES - L3_ENTRIES)
        )

    def _take_children(
        self, entries: tuple[int, ...], refused: int, rule: str, kinds: list[int]
    ) -> None:
        taken: list[int] = []
        try:
            for entry, kind in zip(entries, kinds, strict=True):
                if entry & PTE_P:
                    if entry & refused:
                        raise Refused(EINVAL, rule, entry)
                    child = (entry & PTE_ADDRESS) >> 12
                    self.get_table(child, kind)
                    taken.append(child)
        except Refused:
            self.deferred.extend(taken)
            raise
        except Preempted:
            # A call may be given up and made again for ever: of each table, one reference is kept.
            for child in taken:
                if child in self.kept:
                    self.deferred.append(child)
                else:
                    self.kept.add(child)
            raise

    def _end_promotion(self) -> None:
        if self.kept:
            self.deferred.extend(self.kept)
            self.kept.clear()

    # -- dropping -----------------------------------------------------------------------------

    def drain(self) -> bool:
        """Drop deferred references while the budget lasts; tell whether all are gone."""
        deferred = self.deferred
        while deferred:
            if self.work_left <= 0:
                return False
            self._put_table_now(deferred.pop())
        return True

    def release(self) -> None:
        """Drop everything that pins and CR3s hold: the domain is dying and will not run."""
        for mfn in self._frames.pinned & self._frames.pages_of(self._domid):
            self.unpin(mfn)
        for vcpu in self._domain.vcpus:
            if vcpu.cr3_mfn is not None:
                self.deferred.append(vcpu.cr3_mfn)
                vcpu.cr3_mfn = None
        self.forget_walks()
        self._end_promotion()

    def _put_table_now(self, mfn: int) -> None:
        self.work_left -= 1
        if self._type_count[mfn] == 1:
            self._demote(mfn)
            if self._code[mfn]:
                self._memory.wrote(mfn)
        self._frames.drop_type(mfn)
        self._frames.put_page(mfn)

    def _demote(self, mfn: int) -> None:
        self._tlb.revoke()
        kind = self._kind[mfn]
        entries = _TABLE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)
        if kind == L1:
            self.work_left -= _L1_WORK
            self._put_l1_entries(tuple(filter(None, entries)))
            return
        self.forget_walks()
        guest_slots = {L2: ENTRIES, L2XEN: HOLE_SLOT, L3: L3_ENTRIES}[kind]
        self.deferred.extend(
            (entry & PTE_ADDRESS) >> 12 for entry in entries[:guest_slots] if entry & PTE_P
        )
