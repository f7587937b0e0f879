# SPDX-License-Identifier: GPL-2.0-or-later
"""A network with a TAP, seen from the host's own kernel; run in a network namespace of its own.

    unshare --map-root-user --net python -m tests.support.tap_host

The kernel asks by ARP who 10.0.0.1 is, and a socket of it gets an answer from that host's port 7.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from tests.support.networked import Networked

IFREQ = "16s24s"
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C  # linux/sockios.h
IFF_UP, IFF_RUNNING = 1, 0x40


def address(text: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(text))


def main() -> None:
    host = Networked()
    host.make("name=xenbr0,tap=xl0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        for request, value in (
            (SIOCSIFADDR, address("10.0.0.9")),
            (SIOCSIFNETMASK, address("255.255.255.0")),
            (SIOCSIFFLAGS, struct.pack("=h", IFF_UP | IFF_RUNNING)),
        ):
            fcntl.ioctl(program, request, struct.pack(IFREQ, b"xl0", value))
        program.setblocking(False)
        for number in range(20):
            got: list[bytes] = []

            def heard() -> bool:
                try:
                    got.append(program.recv(2048))  # noqa: B023 - of this round
                except BlockingIOError:
                    return False
                return True

            program.sendto(b"%d" % number, ("10.0.0.1", 7))
            host.run(heard)
            assert got == [b"%d" % number]
    host.close()
    print("answered")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
