# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving pages away by transfer: to whom asks, once, and nothing else (SECURITY D5, A12, A9)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack

import pytest

from tests.support.domains import (
    FREE_PFN,
    KERNEL,
    L1_PFNS,
    L3_PFN,
    PAGE,
    PAGES,
    READ_ONLY,
    Guest,
    World,
    entry,
)
from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    DOMID_SELF,
    EBUSY,
    EFAULT,
    EINVAL,
    MMU_MACHPHYS_UPDATE,
    MMUEXT_PIN_L1_TABLE,
    SIZEOF_GNTTAB_TRANSFER,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTTABOP_transfer,
    GnttabTransfer,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_transfer_committed,
    GTF_transfer_completed,
    XENMEM_decrease_reservation,
    XenMemoryReservation,
)
from xenlite.hypercalls.grants import GrantCalls
from xenlite.machine.frames import INVALID_M2P_ENTRY

GIVER, RECEIVER = 1, 2
PAGE_PFN = FREE_PFN  # the page that is given away
REF = 9
DONE = GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed
UNTOUCHED = 99  # the status before the call


class Pair:
    """A guest that gives pages away, and one that waits for one."""

    def __init__(self) -> None:
        self.world = World(32)
        self.giver, self.receiver = self.world.add(GIVER), self.world.add(RECEIVER)
        self.frames = self.world.machine.frames
        self.refused: list[str] = []
        self.calls = GrantCalls(
            self.giver.domain,
            lambda _number, _arguments, refused: self.refused.append(refused.rule),
        )
        self.mfn = self.giver.mfns[PAGE_PFN]
        self.await_one()
        assert self.giver.remap(PAGE_PFN, 0) == 0

    def await_one(
        self, ref: int = REF, *, flags: int = GTF_accept_transfer, giver: int = GIVER
    ) -> None:
        """Write an entry of the receiver's table, as it could."""
        table = self.receiver.domain.grants.mfns[0]
        content = pack("<HHI", flags, giver, 0)
        self.world.machine.memory.write(table * PAGE + ref * 8, content)

    def entry(self, ref: int = REF) -> tuple[int, int, int]:
        """Read an entry of the receiver's table."""
        table = self.receiver.domain.grants.mfns[0]
        flags, domid, mfn = unpack(
            "<HHI", self.world.machine.memory.read(table * PAGE + ref * 8, 8)
        )
        return flags, domid, mfn

    def give(self, *asked: tuple[int, int, int]) -> list[int]:
        """Transfer (mfn, domid, ref); return the status of each."""
        operations = [GnttabTransfer(*one, UNTOUCHED).pack() for one in asked]
        at = self.giver.place(b"".join(operations))
        handler = self.calls.grant_table_op
        assert self.giver.call(handler, GNTTABOP_transfer, at, len(asked)) == 0
        raw = self.giver.domain.guest_memory.read(at, SIZEOF_GNTTAB_TRANSFER * len(asked))
        return [
            GnttabTransfer.unpack(raw, n * SIZEOF_GNTTAB_TRANSFER).status for n in range(len(asked))
        ]

    def pages(self, guest: Guest) -> int:
        """Count a domain's pages."""
        return len(self.frames.pages_of(guest.domain.domid))


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make two guests, and audit them at the end."""
    made = Pair()
    try:
        yield made
        assert made.world.audit() == []
    finally:
        made.world.close()


def test_d5_a_page_changes_hands_with_what_is_in_it(pair: Pair) -> None:
    pair.world.machine.memory.write(pair.mfn * PAGE, b"a gift")
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_okay]
    assert pair.entry() == (DONE, GIVER, pair.mfn)
    assert (pair.pages(pair.giver), pair.pages(pair.receiver)) == (PAGES - 1, PAGES + 1)
    assert pair.frames.m2p[pair.mfn] == INVALID_M2P_ENTRY
    receiver = pair.receiver
    assert receiver.mmu_update((pair.mfn * PAGE | MMU_MACHPHYS_UPDATE, PAGES)) == 0
    assert receiver.update_va(receiver.vaddr(FREE_PFN), entry(pair.mfn, KERNEL)) == 0
    assert receiver.domain.guest_memory.read(receiver.vaddr(FREE_PFN), 6) == b"a gift"
    giver = pair.giver
    assert giver.update_va(giver.vaddr(PAGE_PFN), entry(pair.mfn, READ_ONLY)) == -EBUSY
    assert pair.refused == []


def test_d5_one_entry_takes_one_page(pair: Pair) -> None:
    second = pair.giver.mfns[PAGE_PFN + 1]
    assert pair.giver.remap(PAGE_PFN + 1, 0) == 0
    statuses = pair.give((pair.mfn, RECEIVER, REF), (second, RECEIVER, REF))
    assert statuses == [GNTST_okay, GNTST_general_error]
    assert pair.refused == ["grants.no-transfer-awaited"]
    assert pair.entry() == (DONE, GIVER, pair.mfn)
    assert pair.pages(pair.receiver) == PAGES + 1
    assert pair.frames.owner[second] == DOMID_INVALID


@pytest.mark.parametrize(
    ("flags", "giver"),
    [
        (0, GIVER),
        (GTF_permit_access, GIVER),
        (GTF_accept_transfer | GTF_transfer_committed, GIVER),
        (GTF_accept_transfer | GTF_transfer_completed, GIVER),
        (DONE, GIVER),
        (GTF_accept_transfer | 0x8000, GIVER),
        (GTF_accept_transfer, RECEIVER),
        (GTF_accept_transfer, 0),
    ],
)
def test_d5_nobody_gets_what_he_did_not_ask_for(pair: Pair, flags: int, giver: int) -> None:
    """The page is the giver's no more, as Xen has it, but the receiver sees nothing of it."""
    pair.await_one(flags=flags, giver=giver)
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_general_error]
    assert pair.entry() == (flags, giver, 0)
    assert (pair.pages(pair.giver), pair.pages(pair.receiver)) == (PAGES - 1, PAGES)
    assert pair.frames.owner[pair.mfn] == DOMID_INVALID


