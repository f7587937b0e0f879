# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct paging refuses every way to a writable page table, and a refusal changes nothing.

One section per row of SECURITY.md section 1; each attack is the row's action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import pack

import pytest

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
from tests.support.domains import world as make_world
from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    EBUSY,
    EFAULT,
    EINVAL,
    EPERM,
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_UNPIN_TABLE,
    VMASST_TYPE_writable_pagetables,
)
from xenlite.core.hole import HOLE_SLOT, HOLE_START
from xenlite.core.page_writes import PageWrites
from xenlite.core.paging import WORK_BUDGET
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Restart
from xenlite.machine.frames import INVALID_M2P_ENTRY, FrameType
from xenlite.machine.x86_32p import (
    PF_PRESENT,
    PF_WRITE,
    PTE_A,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_PCD,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
)

# Three pages that become tables, and one of plain data, wherever a test needs them.
A, B, C, DATA = FREE_PFN, FREE_PFN + 1, FREE_PFN + 2, FREE_PFN + 3


@pytest.fixture
def world() -> Iterator[World]:
    with make_world() as made:
        yield made


@pytest.fixture
def guest(world: World) -> Guest:
    return world.add()


def pin(guest: Guest, level: int, mfn: int) -> int:
    command = (MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE)[level - 1]
    return guest.mmuext((command, mfn, 0))


def unpin(guest: Guest, mfn: int) -> int:
    return guest.mmuext((MMUEXT_UNPIN_TABLE, mfn, 0))


def operation(command: int, mfn: int) -> bytes:
    return pack("<III", command, mfn, 0)


def kind(guest: Guest, mfn: int) -> FrameType:
    return FrameType(guest.world.machine.frames.kind[mfn])


def store(guest: Guest, table: int, slot: int, value: int) -> int:
    """Ask for one page-table entry by its machine address."""
    return guest.mmu_update((table * PAGE + slot * 8, value))


def refused(guest: Guest, request: Callable[..., int], *errnos: int) -> None:
    """Make a request that must be refused, and leave everything as it was.

    The request list's own page is written before, by a first try.
    """
    assert request() in [-errno for errno in errnos]
    before = guest.world.snapshot()
    assert request() in [-errno for errno in errnos]
    assert guest.world.snapshot() == before
    assert guest.world.audit() == []


def second_space(guest: Guest, l3_pfn: int, l2_pfn: int) -> tuple[int, int]:
    """Make another L3 whose top gigabyte has the same L1s; neither is pinned."""
    tables = {n: entry(guest.mfns[pfn], TABLE) for n, pfn in enumerate(L1_PFNS)}
    l2 = guest.make_table(l2_pfn, tables)
    return guest.make_table(l3_pfn, {3: entry(l2, TABLE)}), l2


# -- A1: one owner, one type ------------------------------------------------------------------


def test_a1_a_page_mapped_writable_is_no_table(guest: Guest) -> None:
    mfn = guest.mfns[A]
    refused(guest, lambda: pin(guest, 1, mfn), EINVAL)
    refused(guest, lambda: pin(guest, 2, mfn), EINVAL)
    refused(guest, lambda: pin(guest, 3, mfn), EINVAL)


def test_a1_a_table_is_not_mapped_writable(guest: Guest) -> None:
    table = guest.make_table(A, {})
    assert pin(guest, 1, table) == 0
    refused(guest, lambda: guest.remap(A, KERNEL), EBUSY, EINVAL)
    refused(guest, lambda: guest.update_va(guest.vaddr(B), entry(table, KERNEL)), EBUSY, EINVAL)
    assert guest.remap(A, 0) == 0
    refused(guest, lambda: guest.remap(A, KERNEL), EBUSY, EINVAL)
    assert unpin(guest, table) == 0
    assert guest.remap(A, KERNEL) == 0


def test_a1_a_table_is_of_one_level(guest: Guest) -> None:
    table = guest.make_table(A, {})
    assert pin(guest, 1, table) == 0
    second = guest.make_table(B, {0: entry(table, TABLE)})
    assert pin(guest, 2, second) == 0
    refused(guest, lambda: store(guest, guest.mfns[L3_PFN], 0, entry(table, TABLE)), EINVAL)
    refused(guest, lambda: store(guest, guest.mfns[L2_PFN], 9, entry(second, TABLE)), EINVAL)


# -- A2, A3: no writable path, counts that are right ------------------------------------------


def test_a2_an_own_l1_mapped_read_only_does_not_become_writable(guest: Guest) -> None:
    own = guest.mfns[L1_PFNS[0]]
    slot = guest.slot(A)
    assert guest.mmu_update((slot, entry(own, READ_ONLY))) == 0
    refused(guest, lambda: guest.mmu_update((slot, entry(own, KERNEL))), EBUSY, EINVAL)
    refused(
        guest,
        lambda: guest.mmu_update((slot | MMU_PT_UPDATE_PRESERVE_AD, entry(own, KERNEL))),
        EBUSY,
        EINVAL,
    )
    refused(guest, lambda: guest.mmu_update((slot, entry(own, TABLE))), EBUSY, EINVAL)
    assert guest.read_slot(slot) == entry(own, READ_ONLY)


def test_a2_two_halves_of_a_writable_path_make_none(guest: Guest) -> None:
    """A table under construction may not be writable through itself once it is complete."""
    table = guest.mfns[A]
    guest.fill(A, {0: entry(table, KERNEL)})
    assert guest.remap(A, READ_ONLY) == 0
    refused(guest, lambda: pin(guest, 1, table), EINVAL, EBUSY)


