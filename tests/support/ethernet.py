# SPDX-License-Identifier: GPL-2.0-or-later
"""An end of an Ethernet in a few lines, for tests: ARP, ping and UDP on a datagram socket.

It shares no code with xenlite's own, so that the two can be held against each other. Frames go out
of a Unix datagram socket as QEMU's ``-netdev dgram`` sends them: one frame each, without a check
sequence. No fragments and no options; what isn't understood is passed over.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from struct import pack, unpack_from
from typing import Final, Self

FRAME_LIMIT: Final = 65536
SHORTEST: Final = 42  # ARP, a ping and a datagram of nothing
EVERYBODY: Final = b"\xff" * 6
ARP, IP = 0x0806, 0x0800
ICMP, UDP = 1, 17
ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO_PORT: Final = 7


def mac_address(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """Compute the Internet checksum (RFC 1071); 0 over data that holds its own."""
    total: int = sum(unpack_from(f">{len(data) // 2}H", data))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True, slots=True)
class Datagram:
    """What came by UDP."""

    source: IPv4Address
    source_port: int
    port: int
    data: bytes


@dataclass(slots=True)
class EthernetEnd:
    """A station with an address: answers ARP and ping, and echoes UDP on port 7.

    ``pings`` holds the payloads that came back from ``ping``, ``heard`` the datagrams for any other
    port; ``wrong`` what had a checksum that isn't right.
    """

    here: Path
    there: Path
    address: IPv4Address
    mac: bytes
    pings: list[bytes] = field(default_factory=list)
    heard: list[Datagram] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _neighbours: dict[IPv4Address, bytes] = field(default_factory=dict)
    _waiting: dict[IPv4Address, list[bytes]] = field(default_factory=dict)
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.here))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.here.unlink()

    def fileno(self) -> int:
        return self._socket.fileno()

    def serve(self) -> None:
        """Take the frames that are there, and answer what asks for it."""
        while True:
            try:
                frame = self._socket.recv(FRAME_LIMIT)
            except BlockingIOError:
                return
            self._take(frame)

    def ping(self, address: IPv4Address, payload: bytes, sequence: int = 1) -> None:
        """Ask for an echo."""
        echo = _filled(pack(">BBHHH", ECHO_REQUEST, 0, 0, 1, sequence) + payload, 2)
        self._send_ip(address, ICMP, echo)

    def send(self, address: IPv4Address, source_port: int, port: int, data: bytes) -> None:
        """Send a datagram."""
        head = pack(">HHHH", source_port, port, 8 + len(data), 0)
        pseudo = self._pseudo(self.address, address, 8 + len(data))
        check = checksum(pseudo + head + data) or 0xFFFF  # 0 would mean that there is none
        self._send_ip(address, UDP, head[:6] + pack(">H", check) + data)

    # -- in ------------------------------------------------------------------------------------

    def _take(self, frame: bytes) -> None:
        if len(frame) < SHORTEST:
            return
        to, source, kind = unpack_from(">6s6sH", frame)
        if to not in (self.mac, EVERYBODY):
            return
        if kind == ARP:
            self._take_arp(frame[14:])
        elif kind == IP:
            self._neighbours[IPv4Address(frame[26:30])] = source
            self._take_ip(frame[14:])

    def _take_arp(self, packet: bytes) -> None:
        operation, mac, sender, target = unpack_from(">6xH6s4s6x4s", packet)
        address = IPv4Address(sender)
        self._neighbours[address] = mac
        for frame in self._waiting.pop(address, []):
            self._put(mac + frame)
        if operation == 1 and IPv4Address(target) == self.address:
            self._send_arp(2, mac, address)

    def _take_ip(self, packet: bytes) -> None:
        size, protocol = unpack_from(">2xH5xB", packet)
        source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        if target != self.address:
            return
        if checksum(packet[:20]):
            self.wrong.append("IP")
        data = packet[20:size]
        if protocol == ICMP:
            self._take_icmp(source, data)
        elif protocol == UDP:
            self._take_udp(source, data)

    def _take_icmp(self, source: IPv4Address, message: bytes) -> None:
        if checksum(message):
            self.wrong.append("ICMP")
        if message[0] == ECHO_REQUEST:
            self._send_ip(source, ICMP, _filled(bytes((ECHO_REPLY, 0, 0, 0)) + message[4:], 2))
        elif message[0] == ECHO_REPLY:
            self.pings.append(message[8:])

    def _take_udp(self, source: IPv4Address, message: bytes) -> None:
        source_port, port, size, check = unpack_from(">HHHH", message)
        if check and checksum(self._pseudo(source, self.address, size) + message):
            self.wrong.append("UDP")
        if port == ECHO_PORT:
            self.send(source, port, source_port, message[8:size])
        else:
            self.heard.append(Datagram(source, source_port, port, message[8:size]))

    # -- out -----------------------------------------------------------------------------------

    def _send_ip(self, address: IPv4Address, protocol: int, data: bytes) -> None:
        head = pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(data),
            0,
            0,
            64,
            protocol,
            0,
            self.address.packed,
            address.packed,
        )
        frame = self.mac + pack(">H", IP) + _filled(head, 10) + data
        mac = self._neighbours.get(address)
        if mac is None:
            self._waiting.setdefault(address, []).append(frame)
            self._send_arp(1, EVERYBODY, address)
        else:
            self._put(mac + frame)

    def _send_arp(self, operation: int, to: bytes, target: IPv4Address) -> None:
        asked = to if operation == 2 else bytes(6)
        packet = pack(">HHBBH", 1, IP, 6, 4, operation)
        packet += self.mac + self.address.packed + asked + target.packed
        self._put(to + self.mac + pack(">H", ARP) + packet)

    def _put(self, frame: bytes) -> None:
        self._socket.sendto(frame.ljust(60, b"\0"), str(self.there))

    @staticmethod
    def _pseudo(source: IPv4Address, target: IPv4Address, size: int) -> bytes:
        return source.packed + target.packed + pack(">BBH", 0, UDP, size)


def _filled(data: bytes, offset: int) -> bytes:
    """Put the checksum of all of it where zeros stand for it."""
    return data[:offset] + pack(">H", checksum(data)) + data[offset + 2 :]
