# SPDX-License-Identifier: GPL-2.0-or-later
"""Refusals of single requests that no other test takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.domains import FREE_PFN, world
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    ENOMEM,
    XENMEM_exchange,
    XENMEMF_populate_on_demand,
    XenMemoryExchange,
    XenMemoryReservation,
)
from xenlite.errors import ConfigError
from xenlite.toolstack.lifecycle import read_file

NARROW = 8  # address bits: not even the first page


@pytest.mark.parametrize("flags", [NARROW, XENMEMF_populate_on_demand])
def test_an_exchange_for_frames_that_cannot_be_had_changes_nothing(flags: int) -> None:
    with world() as machine:
        guest = machine.add()
        lists = guest.place(guest.mfns[FREE_PFN].to_bytes(4, "little") * 2)
        given = XenMemoryReservation(lists, 1, 0, 0, DOMID_SELF)
        wanted = XenMemoryReservation(lists + 4, 1, 0, flags, DOMID_SELF)
        request = lists + 8
        packed = XenMemoryExchange(given, wanted, 0).pack()
        guest.domain.guest_memory.write(request, packed)
        before = machine.snapshot()
        assert guest.call(guest.memory.memory_op, XENMEM_exchange, request) == -ENOMEM
        assert machine.snapshot() == before


def test_a_file_that_cannot_be_looked_for_is_the_users_fault(tmp_path: Path) -> None:
    path = tmp_path / ("k" * 300)
    with pytest.raises(ConfigError, match="File name too long"):
        read_file(path)
