# SPDX-License-Identifier: GPL-2.0-or-later
"""Time network frames of guests through a bridge, and show them against a plain copy.

*Streams*: one guest sends to another, which sends back one frame of 64; several such pairs at once.
*Through the host*: the bridge's service host sends back what a guest sends to its echo port.
*Ping*: one frame at a time, there and back. *Floor*: Python copies the same bytes from page to
page, and moves as many slots through rings that nobody serves, in the same run. The order of frames
is always checked; every configuration runs once more with their contents checked.
``tools/bench packets``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from enum import Enum
from importlib import import_module
from ipaddress import IPv4Interface
from pathlib import Path
from statistics import median
from struct import pack
from time import perf_counter_ns
from typing import Final

from tests.support.guest import BootedGuest, add_guest
from tests.support.guests import SMP
from tests.support.shared_page import SharedPage
from xenlite.abi.x86_32p import SRING_REQ_PROD
from xenlite.dom0 import ethernet, ipv4
from xenlite.dom0.netback import MOST_AT_ONCE, NetCounters, NetRings, Offer
from xenlite.dom0.netif import DEFAULT_MTU, RX_RING, TX_RING, frame_limit
from xenlite.dom0.service_host import ECHO_PORT
from xenlite.dom0.service_port import ServicePort
from xenlite.dom0.slot_ring import PAGE_SIZE, BackRing, Shape
from xenlite.dom0.socket_watch import SocketWatch
from xenlite.dom0.switch import Bridge
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor

KERNEL: Final = Path(__file__).with_name("bench_packets.s")
_START: Final = "start:\n    mov eax, [esi + START_INFO_MFN_LIST]\n    mov [p2m], eax\n"
RING: Final = TX_RING.slots
TX_RING_REF, RX_RING_REF, TX_REF, RX_REF = 8, 9, 16, 16 + RING
HEADERS: Final = ethernet.HEADER_BYTES + ipv4.HEADER_BYTES + ipv4.UDP_HEADER_BYTES
SMALL, LARGE = 64, DEFAULT_MTU + ethernet.HEADER_BYTES
PAIRS: Final = (1, 2, 4, 8)
GUEST_MB: Final = 5
WINDOW: Final = 512  # both rings full
STEP: Final = 64
LIMIT_S: Final = 120
HOST: Final = IPv4Interface("10.0.0.1/24")
HOST_NUMBER: Final = 1  # stations are numbered as their addresses are
UDP_PORT: Final = 5000
CHECKED: Final = 10 * STEP

REACH_PER_S: Final = {SMALL: 75_000, LARGE: 60_000}
REACH_PER_EVENT: Final = 8
REACH_PING_US: Final = 60
REACH_SHARE: Final = 0.9  # two busy pairs within 10 % of half


class Way(Enum):
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


@dataclass(frozen=True, slots=True)
class Result:
    """What a case reached: medians over the rounds.

    A frame that comes back counts once. ``of_share`` is what the slowest of several pairs had got
    when the first was done, as a part of what all of them would have got alike.
    """

    about: str
    packets_per_s: float
    mb_per_s: float
    floor_per_s: float
    of_floor: float
    round_trip_us: float | None
    packets_per_event: float
    packets_per_notification: float
    of_share: float
    missed: tuple[str, ...]


CASES: Final = (
    *(Case(Way.STREAM, size, pairs) for size in (SMALL, LARGE) for pairs in PAIRS),
    *(Case(way, size) for way in (Way.HOST, Way.PING, Way.HOST_PING) for size in (SMALL, LARGE)),
)


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
    ) -> None:
        source = SMP + _START + KERNEL.read_text()
        guest = add_guest(
            hypervisor, source, undo, name=f"g{number}", memory_mb=GUEST_MB, defines=defines
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
            Offer(guest.domid, TX_RING_REF, RX_RING_REF, port, port, False, True, False),
            self.counters,
            frame_limit=frame_limit(DEFAULT_MTU),
            rate=None,
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

    def is_done(self) -> bool:
        """Tell whether it has ended; cheap, because the loop asks each time round."""
        return self.guest.domain.shutdown_reason is not None

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
        guests = 2 * case.pairs
        self.hypervisor = Hypervisor((guests * (GUEST_MB + 1) + 8) << 20)
        undo.callback(self.hypervisor.close)
        link = self.hypervisor.link(0)
        bridge = Bridge("xenbr0", link.now_ns)
        watch = SocketWatch(link)
        undo.callback(watch.close)
        host = ServicePort(link, bridge, watch, mac(HOST_NUMBER), HOST, [])
        undo.callback(host.close)
        self.senders: list[Station] = []
        self.takers: list[Station] = []
        for pair in range(case.pairs):
            here, there = HOST_NUMBER + 1 + 2 * pair, HOST_NUMBER + 2 + 2 * pair
            if case.is_with_host:
                there = HOST_NUMBER
            else:
                self.takers.append(
                    self._station(bridge, there, here, undo, sends=False, check=check)
                )
            self.senders.append(self._station(bridge, here, there, undo, sends=True, check=check))
        self.stations = [*self.takers, *self.senders]
        self.of_share = 1.0

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

    def time_ns(self) -> int:
        """Let the guests do it all."""
        shares: list[int] = []

        def done() -> bool:
            ended = sum(sender.is_done() for sender in self.senders)
            if ended and not shares:
                shares.extend(sender.counters.tx_packets for sender in self.senders)
            return ended == len(self.senders)

        begun = perf_counter_ns()
        for station in self.stations:
            station.begin()
        deadline_ns = self.hypervisor.machine.clock.monotonic_ns() + LIMIT_S * 10**9
        finished = self.hypervisor.run(done, deadline_ns)
        spent = perf_counter_ns() - begun
        assert finished, [one.counters for one in self.stations]
        for station in self.stations:
            assert station.guest.reason in (1, None), (station.guest.reason, station.guest.crash)
            assert station.guest.word("lost") == station.counters.rx_dropped == 0
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

    def floor_ns(self) -> int:
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
        begun = perf_counter_ns()
        for n in range(copies):
            source, target = views[n % RING]
            target[:] = source
        for _ in range(-(-copies // at_once)):
            for ring in rings:
                ring.turn(at_once)
        return perf_counter_ns() - begun


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
        self._ring.put_slots(self._ring.take_slots(slots))
        self._ring.publish()
        self._ring.has_more()


def mac(number: int) -> bytes:
    """Return the address of a station; the host is the first."""
    return bytes((0, 0x16, 0x3E, 0, 0, number))


def template(number: int, to: int, size: int) -> bytes:
    """Return the first words of each frame that a guest sends, to another's echo port."""
    source, target = (HOST.network[station].packed for station in (number, to))
    payload = bytes(size - HEADERS)
    udp = pack(">HHHH", UDP_PORT, ECHO_PORT, ipv4.UDP_HEADER_BYTES + len(payload), 0) + payload
    packet = ipv4.build(ipv4.Packet(source, target, ipv4.PROTOCOL_UDP, udp))
    return ethernet.build(mac(to), mac(number), ethernet.ETHERTYPE_IPV4, packet)[:SMALL]


