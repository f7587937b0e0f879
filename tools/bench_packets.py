# SPDX-License-Identifier: GPL-2.0-or-later
"""Time packets from guest to guest and from a guest to the host, and round trips.

Each guest is a frontend in a page of assembly (``bench_packets.s``); its packets go through the
real backends and bridge. *Floor*: the same bytes copied out of and into the same scattered pages by
Python, and nothing else. Packets that find a queue full are dropped, and don't count as packets.
``tools/bench packets``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Final, Protocol

from tests.support.guest import BootedGuest, add_guest
from tests.support.guests import SMP
from xenlite.abi.x86_32p import NETIF_TX_RING_SIZE
from xenlite.dom0.ethernet import build
from xenlite.dom0.netback import NetCounters, NetRings, Offer
from xenlite.dom0.netif import DEFAULT_MTU, frame_limit
from xenlite.dom0.switch import Bridge
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor

KERNEL: Final = Path(__file__).with_name("bench_packets.s")
PAGE: Final = 4096
HEADER: Final = 14
RING_REFS: Final = (8, 9)
TX_REF, RX_REF = 16, 272  # as in the kernel
SEND, RECEIVE, PING, ECHO = range(4)
HOST_MAC: Final = bytes.fromhex("00163e0000fe")
ETHERTYPE: Final = 0x88B5  # for local experiments
LIMIT_NS: Final = 120 * 10**9
_WITHOUT_END: Final = 1 << 30  # packets
_START: Final = "start:\n    mov eax, [esi + START_INFO_MFN_LIST]\n    mov [p2m], eax\n"
REACH_PER_S: Final = {64: 75_000, 1500: 60_000}
REACH_PER_EVENT: Final = 8
REACH_ROUND_TRIP_US: Final = 60
REACH_SHARE: Final = 0.1  # that pairs may differ


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: packets of ``size`` bytes, of which a frame's header is none if large."""

    size: int
    to_host: bool = False
    round_trip: bool = False
    pairs: int = 1

    @property
    def about(self) -> str:
        """Describe it in a line."""
        way = "guest to host" if self.to_host else "guest to guest"
        pairs = f", {self.pairs} pairs" if self.pairs > 1 else ""
        return f"{way}{' and back' if self.round_trip else ''}, {self.size} bytes{pairs}"

    @property
    def frame(self) -> int:
        """Return the size of a frame: 1,500 bytes are an IP packet's, 64 the whole."""
        return self.size + (HEADER if self.size == DEFAULT_MTU else 0)


@dataclass(frozen=True, slots=True)
class Result:
    """What a case reached; ``spread`` is how far the slowest pair was behind the fastest."""

    about: str
    packets_per_s: float
    floor_per_s: float
    round_trip_us: float | None
    per_event: float
    per_notification: float
    dropped: float
    spread: float
    missed: tuple[str, ...]


CASES: Final = (
    *(Case(size, to_host) for size in (64, 1500) for to_host in (False, True)),
    *(Case(64, to_host, round_trip=True) for to_host in (False, True)),
    *(Case(1500, pairs=pairs) for pairs in (2, 4, 8)),
)


class End(Protocol):
    """One end of a pair: a guest's card, or the host."""

    mac: bytes

    def received(self) -> int:
        """Count what has arrived there."""


