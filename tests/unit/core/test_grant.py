# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants: what is offered is what is used, and for as long as it is used (SECURITY D1)."""

from __future__ import annotations

import pytest

from tests.support.domains import FREE_PFN, KERNEL, READ_ONLY, Guest, World, entry, world
from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    EACCES,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENXIO,
    MMUEXT_PIN_L1_TABLE,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
)
from xenlite.core.grant import ENTRIES_PER_FRAME
from xenlite.core.maptrack import MappedGrant
from xenlite.errors import Refused
from xenlite.machine.frames import FrameType


def granted(made: World, ref: int = 0) -> tuple[Guest, int]:
    """Make a guest that offers a page to Dom0."""
    guest = made.add(1)
    mfn = guest.mfns[FREE_PFN]
    guest.domain.grants.seed(ref, 0, mfn)
    return guest, mfn


def use(guest: Guest, ref: int, domid: int = 0, *, writable: bool) -> MappedGrant:
    """Map what a guest offers under ``ref``, as another domain."""
    mapper = guest.world.peers[domid]
    return mapper.maptrack.map(guest.domain.grants, ref, writable=writable)


def give_back(guest: Guest, mapping: MappedGrant, domid: int = 0) -> None:
    """Unmap it."""
    guest.world.peers[domid].maptrack.unmap(mapping)


def flags(guest: Guest, ref: int = 0) -> int:
    """Read the flags of a shared entry."""
    mfn = guest.domain.grants.mfns[0]
    return guest.world.machine.memory.m16[((mfn << 12) + ref * 8) >> 1]


def set_flags(guest: Guest, value: int, ref: int = 0) -> None:
    """Write the flags of a shared entry, as the guest could."""
    mfn = guest.domain.grants.mfns[0]
    guest.world.machine.memory.m16[((mfn << 12) + ref * 8) >> 1] = value


def refusal(guest: Guest, ref: int, domid: int = 0, *, writable: bool = True) -> int:
    """Map something that must be refused; return the error, having checked that nothing changed."""
    before = guest.world.snapshot()
    with pytest.raises(Refused) as refused:
        use(guest, ref, domid, writable=writable)
    assert guest.world.snapshot() == before
    return refused.value.errno


def test_a_mapping_pins_the_frame_and_marks_the_entry() -> None:
    with world() as made:
        guest, mfn = granted(made)
        frames = made.machine.frames
        refs, uses = frames.refs[mfn], frames.type_count[mfn]
        writer = use(guest, 0, 0, writable=True)
        reader = use(guest, 0, 0, writable=False)
        assert flags(guest) == GTF_permit_access | GTF_reading | GTF_writing
        assert (frames.refs[mfn], frames.type_count[mfn]) == (refs + 2, uses + 1)
        assert frames.kind[mfn] == FrameType.WRITABLE
        assert made.audit() == []
        give_back(guest, writer)
        assert flags(guest) == GTF_permit_access | GTF_reading
        give_back(guest, reader)
        assert flags(guest) == GTF_permit_access
        assert (frames.refs[mfn], frames.type_count[mfn]) == (refs, uses)


def test_both_sides_see_the_same_bytes() -> None:
    with world() as made:
        guest, _ = granted(made)
        mapping = use(guest, 0, 0, writable=True)
        mapping.write(10, b"from Dom0")
        assert guest.domain.guest_memory.read(guest.vaddr(FREE_PFN) + 10, 9) == b"from Dom0"
        guest.domain.guest_memory.write(guest.vaddr(FREE_PFN), b"\1\2\3\4")
        assert mapping.read_u32(0) == 0x04030201
        mapping.write_u32(4, 0x55667788)
        assert mapping.read(4, 4) == bytes.fromhex("88776655")
        give_back(guest, mapping)


@pytest.mark.parametrize("ref", [1, ENTRIES_PER_FRAME - 1, ENTRIES_PER_FRAME, 0xFFFFFFFF, -1])
def test_what_is_not_offered_cannot_be_mapped(ref: int) -> None:
    with world() as made:
        guest, _ = granted(made)
        assert refusal(guest, ref) == (EINVAL if 0 <= ref < ENTRIES_PER_FRAME else ENOENT)


def test_an_offer_is_for_one_domain_and_one_way() -> None:
    with world(32) as made:
        guest, _ = granted(made)
        made.add(2)
        assert refusal(guest, 0, domid=2) == EACCES
        set_flags(guest, GTF_permit_access | GTF_readonly)
        assert refusal(guest, 0) == EACCES
        mapping = use(guest, 0, 0, writable=False)
        assert flags(guest) == GTF_permit_access | GTF_readonly | GTF_reading
        give_back(guest, mapping)


def test_a_frame_that_is_not_the_granters_cannot_be_mapped() -> None:
    with world(32) as made:
        guest, _ = granted(made)
        other = made.add(2)
        for mfn in (other.mfns[FREE_PFN], 0, made.machine.frames.nr_frames, 0xFFFFFFFF):
            guest.domain.grants.seed(3, 0, mfn)
            assert refusal(guest, 3) == ENXIO
            assert refusal(guest, 3, writable=False) == ENXIO