def test_a3_machphys_updates_leave_no_reference(guest: Guest) -> None:
    mfn = guest.mfns[A]
    assert guest.remap(A, 0) == 0
    for _ in range(4):
        assert guest.mmu_update(*[(mfn * PAGE | MMU_MACHPHYS_UPDATE, A)] * 250) == 0
    assert guest.world.machine.frames.refs[mfn] == 1
    assert guest.world.machine.frames.drop_allocation(mfn)
    assert guest.world.machine.frames.refs[mfn] == 0


# -- A4: entries that are more than they seem -------------------------------------------------


def test_a4_a_large_page_is_refused_at_every_level(guest: Guest) -> None:
    own = guest.mfns[DATA] & ~511 | 0
    l2, l3 = guest.mfns[L2_PFN], guest.mfns[L3_PFN]
    refused(guest, lambda: store(guest, l2, 5, entry(own, PTE_P | PTE_RW | PTE_PSE)), EINVAL)
    refused(guest, lambda: store(guest, l3, 0, entry(own, PTE_P | PTE_PSE)), EINVAL)
    live = guest.read_slot(l2 * PAGE)
    refused(guest, lambda: store(guest, l2, 0, live | PTE_PSE), EINVAL)
    table = guest.make_table(A, {0: entry(own, PTE_P | PTE_RW | PTE_PSE)})
    refused(guest, lambda: pin(guest, 2, table), EINVAL)


@pytest.mark.parametrize("bit", [3, 4, 7, 51, 52, 58, 62])
def test_a4_forbidden_bits_are_refused_in_an_l1(guest: Guest, bit: int) -> None:
    slot, mfn = guest.slot(A), guest.mfns[A]
    refused(
        guest,
        lambda: guest.mmu_update((slot, entry(mfn, KERNEL) | 1 << bit)),
        EINVAL,
        EBUSY,
    )
    table = guest.make_table(B, {0: entry(guest.mfns[DATA], KERNEL) | 1 << bit})
    refused(guest, lambda: pin(guest, 1, table), EINVAL, EBUSY)


def test_a4_harmless_bits_change_freely(guest: Guest) -> None:
    slot, mfn = guest.slot(A), guest.mfns[A]
    for flags in (PTE_P | PTE_RW, PTE_P | PTE_RW | PTE_A | PTE_D | 0xF04 | PTE_NX, KERNEL):
        assert guest.mmu_update((slot, entry(mfn, flags))) == 0
        assert guest.world.audit() == []


def test_a4_an_entry_that_is_not_present_may_hold_anything(guest: Guest) -> None:
    slot = guest.slot(A)
    assert guest.mmu_update((slot, 0xFFFF_FFFF_FFFF_FFFE)) == 0
    assert guest.world.audit() == []


def test_a4_the_right_to_write_through_an_l2_entry_is_counted_once(guest: Guest) -> None:
    l2 = guest.mfns[L2_PFN]
    live = guest.read_slot(l2 * PAGE + 8)
    assert store(guest, l2, 1, live & ~PTE_RW) == 0
    assert guest.world.audit() == []
    assert not guest.domain.guest_memory.translate_write(guest.vaddr(600))
    assert store(guest, l2, 1, live) == 0
    assert guest.domain.guest_memory.translate_write(guest.vaddr(600))


def test_a4_another_table_in_an_upper_entry_is_validated(guest: Guest) -> None:
    first, second = guest.make_table(A, {}), guest.make_table(B, {})
    l2 = guest.mfns[L2_PFN]
    assert store(guest, l2, 9, entry(first, TABLE)) == 0
    assert store(guest, l2, 9, entry(second, TABLE)) == 0
    assert (kind(guest, first), kind(guest, second)) == (FrameType.NONE, FrameType.L1)
    refused(guest, lambda: store(guest, l2, 9, entry(guest.mfns[DATA], TABLE)), EINVAL)
    assert guest.domain.paging.slot_of(BASE + (9 << 21)) == second * 512
    assert guest.world.audit() == []


# -- A5: no table within its own level --------------------------------------------------------


def test_a5_no_l3_lists_itself(guest: Guest) -> None:
    l3 = guest.mfns[L3_PFN]
    refused(guest, lambda: store(guest, l3, 2, entry(l3, TABLE)), EINVAL)


def test_a5_no_l2_lists_itself_even_read_only(guest: Guest) -> None:
    l2 = guest.mfns[L2_PFN]
    refused(guest, lambda: store(guest, l2, 5, entry(l2, PTE_P)), EINVAL)
    mfn = guest.mfns[A]
    guest.make_table(A, {5: entry(mfn, PTE_P)})
    refused(guest, lambda: pin(guest, 2, mfn), EINVAL)


def test_a5_two_l2s_do_not_list_each_other(guest: Guest) -> None:
    a, b = guest.mfns[A], guest.mfns[B]
    guest.make_table(A, {0: entry(b, TABLE)})
    guest.make_table(B, {0: entry(a, TABLE)})
    refused(guest, lambda: pin(guest, 2, a), EINVAL, EBUSY)
    refused(guest, lambda: pin(guest, 2, b), EINVAL, EBUSY)


def test_a5_an_l1_may_show_itself_read_only(guest: Guest) -> None:
    mfn = guest.mfns[A]
    guest.make_table(A, {0: entry(mfn, READ_ONLY)})
    assert pin(guest, 1, mfn) == 0
    assert guest.world.audit() == []
    assert unpin(guest, mfn) == 0
    assert guest.world.machine.frames.refs[mfn] == 2  # the allocation, and its first mapping


# -- A6: the hole -----------------------------------------------------------------------------


