# SPDX-License-Identifier: GPL-2.0-or-later
"""The paging calls flush as asked, count what they did, and stop when their time is up."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from tests.support.domains import (
    FREE_PFN,
    KERNEL,
    L2_PFN,
    L3_PFN,
    PAGE,
    READ_ONLY,
    TABLE,
    Guest,
    World,
    entry,
    flat,
)
from tests.support.domains import world as make_world
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EACCES,
    EFAULT,
    EINVAL,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNPIN_TABLE,
    UVMF_ALL,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
)
from xenlite.core.hole import HOLE_START
from xenlite.hypercalls.restart import Restart
from xenlite.machine.x86_32p import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW

A, B, DATA = FREE_PFN, FREE_PFN + 1, FREE_PFN + 2


@pytest.fixture
def world() -> Iterator[World]:
    with make_world() as made:
        yield made


@pytest.fixture
def guest(world: World) -> Guest:
    return world.add()


def cached(guest: Guest, *pfns: int) -> list[bool]:
    return [guest.vaddr(pfn) >> 12 in guest.engine.cached for pfn in pfns]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (0, [True, True]),
        (UVMF_INVLPG, [False, True]),
        (UVMF_INVLPG | UVMF_ALL, [False, True]),
        (UVMF_TLB_FLUSH, [False, False]),
        (UVMF_TLB_FLUSH | UVMF_ALL, [False, False]),
    ],
)
def test_an_update_flushes_what_it_was_told_to(guest: Guest, flags: int, left: list[bool]) -> None:
    for pfn in (A, B):
        assert guest.engine.store(guest.vaddr(pfn), 1)
    new = entry(guest.mfns[A], READ_ONLY)
    assert guest.update_va(guest.vaddr(A), new, flags) == 0
    assert cached(guest, A, B) == left


def test_an_update_may_name_vcpus(guest: Guest) -> None:
    new = entry(guest.mfns[A], READ_ONLY)
    mask = guest.vaddr(DATA)
    assert guest.engine.store(guest.vaddr(A), 1)
    assert guest.update_va(guest.vaddr(A), new, UVMF_INVLPG | mask) == 0
    assert cached(guest, A) == [False]
    assert guest.update_va(guest.vaddr(A), new, UVMF_INVLPG | 0x1000) == -EFAULT
    assert guest.update_va(guest.vaddr(A), new, 3) == -EINVAL


def test_an_update_needs_an_l1(guest: Guest) -> None:
    for vaddr in (0, 0x7FFFF000, HOLE_START, 0xFC000000, 0xFFFFFFFF):
        assert guest.update_va(vaddr, entry(guest.mfns[A], KERNEL)) == -EINVAL


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (MMUEXT_TLB_FLUSH_LOCAL, [False, False]),
        (MMUEXT_TLB_FLUSH_ALL, [False, False]),
        (MMUEXT_TLB_FLUSH_MULTI, [False, False]),
        (MMUEXT_INVLPG_LOCAL, [False, True]),
        (MMUEXT_INVLPG_ALL, [False, True]),
        (MMUEXT_INVLPG_MULTI, [False, True]),
    ],
)
def test_flushes_by_operation(guest: Guest, command: int, left: list[bool]) -> None:
    for pfn in (A, B):
        assert guest.engine.store(guest.vaddr(pfn), 1)
    assert guest.mmuext((command, guest.vaddr(A), guest.vaddr(DATA))) == 0
    assert [guest.vaddr(pfn) >> 12 in guest.engine.cached for pfn in (A, B)] == left


def test_a_mask_that_cannot_be_read_is_refused(guest: Guest) -> None:
    for command in (MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI):
        assert guest.mmuext((command, guest.vaddr(A), 0x1000)) == -EFAULT


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (MMUEXT_FLUSH_CACHE, EACCES),
        (MMUEXT_FLUSH_CACHE_GLOBAL, EPERM),
        (MMUEXT_NEW_USER_BASEPTR, EOPNOTSUPP),
        (21, ENOSYS),
        (0xFFFFFFFF, ENOSYS),
    ],
)
def test_what_no_guest_of_ours_can_ask_for(guest: Guest, command: int, errno: int) -> None:
    assert guest.mmuext((command, guest.mfns[A], 0)) == -errno


def test_operations_stop_at_the_first_refused_one(guest: Guest) -> None:
    table = guest.make_table(A, {})
    pdone = guest.vaddr(DATA)
    operations = b"".join(
        pack("<III", command, table, 0)
        for command in (MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE)
    )
    at = guest.place(operations)
    assert guest.call(guest.mmu.mmuext_op, at, 3, pdone, DOMID_SELF) == -EINVAL
    assert guest.domain.guest_memory.read_u32(pdone) == 1
    assert table in guest.world.machine.frames.pinned
    assert guest.call(guest.mmu.mmuext_op, at + 24, 1, pdone, DOMID_SELF) == 0
    assert guest.domain.guest_memory.read_u32(pdone) == 1


def test_an_unknown_update_command_is_refused(guest: Guest) -> None:
    for command in range(3, 8):
        assert guest.mmu_update((guest.slot(A) | command, 0)) == -ENOSYS


def test_accessed_and_dirty_can_be_kept(guest: Guest) -> None:
    slot, mfn = guest.slot(A), guest.mfns[A]
    assert guest.engine.store(guest.vaddr(A), 1)
    assert guest.read_slot(slot) & (PTE_A | PTE_D) == PTE_A | PTE_D
    bare = entry(mfn, PTE_P | PTE_RW | PTE_NX)
    assert guest.mmu_update((slot | MMU_PT_UPDATE_PRESERVE_AD, bare)) == 0
    assert guest.read_slot(slot) == bare | PTE_A | PTE_D
    assert guest.mmu_update((slot | MMU_PT_UPDATE_PRESERVE_AD, 0)) == 0
    assert guest.read_slot(slot) == 0


def test_a_list_goes_from_table_to_table_and_each_is_checked(world: World, guest: Guest) -> None:
    other = world.add()
    upper = guest.mfns[L2_PFN] * PAGE + 8

    def read_only(pfn: int) -> tuple[int, int]:
        return guest.slot(pfn), entry(guest.mfns[pfn], READ_ONLY)

    far = 600
    assert guest.slot(far) // PAGE != guest.slot(A) // PAGE
    updates = [
        read_only(A),
        read_only(far),
        (upper, guest.read_slot(upper) | PTE_NX),
        read_only(B),
        (other.slot(A), 0),
        read_only(DATA),
    ]
    pdone = guest.vaddr(DATA)
    at = guest.place(flat(updates))
    assert guest.call(guest.mmu.mmu_update, at, len(updates), pdone, DOMID_SELF) == -EINVAL
    assert guest.domain.guest_memory.read_u32(pdone) == 4
    for pfn in (A, far, B):
        assert guest.domain.guest_memory.translate_write(guest.vaddr(pfn)) is None
    assert guest.read_slot(upper) & PTE_NX
    assert other.domain.guest_memory.translate_read(other.vaddr(A)) is not None
    assert world.audit() == []


@pytest.mark.parametrize("offset", [0, 8, 12])
def test_a_list_may_lie_anywhere(guest: Guest, offset: int) -> None:
    pfns = range(FREE_PFN, FREE_PFN + 300)  # more than fit in a page
    updates = [(guest.slot(pfn), entry(guest.mfns[pfn], READ_ONLY)) for pfn in pfns]
    at = guest.place(bytes(offset) + flat(updates))
    assert guest.call(guest.mmu.mmu_update, at + offset, len(updates), 0, DOMID_SELF) == 0
    memory = guest.domain.guest_memory
    assert all(memory.translate_write(guest.vaddr(pfn)) is None for pfn in pfns)


def test_an_upper_entry_changes_its_harmless_bits(guest: Guest) -> None:
    at = guest.mfns[L2_PFN] * PAGE + 8
    live = guest.read_slot(at)
    assert guest.engine.store(guest.vaddr(600), 1)
    assert guest.mmu_update((at, live | PTE_NX)) == 0
    assert guest.read_slot(at) == live | PTE_NX
    assert guest.domain.tlb.stale
    assert guest.world.audit() == []


def test_a_table_under_an_empty_l3_slot(guest: Guest) -> None:
    l1 = guest.make_table(A, {3: entry(guest.mfns[DATA], KERNEL)})
    l2 = guest.make_table(B, {1: entry(l1, TABLE)})
    assert guest.mmu_update((guest.mfns[L3_PFN] * PAGE, entry(l2, TABLE))) == 0
    vaddr = 1 << 21 | 3 << 12
    assert guest.engine.store(vaddr, 0x1234)
    assert guest.domain.guest_memory.read_u32(guest.vaddr(DATA)) == 0x1234
    assert guest.update_va(vaddr, 0) == 0
    assert guest.domain.paging.slot_of(0) is None
    assert guest.mmu_update((guest.mfns[L3_PFN] * PAGE, 0)) == 0
    assert guest.domain.paging.slot_of(vaddr) is None


# -- time -------------------------------------------------------------------------------------


def large_l2(guest: Guest) -> int:
    tables = [guest.make_table(400 + n, {}) for n in range(200)]
    return guest.make_table(A, [entry(mfn, TABLE) for mfn in tables])


def test_giving_up_a_large_table_keeps_the_guest_waiting(guest: Guest) -> None:
    l2 = large_l2(guest)
    assert guest.mmuext((MMUEXT_PIN_L2_TABLE, l2, 0)) == 0
    pdone = guest.vaddr(DATA)
    at = guest.place(pack("<III", MMUEXT_UNPIN_TABLE, l2, 0))
    stops = guest.engine.stops
    assert guest.mmu.mmuext_op(at, 1, pdone, DOMID_SELF, 0) == 0
    assert guest.domain.guest_memory.read_u32(pdone) == 1
    assert guest.domain.paging.deferred
    assert guest.engine.stops == stops + 1
    assert guest.world.audit() == []
    guest.settle()
    assert guest.remap(A, KERNEL) == 0
    assert guest.remap(599, KERNEL) == 0


def test_an_update_that_drops_a_large_table_keeps_the_guest_waiting(guest: Guest) -> None:
    l2 = large_l2(guest)
    slot = guest.mfns[L3_PFN] * PAGE
    assert guest.mmu_update((slot, entry(l2, TABLE))) == 0
    pdone = guest.vaddr(DATA)
    at = guest.place(flat([(slot, 0), (guest.slot(B), entry(guest.mfns[B], READ_ONLY))]))
    with pytest.raises(Restart) as restart:
        guest.mmu.mmu_update(at, 2, pdone, DOMID_SELF, 0)
    rest, count, *_ = restart.value.arguments
    assert (rest, count) == (at + 16, 1 | MMU_UPDATE_PREEMPTED)
    assert guest.domain.guest_memory.read_u32(pdone) == 1
    guest.settle()
    assert guest.call(guest.mmu.mmu_update, *restart.value.arguments) == 0
    assert guest.domain.guest_memory.read_u32(pdone) == 2
    assert guest.domain.guest_memory.translate_write(guest.vaddr(B)) is None


def test_a_list_stops_at_the_entry_where_its_time_is_up(guest: Guest) -> None:
    table = guest.make_table(B, {})
    at_l2 = guest.mfns[L2_PFN] * PAGE + 8 * 100
    pfns = range(FREE_PFN + 10, FREE_PFN + 110)
    updates = [(at_l2, entry(table, TABLE))]  # it takes as long as many others
    updates += [(guest.slot(pfn), entry(guest.mfns[pfn], READ_ONLY)) for pfn in pfns]
    at = guest.place(flat(updates))
    guest.domain.in_multicall = True
    guest.domain.paging.work_left = 100
    with pytest.raises(Restart) as restart:
        guest.mmu.mmu_update(at, len(updates), 0, DOMID_SELF, 0)
    guest.domain.in_multicall = False
    assert guest.domain.paging.work_left == 0
    rest, count, *_ = restart.value.arguments
    done = len(updates) - (count & ~MMU_UPDATE_PREEMPTED)
    assert rest == at + 16 * done
    assert 1 < done < 40
    writable = guest.domain.guest_memory.translate_write
    left = [writable(guest.vaddr(pfn)) is not None for pfn in pfns]
    assert left == [n >= done - 1 for n in range(len(pfns))]


def test_operations_use_up_time_too(guest: Guest) -> None:
    count = 1000
    at = guest.place(pack("<III", MMUEXT_TLB_FLUSH_LOCAL, 0, 0) * count)
    guest.domain.in_multicall = True
    guest.domain.paging.work_left = 100
    with pytest.raises(Restart) as restart:
        guest.mmu.mmuext_op(at, count, 0, DOMID_SELF, 0)
    guest.domain.in_multicall = False
    assert restart.value.arguments[:2] == (at + 1200, 900 | MMU_UPDATE_PREEMPTED)
    assert guest.call(guest.mmu.mmuext_op, *restart.value.arguments) == 0


# -- translated code --------------------------------------------------------------------------


def test_pages_that_can_be_executed_are_marked(guest: Guest) -> None:
    code = guest.world.machine.memory.code
    mfn = guest.mfns[A]
    assert not code[mfn]
    assert guest.remap(A, PTE_P | PTE_RW) == 0
    assert code[mfn] == guest.engine.slot
    table = guest.make_table(B, {0: entry(guest.mfns[DATA], PTE_P)})
    assert guest.mmuext((MMUEXT_PIN_L1_TABLE, table, 0)) == 0
    assert code[guest.mfns[DATA]] == guest.engine.slot


def test_taking_nx_away_marks(guest: Guest) -> None:
    assert guest.remap(A, KERNEL & ~PTE_NX) == 0
    assert guest.world.machine.memory.code[guest.mfns[A]] == guest.engine.slot
