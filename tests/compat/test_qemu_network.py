# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's Linux under QEMU and guestos on one bridge of ``xenlite run``, over a datagram socket.

The peer's IP stack and DHCP client, and QEMU's end of the socket, are nobody's here. Whatever a
checksum, an ARP table or a length is worth, these two must agree on it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.qemu_peer import QemuPeer
from tests.support.run_process import ROOT, RunProcess

NETWORK = IPv4Network("10.7.0.0/24")
HOST = IPv4Address("10.7.0.1")
PROMPT = "guestos> "


class Guestos(RunProcess):
    """guestos at its prompt, typed at."""

    def command(self, line: str) -> str:
        """Have it do a line; return what it prints."""
        self.type(f"{line}\r")
        self.wait_for("\n")
        return self.wait_for(PROMPT)


class Joined(NamedTuple):
    """The two guests, and the addresses that DHCP has given them."""

    guestos: Guestos
    peer: QemuPeer
    guestos_at: IPv4Address
    peer_at: IPv4Address
    capture: Path


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """Run both on one bridge, which is captured; both echo on port 7."""
    here = tmp_path_factory.mktemp("net")
    network = f"name=xenbr0,subnet={NETWORK},pcap={here}/net.pcap"
    network += f",dgram=local={here}/xenlite remote={here}/qemu"
    with (
        Guestos(ROOT / "guestos/dom.yaml", "vif=bridge=xenbr0", f"networks={network}") as guestos,
        QemuPeer(here / "qemu", here / "xenlite") as peer,
    ):
        guestos.wait_for(PROMPT)
        for_guestos = re.search(r"eth0: (\S+) from (\S+),", guestos.command("dhcp eth0"))
        for_peer = re.search(r"lease (\S+)/24 .*server (\S+)", peer.command("udhcpc -q -n"))
        assert for_guestos is not None
        assert for_peer is not None
        assert for_guestos[2] == for_peer[2] == str(HOST)
        guestos.command("udpecho &")
        peer.command("udp echo 7")
        yield Joined(
            guestos,
            peer,
            IPv4Address(for_guestos[1]),
            IPv4Address(for_peer[1]),
            here / "net.pcap",
        )
        guestos.type("halt\r")
        assert guestos.end() == 0


def test_both_have_an_address_of_the_network(joined: Joined) -> None:
    assert joined.guestos_at in NETWORK
    assert joined.peer_at in NETWORK
    assert len({joined.guestos_at, joined.peer_at, HOST}) == 3
    assert f"inet {joined.peer_at}/24" in joined.peer.command("ip addr show eth0")
    assert f"address {joined.guestos_at}/24" in joined.guestos.command("ifconfig eth0")


def test_the_peer_and_the_service_host(joined: Joined) -> None:
    assert "3 packets received" in joined.peer.command(f"ping -c 3 -i 0.1 -s 1400 {HOST}")
    for count, size in ((20, 1472), (1, 0), (1, 1), (50, 64)):
        printed = joined.peer.command(f"udp ask {HOST} 7 {count} {size}")
        assert printed == f"{count} of {size} bytes came back\n"


def test_the_peer_pings_guestos(joined: Joined) -> None:
    assert "3 packets received" in joined.peer.command(f"ping -c 3 -i 0.1 {joined.guestos_at}")
    assert "3 packets received" in joined.peer.command(
        f"ping -c 3 -i 0.1 -s 1472 {joined.guestos_at}"
    )


def test_guestos_pings_the_peer(joined: Joined) -> None:
    for size in (56, 1472):
        printed = joined.guestos.command(f"ping -c 3 -s {size} {joined.peer_at}")
        assert printed.startswith("3 sent, 3 answered")


def test_the_peer_sends_udp_to_guestos_and_back(joined: Joined) -> None:
    for count, size in ((20, 1472), (1, 0), (1, 1), (50, 64)):
        printed = joined.peer.command(f"udp ask {joined.guestos_at} 7 {count} {size}")
        assert printed == f"{count} of {size} bytes came back\n"


def test_guestos_sends_udp_to_the_peer_and_back(joined: Joined) -> None:
    assert (
        joined.guestos.command(f"udpsend {joined.peer_at} 7 ping-and-pong") == "ping-and-pong\r\n"
    )
    for size in (4, 64, 1472):
        printed = joined.guestos.command(f"udpsend {joined.peer_at} 7 -n 20 -s {size}")
        assert printed.startswith("20 sent, 20 came back")


def test_a_capture_of_the_bridge_is_right_to_the_last_checksum(joined: Joined) -> None:
    assert shutil.which("tcpdump"), "this test needs Debian's package tcpdump"
    joined.guestos.command(f"ping -c 1 {joined.peer_at}")
    joined.guestos.command(f"udpsend {joined.peer_at} 7 hello")
    joined.peer.command(f"ping -c 1 {joined.guestos_at}")
    dump = subprocess.run(
        ["tcpdump", "-n", "-t", "-vv", "-r", joined.capture, "arp or ip"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dump.stdout
    both = (joined.guestos_at, joined.peer_at)
    for source, target in (both, both[::-1]):
        assert f"{source} > {target}: ICMP echo request" in shown
        assert f"{source} > {target}: ICMP echo reply" in shown
    assert f"> {joined.peer_at}.7: [udp sum ok] UDP, length 5" in shown
    assert f"{HOST}.67 > {joined.peer_at}.68: [udp sum ok] BOOTP/DHCP, Reply" in shown
    for wrong in ("bad ", "wrong", "incorrect", "truncated", "unknown"):
        assert wrong not in shown + dump.stderr