def test_a6_the_entries_of_the_hole_are_the_hypervisors(guest: Guest) -> None:
    l2 = guest.mfns[L2_PFN]
    for slot in (HOLE_SLOT, HOLE_SLOT + 1, 511):
        refused(guest, lambda slot=slot: store(guest, l2, slot, 0), EPERM)
        refused(guest, lambda slot=slot: store(guest, l2, slot, entry(guest.mfns[A], TABLE)), EPERM)
    assert store(guest, l2, HOLE_SLOT - 1, 0) == 0


def test_a6_what_a_guest_prepared_in_the_hole_does_not_survive(guest: Guest) -> None:
    l3, l2 = second_space(guest, A, B)
    assert guest.remap(B, KERNEL) == 0
    guest.fill(B, [entry(guest.mfns[DATA], TABLE) if n >= HOLE_SLOT else 0 for n in range(512)])
    assert guest.remap(B, READ_ONLY) == 0
    assert pin(guest, 3, l3) == 0
    entries = guest.world.machine.memory.m64[l2 * 512 + HOLE_SLOT : (l2 + 1) * 512]
    assert tuple(entries) == guest.domain.hole.pdes


def test_a6_the_top_l2_is_not_shared(guest: Guest) -> None:
    top = guest.mfns[L2_PFN]
    l3 = guest.make_table(A, {3: entry(top, TABLE)})
    refused(guest, lambda: pin(guest, 3, l3), EINVAL)
    l3 = guest.make_table(B, {0: entry(top, TABLE), 3: entry(top, TABLE)})
    refused(guest, lambda: pin(guest, 3, l3), EINVAL)
    refused(guest, lambda: store(guest, guest.mfns[L3_PFN], 0, entry(top, TABLE)), EINVAL)


def test_a6_the_top_l2_is_not_pinned(guest: Guest) -> None:
    refused(guest, lambda: pin(guest, 2, guest.mfns[L2_PFN]), EINVAL)


def test_a6_entry_3_of_a_live_l3_stays(guest: Guest) -> None:
    l3 = guest.mfns[L3_PFN]
    refused(guest, lambda: store(guest, l3, 3, 0), EINVAL)
    refused(guest, lambda: store(guest, l3, 3, guest.read_slot(l3 * PAGE + 24)), EINVAL)
    empty = guest.make_table(A, {})
    refused(guest, lambda: pin(guest, 3, empty), EINVAL)


# -- A7: CR3 ----------------------------------------------------------------------------------


def test_a7_cr3_takes_only_an_l3(guest: Guest) -> None:
    def load(mfn: int) -> int:
        return guest.mmuext((MMUEXT_NEW_BASEPTR, mfn, 0))

    for mfn in (guest.mfns[DATA], guest.mfns[L2_PFN], guest.mfns[L1_PFNS[0]], 0, 1 << 20, 1 << 31):
        refused(guest, lambda mfn=mfn: load(mfn), EINVAL)
    assert guest.domain.current.cr3_mfn == guest.mfns[L3_PFN]


def test_a7_nothing_stands_behind_the_four_entries(guest: Guest) -> None:
    l3, l2 = second_space(guest, A, B)
    assert guest.remap(A, KERNEL) == 0
    guest.fill(
        A, [entry(guest.mfns[DATA], TABLE)] * 3 + [entry(l2, TABLE)] + [~0 & (1 << 64) - 1] * 508
    )
    assert guest.remap(A, READ_ONLY) == 0
    refused(guest, lambda: pin(guest, 3, l3), EINVAL)
    assert guest.remap(A, KERNEL) == 0
    guest.fill(A, [0, 0, 0, entry(l2, TABLE)] + [entry(1, TABLE)] * 508)
    assert guest.remap(A, READ_ONLY) == 0
    assert pin(guest, 3, l3) == 0
    assert guest.world.machine.memory.read(l3 * PAGE + 32, PAGE - 32) == bytes(PAGE - 32)
    refused(guest, lambda: store(guest, l3, 7, entry(guest.mfns[DATA], TABLE)), EINVAL)


def test_a7_the_upper_levels_refuse_what_their_entries_may_not_have(guest: Guest) -> None:
    table = guest.make_table(A, {})
    l2 = guest.make_table(B, {})
    for bad in (PTE_PWT, PTE_PCD, PTE_PSE, 1 << 8, 1 << 51, 1 << 52):
        refused(
            guest,
            lambda bad=bad: store(guest, guest.mfns[L2_PFN], 9, entry(table, TABLE) | bad),
            EINVAL,
        )
        refused(
            guest,
            lambda bad=bad: store(guest, guest.mfns[L3_PFN], 0, entry(l2, TABLE) | bad),
            EINVAL,
        )
    refused(
        guest,
        lambda: store(guest, guest.mfns[L3_PFN], 0, entry(l2, TABLE) | PTE_NX),
        EINVAL,
    )


# -- A8: whose memory -------------------------------------------------------------------------


def test_a8_only_own_frames_can_be_mapped(world: World, guest: Guest) -> None:
    world.add()
    own, frames = set(guest.mfns), world.machine.frames
    shared = {guest.domain.shared_info_mfn, *guest.domain.grants.mfns}
    tables = {guest.mfns[pfn] for pfn in (L3_PFN, L2_PFN, *L1_PFNS)}
    vaddr = guest.vaddr(A)
    for mfn in (*range(frames.nr_frames + 16), 1 << 31, (1 << 40) - 1):
        may = mfn in own or mfn in shared
        assert (guest.update_va(vaddr, entry(mfn, READ_ONLY)) == 0) is may, hex(mfn)
        may_write = may and mfn not in tables
        assert (guest.update_va(vaddr, entry(mfn, KERNEL)) == 0) is may_write, hex(mfn)
    assert guest.remap(A, KERNEL) == 0


