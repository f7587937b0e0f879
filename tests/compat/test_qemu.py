# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer that nobody here wrote: Debian's Linux under QEMU, on a datagram socket.

First it stands alone, against an Ethernet of a few lines: whatever fails later, the harness is
right.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.support.ethernet import Datagram, EthernetEnd, mac_address
from tests.support.qemu_peer import QemuPeer

PEER = IPv4Address("10.9.8.1")
OURS = IPv4Address("10.9.8.2")
NOBODY = IPv4Address("10.9.8.3")


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QemuPeer, EthernetEnd]]:
    """Join the peer and a few lines of Python."""
    here = tmp_path_factory.mktemp("wire")
    mac = mac_address("52:54:00:00:00:02")
    with (
        EthernetEnd(here / "end", here / "qemu", OURS, mac) as end,
        QemuPeer(here / "qemu", here / "end", beside=[end]) as peer,
    ):
        peer.command(f"ip addr add {PEER}/24 dev eth0")
        peer.command("udp echo 7")
        yield peer, end
        assert end.wrong == []


def test_the_peer_pings(wire: tuple[QemuPeer, EthernetEnd]) -> None:
    assert "3 packets received" in wire[0].command(f"ping -c 3 -i 0.1 -s 1400 {OURS}")


def test_the_peer_answers_a_ping(wire: tuple[QemuPeer, EthernetEnd]) -> None:
    peer, end = wire
    payload = bytes(range(256)) * 5
    end.ping(PEER, payload)
    peer.wait_until(lambda: bool(end.pings))
    assert end.pings == [payload]


def test_the_peer_sends_udp_and_sees_it_come_back(wire: tuple[QemuPeer, EthernetEnd]) -> None:
    peer, _ = wire
    assert peer.command(f"udp ask {OURS} 7 20 1472") == "20 of 1472 bytes came back\n"
    assert peer.command(f"udp ask {OURS} 7 1 0") == "1 of 0 bytes came back\n"


def test_the_peer_echoes_udp(wire: tuple[QemuPeer, EthernetEnd]) -> None:
    peer, end = wire
    end.send(PEER, 5000, 7, b"ping and pong")
    peer.wait_until(lambda: bool(end.heard))
    assert end.heard == [Datagram(PEER, 7, 5000, b"ping and pong")]


def test_the_peer_says_when_nothing_comes_back(wire: tuple[QemuPeer, EthernetEnd]) -> None:
    """Or every test would pass with a peer that praises everything."""
    peer, _ = wire
    status, printed = peer.attempt(f"ping -c 1 -W 1 {NOBODY}")
    assert status == 1
    assert "0 packets received" in printed
    status, printed = peer.attempt(f"udp ask {PEER} 9 1 10")  # it refuses that port itself
    assert status == 1
    assert "recv" in printed
