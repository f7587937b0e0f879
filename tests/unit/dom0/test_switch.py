# SPDX-License-Identifier: GPL-2.0-or-later
"""The bridge, against a model that sends one frame at a time and knows nothing of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.dom0.switch import (
    AGEING_NS,
    FLOOD_BURST,
    FLOODS_PER_S,
    MAX_ADDRESSES,
    Bridge,
    Plug,
)

ALL = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x00\x16\x3e" + number.to_bytes(3, "big")


def frame(to: bytes, sender: bytes, payload: bytes = b"") -> bytes:
    return to + sender + b"\x08\x00" + payload


@dataclass
class Clock:
    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


class Ear:
    """A station that keeps what it gets, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []

    def deliver(self, frames: Sequence[bytes]) -> None:
        self.batches.append(list(frames))

    def take(self) -> list[bytes]:
        frames = [one for batch in self.batches for one in batch]
        self.batches.clear()
        return frames


@dataclass
class Network:
    stations: int
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.bridge = Bridge("xenbr0", self.clock)
        self.ears = [Ear() for _ in range(self.stations)]
        self.plugs = [self.bridge.plug(f"s{n}", ear) for n, ear in enumerate(self.ears)]

    def heard(self) -> list[list[bytes]]:
        return [ear.take() for ear in self.ears]


def audit(bridge: Bridge) -> None:
    """Recompute who is known by what, from both sides."""
    table = bridge._addresses
    assert set(table.learnt) == set(bridge.plugs)
    learnt = {address: plug for plug, own in table.learnt.items() for address in own}
    assert sum(map(len, table.learnt.values())) == len(learnt)
    assert all(len(own) <= MAX_ADDRESSES for own in table.learnt.values())
    own = {plug.own: plug for plug in bridge.plugs if plug.own is not None}
    assert {address: known.plug for address, known in table.at.items()} == learnt | own
    assert {address for address, known in table.at.items() if known.is_own} == set(own)


def test_a_frame_for_nobody_known_goes_to_all_but_its_sender() -> None:
    network = Network(3)
    one = frame(mac(9), mac(0))
    network.plugs[0].send([one])
    assert network.heard() == [[], [one], [one]]


def test_a_station_that_has_spoken_alone_gets_what_is_for_it() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(1))])
    network.heard()
    one = frame(mac(1), mac(0))
    network.plugs[0].send([one])
    assert network.heard() == [[], [one], []]


def test_a_batch_arrives_in_one_call_and_in_order() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(1))])
    network.heard()
    sent = [frame(mac(1) if n % 3 else ALL, mac(0), bytes([n])) for n in range(30)]
    network.plugs[0].send(sent)
    assert network.ears[1].batches == [sent]
    assert network.ears[2].batches == [sent[::3]]


def test_a_frame_to_the_senders_own_side_goes_nowhere() -> None:
    network = Network(2)
    network.plugs[0].send([frame(ALL, mac(5))])
    network.heard()
    network.plugs[0].send([frame(mac(5), mac(0))])
    assert network.heard() == [[], []]
    assert network.plugs[0].stats.for_nobody == 1


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        frame(ALL, mac(0))[:13],
        frame(mac(1), ALL),
        frame(mac(1), b"\x01" + mac(0)[1:]),
        frame(mac(1), bytes(6)),
    ],
)
def test_a_frame_that_no_station_can_have_sent_is_dropped_and_not_learnt(bad: bytes) -> None:
    network = Network(2)
    good = frame(ALL, mac(0))
    network.plugs[0].send([bad, good, bad])
    assert network.heard() == [[], [good]]
    assert network.plugs[0].stats.malformed == 2
    assert set(network.bridge._addresses.at) == {mac(0)}


@pytest.mark.parametrize(("last", "passes"), [(0x00, False), (0x0F, False), (0x10, True)])
def test_what_ends_at_the_first_bridge_is_not_passed_on(last: int, *, passes: bool) -> None:
    network = Network(2)
    network.plugs[0].send([frame(bytes.fromhex("0180c20000") + bytes([last]), mac(0))])
    assert bool(network.ears[1].take()) is passes