@pytest.mark.parametrize("domid", [0, 2, DOMID_IO, DOMID_XEN])
def test_a8_foreign_domains_are_out_of_reach(world: World, guest: Guest, domid: int) -> None:
    other = world.add()
    assert other.domain.domid == 2
    theirs, mine = other.slot(A), guest.slot(A)
    value = entry(other.mfns[A], KERNEL)
    for update, foreign in (
        ((theirs, value), domid),
        ((theirs, value), DOMID_SELF | (domid + 1) << 16),
        ((mine, value), domid),
        ((mine, value), DOMID_SELF | (domid + 1) << 16),
    ):
        refused(guest, lambda u=update, f=foreign: guest.mmu_update(u, foreign=f), EPERM)
    refused(
        guest,
        lambda: guest.mmuext((MMUEXT_PIN_L1_TABLE, other.mfns[A], 0), foreign=domid),
        EPERM,
    )


def test_a8_anothers_tables_are_not_changed_without_naming_it(world: World, guest: Guest) -> None:
    other = world.add()
    for pfn in (L3_PFN, L2_PFN, L1_PFNS[0], A):
        refused(guest, lambda pfn=pfn: store(guest, other.mfns[pfn], 0, 0), EINVAL)
        refused(guest, lambda pfn=pfn: pin(guest, 1, other.mfns[pfn]), EINVAL)
        refused(guest, lambda pfn=pfn: unpin(guest, other.mfns[pfn]), EINVAL)


# -- A9: stale translations -------------------------------------------------------------------


def test_a9_no_stale_translation_writes_a_new_table(guest: Guest) -> None:
    engine, page = guest.engine, guest.vaddr(A)
    assert engine.store(page, 0)
    table = guest.make_table(A, {})
    assert engine.store(page, 0), "the engine keeps rights until it is flushed"
    assert pin(guest, 1, table) == 0
    assert not engine.store(page, 0xBAD)
    assert not engine.store(page + 4, 0xBAD)


def test_a9_clearing_the_accessed_bit_hides_nothing(guest: Guest) -> None:
    engine, page, mfn = guest.engine, guest.vaddr(A), guest.mfns[A]
    assert engine.store(page, 0)
    assert guest.update_va(page, entry(mfn, PTE_P | PTE_RW | PTE_NX)) == 0
    assert guest.update_va(page, entry(mfn, PTE_P | PTE_NX)) == 0
    assert pin(guest, 1, mfn) == 0
    assert not engine.store(page, 0xBAD)


@pytest.mark.parametrize("flags", [0, READ_ONLY, READ_ONLY & ~PTE_NX])
def test_a9_every_way_to_lose_the_right_to_write_is_seen(guest: Guest, flags: int) -> None:
    engine, page, mfn = guest.engine, guest.vaddr(A), guest.mfns[A]
    assert engine.store(page, 0)
    assert guest.remap(A, flags) == 0
    assert pin(guest, 1, mfn) == 0
    assert not engine.store(page, 0xBAD)


@pytest.mark.parametrize("level", [1, 2])
def test_a9_taking_a_whole_table_away_takes_its_translations(guest: Guest, level: int) -> None:
    """Rights that came by another path than the entry that is changed."""
    engine, mfn = guest.engine, guest.mfns[DATA]
    l1 = guest.make_table(A, {0: entry(mfn, KERNEL)})
    l2 = guest.make_table(B, {0: entry(l1, TABLE)})
    assert store(guest, guest.mfns[L3_PFN], 0, entry(l2, TABLE)) == 0
    assert engine.store(0, 0)
    assert guest.remap(DATA, 0) == 0
    if level == 1:
        assert store(guest, l2, 0, 0) == 0
    else:
        assert store(guest, guest.mfns[L3_PFN], 0, 0) == 0
    assert pin(guest, 1, mfn) == 0
    assert not engine.store(0, 0xBAD)


def test_a9_an_l2_entry_made_read_only_counts(guest: Guest) -> None:
    engine, l2 = guest.engine, guest.mfns[L2_PFN]
    page = guest.vaddr(600)
    assert engine.store(page, 1)
    assert store(guest, l2, 1, guest.read_slot(l2 * PAGE + 8) & ~PTE_RW) == 0
    assert guest.domain.guest_memory.translate_write(page) is None
    guest.domain.machine.frames.stale_tlbs.flush()
    assert not engine.store(page, 2)


def test_a9_a_freed_frame_is_out_of_reach_at_once(world: World, guest: Guest) -> None:
    engine, page, mfn = guest.engine, guest.vaddr(A), guest.mfns[A]
    assert engine.store(page, 0x5EC2E7)
    assert guest.remap(A, 0) == 0
    assert world.machine.frames.drop_allocation(mfn)
    assert engine.load(page) is None
    assert not engine.store(page, 1)
    assert world.machine.memory.m32[mfn << 10] == 0


def test_a9_a_new_address_space_forgets_walks(guest: Guest) -> None:
    l3, _ = second_space(guest, A, B)
    low = guest.make_table(C, {})
    l2 = guest.make_table(DATA, {0: entry(low, TABLE)})
    assert store(guest, guest.mfns[L3_PFN], 0, entry(l2, TABLE)) == 0
    # An L2 for the top gigabyte serves one L3 only, so the new space has L1s but no low half.
    assert guest.domain.paging.slot_of(0) == low * 512
    assert guest.mmuext((MMUEXT_NEW_BASEPTR, l3, 0)) == 0
    assert guest.domain.paging.slot_of(0) is None
    assert guest.update_va(0, entry(guest.mfns[600], KERNEL)) == -EINVAL


