# SPDX-License-Identifier: GPL-2.0-or-later
"""Which station of a network has which IPv4 address.

A station finds the same address again, also in the next run: a search for a free one starts at a
place that its MAC chooses. The addresses of a domain's interfaces are reserved as long as they are
attached, so that whoever asks under many MACs takes none from them. There are MAX_ADDRESSES at
most, whatever size the network has.
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
        self._owners: dict[IPv4Address, bytes] = {}

    def reserve(self, mac: bytes, address: IPv4Address | None) -> IPv4Address | None:
        """Give a station an address until it is released: this one, or one that is free.

        None where no address is free, or this one can't be had.
        """
        if address is None:
            address = self._find(mac, None)
        elif not self._is_ours(address) or not self._is_free(address, None):
            return None
        if address is not None:
            self._give(mac, address, _FOREVER)
        return address

    def release(self, mac: bytes) -> None:
        """Take a station's address back, if it has one."""
        lease = self._by_mac.pop(mac, None)
        if lease is not None:
            del self._owners[lease.address]

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
        return self._owners.get(address)

    def _give(self, mac: bytes, address: IPv4Address, until_ns: int | None) -> None:
        self.release(mac)
        former = self._owners.get(address)
        if former is not None:
            self.release(former)
        self._by_mac[mac] = _Lease(address, until_ns)
        self._owners[address] = mac

    def _find(self, mac: bytes, now_ns: int | None) -> IPv4Address | None:
        """Find an address that is free, or whose time is over.

        Without a time, every lease that isn't a reservation may be taken.
        """
        start = zlib.crc32(mac)
        for step in range(self._count):
            address = IPv4Address(self._first + (start + step) % self._count)
            if self._is_ours(address) and self._is_free(address, now_ns):
                return address
        return None

    def _is_ours(self, address: IPv4Address) -> bool:
        network = self._host.network
        ends = (network.network_address, network.broadcast_address, self._host.ip)
        return address in network and address not in ends

    def _is_free(self, address: IPv4Address, now_ns: int | None) -> bool:
        owner = self._owners.get(address)
        if owner is None:
            return True
        until_ns = self._by_mac[owner].until_ns
        return until_ns is not _FOREVER and (now_ns is None or until_ns <= now_ns)