class Host:
    """The host as a station: it counts, or sends back what it gets."""

    def __init__(self, hypervisor: Hypervisor, bridge: Bridge, *, echoes: bool) -> None:
        self.mac = HOST_MAC
        self._plug = bridge.plug("host", self, self.mac)
        self._defer = hypervisor.link(0).defer
        self._echoes = echoes
        self._received = 0

    def received(self) -> int:
        """Count what has arrived."""
        return self._received

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take frames; answers go out later, for nobody sends while he gets."""
        self._received += len(frames)
        if self._echoes:
            back = [frame[6:12] + frame[:6] + frame[12:] for frame in frames]
            self._defer(lambda: self._plug.send(back))


class Card:
    """One guest with one card, which does what its role says."""

    def __init__(
        self, hypervisor: Hypervisor, bridge: Bridge, case: Case, role: int, count: int
    ) -> None:
        self._hypervisor = hypervisor
        self._frame = case.frame
        self._count = count
        self.role = role
        self.counters = NetCounters()
        number = len(bridge.plugs)
        self.mac = bytes((0, 0x16, 0x3E, 0, 0, number))
        self._plug = bridge.plug(f"card{number}", self, self.mac)
        self._guest: BootedGuest
        self._rings: NetRings
        self._received_at = 0

    def boot(self, undo: ExitStack) -> None:
        """Let the guest come up to where it waits for its backend."""
        count = _WITHOUT_END if self.role == RECEIVE else self._count
        defines = {"ROLE": self.role, "COUNT": count, "SIZE": self._frame}
        source = SMP + _START + KERNEL.read_text()
        guest = add_guest(self._hypervisor, source, undo, memory_mb=8, defines=defines)
        self._guest = guest
        guest.domain.grants.grow(2)
        for ref, label in zip(RING_REFS, ("tx", "rx"), strict=True):
            self._offer(ref, label, 0)
        for n in range(NETIF_TX_RING_SIZE):
            self._offer(TX_REF + n, "sending", n)
            self._offer(RX_REF + n, "receiving", n)
        guest.control.unpause(guest.domid)
        assert guest.run(20, lambda: guest.word("port") != 0), guest.crash
        guest.run(0.01, lambda: False)  # it polls by now
        self._received_at = self.maddr("received", 0) >> 2

    def connect(self, peer: bytes, undo: ExitStack) -> None:
        """Write the frames that the guest sends, and join its rings."""
        content = build(peer, self.mac, ETHERTYPE, bytes(self._frame - HEADER))
        memory = self._hypervisor.machine.memory
        for n in range(NETIF_TX_RING_SIZE):
            memory.write(self.maddr("sending", n), content)
        port = self._guest.word("port")
        self._rings = NetRings(
            self._hypervisor.link(0),
            Offer(
                self._guest.domid,
                *RING_REFS,
                port,
                port,
                takes_chains=False,
                tells_of_room=True,
                filters_groups=False,
            ),
            self.counters,
            frame_limit=frame_limit(DEFAULT_MTU),
            rate=None,
            send=self._plug.send,
            broken=_broken,
        )
        undo.callback(self._rings.close, lambda: None)

    def start(self) -> None:
        """Serve the rings, and tell the guest."""
        self._rings.start()
        self._hypervisor.link(0).notify(self._rings.tx_port)

    def received(self) -> int:
        """Count what the guest has taken."""
        return self._hypervisor.machine.memory.m32[self._received_at]

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take what the bridge brings."""
        self._rings.deliver(frames)

    def maddr(self, label: str, page: int) -> int:
        """Find a page of the guest."""
        vaddr = self._guest.symbols[label] + page * PAGE
        maddr = self._guest.control.translate(self._guest.domid, 0, vaddr)
        assert maddr is not None, hex(vaddr)
        return maddr

    def _offer(self, ref: int, label: str, page: int) -> None:
        self._guest.control.seed_grant(self._guest.domid, ref, self.maddr(label, page) >> 12, 0)


class Run:
    """All pairs of a case on one bridge."""

    def __init__(self, case: Case, count: int, undo: ExitStack) -> None:
        self._count = count
        self.hypervisor = Hypervisor((24 + 24 * case.pairs) << 20)
        undo.callback(self.hypervisor.close)
        bridge = Bridge("bench", self.hypervisor.link(0).now_ns)
        self.pairs: list[tuple[Card, End]] = []
        cards: list[tuple[Card, End]] = []
        for _ in range(case.pairs):
            role = PING if case.round_trip else SEND
            sender = Card(self.hypervisor, bridge, case, role, count)
            other: Card | Host
            if case.to_host:
                other = Host(self.hypervisor, bridge, echoes=case.round_trip)
            else:
                role = ECHO if case.round_trip else RECEIVE
                other = Card(self.hypervisor, bridge, case, role, count)
                cards.append((other, sender))
            cards.append((sender, other))
            self.pairs.append((sender, other))
        for card, _ in cards:
            card.boot(undo)
        for card, peer in cards:
            card.connect(peer.mac, undo)
        for card, _ in cards:
            card.start()

    def time_ns(self) -> int:
        """Let every packet get to where it goes, or be dropped."""
        begun = perf_counter_ns()
        clock = self.hypervisor.machine.clock
        finished = self.hypervisor.run(self._is_done, clock.monotonic_ns() + LIMIT_NS)
        spent = perf_counter_ns() - begun
        assert finished, [sender.counters for sender, _ in self.pairs]
        return spent

    def _is_done(self) -> bool:
        """Tell whether the first pair has done all; several share the machine until then."""
        sender, other = self.pairs[0]
        if sender.role == PING:
            return sender.received() >= self._count
        return other.received() + dropped_at(other) >= self._count


