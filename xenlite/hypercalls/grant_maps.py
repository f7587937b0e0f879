# SPDX-License-Identifier: GPL-2.0-or-later
"""grant_table_op on lists: map, unmap, copy, swap and transfer (public/grant_table.h).

Each operation of a list has a status of its own, and one that fails doesn't stop the list; only a
list that can't be read or written does. Long lists restart with the rest. Nothing that was unmapped
can be reached any more when the call returns, or stops to restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    E2BIG,
    EAGAIN,
    EBADF,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    SIZEOF_GNTTAB_CACHE_FLUSH,
    SIZEOF_GNTTAB_COPY,
    SIZEOF_GNTTAB_MAP_GRANT_REF,
    SIZEOF_GNTTAB_SWAP_GRANT_REF,
    SIZEOF_GNTTAB_TRANSFER,
    SIZEOF_GNTTAB_UNMAP_AND_REPLACE,
    SIZEOF_GNTTAB_UNMAP_GRANT_REF,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_guest_avail_mask,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_device_space,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabCopy,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    HYPERVISOR_grant_table_op,
)
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import LEAST_WORK
from xenlite.errors import Refused
from xenlite.hypercalls.restart import NoteRefusal, Restart
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.x86_32p import PTE_A, PTE_AVL, PTE_D, PTE_US

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.grant import GrantTable
    from xenlite.core.maptrack import MappedGrant

_WORK: Final = 8  # units of each operation
_MAPPINGS_PER_UNIT: Final = 16  # looked through
_AVAIL_TO_PTE: Final = 16 - 9  # from GNTMAP_guest_avail_mask to PTE_AVL
_STATUS: Final = {
    ESRCH: GNTST_bad_domain,
    EPERM: GNTST_permission_denied,
    ENOENT: GNTST_bad_gntref,
    EBADF: GNTST_bad_handle,
    ENOSPC: GNTST_no_device_space,
    ENXIO: GNTST_bad_page,
    E2BIG: GNTST_bad_copy_arg,
    EAGAIN: GNTST_eagain,
}


class GrantMapCalls:
    """The operations on lists of one domain; ``note`` hears what a status field refuses."""

    def __init__(self, domain: Domain, note: NoteRefusal) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._paging = domain.paging
        self._tlb = domain.tlb
        self._maptrack = domain.maptrack
        self._guest_memory = domain.guest_memory
        self._frames = domain.machine.frames
        self._memory = domain.machine.memory
        self._note = note

    def operations(self) -> dict[int, Callable[[int, int], None]]:
        """Name what does each command, given the address of a list and its length."""
        lists: dict[int, tuple[Callable[[int], None], int]] = {
            GNTTABOP_map_grant_ref: (self._map, SIZEOF_GNTTAB_MAP_GRANT_REF),
            GNTTABOP_unmap_grant_ref: (self._unmap, SIZEOF_GNTTAB_UNMAP_GRANT_REF),
            GNTTABOP_unmap_and_replace: (self._replace, SIZEOF_GNTTAB_UNMAP_AND_REPLACE),
            GNTTABOP_copy: (self._copy, SIZEOF_GNTTAB_COPY),
            GNTTABOP_swap_grant_ref: (self._swap, SIZEOF_GNTTAB_SWAP_GRANT_REF),
            GNTTABOP_cache_flush: (self._cache_flush, SIZEOF_GNTTAB_CACHE_FLUSH),
            GNTTABOP_transfer: (self._transfer, SIZEOF_GNTTAB_TRANSFER),
        }
        return {
            command: self._make_list(command, one, size) for command, (one, size) in lists.items()
        }

    def _make_list(
        self, command: int, one: Callable[[int], None], size: int
    ) -> Callable[[int, int], None]:
        """Bind the loop over a list of structures of that size."""
        unmaps = command in (GNTTABOP_unmap_grant_ref, GNTTABOP_unmap_and_replace)

        def do_list(argument: int, count: int) -> None:
            paging = self._paging
            if paging.work_left < LEAST_WORK:
                paging.begin_work()
            self._guest_memory.check_range(argument, count * size)
            try:
                for done in range(count):
                    at = argument + done * size
                    if paging.work_left <= 0:
                        raise Restart((command, at, count - done, 0, 0))
                    paging.work_left -= _WORK
                    self._guest_memory.check_writable(at, size)
                    one(at)
            finally:
                if unmaps:
                    self._tlb.flush()

        return do_list

    # -- map and unmap ------------------------------------------------------------------------

    def _map(self, at: int) -> None:
        copy = self._guest_memory.read(at, SIZEOF_GNTTAB_MAP_GRANT_REF)
        asked = GnttabMapGrantRef.unpack(copy)
        try:
            mapping = self._map_one(asked)
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_map_grant_ref, at)
            answer = asked.replace(status=status)
        else:
            answer = asked.replace(
                status=GNTST_okay,
                handle=mapping.handle,
                dev_bus_addr=mapping.mfn << PAGE_SHIFT if mapping.on_device else 0,
            )
        self._guest_memory.write(at, answer.pack())

    def _map_one(self, asked: GnttabMapGrantRef) -> MappedGrant:
        flags = asked.flags
        if not flags & (GNTMAP_host_map | GNTMAP_device_map):
            raise Refused(ENOENT, "grants.map-nowhere", flags)
        table = self._granter(asked.dom)
        slot = 0
        by_pte = bool(flags & GNTMAP_contains_pte)
        if flags & GNTMAP_host_map:
            slot = self._find_slot(asked.host_addr, by_pte=by_pte)
        writable = not flags & GNTMAP_readonly
        mapping = self._maptrack.map(table, asked.ref, writable=writable)
        mapping.on_device = bool(flags & GNTMAP_device_map)
        if flags & GNTMAP_host_map:
            mapping.by_pte = by_pte
            pte = PTE_A | PTE_D | (PTE_US if flags & GNTMAP_application_map else 0)
            pte |= (flags & GNTMAP_guest_avail_mask) >> _AVAIL_TO_PTE & PTE_AVL
            self._maptrack.enter(mapping, slot, pte)
        return mapping

    def _unmap(self, at: int) -> None:
        copy = self._guest_memory.read(at, SIZEOF_GNTTAB_UNMAP_GRANT_REF)
        asked = GnttabUnmapGrantRef.unpack(copy)
        try:
            self._unmap_one(asked.handle, asked.host_addr, asked.dev_bus_addr, 0)
            status = GNTST_okay
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_unmap_grant_ref, at)
        self._guest_memory.write(at, asked.replace(status=status).pack())

    def _replace(self, at: int) -> None:
        copy = self._guest_memory.read(at, SIZEOF_GNTTAB_UNMAP_AND_REPLACE)
        asked = GnttabUnmapAndReplace.unpack(copy)
        try:
            self._unmap_one(asked.handle, asked.host_addr, 0, asked.new_addr)
            status = GNTST_okay
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_unmap_and_replace, at)
        self._guest_memory.write(at, asked.replace(status=status).pack())

    def _unmap_one(self, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int) -> None:
        """Undo the host's or the device's side; the pin goes with the last of them.

        With ``new_addr``, the entry there takes the place of the one that is cleared.
        """
        mapping = self._maptrack.find(handle)
        leaves_device = bool(dev_bus_addr) and mapping.on_device
        if leaves_device and dev_bus_addr != mapping.mfn << PAGE_SHIFT:
            raise Refused(EINVAL, "grants.another-bus-address", dev_bus_addr)
        if host_addr and mapping.on_host:
            slot = self._find_slot(host_addr, by_pte=mapping.by_pte)
            source = None
            if new_addr:
                if mapping.by_pte:
                    raise Refused(EINVAL, "grants.replace-by-pte", host_addr)
                source = self._find_slot(new_addr, by_pte=False)
                if source == slot:
                    raise Refused(EINVAL, "grants.replace-by-itself", new_addr)
            self._maptrack.leave(mapping, slot)
            if source is not None:
                self._paging.move_l1(source, slot)
        if leaves_device:
            mapping.on_device = False
        if not mapping.on_host and not mapping.on_device:
            self._maptrack.unmap(mapping)

    def _find_slot(self, address: int, *, by_pte: bool) -> int:
        """Find the L1 entry at a machine address, or the one that maps a virtual address."""
        if by_pte:
            slot = self._paging.l1_slot_at(address)
        else:
            slot = self._paging.slot_of(address) if address < HOLE_START else None
        if slot is None:
            raise Refused(EINVAL, "paging.no-l1-entry", address)
        return slot

    # -- copy ---------------------------------------------------------------------------------

    def _copy(self, at: int) -> None:
        asked = GnttabCopy.unpack(self._guest_memory.read(at, SIZEOF_GNTTAB_COPY))
        try:
            self._copy_one(asked)
            status = GNTST_okay
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_copy, at)
        self._guest_memory.write(at, asked.replace(status=status).pack())

    def _copy_one(self, asked: GnttabCopy) -> None:
        for offset in (asked.source_offset, asked.dest_offset):
            if offset + asked.len > PAGE_SIZE:
                raise Refused(E2BIG, "grants.copy-beyond-the-page", offset)
        source = self._copied(
            asked.source_u, asked.source_domid, is_ref=bool(asked.flags & GNTCOPY_source_gref)
        )
        dest = self._copied(
            asked.dest_u, asked.dest_domid, is_ref=bool(asked.flags & GNTCOPY_dest_gref)
        )
        from_mfn = self._hold(source, asked.source_u, writable=False)
        try:
            to_mfn = self._hold(dest, asked.dest_u, writable=True)
            start = (from_mfn << PAGE_SHIFT) + asked.source_offset
            content = self._memory.read(start, asked.len)
            self._memory.write((to_mfn << PAGE_SHIFT) + asked.dest_offset, content)
            self._let_go(dest, asked.dest_u, to_mfn, writable=True)
        finally:
            self._let_go(source, asked.source_u, from_mfn, writable=False)

    def _copied(self, number: int, domid: int, *, is_ref: bool) -> GrantTable | None:
        """Return whose grant one side of a copy is; None for a frame of the domain's own."""
        if is_ref:
            return self._domain.grants if domid == DOMID_SELF else self._granter(domid)
        if domid != DOMID_SELF:
            raise Refused(EPERM, "grants.copy-of-a-foreign-frame", domid)
        if not self._frames.is_owned(number, self._domid):
            raise Refused(ENXIO, "frames.not-owned", number)
        return None

    def _hold(self, table: GrantTable | None, number: int, *, writable: bool) -> int:
        if table is not None:
            return table.pin((number,), self._domid, writable=writable)[0]
        if writable:
            self._frames.get_writable(number, self._domid, EBUSY)
        else:
            self._frames.get_page(number, self._domid)
        return number

    def _let_go(self, table: GrantTable | None, number: int, mfn: int, *, writable: bool) -> None:
        if table is not None:
            table.unpin((number,), (mfn,), writable=writable)
        elif writable:
            self._frames.put_writable(mfn)
        else:
            self._frames.put_page(mfn)

    # -- transfer -----------------------------------------------------------------------------

    def _transfer(self, at: int) -> None:
        asked = GnttabTransfer.unpack(self._guest_memory.read(at, SIZEOF_GNTTAB_TRANSFER))
        try:
            self._transfer_one(asked.mfn, asked.domid, asked.ref)
            status = GNTST_okay
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_transfer, at)
        self._guest_memory.write(at, asked.replace(status=status).pack())

    def _transfer_one(self, mfn: int, domid: int, ref: int) -> None:
        """Give a page to a domain that waits for it.

        As Xen has it, the page is gone in any case but that of a bad one: what cannot be handed
        over is freed.
        """
        frames = self._frames
        if not frames.can_be_stolen(mfn, self._domid):
            raise Refused(ENXIO, "memory.frame-in-use", mfn)
        frames.steal(mfn)
        try:
            receiver = self._peer(domid)
            if len(frames.pages_of(domid)) >= receiver.max_pages:
                raise Refused(ENOMEM, "memory.over-maximum", receiver.max_pages)
            receiver.grants.receive(ref, self._domid, mfn)
        except Refused:
            frames.drop_allocation(mfn)
            raise

    # -- the rest -----------------------------------------------------------------------------

    def _swap(self, at: int) -> None:
        asked = GnttabSwapGrantRef.unpack(self._guest_memory.read(at, SIZEOF_GNTTAB_SWAP_GRANT_REF))
        try:
            self._domain.grants.swap(asked.ref_a, asked.ref_b)
            status = GNTST_okay
        except Refused as refused:
            status = self._status_of(refused, GNTTABOP_swap_grant_ref, at)
        self._guest_memory.write(at, asked.replace(status=status).pack())

    def _cache_flush(self, at: int) -> None:
        """Check what is asked, and do nothing: caches are coherent. It has no status field."""
        asked = GnttabCacheFlush.unpack(self._guest_memory.read(at, SIZEOF_GNTTAB_CACHE_FLUSH))
        if asked.offset + asked.length > PAGE_SIZE or asked.offset >= PAGE_SIZE:
            raise Refused(EINVAL, "grants.flush-beyond-the-page", asked.offset)
        if not asked.length or not asked.op:
            return
        if asked.op & ~(GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL):
            raise Refused(EOPNOTSUPP, "grants.flush-operation", asked.op)
        mfn = int.from_bytes(asked.a, "little") >> PAGE_SHIFT
        if not self._frames.is_owned(mfn, self._domid):
            self._paging.work_left -= len(self._maptrack) // _MAPPINGS_PER_UNIT
            if not self._maptrack.maps(mfn):
                raise Refused(EPERM, "frames.not-owned", mfn)
        if asked.op == GNTTAB_CACHE_INVAL:
            raise Refused(EOPNOTSUPP, "grants.flush-without-clean", asked.op)

    def _granter(self, domid: int) -> GrantTable:
        return self._peer(domid).grants

    def _peer(self, domid: int) -> Domain:
        peer = self._domain.peers.get(domid)
        if peer is None:
            raise Refused(ESRCH, "grants.no-such-domain", domid)
        return peer

    def _status_of(self, refused: Refused, command: int, at: int) -> int:
        self._note(HYPERVISOR_grant_table_op, (command, at, 1, 0, 0), refused)
        return _STATUS.get(refused.errno, GNTST_general_error)
