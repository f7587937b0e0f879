# SPDX-License-Identifier: GPL-2.0-or-later
"""The packets of gdb's remote serial protocol: bytes in, events out, no socket.

::

    $ payload # two hexadecimal digits     + got it    - send it again    0x03  interrupt

In a payload ``}`` stands before a byte that is meant with bit 5 turned over. A client that has
asked for no acknowledgements gets none and sends none.
Source: gdb manual, appendix E (Overview; Packet Acknowledgment).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_PACKET_BYTES: Final = 0x4000
"""The longest payload, escapes counted; ``qSupported`` says so to the client."""

_START, _END, _ESCAPE, _ESCAPE_BIT, _REPEAT = b"$", ord("#"), ord("}"), 0x20, ord("*")
_MEANT_OTHERWISE: Final = frozenset((ord("$"), _END, _ESCAPE, _REPEAT))


class Signal(Enum):
    """What is not a packet."""

    INTERRUPT = 0x03
    RECEIVED = ord("+")
    AGAIN = ord("-")


@dataclass(frozen=True, slots=True)
class Packet:
    """One whole packet; ``payload`` is None for one that came damaged."""

    payload: bytes | None


class PacketError(Exception):
    """The client sends what no packet can be; the connection ends."""


def encode(payload: bytes) -> bytes:
    """Make the packet of ``payload``."""
    body = bytearray()
    for byte in payload:
        if byte in _MEANT_OTHERWISE:
            body += bytes((_ESCAPE, byte ^ _ESCAPE_BIT))
        else:
            body.append(byte)
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


class PacketReader:
    """Cut a stream into packets, wherever its pieces end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Packet | Signal]:
        """Take the next bytes; raises PacketError for a packet without end.

        What stands between packets and means nothing is passed over.
        """
        stream = self._rest + data
        found: list[Packet | Signal] = []
        at = 0
        while at < len(stream):
            if stream[at] != _START[0]:
                if stream[at] in _SIGNALS:
                    found.append(Signal(stream[at]))
                at += 1
                continue
            end = stream.find(_END, at, at + MAX_PACKET_BYTES + 2)
            if end < 0 and len(stream) - at > MAX_PACKET_BYTES + 1:
                raise PacketError(f"a packet is longer than {MAX_PACKET_BYTES} bytes")
            if end < 0 or end + 3 > len(stream):
                break
            found.append(Packet(_decode(stream[at + 1 : end], stream[end + 1 : end + 3])))
            at = end + 3
        self._rest = stream[at:]
        return found


def _decode(body: bytes, digits: bytes) -> bytes | None:
    if b"%02x" % (sum(body) & 0xFF) != digits.lower():
        return None
    payload = bytearray()
    pieces = iter(body)
    for byte in pieces:
        if byte == _ESCAPE:
            escaped = next(pieces, None)
            if escaped is None:
                return None
            payload.append(escaped ^ _ESCAPE_BIT)
        else:
            payload.append(byte)
    return bytes(payload)


_SIGNALS: Final = frozenset(signal.value for signal in Signal)