def test_an_address_is_forgotten_when_it_has_not_been_used() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(1))])
    network.heard()
    network.clock.now_ns = AGEING_NS - 1
    network.plugs[0].send([frame(mac(1), mac(0))])
    assert [len(heard) for heard in network.heard()] == [0, 1, 0]
    network.clock.now_ns = AGEING_NS
    network.plugs[0].send([frame(mac(1), mac(0))])
    assert [len(heard) for heard in network.heard()] == [0, 1, 1]


def test_a_station_that_moves_is_found_at_its_new_place() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(7))])
    network.plugs[2].send([frame(ALL, mac(7))])
    network.heard()
    network.plugs[0].send([frame(mac(7), mac(0))])
    assert [len(heard) for heard in network.heard()] == [0, 0, 1]


def test_nobody_draws_a_stations_own_address_to_itself() -> None:
    network = Network(2)
    victim = Ear()
    network.bridge.plug("victim", victim, mac(7))
    network.clock.now_ns = 2 * AGEING_NS
    network.plugs[1].send([frame(ALL, mac(7))])
    network.heard(), victim.take()
    network.plugs[0].send([frame(mac(7), mac(0))])
    assert network.heard() == [[], []]
    assert len(victim.take()) == 1
    audit(network.bridge)


def test_a_station_that_uses_many_addresses_pushes_out_only_its_own() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(1))])
    network.plugs[2].send([frame(mac(1), mac(1000 + n)) for n in range(3 * MAX_ADDRESSES)])
    audit(network.bridge)
    network.heard()
    network.plugs[0].send([frame(mac(1), mac(0))])
    assert [len(heard) for heard in network.heard()] == [0, 1, 0]


def test_flooding_is_bounded_and_counted() -> None:
    network = Network(3)
    network.clock.now_ns = 10**9
    sent = [frame(ALL, mac(0), n.to_bytes(4, "big")) for n in range(FLOOD_BURST + 5)]
    network.plugs[0].send(sent)
    assert network.heard() == [[], sent[:FLOOD_BURST], sent[:FLOOD_BURST]]
    assert network.plugs[0].stats.over_flood_limit == 5
    network.plugs[0].send(sent[:1])
    assert network.ears[1].batches == [], "a station is not called for nothing"
    network.clock.now_ns += 3 * 10**9 // FLOODS_PER_S
    network.plugs[0].send(sent[:10])
    assert [len(heard) for heard in network.heard()] == [0, 3, 3]
    network.plugs[1].send(sent[:1])
    assert [len(heard) for heard in network.heard()] == [1, 0, 1], "the limit is each sender's own"


def test_bridges_share_nothing() -> None:
    one, other = Network(2), Network(2)
    one.plugs[0].send([frame(ALL, mac(0))])
    other.plugs[0].send([frame(ALL, mac(1))])
    one.heard(), other.heard()
    one.plugs[1].send([frame(mac(1), mac(2))])
    assert [len(heard) for heard in one.heard()] == [1, 0]
    assert other.heard() == [[], []]


def test_a_station_that_has_left_neither_sends_nor_gets() -> None:
    network = Network(3)
    network.plugs[1].send([frame(ALL, mac(1))])
    network.heard()
    network.plugs[1].unplug()
    network.plugs[1].unplug()
    network.plugs[1].send([frame(ALL, mac(1))])
    network.plugs[0].send([frame(mac(1), mac(0))])
    assert [len(heard) for heard in network.heard()] == [0, 0, 1]
    audit(network.bridge)


def test_a_station_may_leave_while_a_batch_is_on_its_way() -> None:
    network = Network(1)

    class Leaver:
        def deliver(self, frames: Sequence[bytes]) -> None:
            last.unplug()

    network.bridge.plug("leaver", Leaver())
    ear = Ear()
    last = network.bridge.plug("last", ear)
    network.plugs[0].send([frame(ALL, mac(0))])
    assert ear.take() == []