def check(case: Case, count: int) -> None:
    """Run a case with every word of every frame looked at; AssertionError where one differs."""
    with ExitStack() as undo:
        Run(case, count, undo, check=True).time_ns()


def measure(case: Case, rounds: int, scale: float) -> Result:
    """Time a case."""
    base = 3_000 if case.window == 1 else 30_000 // case.pairs
    count = max(1, int(base * scale) // STEP) * STEP
    times, floors, shares, events, notifications = [], [], [], 0, 0
    for _ in range(rounds):
        with ExitStack() as undo:
            made = Run(case, count, undo, check=False)
            floors.append(made.floor_ns() / made.packets)
            times.append(made.time_ns() / made.packets)
            shares.append(made.of_share)
            events += sum(one.events for one in made.counters)
            notifications += sum(one.notifications for one in made.counters)
    packets = rounds * count * case.pairs
    spent, floor = median(times), median(floors)
    result = Result(
        case.about,
        1e9 / spent,
        case.size * 1e3 / spent,
        1e9 / floor,
        floor / spent,
        spent / 1e3 if case.window == 1 else None,
        packets / max(events, 1),
        packets / max(notifications, 1),
        median(shares),
        (),
    )
    return replace(result, missed=tuple(_missed(case, result)))


def _missed(case: Case, result: Result) -> Iterator[str]:
    """Name the bars that a result does not reach."""
    if case.way is Way.STREAM and case.pairs == 1 and result.packets_per_s < REACH_PER_S[case.size]:
        yield "packets"
    if case.way is Way.STREAM:
        if min(result.packets_per_event, result.packets_per_notification) < REACH_PER_EVENT:
            yield "events"
        if result.of_share < REACH_SHARE:
            yield "share"
    if case.way is Way.PING and (result.round_trip_us or 0) > REACH_PING_US:
        yield "ping"


def table(results: Sequence[Result]) -> str:
    """Lay the results out; * marks a bar that is missed, and the last column says which."""
    lines = [
        f"{'packets':40} {'per s':>8} {'MB/s':>7} {'floor':>9} {'of it':>6} {'us':>7}"
        f" {'per event':>10} {'per answer':>10} {'share':>6}"
    ]
    for one in results:
        trip = "" if one.round_trip_us is None else f"{one.round_trip_us:.1f}"
        lines.append(
            f"{one.about:40} {one.packets_per_s:8.0f} {one.mb_per_s:7.0f} {one.floor_per_s:9.0f}"
            f" {one.of_floor:6.2f} {trip:>7} {one.packets_per_event:10.1f}"
            f" {one.packets_per_notification:10.1f} {one.of_share:6.2f}"
            f" {'* ' + ', '.join(one.missed) if one.missed else ''}".rstrip()
        )
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw packets a second against the floor."""
    pyplot = import_module("matplotlib.pyplot")  # an extra of ours, and without types
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(results) + 1.5))
    rows = range(len(results))
    axes.barh(rows, [one.floor_per_s for one in results], color="#dddddd", label="floor")
    axes.barh(rows, [one.packets_per_s for one in results], color="#336699", label="packets")
    axes.set_yticks(rows, [one.about for one in results], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("packets per second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench packets", description="Time network frames of guests."
    )
    parser.add_argument(
        "words", nargs="*", help="words that a case must have, e.g. 'guest to guest' '64 bytes'"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1, help="of the number of packets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="draw it too (needs matplotlib)")
    options = parser.parse_args(arguments)
    chosen = [case for case in CASES if all(word in case.about for word in options.words)]
    results = []
    for case in chosen:
        check(case, CHECKED)
        results.append(measure(case, options.rounds, options.scale))
    if options.plot is not None:
        plot(results, options.plot)
    if options.json:
        print(json.dumps([asdict(one) for one in results], indent=2))
    else:
        print(table(results))
    return 0


def _broken(error: PeerError) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
