# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls are charged what they cost, refused or not, so that a list of them ends in time."""

from __future__ import annotations

import pytest

from tests.support.domains import FREE_PFN, READ_ONLY, entry, world
from xenlite.errors import Refused
from xenlite.machine.frames import FrameTable
from xenlite.machine.memory import MachineMemory

LAST = 511
TSS = 0x00008900_00000000
WORK_OF_A_TABLE = 64


def test_a_refused_descriptor_table_costs_what_a_good_one_does() -> None:
    with world() as made:
        guest = made.add()
        mfn = guest.mfns[FREE_PFN]
        guest.domain.paging.set_l1(guest.slot(FREE_PFN) >> 3, entry(mfn, READ_ONLY))
        made.machine.memory.m64[mfn * (LAST + 1) + LAST] = TSS
        before = guest.domain.paging.work_left
        with pytest.raises(Refused, match="bad-descriptor"):
            guest.domain.descriptors.set_gdt((mfn,), LAST + 1)
        assert before - guest.domain.paging.work_left >= WORK_OF_A_TABLE


def test_extents_come_together_or_not_at_all() -> None:
    memory = MachineMemory(1 << 20)
    frames = FrameTable(memory)
    try:
        free = frames.refs.count(0)
        firsts = frames.allocate_extents(1, 3, 4)
        assert len(set(firsts)) == 4
        assert all(first % 8 == 0 for first in firsts)
        assert frames.refs.count(0) == free - 4 * 8
        with pytest.raises(Refused, match="no-extent"):
            frames.allocate_extents(1, 3, 1000)
        with pytest.raises(Refused, match="exhausted"):
            frames.allocate_extents(1, 0, 1000)
        assert frames.refs.count(0) == free - 4 * 8
        assert len(frames.pages_of(1)) == 4 * 8
    finally:
        frames.close()
        memory.close()
