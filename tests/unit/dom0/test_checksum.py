# SPDX-License-Identifier: GPL-2.0-or-later
"""Blank checksums: what is completed adds up as RFC 1071 wants it; what can't be is not sent."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.dom0.checksum import complete

ETHERNET = bytes(12) + b"\x08\x00"
UDP, TCP = 17, 6


def added_up(data: bytes) -> int:
    """Add 16-bit words up with the carry coming round, the plain way."""
    total = 0
    for word in unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]):
        total += word
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """Make an IPv4 packet with a header of its protocol, whose checksum is left as it comes."""
    header = bytes(6) + b"??" if protocol == UDP else bytes(16) + b"????"
    size = 20 + len(options) + len(header) + len(payload)
    first = 0x40 | (20 + len(options)) // 4
    head = pack(">BBHHHBBH", first, 0, size, 7, fragment, 64, protocol, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + header + payload


@given(
    st.sampled_from([UDP, TCP]),
    st.binary(max_size=300),
    st.sampled_from([b"", b"\1\1\1\1", bytes(40)]),
    st.binary(max_size=20),
)
def test_what_is_completed_adds_up(
    protocol: int, payload: bytes, options: bytes, padding: bytes
) -> None:
    inner = packet(protocol, payload, options=options)
    done = complete(ETHERNET + inner + padding)
    segment = done[14 + 20 + len(options) : 14 + len(inner)]
    pseudo = inner[12:20] + pack(">BBH", 0, protocol, len(segment))
    assert added_up(pseudo + segment) == 0xFFFF
    at = 14 + 20 + len(options) + (6 if protocol == UDP else 16)
    assert done[:at] + b"??" + done[at + 2 :] == ETHERNET + inner + padding


def test_a_checksum_of_nothing_is_written_as_ones_in_udp_alone() -> None:
    """Zero there says that there is none (RFC 768)."""
    for protocol, want in ((UDP, 0xFFFF), (TCP, 0)):
        probe = complete(ETHERNET + packet(protocol, bytes(2)))
        at = 14 + 20 + (6 if protocol == UDP else 16)
        missing = probe[at : at + 2]  # with this for payload the sum is whole without a checksum
        done = complete(ETHERNET + packet(protocol, missing))
        assert int.from_bytes(done[at : at + 2], "big") == want


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        ETHERNET,
        ETHERNET + packet(UDP, b"")[:19],
        bytes(12) + b"\x86\xdd" + packet(UDP, b"x" * 40),
        bytes(12) + b"\x81\x00\x00\x01\x08\x00" + packet(UDP, b"x"),
        ETHERNET + packet(1, b"ping" * 10),
        ETHERNET + b"\x65" + packet(UDP, b"x")[1:],
        ETHERNET + b"\x44" + packet(UDP, b"x")[1:],
        ETHERNET + b"\x4f" + packet(UDP, b"x")[1:],
        ETHERNET + packet(UDP, b"x" * 99)[:-1],
        ETHERNET + packet(UDP, b"x", fragment=0x2000),
        ETHERNET + packet(UDP, b"x", fragment=3),
        ETHERNET + packet(UDP, b"")[:2] + b"\0\x1b" + packet(UDP, b"")[4:],
        ETHERNET + packet(TCP, b"")[:2] + b"\0\x27" + packet(TCP, b"")[4:],
    ],
)
def test_what_is_no_whole_tcp_or_udp_of_ipv4_is_refused(frame: bytes) -> None:
    assert complete(frame) == b""


def test_a_packet_that_may_not_be_fragmented_is_no_fragment() -> None:
    assert complete(ETHERNET + packet(UDP, b"x", fragment=0x4000))


@given(st.binary(max_size=80))
def test_no_bytes_upset_it(data: bytes) -> None:
    for frame in (data, ETHERNET + data, ETHERNET + b"\x45" + data):
        assert len(complete(frame)) in (0, len(frame))
