# SPDX-License-Identifier: GPL-2.0-or-later
"""DHCP's messages (RFC 2131, options RFC 2132) as a server reads and writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from xenlite.dom0.ipv4 import ANY

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68


class Kind(IntEnum):
    """What a message is (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options that are looked at or sent."""

    SUBNET_MASK = 1
    REQUESTED_ADDRESS = 50
    LEASE_SECONDS = 51
    MESSAGE_KIND = 53
    SERVER = 54


_FIXED: Final = struct.Struct(">BBBB4sHH4s4s4s4s16s64s128s4s")
_BOOT_REQUEST: Final = 1
_BOOT_REPLY: Final = 2
_ETHERNET: Final = (1, 6)  # its kind of address, and how many bytes it has
_COOKIE: Final = bytes((99, 130, 83, 99))
_PAD: Final = 0
_END: Final = 255
_KINDS: Final = frozenset(Kind)
_BROADCAST_FLAG: Final = 0x8000


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; ``address`` is the one that it uses already."""

    kind: Kind
    transaction: bytes
    flags: int
    address: bytes
    mac: bytes
    requested: bytes | None
    server: bytes | None

    @property
    def wants_broadcast(self) -> bool:
        """Tell whether the client can't hear what is sent to the address that it will have."""
        return bool(self.flags & _BROADCAST_FLAG)


def parse_request(data: bytes) -> Request:
    """Read a client's message that came without a relay. Raises ValueError."""
    if len(data) < _FIXED.size:
        raise ValueError("no room for a DHCP message")
    operation, *hardware, _, transaction, _, flags, address, _, _, relay, mac, _, _, cookie = (
        _FIXED.unpack_from(data)
    )
    if operation != _BOOT_REQUEST or tuple(hardware) != _ETHERNET or cookie != _COOKIE:
        raise ValueError("no DHCP client's message")
    if relay != ANY:
        raise ValueError("DHCP through a relay")
    options = _options(data[_FIXED.size :])
    kind = options.get(Option.MESSAGE_KIND, b"")
    if len(kind) != 1 or kind[0] not in _KINDS:
        raise ValueError("no kind of DHCP message")
    return Request(
        Kind(kind[0]),
        transaction,
        flags,
        address,
        mac[:6],
        _address(options, Option.REQUESTED_ADDRESS),
        _address(options, Option.SERVER),
    )


def build_reply(
    request: Request, kind: Kind, address: bytes, options: Mapping[Option, bytes]
) -> bytes:
    """Return a server's answer; ``address`` is the one that the client gets."""
    fixed = _FIXED.pack(
        _BOOT_REPLY,
        *_ETHERNET,
        0,
        request.transaction,
        0,
        request.flags,
        ANY if kind is Kind.NAK else request.address,
        address,
        ANY,
        ANY,
        request.mac,
        b"",
        b"",
        _COOKIE,
    )
    listed = {Option.MESSAGE_KIND: bytes((kind,)), **options}
    return (
        fixed
        + b"".join(bytes((code, len(value))) + value for code, value in listed.items())
        + bytes((_END,))
    )


def _options(data: bytes) -> dict[int, bytes]:
    """Read options up to the end's mark; the first of a kind counts. Raises ValueError."""
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else len(data)
        value = data[at + 2 : at + 2 + size]
        if len(value) != size:
            raise ValueError("a DHCP option that ends behind its message")
        options.setdefault(data[at], value)
        at += 2 + size
    return options


def _address(options: Mapping[int, bytes], option: Option) -> bytes | None:
    value = options.get(option)
    if value is not None and len(value) != len(ANY):
        raise ValueError("a DHCP option that is no address")
    return value
