# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit sees every kind of damage; each test does one, behind the hypervisor's back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.domains import (
    FREE_PFN,
    KERNEL,
    L1_PFNS,
    L2_PFN,
    L3_PFN,
    PAGE,
    READ_ONLY,
    TABLE,
    Guest,
    World,
    entry,
)
from xenlite.core.hole import HOLE_SLOT
from xenlite.machine.frames import FrameType
from xenlite.machine.x86_32p import PTE_PSE

DATA = FREE_PFN


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.machine.frames.close()
    for guest in made.guests.values():
        guest.engine.close()
    made.machine.memory.close()


@pytest.fixture
def guest(world: World) -> Guest:
    return world.add()


def poke(guest: Guest, table: int, slot: int, value: int) -> None:
    guest.world.machine.memory.m64[table * 512 + slot] = value


def free_frame(world: World) -> int:
    refs = world.machine.frames.refs
    return next(mfn for mfn, count in enumerate(refs) if not count)


def found(world: World, *words: str) -> None:
    """Demand a problem that has all these words in it."""
    problems = world.audit()
    assert any(all(word in problem for word in words) for problem in problems), problems


def test_a_sound_machine_has_no_problems(world: World, guest: Guest) -> None:
    other = world.add()
    guest.domain.grants.seed(8, 0, guest.mfns[DATA])
    mapping = world.dom0.maptrack.map(guest.domain.grants, 8, writable=True)
    assert world.audit() == []
    world.dom0.maptrack.unmap(mapping)
    world.remove(other)
    assert world.audit() == []


@pytest.mark.parametrize("column", ["refs", "type_count"])
@pytest.mark.parametrize("by", [-1, 1])
def test_it_sees_a_wrong_count(world: World, guest: Guest, column: str, by: int) -> None:
    mfn = guest.mfns[DATA]
    getattr(world.machine.frames, column)[mfn] += by
    name = {"refs": "reference count", "type_count": "type count"}[column]
    found(world, hex(mfn), name)


def test_it_sees_a_wrong_type(world: World, guest: Guest) -> None:
    world.machine.frames.kind[guest.mfns[DATA]] = FrameType.L1
    found(world, hex(guest.mfns[DATA]), "type")


def test_it_sees_a_lost_pin(world: World, guest: Guest) -> None:
    world.machine.frames.pinned.clear()
    found(world, hex(guest.mfns[L3_PFN]), "stored type count 2, counted 1")


def test_it_sees_a_pin_of_plain_memory(world: World, guest: Guest) -> None:
    world.machine.frames.pinned.add(guest.mfns[DATA])
    found(world, hex(guest.mfns[DATA]), "pin")


def test_it_sees_a_page_that_is_not_counted(world: World, guest: Guest) -> None:
    world.machine.frames.owned[guest.domain.domid].discard(guest.mfns[DATA])
    found(world, hex(guest.mfns[DATA]), "wrongly counted")


def test_it_sees_an_owner_without_references(world: World, guest: Guest) -> None:
    free = next(
        n for n in range(world.machine.frames.nr_frames) if not world.machine.frames.refs[n]
    )
    world.machine.frames.owner[free] = guest.domain.domid
    found(world, hex(free), "no reference")


@pytest.mark.parametrize("pfn", [L3_PFN, L2_PFN, L1_PFNS[0]])
def test_it_sees_a_table_that_can_be_written(world: World, guest: Guest, pfn: int) -> None:
    mfn = guest.mfns[pfn]
    poke(guest, guest.mfns[L1_PFNS[0]], DATA, entry(mfn, KERNEL))
    found(world, "can write page table", hex(mfn))


def test_it_sees_a_descriptor_table_that_can_be_written(world: World, guest: Guest) -> None:
    mfn = guest.mfns[DATA]
    guest.domain.current.gdt_frames = (mfn,)
    found(world, "can write descriptor table", hex(mfn))


def test_it_sees_memory_of_others(world: World, guest: Guest) -> None:
    other = world.add()
    l1 = guest.mfns[L1_PFNS[0]]
    free = next(
        n for n in range(world.machine.frames.nr_frames) if not world.machine.frames.refs[n]
    )
    for mfn in (other.mfns[DATA], free, world.machine.frames.m2p_frames[0]):
        poke(guest, l1, DATA, entry(mfn, READ_ONLY))
        found(world, "can reach", hex(mfn))


def test_it_sees_what_is_no_memory(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L1_PFNS[0]], DATA, entry(1 << 30, READ_ONLY))
    found(world, "no RAM")


def test_it_sees_a_large_page(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L2_PFN], 5, entry(guest.mfns[DATA], TABLE | PTE_PSE))
    found(world, "forbidden bits")


def test_it_sees_a_table_of_two_levels(world: World, guest: Guest) -> None:
    l2 = guest.mfns[L2_PFN]
    poke(guest, l2, 5, entry(l2, TABLE))
    found(world, hex(l2), "L1", "L2")


def test_it_sees_a_changed_hole(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L2_PFN], HOLE_SLOT, 0)
    found(world, "other entries for the hole")


def test_it_sees_a_writable_hole(world: World, guest: Guest) -> None:
    table = guest.domain.hole.pdes[0] >> 12
    world.machine.memory.m64[table * 512] |= 2
    found(world, "hole L1", hex(table))


def test_it_sees_an_l3_with_more_than_four_entries(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L3_PFN], 4, entry(guest.mfns[L2_PFN], TABLE))
    found(world, "behind its four entries")


def test_it_sees_an_l3_without_the_hole(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L3_PFN], 3, 0)
    found(world, "leaves out the hypervisor's hole")


def test_it_sees_a_shared_top_l2(world: World, guest: Guest) -> None:
    poke(guest, guest.mfns[L3_PFN], 0, entry(guest.mfns[L2_PFN], TABLE))
    found(world, "a top gigabyte and something else")


def test_it_sees_a_dirty_free_frame(world: World, guest: Guest) -> None:
    mfn = guest.mfns[DATA]
    world.remove(guest)
    world.machine.memory.m8[mfn * PAGE + 5] = 1
    found(world, hex(mfn), "not scrubbed")


def test_it_sees_a_name_of_a_free_frame(world: World, guest: Guest) -> None:
    mfn = guest.mfns[DATA]
    guest.domain.guest_memory.write(guest.vaddr(DATA), b"used")
    world.remove(guest)
    world.machine.frames.m2p[mfn] = 5
    found(world, hex(mfn), "M2P")


def test_it_sees_what_a_dead_domain_left(world: World, guest: Guest) -> None:
    world.machine.frames.refs[guest.mfns[DATA]] += 1
    world.machine.frames.allocated[guest.mfns[DATA + 1]] = 0
    world.remove(guest)
    world.machine.frames.allocated[guest.mfns[DATA]] = 1
    found(world, "outlives its domain")


def test_it_sees_forgotten_work(world: World, guest: Guest) -> None:
    guest.domain.paging.deferred.append(guest.mfns[L1_PFNS[0]])
    found(world, hex(guest.mfns[L1_PFNS[0]]), "type count")
    guest.domain.paging.deferred[:] = [guest.mfns[DATA]]
    found(world, hex(guest.mfns[DATA]), "unfinished work")


def test_it_sees_a_wrong_count_of_free_frames(world: World) -> None:
    world.machine.frames.free += 1
    found(world, "count as free")
