# SPDX-License-Identifier: GPL-2.0-or-later
"""Each frame has one owner, comes scrubbed, and goes back when nothing uses it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from xenlite.abi.x86_32p import DOMID_INVALID, DOMID_XEN, EBUSY, EINVAL, ENOMEM
from xenlite.errors import Refused
from xenlite.machine.frames import INVALID_M2P_ENTRY, FrameTable, FrameType
from xenlite.machine.memory import MachineMemory

MEGABYTE = 1 << 20
PAGE = 4096
ALICE, BOB = 1, 2


@pytest.fixture
def frames() -> Iterator[FrameTable]:
    memory = MachineMemory(4 * MEGABYTE)
    table = FrameTable(memory)
    yield table
    table.close()
    memory.close()


def free_count(frames: FrameTable) -> int:
    return sum(owner == DOMID_INVALID for owner in frames.owner)


def test_every_frame_is_given_once(frames: FrameTable) -> None:
    count = free_count(frames)
    mfns = frames.allocate(ALICE, count)
    assert len(set(mfns)) == count
    assert frames.pages_of(ALICE) == set(mfns)
    assert not set(mfns) & set(frames.m2p_frames)
    assert all(frames.refs[mfn] == 1 and frames.allocated[mfn] for mfn in mfns)


def test_neighbours_are_not_neighbours(frames: FrameTable) -> None:
    mfns = frames.allocate(ALICE, 256)
    assert not any(b - a in (-1, 1) for a, b in pairwise(mfns))


def test_too_much_takes_nothing(frames: FrameTable) -> None:
    count = free_count(frames)
    with pytest.raises(Refused) as refused:
        frames.allocate(ALICE, count + 1)
    assert refused.value.errno == ENOMEM
    assert free_count(frames) == count
    assert frames.pages_of(ALICE) == set()
    assert len(frames.allocate(ALICE, count)) == count


def test_a_freed_frame_is_as_good_as_new(frames: FrameTable) -> None:
    [mfn] = frames.allocate(ALICE, 1)
    frames.memory.write(mfn * PAGE, b"secret")
    frames.m2p[mfn] = 7
    assert frames.drop_allocation(mfn)
    assert frames.owner[mfn] == DOMID_INVALID
    assert frames.m2p[mfn] == INVALID_M2P_ENTRY
    assert frames.memory.read(mfn * PAGE, PAGE) == bytes(PAGE)
    assert frames.pages_of(ALICE) == set()
    assert frames.allocate(BOB, 1) == [mfn]


def test_the_last_reference_frees(frames: FrameTable) -> None:
    [mfn] = frames.allocate(ALICE, 1)
    frames.get_page(mfn, ALICE)
    assert frames.drop_allocation(mfn)
    assert not frames.drop_allocation(mfn)
    assert frames.owner[mfn] == ALICE
    assert mfn in frames.pages_of(ALICE)
    frames.put_page(mfn)
    assert frames.owner[mfn] == DOMID_INVALID


def test_only_the_owner_gets_references(frames: FrameTable) -> None:
    [mfn] = frames.allocate(ALICE, 1)
    for bad in (mfn, frames.allocate_xen(), 0, frames.nr_frames, 1 << 40, -1):
        with pytest.raises(Refused) as refused:
            frames.get_page(bad, BOB)
        assert refused.value.errno == EINVAL
        with pytest.raises(Refused) as refused:
            frames.get_writable(bad, BOB)
        assert refused.value.errno == EBUSY
    assert frames.refs[mfn] == 1


def test_a_type_is_taken_at_zero_only(frames: FrameTable) -> None:
    [mfn] = frames.allocate(ALICE, 1)
    frames.kind[mfn], frames.type_count[mfn] = FrameType.L1, 1
    with pytest.raises(Refused):
        frames.get_writable(mfn, ALICE)
    assert frames.drop_type(mfn) == 0
    assert frames.kind[mfn] == FrameType.NONE
    frames.get_writable(mfn, ALICE)
    frames.get_writable(mfn, ALICE)
    assert (frames.kind[mfn], frames.type_count[mfn]) == (FrameType.WRITABLE, 2)
    frames.put_writable(mfn)
    assert frames.kind[mfn] == FrameType.WRITABLE
    frames.put_writable(mfn)
    assert (frames.kind[mfn], frames.type_count[mfn], frames.refs[mfn]) == (FrameType.NONE, 0, 1)


def test_dropping_too_much_is_our_fault(frames: FrameTable) -> None:
    [mfn] = frames.allocate(ALICE, 1)
    with pytest.raises(AssertionError):
        frames.drop_type(mfn)
    with pytest.raises(AssertionError):
        frames.put_writable(mfn)
    with pytest.raises(AssertionError):
        frames.put_page(mfn)  # the allocation's own


def test_extents_are_aligned_runs(frames: FrameTable) -> None:
    for order in (0, 1, 4, 6):
        first = frames.allocate_extent(ALICE, order)
        mfns = range(first, first + (1 << order))
        assert first % (1 << order) == 0
        assert all(frames.owner[mfn] == ALICE for mfn in mfns)
        assert frames.pages_of(ALICE) >= set(mfns)


def test_an_extent_that_does_not_exist_is_refused(frames: FrameTable) -> None:
    held = frames.allocate(ALICE, free_count(frames))
    for mfn in held[::2]:
        if mfn % 2:
            frames.drop_allocation(mfn)
    before = free_count(frames)
    with pytest.raises(Refused) as refused:
        frames.allocate_extent(BOB, 1)
    assert refused.value.errno == ENOMEM
    assert free_count(frames) == before


def test_frames_of_extents_are_given_once_too(frames: FrameTable) -> None:
    """A frame may be on the list of freed ones and among those never used."""
    for _ in range(3):
        first = frames.allocate_extent(ALICE, 5)
        for mfn in range(first, first + 32):
            assert frames.drop_allocation(mfn)
    count = free_count(frames)
    mfns = frames.allocate(BOB, count)
    assert len(set(mfns)) == count
    with pytest.raises(Refused):
        frames.allocate(BOB, 1)
    for mfn in mfns:
        frames.drop_allocation(mfn)
    assert len(set(frames.allocate(ALICE, count))) == count


def test_frames_that_are_no_pages_are_not_counted(frames: FrameTable) -> None:
    mfn = frames.allocate_uncounted(ALICE)
    assert frames.owner[mfn] == ALICE
    assert frames.pages_of(ALICE) == set()
    assert frames.owner[frames.allocate_xen()] == DOMID_XEN


def test_the_m2p_belongs_to_the_hypervisor(frames: FrameTable) -> None:
    assert [frames.owner[mfn] for mfn in frames.m2p_frames] == [DOMID_XEN]
    assert set(frames.m2p) == {INVALID_M2P_ENTRY}
    assert len(frames.m2p) == frames.nr_frames
