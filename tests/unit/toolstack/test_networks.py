# SPDX-License-Identifier: GPL-2.0-or-later
"""The networks of a host, with real sockets and real programs at their far ends."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support import dgram_peer
from tests.support.network import tcpdump_of, udp_frame, udp_of
from tests.support.networked import Networked, free_port
from xenlite.dom0 import ethernet, host_port
from xenlite.errors import ConfigError
from xenlite.toolstack.vif_config import service_mac

PEER = str(Path(dgram_peer.__file__))
GUEST_MAC = bytes.fromhex("00163e000001")
GUEST, HOST = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))


@pytest.fixture
def host() -> Iterator[Networked]:
    fds = sum(1 for _ in Path("/proc/self/fd").iterdir())
    made = Networked()
    yield made
    made.close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == fds
    assert threading.active_count() == 1


class Ear:
    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def deliver(self, frames: Sequence[bytes]) -> None:
        self.frames += frames


def udp_socket() -> socket.socket:
    """Return a socket of a program, at a port that is nobody's."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.settimeout(0)
    return made


# -- datagram sockets -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_a_program_joins_a_network_by_a_datagram_socket(
    host: Networked, tmp_path: Path, kind: str
) -> None:
    local, remote = (
        (f"{tmp_path}/xenlite.sock", f"{tmp_path}/peer.sock")
        if kind == "unix"
        else (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    )
    host.make(f"name=xenbr0,dgram=local={local} remote={remote},pcap={tmp_path}/a.pcap")
    answer = json.loads(host.while_running([sys.executable, PEER, remote, local]))
    mac = service_mac("xenbr0").hex(":")
    assert answer == {"host": mac, "in_order": True}
    lines = tcpdump_of(tmp_path / "a.pcap")
    assert lines[:2] == [
        "ARP, Request who-has 10.0.0.1 tell 10.0.0.9, length 28",
        f"ARP, Reply 10.0.0.1 is-at {mac}, length 28",
    ]
    assert len(lines) == 2 + 2 * dgram_peer.COUNT


def test_networks_are_joined_by_their_sockets_and_keep_batches(
    host: Networked, tmp_path: Path
) -> None:
    ends = [f"{tmp_path}/a.sock", f"{tmp_path}/b.sock"]
    near = host.make(f"name=near,services=no,dgram=local={ends[0]} remote={ends[1]}")
    far = host.make(f"name=far,services=no,dgram=local={ends[1]} remote={ends[0]}")
    ear = Ear()
    far.bridge.plug("ear", ear)
    sender = near.bridge.plug("sender", Ear())
    frames = [GUEST_MAC[::-1] + GUEST_MAC + b"\x08\x00" + bytes([n]) for n in range(5)]
    sender.send(frames)
    host.run(lambda: len(ear.frames) == len(frames))
    assert ear.frames == frames


def test_a_peer_that_is_not_there_costs_its_frames_alone(host: Networked, tmp_path: Path) -> None:
    network = host.make(f"name=n,services=no,dgram=local={tmp_path}/a remote={tmp_path}/b")
    [plug] = network.bridge.plugs
    frame = ethernet.BROADCAST + GUEST_MAC + b"\x08\x00"
    sender = network.bridge.plug("sender", Ear())
    sender.send([frame] * 3)
    assert plug.dropped() == {"nobody there": 3}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(f"{tmp_path}/b")
        sender.send([frame] * 1000)
        dropped = plug.dropped()
        assert dropped.pop("no room") > 0, "a peer that does not read"
        assert dropped == {"nobody there": 3}


def test_a_program_that_sends_without_end_gets_a_batch_a_turn(
    host: Networked, tmp_path: Path
) -> None:
    local, remote = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    network = host.make(f"name=n,services=no,dgram=local={local} remote={remote}")
    batches: list[int] = []

    class Counter:
        def deliver(self, frames: Sequence[bytes]) -> None:
            batches.append(len(frames))

    network.bridge.plug("counter", Counter())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(dgram_peer.address(remote))
        for _ in range(200):
            peer.sendto(ethernet.BROADCAST + GUEST_MAC + b"\x08\x00", dgram_peer.address(local))
        peer.sendto(bytes(65507), dgram_peer.address(local))
        host.run(lambda: sum(batches) == 200)
    assert max(batches) <= host_port.BATCH


def test_only_the_peer_is_heard_over_udp(host: Networked) -> None:
    local, remote = free_port(), free_port()
    network = host.make(
        f"name=n,services=no,dgram=local=127.0.0.1:{local} remote=127.0.0.1:{remote}"
    )
    ear = Ear()
    network.bridge.plug("ear", ear)
    frame = ethernet.BROADCAST + GUEST_MAC + b"\x08\x00"
    with udp_socket() as stranger, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", remote))
        stranger.sendto(frame + b"stranger", ("127.0.0.1", local))
        peer.sendto(frame + b"peer", ("127.0.0.1", local))
        host.run(lambda: bool(ear.frames))
    assert ear.frames == [frame + b"peer"]


def test_what_a_dead_process_left_is_replaced_and_what_a_living_one_has_is_not(
    host: Networked, tmp_path: Path
) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    host.make(f"name=n,dgram=local={path} remote={tmp_path}/b")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"network m: .*a\.sock: Address already in use"):
        host.make(f"name=m,dgram=local={path} remote={tmp_path}/c")
    host.networks.close()
    assert not path.exists()


