# SPDX-License-Identifier: GPL-2.0-or-later
"""Write protocol buffers, as much as a trace needs: numbers, fixed numbers, bytes, messages.

Source: protobuf.dev, Encoding.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_VARINT, _FIXED_64, _BYTES = 0, 1, 2  # wire types
_U64: Final = Struct("<Q")


def varint(value: int) -> bytes:
    """Return a number from 0 on: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """Return a field that holds an unsigned number or an enum."""
    return varint(field << 3 | _VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """Return a field that holds a number of eight bytes."""
    return varint(field << 3 | _FIXED_64) + _U64.pack(value)


def message(field: int, *parts: bytes) -> bytes:
    """Return a field that holds the message made of these fields."""
    data = b"".join(parts)
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    """Return a field that holds a string."""
    return message(field, value.encode("utf-8", "backslashreplace"))
