# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile operations on the memory of three domains, generated, checked, and cut down on failure.

An operation is a name and a few small numbers, which mean something in every state: "the seventh
of your frames". So any part of a sequence is a sequence too, and a failing one can be cut down by
leaving operations out. Three guests share a machine with Dom0; they make real hypercalls out of
their own mapped memory and touch it through a model of the emulator's TLB.

After each operation: no cached translation leads where it may not (SECURITY.md A9). After every
refused one: nothing has changed. Every 16, and after every refusal: the full audit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from struct import pack, unpack
from typing import TypeAlias, TypeVar

from tests.support.domains import (
    BASE,
    FREE_PFN,
    KERNEL,
    L1_PFNS,
    L2_PFN,
    L3_PFN,
    LISTS,
    PAGE,
    PAGES,
    READ_ONLY,
    TABLE,
    Guest,
    World,
    entry,
    flat,
)
from xenlite.abi.codec import Structure
from xenlite.abi.x86_32p import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_UNPIN_TABLE,
    SIZEOF_GRANT_ENTRY_V1,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    GNTMAP_contains_pte,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GnttabCopy,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GTF_accept_transfer,
    GTF_permit_access,
    HYPERVISOR_grant_table_op,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_multicall,
    HYPERVISOR_set_gdt,
    HYPERVISOR_update_descriptor,
    HYPERVISOR_update_va_mapping,
    MulticallEntry,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_increase_reservation,
    XENMEM_populate_physmap,
    XenMemoryExchange,
    XenMemoryReservation,
)
from xenlite.core.hole import HOLE_SLOT, HOLE_START
from xenlite.core.maptrack import MappedGrant
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls import table
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.frames import FrameType

_T = TypeVar("_T")
Operation: TypeAlias = tuple[str, tuple[int, ...]]

