# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that exchange packets over a bridge, for ``bench_packets.py``; and what the floor does.

They are domains of ``bench_packets.s`` with real grants, ports and rings; bridge and service host
are as the toolstack makes them. XenStore has no part in it, so nothing of it is in the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from struct import pack
from time import perf_counter_ns
from typing import Final

from tests.support.guest import BootedGuest, add_guest
from tests.support.shared_page import SharedPage
from tools.bench_front import front
from xenlite.abi.x86_32p import SRING_REQ_PROD
from xenlite.dom0 import ethernet, ipv4
from xenlite.dom0.netback import MOST_AT_ONCE, NetCounters, NetRings, Offer
from xenlite.dom0.netif import DEFAULT_MTU, RX_RING, TX_RING, frame_limit
from xenlite.dom0.service_host import ECHO_PORT
from xenlite.dom0.slot_ring import PAGE_SIZE, BackRing, Shape
from xenlite.dom0.switch import Bridge
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.network_config import default_interface
from xenlite.toolstack.networks import Networks
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.vif_config import service_mac

KERNEL: Final = front(Path(__file__).with_name("bench_packets.s"))
RING: Final = TX_RING.slots
TX_RING_REF, RX_RING_REF, TX_REF, RX_REF = 8, 9, 16, 16 + RING
HEADERS: Final = ethernet.HEADER_BYTES + ipv4.HEADER_BYTES + ipv4.UDP_HEADER_BYTES
SMALL, LARGE = 64, DEFAULT_MTU + ethernet.HEADER_BYTES
TEMPLATE: Final = 64
GUEST_MB: Final = 5
WINDOW: Final = 512  # both rings full
STEP: Final = 64
LIMIT_S: Final = 120
GOOD_END: Final = 1  # the reason that the guests give
BRIDGE: Final = "xenbr0"
HOST: Final = 1  # stations are numbered; so end their addresses
FIRST_GUEST: Final = 2
UDP_PORT: Final = 5000
ClockNs = Callable[[], int]


class Way(StrEnum):
    """Where frames go."""

    STREAM = "guest to guest"
    HOST = "guest to host and back"
    PING = "ping of a guest"
    HOST_PING = "ping of the host"


@dataclass(frozen=True, slots=True)
class Case:
    """One way, with frames of ``size`` bytes, by so many pairs of guests at once."""

    way: Way
    size: int
    pairs: int = 1

    @property
    def is_with_host(self) -> bool:
        """Tell whether the host is at the other end."""
        return self.way in (Way.HOST, Way.HOST_PING)

    @property
    def window(self) -> int:
        """Return how many frames may be on their way."""
        return 1 if self.way in (Way.PING, Way.HOST_PING) else WINDOW

    @property
    def step(self) -> int:
        """Return of how many frames one comes back."""
        return STEP if self.way is Way.STREAM else 1

    @property
    def about(self) -> str:
        """Describe it in a line."""
        pairs = f"{self.pairs} pairs" if self.pairs > 1 else ""
        return " ".join(filter(None, (self.way.value, f"{self.size} bytes", pairs)))


class Station:
    """A guest with its rings at the bridge."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        bridge: Bridge,
        number: int,
        template: bytes,
        defines: dict[str, int],
        undo: ExitStack,
        kernel: str = KERNEL,
    ) -> None:
        guest = add_guest(
            hypervisor, kernel, undo, name=f"g{number}", memory_mb=GUEST_MB, defines=defines
        )
        self.guest: BootedGuest = guest
        self.counters = NetCounters()
        guest.domain.grants.grow(2)
        for ref, label in ((TX_RING_REF, "tx"), (RX_RING_REF, "rx")):
            self._offer(ref, label, 0)
        for page in range(RING):
            self._offer(TX_REF + page, "tx_data", page)
            self._offer(RX_REF + page, "rx_data", page)
        guest.control.write_virtual(guest.domid, 0, guest.symbols["template"], template)
        guest.control.unpause(guest.domid)
        assert guest.run(20, lambda: guest.word("port") != 0), guest.crash
        guest.run(0.01, lambda: False)  # it polls by now
        self._link = hypervisor.link(0)
        self._start = self._link.bind_interdomain(guest.domid, guest.word("offered_start", 1))
        undo.callback(self._link.close, self._start)
        plug = bridge.plug(f"vif{number}.0", self, mac(number))
        port = guest.word("port")
        self.rings = NetRings(
            self._link,
            Offer(
                guest.domid,
                TX_RING_REF,
                RX_RING_REF,
                port,
                port,
                takes_chains=False,
                tells_of_room=True,
                filters_groups=False,
            ),
            self.counters,
            frame_limit=frame_limit(DEFAULT_MTU),
            limit=None,
            send=plug.send,
            broken=_broken,
        )
        undo.callback(self.rings.close, lambda: None)
        self.rings.start()

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take what the bridge brings."""
        self.rings.deliver(frames)

    def begin(self) -> None:
        """Let the guest do what it is there for."""
        self._link.notify(self._start)

    @property
    def end(self) -> int | None:
        """Return why it has ended, if it has; cheap, because the loop asks each time round."""
        return self.guest.domain.shutdown_reason

    def page_maddr(self, label: str, page: int) -> int:
        """Return where in the machine a page of its is."""
        vaddr = self.guest.symbols[label] + page * PAGE_SIZE
        maddr = self.guest.control.translate(self.guest.domid, 0, vaddr)
        assert maddr is not None, hex(vaddr)
        return maddr

    def _offer(self, ref: int, label: str, page: int) -> None:
        mfn = self.page_maddr(label, page) // PAGE_SIZE
        self.guest.control.seed_grant(self.guest.domid, ref, mfn, 0)


