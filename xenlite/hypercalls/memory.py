# SPDX-License-Identifier: GPL-2.0-or-later
"""memory_op: more memory, less memory, other memory, and what there is (public/memory.h).

The calls that take a list of extents return how many of them were done, and stop at the first that
can't be; they refuse only what is wrong with the request itself. Long ones restart, with the
extents done so far in the upper bits of the command, as Xen's do.

A frame that is given back stays the domain's, and counts as its page, until nothing refers to it:
no pin, no mapping and no CR3 is undone for the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    E820_RAM,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EPERM,
    MACH2PHYS_VIRT_END,
    MACH2PHYS_VIRT_START,
    MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT,
    SHARED_INFO_ARCH_MAX_PFN,
    SIZEOF_XEN_MEMORY_EXCHANGE,
    SIZEOF_XEN_MEMORY_MAP,
    SIZEOF_XEN_MEMORY_RESERVATION,
    XEN_MEMORY_EXCHANGE_NR_EXCHANGED,
    XENMEMF_ADDRESS_BITS_MASK,
    E820entry,
    HYPERVISOR_memory_op,
    XenMachphysMapping,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_get_pod_target,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XENMEM_set_memory_map,
    XENMEM_set_pod_target,
    XENMEMF_populate_on_demand,
    XenMemoryExchange,
    XenMemoryMap,
    XenMemoryReservation,
)
from xenlite.core.paging import LEAST_WORK
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

MAX_ORDER: Final = 9  # of one extent, for a domain without privileges
# In units of the work budget, measured on a machine of 1 GiB; a page of an extent is one more.
_EXTENT_WORK: Final = 4
_CHUNK_WORK: Final = 20  # of an exchange
_FRAMES_PER_UNIT: Final = 2048  # of all of memory, in a search for neighbours that are free
_FRAME: Final = 4  # bytes of one frame number in a list
_MOST_EXTENTS: Final = 0xFFFFFFFF >> MEMOP_EXTENT_SHIFT  # so that a restart can count them
_LISTS: Final = frozenset(
    {XENMEM_increase_reservation, XENMEM_decrease_reservation, XENMEM_populate_physmap}
)
_PRIVILEGED: Final = frozenset(
    {
        XENMEM_machphys_mfn_list,
        XENMEM_machphys_compat_mfn_list,
        XENMEM_machine_memory_map,
        XENMEM_set_memory_map,
        XENMEM_set_pod_target,
        XENMEM_get_pod_target,
    }
)


class MemoryCalls:
    """The memory_op of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._guest_memory = domain.guest_memory
        self._frames = domain.machine.frames
        self._memory = domain.machine.memory
        self._search_work = _EXTENT_WORK + self._frames.nr_frames // _FRAMES_PER_UNIT
        self._reports: dict[int, Callable[[int], int]] = {
            XENMEM_maximum_ram_page: lambda _: self._frames.nr_frames,
            XENMEM_current_reservation: self._current_reservation,
            XENMEM_maximum_reservation: self._maximum_reservation,
            XENMEM_maximum_gpfn: self._maximum_gpfn,
            XENMEM_memory_map: self._memory_map,
            XENMEM_machphys_mapping: self._machphys_mapping,
            XENMEM_exchange: self._exchange,
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {HYPERVISOR_memory_op: self.memory_op}

    def memory_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Return the extents done, or the number asked for."""
        if self._domain.paging.work_left < LEAST_WORK:
            self._domain.paging.begin_work()
        operation = command & MEMOP_CMD_MASK
        done = command >> MEMOP_EXTENT_SHIFT
        if operation in _PRIVILEGED:
            raise Refused(EPERM, "memory.needs-privilege", operation)
        if operation in _LISTS:
            return self._reservation(operation, argument, done)
        report = self._reports.get(operation)
        if report is None:
            raise Refused(ENOSYS, "memory.operation", operation)
        if done:
            raise Refused(EINVAL, "memory.extents-of-no-list", done)
        return report(argument)

    # -- lists of extents ---------------------------------------------------------------------

    def _reservation(self, operation: int, argument: int, done: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_XEN_MEMORY_RESERVATION)
        request = XenMemoryReservation.unpack(copy)
        count, order = request.nr_extents, request.extent_order
        self._check_domid(request.domid)
        if count > _MOST_EXTENTS:
            raise Refused(EINVAL, "memory.too-many-extents", count)
        self._check_order(order)
        if done >= count:
            return done
        is_increase = operation == XENMEM_increase_reservation
        if request.extent_start or not is_increase:
            self._guest_memory.check_range(request.extent_start, count * _FRAME)
        if operation != XENMEM_decrease_reservation and not self._can_place(request.mem_flags):
            return done
        one = {
            XENMEM_increase_reservation: self._increase,
            XENMEM_decrease_reservation: self._decrease,
            XENMEM_populate_physmap: self._populate,
        }[operation]
        paging = self._domain.paging
        for i in range(done, count):
            if paging.work_left <= 0:
                raise Restart((operation | i << MEMOP_EXTENT_SHIFT, argument, 0, 0, 0))
            paging.work_left -= (1 << order) + (self._search_work if order else _EXTENT_WORK)
            try:
                if not one(request.extent_start and request.extent_start + i * _FRAME, order):
                    return i
            except Refused:
                if not i:
                    raise
                return i
        return count

    def _increase(self, at: int, order: int) -> bool:
        """Add an extent, and write its first mfn to ``at`` where that is not 0."""
        if at:
            self._guest_memory.check_writable(at, _FRAME)
        mfn = self._allocate(order)
        if at:
            self._guest_memory.write_u32(at, mfn)
        return True

    def _populate(self, at: int, order: int) -> bool:
        """Add an extent as the pfn that stands at ``at``, and write its first mfn there."""
        self._guest_memory.check_writable(at, _FRAME)
        pfn = self._guest_memory.read_u32(at)
        mfn = self._allocate(order)
        self._name(mfn, pfn, order)
        self._guest_memory.write_u32(at, mfn)
        return True

    def _decrease(self, at: int, order: int) -> bool:
        """Give an extent back; False where one of its frames is not the domain's to give."""
        first = self._guest_memory.read_u32(at)
        pages = self._frames.pages_of(self._domid)
        return all(
            mfn in pages and self._frames.drop_allocation(mfn)
            for mfn in range(first, first + (1 << order))
        )

    def _allocate(self, order: int) -> int:
        pages = len(self._frames.pages_of(self._domid))
        if pages + (1 << order) > self._domain.max_pages:
            raise Refused(ENOMEM, "memory.over-maximum", self._domain.max_pages)
        return self._frames.allocate_extent(self._domid, order)

    def _name(self, mfn: int, pfn: int, order: int) -> None:
        for i in range(1 << order):
            self._frames.m2p[mfn + i] = (pfn + i) & 0xFFFFFFFF

    # -- exchange -----------------------------------------------------------------------------

    def _exchange(self, argument: int) -> int:
        """Give extents back and get others for them, of another order or lower in memory.

        One chunk at a time (what the larger of both orders makes), each wholly or not at all.
        """
        guest_memory = self._guest_memory
        copy = guest_memory.read(argument, SIZEOF_XEN_MEMORY_EXCHANGE)
        request = XenMemoryExchange.unpack(copy)
        self._check_exchange(request)
        guest_memory.check_writable(argument, SIZEOF_XEN_MEMORY_EXCHANGE)
        paging = self._domain.paging
        order = max(request.in_.extent_order, request.out.extent_order)
        given = 1 << (order - request.in_.extent_order)
        gotten = 1 << (order - request.out.extent_order)
        counter = argument + XEN_MEMORY_EXCHANGE_NR_EXCHANGED
        for done in range(request.nr_exchanged, request.in_.nr_extents, given):
            if paging.work_left <= 0:
                guest_memory.write_u32(counter, done)
                raise Restart((XENMEM_exchange, argument, 0, 0, 0))
            paging.work_left -= (2 << order) + _CHUNK_WORK + self._search_work
            first_out = (done // given) * gotten
            try:
                self._exchange_chunk(request, range(done, done + given), first_out, gotten)
            except Refused:
                guest_memory.write_u32(counter, done)
                raise
        guest_memory.write_u32(counter, request.in_.nr_extents)
        return 0

    def _check_exchange(self, request: XenMemoryExchange) -> None:
        given, gotten = request.in_, request.out
        self._check_domid(given.domid)
        self._check_domid(gotten.domid)
        if max(given.nr_extents, gotten.nr_extents) > _MOST_EXTENTS:
            raise Refused(EINVAL, "memory.too-many-extents", given.nr_extents)
        self._check_order(max(given.extent_order, gotten.extent_order))
        if given.nr_extents << given.extent_order != gotten.nr_extents << gotten.extent_order:
            raise Refused(EINVAL, "memory.exchange-of-unequal-sizes", given.nr_extents)
        chunk = 1 << max(0, gotten.extent_order - given.extent_order)
        if request.nr_exchanged > given.nr_extents or request.nr_exchanged % chunk:
            raise Refused(EINVAL, "memory.exchanged-too-many", request.nr_exchanged)
        self._guest_memory.check_range(given.extent_start, given.nr_extents * _FRAME)
        self._guest_memory.check_range(gotten.extent_start, gotten.nr_extents * _FRAME)
        if not self._can_place(gotten.mem_flags):
            raise Refused(ENOMEM, "memory.address-bits", gotten.mem_flags)

    def _exchange_chunk(
        self, request: XenMemoryExchange, given: range, first_out: int, gotten: int
    ) -> None:
        memory, frames = self._guest_memory, self._frames
        old: list[int] = []
        for i in given:
            first = memory.read_u32(request.in_.extent_start + i * _FRAME)
            old.extend(range(first, first + (1 << request.in_.extent_order)))
        self._check_can_be_stolen(old)
        out_order = request.out.extent_order
        at = request.out.extent_start + first_out * _FRAME
        memory.check_writable(at, gotten * _FRAME)
        pfns = [memory.read_u32(at + i * _FRAME) for i in range(gotten)]
        new = frames.allocate_extents(self._domid, out_order, gotten)
        for mfn in old:
            frames.drop_allocation(mfn)
        for i, (pfn, mfn) in enumerate(zip(pfns, new, strict=True)):
            self._name(mfn, pfn, out_order)
            memory.write_u32(at + i * _FRAME, mfn)

    def _check_can_be_stolen(self, mfns: list[int]) -> None:
        """Refuse frames that anything but the allocation refers to, and any named twice."""
        for mfn in mfns:
            if not self._frames.can_be_stolen(mfn, self._domid):
                raise Refused(EINVAL, "memory.frame-in-use", mfn)
        if len(set(mfns)) != len(mfns):
            raise Refused(EINVAL, "memory.frame-named-twice")

    # -- reports ------------------------------------------------------------------------------

    def _current_reservation(self, argument: int) -> int:
        self._check_domid_at(argument)
        return len(self._frames.pages_of(self._domid))

    def _maximum_reservation(self, argument: int) -> int:
        self._check_domid_at(argument)
        return self._domain.max_pages

    def _maximum_gpfn(self, argument: int) -> int:
        """Return what the guest itself has written into shared_info, less one."""
        self._check_domid_at(argument)
        at = (self._domain.shared_info_mfn << PAGE_SHIFT) + SHARED_INFO_ARCH_MAX_PFN
        return max(self._memory.m32[at >> 2] - 1, 0)

    def _memory_map(self, argument: int) -> int:
        """Show one range of RAM, as large as the domain may become."""
        copy = self._guest_memory.read(argument, SIZEOF_XEN_MEMORY_MAP)
        request = XenMemoryMap.unpack(copy)
        if not request.nr_entries:
            raise Refused(EINVAL, "memory.no-room-for-the-map", request.nr_entries)
        self._guest_memory.check_writable(argument, SIZEOF_XEN_MEMORY_MAP)
        ram = E820entry(0, self._domain.max_pages << PAGE_SHIFT, E820_RAM)
        self._guest_memory.write(request.buffer, ram.pack())
        self._guest_memory.write(argument, XenMemoryMap(1, request.buffer).pack())
        return 0

    def _machphys_mapping(self, argument: int) -> int:
        mapping = XenMachphysMapping(
            MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, self._frames.nr_frames - 1
        )
        self._guest_memory.write(argument, mapping.pack())
        return 0

    # -- checks -------------------------------------------------------------------------------

    def _check_domid_at(self, argument: int) -> None:
        self._check_domid(int.from_bytes(self._guest_memory.read(argument, 2), "little"))

    def _check_domid(self, domid: int) -> None:
        if domid not in (DOMID_SELF, self._domid):
            raise Refused(EPERM, "memory.foreign-domain", domid)

    def _check_order(self, order: int) -> None:
        if order > MAX_ORDER:
            raise Refused(EPERM, "memory.order", order)

    def _can_place(self, mem_flags: int) -> bool:
        """Tell whether frames can be had as asked: all of memory will do, and none is lazy."""
        if mem_flags & XENMEMF_populate_on_demand:
            return False
        bits = mem_flags & XENMEMF_ADDRESS_BITS_MASK
        return not bits or 1 << bits >= self._memory.size_bytes