WORKSHOP = range(FREE_PFN, FREE_PFN + 20)  # the pages that become everything
NUMBERS = 14  # per operation
AUDIT_EVERY = 16
_TABLE_KINDS = {FrameType.L1, FrameType.L2, FrameType.L2XEN, FrameType.L3}
_CLOSED = _TABLE_KINDS | {FrameType.SEGDESC}
_MOST_RESTARTS = 60
_CANARY = b"canary! " * (PAGE // 8)
_GRANT_REFS = 6


class Broken(Exception):  # noqa: N818 - what a fuzz is for
    """An invariant does not hold."""


class Draw:
    """The numbers of one operation, as choices."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._next = 0

    def below(self, limit: int) -> int:
        number = self._numbers[self._next % len(self._numbers)]
        self._next += 1
        return (number + self._next // len(self._numbers)) % limit

    def pick(self, choices: Sequence[_T]) -> _T:
        return choices[self.below(len(choices))]


class Fuzz:
    """Three guests and what is done to them."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World(16)
        frames, memory = self.world.machine.frames, self.world.machine.memory
        self._canaries = (frames.allocate_xen(), frames.allocate(0, 1)[0])
        for mfn in self._canaries:
            memory.write(mfn << 12, _CANARY)
        self._next_domid = 1
        self._guests: list[Guest] = []
        self._tables: dict[int, list[Handler]] = {}
        self._mappings: list[MappedGrant] = []
        self._interference: Callable[[Guest], None] | None = None
        self._budget = 0
        self.results: dict[str, dict[str, int]] = {}
        for _ in range(3):
            self._guests.append(self._new_guest())
        self._operations: dict[str, Callable[[Guest, Draw], int]] = {
            "map": self._map,
            "update": self._update,
            "change": self._change,
            "extended": self._extended,
            "make_table": self._make_table,
            "make_space": self._make_space,
            "touch": self._touch,
            "memory": self._memory,
            "exchange": self._exchange,
            "descriptors": self._descriptors,
            "multicall": self._multicall,
            "grant": self._grant,
            "unmap_grant": self._unmap_grant,
            "grant_maps": self._grant_maps,
            "transfer": self._transfer,
            "preempt": self._preempt,
            "die": self._die,
        }

    def close(self) -> None:
        """End the world, which must be possible in any state."""
        for mapping in self._mappings:
            self.world.dom0.maptrack.unmap(mapping)
        self._mappings.clear()
        self.world.close()

    # -- one operation ------------------------------------------------------------------------

    def apply(self, operation: Operation, *, audit: bool) -> None:
        """Do one operation. Raises Broken, or whatever the hypervisor raised."""
        name, numbers = operation
        draw = Draw(numbers)
        guest = self._guests[draw.below(3)]
        result = self._operations[name](guest, draw)
        outcome = "done" if result >= 0 else "refused"
        counts = self.results.setdefault(name, {"done": 0, "refused": 0})
        counts[outcome] += 1
        self._check_tlbs()
        if audit or result < 0:
            self.check()

    def check(self) -> None:
        """Audit everything."""
        problems = self.world.audit()
        memory = self.world.machine.memory
        problems += [
            f"canary {mfn:#x} was overwritten"
            for mfn in self._canaries
            if memory.read(mfn << 12, PAGE) != _CANARY
        ]
        if problems:
            raise Broken("; ".join(problems[:8]))

    def _check_tlbs(self) -> None:
        frames = self.world.machine.frames
        for guest in self._guests:
            domid = guest.domain.domid
            for page, (mfn, writable) in guest.engine.cached.items():
                if page << 12 >= HOLE_START:
                    continue
                if frames.owner[mfn] != domid and not _is_granted(guest, mfn, writable=writable):
                    raise Broken(f"page {page:#x} of domain {domid} still reaches mfn {mfn:#x}")
                if writable and frames.kind[mfn] in _CLOSED:
                    raise Broken(f"page {page:#x} of domain {domid} still writes mfn {mfn:#x}")

    def _call(self, guest: Guest, number: int, *arguments: int) -> int:
        """Make one hypercall to its end; what it refuses must leave everything as it was."""
        handler = self._tables[guest.domain.domid][number]
        domain = guest.domain
        now = (*arguments, 0, 0, 0, 0, 0)[:5]
        before = self._state()
        budget = self._budget if number != HYPERVISOR_multicall else 0
        # A call that ends gives back what an abandoned one had kept: that is no trace of its own.
        is_whole = _is_whole(number, arguments) and not domain.paging.kept
        for _ in range(_MOST_RESTARTS):
            if budget:
                domain.in_multicall = True
                domain.paging.work_left = budget
            try:
                return handler(*now)
            except Refused as refused:
                guest.settle()
                if is_whole and self._state() != before:
                    raise Broken(f"{refused} left traces") from refused
                return -refused.errno
            except Restart as restart:
                now = restart.arguments
                is_whole = False
                guest.settle()
                if self._interference is not None:
                    self._interference(guest)
            finally:
                if budget:
                    domain.in_multicall = False
                guest.settle()
        return 0  # the guest never came back to it

    def _state(self) -> tuple[object, ...]:
        """Return all that a refusal may not change: the columns, and the tables' contents."""
        frames, m8 = self.world.machine.frames, self.world.machine.memory.m8
        return (
            bytes(frames.kind),
            tuple(frames.type_count),
            tuple(frames.refs),
            bytes(frames.allocated),
            frames.owner.tobytes(),
            frozenset(frames.pinned),
            [
                bytes(m8[mfn << 12 : (mfn + 1) << 12])
                for mfn, kind in enumerate(frames.kind)
                if kind in _CLOSED
            ],
        )

    def _new_guest(self) -> Guest:
        guest = self.world.add(self._next_domid, max_pages=PAGES + 8)
        self._tables[self._next_domid] = table.build(guest.domain, lambda *_: None)
        self._next_domid += 1
        return guest

    # -- choices ------------------------------------------------------------------------------

    def _frame(self, guest: Guest, draw: Draw) -> int:
        """Choose a frame: mostly one that the guest works with, at times one it must not have."""
        frames = self.world.machine.frames
        choice = draw.below(24)
        if choice < 14:
            return guest.mfns[draw.pick(WORKSHOP)]
        if choice < 17:
            return guest.mfns[draw.pick((L3_PFN, L2_PFN, *L1_PFNS))]
        if choice == 17:
            other = draw.pick(self._guests)
            return other.mfns[draw.pick((*WORKSHOP, L3_PFN, L2_PFN, *L1_PFNS))]
        if choice == 18:
            return draw.pick((guest.domain.shared_info_mfn, guest.domain.grants.mfns[0]))
        if choice == 19:
            return draw.pick((*self._canaries, frames.m2p_frames[0], frames.nr_frames, 1 << 31))
        if choice == 20:
            pde = guest.domain.hole.pdes[0 if draw.below(2) else 52]
            return (pde >> 12) & 0xFFFFFFFF
        if choice == 21:
            return draw.below(frames.nr_frames + 16)
        owned = sorted(frames.pages_of(guest.domain.domid) - set(guest.mfns))
        return draw.pick(owned) if owned else guest.mfns[LISTS]

    @staticmethod
    def _flags(draw: Draw) -> int:
        choice = draw.below(16)
        if choice < 5:
            return KERNEL
        if choice < 9:
            return READ_ONLY
        if choice < 12:
            return TABLE
        return draw.pick((0, 1, 3, 0x63, 0x83, 0x1F, 0x101, 1 << 52 | 3, 1 << 63 | 0x27, 2))

    def _entry(self, guest: Guest, draw: Draw) -> int:
        return entry(self._frame(guest, draw), self._flags(draw))

    @staticmethod
    def _slot(draw: Draw) -> int:
        choice = draw.below(8)
        if choice < 4:
            return choice
        if choice < 6:
            return draw.pick(WORKSHOP)
        return draw.pick((HOLE_SLOT - 1, HOLE_SLOT, 511, 5))

    def _vaddr(self, draw: Draw) -> int:
        choice = draw.below(16)
        if choice < 9:
            return Guest.vaddr(draw.pick(WORKSHOP))
        if choice < 11:
            return Guest.vaddr(draw.pick((L3_PFN, L2_PFN, *L1_PFNS)))
        if choice < 13:
            return draw.below(3) << 30 | draw.below(3) << 21 | draw.below(4) << 12
        if choice < 15:
            return BASE + (1 + draw.below(5) << 21) + (draw.below(4) << 12)
        return draw.pick((HOLE_START, 0xFC000000, 0xFFFFFFF8, HOLE_START - PAGE))

    def _count(self, guest: Guest, draw: Draw, count: int) -> tuple[int, int]:
        """Choose how long a list is said to be, and where the number done goes."""
        choice = draw.below(16)
        if choice == 0:
            return count | MMU_UPDATE_PREEMPTED, guest.vaddr(LISTS) + draw.pick((PAGE, 0, PAGE - 2))
        if choice == 1:
            return count, self._vaddr(draw)
        if choice == 2:
            return draw.pick((0, 0x7FFFFFFF, 0xFFFFFFFF)), 0
        return count, 0

    # -- operations ---------------------------------------------------------------------------

    def _map(self, guest: Guest, draw: Draw) -> int:
        vaddr, new = self._vaddr(draw), self._entry(guest, draw)
        flags = draw.pick((0, 0, UVMF_INVLPG, UVMF_TLB_FLUSH))
        low, high = new & 0xFFFFFFFF, new >> 32
        return self._call(guest, HYPERVISOR_update_va_mapping, vaddr, low, high, flags)

    def _update(self, guest: Guest, draw: Draw) -> int:
        updates = []
        for _ in range(draw.pick((1, 1, 1, 2, 4))):
            table_mfn = self._frame(guest, draw)
            command = draw.pick((0, 0, 0, MMU_PT_UPDATE_PRESERVE_AD, MMU_MACHPHYS_UPDATE))
            updates.append(
                (table_mfn * PAGE + self._slot(draw) * 8 + command, self._entry(guest, draw))
            )
        foreign = DOMID_SELF
        if not draw.below(12):
            foreign = draw.pick((0, 1, 2, DOMID_IO, DOMID_XEN, DOMID_SELF | 2 << 16))
        at = guest.place(flat(updates))
        count, pdone = self._count(guest, draw, len(updates))
        return self._call(guest, HYPERVISOR_mmu_update, at, count, pdone, foreign)

    def _change(self, guest: Guest, draw: Draw) -> int:
        """Change an entry of a live table a little: one bit, or another frame of the same kind."""
        frames, m64 = self.world.machine.frames, self.world.machine.memory.m64
        owned = sorted(frames.pages_of(guest.domain.domid))
        tables = [mfn for mfn in owned if frames.kind[mfn] in _TABLE_KINDS]
        if not tables:
            return 0
        table_mfn = draw.pick(tables)
        level_below = frames.kind[table_mfn] - 1 if frames.kind[table_mfn] != FrameType.L2XEN else 1
        live = [n for n in range(512) if m64[table_mfn * 512 + n] & 1 and n < HOLE_SLOT]
        slot = draw.pick(live) if live else 0
        old = m64[table_mfn * 512 + slot]
        choice = draw.below(4)
        if choice == 0:
            new = old ^ 1 << draw.below(64)
        elif choice == 1:
            new = 0
        else:
            same = [mfn for mfn in owned if frames.kind[mfn] == (level_below or FrameType.WRITABLE)]
            new = entry(draw.pick(same or owned), old & 0xFFF | (old & 1 << 63))
        at = guest.place(flat([(table_mfn * PAGE + slot * 8, new)]))
        return self._call(guest, HYPERVISOR_mmu_update, at, 1, 0, DOMID_SELF)

    def _extended(self, guest: Guest, draw: Draw) -> int:
        operations = b""
        count = draw.pick((1, 1, 1, 3))
        for _ in range(count):
            command = draw.pick(
                (
                    MMUEXT_PIN_L1_TABLE,
                    MMUEXT_PIN_L2_TABLE,
                    MMUEXT_PIN_L3_TABLE,
                    MMUEXT_UNPIN_TABLE,
                    MMUEXT_UNPIN_TABLE,
                    MMUEXT_NEW_BASEPTR,
                    MMUEXT_CLEAR_PAGE,
                    MMUEXT_COPY_PAGE,
                    MMUEXT_TLB_FLUSH_LOCAL,
                    MMUEXT_INVLPG_LOCAL,
                )
            )
            operations += pack(
                "<III",
                command,
                self._frame(guest, draw) & 0xFFFFFFFF,
                self._frame(guest, draw) & 0xFFFFFFFF,
            )
        at = guest.place(operations)
        count, pdone = self._count(guest, draw, count)
        return self._call(guest, HYPERVISOR_mmuext_op, at, count, pdone, DOMID_SELF)

    def _make_table(self, guest: Guest, draw: Draw) -> int:
        """Write a page full of entries as a guest does, close it, and pin it."""
        level = draw.pick((1, 1, 2, 2, 3))
        pfn = draw.pick(WORKSHOP)
        flags = (KERNEL, READ_ONLY) if level == 1 else (TABLE, TABLE)
        entries = {}
        for _ in range(draw.below(6)):
            slot = draw.below(4) if level == 3 else self._slot(draw)
            target = guest.mfns[draw.pick(WORKSHOP)]
            entries[slot] = entry(target, draw.pick(flags))
        if not draw.below(4):
            entries[self._slot(draw)] = self._entry(guest, draw)
        closed = draw.pick((READ_ONLY, READ_ONLY, 0))
        return self._close_and_pin(guest, pfn, entries, level if draw.below(4) else 0, closed)

    def _make_space(self, guest: Guest, draw: Draw) -> int:
        """Make a second address space over the first L1s, and perhaps move there."""
        l3_pfn, l2_pfn = draw.pick(WORKSHOP), draw.pick(WORKSHOP)
        tables = {n: entry(guest.mfns[pfn], TABLE) for n, pfn in enumerate(L1_PFNS)}
        if draw.below(2):
            tables[3] = entry(guest.mfns[draw.pick(WORKSHOP)], TABLE)
        self._close_and_pin(guest, l2_pfn, tables, 0)
        top = {3: entry(guest.mfns[l2_pfn], TABLE)}
        if draw.below(2):
            top[draw.below(3)] = entry(guest.mfns[draw.pick(WORKSHOP)], TABLE)
        result = self._close_and_pin(guest, l3_pfn, top, draw.pick((0, 3)))
        if result < 0 or draw.below(2):
            return result
        at = guest.place(pack("<III", MMUEXT_NEW_BASEPTR, guest.mfns[l3_pfn], 0))
        return self._call(guest, HYPERVISOR_mmuext_op, at, 1, 0, DOMID_SELF)

    def _close_and_pin(
        self,
        guest: Guest,
        pfn: int,
        entries: dict[int, int],
        level: int,
        closed: int = READ_ONLY,
    ) -> int:
        """Map a page, fill it, take the right to write it away, and pin it at ``level`` if any."""
        vaddr, mfn = guest.vaddr(pfn), guest.mfns[pfn]
        for flags in (KERNEL, closed):
            new = entry(mfn, flags) if flags else 0
            result = self._call(
                guest, HYPERVISOR_update_va_mapping, vaddr, new & 0xFFFFFFFF, new >> 32
            )
            if result < 0:
                return result
            if flags == KERNEL:
                page = bytearray(PAGE)
                for slot, value in entries.items():
                    page[slot * 8 : slot * 8 + 8] = value.to_bytes(8, "little")
                guest.engine.store(vaddr, 0)
                guest.domain.guest_memory.write(vaddr, bytes(page))
        if not level:
            return 0
        command = (MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE)[level - 1]
        at = guest.place(pack("<III", command, mfn, 0))
        return self._call(guest, HYPERVISOR_mmuext_op, at, 1, 0, DOMID_SELF)

    def _touch(self, guest: Guest, draw: Draw) -> int:
        """Use memory as the guest's own instructions do; a page fault is no refusal."""
        for _ in range(4):
            vaddr = self._vaddr(draw) & ~7 | draw.below(64) * 8
            if draw.below(3):
                guest.engine.store(vaddr & 0xFFFFFFFF, self._entry(guest, draw) & 0xFFFFFFFF)
            else:
                guest.engine.load(vaddr & 0xFFFFFFFF)
        return 0

    def _memory(self, guest: Guest, draw: Draw) -> int:
        operation = draw.pick(
            (
                XENMEM_decrease_reservation,
                XENMEM_decrease_reservation,
                XENMEM_populate_physmap,
                XENMEM_increase_reservation,
            )
        )
        extents = [self._frame(guest, draw) & 0xFFFFFFFF for _ in range(1 + draw.below(3))]
        order = draw.pick((0, 0, 0, 1, 3, 10))
        domid = draw.pick((DOMID_SELF, DOMID_SELF, DOMID_SELF, guest.domain.domid, 0))
        listed = guest.place(pack(f"<{len(extents)}I", *extents)) + 64
        guest.domain.guest_memory.write(listed, pack(f"<{len(extents)}I", *extents))
        request = XenMemoryReservation(listed, len(extents), order, 0, domid)
        at = guest.place(request.pack())
        return self._call(guest, HYPERVISOR_memory_op, operation, at)

    def _exchange(self, guest: Guest, draw: Draw) -> int:
        count = draw.pick((1, 2, 4))
        order = draw.pick((0, 0, 1))
        pfns = [draw.pick(WORKSHOP) for _ in range(count)]
        extents = [guest.mfns[pfn] for pfn in pfns]
        if not draw.below(4):
            extents[0] = self._frame(guest, draw) & 0xFFFFFFFF
        for pfn in pfns:
            self._call(guest, HYPERVISOR_update_va_mapping, guest.vaddr(pfn), 0, 0)
        at = guest.place(b"")
        guest.domain.guest_memory.write(at + 64, pack(f"<{count}I", *extents))
        guest.domain.guest_memory.write(at + 128, pack(f"<{count}I", *range(count)))
        request = XenMemoryExchange(
            XenMemoryReservation(at + 64, count, 0, 0, DOMID_SELF),
            XenMemoryReservation(at + 128, count >> order, order, 0, DOMID_SELF),
            0,
        )
        at = guest.place(request.pack())
        result = self._call(guest, HYPERVISOR_memory_op, XENMEM_exchange, at)
        if not result and not order:
            new = guest.domain.guest_memory.read(guest.vaddr(LISTS) + 128, 4 * count)
            for pfn, mfn in zip(pfns, unpack(f"<{count}I", new), strict=True):
                guest.mfns[pfn] = mfn
        return result

    def _descriptors(self, guest: Guest, draw: Draw) -> int:
        choice = draw.below(4)
        if choice == 0:
            frames = [self._frame(guest, draw) & 0xFFFFFFFF for _ in range(1 + draw.below(2))]
            at = guest.place(pack(f"<{len(frames)}I", *frames))
            entries = draw.pick((0, len(frames) * 512, 8000))
            return self._call(guest, HYPERVISOR_set_gdt, at, entries)
        if choice == 1:
            operation = pack("<III", MMUEXT_SET_LDT, self._vaddr(draw), draw.pick((0, 16, 1024)))
            at = guest.place(operation)
            return self._call(guest, HYPERVISOR_mmuext_op, at, 1, 0, DOMID_SELF)
        if choice == 2:
            page = guest.domain.hole.ldt_vaddr(0) + draw.below(2) * PAGE
            return 0 if guest.domain.descriptors.fix_fault(page) is None else -1
        maddr = self._frame(guest, draw) * PAGE + draw.pick((0, 8, 4))
        descriptor = draw.pick((0x00CFFA000000FFFF, 0x00CF9A000000FFFF, 0x0000890000000067, 0))
        return self._call(
            guest,
            HYPERVISOR_update_descriptor,
            maddr & 0xFFFFFFFF,
            maddr >> 32,
            descriptor & 0xFFFFFFFF,
            descriptor >> 32,
        )

    def _multicall(self, guest: Guest, draw: Draw) -> int:
        calls = b""
        count = 1 + draw.below(4)
        for _ in range(count):
            new = self._entry(guest, draw)
            vaddr = self._vaddr(draw)
            number = draw.pick((HYPERVISOR_update_va_mapping,) * 4 + (HYPERVISOR_multicall, 63))
            calls += MulticallEntry(number, 0, (vaddr, new & 0xFFFFFFFF, new >> 32, 0, 0, 0)).pack()
        at = guest.place(calls)
        return self._call(guest, HYPERVISOR_multicall, at, count)

    def _grant(self, guest: Guest, draw: Draw) -> int:
        """Offer a frame to Dom0, which maps it."""
        grants, ref = guest.domain.grants, draw.below(_GRANT_REFS)
        if draw.below(3):
            grants.seed(ref, draw.pick((0, 0, 0, 1)), self._frame(guest, draw) & 0xFFFFFFFF)
        before = self._state()
        try:
            writable = bool(draw.below(2))
            mapping = self.world.dom0.maptrack.map(grants, ref, writable=writable)
            self._mappings.append(mapping)
        except Refused as refused:
            if self._state() != before:
                raise Broken(f"{refused} left traces") from refused
            return -refused.errno
        return 0

    def _grant_maps(self, guest: Guest, draw: Draw) -> int:
        """Map, unmap, replace or copy what another guest offers, which may just have changed it."""
        granter = draw.pick(self._guests)
        ref, domid = draw.below(_GRANT_REFS), granter.domain.domid
        if draw.below(2):
            to = guest.domain.domid if draw.below(8) else 0
            granter.domain.grants.seed(ref, to, self._frame(granter, draw) & 0xFFFFFFFF)
        choice = draw.below(8)
        by_pte = choice < 4 and not draw.below(3)
        flags = draw.pick((GNTMAP_host_map, GNTMAP_host_map, 3, 1)) | draw.pick(
            (0, GNTMAP_readonly)
        )
        host = self._vaddr(draw)
        if by_pte:
            flags |= GNTMAP_contains_pte
            host = self._frame(guest, draw) * PAGE + self._slot(draw) * 8 + draw.pick((0, 0, 0, 4))
        handle = draw.below(12)
        operation: Structure
        if choice < 4:
            command = GNTTABOP_map_grant_ref
            operation = GnttabMapGrantRef(host, flags, ref, domid, 0, 0, 0)
        elif choice < 6:
            command = GNTTABOP_unmap_grant_ref
            live = self._host_address(guest, handle)
            at = host if live is None or not draw.below(4) else live
            operation = GnttabUnmapGrantRef(at, draw.pick((0, 0, 1 << 12)), handle, 0)
        elif choice == 6:
            command = GNTTABOP_unmap_and_replace
            at = self._host_address(guest, handle) or host
            operation = GnttabUnmapAndReplace(at, self._vaddr(draw), handle, 0)
        else:
            command = GNTTABOP_copy
            sides = [
                (ref, domid, draw.pick((0, 4000)))
                if draw.below(2)
                else (self._frame(guest, draw) & 0xFFFFFFFF, DOMID_SELF, draw.pick((0, 9)))
                for _ in range(2)
            ]
            operation = GnttabCopy(*sides[0], *sides[1], draw.pick((8, 96)), draw.below(4), 0)
        at = guest.place(operation.pack())
        result = self._call(guest, HYPERVISOR_grant_table_op, command, at, 1)
        return result or -self._status_differs(guest, at, operation)

    @staticmethod
    def _status_differs(guest: Guest, at: int, operation: Structure) -> int:
        """Tell whether an operation has failed; 0 where its list is gone, which it may map over."""
        try:
            answer = guest.domain.guest_memory.read(at, len(operation.pack()))
        except Refused:
            return 0
        return int(getattr(type(operation).unpack(answer), "status", 0) < 0)

    @staticmethod
    def _host_address(guest: Guest, handle: int) -> int | None:
        """Find where a live handle is mapped among the addresses that are tried."""
        try:
            mfn = guest.domain.maptrack.find(handle).mfn
        except Refused:
            return None
        for pfn in (*WORKSHOP, L3_PFN, L2_PFN, *L1_PFNS):
            slot = guest.domain.paging.slot_of(guest.vaddr(pfn))
            entry_there = guest.world.machine.memory.m64[slot] if slot is not None else 0
            if entry_there & 1 and entry_there >> 12 & 0xFFFFF == mfn:
                return guest.vaddr(pfn)
        return None

    def _transfer(self, guest: Guest, draw: Draw) -> int:
        """Give a frame, which is often mapped or a table, to a guest, which often waits for it."""
        receiver, ref = draw.pick(self._guests), draw.below(_GRANT_REFS)
        if draw.below(4):
            at = receiver.domain.grants.mfns[0] * PAGE + ref * SIZEOF_GRANT_ENTRY_V1
            flags = draw.pick((GTF_accept_transfer,) * 6 + (GTF_permit_access, 6))
            offer = pack("<HHI", flags, guest.domain.domid, 0)
            self.world.machine.memory.write(at, offer)
        mfn = self._frame(guest, draw) & 0xFFFFFFFF
        operation = GnttabTransfer(mfn, receiver.domain.domid, ref, 0)
        at = guest.place(operation.pack())
        result = self._call(guest, HYPERVISOR_grant_table_op, GNTTABOP_transfer, at, 1)
        return result or -self._status_differs(guest, at, operation)

    def _unmap_grant(self, _guest: Guest, draw: Draw) -> int:
        if self._mappings:
            mapping = self._mappings.pop(draw.below(len(self._mappings)))
            self.world.dom0.maptrack.unmap(mapping)
        return 0

    def _preempt(self, guest: Guest, draw: Draw) -> int:
        """Do something long with little time, and something else in between."""
        self._budget = draw.pick((1, 60, 200))
        interference = draw.below(3)
        inner = Draw([draw.below(1 << 16) for _ in range(NUMBERS)])

        def interfere(who: Guest) -> None:
            self._budget, self._interference = 0, None
            self._operations["map" if interference == 1 else "make_table"](who, inner)

        if interference:
            self._interference = interfere
        try:
            outer = draw.pick(("make_space", "extended", "update", "make_table", "descriptors"))
            return self._operations[outer](guest, draw)
        finally:
            self._budget, self._interference = 0, None

    def _die(self, guest: Guest, draw: Draw) -> int:
        if draw.below(4):
            return 0
        index = self._guests.index(guest)
        del self._tables[guest.domain.domid]
        self.world.remove(guest)
        self._guests[index] = self._new_guest()
        return 0


def _is_granted(guest: Guest, mfn: int, *, writable: bool) -> bool:
    """Tell whether a grant lets the guest reach a frame of another domain in that way."""
    return any(
        frame == mfn and (may_write or not writable)
        for _, _, frame, may_write in guest.domain.maptrack.pins()
    )


def _is_whole(number: int, arguments: Sequence[int]) -> bool:
    """Tell whether a call does all or nothing: a list of one, or no list."""
    if number in (HYPERVISOR_mmu_update, HYPERVISOR_mmuext_op):
        return arguments[1] <= 1 and not arguments[2]
    return number in (HYPERVISOR_update_va_mapping, HYPERVISOR_update_descriptor)


# -- sequences ----------------------------------------------------------------------------------

WEIGHTS: Mapping[str, int] = {
    "map": 22,
    "update": 14,
    "change": 10,
    "extended": 16,
    "make_table": 14,
    "make_space": 6,
    "touch": 10,
    "memory": 6,
    "exchange": 2,
    "descriptors": 5,
    "multicall": 3,
    "grant": 3,
    "unmap_grant": 3,
    "grant_maps": 12,
    "transfer": 4,
    "preempt": 5,
    "die": 1,
}


def generate(seed: int, count: int, weights: Mapping[str, int] = WEIGHTS) -> Iterable[Operation]:
    """Yield a sequence of operations; the same for the same seed."""
    random = Random(seed)
    names = list(weights)
    for _ in range(count):
        [name] = random.choices(names, list(weights.values()))
        yield name, tuple(random.randrange(1 << 16) for _ in range(NUMBERS))


@dataclass(frozen=True)
class Failure:
    """What went wrong, and the operations that led there."""

    error: BaseException
    operations: list[Operation]

    def __str__(self) -> str:
        listed = "\n".join(f"    {operation}," for operation in self.operations)
        return f"{type(self.error).__name__}: {self.error}\nafter\n[\n{listed}\n]"


def run(
    operations: Iterable[Operation],
    *,
    audit_every: int = AUDIT_EVERY,
    results: dict[str, dict[str, int]] | None = None,
    make: Callable[[], Fuzz] = Fuzz,
) -> Failure | None:
    """Apply a sequence to a new world; return the failure, if there is one."""
    fuzz = make()
    done: list[Operation] = []
    try:
        for number, operation in enumerate(operations):
            done.append(operation)
            try:
                fuzz.apply(operation, audit=number % audit_every == 0)
            except (Refused, DomainCrash):
                # The guest can't even write its requests any more: one that can takes its place.
                fuzz.apply(("die", (operation[1][0], *[0] * NUMBERS)), audit=True)
        fuzz.check()
        fuzz.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Failure(error, done)
    if results is not None:
        for name, counts in fuzz.results.items():
            for outcome, count in counts.items():
                results.setdefault(name, {}).setdefault(outcome, 0)
                results[name][outcome] += count
    return None


def minimise(failure: Failure, limit_s: float = 300, *, make: Callable[[], Fuzz] = Fuzz) -> Failure:
    """Leave out what is not needed to fail in the same way; audits after every operation."""
    operations = failure.operations
    deadline = time.monotonic() + limit_s
    best = run(operations, audit_every=1, make=make) or failure
    operations = best.operations
    size = len(operations) // 2
    while size:
        at = 0
        while at < len(operations) and time.monotonic() < deadline:
            shorter = operations[:at] + operations[at + size :]
            again = run(shorter, audit_every=1, make=make)
            if again is not None and type(again.error) is type(best.error):
                best, operations = again, again.operations
            else:
                at += size
        size //= 2
    return best
