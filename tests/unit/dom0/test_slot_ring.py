# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings of slots: nothing is lost, doubled or believed, wherever indexes are (SECURITY G1, G4)."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.shared_page import SharedPage
from xenlite.abi.x86_32p import (
    BLKIF_RING_SIZE,
    SIZEOF_BLKIF_REQUEST,
    SIZEOF_BLKIF_RESPONSE,
    SIZEOF_SRING,
    SRING_REQ_EVENT,
    SRING_REQ_PROD,
    SRING_RSP_PROD,
)
from xenlite.dom0.ring import Page
from xenlite.dom0.slot_ring import BackRing, FrontRing, JoinedPages, Shape, shape
from xenlite.errors import PeerError

SMALL = Shape("ring", request=8, response=4, slots=4)
ODD = Shape("ring", request=1000, response=12, slots=8)  # slots cross from page to page
WIDE = Shape("ring", request=12, response=5000, slots=4)  # and are larger than one
INDEXES = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFFF0, 0xFFFFFFFF))


def pages_for(ring: Shape) -> Page:
    """Make the pages of a ring."""
    needed = -(-(SIZEOF_SRING + ring.slots * ring.slot) // 4096)
    return SharedPage() if needed == 1 else JoinedPages([SharedPage() for _ in range(needed)])


class Wire:
    """Both ends of a ring, each of which rests when it finds nothing and must be woken."""

    def __init__(self, ring: Shape, start: int) -> None:
        self.page = pages_for(ring)
        self.ring = ring
        self.front = FrontRing(self.page, ring, start)
        self.back = BackRing(self.page, ring)
        self.front_rests = self.back_rests = True
        self.numbers = count(1)
        self.in_front: list[int] = []  # put in and not yet published, taken or answered
        self.in_back: list[int] = []
        self.asked: list[int] = []
        self.answered: list[int] = []

    def step(self, action: int) -> None:
        """Do one of the things that an end does, if it is awake for it."""
        if action == 0 and self.front.room:
            number = next(self.numbers)
            self.front.put(number.to_bytes(self.ring.request, "little"))
            self.asked.append(number)
        elif action == 1 and self.front.publish():
            self.back_rests = False
        elif action == 2 and not self.back_rests:
            taken = self.back.take(2)
            self.in_back += [int.from_bytes(request, "little") for request in taken]
            if not taken and not self.back.has_more():
                self.back_rests = True
        elif action == 3 and self.in_back:
            # In any order: the last that was taken is answered first.
            self.back.put(self.in_back.pop().to_bytes(self.ring.response, "little"))
        elif action == 4 and self.back.publish():
            self.front_rests = False
        elif action == 5 and not self.front_rests:
            taken = self.front.take(3)
            self.answered += [int.from_bytes(response, "little") for response in taken]
            if not taken and not self.front.has_more():
                self.front_rests = True


@given(
    st.sampled_from([SMALL, ODD, shape("blk", SIZEOF_BLKIF_REQUEST, SIZEOF_BLKIF_RESPONSE)]),
    INDEXES,
    st.lists(st.integers(0, 5), max_size=300),
)
def test_every_request_is_answered_once_whatever_the_order_of_steps(
    ring: Shape, start: int, actions: list[int]
) -> None:
    """Both ends sleep unless they were told, so that a missing event would leave some over."""
    wire = Wire(ring, start)
    for action in actions:
        wire.step(action)
    for _ in range(len(wire.asked) + 3):
        for action in (1, 2, 2, 2, 3, 3, 3, 4, 5, 5):
            wire.step(action)
    assert sorted(wire.answered) == wire.asked
    assert wire.front.room == ring.slots
    assert (wire.front_rests, wire.back_rests) == (True, True)


@given(
    st.sampled_from([SMALL, ODD, WIDE]),
    INDEXES,
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=30),
)
def test_slots_that_are_moved_in_one_piece_are_the_same_as_one_by_one(
    ring: Shape, start: int, rounds: list[tuple[int, int, int]]
) -> None:
    """Both ends take and put whole slots, joined, across the ring's end and the pages' ends."""
    page = pages_for(ring)
    front, back = FrontRing(page, ring, start), BackRing(page, ring)
    numbers = count(1)
    asked: list[bytes] = []
    waiting: list[bytes] = []
    answered: list[bytes] = []
    for put, take, answer in rounds:
        new = [next(numbers).to_bytes(ring.slot, "little") for _ in range(min(put, front.room))]
        front.put_slots(b"".join(new))
        asked += new
        front.publish()
        raw = back.take_slots(min(take, back.waiting()))
        waiting += [raw[at : at + ring.slot] for at in range(0, len(raw), ring.slot)]
        back.put_slots(b"".join(waiting[:answer]))
        del waiting[:answer]
        back.publish()
        raw = front.take_slots(min(take, front.waiting()))
        answered += [raw[at : at + ring.slot] for at in range(0, len(raw), ring.slot)]
    assert answered == asked[: len(answered)]
    assert back.in_work == len(waiting)
    assert waiting == asked[len(asked) - len(waiting) - back.waiting() :][: len(waiting)]


