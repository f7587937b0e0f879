# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos on a network: with its like, with the host, and with what nobody should send."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from tests.support.ethernet import checksum
from tests.support.guestos import LOOKS, PROMPT, Machine, Rack, lines
from tests.support.guestos_network import (
    BRIDGE,
    BROADCAST,
    ETH_ARP,
    ETH_IP,
    PROTOCOL_ICMP,
    PROTOCOL_UDP,
    RACK_BYTES,
    Networked,
    Wire,
    address_of,
    arp,
    counts,
    echo,
    ethernet,
    ip,
    mac_of,
    udp,
    wait_for_state,
)
from xenlite.machine.clock import ManualClock
from xenlite.toolstack.network_config import read_network
from xenlite.toolstack.vif_config import VifConfig, read_vif

HEADERS = 14 + 20 + 8
GARBAGE_FRAMES = 3000


@pytest.fixture(scope="module", params=[1, 4], ids=["1 vCPU", "4 vCPUs"])
def network(request: pytest.FixtureRequest) -> Iterator[Networked]:
    """Two machines of 8 MB."""
    made = Networked(2, f"vcpus={request.param}")
    yield made
    made.close()


@pytest.fixture
def pair(network: Networked) -> Iterator[tuple[Machine, Machine]]:
    """Two shells: afterwards they run, alone."""
    one, other = network.machines
    yield one, other
    for machine in (one, other):
        machine.wait_for_quiet()
        assert machine.output == ""


@pytest.fixture
def wire(network: Networked) -> Iterator[Wire]:
    made = Wire(network)
    yield made
    made.unplug()


def serve(machine: Machine, line: str) -> int:
    """Run a server behind; return its id."""
    name = line.split()[0]
    machine.command(f"{line} &")
    return machine.process_named(name)


def end(machine: Machine, process: int) -> None:
    machine.command(f"kill {process}")
    machine.command("wait")


# -- with its like --------------------------------------------------------------------------------


