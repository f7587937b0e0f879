# SPDX-License-Identifier: GPL-2.0-or-later
"""Complete the checksum that a frontend has left blank (``NETTXF_csum_blank``).

Xen's frontends may do so for TCP and UDP over IPv4 unless a backend says that it can't; for IPv6
only if one says that it can, which ours does not. What stands in the field counts for nothing:
frontends leave the sum of the pseudo header there, or nothing.
"""

from __future__ import annotations

from typing import Final

from xenlite.dom0.ethernet import ETHERTYPE_IPV4, HEADER_BYTES
from xenlite.dom0.ipv4 import HEADER_BYTES as SHORTEST_IP
from xenlite.dom0.ipv4 import IS_FRAGMENT, PROTOCOL_UDP, UDP_HEADER_BYTES, VERSION, checksum

_IPV4: Final = ETHERTYPE_IPV4.to_bytes(2, "big")
_TYPE: Final = slice(HEADER_BYTES - 2, HEADER_BYTES)
_PROTOCOL: Final = HEADER_BYTES + 9
_ADDRESSES: Final = slice(HEADER_BYTES + 12, HEADER_BYTES + 20)
_PROTOCOL_TCP: Final = 6
# By protocol: its shortest header, and where its checksum is.
_FIELDS: Final = {_PROTOCOL_TCP: (20, 16), PROTOCOL_UDP: (UDP_HEADER_BYTES, 6)}


def complete(frame: bytes) -> bytes:
    """Return the frame with its checksum; nothing where it is no whole TCP or UDP over IPv4."""
    if len(frame) < HEADER_BYTES + SHORTEST_IP or frame[_TYPE] != _IPV4:
        return b""
    version, words = divmod(frame[HEADER_BYTES], 16)
    length = int.from_bytes(frame[HEADER_BYTES + 2 : HEADER_BYTES + 4], "big")
    fragment = int.from_bytes(frame[HEADER_BYTES + 6 : HEADER_BYTES + 8], "big")
    protocol = frame[_PROTOCOL]
    if version != VERSION or words * 4 < SHORTEST_IP or fragment & IS_FRAGMENT:
        return b""
    if protocol not in _FIELDS:
        return b""
    shortest, field = _FIELDS[protocol]
    start, end = HEADER_BYTES + words * 4, HEADER_BYTES + length
    if not start + shortest <= end <= len(frame):
        return b""
    at = start + field
    head, tail = frame[start:at], frame[at + 2 : end]
    pseudo = frame[_ADDRESSES] + bytes((0, protocol)) + (end - start).to_bytes(2, "big")
    found = checksum(pseudo + head + bytes(2) + tail)
    if protocol == PROTOCOL_UDP:
        found = found or 0xFFFF  # none at all would be 0
    return frame[:at] + found.to_bytes(2, "big") + frame[at + 2 :]