def test_a9_walks_are_forgotten_where_this_address_space_changes_and_not_elsewhere(
    guest: Guest,
) -> None:
    low = guest.make_table(C, {})
    l2 = guest.make_table(DATA, {0: entry(low, TABLE)})
    elsewhere = guest.make_table(A, {})
    assert pin(guest, 2, elsewhere) == 0
    assert store(guest, guest.mfns[L3_PFN], 0, entry(l2, TABLE)) == 0
    paging = guest.domain.paging
    assert paging.slot_of(0) == low * 512
    known = dict(paging.l1_bases)
    assert store(guest, elsewhere, 5, entry(low, TABLE)) == 0
    assert store(guest, elsewhere, 5, 0) == 0
    assert paging.l1_bases.items() >= known.items()
    assert store(guest, l2, 0, 0) == 0
    assert paging.slot_of(0) is None
    # The same table, now in use: its entries count from here on.
    assert store(guest, guest.mfns[L3_PFN], 1, entry(elsewhere, TABLE)) == 0
    assert paging.slot_of(1 << 30) is None
    assert store(guest, elsewhere, 0, entry(low, TABLE)) == 0
    assert paging.slot_of(1 << 30) == low * 512


# -- A10: half-done promotions ----------------------------------------------------------------


def many_tables(guest: Guest, count: int) -> list[int]:
    """Make empty L1s out of the pages from 400 on."""
    return [guest.make_table(400 + n, {}) for n in range(count)]


def test_a10_one_bad_table_of_512_undoes_the_others(guest: Guest) -> None:
    tables = many_tables(guest, 511)
    bad = guest.mfns[DATA]  # mapped writable
    l2 = guest.make_table(A, [entry(mfn, TABLE) for mfn in (*tables, bad)])
    assert pin(guest, 2, l2) == -EINVAL
    assert guest.world.audit() == []
    for n in range(511):
        assert guest.remap(400 + n, KERNEL) == 0


def test_a10_a_refused_entry_leaves_nothing_behind_when_the_guest_runs(guest: Guest) -> None:
    """No settling here: what is left to drop must hold the guest back."""
    tables = many_tables(guest, 40)
    l2 = guest.make_table(A, [entry(mfn, TABLE) for mfn in (*tables, guest.mfns[DATA])])
    at = guest.place(flat([(guest.mfns[L3_PFN] * PAGE, entry(l2, TABLE))]))
    stops = guest.engine.stops
    arguments = (at, 1, 0, DOMID_SELF, 0)
    while True:
        try:
            guest.mmu.mmu_update(*arguments)
            raise AssertionError("the entry was taken")
        except Restart as restart:
            arguments = restart.arguments
            guest.settle()
        except Refused:
            break
    assert not guest.domain.paging.deferred or guest.engine.stops > stops
    guest.settle()
    assert {kind(guest, mfn) for mfn in tables} == {FrameType.NONE}


def test_a10_an_l1_with_one_bad_entry_takes_nothing(world: World, guest: Guest) -> None:
    other = world.add()
    good = [entry(guest.mfns[100 + n], KERNEL) for n in range(511)]
    table = guest.make_table(A, [*good, entry(other.mfns[A], READ_ONLY)])
    refused(guest, lambda: pin(guest, 1, table), EINVAL)


def test_a10_a_retry_after_mending_works(guest: Guest) -> None:
    l1 = guest.make_table(A, {0: entry(guest.mfns[DATA], KERNEL | PTE_PCD)})
    assert pin(guest, 1, l1) == -EINVAL
    assert guest.remap(A, KERNEL) == 0
    guest.make_table(A, {0: entry(guest.mfns[DATA], KERNEL)})
    assert pin(guest, 1, l1) == 0


# -- A11: pins --------------------------------------------------------------------------------


def test_a11_a_pin_is_one_pin(guest: Guest) -> None:
    table = guest.make_table(A, {})
    assert pin(guest, 1, table) == 0
    refused(guest, lambda: pin(guest, 1, table), EINVAL)
    refused(guest, lambda: pin(guest, 2, table), EINVAL)
    assert unpin(guest, table) == 0
    refused(guest, lambda: unpin(guest, table), EINVAL)
    assert kind(guest, table) is FrameType.NONE


def test_a11_the_live_l3_survives_its_unpin(guest: Guest) -> None:
    l3 = guest.mfns[L3_PFN]
    assert unpin(guest, l3) == 0
    assert kind(guest, l3) is FrameType.L3
    refused(guest, lambda: unpin(guest, l3), EINVAL)
    assert guest.mmuext((MMUEXT_NEW_BASEPTR, l3, 0)) == 0
    assert kind(guest, l3) is FrameType.L3


def test_a11_pins_of_the_wrong_level(guest: Guest) -> None:
    l1 = guest.make_table(A, {0: entry(guest.mfns[DATA], KERNEL)})
    refused(guest, lambda: pin(guest, 2, l1), EINVAL)
    assert pin(guest, 1, l1) == 0
    refused(guest, lambda: pin(guest, 3, l1), EINVAL)
    assert guest.mmuext((MMUEXT_PIN_L4_TABLE, guest.mfns[B], 0)) == 0
    assert kind(guest, guest.mfns[B]) is FrameType.WRITABLE


def test_a11_a_table_in_use_survives_its_unpin(guest: Guest) -> None:
    table = guest.make_table(A, {0: entry(guest.mfns[DATA], KERNEL)})
    assert pin(guest, 1, table) == 0
    assert store(guest, guest.mfns[L2_PFN], 9, entry(table, TABLE)) == 0
    assert unpin(guest, table) == 0
    refused(guest, lambda: guest.remap(A, KERNEL), EBUSY, EINVAL)
    assert store(guest, guest.mfns[L2_PFN], 9, 0) == 0
    assert guest.remap(A, KERNEL) == 0