def test_a_page_table_cannot_be_mapped_for_writing() -> None:
    with world() as made:
        guest, _ = granted(made)
        table = guest.domain.current.cr3_mfn
        assert table is not None
        guest.domain.grants.seed(3, 0, table)
        assert refusal(guest, 3) == EBUSY
        mapping = use(guest, 3, 0, writable=False)
        give_back(guest, mapping)


def test_a_page_mapped_for_writing_cannot_become_a_table() -> None:
    with world() as made:
        guest, mfn = granted(made)
        mapping = use(guest, 0, 0, writable=True)
        assert guest.remap(FREE_PFN, READ_ONLY) == 0
        with pytest.raises(Refused):
            guest.domain.paging.pin(mfn, FrameType.L1)
        give_back(guest, mapping)
        guest.domain.paging.pin(mfn, FrameType.L1)
        guest.domain.paging.unpin(mfn)
        guest.settle()


def test_what_the_granter_writes_into_a_used_entry_changes_nothing() -> None:
    with world() as made:
        guest, mfn = granted(made)
        made.add(2)
        first = use(guest, 0, 0, writable=False)
        guest.domain.grants.seed(0, 0, guest.mfns[FREE_PFN + 1])
        second = use(guest, 0, 0, writable=False)
        assert second.mfn == mfn, "the frame of the first mapping counts"
        guest.domain.grants.seed(0, 2, guest.mfns[FREE_PFN + 1])
        with pytest.raises(Refused):
            use(guest, 0, 2, writable=False)
        give_back(guest, first)
        give_back(guest, second)
        third = use(guest, 0, 2, writable=False)
        assert third.mfn == guest.mfns[FREE_PFN + 1]
        give_back(guest, third, 2)


def test_a_mapping_is_given_back_once() -> None:
    with world() as made:
        guest, _ = granted(made)
        mapping = use(guest, 0, 0, writable=True)
        give_back(guest, mapping)
        with pytest.raises(Refused) as refused:
            give_back(guest, mapping)
        assert refused.value.errno == ENOENT


def test_a_mapping_outlives_its_granter() -> None:
    with world() as made:
        guest, mfn = granted(made)
        mapping = use(guest, 0, 0, writable=True)
        made.remove(guest)
        assert made.machine.frames.refs[mfn] == 1
        mapping.write(0, b"still there")
        made.dom0.maptrack.unmap(mapping)
        assert made.machine.frames.refs[mfn] == 0
        assert made.machine.memory.read(mfn << 12, 11) == bytes(11), "scrubbed when it was freed"


# -- the table itself -----------------------------------------------------------------------------


def test_a_table_grows_and_keeps_what_is_in_it() -> None:
    with world() as made:
        guest, mfn = granted(made)
        grants = guest.domain.grants
        first = grants.mfns[0]
        with pytest.raises(Refused):
            grants.seed(ENTRIES_PER_FRAME, 0, mfn)
        grants.grow(3)
        grants.grow(2)  # has more already
        assert len(grants.mfns) == 3
        assert grants.mfns[0] == first
        assert not set(grants.mfns) & made.machine.frames.pages_of(1)
        last = 3 * ENTRIES_PER_FRAME - 1
        grants.seed(last, 0, mfn)
        mappings = [use(guest, ref, 0, writable=False) for ref in (0, last)]
        assert made.audit() == []
        for mapping in mappings:
            give_back(guest, mapping)
        assert refusal(guest, last + 1) == ENOENT


def test_a_table_has_a_limit() -> None:
    with world() as made:
        grants = made.add(1).domain.grants
        grants.grow(64)
        with pytest.raises(Refused) as refused:
            grants.grow(65)
        assert refused.value.errno == ENOSPC
        assert len(grants.mfns) == 64


def test_a_table_grows_whole_or_not_at_all() -> None:
    with world(8) as made:
        guest = made.add(1, max_pages=4096)
        frames = made.machine.frames
        free = frames.owner.count(DOMID_INVALID)
        taken = frames.allocate(1, free - 5)
        before = made.snapshot()[:4]
        with pytest.raises(Refused) as refused:
            guest.domain.grants.grow(7)
        assert refused.value.errno == ENOMEM
        assert made.snapshot()[:4] == before
        guest.domain.grants.grow(6)
        for mfn in taken:
            frames.drop_allocation(mfn)


def test_a_table_frame_is_nobodys_page_and_no_page_table() -> None:
    with world() as made:
        guest = made.add(1)
        guest.domain.grants.grow(2)
        mfn = guest.domain.grants.mfns[1]
        assert guest.mmuext((MMUEXT_PIN_L1_TABLE, mfn, 0)) < 0
        assert guest.update_va(guest.vaddr(FREE_PFN), entry(mfn, KERNEL)) == 0
        assert made.audit() == []
        assert guest.remap(FREE_PFN, KERNEL) == 0