# -- forwards -------------------------------------------------------------------------------------


def test_a_program_talks_to_a_guest_through_a_forward(host: Networked) -> None:
    network = host.make("name=xenbr0,forward=udp::0-10.0.0.2:9")
    assert network.services is not None
    [address] = network.services.addresses
    assert host.said == [f"network xenbr0: UDP port {address} of the host is 10.0.0.2:9"]

    class Guest:
        """Answers ARP, and datagrams with what they hold, twice."""

        def __init__(self) -> None:
            self.plug = network.bridge.plug("guest", self, GUEST_MAC)

        def deliver(self, frames: Sequence[bytes]) -> None:
            for frame in frames:
                host.link.defer(partial(self.plug.send, self.answer(frame)))

        def answer(self, frame: bytes) -> list[bytes]:
            mac = frame[6:12]
            if frame[12:14] == b"\x08\x06":
                told = frame[14:20] + b"\x00\x02" + GUEST_MAC + GUEST + mac + HOST
                return [mac + GUEST_MAC + b"\x08\x06" + told]
            packet, datagram = udp_of(frame)
            assert (packet.source, packet.destination) == (HOST, GUEST)
            ports = (datagram.destination_port, datagram.source_port)
            return [udp_frame(mac, GUEST_MAC, GUEST, HOST, ports, 2 * datagram.payload)]

    Guest()
    with udp_socket() as one, udp_socket() as other:
        got: dict[int, bytes] = {}

        def both_heard() -> bool:
            for number, program in enumerate((one, other)):
                try:
                    got[number], sender = program.recvfrom(2048)
                    assert sender == (address.host, address.port)
                except BlockingIOError:
                    pass
            return len(got) == 2

        one.sendto(b"one", (address.host, address.port))
        other.sendto(b"other", (address.host, address.port))
        host.run(both_heard)
    assert got == {0: b"oneone", 1: b"otherother"}


def test_a_port_that_is_taken_is_the_users_mistake_and_leaves_nothing(host: Networked) -> None:
    with udp_socket() as owner:
        port = owner.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            host.make(f"name=n,subnet=10.0.0.0/24,forward=0-10.0.0.2:7,forward={port}-10.0.0.2:7")
    assert str(caught.value) == f"network n: 127.0.0.1:{port}: Address already in use"


# -- bridges --------------------------------------------------------------------------------------


def test_a_network_is_made_when_it_is_asked_for_and_is_as_usual(host: Networked) -> None:
    network = host.networks.network("xenbr3")
    assert network is host.networks.network("xenbr3")
    assert str(network.config.interface) == "10.0.3.1/24"
    assert [plug.name for plug in network.bridge.plugs] == ["services"]
    host.make("name=xenbr3,subnet=10.0.3.0/24")
    with pytest.raises(ConfigError) as caught:
        host.make("name=xenbr3,services=no")
    assert str(caught.value) == ("network xenbr3: is there already, and not as it is described now")


def test_the_service_host_answers_behind_what_asked(host: Networked) -> None:
    network = host.networks.network("xenbr0")
    ear = Ear()
    guest = network.bridge.plug("guest", ear, GUEST_MAC)
    asks = udp_frame(service_mac("xenbr0"), GUEST_MAC, GUEST, HOST, (1000, 7), b"x")
    guest.send([asks] * 3)
    assert ear.frames == [], "nobody sends from within deliver"
    host.settle()
    assert len(ear.frames) == 3


def test_statistics_tell_what_passed_and_what_was_lost(host: Networked) -> None:
    network = host.networks.network("xenbr0")
    guest = network.bridge.plug("guest", Ear(), GUEST_MAC)
    asks = udp_frame(service_mac("xenbr0"), GUEST_MAC, GUEST, HOST, (1000, 7), b"x")
    guest.send([asks, asks[:-1], b"runt"])
    host.settle()
    services, other = host.networks.statistics()
    assert services == {
        "network": "xenbr0",
        "station": "services",
        "sent_frames": 1,
        "sent_bytes": len(asks),
        "got_frames": 2,
        "got_bytes": 2 * len(asks) - 1,
        "dropped": {"a version or length that can't be": 1},
    }
    assert (other["station"], other["sent_frames"], other["got_frames"]) == ("guest", 3, 1)
    assert other["dropped"] == {"malformed": 1}


def test_a_capture_behind_a_link_to_itself_is_the_users_mistake(
    host: Networked, tmp_path: Path
) -> None:
    link = tmp_path / "loop"
    link.symlink_to(link)
    with pytest.raises(ConfigError, match=r"symbolic links \(--pcap\)"):
        host.networks.capture("xenbr0", link, wish="--pcap")


def test_one_file_takes_one_capture(host: Networked, tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    host.make(f"name=xenbr0,pcap={path}")
    with pytest.raises(ConfigError, match=r"a\.pcap: in use by another log, .* \(--pcap\)"):
        host.networks.capture("xenbr1", tmp_path / "." / "a.pcap", wish="--pcap")