def test_a11_switching_address_spaces_frees_the_old_one(guest: Guest) -> None:
    old = guest.mfns[L3_PFN]
    l3, l2 = second_space(guest, A, B)
    assert (
        guest.mmuext(
            (MMUEXT_PIN_L3_TABLE, l3, 0), (MMUEXT_NEW_BASEPTR, l3, 0), (MMUEXT_UNPIN_TABLE, old, 0)
        )
        == 0
    )
    assert kind(guest, old) is FrameType.NONE
    assert kind(guest, guest.mfns[L2_PFN]) is FrameType.NONE
    assert kind(guest, l2) is FrameType.L2XEN
    assert guest.remap(L3_PFN, KERNEL) == 0
    assert guest.world.audit() == []


# -- A13: M2P ---------------------------------------------------------------------------------


def test_a13_only_the_owner_names_a_frame(world: World, guest: Guest) -> None:
    other = world.add()
    frames = world.machine.frames
    free = next(mfn for mfn in range(frames.nr_frames) if not frames.refs[mfn])
    for mfn in (other.mfns[A], free, frames.m2p_frames[0], frames.nr_frames, 1 << 40):
        before = list(frames.m2p)
        assert guest.mmu_update((mfn * PAGE | MMU_MACHPHYS_UPDATE, 0x1234)) == -EINVAL
        assert list(frames.m2p) == before
    assert guest.mmu_update((guest.mfns[A] * PAGE | MMU_MACHPHYS_UPDATE, 0xFFFFFFFF)) == 0
    assert frames.m2p[guest.mfns[A]] == INVALID_M2P_ENTRY


def test_a13_two_frames_may_claim_one_pfn_and_nothing_believes_them(guest: Guest) -> None:
    for pfn in (A, B):
        assert guest.mmu_update((guest.mfns[pfn] * PAGE | MMU_MACHPHYS_UPDATE, 5)) == 0
    assert guest.world.audit() == []


# -- A14: other writers -----------------------------------------------------------------------


def test_a14_clear_and_copy_write_no_table(guest: Guest) -> None:
    for pfn in (L3_PFN, L2_PFN, L1_PFNS[0]):
        mfn = guest.mfns[pfn]
        refused(guest, lambda mfn=mfn: guest.mmuext((MMUEXT_CLEAR_PAGE, mfn, 0)), EINVAL)
        refused(
            guest,
            lambda mfn=mfn: guest.mmuext((MMUEXT_COPY_PAGE, mfn, guest.mfns[DATA])),
            EINVAL,
        )


def test_a14_clear_and_copy_stay_at_home(world: World, guest: Guest) -> None:
    other = world.add()
    mine, theirs = guest.mfns[DATA], other.mfns[DATA]
    refused(guest, lambda: guest.mmuext((MMUEXT_CLEAR_PAGE, theirs, 0)), EINVAL)
    refused(guest, lambda: guest.mmuext((MMUEXT_COPY_PAGE, theirs, mine)), EINVAL)
    refused(guest, lambda: guest.mmuext((MMUEXT_COPY_PAGE, mine, theirs)), EINVAL)
    refused(guest, lambda: guest.mmuext((MMUEXT_COPY_PAGE, mine, 1 << 31)), EINVAL)
    guest.domain.guest_memory.write(guest.vaddr(A), b"from here")
    assert guest.mmuext((MMUEXT_COPY_PAGE, mine, guest.mfns[A])) == 0
    assert guest.domain.guest_memory.read(guest.vaddr(DATA), 9) == b"from here"
    assert guest.mmuext((MMUEXT_CLEAR_PAGE, mine, 0)) == 0
    assert guest.domain.guest_memory.read(guest.vaddr(DATA), PAGE) == bytes(PAGE)


def test_a14_an_update_of_a_plain_page_is_a_plain_write(guest: Guest) -> None:
    assert store(guest, guest.mfns[DATA], 3, 0x1122334455667788) == 0
    assert guest.read_slot(guest.mfns[DATA] * PAGE + 24) == 0x1122334455667788
    assert guest.world.audit() == []


def test_a14_a_refused_direct_store_leaves_no_work_to_later(guest: Guest) -> None:
    """Where a pin was interrupted, the store is the next table operation that ends."""
    guest.domain.assists |= 1 << VMASST_TYPE_writable_pagetables
    writes = PageWrites(guest.domain)
    l2_vaddr = guest.vaddr(L2_PFN)
    begin_large_pin(guest)
    assert guest.domain.paging.kept
    assert writes.begin(l2_vaddr + 9 * 8, PF_PRESENT | PF_WRITE)
    assert guest.engine.store(l2_vaddr + 9 * 8, entry(guest.mfns[DATA], TABLE) & 0xFFFFFFFF)
    assert not writes.finish()
    assert not guest.domain.paging.kept
    assert not guest.domain.paging.deferred or guest.engine.stops
    guest.settle()
    assert guest.read_slot(guest.mfns[L2_PFN] * PAGE + 9 * 8) == 0
    assert guest.world.audit() == []
    writes.release()


def test_a14_without_memory_a_direct_store_is_a_page_fault(world: World, guest: Guest) -> None:
    guest.domain.assists |= 1 << VMASST_TYPE_writable_pagetables
    frames = world.machine.frames
    frames.allocate(0, sum(owner == DOMID_INVALID for owner in frames.owner))
    assert not PageWrites(guest.domain).begin(guest.vaddr(L1_PFNS[0]), PF_PRESENT | PF_WRITE)
    assert world.audit() == []


