# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever floods a network pays for it: nobody else's disk, timer or CPU does.

Time is what the work costs (``WorkClock``), and each claim is about who was charged how much of it,
and what was done in it. With nothing charged to those that backends work for, every test here that
reads ``charged`` fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.flood import DEPTH, EVERYBODY, SPINNER, TICK_NS, TICKER, DiskUser, Machine
from tests.support.guest import BootedGuest
from tools.bench_packets_run import HOST, LARGE, SMALL
from xenlite.abi.x86_32p import BLKIF_OP_WRITE
from xenlite.dom0.netback import QUEUE_FRAMES
from xenlite.dom0.netif import RX_RING

SETTLE_NS = 100_000_000
LONG_NS = 600_000_000
MIB = 1 << 20
FLOODER, PEER, UNKNOWN = 2, 3, 9
KINDS = {
    "to a peer that reads": PEER,
    "to the service host": HOST,
    "to nobody": UNKNOWN,
    "to everybody": EVERYBODY,
}
MANY = 2_000  # frames, that make a flood


@pytest.fixture
def machine() -> Iterator[Machine]:
    with ExitStack() as undo:
        yield Machine(undo)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 * MIB))
    return path


class Others:
    """Guests that mind their own business: one at its disk, one that computes, one that ticks."""

    def __init__(self, machine: Machine, image: Path) -> None:
        self._machine = machine
        self.disk: DiskUser = machine.disk_user(image)
        self.spinner: BootedGuest = machine.guest(SPINNER)
        self.ticker: BootedGuest = machine.guest(TICKER)
        machine.run(SETTLE_NS)

    def run(self) -> tuple[int, int, int]:
        """Let all run; return how long, how many requests were served, and how many ticks came."""
        requests, ticks = self.disk.ring.requests, self.ticker.word("ticks")
        spent_ns = self._machine.run(LONG_NS)
        return (
            spent_ns,
            self.disk.ring.requests - requests,
            self.ticker.word("ticks") - ticks,
        )


def assert_all_is_charged(machine: Machine, spent_ns: int) -> None:
    """Demand that hardly anything was done at nobody's expense: the loop's own turns, a 16th."""
    assert sum(machine.charged.values()) >= 0.915 * spent_ns, (machine.charged, spent_ns)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_is_at_its_sender_s_expense(machine: Machine, image: Path, kind: str) -> None:
    peer = machine.receiver(PEER, reads=True)
    flooder = machine.sender(FLOODER, KINDS[kind])
    others = Others(machine, image)
    _, alone, _ = others.run()
    peer.begin()
    flooder.begin()
    machine.run(SETTLE_NS)
    sent = flooder.counters.tx_packets
    spent_ns, requests, ticks = others.run()
    assert flooder.counters.tx_packets - sent >= MANY
    assert_all_is_charged(machine, spent_ns)
    charged = machine.charged
    # Three are always busy, and the peer takes little where it takes anything.
    for other in (others.disk.guest, others.spinner):
        assert charged[other.domid] >= 0.9 * charged[flooder.guest.domid], charged
        assert charged[other.domid] >= spent_ns / 4, charged
    # Two thirds are its due. What a request takes is a busy host's to say, by a factor of 1.5.
    assert requests >= alone / 6, (requests, alone)
    assert ticks >= 0.9 * spent_ns / TICK_NS


def test_a_flood_into_a_guest_that_does_not_read_costs_its_sender(machine: Machine) -> None:
    deaf = machine.receiver(PEER, reads=False)
    flooder = machine.sender(FLOODER, PEER)
    for station in (deaf, flooder):
        station.begin()
    machine.run(SETTLE_NS)  # until its queue is full
    before = deaf.counters.rx_dropped
    spent_ns = machine.run(LONG_NS)
    assert deaf.counters.rx_dropped - before >= MANY
    assert deaf.counters.rx_packets == RX_RING.slots
    lost = flooder.counters.tx_packets - RX_RING.slots - QUEUE_FRAMES
    assert deaf.counters.rx_dropped == lost, "each is in its ring, in its queue, or counted"
    assert_all_is_charged(machine, spent_ns)
    assert machine.charged[deaf.guest.domid] == 0, "it was not even woken"


@pytest.mark.parametrize("sizes", [(SMALL, SMALL), (LARGE, LARGE), (SMALL, LARGE)])
def test_two_busy_pairs_each_get_half(machine: Machine, sizes: tuple[int, int]) -> None:
    """Half of the time; and that is half of the packets, where they are of one size."""
    pairs = []
    for number, size in zip((2, 4), sizes, strict=True):
        taker = machine.receiver(number + 1, reads=True)
        sender = machine.sender(number, number + 1, size)
        pairs.append((sender, taker))
    for pair in pairs:
        for station in pair:
            station.begin()
    machine.run(SETTLE_NS)
    before = [taker.counters.rx_packets for _, taker in pairs]
    spent_ns = machine.run(LONG_NS)
    assert_all_is_charged(machine, spent_ns)
    times = [sum(machine.charged[one.guest.domid] for one in pair) for pair in pairs]
    assert min(times) >= 0.9 * sum(times) / 2, times
    came = [
        taker.counters.rx_packets - count for count, (_, taker) in zip(before, pairs, strict=True)
    ]
    assert min(came) >= MANY / 4
    if sizes[0] == sizes[1]:
        assert min(came) >= 0.9 * sum(came) / 2, came


def test_a_disk_s_writes_are_at_their_guest_s_expense(machine: Machine, image: Path) -> None:
    """Their answers come from a thread, and are given in the hypervisor's loop."""
    writer, spinner = machine.disk_user(image, BLKIF_OP_WRITE), machine.guest(SPINNER)
    machine.run(SETTLE_NS)
    before = writer.ring.requests
    spent_ns = machine.run(LONG_NS)
    assert writer.ring.requests - before >= DEPTH
    assert_all_is_charged(machine, spent_ns)
    assert machine.charged[spinner.domid] >= 0.9 * machine.charged[writer.guest.domid]