@pytest.mark.parametrize("ref", [512, 0xFFFFFFFF])
def test_d5_a_reference_outside_the_table_is_none(pair: Pair, ref: int) -> None:
    assert pair.give((pair.mfn, RECEIVER, ref)) == [GNTST_bad_gntref]
    assert pair.frames.owner[pair.mfn] == DOMID_INVALID


@pytest.mark.parametrize("domid", [3, DOMID_SELF, 0x7FF2, 0xFFFF])
def test_d5_a_domain_that_is_not_there_gets_nothing(pair: Pair, domid: int) -> None:
    assert pair.give((pair.mfn, domid, REF)) == [GNTST_bad_domain]
    assert pair.frames.owner[pair.mfn] == DOMID_INVALID


@pytest.mark.parametrize("domid", [RECEIVER, 0])
def test_d5_a_full_domain_takes_nothing_and_its_entry_stays(pair: Pair, domid: int) -> None:
    pair.receiver.domain.max_pages = PAGES
    assert pair.give((pair.mfn, domid, REF)) == [GNTST_general_error]
    assert pair.refused == ["memory.over-maximum"]
    assert pair.entry() == (GTF_accept_transfer, GIVER, 0)
    assert pair.pages(pair.receiver) == PAGES


def test_d5_a_transfer_to_oneself_changes_nothing_but_the_entry(pair: Pair) -> None:
    """Even of a domain that has all it may have: the page leaves before it comes."""
    giver = pair.giver
    giver.domain.max_pages = PAGES
    table = giver.domain.grants.mfns[0]
    pair.world.machine.memory.write(
        table * PAGE + REF * 8, pack("<HHI", GTF_accept_transfer, GIVER, 0)
    )
    assert pair.give((pair.mfn, GIVER, REF)) == [GNTST_okay]
    assert pair.pages(giver) == PAGES
    assert giver.remap(PAGE_PFN, KERNEL) == 0


def test_d5_an_entry_in_use_takes_no_page(pair: Pair) -> None:
    """The receiver offers a page, has it mapped, then rewrites the entry under the mapping."""
    pair.receiver.domain.grants.seed(REF, 0, pair.receiver.mfns[FREE_PFN])
    mapping = pair.world.dom0.maptrack.map(pair.receiver.domain.grants, REF, writable=False)
    pair.await_one()
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_general_error]
    assert pair.pages(pair.receiver) == PAGES
    pair.world.dom0.maptrack.unmap(mapping)


# -- A12: what can be taken from its owner --------------------------------------------------------


def _stay(pair: Pair, mfn: int) -> None:
    """Try to give a frame away that can't be; everything must stay as it was."""
    before = pair.world.snapshot()[:6]
    assert pair.give((mfn, RECEIVER, REF)) == [GNTST_bad_page]
    assert pair.world.snapshot()[:6] == before
    assert pair.refused == ["memory.frame-in-use"]
    assert pair.entry() == (GTF_accept_transfer, GIVER, 0)


def test_a12_a_page_that_is_mapped_is_not_given(pair: Pair) -> None:
    assert pair.giver.remap(PAGE_PFN, READ_ONLY) == 0
    _stay(pair, pair.mfn)


def test_a12_a_pinned_table_is_not_given(pair: Pair) -> None:
    pair.world.machine.memory.write(pair.mfn * PAGE, bytes(PAGE))
    assert pair.giver.mmuext((MMUEXT_PIN_L1_TABLE, pair.mfn, 0)) == 0
    _stay(pair, pair.mfn)


def test_a12_a_page_that_somebody_has_mapped_by_a_grant_is_not_given(pair: Pair) -> None:
    pair.giver.domain.grants.seed(REF, 0, pair.mfn)
    mapping = pair.world.dom0.maptrack.map(pair.giver.domain.grants, REF, writable=False)
    _stay(pair, pair.mfn)
    pair.world.dom0.maptrack.unmap(mapping)


