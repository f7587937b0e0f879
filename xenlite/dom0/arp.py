# SPDX-License-Identifier: GPL-2.0-or-later
"""ARP for IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from xenlite.dom0.ethernet import ETHERTYPE_IPV4

REQUEST: Final = 1
REPLY: Final = 2
_PACKET: Final = struct.Struct(">HHBBH6s4s6s4s")
_ETHERNET: Final = 1
_KIND: Final = (_ETHERNET, ETHERTYPE_IPV4, 6, 4)


@dataclass(frozen=True, slots=True)
class Arp:
    """Who asks or answers (``sender``), and who is asked for or told (``target``)."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(data: bytes) -> Arp:
    """Read what an ARP frame carries; the rest is padding. Raises ValueError."""
    if len(data) < _PACKET.size:
        raise ValueError("no room for an ARP packet")
    *kind, operation, sender_mac, sender, target_mac, target = _PACKET.unpack_from(data)
    if tuple(kind) != _KIND:
        raise ValueError("not IPv4 over Ethernet")
    return Arp(operation, sender_mac, sender, target_mac, target)


def build(arp: Arp) -> bytes:
    """Return what the frame carries."""
    return _PACKET.pack(
        *_KIND, arp.operation, arp.sender_mac, arp.sender, arp.target_mac, arp.target
    )
