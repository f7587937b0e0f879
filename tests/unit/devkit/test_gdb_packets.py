# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets come whole out of any stream, and nothing that is no packet does harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.devkit.gdb_packets import (
    MAX_PACKET_BYTES,
    Packet,
    PacketError,
    PacketReader,
    Signal,
    encode,
)


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_packets_come_back_however_the_stream_is_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, payloads))
    reader = PacketReader()
    events: list[Packet | Signal] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        events += reader.feed(stream[:size])
        stream = stream[size:]
    assert events == [Packet(payload) for payload in payloads]


def test_a_known_packet_is_as_the_manual_has_it() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"a}b") == b"$a}]b#9d"
    assert PacketReader().feed(b"$a}]b#9D") == [Packet(b"a}b")]


def test_signals_stand_between_packets() -> None:
    assert PacketReader().feed(b"+$OK#9a\x03-junk") == [
        Signal.RECEIVED,
        Packet(b"OK"),
        Signal.INTERRUPT,
        Signal.AGAIN,
    ]


@pytest.mark.parametrize("damaged", [b"$OK#9b", b"$OK#zz", b"$}#7d"])
def test_a_damaged_packet_is_said_to_be_one(damaged: bytes) -> None:
    assert PacketReader().feed(damaged + encode(b"g")) == [Packet(None), Packet(b"g")]


def test_a_packet_without_end_is_refused() -> None:
    reader = PacketReader()
    assert reader.feed(b"$" + b"a" * MAX_PACKET_BYTES) == []
    with pytest.raises(PacketError, match="longer"):
        reader.feed(b"aa")


def test_the_longest_packet_is_taken() -> None:
    payload = b"a" * MAX_PACKET_BYTES
    assert PacketReader().feed(encode(payload)) == [Packet(payload)]


@given(st.binary(max_size=400))
def test_junk_makes_no_other_error(junk: bytes) -> None:
    reader = PacketReader()
    for byte in junk:
        reader.feed(bytes((byte,)))
