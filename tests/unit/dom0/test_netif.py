# SPDX-License-Identifier: GPL-2.0-or-later
"""Network slots: chains of any form are cut and checked right; no bytes upset it (SECURITY G3)."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlite.abi.x86_32p import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    NETIF_RX_RING_SIZE,
    NETIF_TX_RING_SIZE,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_NR_SLOTS_MIN,
    NetifTxRequest,
    NETRXF_more_data,
    NETTXF_csum_blank,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenlite.dom0.ethernet import HEADER_BYTES
from xenlite.dom0.netif import (
    MAX_EXTRAS,
    RX_RING,
    TX_RING,
    Packet,
    are_plain,
    cut,
    frame_limit,
    parse,
    slots_for,
    spoil,
    tx_columns,
)
from xenlite.errors import PeerError

LIMIT = frame_limit(1500)
SLOT = TX_RING.slot
MORE, EXTRA, BLANK = NETTXF_more_data, NETTXF_extra_info, NETTXF_csum_blank
ADD, DEL = XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL
GROUP = bytes.fromhex("01005e000001")


def slot(size: int, flags: int = 0, number: int = 1, offset: int = 0, ref: int = 9) -> bytes:
    """Make a slot of data."""
    return NetifTxRequest(ref, offset, flags, number, size).pack()


def extra(kind: int, flags: int = 0, content: bytes = GROUP) -> bytes:
    """Make a slot of extra information."""
    return pack("<BB6s4x", kind, flags, content)


def only(slots: bytes, limit: int = LIMIT) -> Packet:
    """Parse what is one packet."""
    packets, rest = parse(slots, limit)
    assert rest == b""
    assert len(packets) == 1
    return packets[0]


def test_rings_have_the_slots_of_the_interface() -> None:
    assert (TX_RING.slots, RX_RING.slots) == (NETIF_TX_RING_SIZE, NETIF_RX_RING_SIZE)
    assert (TX_RING.slot, RX_RING.slot) == (12, 8)


def test_the_first_slot_claims_the_whole_packet() -> None:
    packet = only(
        slot(1500, MORE | BLANK, 7, 100, 20) + slot(600, MORE, 8, 0, 21) + slot(500, 0, 9, 9, 22)
    )
    assert packet.pieces == [(20, 100, 400), (21, 0, 600), (22, 9, 500)]
    assert packet.ids == [7, 8, 9]
    assert packet.is_blank
    assert packet.why_not == ""


def test_extra_slots_follow_the_first_and_are_answered_with_nothing() -> None:
    slots = slot(100, EXTRA | MORE, 7) + extra(ADD, XEN_NETIF_EXTRA_FLAG_MORE)
    packet = only(slots + extra(DEL) + slot(40, 0, 8))
    assert packet.group_changes == [(True, GROUP), (False, GROUP)]
    assert (packet.extras, packet.ids, packet.pieces) == (2, [7, 8], [])
    raw = packet.responses(NETIF_RSP_ERROR)
    assert len(raw) == 4 * SLOT
    found = [(raw[at : at + 2], raw[at + 2 : at + 4]) for at in range(0, len(raw), SLOT)]
    statuses = [int.from_bytes(status, "little", signed=True) for _, status in found]
    assert statuses == [NETIF_RSP_ERROR, NETIF_RSP_NULL, NETIF_RSP_NULL, NETIF_RSP_ERROR]
    assert (found[0][0], found[3][0]) == (b"\7\0", b"\x08\0")


@pytest.mark.parametrize(
    "slots",
    [
        slot(0),
        slot(HEADER_BYTES - 1),
        slot(LIMIT + 1),
        slot(0xFFFF),
        slot(100, offset=3997),
        slot(1000, offset=0xFFFF),
        slot(100, MORE) + slot(101),
        slot(100, MORE) + slot(60, MORE) + slot(60),
        slot(1500, MORE) + slot(1000, offset=3097),
        slot(1500, MORE, offset=4000) + slot(1000),
        slot(1500, EXTRA) + extra(XEN_NETIF_EXTRA_TYPE_GSO),
        slot(1500, EXTRA) + extra(XEN_NETIF_EXTRA_TYPE_HASH),
        slot(1500, EXTRA) + extra(0),
        slot(1500, EXTRA) + extra(255),
        slot(14, EXTRA) + extra(ADD, XEN_NETIF_EXTRA_FLAG_MORE) + extra(XEN_NETIF_EXTRA_TYPE_GSO),
    ],
)
def test_a_bad_packet_is_refused_whole_and_the_next_one_is_not(slots: bytes) -> None:
    packets, rest = parse(slots + slot(60, number=5), LIMIT)
    assert rest == b""
    bad, good = packets
    assert bad.why_not
    assert bad.pieces == []
    assert len(bad.responses(NETIF_RSP_ERROR)) == len(slots)
    assert (good.ids, good.why_not) == ([5], "")


def test_pieces_may_be_empty_and_the_first_shorter_than_a_header() -> None:
    packet = only(slot(20, MORE) + slot(0, MORE) + slot(15))
    assert packet.pieces == [(9, 0, 5), (9, 0, 15)]
    assert only(slot(20, MORE) + slot(20)).pieces == [(9, 0, 20)]


def test_a_packet_has_as_many_slots_as_xen_says_and_no_more() -> None:
    most = slot(1500, MORE) + slot(80, MORE) * (XEN_NETIF_NR_SLOTS_MIN - 2) + slot(80)
    assert len(only(most).pieces) == XEN_NETIF_NR_SLOTS_MIN
    for endless in (
        slot(1500, MORE) * 1000,
        slot(1500, MORE) + slot(1, MORE) * XEN_NETIF_NR_SLOTS_MIN,
        slot(1500, EXTRA) + extra(ADD, XEN_NETIF_EXTRA_FLAG_MORE) * (MAX_EXTRAS + 1),
    ):
        with pytest.raises(PeerError):
            parse(slot(60) + endless, LIMIT)


CHAINS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, MAX_EXTRAS), st.booleans()), min_size=1, max_size=6
)


@given(CHAINS, st.data())
def test_wherever_a_chain_is_cut_its_rest_is_waited_for(
    shapes: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    slots = b""
    for pieces, extras, is_blank in shapes:
        flags = (EXTRA if extras else 0) | (MORE if pieces > 1 else 0) | (BLANK if is_blank else 0)
        slots += slot(100 * pieces, flags)
        for n in range(extras):
            slots += extra(ADD, XEN_NETIF_EXTRA_FLAG_MORE if n < extras - 1 else 0)
        for n in range(pieces - 1):
            slots += slot(100, MORE if n < pieces - 2 else 0)
    whole, rest = parse(slots, LIMIT)
    assert (len(whole), rest) == (len(shapes), b"")
    found: list[Packet] = []
    at = 0
    while at < len(slots):
        step = data.draw(st.integers(1, 4)) * SLOT
        packets, rest = parse(rest + slots[at : at + step], LIMIT)
        found += packets
        at += step
    assert (found, rest) == (whole, b"")


@given(st.binary(max_size=40 * SLOT).map(lambda raw: raw[: len(raw) // SLOT * SLOT]))
@settings(max_examples=1000)
def test_no_bytes_upset_the_parser(slots: bytes) -> None:
    tamed = bytearray(slots)
    tamed[6::SLOT] = bytes(byte & (MORE | EXTRA | BLANK) for byte in tamed[6::SLOT])
    for raw in (slots, bytes(tamed)):
        try:
            packets, rest = parse(raw, LIMIT)
        except PeerError:
            continue
        answered = sum(len(packet.responses(NETIF_RSP_OKAY)) for packet in packets)
        assert answered + len(rest) == len(raw)
        for packet in packets:
            assert all(0 <= o < o + size <= 4096 for _, o, size in packet.pieces)
            assert sum(size for _, _, size in packet.pieces) <= LIMIT
            assert not packet.why_not or not packet.pieces


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1600)), min_size=1, max_size=9))
def test_plain_slots_are_those_that_the_parser_makes_a_packet_each(
    shapes: list[tuple[int, int]],
) -> None:
    slots = b"".join(slot(size, flags) for flags, size in shapes)
    _, _, flags, _, sizes = tx_columns(slots)
    packets, _ = parse(slots, LIMIT)
    assert len(packets) == len(shapes)
    assert are_plain(flags, sizes, LIMIT) == all(not packet.why_not for packet in packets)


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=8), st.integers(1, 30), st.data())
def test_frames_are_cut_into_pages_and_an_error_spoils_its_frame_alone(
    sizes: list[int], room: int, data: st.DataObject
) -> None:
    frames = [bytes([n]) * size for n, size in enumerate(sizes)]
    count, pieces, flags = cut(frames, room)
    assert b"".join(pieces) == b"".join(frames[:count])
    assert len(pieces) == len(flags) == sum(map(slots_for, frames[:count])) <= room
    assert count == len(frames) or len(pieces) + slots_for(frames[count]) > room
    assert [flag & NETRXF_more_data for flag in flags].count(0) == count
    if pieces:
        bad = data.draw(st.sets(st.integers(0, len(pieces) - 1)))
        statuses = [len(piece) for piece in pieces]
        lost = {pieces[index][0] for index in bad}
        assert spoil(statuses, flags, sorted(bad)) == len(lost)
        for status, piece in zip(statuses, pieces, strict=True):
            assert status == (NETIF_RSP_ERROR if piece[0] in lost else len(piece))
