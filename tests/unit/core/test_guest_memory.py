# SPDX-License-Identifier: GPL-2.0-or-later
"""The door to guest memory lets through what the guest's kernel could do, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.domains import FREE_PFN, KERNEL, L2_PFN, L3_PFN, PAGE, READ_ONLY, Guest, entry
from tests.support.domains import world as make_world
from xenlite.abi.x86_32p import EFAULT
from xenlite.core.hole import HOLE_START
from xenlite.errors import Refused
from xenlite.machine.x86_32p import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US

PFN = FREE_PFN


@pytest.fixture
def guest() -> Iterator[Guest]:
    with make_world() as world:
        yield world.add()


def data_of(guest: Guest) -> bytes:
    """Return all plain pages; a refused write may have set accessed and dirty bits."""
    memory = guest.world.machine.memory
    return b"".join(memory.read(mfn * PAGE, PAGE) for mfn in guest.mfns[:L3_PFN])


def faults(guest: Guest, vaddr: int, size: int = 4) -> tuple[bool, bool]:
    """Tell whether reading and writing are refused; a refused write writes nothing."""
    memory = guest.domain.guest_memory
    results = []
    for attempt in (lambda: memory.read(vaddr, size), lambda: memory.write(vaddr, b"!" * size)):
        before = data_of(guest)
        try:
            attempt()
            errno = 0
        except Refused as refused:
            errno = refused.errno
            assert data_of(guest) == before
        assert errno in (0, EFAULT)
        results.append(bool(errno))
    return results[0], results[1]


def test_bytes_come_back_across_pages_that_are_no_neighbours(guest: Guest) -> None:
    data = bytes(range(256)) * 33
    for start in (0, 5, PAGE - 1, PAGE - 256):
        guest.domain.guest_memory.write(guest.vaddr(PFN) + start, data)
        assert guest.domain.guest_memory.read(guest.vaddr(PFN) + start, len(data)) == data
        assert guest.world.machine.memory.m8[guest.mfns[PFN] * PAGE + start] == 0


def test_the_hole_and_the_end_are_out_of_bounds(guest: Guest) -> None:
    for vaddr in (HOLE_START, HOLE_START - 2, 0xFC000000, 0xFFFFFFFE, 0xFFFFFFFF):
        assert faults(guest, vaddr) == (True, True)
    with pytest.raises(Refused):
        guest.domain.guest_memory.check_range(0xFFFFFFF0, 0x20)
    with pytest.raises(Refused):
        guest.domain.guest_memory.check_range(0x1000, 1 << 36)


def test_what_is_not_mapped_faults(guest: Guest) -> None:
    assert guest.remap(PFN, 0) == 0
    assert faults(guest, guest.vaddr(PFN)) == (True, True)
    assert faults(guest, 0x1000) == (True, True)
    assert faults(guest, guest.vaddr(2000)) == (True, True)


def test_read_only_pages_are_read_only(guest: Guest) -> None:
    assert guest.remap(PFN, READ_ONLY) == 0
    assert faults(guest, guest.vaddr(PFN)) == (False, True)


def test_a_read_only_l2_entry_counts(guest: Guest) -> None:
    at = guest.mfns[L2_PFN] * PAGE + 8
    live = guest.read_slot(at)
    assert not faults(guest, guest.vaddr(600))[1]
    assert guest.mmu_update((at, live & ~PTE_RW)) == 0
    assert faults(guest, guest.vaddr(600)) == (False, True)
    assert guest.mmu_update((at, live)) == 0
    assert faults(guest, guest.vaddr(600)) == (False, False)


def test_a_write_that_ends_badly_does_not_begin(guest: Guest) -> None:
    assert guest.remap(PFN + 1, READ_ONLY) == 0
    assert faults(guest, guest.vaddr(PFN) + PAGE - 8, 16) == (False, True)


def test_user_pages_are_the_kernels_too(guest: Guest) -> None:
    assert guest.remap(PFN, KERNEL | PTE_US) == 0
    assert faults(guest, guest.vaddr(PFN)) == (False, False)


def test_accessed_and_dirty_are_set_as_the_processor_would(guest: Guest) -> None:
    at = guest.slot(PFN)
    bare = entry(guest.mfns[PFN], PTE_P | PTE_RW | PTE_NX)
    assert guest.mmu_update((at, bare)) == 0
    guest.domain.guest_memory.read(guest.vaddr(PFN), 4)
    assert guest.read_slot(at) == bare | PTE_A
    guest.domain.guest_memory.write(guest.vaddr(PFN), b"x")
    assert guest.read_slot(at) == bare | PTE_A | PTE_D


def test_nothing_is_nowhere(guest: Guest) -> None:
    assert guest.domain.guest_memory.read(0x1000, 0) == b""
    guest.domain.guest_memory.write(0x1000, b"")


def test_code_that_is_written_is_forgotten(guest: Guest) -> None:
    forgotten: list[int] = []
    guest.engine.invalidate_code = lambda maddr, _size: forgotten.append(maddr >> 12)  # type: ignore[method-assign]
    assert guest.remap(PFN, PTE_P | PTE_RW) == 0
    guest.domain.guest_memory.write(guest.vaddr(PFN) + 8, b"\x90")
    guest.domain.guest_memory.write(guest.vaddr(PFN) - 2, b"\x90" * 4)
    assert forgotten == [guest.mfns[PFN]] * 2


def test_words_are_little_endian_and_unaligned(guest: Guest) -> None:
    memory, at = guest.domain.guest_memory, guest.vaddr(PFN) + PAGE - 3
    memory.write_u32(at, 0x04030201)
    assert memory.read(at, 4) == b"\1\2\3\4"
    assert memory.read_u32(at) == 0x04030201
    assert memory.read_u64(at) & 0xFFFFFFFF == 0x04030201
