# SPDX-License-Identifier: GPL-2.0-or-later
"""A client's end of a network, frame by frame, and tcpdump's word on what others send."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from xenlite.dom0 import arp, dhcp, ethernet, ipv4
from xenlite.dom0.pcap import Capture


def arp_frame(
    sender_mac: bytes,
    sender: bytes,
    target: bytes,
    *,
    operation: int = arp.REQUEST,
    to: bytes = ethernet.BROADCAST,
) -> bytes:
    payload = arp.build(arp.Arp(operation, sender_mac, sender, bytes(6), target))
    return ethernet.build(to, sender_mac, ethernet.ETHERTYPE_ARP, payload)


def ip_frame(
    to: bytes, sender_mac: bytes, source: bytes, target: bytes, protocol: int, payload: bytes
) -> bytes:
    packet = ipv4.build(ipv4.Packet(source, target, protocol, payload))
    return ethernet.build(to, sender_mac, ethernet.ETHERTYPE_IPV4, packet)


def udp_frame(
    to: bytes, sender_mac: bytes, source: bytes, target: bytes, ports: tuple[int, int], data: bytes
) -> bytes:
    packet = ipv4.build_udp(source, target, ipv4.Datagram(*ports, data))
    return ethernet.build(to, sender_mac, ethernet.ETHERTYPE_IPV4, packet)


def dhcp_frame(
    mac: bytes,
    kind: int,
    *,
    options: dict[int, bytes] | None = None,
    flags: int = 0,
    address: bytes = ipv4.ANY,
    relay: bytes = ipv4.ANY,
    chaddr: bytes | None = None,
) -> bytes:
    """Return a client's message as it broadcasts it; transaction 1234."""
    fixed = struct.pack(
        ">BBBBIHH4s4s4s4s16s192s4s",
        *(1, 1, 6, 0, 1234, 0, flags, address),
        *(ipv4.ANY, ipv4.ANY, relay, chaddr or mac, b"", bytes((99, 130, 83, 99))),
    )
    listed = {53: bytes((kind,)), **(options or {})}
    body = b"".join(bytes((code, len(value))) + value for code, value in listed.items())
    ports = (dhcp.CLIENT_PORT, dhcp.SERVER_PORT)
    data = fixed + body + b"\xff"
    return udp_frame(ethernet.BROADCAST, mac, ipv4.ANY, ipv4.BROADCAST, ports, data)


def udp_of(frame: bytes) -> tuple[ipv4.Packet, ipv4.Datagram]:
    """Take a UDP frame apart; every checksum is looked at."""
    packet = ipv4.parse(frame[ethernet.HEADER_BYTES :])
    return packet, ipv4.parse_udp(packet)


def tcpdump_of(path: Path, *options: str) -> list[str]:
    """Return what tcpdump prints of a capture, without its times but for options that ask so."""
    times = () if "-tt" in options else ("-t",)
    command = ["tcpdump", "-n", *times, *options, "-r", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "truncated" not in done.stderr
    return done.stdout.splitlines()


def tcpdump(frames: Sequence[bytes], path: Path, *options: str) -> list[str]:
    """Return what tcpdump prints of frames, each in one line or more."""

    def never(message: str) -> None:
        raise AssertionError(message)

    capture = Capture(path, lambda: 0, never, wish="test")
    capture.deliver(frames)
    capture.close()
    return tcpdump_of(path, *options)
