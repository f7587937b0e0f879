# SPDX-License-Identifier: GPL-2.0-or-later
"""A network with a TAP, seen from the host's own kernel; run in a network namespace of its own.

    unshare --map-root-user --net python -m tests.support.tap_host

The kernel asks by ARP who 10.0.0.1 is, and a socket of it gets an answer from that host's port 7.
Then the interface is removed.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from tests.support.networked import Networked
from xenlite.dom0.host_port import HostPort

IFREQ = "16s24s"
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C  # linux/sockios.h
IFF_UP, IFF_RUNNING = 1, 0x40
RTM_DELLINK, NLM_F_REQUEST, NLM_F_ACK = 17, 1, 4


def address(text: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(text))


def remove(name: str) -> None:
    """Remove an interface (netlink(7), rtnetlink(7))."""
    kind = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    head = struct.pack("=IHHII", 16 + len(kind), RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(head + kind)
        kernel.recv(2048)


def main() -> None:
    host = Networked()
    network = host.make("name=xenbr0,tap=xl0")
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
    [port] = [plug._station for plug in network.bridge.plugs if plug.name == "tap xl0"]
    assert isinstance(port, HostPort)
    assert not port.is_gone
    remove("xl0")
    host.run(lambda: port.is_gone)
    host.close()
    print("answered")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