# -- A15: the guest's pointers ----------------------------------------------------------------


def test_a15_lists_below_the_hole_only(guest: Guest) -> None:
    call = guest.call
    for at, count in (
        (HOLE_START - 8, 1),
        (HOLE_START, 1),
        (0xFFFFFFF8, 1),
        (guest.vaddr(LISTS), 0x7FFFFFFF),
        (guest.vaddr(LISTS), 0xFFFFFFFF),
        (0x1000, 1),
    ):
        before = guest.world.snapshot()
        assert call(guest.mmu.mmu_update, at, count, 0, DOMID_SELF) == -EFAULT
        assert call(guest.mmu.mmuext_op, at, count, 0, DOMID_SELF) == -EFAULT
        assert guest.world.snapshot() == before


def test_a15_the_done_word_is_written_on_every_path(guest: Guest) -> None:
    pdone = guest.vaddr(DATA)
    good, bad = (guest.slot(A), entry(guest.mfns[A], KERNEL)), (1 << 51, 0)
    memory = guest.domain.guest_memory

    def update(*updates: tuple[int, int]) -> tuple[int, int]:
        memory.write_u32(pdone, 0xAAAA)
        at = guest.place(flat(updates))
        result = guest.call(guest.mmu.mmu_update, at, len(updates), pdone, DOMID_SELF)
        return result, memory.read_u32(pdone)

    assert update(good, good) == (0, 2)
    assert update(good, bad, good) == (-EINVAL, 1)
    assert update() == (0, 0)


@pytest.mark.parametrize("where", ["hole", "read-only", "unmapped"])
def test_a15_a_done_word_that_cannot_be_written(guest: Guest, where: str) -> None:
    assert guest.remap(A, READ_ONLY) == 0
    assert guest.remap(B, 0) == 0
    pdone = {"hole": HOLE_START, "read-only": guest.vaddr(A), "unmapped": guest.vaddr(B)}[where]
    at = guest.place(flat([(guest.slot(DATA), entry(guest.mfns[DATA], KERNEL))]))
    assert guest.call(guest.mmu.mmu_update, at, 1, pdone, DOMID_SELF) == -EFAULT
    assert guest.world.machine.memory.read(guest.mfns[A] * PAGE, PAGE) == bytes(PAGE)
    assert guest.world.audit() == []


def test_a15_requests_may_lie_across_pages_and_unaligned(guest: Guest) -> None:
    updates = [(guest.slot(100 + n), entry(guest.mfns[100 + n], READ_ONLY)) for n in range(8)]
    for start in (PAGE - 40, PAGE - 37, 5):
        at = guest.vaddr(LISTS) + start
        guest.domain.guest_memory.write(at, flat(updates))
        assert guest.call(guest.mmu.mmu_update, at, 8, 0, DOMID_SELF) == 0
        assert all(guest.read_slot(slot) == value for slot, value in updates)
        updates = [(slot, value ^ PTE_RW) for slot, value in updates]


# -- A17, A18: the end ------------------------------------------------------------------------


def test_a17_a_dead_domain_leaves_nothing(world: World) -> None:
    frames = world.machine.frames
    before = [owner for owner in frames.owner if owner != 0x7FF4]
    for _ in range(3):
        guest = world.add(1)
        second_space(guest, A, B)
        pin(guest, 1, guest.make_table(C, {0: entry(guest.mfns[C], READ_ONLY)}))
        world.remove(guest)
        assert [owner for owner in frames.owner if owner != 0x7FF4] == before
        # Dom0 itself holds its shared_info and its grant table.
        assert sum(frames.refs) == sum(frames.allocated) + 2
        assert not any(
            frames.type_count[mfn] for mfn in range(frames.nr_frames) if frames.owner[mfn]
        )
        assert not frames.pinned
        assert world.audit() == []


def test_a17_a_domain_may_die_in_the_middle_of_a_pin(world: World, guest: Guest) -> None:
    begin_large_pin(guest)
    assert guest.domain.paging.kept
    assert world.audit() == []
    world.remove(guest)
    assert world.audit() == []
    assert not any(owner == 1 for owner in world.machine.frames.owner)


def test_a17_a_domain_may_die_with_work_deferred(world: World, guest: Guest) -> None:
    l3 = large_space(guest)
    assert pin(guest, 3, l3) == 0
    guest.domain.paging.work_left = WORK_BUDGET
    guest.domain.paging.unpin(l3)
    guest.domain.paging.work_left = 70
    assert not guest.domain.paging.drain()
    assert world.audit() == []
    world.remove(guest)
    assert world.audit() == []


def test_a17_a_page_mapped_by_a_peer_outlives_its_domain(world: World, guest: Guest) -> None:
    mfn = guest.mfns[DATA]
    guest.domain.guest_memory.write(guest.vaddr(DATA), b"last words")
    guest.domain.grants.seed(8, 0, mfn)
    mapping = world.dom0.maptrack.map(guest.domain.grants, 8, writable=True)
    world.remove(guest)
    assert mapping.read(0, 10) == b"last words"
    heir = world.add(3)
    assert mfn not in heir.mfns
    assert heir.update_va(heir.vaddr(A), entry(mfn, READ_ONLY)) == -EBUSY
    world.dom0.maptrack.unmap(mapping)
    assert world.machine.frames.refs[mfn] == 0
    assert world.machine.memory.read(mfn * PAGE, PAGE) == bytes(PAGE)


