# SPDX-License-Identifier: GPL-2.0-or-later
"""The host that every network has: frames in, answers out.

It answers ARP for its address, ping, DHCP, and UDP on port 7 with what was sent. For programs of
the real host it is the guests' peer: a datagram of theirs for a forward goes out from its address
and a port that stands for the program, and what the guest sends to that port goes back.

Pure: no sockets, no timers. Nothing that a frame holds makes it fail; what makes no sense is
counted and dropped, and so are fragments. All that it remembers is bounded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Final

from xenlite.dom0 import arp, dhcp, ethernet, ipv4
from xenlite.dom0.leases import LEASE_S, OFFER_S, Leases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.dom0.udp_forwards import Program, UdpForwards

ECHO_PORT: Final = 7
MAX_WAITING: Final = 8  # datagrams for a guest whose MAC is being asked for
ASK_AGAIN_NS: Final = 10**9
NEIGHBOUR_NS: Final = 60 * 10**9  # then it is asked for again


@dataclass(slots=True)
class _Neighbour:
    """A guest that forwards lead to: its MAC, once it has told it, and what waits for that."""

    mac: bytes | None
    asked_ns: int
    waiting: list[bytes]


class ServiceHost:
    """One network's service host, with address ``mac`` and ``interface``."""

    def __init__(
        self,
        mac: bytes,
        interface: IPv4Interface,
        forwards: UdpForwards,
        now_ns: Callable[[], int],
    ) -> None:
        self.mac = mac
        self.leases = Leases(interface)
        self.dropped: Counter[str] = Counter()  # by what was wrong
        self._interface = interface
        self._address = interface.ip.packed
        self._forwards = forwards
        self._now_ns = now_ns
        self._neighbours = {
            target: _Neighbour(None, -ASK_AGAIN_NS, []) for target in forwards.guests
        }

    def answer(self, frames: Sequence[bytes]) -> list[bytes]:
        """Take frames; return those to send."""
        answers: list[bytes] = []
        for frame in frames:
            destination, source = frame[:6], frame[6:12]
            if destination not in (self.mac, ethernet.BROADCAST):
                continue
            try:
                answers += self._answer(source, frame)
            except ValueError as error:
                self.dropped[str(error)] += 1
        return answers

    def from_program(self, forward: int, program: Program, payload: bytes) -> list[bytes]:
        """Take a datagram that a program of the host has sent to a forward; return frames."""
        if len(payload) > ipv4.MAX_UDP_BYTES:
            self.dropped["a datagram too large for a frame"] += 1
            return []
        target = self._forwards.targets[forward]
        port = self._forwards.port_of(forward, program)
        packet = ipv4.build_udp(
            self._address, target.address, ipv4.Datagram(port, target.port, payload)
        )
        neighbour = self._neighbours[target.address]
        frames = []
        if neighbour.mac is not None:
            frames.append(self._ip_frame(neighbour.mac, packet))
        elif len(neighbour.waiting) < MAX_WAITING:
            neighbour.waiting.append(packet)
        else:
            self.dropped["a datagram for a guest that does not answer"] += 1
        return frames + self._ask_for(target.address, neighbour)

    # -- Ethernet -----------------------------------------------------------------------------

    def _answer(self, source: bytes, frame: bytes) -> Sequence[bytes]:
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == ethernet.ETHERTYPE_ARP:
            return self._answer_arp(source, arp.parse(frame[ethernet.HEADER_BYTES :]))
        if ethertype == ethernet.ETHERTYPE_IPV4:
            return self._answer_ip(source, ipv4.parse(frame[ethernet.HEADER_BYTES :]))
        return ()

    def _ip_frame(self, destination: bytes, packet: bytes) -> bytes:
        return ethernet.build(destination, self.mac, ethernet.ETHERTYPE_IPV4, packet)

    # -- ARP ----------------------------------------------------------------------------------

    def _answer_arp(self, source: bytes, asked: arp.Arp) -> list[bytes]:
        if asked.sender_mac != source:
            raise ValueError("ARP in another's name")
        answers = []
        neighbour = self._neighbours.get(asked.sender)
        if neighbour is not None:
            neighbour.mac = source
            answers += [self._ip_frame(source, packet) for packet in neighbour.waiting]
            neighbour.waiting.clear()
        if asked.operation == arp.REQUEST and asked.target == self._address:
            reply = arp.Arp(arp.REPLY, self.mac, self._address, source, asked.sender)
            answers.append(self._arp_frame(source, reply))
        return answers

    def _ask_for(self, address: bytes, neighbour: _Neighbour) -> list[bytes]:
        """Ask for a guest's MAC, unless that was done not long ago."""
        now_ns = self._now_ns()
        if now_ns - neighbour.asked_ns < (ASK_AGAIN_NS if neighbour.mac is None else NEIGHBOUR_NS):
            return []
        neighbour.asked_ns = now_ns
        asks = arp.Arp(arp.REQUEST, self.mac, self._address, bytes(6), address)
        return [self._arp_frame(ethernet.BROADCAST, asks)]

    def _arp_frame(self, destination: bytes, packet: arp.Arp) -> bytes:
        return ethernet.build(destination, self.mac, ethernet.ETHERTYPE_ARP, arp.build(packet))

    # -- IPv4 ---------------------------------------------------------------------------------

    def _answer_ip(self, source: bytes, packet: ipv4.Packet) -> Sequence[bytes]:
        is_ours = packet.destination == self._address
        if packet.protocol == ipv4.PROTOCOL_ICMP and is_ours:
            payload = ipv4.echo_reply(packet.payload)
            reply = ipv4.Packet(self._address, packet.source, ipv4.PROTOCOL_ICMP, payload)
            return [self._ip_frame(source, ipv4.build(reply))]
        if packet.protocol != ipv4.PROTOCOL_UDP:
            return ()
        datagram = ipv4.parse_udp(packet)
        if datagram.destination_port == dhcp.SERVER_PORT:
            return self._answer_dhcp(source, dhcp.parse_request(datagram.payload))
        if is_ours:
            return self._answer_udp(source, packet.source, datagram)
        return ()

    def _answer_udp(self, source: bytes, sender: bytes, datagram: ipv4.Datagram) -> Sequence[bytes]:
        """Echo, or hand to the program for which the port stands.

        What comes from an echo port is not echoed: two such hosts would never end.
        """
        if datagram.destination_port != ECHO_PORT:
            self._forwards.to_program(sender, datagram)
        elif datagram.source_port != ECHO_PORT:
            echo = ipv4.Datagram(ECHO_PORT, datagram.source_port, datagram.payload)
            return [self._ip_frame(source, ipv4.build_udp(self._address, sender, echo))]
        return ()

    # -- DHCP ---------------------------------------------------------------------------------

    def _answer_dhcp(self, source: bytes, request: dhcp.Request) -> Sequence[bytes]:
        if request.mac != source:
            raise ValueError("DHCP in another's name")
        if request.server not in (None, self._address):
            return ()
        match request.kind:
            case dhcp.Kind.DISCOVER:
                address = self.leases.lease(source, self._now_ns(), OFFER_S)
                if address is None:
                    raise ValueError("DHCP, and no address is free")
                return [self._dhcp_frame(request, dhcp.Kind.OFFER, address)]
            case dhcp.Kind.REQUEST:
                address = self.leases.lease(source, self._now_ns(), LEASE_S)
                wished = request.requested or request.address
                if address is None or address.packed != wished:
                    return [self._dhcp_frame(request, dhcp.Kind.NAK, None)]
                return [self._dhcp_frame(request, dhcp.Kind.ACK, address)]
            case _:  # a lease that is given up ends by itself, and its station finds it again
                return ()

    def _dhcp_frame(
        self, request: dhcp.Request, kind: dhcp.Kind, address: IPv4Address | None
    ) -> bytes:
        options = {dhcp.Option.SERVER: self._address}
        if address is not None:
            options[dhcp.Option.LEASE_SECONDS] = LEASE_S.to_bytes(4, "big")
            options[dhcp.Option.SUBNET_MASK] = self._interface.netmask.packed
        given = ipv4.ANY if address is None else address.packed
        payload = dhcp.build_reply(request, kind, given, options)
        to = request.address if request.address != ipv4.ANY else given
        is_broadcast = address is None or request.wants_broadcast
        packet = ipv4.build_udp(
            self._address,
            ipv4.BROADCAST if is_broadcast else to,
            ipv4.Datagram(dhcp.SERVER_PORT, dhcp.CLIENT_PORT, payload),
        )
        return self._ip_frame(ethernet.BROADCAST if is_broadcast else request.mac, packet)
