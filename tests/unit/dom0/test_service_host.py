# SPDX-License-Identifier: GPL-2.0-or-later
"""The service host, frame by frame. tcpdump, which knows the protocols, checks what it sends."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.network import arp_frame, dhcp_frame, ip_frame, tcpdump, udp_frame, udp_of
from xenlite.dom0 import arp, ethernet, ipv4
from xenlite.dom0.leases import LEASE_S, MAX_ADDRESSES, OFFER_S, Leases
from xenlite.dom0.service_host import ASK_AGAIN_NS, MAX_WAITING, NEIGHBOUR_NS, ServiceHost
from xenlite.dom0.udp_forwards import (
    FIRST_PORT,
    MAX_PROGRAMS,
    ForwardTarget,
    Program,
    UdpForwards,
)

HOST_MAC = bytes.fromhex("00163e800001")
MAC, OTHER_MAC = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
HOST, GUEST, OTHER = (bytes((10, 0, 0, last)) for last in (1, 2, 3))
PROGRAM: Program = ("127.0.0.1", 40000)
DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7


class Net:
    """A service host with one forward, to port 9 of GUEST, and a clock that is set by hand."""

    def __init__(self, subnet: str = "10.0.0.1/24") -> None:
        self.now_ns = 0
        self.to_programs: list[tuple[int, Program, bytes]] = []
        forwards = UdpForwards(
            [ForwardTarget(GUEST, 9)], lambda *sent: self.to_programs.append(sent)
        )
        self.host = ServiceHost(HOST_MAC, IPv4Interface(subnet), forwards, lambda: self.now_ns)

    def answer(self, *frames: bytes) -> list[bytes]:
        return self.host.answer(frames)

    def ask_dhcp(
        self, mac: bytes, kind: int, wished: bytes | None = None, *, server: bytes | None = None
    ) -> tuple[int, bytes] | None:
        """Return the kind of the answer and the address in it."""
        options = {50: wished, 54: server}
        given = {code: value for code, value in options.items() if value is not None}
        answers = self.answer(dhcp_frame(mac, kind, options=given))
        if not answers:
            return None
        [frame] = answers
        _, datagram = udp_of(frame)
        assert datagram.payload[240:242] == b"\x35\x01"
        return datagram.payload[242], datagram.payload[16:20]


# -- ARP and ping ---------------------------------------------------------------------------------


def test_it_answers_arp_for_its_own_address_alone(tmp_path: Path) -> None:
    net = Net()
    answers = net.answer(arp_frame(MAC, GUEST, HOST), arp_frame(MAC, GUEST, OTHER))
    assert [one[:12] for one in answers] == [MAC + HOST_MAC]
    lines = tcpdump(answers, tmp_path / "a.pcap")
    assert lines == ["ARP, Reply 10.0.0.1 is-at 00:16:3e:80:00:01, length 28"]


@pytest.mark.parametrize("payload", [b"", b"odd", bytes(range(56)), bytes(1472)])
def test_it_answers_ping_with_what_was_sent(tmp_path: Path, payload: bytes) -> None:
    echo = b"\x08\x00\x00\x00\x12\x34\x00\x01" + payload
    check = ipv4.checksum(echo).to_bytes(2, "big")
    request = ip_frame(HOST_MAC, MAC, GUEST, HOST, 1, echo[:2] + check + echo[4:])
    [frame] = Net().answer(request)
    assert frame[:12] == MAC + HOST_MAC
    assert ipv4.parse(frame[14:]).payload[8:] == payload
    length = 8 + len(payload)
    lines = tcpdump([frame], tmp_path / "a.pcap", "-vv")
    talk = f"10.0.0.1 > 10.0.0.2: ICMP echo reply, id 4660, seq 1, length {length}"
    assert lines[1:] == [f"    {talk}"], "and not a word of a wrong sum"


def test_padding_behind_a_packet_is_no_part_of_it() -> None:
    frame = udp_frame(HOST_MAC, MAC, GUEST, HOST, (1000, 7), b"x") + bytes(20)
    [answer] = Net().answer(frame)
    assert udp_of(answer)[1].payload == b"x"


# -- UDP ------------------------------------------------------------------------------------------


@given(st.binary(max_size=1472), st.integers(0, 65535))
def test_port_7_sends_back_what_it_gets_unless_an_echo_asks(data: bytes, port: int) -> None:
    answers = Net().answer(udp_frame(HOST_MAC, MAC, GUEST, HOST, (port, 7), data))
    if port == 7:
        assert answers == []
    else:
        [frame] = answers
        packet, datagram = udp_of(frame)
        assert (packet.source, packet.destination) == (HOST, GUEST)
        assert datagram == ipv4.Datagram(7, port, data)


def test_what_is_for_others_is_nobodys_business() -> None:
    net = Net()
    assert net.answer(udp_frame(OTHER_MAC, MAC, GUEST, HOST, (1000, 7), b"x")) == []
    assert net.answer(udp_frame(HOST_MAC, MAC, GUEST, OTHER, (1000, 7), b"x")) == []
    assert not net.host.dropped


def test_a_program_reaches_a_guest_and_is_answered() -> None:
    net = Net()
    [asks] = net.host.from_program(0, PROGRAM, b"hello")
    assert arp.parse(asks[14:]) == arp.Arp(arp.REQUEST, HOST_MAC, HOST, bytes(6), GUEST)
    tells = arp_frame(MAC, GUEST, HOST, operation=arp.REPLY, to=HOST_MAC)
    [frame] = net.answer(tells)
    packet, datagram = udp_of(frame)
    assert frame[:6] == MAC
    assert (packet.source, packet.destination) == (HOST, GUEST)
    assert (datagram.destination_port, datagram.payload) == (9, b"hello")
    [frame] = net.host.from_program(0, PROGRAM, b"again")
    assert udp_of(frame)[1] == ipv4.Datagram(datagram.source_port, 9, b"again")
    back = udp_frame(HOST_MAC, MAC, GUEST, HOST, (9, datagram.source_port), b"answer")
    assert net.answer(back) == []
    assert net.to_programs == [(0, PROGRAM, b"answer")]


@pytest.mark.parametrize(
    ("source", "ports"),
    [(OTHER, (9, FIRST_PORT)), (GUEST, (10, FIRST_PORT)), (GUEST, (9, FIRST_PORT + 1))],
)
def test_only_who_was_asked_reaches_a_program(source: bytes, ports: tuple[int, int]) -> None:
    net = Net()
    net.host.from_program(0, PROGRAM, b"hello")
    net.answer(udp_frame(HOST_MAC, MAC, source, HOST, ports, b"spoofed"))
    assert net.to_programs == []


def test_a_guest_that_is_not_there_is_asked_for_now_and_then() -> None:
    net = Net()
    sent = [net.host.from_program(0, PROGRAM, b"x") for _ in range(MAX_WAITING + 3)]
    assert [len(frames) for frames in sent] == [1] + [0] * (MAX_WAITING + 2)
    assert sum(net.host.dropped.values()) == 3
    net.now_ns = ASK_AGAIN_NS
    assert len(net.host.from_program(0, PROGRAM, b"x")) == 1
    assert len(net.answer(arp_frame(MAC, GUEST, OTHER))) == MAX_WAITING, "whatever it asks for"
    net.now_ns += NEIGHBOUR_NS
    frames = net.host.from_program(0, PROGRAM, b"x")
    assert [one[:6] for one in frames] == [MAC, ethernet.BROADCAST], "a guest may have moved"


def test_a_datagram_that_needs_fragments_is_dropped_and_counted() -> None:
    net = Net()
    assert net.host.from_program(0, PROGRAM, bytes(1473)) == []
    assert net.host.dropped == {"a datagram too large for a frame": 1}


def test_programs_have_ports_of_their_own_and_the_silent_ones_lose_theirs() -> None:
    sent: list[tuple[int, Program, bytes]] = []
    target = ForwardTarget(GUEST, 9)
    forwards = UdpForwards([target, target], lambda *one: sent.append(one))
    programs = [(number % 2, ("127.0.0.1", number)) for number in range(MAX_PROGRAMS)]
    ports = [forwards.port_of(*program) for program in programs]
    assert len(set(ports)) == MAX_PROGRAMS
    assert max(ports) <= 65535
    assert forwards.port_of(*programs[0]) == ports[0]
    newcomer = (0, ("127.0.0.2", 1))
    assert forwards.port_of(*newcomer) == ports[1]
    for port in ports[:3]:
        forwards.to_program(GUEST, ipv4.Datagram(9, port, b"x"))
    assert sent == [(*one, b"x") for one in (programs[0], newcomer, programs[2])]


# -- DHCP -----------------------------------------------------------------------------------------


def test_a_station_is_offered_an_address_and_gets_it(tmp_path: Path) -> None:
    net = Net()
    [offer] = net.answer(dhcp_frame(MAC, DISCOVER))
    packet, datagram = udp_of(offer)
    address = datagram.payload[16:20]
    assert (offer[:6], packet.destination) == (MAC, address)
    assert address[:3] == HOST[:3]
    options = {50: address, 54: HOST}
    [ack] = net.answer(dhcp_frame(MAC, REQUEST, options=options, flags=0x8000))
    assert ack[:6] == ethernet.BROADCAST
    text = "\n".join(tcpdump([offer, ack], tmp_path / "a.pcap", "-vv"))
    shown = ".".join(map(str, address))
    assert text.count("[udp sum ok] BOOTP/DHCP, Reply, length") == 2
    for word in ("xid 0x4d2", f"Your-IP {shown}", "Subnet-Mask", "255.255.255.0", "10.0.0.1"):
        assert text.count(word) >= 2, word
    assert "DHCP-Message (53), length 1: Offer" in text
    assert "DHCP-Message (53), length 1: ACK" in text
    assert f"Lease-Time (51), length 4: {LEASE_S}" in text


def test_a_station_finds_its_address_again_in_any_run_and_order() -> None:
    macs = [bytes((0, 0x16, 0x3E, 0, 0, last)) for last in range(3)]
    first, second = Net(), Net()
    there = [first.ask_dhcp(mac, DISCOVER) for mac in macs]
    assert [second.ask_dhcp(mac, DISCOVER) for mac in reversed(macs)] == there[::-1]
    assert len(set(there)) == 3
    answer = there[0]
    assert answer is not None
    assert second.ask_dhcp(macs[0], REQUEST, answer[1]) == (ACK, answer[1])


def test_another_address_than_the_stations_is_refused() -> None:
    net = Net()
    assert net.ask_dhcp(MAC, REQUEST, bytes((10, 0, 1, 9))) == (NAK, bytes(4))
    assert net.ask_dhcp(MAC, REQUEST, HOST) == (NAK, bytes(4))


def test_what_is_for_another_server_or_through_a_relay_is_not_answered() -> None:
    net = Net()
    assert net.ask_dhcp(MAC, REQUEST, GUEST, server=OTHER) is None
    assert net.answer(dhcp_frame(MAC, DISCOVER, relay=OTHER)) == []
    assert net.answer(dhcp_frame(MAC, DISCOVER, chaddr=OTHER_MAC)) == []
    assert net.answer(dhcp_frame(MAC, RELEASE)) == []
    assert net.host.leases.address(MAC) is None


def test_a_flood_of_stations_ends_with_the_addresses_and_takes_none_that_is_reserved() -> None:
    net = Net("10.0.0.1/28")
    reserved = net.host.leases.reserve(OTHER_MAC, None)
    assert reserved is not None
    flood = [bytes((2, 0, 0, 0, number >> 8, number & 255)) for number in range(1000)]
    got = [answer[1] for mac in flood if (answer := net.ask_dhcp(mac, DISCOVER)) is not None]
    assert len(set(got)) == len(got) == 14 - 2
    assert reserved.packed not in got
    assert HOST not in got
    assert net.ask_dhcp(OTHER_MAC, DISCOVER) == (OFFER, reserved.packed)
    net.now_ns = OFFER_S * 10**9
    assert net.ask_dhcp(flood[-1], DISCOVER) is not None, "an offer's time is over"


def test_a_flood_where_no_address_is_free_searches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases(IPv4Interface("10.0.0.1/16"))
    flood = [b"\2" + number.to_bytes(5, "big") for number in range(MAX_ADDRESSES + 200)]
    for mac in flood[:MAX_ADDRESSES]:
        leases.lease(mac, 0, 60)
    looks = 0
    is_free = Leases._is_free

    def count(self: Leases, number: int, now_ns: int | None) -> bool:
        nonlocal looks
        looks += 1
        return is_free(self, number, now_ns)

    monkeypatch.setattr(Leases, "_is_free", count)
    for mac in flood[MAX_ADDRESSES:]:
        assert leases.lease(mac, 1, 60) is None
        assert leases.lease(flood[0], 1, 60) is not None, "one that has its own goes on with it"
    assert looks <= MAX_ADDRESSES
    leases.release(flood[5])
    assert leases.lease(flood[-1], 1, 60) is not None
    assert leases.lease(flood[-2], 1, 60) is None
    assert leases.lease(flood[-2], 60 * 10**9, 60) is not None, "a lease's time is over"


def test_a_reservation_is_for_one_and_of_this_network() -> None:
    leases = Net().host.leases
    wished = IPv4Address("10.0.0.77")
    assert leases.lease(OTHER_MAC, 0, 60) is not None
    assert leases.reserve(MAC, wished) == wished
    for other in ("10.0.0.77", "10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.5"):
        assert leases.reserve(OTHER_MAC, IPv4Address(other)) is None
    leases.release(MAC)
    assert leases.reserve(OTHER_MAC, wished) == wished
    assert leases.owner(wished) == OTHER_MAC


# -- hostile frames -------------------------------------------------------------------------------


def damaged(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


GOOD = [
    arp_frame(MAC, GUEST, HOST),
    ip_frame(HOST_MAC, MAC, GUEST, HOST, 1, b"\x08\x00\xf7\xff" + bytes(8)),
    udp_frame(HOST_MAC, MAC, GUEST, HOST, (1000, 7), b"hello"),
    dhcp_frame(MAC, DISCOVER, options={50: GUEST, 54: HOST}),
    dhcp_frame(MAC, REQUEST, options={50: GUEST}),
]


@pytest.mark.parametrize("frame", GOOD[:4])
def test_what_is_damaged_below_is_answered_where_it_is_whole(frame: bytes) -> None:
    assert len(Net().answer(frame)) == 1
    for size in range(14, len(frame)):
        assert Net().answer(frame[:size]) == []


@pytest.mark.parametrize("frame", GOOD[1:4])
def test_one_wrong_byte_of_a_packet_is_found_out(frame: bytes) -> None:
    for at in range(14, len(frame)):
        net = Net()
        assert net.answer(damaged(frame, at, frame[at] ^ 0x55)) == []
        assert sum(net.host.dropped.values()) == 1


@pytest.mark.parametrize(("fragment", "answers"), [(0x2000, 0), (0x0001, 0), (0x4000, 1), (0, 1)])
def test_fragments_are_dropped(fragment: int, answers: int) -> None:
    frame = bytearray(GOOD[2])
    frame[20:22] = fragment.to_bytes(2, "big")
    frame[24:26] = bytes(2)
    frame[24:26] = ipv4.checksum(bytes(frame[14:34])).to_bytes(2, "big")
    assert len(Net().answer(bytes(frame))) == answers


def test_ip_options_are_passed_over() -> None:
    packet = bytearray(GOOD[2][14:34]) + b"\x01\x01\x01\x00" + GOOD[2][34:]
    packet[0] = 0x46
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = ipv4.checksum(bytes(packet[:24])).to_bytes(2, "big")
    [answer] = Net().answer(GOOD[2][:14] + bytes(packet))
    assert udp_of(answer)[1].payload == b"hello"


def test_a_udp_checksum_of_zero_stands_for_none() -> None:
    frame = bytearray(GOOD[2])
    frame[40:42] = bytes(2)
    assert len(Net().answer(bytes(frame))) == 1


def with_sums(frame: bytes) -> bytes:
    """Make IP's checksum right and leave UDP's out, so that what is below is looked at."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 42:
        return frame
    whole = bytearray(frame)
    if whole[23] == 17:
        whole[40:42] = bytes(2)
    whole[24:26] = bytes(2)
    whole[24:26] = ipv4.checksum(bytes(whole[14:34])).to_bytes(2, "big")
    return bytes(whole)


CHANGES = st.lists(st.tuples(st.integers(14, 330), st.integers(0, 255)), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(GOOD), CHANGES, st.integers(14, 400)), max_size=10))
def test_nothing_that_a_frame_holds_makes_it_fail(
    given: list[tuple[bytes, list[tuple[int, int]], int]],
) -> None:
    net = Net("10.0.0.1/28")
    for frame, changes, size in given:
        changed = frame
        for at, value in changes:
            if at < len(changed):
                changed = damaged(changed, at, value)
        answers = net.answer(with_sums(changed[:size]))
        assert len(answers) <= 1
        assert all(one[6:12] == HOST_MAC for one in answers)
    assert len(net.host.leases._by_mac) == len(net.host.leases._owners) <= 14
    assert len(net.host.dropped) < 20, "counted by what was wrong, not by what was sent"


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd"]))
def test_nor_does_noise(noise: bytes, ethertype: bytes) -> None:
    Net().answer(HOST_MAC + MAC + ethertype + noise)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_the_checksum_is_the_one_that_words_add_up_to(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert ipv4.checksum(data) == ~total & 0xFFFF