@given(INDEXES, st.integers(1, 4), st.integers(0, 4))
def test_an_end_that_wants_several_is_told_of_the_last_of_them(
    start: int, wanted: int, there: int
) -> None:
    wire = Wire(SMALL, start)
    for _ in range(there):
        wire.front.put(bytes(8))
    wire.front.publish()
    assert wire.back.has_more(wanted) == (there >= wanted)
    for n in range(there + 1, 5):
        wire.front.put(bytes(8))
        assert wire.front.publish() == (n == wanted)
    assert wire.back.has_more(wanted)


@given(INDEXES, st.integers(1, 4))
def test_only_the_event_that_was_asked_for_is_sent(start: int, batch: int) -> None:
    """One for a batch to an end that rests; none to one that has not looked yet."""
    wire = Wire(SMALL, start)
    for _ in range(batch):
        wire.front.put(bytes(8))
    assert wire.front.publish()
    assert not wire.front.publish()
    assert len(wire.back.take(9)) == batch
    if batch < 4:
        wire.front.put(bytes(8))
        assert not wire.front.publish(), "it will look again before it rests"
        assert wire.back.has_more()


@given(INDEXES)
def test_the_final_check_sees_what_came_while_it_was_made(start: int) -> None:
    wire = Wire(SMALL, start)

    class Late(SharedPage):
        """A page on which a request appears as the backend asks to be told."""

        def write_u32(self, offset: int, value: int) -> None:
            super().write_u32(offset, value)
            if offset == SRING_REQ_EVENT:
                super().write_u32(SRING_REQ_PROD, (start + 1) & 0xFFFFFFFF)

    page = Late()
    page.bytes[:] = wire.page.bytes  # type: ignore[attr-defined]
    back = BackRing(page, SMALL)
    assert back.has_more()
    assert len(back.take(9)) == 1


@given(INDEXES, st.integers(0, 4), st.integers(0, 0xFFFFFFFF))
def test_a_frontend_that_claims_too_much_is_found_out(start: int, work: int, claim: int) -> None:
    wire = Wire(SMALL, start)
    for _ in range(work):
        wire.front.put(bytes(8))
    wire.front.publish()
    wire.back.take(work)
    wire.page.write_u32(SRING_REQ_PROD, (start + work + claim) & 0xFFFFFFFF)
    if claim <= SMALL.slots - work:
        assert len(wire.back.take(99)) == claim
        return
    for _ in range(2):
        with pytest.raises(PeerError):
            wire.back.take(99)
        with pytest.raises(PeerError):
            wire.back.has_more()
    assert wire.back.in_work == work


@given(INDEXES, st.integers(0, 4), st.integers(0, 0xFFFFFFFF))
def test_a_backend_that_answers_what_was_not_asked_is_found_out(
    start: int, asked: int, claim: int
) -> None:
    wire = Wire(SMALL, start)
    for _ in range(asked):
        wire.front.put(bytes(8))
    wire.front.publish()
    wire.page.write_u32(SRING_RSP_PROD, (start + claim) & 0xFFFFFFFF)
    if claim <= asked:
        assert len(wire.front.take(99)) == claim
    else:
        with pytest.raises(PeerError):
            wire.front.take(99)


@given(INDEXES, st.integers(0, 0xFFFFFFFF))
def test_what_the_other_end_writes_into_our_indexes_changes_nothing(start: int, junk: int) -> None:
    wire = Wire(SMALL, start)
    wire.front.put(bytes(range(8)))
    wire.front.publish()
    wire.page.write_u32(SRING_RSP_PROD, junk)
    assert wire.back.take(9) == [bytes(range(8))]
    wire.back.put(b"done")
    wire.back.publish()
    assert wire.page.read_u32(SRING_RSP_PROD) == (start + 1) & 0xFFFFFFFF
    assert wire.front.take(9) == [b"done"]


def test_a_block_ring_has_the_slots_of_the_abi() -> None:
    sizes = (SIZEOF_BLKIF_REQUEST, SIZEOF_BLKIF_RESPONSE)
    assert shape("blk", *sizes).slots == BLKIF_RING_SIZE
    assert [shape("blk", *sizes, pages).slots for pages in (2, 4, 8, 16)] == [64, 128, 256, 512]


def test_a_backend_joins_a_ring_that_has_run_before() -> None:
    page = SharedPage()
    front = FrontRing(page, SMALL, 77)
    front.put(b"12345678")
    front.publish()
    back = BackRing(page, SMALL)
    assert back.take(1) == [b"12345678"]
    assert (back.in_work, front.room) == (1, 3)
