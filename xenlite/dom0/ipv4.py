# SPDX-License-Identifier: GPL-2.0-or-later
"""Take IPv4 packets apart and put them together (RFC 791), with UDP and ICMP echo inside them.

What is read may be anything: ValueError says why a packet can't be used. Fragments and what is
checked by a wrong sum are not used; options are passed over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

PROTOCOL_ICMP: Final = 1
PROTOCOL_UDP: Final = 17
ADDRESS_BYTES: Final = 4
ANY: Final = bytes(ADDRESS_BYTES)
BROADCAST: Final = b"\xff" * ADDRESS_BYTES
MTU: Final = 1500
HEADER_BYTES: Final = 20
UDP_HEADER_BYTES: Final = 8
MAX_UDP_BYTES: Final = MTU - HEADER_BYTES - UDP_HEADER_BYTES

IS_FRAGMENT: Final = 0x3FFF  # more fragments, or an offset
VERSION: Final = 4

_HEADER: Final = struct.Struct(">BBHHHBBH4s4s")
_UDP: Final = struct.Struct(">HHHH")
_WORD: Final = 4  # in which the header's length is counted
_DONT_FRAGMENT: Final = 0x4000
_TTL: Final = 64
_ECHO_REPLY: Final = 0
_ECHO_REQUEST: Final = 8
_ICMP_HEADER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """One whole packet; ``payload`` is what the protocol makes of it."""

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """What UDP carries (RFC 768)."""

    source_port: int
    destination_port: int
    payload: bytes


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of bytes whose own sum is still zero.

    Over bytes that hold their right sum it is 0. Sixteen-bit words are digits to the base 65536,
    so that the remainder by 65535 is their sum with every carry added again.
    """
    number = int.from_bytes(data, "big")
    if len(data) % 2:
        number <<= 8
    return -number % 0xFFFF or (0 if number else 0xFFFF)


def parse(data: bytes) -> Packet:
    """Read a packet; what stands behind its length is padding. Raises ValueError."""
    if len(data) < HEADER_BYTES:
        raise ValueError("no room for a header")
    first, _, size, _, fragment, _, protocol, _, source, destination = _HEADER.unpack_from(data)
    header_bytes = (first & 0xF) * _WORD
    if first >> 4 != VERSION or not HEADER_BYTES <= header_bytes <= size <= len(data):
        raise ValueError("a version or length that can't be")
    if checksum(data[:header_bytes]):
        raise ValueError("a wrong checksum")
    if fragment & IS_FRAGMENT:
        raise ValueError("a fragment")
    return Packet(source, destination, protocol, data[header_bytes:size])


def build(packet: Packet) -> bytes:
    """Return the bytes of a packet."""
    header = bytearray(
        _HEADER.pack(
            VERSION << 4 | HEADER_BYTES // _WORD,
            0,
            HEADER_BYTES + len(packet.payload),
            0,
            _DONT_FRAGMENT,
            _TTL,
            packet.protocol,
            0,
            packet.source,
            packet.destination,
        )
    )
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + packet.payload


def parse_udp(packet: Packet) -> Datagram:
    """Read a UDP packet; a checksum of zero stands for none. Raises ValueError."""
    data = packet.payload
    if len(data) < UDP_HEADER_BYTES:
        raise ValueError("no room for a UDP header")
    source_port, destination_port, size, check = _UDP.unpack_from(data)
    if not UDP_HEADER_BYTES <= size <= len(data):
        raise ValueError("a UDP length that can't be")
    if check and checksum(_pseudo_header(packet, size) + data[:size]):
        raise ValueError("a wrong UDP checksum")
    return Datagram(source_port, destination_port, data[UDP_HEADER_BYTES:size])


def build_udp(source: bytes, destination: bytes, datagram: Datagram) -> bytes:
    """Return the bytes of the packet that carries a datagram."""
    size = UDP_HEADER_BYTES + len(datagram.payload)
    ports = datagram.source_port, datagram.destination_port
    blank = Packet(source, destination, PROTOCOL_UDP, _UDP.pack(*ports, size, 0) + datagram.payload)
    # A sum that comes out as zero is written as its other form, for zero stands for none.
    check = checksum(_pseudo_header(blank, size) + blank.payload) or 0xFFFF
    filled = _UDP.pack(*ports, size, check) + datagram.payload
    return build(Packet(source, destination, PROTOCOL_UDP, filled))


def echo_reply(request: bytes) -> bytes:
    """Return the answer to an ICMP echo request (RFC 792). Raises ValueError for all else."""
    if len(request) < _ICMP_HEADER_BYTES or request[:2] != bytes((_ECHO_REQUEST, 0)):
        raise ValueError("no echo request")
    if checksum(request):
        raise ValueError("a wrong ICMP checksum")
    blank = bytes((_ECHO_REPLY, 0, 0, 0)) + request[4:]
    return blank[:2] + checksum(blank).to_bytes(2, "big") + blank[4:]


def _pseudo_header(packet: Packet, size: int) -> bytes:
    return struct.pack(">4s4sHH", packet.source, packet.destination, packet.protocol, size)