def test_a12_a_page_that_was_given_back_is_not_given(pair: Pair) -> None:
    """Somebody else's mapping holds it; the domain's claim is gone."""
    pair.giver.domain.grants.seed(REF, 0, pair.mfn)
    mapping = pair.world.dom0.maptrack.map(pair.giver.domain.grants, REF, writable=False)
    giver = pair.giver
    giver.domain.guest_memory.write(giver.vaddr(PAGE_PFN + 1), pack("<I", pair.mfn))
    extents = XenMemoryReservation(giver.vaddr(PAGE_PFN + 1), 1, 0, 0, DOMID_SELF)
    assert giver.memory_op(XENMEM_decrease_reservation, extents.pack()) == 1
    _stay(pair, pair.mfn)
    pair.world.dom0.maptrack.unmap(mapping)


@pytest.mark.parametrize("kind", ["l3", "l1", "shared_info", "grants", "m2p", "foreign", "none"])
def test_a12_what_is_no_free_page_of_ones_own_is_not_given(pair: Pair, kind: str) -> None:
    giver = pair.giver
    mfn = {
        "l3": giver.mfns[L3_PFN],
        "l1": giver.mfns[L1_PFNS[0]],
        "shared_info": giver.domain.shared_info_mfn,
        "grants": giver.domain.grants.mfns[0],
        "m2p": pair.frames.m2p_frames[0],
        "foreign": pair.receiver.mfns[FREE_PFN],
        "none": 0xFFFFFFFF,
    }[kind]
    _stay(pair, mfn)


def test_a12_a_page_is_given_once(pair: Pair) -> None:
    pair.await_one(REF + 1)
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_okay]
    assert pair.give((pair.mfn, RECEIVER, REF + 1)) == [GNTST_bad_page]
    assert pair.entry(REF + 1) == (GTF_accept_transfer, GIVER, 0)


def test_a9_the_giver_cannot_write_it_through_its_tlb(pair: Pair) -> None:
    """The entry is taken away without a flush; the frame changes hands behind one."""
    giver = pair.giver
    assert giver.remap(PAGE_PFN, KERNEL) == 0
    assert giver.engine.store(giver.vaddr(PAGE_PFN), 1)
    assert giver.remap(PAGE_PFN, 0) == 0
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_okay]
    assert not giver.engine.store(giver.vaddr(PAGE_PFN), 2)
    assert pair.world.machine.memory.m32[pair.mfn * PAGE >> 2] == 1


def test_what_was_translated_of_it_is_forgotten(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver, forgotten = pair.giver, []
    assert giver.remap(PAGE_PFN, KERNEL & ~(1 << 63)) == 0
    monkeypatch.setattr(
        giver.engine, "invalidate_code", lambda maddr, _size: forgotten.append(maddr)
    )
    assert giver.remap(PAGE_PFN, 0) == 0
    assert pair.give((pair.mfn, RECEIVER, REF)) == [GNTST_okay]
    assert pair.mfn * PAGE in forgotten
    assert not pair.world.machine.memory.code[pair.mfn]


# -- lists ----------------------------------------------------------------------------------------


def test_d5_each_of_a_long_list_has_its_own_status(pair: Pair) -> None:
    """The budget runs out on the way; every third reference waits for nobody."""
    pair.receiver.domain.max_pages = 2 * PAGES
    giver = pair.giver
    pfns = range(PAGE_PFN, PAGE_PFN + 480)
    for n, pfn in enumerate(pfns):
        if n % 3:
            pair.await_one(REF + n)
        assert giver.remap(pfn, 0) == 0
    pair.await_one(REF, flags=0)
    statuses = pair.give(*((giver.mfns[pfn], RECEIVER, REF + n) for n, pfn in enumerate(pfns)))
    assert statuses == [GNTST_okay if n % 3 else GNTST_general_error for n in range(480)]
    assert pair.pages(pair.receiver) == PAGES + 320
    assert pair.pages(giver) == PAGES - 480


def test_a_list_that_cannot_be_answered_gives_nothing(pair: Pair) -> None:
    giver, handler = pair.giver, pair.calls.grant_table_op
    at = giver.vaddr(PAGE_PFN + 1)
    asked = GnttabTransfer(pair.mfn, RECEIVER, REF, UNTOUCHED).pack()
    giver.domain.guest_memory.write(at, asked)
    assert giver.remap(PAGE_PFN + 1, READ_ONLY) == 0
    before = pair.world.snapshot()[:6]
    assert giver.call(handler, GNTTABOP_transfer, at, 1) == -EFAULT
    assert giver.call(handler, GNTTABOP_transfer, 0xF57FFFF8, 1) == -EFAULT
    assert giver.call(handler, GNTTABOP_transfer, at, 0x7FFFFFFF) == -EFAULT
    assert giver.call(handler, GNTTABOP_transfer, at, 0xFFFFFFFF) == -EINVAL
    assert giver.call(handler, GNTTABOP_transfer, 0, 0) == 0
    assert pair.world.snapshot()[:6] == before