def test_a_capture_of_a_bridge_sees_each_frame_once() -> None:
    network = Network(3)
    capture = Ear()
    end = network.bridge.capture(capture)
    sent = [frame(ALL, mac(0)), b"runt"]
    network.plugs[0].send(sent)
    assert capture.take() == sent
    end()
    network.plugs[0].send(sent)
    assert capture.take() == []


def test_a_capture_of_a_station_sees_it_both_ways_and_nothing_else() -> None:
    network = Network(2)
    capture = Ear()
    network.bridge.capture(capture, of="late")
    late = network.bridge.plug("late", Ear())
    asks, answers = frame(ALL, mac(2), b"?"), frame(mac(2), mac(0), b"!")
    network.plugs[1].send([frame(mac(0), mac(1))])  # nobody known: to all
    late.send([asks])
    network.plugs[0].send([answers])
    network.plugs[1].send([frame(mac(0), mac(1), b"other")])
    assert capture.take() == [frame(mac(0), mac(1)), asks, answers]


def test_statistics_say_what_a_station_sent_and_got() -> None:
    network = Network(2)
    one = frame(ALL, mac(0), bytes(50))
    network.plugs[0].send([one, one])
    sent, got = network.plugs[0].stats, network.plugs[1].stats
    assert (sent.sent_frames, sent.sent_bytes, sent.got_frames) == (2, 128, 0)
    assert (got.got_frames, got.got_bytes, got.sent_frames) == (2, 128, 0)


# -- a model --------------------------------------------------------------------------------------

MACS = [mac(n) for n in range(5)]
DESTINATIONS = [*MACS, ALL, b"\x01\x00\x5e\x00\x00\x01"]
BATCHES = st.lists(st.tuples(st.sampled_from(DESTINATIONS), st.sampled_from(MACS)), max_size=8)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), BATCHES),
        st.tuples(st.just("unplug"), st.integers(0, 3), st.just([])),
        st.tuples(st.just("wait"), st.just(0), st.just([])),
    ),
    max_size=30,
)


class Model:
    """One frame at a time, a table without bounds; station 3's own address is ``mac(3)``."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.here = [0, 1, 2, 3]
        self.known: dict[bytes, tuple[int, int]] = {}

    def send(self, sender: int, to: bytes, source: bytes) -> list[int]:
        if source != mac(3) or 3 not in self.here:
            self.known[source] = (sender, self.now_ns)
        at, used_ns = self.known.get(to, (None, 0))
        if to == mac(3) and 3 in self.here:
            at, used_ns = 3, self.now_ns
        if at is None or self.now_ns - used_ns >= AGEING_NS:
            return [one for one in self.here if one != sender]
        return [] if at == sender else [at]

    def unplug(self, station: int) -> None:
        self.here.remove(station)
        self.known = {a: entry for a, entry in self.known.items() if entry[0] != station}


@given(STEPS)
def test_a_batch_does_what_its_frames_do_one_by_one(
    steps: list[tuple[str, int, list[tuple[bytes, bytes]]]],
) -> None:
    model, clock = Model(), Clock()
    bridge = Bridge("xenbr0", clock)
    ears = [Ear() for _ in range(4)]
    plugs: list[Plug] = [
        bridge.plug(f"s{n}", ear, mac(3) if n == 3 else None) for n, ear in enumerate(ears)
    ]
    serial = 0
    for what, station, batch in steps:
        if what == "wait":
            clock.now_ns = model.now_ns = model.now_ns + AGEING_NS // 2
        elif station not in model.here:
            continue
        elif what == "unplug":
            plugs[station].unplug()
            model.unplug(station)
        else:
            expected: list[list[bytes]] = [[], [], [], []]
            sent = []
            for to, source in batch:
                serial += 1
                sent.append(frame(to, source, serial.to_bytes(4, "big")))
                for receiver in model.send(station, to, source):
                    expected[receiver].append(sent[-1])
            plugs[station].send(sent)
            assert all(len(ear.batches) <= 1 for ear in ears)
            assert [ear.take() for ear in ears] == expected
        audit(bridge)