class Run:
    """The guests of one case, connected and waiting."""

    def __init__(self, case: Case, count: int, undo: ExitStack, *, check: bool) -> None:
        self.case = case
        self.count = count
        self.hypervisor = Hypervisor((2 * case.pairs * (GUEST_MB + 1) + 8) << 20)
        undo.callback(self.hypervisor.close)
        bridge = self._make_bridge(undo)
        self.senders: list[Station] = []
        self.takers: list[Station] = []
        for pair in range(case.pairs):
            here = FIRST_GUEST + 2 * pair
            there = HOST if case.is_with_host else here + 1
            if there != HOST:
                self.takers.append(
                    self._station(bridge, there, here, undo, sends=False, check=check)
                )
            self.senders.append(self._station(bridge, here, there, undo, sends=True, check=check))
        self.stations = [*self.takers, *self.senders]
        self.of_share = 1.0

    def _make_bridge(self, undo: ExitStack) -> Bridge:
        link = self.hypervisor.link(0)
        poller = Poller(link)
        undo.callback(poller.close)
        networks = Networks(link, poller, self.hypervisor.machine.clock.wall_ns, print)
        undo.callback(networks.close)
        return networks.network(BRIDGE).bridge

    def _station(
        self, bridge: Bridge, number: int, to: int, undo: ExitStack, *, sends: bool, check: bool
    ) -> Station:
        case = self.case
        defines = {
            "SENDS": int(sends),
            "COUNT": self.count,
            "SIZE": case.size,
            "WINDOW": case.window,
            "STEP": case.step,
            "CHECK": int(check),
        }
        headers = template(number, to, case.size)
        return Station(self.hypervisor, bridge, number, headers, defines, undo)

    def time_ns(self, clock_ns: ClockNs = perf_counter_ns) -> int:
        """Let the guests do it all."""
        shares: list[int] = []

        def done() -> bool:
            ends = [station.end for station in self.stations]
            ended = sum(station.end is not None for station in self.senders)
            if ended and not shares:
                shares.extend(sender.counters.tx_packets for sender in self.senders)
            return ended == len(self.senders) or any(end not in (None, GOOD_END) for end in ends)

        begun = clock_ns()
        for station in self.stations:
            station.begin()
        deadline_ns = self.hypervisor.machine.clock.monotonic_ns() + LIMIT_S * 10**9
        finished = self.hypervisor.run(done, deadline_ns)
        spent = clock_ns() - begun
        assert finished, [one.counters for one in self.stations]
        for station in self.stations:
            assert station.end in (None, GOOD_END), (station.end, station.guest.crash)
            assert station.counters.rx_dropped == 0
        self.of_share = min(shares) * len(shares) / sum(shares)
        return spent

    @property
    def counters(self) -> list[NetCounters]:
        """What has passed each card."""
        return [one.counters for one in self.stations]

    @property
    def packets(self) -> int:
        """How many frames there are in all; one that comes back counts once."""
        return self.count * self.case.pairs

    def floor_ns(self, clock_ns: ClockNs) -> int:
        """Copy the same bytes between the same pages, and move slots through rings for nothing.

        A frame is copied as often as it goes from one to another: a frame that comes back, twice.
        """
        memory, case = self.hypervisor.machine.memory.m8, self.case
        sender, taker = self.senders[0], self.stations[0]
        at_once = min(case.window, MOST_AT_ONCE)
        copies = self.packets * (2 if case.step == 1 else 1)
        pages = [
            (
                sender.page_maddr("tx_data", n),
                taker.page_maddr("rx_data", n),
            )
            for n in range(RING)
        ]
        views = [(memory[a : a + case.size], memory[b : b + case.size]) for a, b in pages]
        rings = [IdleRing(TX_RING), IdleRing(RX_RING)]
        begun = clock_ns()
        for n in range(copies):
            source, target = views[n % RING]
            target[:] = source
        for _ in range(-(-copies // at_once)):
            for ring in rings:
                ring.turn(at_once)
        return clock_ns() - begun


class IdleRing:
    """A ring whose requests are answered and nothing else."""

    def __init__(self, shape: Shape) -> None:
        self._page = SharedPage()
        self._ring = BackRing(self._page, shape)
        self._asked = 0

    def turn(self, slots: int) -> None:
        """Take requests, and put answers of the same size in."""
        self._asked += slots
        self._page.write_u32(SRING_REQ_PROD, self._asked)
        self._ring.put_slots(self._ring.take_slots(self._ring.waiting()))
        self._ring.publish()
        self._ring.has_more()


def mac(number: int) -> bytes:
    """Return the address of a station."""
    return service_mac(BRIDGE) if number == HOST else bytes((0, 0x16, 0x3E, 0, 0, number))


def template(number: int, to: int, size: int) -> bytes:
    """Return the first words of each frame that a guest sends, to another's echo port."""
    network = default_interface(BRIDGE).network
    source, target = (network[station].packed for station in (number, to))
    payload = bytes(size - HEADERS)
    udp = pack(">HHHH", UDP_PORT, ECHO_PORT, ipv4.UDP_HEADER_BYTES + len(payload), 0) + payload
    packet = ipv4.build(ipv4.Packet(source, target, ipv4.PROTOCOL_UDP, udp))
    return ethernet.build(mac(to), mac(number), ethernet.ETHERTYPE_IPV4, packet)[:TEMPLATE]


def _broken(error: PeerError) -> None:
    raise error