def test_each_pings_the_other(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    for machine, address in ((one, "10.0.0.3"), (other, "10.0.0.2")):
        answer = lines(machine.command(f"ping -c 20 {address}"))
        assert answer[0] == "20 sent, 20 answered"
        assert re.fullmatch(r"round trip min/avg/max [\d.]+/[\d.]+/[\d.]+ us", answer[1])


@pytest.mark.parametrize("size", [0, 1, 3, 56, 63, 1000, 1471, 1472])
def test_a_ping_of_any_size_comes_back_as_it_was(pair: tuple[Machine, Machine], size: int) -> None:
    assert pair[0].command(f"ping -c 2 -s {size} 10.0.0.3").startswith("2 sent, 2 answered")


def test_datagrams_come_back_from_an_echo(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    server = serve(other, "udpecho 77")
    assert one.command("udpsend 10.0.0.3 77 hello") == "hello\n"
    for size in (4, 5, 64, 1471, 1472):
        answer = one.command(f"udpsend 10.0.0.3 77 -n 100 -s {size}")
        assert answer.startswith("100 sent, 100 came back"), size
    end(other, server)


def test_where_nobody_listens_the_sender_is_told(pair: tuple[Machine, Machine]) -> None:
    assert pair[0].command("udpsend 10.0.0.3 78 x") == "udpsend: nobody listens there\n"


def test_it_talks_to_itself(pair: tuple[Machine, Machine]) -> None:
    server = serve(pair[0], "udpecho 77")
    assert pair[0].command("ping -s 1472 10.0.0.2").startswith("4 sent, 4 answered")
    assert pair[0].command("udpsend 10.0.0.2 77 hello") == "hello\n"
    assert pair[0].command("udpsend 10.0.0.2 78 hello") == "udpsend: nobody listens there\n"
    end(pair[0], server)


def test_an_address_that_nobody_has_is_no_way(pair: tuple[Machine, Machine]) -> None:
    assert pair[0].command("ping 10.0.0.77") == "ping: nobody has that address\n"
    assert pair[0].command("ping 10.1.0.1") == "ping: no way to that address\n"


def test_a_port_is_one_program_s(pair: tuple[Machine, Machine]) -> None:
    server = serve(pair[0], "udpecho 77")
    assert pair[0].command("udpecho 77") == "udpecho: in use\n"
    end(pair[0], server)
    server = serve(pair[0], "udpecho 77")
    end(pair[0], server)


def test_ctrl_c_ends_who_waits_for_a_datagram(pair: tuple[Machine, Machine]) -> None:
    pair[0].type("udpecho\r")
    pair[0].wait_for("\n")
    for _ in range(LOOKS):
        if pair[1].command("udpsend 10.0.0.2 7 hello") == "hello\n":
            break
    pair[0].type("\x03")
    assert pair[0].wait_for(PROMPT) == "^C\n"


def test_what_is_sent_is_received_or_counted(
    network: Networked, pair: tuple[Machine, Machine]
) -> None:
    """Each datagram has its number and its checksum: none comes twice, none broken."""
    one, other = pair
    before, missed = counts(other), network.backend_drops()
    other.type("udpsink\r")
    other.wait_for("\n")
    one.command("pktgen 10.0.0.3 9 -n 20000 -s 1472")
    answer = other.wait_for(PROMPT)
    got = re.match(r"(\d+) of 20000 datagrams of 1472 bytes, \d+ gaps, 0 broken", answer)
    assert got is not None, answer
    after = counts(other)
    assert after["bad"] == before["bad"]
    lost = after["dropped"] - before["dropped"] + network.backend_drops() - missed
    assert 20000 - lost <= int(got[1]) <= 20000
    assert int(got[1]) >= 256


def test_a_stream_that_fits_its_queues_loses_nothing(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    other.type("udpsink\r")
    other.wait_for("\n")
    one.command("pktgen 10.0.0.3 9 -n 100 -s 1472")
    assert other.wait_for(PROMPT).startswith("100 of 100 datagrams of 1472 bytes, 0 gaps, 0 broken")


def test_a_flood_does_not_stop_the_shell(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    sink = serve(other, "udpsink")
    flood = serve(one, "pktgen 10.0.0.3 9 -n 99999999")
    for _ in range(20):
        assert other.command("echo a | cat") == "a\n"
        assert one.command("echo a | cat") == "a\n"
    end(one, flood)
    end(other, sink)


# -- with the host --------------------------------------------------------------------------------


def test_dhcp_brings_addresses_that_work(pair: tuple[Machine, Machine]) -> None:
    answer = pair[0].command("dhcp eth0")
    given = re.fullmatch(r"eth0: (10\.0\.0\.\d+) from 10\.0\.0\.1, for \d+ s\n", answer)
    assert given is not None, answer
    assert f"address {given[1]}/24" in pair[0].command("ifconfig eth0")
    assert pair[0].command("ping 10.0.0.1").startswith("4 sent, 4 answered")
    assert pair[0].command("udpsend 10.0.0.1 7 hello") == "hello\n"
    assert pair[1].command(f"ping {given[1]}").startswith("4 sent, 4 answered")
    pair[0].command("ifconfig eth0 10.0.0.2/24")


def test_a_program_of_the_host_talks_to_a_guest() -> None:
    said: list[str] = []

    class HearingRack(Rack):
        def said(self, line: str) -> None:
            said.append(line)

    rack = HearingRack(memory_bytes=RACK_BYTES)
    rack.networks().declare(
        read_network("name=xenbr7,subnet=10.0.7.1/24,forward=udp:127.0.0.1:0-10.0.7.2:7")
    )
    found = re.search(r"UDP port 127\.0\.0\.1:(\d+) of the host", said[0])
    assert found is not None, said
    machine = Machine("vif=bridge=xenbr7", rack=rack)
    machine.wait_for(PROMPT)
    wait_for_state(machine, "up")
    machine.command("ifconfig eth0 10.0.7.2/24")
    machine.command("udpecho &")
    machine.process_named("udpecho")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.setblocking(False)
        program.sendto(b"is it you?", ("127.0.0.1", int(found[1])))
        heard: list[bytes] = []

        def has_answer() -> bool:
            try:
                heard.append(program.recv(100))
            except BlockingIOError:
                return False
            return True

        machine.run_until(has_answer, "an answer from the guest")
    assert heard == [b"is it you?"]
    machine.close()
    rack.close()


# -- with what nobody should send -----------------------------------------------------------------


def test_it_answers_a_station_that_it_has_never_heard_of(network: Networked, wire: Wire) -> None:
    assert wire.ask(2, b"x" * 57)[42:] == b"x" * 57


def test_it_skips_options_of_ip(network: Networked, wire: Wire) -> None:
    assert wire.ask(2, b"some data", options=b"\1" * 8)[42:] == b"some data"


def test_a_padded_packet_is_as_long_as_it_says(network: Networked, wire: Wire) -> None:
    wire.send(wire.to(2, PROTOCOL_ICMP, echo(b"ab")) + bytes(16))
    answer = wire.wait_for(lambda frame: frame[23:24] == b"\1", "an answer")
    assert answer[42:] == b"ab"


def test_it_asks_for_an_address_again_when_it_is_old() -> None:
    made = Networked(2, clock=ManualClock())
    one = made.machines[0]
    asked: list[bytes] = []

    class Ear:
        def deliver(self, frames: Sequence[bytes]) -> None:
            asked.extend(frame for frame in frames if frame[12:14] == b"\x08\x06")

    made.bridge.plug("ear", Ear())
    one.command("ping 10.0.0.3")
    asked.clear()
    one.command("ping 10.0.0.3")
    assert asked == []
    one.command("sleep 61")
    assert one.command("ping 10.0.0.3").startswith("4 sent, 4 answered")
    assert [frame[38:42] for frame in asked] == [address_of(3)]
    made.close()


def test_more_stations_than_arp_remembers_only_make_it_ask_again(
    network: Networked, pair: tuple[Machine, Machine], wire: Wire
) -> None:
    for number in range(100, 200):
        question = arp(1, wire.mac, address_of(number), address_of(2))
        wire.send(ethernet(BROADCAST, wire.mac, ETH_ARP, question))
    assert pair[0].command("ping 10.0.0.3").startswith("4 sent, 4 answered")


def test_who_claims_our_address_is_not_believed(
    network: Networked, pair: tuple[Machine, Machine], wire: Wire
) -> None:
    claim = arp(2, wire.mac, address_of(2), address_of(2))
    wire.send(ethernet(mac_of(2), wire.mac, ETH_ARP, claim))
    assert pair[0].command("ping 10.0.0.3").startswith("4 sent, 4 answered")


def test_wrong_lengths_and_sums_are_counted_and_dropped(
    network: Networked, pair: tuple[Machine, Machine], wire: Wire
) -> None:
    server = serve(pair[0], "udpecho 7")
    right = wire.udp_to(2, (1, 7), b"hello")
    head, body = right[:14], right[14:]
    broken = [
        head + body[:19],  # no whole header of IP
        head + b"\x55" + body[1:],  # version 5
        head + b"\x44" + body[1:],  # a header shorter than any
        head + b"\x4f" + body[1:],  # longer than the packet
        head + with_sum(body[:2] + b"\0\x13" + body[4:]),  # less than its header
        head + with_sum(body[:2] + b"\x05\xdc" + body[4:]),  # more than has come
        head + body[:10] + b"\0\0" + body[12:],  # its checksum
        head + body[:24] + b"\0\7" + body[26:],  # UDP: less than its header
        head + body[:24] + b"\0\xff" + body[26:],  # UDP: more than the packet
        head + body[:-1] + b"O",  # UDP's checksum
        wire.to(2, PROTOCOL_ICMP, echo(b"")[:7]),
        wire.to(2, PROTOCOL_ICMP, b"\x08\0\1\2" + bytes(8)),  # ICMP's checksum
        wire.to(2, PROTOCOL_UDP, bytes(7)),
        ethernet(mac_of(2), wire.mac, ETH_ARP, bytes(27)),
        ethernet(mac_of(2), wire.mac, ETH_ARP, bytes(28)),
    ]
    before = counts(pair[0])["bad"]
    wire.send(*broken)
    wire.ask(2, b"behind them")
    assert counts(pair[0])["bad"] - before == len(broken)
    assert not any(frame[23:24] == b"\x11" for frame in wire.heard)
    wire.send(right)
    answer = wire.wait_for(lambda frame: frame[23:24] == b"\x11", "the answer to a right one")
    assert answer[HEADERS:] == b"hello"
    end(pair[0], server)


def with_sum(packet: bytes) -> bytes:
    """Give a header the checksum that it should have."""
    head = packet[:10] + b"\0\0" + packet[12:20]
    return packet[:10] + checksum(head).to_bytes(2, "big") + packet[12:]


def test_fragments_are_dropped(
    network: Networked, pair: tuple[Machine, Machine], wire: Wire
) -> None:
    whole = wire.to(2, PROTOCOL_ICMP, echo(b"x" * 64))
    before = counts(pair[0])["dropped"]
    for flags in (b"\x20\0", b"\0\1", b"\x1f\xff"):
        body = whole[14:]
        wire.send(whole[:14] + with_sum(body[:6] + flags + body[8:]))
    wire.ask(2, b"behind them")
    assert counts(pair[0])["dropped"] - before == 3


def test_what_is_for_others_or_all_is_not_answered(network: Networked, wire: Wire) -> None:
    everybody, group = b"\xff" * 4, b"\xe0\0\0\1"
    closed = udp(wire.address, everybody, (1, 4), b"nobody")
    packets = [
        (BROADCAST, ip(wire.address, everybody, PROTOCOL_ICMP, echo(b"all"))),
        (BROADCAST, ip(wire.address, everybody, PROTOCOL_UDP, closed)),
        (mac_of(2), ip(wire.address, address_of(3), PROTOCOL_ICMP, echo(b"other"))),
        (mac_of(2), ip(group, address_of(2), PROTOCOL_ICMP, echo(b"group"))),
    ]
    wire.send(*(ethernet(mac, wire.mac, ETH_IP, packet) for mac, packet in packets))
    assert wire.ask(2, b"me")[42:] == b"me"
    assert not any(frame[6:12] in (mac_of(2), mac_of(3)) for frame in wire.heard)


@pytest.mark.parametrize("seed", range(3))
def test_garbage_harms_nobody(
    network: Networked, pair: tuple[Machine, Machine], wire: Wire, seed: int
) -> None:
    """Packets that were right, with bytes changed, cut off, put behind."""
    randomly = random.Random(seed)
    server = serve(pair[0], "udpecho 7")
    seeds = [
        wire.udp_to(2, (1, 7), b"hello"),
        wire.to(2, PROTOCOL_ICMP, echo(b"ping")),
        ethernet(mac_of(2), wire.mac, ETH_ARP, arp(1, wire.mac, wire.address, address_of(2))),
        wire.to(2, PROTOCOL_ICMP, b"\3\3\0\0" + bytes(4) + wire.udp_to(2, (7, 1), b"")[14:]),
    ]
    for _ in range(GARBAGE_FRAMES // 100):
        frames = []
        for _ in range(100):
            frame = bytearray(randomly.choice(seeds))
            for _ in range(randomly.randrange(4)):
                frame[randomly.randrange(14, len(frame))] = randomly.randrange(256)
            size = randomly.choice((len(frame), randomly.randrange(14, len(frame)), 1514))
            frames.append(bytes(frame[:size]).ljust(size, b"\xaa"))
        wire.send(*frames)
        wire.ask(2, b"still there")
    end(pair[0], server)
    assert pair[0].command("echo well") == "well\n"


def test_bad_addresses_are_refused_with_a_card_too(pair: tuple[Machine, Machine]) -> None:
    answer = lines(pair[0].command("hostile 8"))[-1]
    assert re.fullmatch(r"8 children, \d+ ended by a signal; 0 bad addresses taken", answer)


# -- cards that come and go -----------------------------------------------------------------------


def test_a_card_that_goes_gives_its_memory_back() -> None:
    rack = Rack(memory_bytes=RACK_BYTES)
    machine = Machine("name=m", f"vif=bridge={BRIDGE}", rack=rack)
    machine.wait_for(PROMPT)
    wait_for_state(machine, "up")
    machine.command("ifconfig eth0 10.0.0.2/24")
    vifs = machine.guest.vifs
    assert vifs is not None
    machine.command("udpecho &")
    free = set()
    for number in range(4):
        vifs.detach(0)
        wait_for_state(machine, "no such interface")
        free.add(machine.memory()["free"])
        assert machine.command("ping 10.0.0.1") == "ping: no way to that address\n"
        vifs.attach(completed(number))
        wait_for_state(machine, "up")
        machine.command("ifconfig eth0 10.0.0.2/24")
        assert machine.command("ping 10.0.0.1").startswith("4 sent, 4 answered")
    assert len(free) == 1
    machine.close()
    rack.close()


def test_cards_on_two_networks_lead_to_both() -> None:
    rack = Rack(memory_bytes=RACK_BYTES)
    machine = Machine("name=m", f"vif=bridge={BRIDGE}", "memory=16", rack=rack)
    machine.wait_for(PROMPT)
    wait_for_state(machine, "up")
    assert machine.guest.vifs is not None
    machine.guest.vifs.attach(replace(completed(8), devid=1, bridge="xenbr1"))
    wait_for_state(machine, "up", "eth1")
    for interface, host in (("eth0", "10.0.0.1"), ("eth1", "10.0.1.1")):
        assert f" from {host}, for " in machine.command(f"dhcp {interface}")
    for interface, host in (("eth0", "10.0.0.1"), ("eth1", "10.0.1.1")):
        before = counts(machine, interface)["sent"]
        assert machine.command(f"ping {host}").startswith("4 sent, 4 answered")
        assert counts(machine, interface)["sent"] >= before + 4
    machine.command("ifconfig eth1 10.0.1.9/24 10.0.1.1")
    before = counts(machine, "eth1")["sent"]
    machine.command("ping -c 1 192.0.2.1")  # by the gateway, which answers for itself alone
    assert counts(machine, "eth1")["sent"] > before
    machine.guest.vifs.detach(0)
    wait_for_state(machine, "no such interface")
    assert machine.command("ping 10.0.1.1").startswith("4 sent, 4 answered")
    machine.close()
    rack.close()


def completed(number: int) -> VifConfig:
    return read_vif(f"devid=0,mac={mac_of(number).hex(':')}")
