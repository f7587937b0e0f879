# SPDX-License-Identifier: GPL-2.0-or-later
"""Which station of a network has which IPv4 address.

A station finds the same address again, also in the next run: a search for a free one starts at a
place that its MAC chooses. The addresses of a domain's interfaces are reserved as long as they are
attached, so that whoever asks under many MACs takes none from them. There are MAX_ADDRESSES at
most, whatever size the network has.

Where all are taken, that is remembered until the first lease ends: whoever goes on asking under new
MACs costs a search once, and not with each frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

MAX_ADDRESSES: Final = 1024
LEASE_S: Final = 3600
OFFER_S: Final = 60
_FOREVER: Final = None
_NEVER_NS: Final = 1 << 63


@dataclass(slots=True)
class _Lease:
    address: IPv4Address
    until_ns: int | None


class Leases:
    """The addresses of the network of ``host``, whose own address is never given away."""

    def __init__(self, host: IPv4Interface) -> None:
        network = host.network
        self._host = host
        self._first = int(network.network_address) + 1
        self._count = min(network.num_addresses - 2, MAX_ADDRESSES)
        self._by_mac: dict[bytes, _Lease] = {}
        self._owners: dict[int, bytes] = {}  # by the address's number
        self._full_until_ns = 0

    def reserve(self, mac: bytes, address: IPv4Address | None) -> IPv4Address | None:
        """Give a station an address until it is released: this one, or one that is free.

        None where no address is free, or this one can't be had.
        """
        if address is None:
            address = self._search(mac, None)
        elif not self._is_ours(address) or not self._is_free(int(address), None):
            return None
        if address is not None:
            self._give(mac, address, _FOREVER)
            self._full_until_ns = 0  # the one that it had may be free
        return address

    def release(self, mac: bytes) -> None:
        """Take a station's address back, if it has one."""
        self._take_back(mac)
        self._full_until_ns = 0

    def lease(self, mac: bytes, now_ns: int, seconds: int) -> IPv4Address | None:
        """Give a station its address for so long; None where all are taken."""
        lease = self._by_mac.get(mac)
        if lease is not None and lease.until_ns is _FOREVER:
            return lease.address
        address = self._find(mac, now_ns) if lease is None else lease.address
        if address is not None:
            self._give(mac, address, now_ns + seconds * 10**9)
        return address

    def address(self, mac: bytes) -> IPv4Address | None:
        """Return the address that a station has."""
        lease = self._by_mac.get(mac)
        return None if lease is None else lease.address

    def owner(self, address: IPv4Address) -> bytes | None:
        """Return the MAC of the station that has an address."""
        return self._owners.get(int(address))

    def _take_back(self, mac: bytes) -> None:
        lease = self._by_mac.pop(mac, None)
        if lease is not None:
            del self._owners[int(lease.address)]

    def _give(self, mac: bytes, address: IPv4Address, until_ns: int | None) -> None:
        self._take_back(mac)
        former = self._owners.get(int(address))
        if former is not None:
            self._take_back(former)
        self._by_mac[mac] = _Lease(address, until_ns)
        self._owners[int(address)] = mac

    def _find(self, mac: bytes, now_ns: int) -> IPv4Address | None:
        """Find an address that is free, or whose time is over."""
        if now_ns < self._full_until_ns:
            return None
        address = self._search(mac, now_ns)
        if address is None:
            ends = (lease.until_ns for lease in self._by_mac.values())
            self._full_until_ns = min((e for e in ends if e is not _FOREVER), default=_NEVER_NS)
        return address

    def _search(self, mac: bytes, now_ns: int | None) -> IPv4Address | None:
        """Look at each address. Without a time, any lease may be taken that is no reservation."""
        start, own = zlib.crc32(mac), int(self._host.ip)
        for step in range(self._count):
            number = self._first + (start + step) % self._count
            if number != own and self._is_free(number, now_ns):
                return IPv4Address(number)
        return None

    def _is_ours(self, address: IPv4Address) -> bool:
        network = self._host.network
        ends = (network.network_address, network.broadcast_address, self._host.ip)
        return address in network and address not in ends

    def _is_free(self, number: int, now_ns: int | None) -> bool:
        owner = self._owners.get(number)
        if owner is None:
            return True
        until_ns = self._by_mac[owner].until_ns
        return until_ns is not _FOREVER and (now_ns is None or until_ns <= now_ns)
