# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.shared_page import SharedPage
from xenlite.dom0.ring import Consumer, Place, Producer
from xenlite.errors import PeerError

RING = Place("ring", data=64, size=16, cons=0, prod=4)
INDEXES = st.integers(0, 0xFFFFFFFF)


def page_at(cons: int, prod: int | None = None) -> SharedPage:
    page = SharedPage()
    page.write_u32(RING.cons, cons)
    page.write_u32(RING.prod, cons if prod is None else prod)
    return page


@given(INDEXES, st.lists(st.binary(max_size=24), max_size=20))
def test_a_stream_arrives_whole_whatever_its_chunks_and_start(
    start: int, chunks: list[bytes]
) -> None:
    page = page_at(start)
    producer, consumer = Producer(page, RING), Consumer(page, RING)
    sent = received = b""
    for chunk in chunks:
        count = producer.put(chunk)
        assert count == min(len(chunk), RING.size - (len(sent) - len(received)))
        sent += chunk[:count]
        if len(chunk) % 3:
            received += consumer.take()
    assert received + consumer.take() == sent
    total = (start + len(sent)) & 0xFFFFFFFF
    assert (page.read_u32(RING.cons), page.read_u32(RING.prod)) == (total, total)


def test_indexes_wrap_at_two_to_the_32() -> None:
    page = page_at(0xFFFFFFFC)
    assert Producer(page, RING).put(b"12345678") == 8
    assert page.read_u32(RING.prod) == 4
    assert Consumer(page, RING).take() == b"12345678"


def test_a_full_ring_takes_nothing_and_an_empty_one_gives_nothing() -> None:
    page = page_at(5)
    producer, consumer = Producer(page, RING), Consumer(page, RING)
    assert consumer.take() == b""
    assert producer.put(bytes(20)) == 16
    assert producer.room() == 0
    assert producer.put(b"x") == 0
    assert len(consumer.take()) == 16
    assert producer.room() == 16


@given(INDEXES, st.integers(17, 0xFFFFFFFF))
def test_a_claim_beyond_the_ring_is_the_peers_fault_and_moves_nothing(
    start: int, claim: int
) -> None:
    page = page_at(start)
    consumer, producer = Consumer(page, RING), Producer(page, RING)
    page.write_u32(RING.prod, start + claim & 0xFFFFFFFF)
    before = bytes(page.bytes)
    with pytest.raises(PeerError, match="of 16"):
        consumer.take()
    assert page.bytes == before
    page = page_at(start)
    producer = Producer(page, RING)
    page.write_u32(RING.cons, start - claim & 0xFFFFFFFF)
    before = bytes(page.bytes)
    with pytest.raises(PeerError, match="of 16"):
        producer.put(b"x")
    assert page.bytes == before


def test_our_own_index_is_never_read_back() -> None:
    page = page_at(0)
    producer, consumer = Producer(page, RING), Consumer(page, RING)
    producer.put(b"abcd")
    page.write_u32(RING.cons, 0xDEAD)
    assert consumer.take() == b"abcd"
    page.write_u32(RING.prod, 0xDEAD)
    producer.put(b"ef")
    assert consumer.take() == b"ef"
