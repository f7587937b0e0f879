# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux under QEMU judges the checksums that a frontend leaves blank and the backend completes.

Frontends here send whole checksums as a rule, and the service host's are its own. Linux drops what
has a wrong one without a word, so a wrong one goes before each that is to be completed: had it been
taken, its answer would come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from struct import pack

import pytest

from tests.support.ethernet import mac_address
from tests.support.net_front import NetFront, net
from tests.support.qemu_peer import MAC, QemuPeer
from xenlite.abi.x86_32p import NETTXF_csum_blank
from xenlite.dom0 import ethernet, ipv4
from xenlite.dom0.dgram import DgramChannel, DgramConfig
from xenlite.dom0.host_port import HostPort
from xenlite.toolstack.poller import Poller

OURS, PEER = IPv4Address("10.9.8.2"), IPv4Address("10.9.8.1")
ECHO, CLOSED, OUR_PORT = 7, 9, 5000
TCP, SYN, RST_ACK = 6, 0x02, 0x14
NOT_A_SUM = 0xDEAD
PATIENCE_NS = 60 * 10**9


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetFront]:
    """Connect a frontend whose bridge leads to the peer, which echoes on port 7."""
    here = tmp_path_factory.mktemp("wire")
    with net() as made, ExitStack() as undo:
        poller = Poller(made.link)
        undo.callback(poller.close)
        channel = DgramChannel(DgramConfig(here / "xenlite", here / "qemu"))
        undo.callback(HostPort(made.bridge, "qemu", poller, channel).close)
        card = made.add()
        card.connect()
        peer = undo.enter_context(QemuPeer(here / "qemu", here / "xenlite"))
        peer.command(f"ip addr add {PEER}/24 dev eth0")
        peer.command(f"arp -s {OURS} {card.mac_text}")
        peer.command(f"udp echo {ECHO}")
        yield card


def test_datagrams_of_all_sizes_are_completed(front: NetFront) -> None:
    for size in (1, 2, 17, 1000, 1471, 1472):
        payload = bytes(n * 7 & 0xFF for n in range(size))
        head = pack(">HHHH", OUR_PORT, ECHO, 8 + size, NOT_A_SUM)
        answer = exchange(front, ipv4.PROTOCOL_UDP, head + b"!" * size, head + payload)
        assert ipv4.parse_udp(answer).payload == payload


def test_a_segment_is_completed(front: NetFront) -> None:
    """One for a port where nobody listens is answered by a reset, which names what it is for."""
    wrong, right = (
        pack(">HHIIBBHHH", OUR_PORT, CLOSED, number, 0, 5 << 4, SYN, 1024, NOT_A_SUM, 0)
        for number in (1000, 2000)
    )
    answer = exchange(front, TCP, wrong, right)
    assert answer.protocol == TCP
    assert answer.payload[13] == RST_ACK
    assert int.from_bytes(answer.payload[8:12], "big") == 2001


def exchange(front: NetFront, protocol: int, wrong: bytes, blank: bytes) -> ipv4.Packet:
    """Send what has a wrong checksum and what has a blank one; return the first answer."""
    front.put_frame(to_peer(front, protocol, wrong))
    front.put_frame(to_peer(front, protocol, blank), NETTXF_csum_blank)
    front.send()
    packets: list[ipv4.Packet] = []

    def answered() -> bool:
        for frame in front.receive():
            if frame[12:14] == ethernet.ETHERTYPE_IPV4.to_bytes(2, "big"):
                packets.append(ipv4.parse(frame[ethernet.HEADER_BYTES :]))
        return bool(packets)

    deadline_ns = front.net.link.now_ns() + PATIENCE_NS
    assert front.net.hypervisor.run(answered, deadline_ns), "Linux took neither"
    front.take_statuses()
    return packets[0]


def to_peer(front: NetFront, protocol: int, payload: bytes) -> bytes:
    packet = ipv4.build(ipv4.Packet(OURS.packed, PEER.packed, protocol, payload))
    return ethernet.build(mac_address(MAC), front.mac, ethernet.ETHERTYPE_IPV4, packet)