def dropped_at(end: End) -> int:
    """Count what was dropped before an end."""
    return end.counters.rx_dropped if isinstance(end, Card) else 0


def floor_ns(run: Run, case: Case, count: int) -> int:
    """Copy the same bytes out of the sender's pages and into the receiver's."""
    sender, other = run.pairs[0]
    into = other if isinstance(other, Card) else sender
    memory, size, pages = run.hypervisor.machine.memory, case.frame, NETIF_TX_RING_SIZE
    starts = [(sender.maddr("sending", n), into.maddr("receiving", n)) for n in range(pages)]
    m8 = memory.m8
    begun = perf_counter_ns()
    for n in range(count):
        source, target = starts[n % pages]
        m8[target : target + size] = bytes(m8[source : source + size])
    return perf_counter_ns() - begun


def measure(case: Case, rounds: int, scale: float) -> Result:
    """Time a case."""
    count = max(64, int((4_000 if case.round_trip else 60_000) * scale / case.pairs))
    rates, floors, drops, spreads, events, notifications, passed = [], [], [], [], 0, 0, 0
    for _ in range(rounds):
        with ExitStack() as undo:
            run = Run(case, count, undo)
            floors.append(count * 1e9 / floor_ns(run, case, count))
            spent_ns = run.time_ns()
            got = [other.received() for _, other in run.pairs]
            rates.append(sum(got) * 1e9 / spent_ns)
            lost = sum(dropped_at(other) for _, other in run.pairs)
            drops.append(lost / (sum(got) + lost))
            spreads.append(1 - min(got) / max(got))
            senders = [sender.counters for sender, _ in run.pairs]
            ends = [other.counters for _, other in run.pairs if isinstance(other, Card)] or senders
            events = sum(counters.events for counters in senders)
            notifications = sum(counters.notifications for counters in ends)
            passed = sum(got)
    result = Result(
        case.about,
        packets_per_s=median(rates),
        floor_per_s=median(floors),
        round_trip_us=1e6 / median(rates) if case.round_trip else None,
        per_event=passed / max(events, 1),
        per_notification=passed / max(notifications, 1),
        dropped=median(drops),
        spread=median(spreads),
        missed=(),
    )
    return Result(**{**asdict(result), "missed": missed(case, result)})


def missed(case: Case, result: Result) -> tuple[str, ...]:
    """Name the bars that a result does not reach."""
    bars: list[tuple[str, Callable[[], bool]]] = [
        ("packets", lambda: result.packets_per_s >= REACH_PER_S[case.size]),
        ("events", lambda: min(result.per_event, result.per_notification) >= REACH_PER_EVENT),
    ]
    if result.round_trip_us is not None:
        trip_us = result.round_trip_us
        bars = [("round trip", lambda: trip_us < REACH_ROUND_TRIP_US)]
    elif case.pairs > 1:
        bars = [("share", lambda: result.spread <= REACH_SHARE)]
    return tuple(name for name, is_reached in bars if not is_reached())


def table(results: Sequence[Result]) -> str:
    """Lay the results out; * marks a bar that is missed, and the last column says which."""
    lines = [
        f"{'packets':44} {'a second':>9} {'floor':>9} {'of it':>6} {'trip us':>8} {'per event':>10}"
        f" {'per answer':>10} {'dropped':>8} {'spread':>7}"
    ]
    lines += [
        f"{one.about:44} {one.packets_per_s:9.0f} {one.floor_per_s:9.0f}"
        f" {one.packets_per_s / one.floor_per_s:6.2f}"
        f" {'' if one.round_trip_us is None else f'{one.round_trip_us:.0f}':>8}"
        f" {one.per_event:10.1f} {one.per_notification:10.1f} {one.dropped:8.3f} {one.spread:7.2f}"
        f" {'* ' + ', '.join(one.missed) if one.missed else ''}".rstrip()
        for one in results
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench packets", description="Time packets of guests."
    )
    parser.add_argument("words", nargs="*", help="words that a case must have, e.g. '64 bytes'")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1, help="of the number of packets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    chosen = [case for case in CASES if all(word in case.about for word in options.words)]
    results = [measure(case, options.rounds, options.scale) for case in chosen]
    if options.json:
        print(json.dumps([asdict(one) for one in results], indent=2))
    else:
        print(table(results))
    return 0


def _broken(error: PeerError) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
