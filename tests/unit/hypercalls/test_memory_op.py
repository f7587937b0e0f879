# SPDX-License-Identifier: GPL-2.0-or-later
"""memory_op gives and takes exactly what it says, and nothing that somebody still uses."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest

from tests.support.domains import (
    FREE_PFN,
    KERNEL,
    L3_PFN,
    LISTS,
    PAGE,
    PAGES,
    READ_ONLY,
    Guest,
    World,
    entry,
)
from tests.support.domains import world as make_world
from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    DOMID_SELF,
    E820_RAM,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EPERM,
    MACH2PHYS_VIRT_START,
    MEMOP_EXTENT_SHIFT,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE,
    XEN_MEMORY_EXCHANGE_NR_EXCHANGED,
    E820entry,
    XenMachphysMapping,
    XENMEM_add_to_physmap,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_increase_reservation,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XENMEMF_populate_on_demand,
    XenMemoryExchange,
    XenMemoryReservation,
)
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import WORK_BUDGET
from xenlite.hypercalls.restart import Restart
from xenlite.machine.frames import INVALID_M2P_ENTRY, FrameType

HEADROOM = 64
EXTENTS = Guest.vaddr(LISTS + 1)  # where a reservation keeps its list
LIST_OPERATIONS = (
    XENMEM_increase_reservation,
    XENMEM_decrease_reservation,
    XENMEM_populate_physmap,
)


@pytest.fixture
def world() -> Iterator[World]:
    with make_world() as made:
        yield made


@pytest.fixture
def guest(world: World) -> Guest:
    return world.add(max_pages=PAGES + HEADROOM)


def write_list(guest: Guest, frames: list[int], at: int = EXTENTS) -> int:
    guest.domain.guest_memory.write(at, pack(f"<{len(frames)}I", *frames))
    return at


def read_list(guest: Guest, count: int, at: int = EXTENTS) -> list[int]:
    return list(unpack(f"<{count}I", guest.domain.guest_memory.read(at, 4 * count)))


def reservation(
    guest: Guest,
    operation: int,
    frames: list[int],
    *,
    order: int = 0,
    flags: int = 0,
    domid: int = DOMID_SELF,
) -> int:
    at = write_list(guest, frames)
    return guest.memory_op(
        operation, XenMemoryReservation(at, len(frames), order, flags, domid).pack()
    )


def exchange(
    guest: Guest, given: list[int], pfns: list[int], *, given_order: int = 0, order: int = 0
) -> tuple[int, int, list[int]]:
    """Return the result, the count of extents exchanged, and the frames gotten."""
    out_at = EXTENTS + PAGE
    request = XenMemoryExchange(
        XenMemoryReservation(write_list(guest, given), len(given), given_order, 0, DOMID_SELF),
        XenMemoryReservation(write_list(guest, pfns, out_at), len(pfns), order, 0, DOMID_SELF),
        0,
    )
    result = guest.memory_op(XENMEM_exchange, request.pack())
    after = XenMemoryExchange.unpack(
        guest.domain.guest_memory.read(guest.vaddr(LISTS), len(request.pack()))
    )
    return result, after.nr_exchanged, read_list(guest, len(pfns), out_at)


def unmap(guest: Guest, *pfns: int) -> list[int]:
    for pfn in pfns:
        assert guest.remap(pfn, 0) == 0
    return [guest.mfns[pfn] for pfn in pfns]


def pages(guest: Guest) -> int:
    return len(guest.world.machine.frames.pages_of(guest.domain.domid))


def ask(guest: Guest, operation: int, domid: int = DOMID_SELF) -> int:
    return guest.memory_op(operation, pack("<H", domid))


# -- decrease_reservation ---------------------------------------------------------------------


def test_decrease_frees_frames_that_nothing_uses(guest: Guest) -> None:
    frames = guest.world.machine.frames
    given = unmap(guest, FREE_PFN, FREE_PFN + 1, FREE_PFN + 2)
    guest.world.machine.memory.m8[given[0] << 12] = 0xAA
    assert reservation(guest, XENMEM_decrease_reservation, given) == 3
    assert pages(guest) == PAGES - 3
    assert [frames.refs[mfn] for mfn in given] == [0, 0, 0]
    assert [frames.m2p[mfn] for mfn in given] == [INVALID_M2P_ENTRY] * 3
    assert guest.world.machine.memory.m8[given[0] << 12] == 0
    assert guest.world.audit() == []


def test_decrease_of_a_mapped_page_frees_it_when_it_is_unmapped(guest: Guest) -> None:
    mfn = guest.mfns[FREE_PFN]
    assert reservation(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert pages(guest) == PAGES
    assert guest.world.audit() == []
    assert guest.remap(FREE_PFN, 0) == 0
    assert pages(guest) == PAGES - 1


def test_decrease_does_the_same_frame_once(guest: Guest) -> None:
    mfn = guest.mfns[FREE_PFN]
    assert reservation(guest, XENMEM_decrease_reservation, [mfn, mfn]) == 1
    assert reservation(guest, XENMEM_decrease_reservation, [mfn]) == 0


def test_decrease_does_not_unpin(guest: Guest) -> None:
    table = guest.make_table(FREE_PFN, {})
    assert guest.mmuext((MMUEXT_PIN_L1_TABLE, table, 0)) == 0
    assert guest.remap(FREE_PFN, 0) == 0
    assert reservation(guest, XENMEM_decrease_reservation, [table]) == 1
    assert table in guest.world.machine.frames.pinned
    assert guest.world.audit() == []
    assert guest.mmuext((MMUEXT_UNPIN_TABLE, table, 0)) == 0
    assert pages(guest) == PAGES - 1


def test_decrease_of_the_live_l3_leaves_it_live(guest: Guest) -> None:
    l3 = guest.mfns[L3_PFN]
    assert reservation(guest, XENMEM_decrease_reservation, [l3]) == 1
    assert guest.domain.current.cr3_mfn == l3
    assert guest.world.machine.frames.owner[l3] == guest.domain.domid


def test_decrease_of_a_gdt_frame_leaves_the_gdt(guest: Guest) -> None:
    [mfn] = unmap(guest, FREE_PFN)
    domain = guest.domain
    domain.paging.work_left = WORK_BUDGET
    domain.descriptors.set_gdt((mfn,), 512)
    assert reservation(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert guest.world.machine.frames.kind[mfn] == FrameType.SEGDESC
    assert guest.world.audit() == []
    domain.descriptors.set_gdt((), 0)
    assert pages(guest) == PAGES - 1


def test_decrease_of_a_page_mapped_read_only_waits_too(guest: Guest) -> None:
    assert guest.remap(FREE_PFN, READ_ONLY) == 0
    mfn = guest.mfns[FREE_PFN]
    assert reservation(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert guest.domain.guest_memory.read(guest.vaddr(FREE_PFN), 4) == bytes(4)
    assert guest.remap(FREE_PFN, 0) == 0
    assert pages(guest) == PAGES - 1


def test_decrease_stops_at_what_is_not_the_domains_page(world: World, guest: Guest) -> None:
    other = world.add()
    frames = world.machine.frames
    [own, last] = unmap(guest, FREE_PFN, FREE_PFN + 1)
    before = world.snapshot()
    for bad in (
        other.mfns[FREE_PFN],
        guest.domain.shared_info_mfn,
        guest.domain.grants.mfns[0],
        frames.m2p_frames[0],
        frames.nr_frames,
        0xFFFFFFFF,
    ):
        assert reservation(guest, XENMEM_decrease_reservation, [bad]) == 0
        assert world.snapshot()[:6] == before[:6]
    assert reservation(guest, XENMEM_decrease_reservation, [own, 0xFFFFFFFF, last]) == 1
    assert frames.owner[last] == guest.domain.domid


def test_decrease_of_a_granted_page_waits_for_the_unmap(world: World, guest: Guest) -> None:
    [mfn] = unmap(guest, FREE_PFN)
    grants = guest.domain.grants
    grants.seed(8, 0, mfn)
    mapping = world.dom0.maptrack.map(grants, 8, writable=True)
    assert reservation(guest, XENMEM_decrease_reservation, [mfn]) == 1
    assert world.machine.frames.owner[mfn] == guest.domain.domid
    assert world.audit() == []
    world.dom0.maptrack.unmap(mapping)
    assert pages(guest) == PAGES - 1


# -- increase and populate --------------------------------------------------------------------


def test_populate_names_and_returns_new_frames(guest: Guest) -> None:
    assert reservation(guest, XENMEM_populate_physmap, [2000, 2001]) == 2
    new = read_list(guest, 2)
    frames = guest.world.machine.frames
    assert [frames.m2p[mfn] for mfn in new] == [2000, 2001]
    assert [frames.owner[mfn] for mfn in new] == [guest.domain.domid] * 2
    assert pages(guest) == PAGES + 2


def test_new_frames_hold_nothing_of_others(world: World, guest: Guest) -> None:
    other = world.add()
    for pfn in range(FREE_PFN, FREE_PFN + 200):
        other.domain.guest_memory.write(other.vaddr(pfn), b"secret" * 600)
    world.remove(other)
    assert reservation(guest, XENMEM_populate_physmap, list(range(2000, 2000 + HEADROOM))) == 64
    for mfn in read_list(guest, HEADROOM):
        assert world.machine.memory.read(mfn << 12, PAGE) == bytes(PAGE)


def test_no_domain_grows_beyond_its_maximum(guest: Guest) -> None:
    wanted = list(range(2000, 2000 + HEADROOM + 10))
    assert reservation(guest, XENMEM_populate_physmap, wanted) == HEADROOM
    assert pages(guest) == PAGES + HEADROOM
    assert reservation(guest, XENMEM_populate_physmap, [3000]) == -ENOMEM
    assert reservation(guest, XENMEM_increase_reservation, [0]) == -ENOMEM
    assert pages(guest) == PAGES + HEADROOM


def test_increase_writes_a_list_only_where_there_is_one(guest: Guest) -> None:
    assert reservation(guest, XENMEM_increase_reservation, [0, 0]) == 2
    assert all(guest.world.machine.frames.refs[mfn] == 1 for mfn in read_list(guest, 2))
    anonymous = XenMemoryReservation(0, 3, 0, 0, DOMID_SELF).pack()
    assert guest.memory_op(XENMEM_increase_reservation, anonymous) == 3
    assert pages(guest) == PAGES + 5


def test_an_extent_is_contiguous_and_aligned(guest: Guest) -> None:
    assert reservation(guest, XENMEM_populate_physmap, [2048], order=4) == 1
    [first] = read_list(guest, 1)
    frames = guest.world.machine.frames
    assert first % 16 == 0
    assert list(frames.m2p[first : first + 16]) == list(range(2048, 2064))
    assert reservation(guest, XENMEM_decrease_reservation, [first], order=4) == 1
    assert pages(guest) == PAGES


def test_lazy_and_low_memory_cannot_be_had(guest: Guest) -> None:
    for flags in (XENMEMF_populate_on_demand, 13):
        assert reservation(guest, XENMEM_populate_physmap, [2000], flags=flags) == 0
    assert pages(guest) == PAGES


# -- what is wrong with a request -------------------------------------------------------------


@pytest.mark.parametrize("operation", LIST_OPERATIONS)
def test_a_bad_request_changes_nothing(world: World, guest: Guest, operation: int) -> None:
    other = world.add()
    mfn = guest.mfns[FREE_PFN]
    write_list(guest, [mfn])

    def request(start: int, count: int, order: int, domid: int = DOMID_SELF) -> int:
        return guest.memory_op(
            operation, XenMemoryReservation(start, count, order, 0, domid).pack()
        )

    before = world.snapshot()[:6]
    assert request(EXTENTS, 1, 10) == -EPERM
    assert request(EXTENTS, 1, 20) == -EPERM
    assert request(EXTENTS, 1 << 31, 0) == -EINVAL
    assert request(EXTENTS, 1, 0, other.domain.domid) == -EPERM
    assert request(EXTENTS, 1, 0, 0) == -EPERM
    assert request(EXTENTS, 1, 0, 0x7FF1) == -EPERM
    assert request(HOLE_START - 8, 4, 0) == -EFAULT
    assert request(0xFFFFFFFC, 4, 0) == -EFAULT
    assert request(0x10000, 1, 0) == -EFAULT
    assert guest.memory_op(operation, HOLE_START) == -EFAULT
    assert guest.memory_op(operation, 0) == -EFAULT
    assert request(EXTENTS, 0, 0) == 0
    assert world.snapshot()[:6] == before


def test_a_list_that_ends_at_a_hole_in_memory_is_done_up_to_it(guest: Guest) -> None:
    [*_] = unmap(guest, LISTS + 2)
    start = EXTENTS + PAGE - 8
    write_list(guest, [5000, 5001], start)
    request = XenMemoryReservation(start, 4, 0, 0, DOMID_SELF).pack()
    assert guest.memory_op(XENMEM_populate_physmap, request) == 2
    assert pages(guest) == PAGES + 2


def test_a_list_that_cannot_be_written_gets_nothing(guest: Guest) -> None:
    assert guest.remap(LISTS + 1, KERNEL & ~2) == 0
    request = XenMemoryReservation(EXTENTS, 1, 0, 0, DOMID_SELF).pack()
    assert guest.memory_op(XENMEM_populate_physmap, request) == -EFAULT
    assert guest.memory_op(XENMEM_increase_reservation, request) == -EFAULT
    assert pages(guest) == PAGES


def test_the_restart_count_is_believed_only_within_the_list(guest: Guest) -> None:
    command = XENMEM_populate_physmap | 7 << MEMOP_EXTENT_SHIFT
    assert reservation(guest, command, [2000]) == 7
    assert pages(guest) == PAGES
    assert guest.memory_op(XENMEM_maximum_ram_page | 1 << MEMOP_EXTENT_SHIFT, 0) == -EINVAL


def test_a_long_list_restarts(guest: Guest) -> None:
    given = unmap(guest, *range(FREE_PFN, FREE_PFN + 900))
    write_list(guest, given)
    request = XenMemoryReservation(EXTENTS, len(given), 0, 0, DOMID_SELF)
    argument = guest.place(request.pack())
    command, restarts, result = XENMEM_decrease_reservation, 0, None
    while result is None:
        try:
            result = guest.memory.memory_op(command, argument, 0, 0, 0)
        except Restart as restart:
            command, again, *_ = restart.arguments
            restarts += 1
            assert again == argument
            assert pages(guest) == PAGES - (command >> MEMOP_EXTENT_SHIFT)
    assert result == len(given)
    assert restarts >= 2
    assert pages(guest) == PAGES - len(given)


def test_a_long_exchange_restarts(guest: Guest) -> None:
    pfns = list(range(FREE_PFN, FREE_PFN + 200))
    given = unmap(guest, *pfns)
    request = XenMemoryExchange(
        XenMemoryReservation(write_list(guest, given), 200, 0, 0, DOMID_SELF),
        XenMemoryReservation(write_list(guest, pfns, EXTENTS + PAGE), 200, 0, 0, DOMID_SELF),
        0,
    )
    argument = guest.place(request.pack())
    with pytest.raises(Restart) as restart:
        guest.memory.memory_op(XENMEM_exchange, argument, 0, 0, 0)
    assert 0 < read_list(guest, 1, argument + XEN_MEMORY_EXCHANGE_NR_EXCHANGED)[0] < 200
    assert guest.world.audit() == []
    assert guest.call(guest.memory.memory_op, *restart.value.arguments) == 0
    assert read_list(guest, 1, argument + XEN_MEMORY_EXCHANGE_NR_EXCHANGED) == [200]
    assert pages(guest) == PAGES


# -- exchange ---------------------------------------------------------------------------------


def test_exchange_gives_contiguous_for_scattered(guest: Guest) -> None:
    given = unmap(guest, *range(FREE_PFN, FREE_PFN + 8))
    result, count, [first] = exchange(guest, given, [FREE_PFN], order=3)
    assert (result, count) == (0, 8)
    frames = guest.world.machine.frames
    assert list(frames.m2p[first : first + 8]) == list(range(FREE_PFN, FREE_PFN + 8))
    assert all(mfn in range(first, first + 8) or not frames.refs[mfn] for mfn in given)
    assert pages(guest) == PAGES


def test_exchange_gives_single_frames_for_an_extent(guest: Guest) -> None:
    assert reservation(guest, XENMEM_populate_physmap, [2048], order=3) == 1
    extent = read_list(guest, 1)
    pfns = list(range(2048, 2056))
    result, count, new = exchange(guest, extent, pfns, given_order=3)
    assert (result, count) == (0, 1)
    assert [guest.world.machine.frames.m2p[mfn] for mfn in new] == pfns
    assert pages(guest) == PAGES + 8


def test_exchange_takes_only_what_nothing_refers_to(world: World, guest: Guest) -> None:
    other = world.add()
    table = guest.make_table(FREE_PFN + 2, {})
    assert guest.mmuext((MMUEXT_PIN_L1_TABLE, table, 0)) == 0
    unmap(guest, FREE_PFN + 2)
    [good] = unmap(guest, FREE_PFN)
    before = world.snapshot()[:6]
    for bad in (
        guest.mfns[FREE_PFN + 1],  # mapped
        table,
        guest.mfns[L3_PFN],
        guest.domain.shared_info_mfn,
        other.mfns[FREE_PFN],
        world.machine.frames.nr_frames,
        good,  # twice
    ):
        result, count, _ = exchange(guest, [good, bad], [7], order=1)
        assert (result, count) == (-EINVAL, 0)
        assert world.snapshot()[:6] == before


def test_exchange_counts_the_chunks_done(guest: Guest) -> None:
    [good] = unmap(guest, FREE_PFN)
    result, count, _ = exchange(guest, [good, guest.mfns[FREE_PFN + 1]], [1, 2])
    assert (result, count) == (-EINVAL, 1)
    assert pages(guest) == PAGES


@pytest.mark.parametrize(
    ("counts", "orders", "done", "errno"),
    [
        ((2, 1), (0, 0), 0, EINVAL),
        ((1, 1), (0, 10), 0, EPERM),
        ((1, 1), (0, 0), 2, EINVAL),
        ((4, 2), (0, 1), 1, EINVAL),
        ((1 << 30, 1 << 30), (0, 0), 0, EINVAL),
    ],
)
def test_exchange_refuses_sizes_that_do_not_fit(
    guest: Guest, counts: tuple[int, int], orders: tuple[int, int], done: int, errno: int
) -> None:
    given, gotten = (
        XenMemoryReservation(EXTENTS, count, order, 0, DOMID_SELF)
        for count, order in zip(counts, orders, strict=True)
    )
    assert guest.memory_op(XENMEM_exchange, XenMemoryExchange(given, gotten, done).pack()) == -errno


def test_exchange_without_memory_gives_nothing_away(guest: Guest) -> None:
    frames = guest.world.machine.frames
    given = unmap(guest, FREE_PFN, FREE_PFN + 1)
    frames.allocate(0, sum(owner == DOMID_INVALID for owner in frames.owner))
    result, count, _ = exchange(guest, given, [FREE_PFN], order=1)
    assert (result, count) == (-ENOMEM, 0)
    assert [frames.refs[mfn] for mfn in given] == [1, 1]


# -- reports ----------------------------------------------------------------------------------


def test_reservations_are_reported_to_their_owner_only(guest: Guest) -> None:
    assert ask(guest, XENMEM_current_reservation) == PAGES
    assert ask(guest, XENMEM_current_reservation, guest.domain.domid) == PAGES
    assert ask(guest, XENMEM_maximum_reservation) == PAGES + HEADROOM
    assert ask(guest, XENMEM_maximum_gpfn) == 0
    for operation in (XENMEM_current_reservation, XENMEM_maximum_reservation, XENMEM_maximum_gpfn):
        assert ask(guest, operation, 0) == -EPERM
        assert guest.memory_op(operation, HOLE_START) == -EFAULT


def test_the_machine_is_as_large_as_it_is(guest: Guest) -> None:
    assert guest.memory_op(XENMEM_maximum_ram_page, 0) == guest.world.machine.frames.nr_frames


def test_the_memory_map_is_one_range(guest: Guest) -> None:
    assert guest.memory_op(XENMEM_memory_map, pack("<II", 8, EXTENTS)) == 0
    assert read_list(guest, 2, guest.vaddr(LISTS)) == [1, EXTENTS]
    assert E820entry.unpack(guest.domain.guest_memory.read(EXTENTS, 20)) == E820entry(
        0, (PAGES + HEADROOM) * PAGE, E820_RAM
    )
    assert guest.memory_op(XENMEM_memory_map, pack("<II", 0, EXTENTS)) == -EINVAL
    assert guest.memory_op(XENMEM_memory_map, pack("<II", 1, HOLE_START - 4)) == -EFAULT


def test_the_m2p_is_where_it_is_mapped(guest: Guest) -> None:
    assert guest.memory_op(XENMEM_machphys_mapping, EXTENTS) == 0
    mapping = XenMachphysMapping.unpack(guest.domain.guest_memory.read(EXTENTS, 12))
    assert mapping.v_start == MACH2PHYS_VIRT_START
    assert mapping.max_mfn == guest.world.machine.frames.nr_frames - 1


def test_privilege_comes_before_arguments(guest: Guest) -> None:
    assert guest.memory_op(XENMEM_machphys_mfn_list, 0xFFFFFFFF) == -EPERM
    assert guest.memory_op(XENMEM_add_to_physmap, 0xFFFFFFFF) == -ENOSYS
    assert guest.memory_op(63, 0) == -ENOSYS


def test_a_new_page_can_be_mapped(guest: Guest) -> None:
    assert reservation(guest, XENMEM_populate_physmap, [2000]) == 1
    [mfn] = read_list(guest, 1)
    assert guest.update_va(guest.vaddr(FREE_PFN), entry(mfn, KERNEL)) == 0
