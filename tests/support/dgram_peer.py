# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of its own at the far end of a datagram socket, as a user may write one.

    python dgram_peer.py LOCAL REMOTE       each a path, or HOST:PORT

It has the address 10.0.0.9, asks who 10.0.0.1 is, and sends that host's port 7 datagrams; what came
back stands in its output, a line of JSON. It shares no code with xenlite.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

MAC = bytes.fromhex("020000000009")
HERE, THERE = bytes((10, 0, 0, 9)), bytes((10, 0, 0, 1))
COUNT = 300


def address(text: str) -> str | tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else text


def words_sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def datagram(to: bytes, number: int) -> bytes:
    payload = struct.pack(">I", number)
    udp = struct.pack(">HHHH", 4000, 7, 8 + len(payload), 0) + payload  # no checksum
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), number, 0, 64, 17, 0) + HERE + THERE
    head = head[:10] + struct.pack(">H", words_sum(head)) + head[12:]
    return to + MAC + b"\x08\x00" + head + udp


def main(local: str, remote: str) -> None:
    family = socket.AF_UNIX if isinstance(address(local), str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.settimeout(30)
        own.bind(address(local))
        asks = b"\xff" * 6 + MAC + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, 1)
        own.sendto(asks + MAC + HERE + bytes(6) + THERE, address(remote))
        told = own.recv(2048)
        assert told[12:14] == b"\x08\x06", told
        host = told[22:28]
        got = []
        for number in range(COUNT):
            own.sendto(datagram(host, number), address(remote))
            frame = own.recv(2048)
            assert frame[:14] == MAC + host + b"\x08\x00", frame
            got.append(struct.unpack(">I", frame[42:46])[0])
        print(json.dumps({"host": host.hex(":"), "in_order": got == list(range(COUNT))}))  # noqa: T201 - its output


if __name__ == "__main__":
    main(*sys.argv[1:])