def test_a18_new_frames_are_empty(world: World, guest: Guest) -> None:
    for pfn in range(FREE_PFN, FREE_PFN + 300):
        guest.domain.guest_memory.write(guest.vaddr(pfn), b"secret" * 600)
    world.remove(guest)
    frames, memory = world.machine.frames, world.machine.memory
    free = [mfn for mfn in range(frames.nr_frames) if not frames.refs[mfn]]
    assert all(memory.read(mfn << 12, PAGE) == bytes(PAGE) for mfn in free)
    assert all(frames.m2p[mfn] == INVALID_M2P_ENTRY for mfn in free)


# -- E2: the budget ---------------------------------------------------------------------------


def large_space(guest: Guest) -> int:
    """Make an L3 over 200 L1s: several budgets of work. The pages above 400 are tables then."""
    l1s = many_tables(guest, 200)
    l2s = [
        guest.make_table(700 + n, [entry(mfn, TABLE) for mfn in l1s[50 * n : 50 * n + 50]])
        for n in range(4)
    ]
    return guest.make_table(A, [entry(mfn, TABLE) for mfn in l2s])


def begin_large_pin(guest: Guest) -> None:
    """Use up one budget on a pin, and go no further."""
    at = guest.place(operation(MMUEXT_PIN_L3_TABLE, large_space(guest)))
    with pytest.raises(Restart):
        guest.mmu.mmuext_op(at, 1, 0, DOMID_SELF, 0)


def test_e2_a_large_pin_restarts_and_succeeds(guest: Guest) -> None:
    l3 = large_space(guest)
    at = guest.place(operation(MMUEXT_PIN_L3_TABLE, l3))
    arguments = (at, 1, 0, DOMID_SELF, 0)
    restarts = 0
    while True:
        try:
            assert guest.mmu.mmuext_op(*arguments) == 0
            break
        except Restart as restart:
            restarts += 1
            arguments = restart.arguments
            assert guest.domain.paging.work_left > -100
            assert guest.world.audit() == []
            guest.settle()
    assert 3 < restarts < 30
    guest.settle()
    assert not guest.domain.paging.kept
    assert guest.world.audit() == []
    assert unpin(guest, l3) == 0
    assert guest.world.audit() == []


def test_e2_what_was_validated_stays_closed_between_restarts(guest: Guest) -> None:
    begin_large_pin(guest)
    done = [pfn for pfn in range(400, 600) if kind(guest, guest.mfns[pfn]) is FrameType.L1]
    assert done
    for pfn in done:
        assert guest.update_va(guest.vaddr(pfn), entry(guest.mfns[pfn], KERNEL)) == -EBUSY
    # Another table operation that ends gives the kept ones back.
    assert pin(guest, 1, guest.make_table(B, {})) == 0
    assert guest.remap(done[0], KERNEL) == 0
    assert guest.world.audit() == []


def test_e2_a_list_of_updates_restarts_where_it_stopped(guest: Guest) -> None:
    count = 1000
    updates = [(guest.slot(A), entry(guest.mfns[A], KERNEL ^ (n & 1) << 9)) for n in range(count)]
    at = guest.place(flat(updates))
    pdone = guest.vaddr(DATA)
    guest.domain.in_multicall = True
    guest.domain.paging.work_left = 300
    with pytest.raises(Restart) as restart:
        guest.mmu.mmu_update(at, count, pdone, DOMID_SELF, 0)
    guest.domain.in_multicall = False
    assert guest.domain.guest_memory.read_u32(pdone) == 300
    assert guest.call(guest.mmu.mmu_update, *restart.value.arguments) == 0
    assert guest.domain.guest_memory.read_u32(pdone) == count


def test_the_boot_tables_can_be_given_up(guest: Guest) -> None:
    """What kernels do with the builder's tables: leave, unpin, write, give back."""
    l3, _ = second_space(guest, A, B)
    old = [guest.mfns[pfn] for pfn in (L3_PFN, L2_PFN)]
    assert guest.mmuext((MMUEXT_NEW_BASEPTR, l3, 0), (MMUEXT_UNPIN_TABLE, old[0], 0)) == 0
    for pfn in (L3_PFN, L2_PFN):
        assert guest.remap(pfn, KERNEL) == 0
        assert guest.engine.store(guest.vaddr(pfn), 0)
        assert guest.remap(pfn, 0) == 0
    assert [guest.world.machine.frames.refs[mfn] for mfn in old] == [1, 1]
    assert guest.world.audit() == []


def test_the_layout_is_what_the_helpers_say(guest: Guest) -> None:
    assert guest.vaddr(0) == BASE
    assert len(guest.mfns) == PAGES
    assert guest.world.audit() == []


def test_a_frame_that_no_entry_lets_be_executed_is_unmarked(world: World, guest: Guest) -> None:
    """The mark goes with the last right to execute, and not while another entry gives it."""
    code, mfn = world.machine.memory.code, guest.mfns[DATA]
    executable = KERNEL & ~PTE_NX
    assert guest.remap(DATA, executable) == 0
    assert code[mfn]
    assert guest.engine.load(guest.vaddr(DATA)) is not None
    assert guest.remap(DATA, KERNEL) == 0
    assert not code[mfn]
    assert not guest.engine.cached, "an executable entry may have been cached"
    assert guest.remap(DATA, executable) == 0
    assert guest.update_va(guest.vaddr(A), entry(mfn, executable & ~PTE_RW)) == 0
    assert guest.remap(DATA, KERNEL) == 0
    assert code[mfn]
    assert guest.update_va(guest.vaddr(A), entry(mfn, READ_ONLY)) == 0
    assert not code[mfn], "both entries that are left forbid it"
