# SPDX-License-Identifier: GPL-2.0-or-later
"""What interrupted calls leave behind stays small, however many of them are given up."""

from __future__ import annotations

import pytest

from tests.support.domains import FREE_PFN, READ_ONLY, TABLE, entry, world
from xenlite.core.paging import Preempted
from xenlite.machine.frames import FrameType

ENTRIES = 512
TOO_LITTLE = 500  # units of work: less than the entries of the table that is pinned
TIMES = 40


def test_pins_that_are_given_up_keep_one_reference_of_each_table() -> None:
    with world() as made:
        guest = made.add()
        paging = guest.domain.paging
        listed, other, table = (guest.mfns[FREE_PFN + n] for n in range(3))
        for n in range(3):
            paging.set_l1(guest.slot(FREE_PFN + n) >> 3, entry(guest.mfns[FREE_PFN + n], READ_ONLY))
        slots = made.machine.memory.m64
        for index in range(ENTRIES - 1):
            slots[table * ENTRIES + index] = entry(listed, TABLE)
        slots[table * ENTRIES + ENTRIES - 1] = entry(other, TABLE)
        for _ in range(TIMES):
            paging.work_left = TOO_LITTLE
            with pytest.raises(Preempted):
                paging.pin(table, FrameType.L2)
            guest.settle()
            assert not paging.deferred
            assert paging.kept == {listed}
            assert made.machine.frames.type_count[listed] == 1
            assert made.audit() == []
