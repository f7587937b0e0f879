# SPDX-License-Identifier: GPL-2.0-or-later
"""Ethernet addresses and headers (IEEE 802.3)."""

from __future__ import annotations

import re
from typing import Final

HEADER_BYTES: Final = 14
ADDRESS_BYTES: Final = 6
BROADCAST: Final = b"\xff" * ADDRESS_BYTES
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
_GROUP_BIT: Final = 1


def is_station(address: bytes) -> bool:
    """Tell whether an address can be one station's: not of a group, and not zero."""
    return not address[0] & _GROUP_BIT and any(address)


def build(destination: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    """Return a frame; one of less than 60 bytes is not filled up, for no wire asks for it."""
    return b"%b%b%b%b" % (destination, source, ethertype.to_bytes(2, "big"), payload)


def parse_address(text: str) -> bytes:
    """Read an address as ``00:16:3e:00:00:01``; ValueError says what is wrong."""
    if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text, re.ASCII) is None:
        raise ValueError(f"{text!r} is no address such as 00:16:3e:01:02:03")
    return bytes.fromhex(text.replace(":", ""))


def format_address(address: bytes) -> str:
    """Write an address as ``00:16:3e:00:00:01``."""
    return address.hex(":")
