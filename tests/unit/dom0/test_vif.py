# SPDX-License-Identifier: GPL-2.0-or-later
"""The network backend against frontends good and hostile (SECURITY G1 to G5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.net_front import (
    FIRST_RX,
    FIRST_TX,
    RX_REF,
    SLOTS,
    SPARE,
    TX_REF,
    NetFront,
    frame,
    net,
)
from xenlite.abi.x86_32p import (
    NETIF_RSP_ERROR,
    NETIF_RSP_OKAY,
    SRING_REQ_PROD,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    GTF_readonly,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenlite.dom0.checksum import complete
from xenlite.dom0.groups import MAX_GROUPS
from xenlite.dom0.netback import (
    FEW,
    LOOK_AGAIN_NS,
    LOOKS,
    MOST_AT_ONCE,
    QUEUE_FRAMES,
)
from xenlite.dom0.netif import frame_limit
from xenlite.dom0.rate import Rate
from xenlite.dom0.xenbus import State
from xenlite.machine.clock import ManualClock

BROADCAST = b"\xff" * 6
PEER = bytes.fromhex("00163e0000f0")
MAX = frame_limit(1500)


class Peer:
    """A station that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Keep frames."""
        self.got += frames

    def take(self) -> list[bytes]:
        """Return what has come since the last time."""
        got, self.got = self.got, []
        return got


def numbered(number: int, size: int = 60, to: bytes = PEER, source: bytes = b"\2aaaaa") -> bytes:
    """Make a frame that can be told from others."""
    return frame(to, source, number.to_bytes(4, "big") * (size // 4))[:size]


# -- what it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("start", [0, 0xFFFFFFF0])
def test_frames_come_and_go_whole(start: int, *, split: bool) -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect(start=start, split=split)
        assert front.seen == "4"
        for size in (14, 60, 1514, MAX):
            sent = [numbered(n, size, source=front.mac) for n in range(20)]
            ids = [front.put_frame(one) for one in sent]
            assert front.sent() == dict.fromkeys(ids, NETIF_RSP_OKAY)
            assert peer.take() == sent
            back = [numbered(n, size, front.mac, PEER) for n in range(300)]
            got = []
            for at in range(0, 300, 50):
                plug.send(back[at : at + 50])
                got += front.receive()
            assert got == back
        counters = front.vif.counters
        assert (counters.tx_packets, counters.rx_packets) == (80, 1200)
        assert counters.rx_bytes == 300 * (14 + 60 + 1514 + MAX)
        plug.unplug()


def test_frames_of_many_pieces_and_of_many_pages() -> None:
    with net() as made:
        front, peer = made.add(mtu=65000), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        large = numbered(7, 65018, source=front.mac)
        ids = [
            front.put_frame(large),
            front.put([(4000, large[:3]), (100, large[3:40]), (4095, large[40:41])]),
            front.put_frame(large[:60]),
        ]
        statuses = front.sent()
        assert [statuses[number] for number in ids] == [NETIF_RSP_OKAY] * 3
        assert len(statuses) == 16 + 3 + 1
        assert peer.take() == [large, large[:41], large[:60]]
        back = [
            numbered(n, size, front.mac, PEER) for n, size in enumerate((65018, 60, 4096, 4097))
        ]
        plug.send(back * 7)
        assert front.receive() == back * 7
        plug.unplug()


def test_a_frontend_without_chains_gets_what_fits_a_page() -> None:
    with net() as made:
        front = made.add(mtu=9000)
        front.connect(chains=False)
        frames = [numbered(n, size) for n, size in enumerate((4096, 4097, 9018, 9019, 60))]
        front.vif.deliver(frames)
        assert front.receive() == [frames[0], frames[4]]
        assert front.vif.counters.rx_dropped == 3


def test_an_mtu_bounds_both_ways() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        number = front.put_frame(numbered(1, MAX + 1, source=front.mac))
        assert front.sent() == {number: NETIF_RSP_ERROR}
        front.vif.deliver([numbered(1, MAX + 1), numbered(2, MAX)])
        assert front.receive() == [numbered(2, MAX)]
        assert (front.vif.counters.tx_errors, front.vif.counters.rx_dropped) == (1, 1)
        assert peer.take() == []
        plug.unplug()


def test_two_cards_of_a_domain_and_two_domains_reach_each_other() -> None:
    with net() as made:
        first, other = made.add(), made.add()
        second = made.add(beside=first)
        assert second.paths.frontend == f"/local/domain/{first.domid}/device/vif/1"
        first.connect()
        other.connect()
        for card in (first, other):
            peer = other if card is first else first
            card.put_frame(numbered(3, to=peer.mac, source=card.mac))
            card.sent()
            assert peer.receive() == [numbered(3, to=peer.mac, source=card.mac)]
        # Both cards' rings take turns in the pages of one domain.
        for card in (first, second):
            card.connect()
            other.put_frame(numbered(4, to=card.mac, source=other.mac))
            other.sent()
            assert card.receive() == [numbered(4, to=card.mac, source=other.mac)]
            card.show(State.CLOSED)


def test_events_are_asked_for_once_a_batch() -> None:
    with net() as made:
        front, peer = made.add(), made.add()
        front.connect()
        peer.connect()
        made.settle()
        for _ in range(10):
            sending, getting = front.vif.counters, peer.vif.counters
            before = (sending.events, sending.notifications, getting.notifications)
            for n in range(MOST_AT_ONCE):
                front.put_frame(numbered(n, to=peer.mac, source=front.mac))
            assert set(front.sent().values()) == {NETIF_RSP_OKAY}
            assert len(peer.receive()) == MOST_AT_ONCE
            after = (sending.events, sending.notifications, getting.notifications)
            assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 1]


def test_while_packets_come_no_event_is_asked_for() -> None:
    """The ring is looked at after each turn of a guest, until that was in vain some times."""
    with net() as made:
        front = made.add()
        front.connect()
        made.settle()
        events = front.vif.counters.events
        for n in range(100):
            front.put_frame(numbered(n, source=front.mac))
            front.send()
            made.settle(LOOKS)
            front.take_statuses()
        assert front.vif.counters.events - events == 1
        assert front.vif.counters.tx_packets == 100
        made.settle(1)
        front.put_frame(numbered(1, source=front.mac))
        assert front.tx.publish(), "it rests, and is told again"
        front.domain.events.send(front.tx_port)
        made.settle()
        assert front.vif.counters.tx_packets == 101


def test_responses_to_a_few_wait_for_the_next_look_and_are_never_lost() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        made.settle()
        for many, shown in ((FEW, 0), (FEW + 1, FEW + 1)):
            for n in range(many):
                front.put_frame(numbered(n, source=front.mac))
            front.send()
            made.settle(1)
            assert len(peer.take()) == many
            front.take_statuses()
            assert len(front.statuses) == shown
            if shown == 0:
                made.settle(1)
                front.take_statuses()
                assert len(front.statuses) == many
            front.statuses = {}
            made.settle()
        # A backend that is closed before that answers first: the next one sends nothing twice.
        front.put_frame(numbered(7, source=front.mac))
        front.send()
        made.settle(1)
        front.vif.close()
        front.vif = front.make_vif()
        made.settle()
        assert peer.take() == [numbered(7, source=front.mac)]
        front.take_statuses()
        assert list(front.statuses.values()) == [NETIF_RSP_OKAY]
        plug.unplug()


def test_a_flood_is_taken_in_turns() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        made.settle()
        front.put_frame(numbered(0, source=front.mac))
        front.send()
        made.settle(1)
        for n in range(1, SLOTS):
            front.put_frame(numbered(n, source=front.mac))
        front.tx.publish()
        for taken in (1 + MOST_AT_ONCE, SLOTS):
            front.domain.events.send(front.tx_port)  # unasked
            made.settle(1)
            assert len(peer.got) == taken
        plug.unplug()


class Costly(Peer):
    """A station that takes a millisecond for each batch."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Keep frames, slowly."""
        super().deliver(frames)
        self._clock.advance(1_000_000)


def test_the_time_of_a_flood_is_its_senders() -> None:
    clock = ManualClock()
    with net(clock) as made:
        front, idle, peer = made.add(), made.add(), Costly(clock)
        plug = made.bridge.plug("peer", peer, PEER)
        for one in (front, idle):
            one.connect()
        made.settle()
        account = made.hypervisor.scheduler.account
        before = [account(one.domid).virtual_ns for one in (front, idle)]
        batches = 0
        for _ in range(5):
            for n in range(SLOTS):
                front.put_frame(numbered(n, source=front.mac))
            front.send()
            made.settle()
            front.take_statuses()
            batches += -(-SLOTS // MOST_AT_ONCE)
        after = [account(one.domid).virtual_ns for one in (front, idle)]
        spent = [b - a for a, b in zip(before, after, strict=True)]
        assert spent == [batches * 1_000_000, 0]
        plug.unplug()


# -- checksums ------------------------------------------------------------------------------------


def udp(source: bytes, payload: bytes) -> bytes:
    """Make a UDP packet whose checksum is blank."""
    size = 28 + len(payload)
    ip = pack(">BBHHHBBH", 0x45, 0, size, 1, 0, 64, 17, 0) + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    return frame(PEER, source, ip + pack(">HHHH", 1, 2, size - 20, 0xABCD) + payload, 0x800)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_blank_checksum_is_completed_and_no_other(pieces: int) -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        blank = udp(front.mac, b"payload")
        cut = [(0, blank[:20]), (9, blank[20:30]), (1, blank[30:])] if pieces == 3 else [(0, blank)]
        validated = NETTXF_csum_blank | NETTXF_data_validated
        for flags, whole in (
            (NETTXF_csum_blank, complete(blank)),
            (validated, complete(blank)),
            (NETTXF_data_validated, blank),
            (0, blank),
        ):
            front.put(cut, flags)
            assert set(front.sent().values()) == {NETIF_RSP_OKAY}
            assert peer.take() == [whole]
        assert complete(blank) != blank
        arp = frame(BROADCAST, front.mac, bytes(46), 0x806)
        number = front.put_frame(arp, NETTXF_csum_blank)
        assert front.sent() == {number: NETIF_RSP_ERROR}, "such a checksum nobody offered"
        assert peer.take() == []
        plug.unplug()


# -- multicasts -----------------------------------------------------------------------------------


def change(front: NetFront, *changes: tuple[int, bytes], kind: int = 0) -> int:
    """Send a dummy that changes groups: what became of it."""
    front.put_slot(0, 0, NETTXF_extra_info, 300, 0)
    extras = [*changes, *([(kind, bytes(6))] if kind else [])]
    for n, (what, address) in enumerate(extras):
        front.put_extra(what, XEN_NETIF_EXTRA_FLAG_MORE if n < len(extras) - 1 else 0, address)
    front.nulls = 0
    status = front.sent()[300]
    assert front.nulls == len(extras)
    return status


ADD, DEL = XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL


def group(number: int) -> bytes:
    """Return the address of a group."""
    return bytes.fromhex(f"01005e{number:06x}")


def test_a_frontend_that_asks_gets_multicasts_of_its_groups_alone() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect(groups=True)
        frames = [
            numbered(n, to=to) for n, to in enumerate((group(1), front.mac, group(2), BROADCAST))
        ]
        front.vif.deliver(frames)
        assert front.receive() == [frames[1], frames[3]]
        assert change(front, (ADD, group(1)), (ADD, group(2)), (DEL, group(2))) == NETIF_RSP_OKAY
        front.vif.deliver(frames)
        assert front.receive() == [frames[0], frames[1], frames[3]]
        assert change(front, (DEL, group(1))) == NETIF_RSP_OKAY
        front.vif.deliver(frames)
        assert front.receive() == [frames[1], frames[3]]
        assert front.vif.counters.rx_filtered == 2 + 1 + 2
        assert peer.take() == [], "a dummy is not sent"
        plug.unplug()


def test_a_frontend_that_does_not_ask_gets_all_of_them() -> None:
    with net() as made:
        front = made.add()
        front.connect()
        assert change(front, (ADD, group(1))) == NETIF_RSP_OKAY
        frames = [numbered(n, to=group(n)) for n in range(3)]
        front.vif.deliver(frames)
        assert front.receive() == frames


def test_groups_are_bounded_and_must_be_groups() -> None:
    with net() as made:
        front = made.add()
        front.connect(groups=True)
        for n in range(MAX_GROUPS):
            assert change(front, (ADD, group(n))) == NETIF_RSP_OKAY
        assert change(front, (ADD, group(3))) == NETIF_RSP_OKAY
        assert change(front, (ADD, group(MAX_GROUPS))) == NETIF_RSP_ERROR
        assert change(front, (DEL, group(5)), (ADD, group(MAX_GROUPS))) == NETIF_RSP_OKAY
        assert change(front, (DEL, group(6))) == NETIF_RSP_OKAY
        assert change(front, (ADD, group(6)), (ADD, front.mac)) == NETIF_RSP_ERROR
        assert change(front, (ADD, group(6)), kind=XEN_NETIF_EXTRA_TYPE_GSO) == NETIF_RSP_ERROR
        front.vif.deliver([numbered(1, to=group(6))])
        assert front.receive() == [], "what is refused changes nothing"


# -- room, and none -------------------------------------------------------------------------------


@pytest.mark.parametrize("tells_of_room", [False, True])
def test_a_full_queue_drops_and_counts(*, tells_of_room: bool) -> None:
    clock = ManualClock()
    with net(clock) as made:
        front = made.add()
        front.connect(post=10, tells_of_room=tells_of_room)
        frames = [numbered(n) for n in range(QUEUE_FRAMES + 100)]
        for at in range(0, len(frames), 100):
            front.vif.deliver(frames[at : at + 100])
        counters = front.vif.counters
        assert (counters.rx_packets, counters.rx_dropped) == (10, 90)
        got = front.receive(repost=False)
        free = list(range(SLOTS))
        while counters.rx_packets < QUEUE_FRAMES + 10:
            front.post(free)
            if not tells_of_room:
                clock.advance(LOOK_AGAIN_NS)
            made.settle()
            responses = front.receive(repost=False)
            got += responses
            assert responses, "it waits for room without end"
        assert got == frames[: QUEUE_FRAMES + 10]
        assert counters.rx_dropped == 90


def test_a_packet_of_many_pages_waits_for_all_its_slots() -> None:
    with net() as made:
        front = made.add(mtu=20_000)
        front.connect(post=2)
        frames = [numbered(1, 10_000), numbered(2, 60)]
        front.vif.deliver(frames)
        assert front.receive() == [], "and nothing overtakes it"
        front.post([2])
        made.settle()
        assert front.receive() == frames[:1]
        made.settle()
        assert front.receive() == frames[1:]


def test_frames_for_nobody_are_dropped_and_counted() -> None:
    with net() as made:
        front = made.add()
        front.vif.deliver([numbered(1)] * 3)
        assert front.vif.counters.rx_dropped == 3
        front.connect(post=0)
        front.vif.deliver([numbered(1)] * 4)
        assert front.vif.counters.rx_dropped == 3
        front.show(State.CLOSED)
        assert front.vif.counters.rx_dropped == 7
        front.vif.deliver([numbered(1)])
        assert front.vif.counters.rx_dropped == 8


def test_a_rate_holds_back_what_is_sent() -> None:
    clock = ManualClock()
    with net(clock) as made:
        front, peer = made.add(rate=Rate(bytes=10_000, interval_ns=50_000_000)), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        ids = [front.put_frame(numbered(n, 1000, source=front.mac)) for n in range(100)]
        front.send()
        passed = []
        for _ in range(12):
            made.settle(20)
            passed.append(len(peer.got))
            clock.advance(50_000_000)
        assert passed[-1] == 100
        assert [0 <= passed[n] - 10 * (n + 1) <= 1 for n in range(9)] == [True] * 9
        front.take_statuses()
        assert front.statuses == dict.fromkeys(ids, NETIF_RSP_OKAY)
        plug.unplug()


def test_a_rate_below_a_frame_lets_frames_pass() -> None:
    clock = ManualClock()
    with net(clock) as made:
        front, peer = made.add(rate=Rate(bytes=100, interval_ns=1_000_000)), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        for n in range(3):
            front.put_frame(numbered(n, 1000, source=front.mac))
        front.send()
        for want in (1, 2, 3):
            made.settle()
            assert len(peer.got) == want
            clock.advance(9_000_000)
            made.settle()
            assert len(peer.got) == want
            clock.advance(1_000_000)
        plug.unplug()


def test_events_while_credit_is_waited_for_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    with net(clock) as made:
        front = made.add(rate=Rate(bytes=100, interval_ns=1_000_000))
        front.connect()
        waits = []
        call_at = made.link.call_at

        def counted(deadline_ns: int, work: Callable[[], None], *, charge: int) -> None:
            waits.append(deadline_ns)
            call_at(deadline_ns, work, charge=charge)

        monkeypatch.setattr(made.link, "call_at", counted)
        for n in range(2):
            front.put_frame(numbered(n, 1000, source=front.mac))
        for _ in range(50):
            front.tx.publish()
            front.domain.events.send(front.tx_port)
            made.settle(1)
        assert waits == [10_000_000]
        assert front.vif.counters.tx_packets == 1


def test_a_rate_is_the_cards_however_often_its_frontend_connects() -> None:
    clock = ManualClock()
    with net(clock) as made:
        front, peer = made.add(rate=Rate(bytes=1000, interval_ns=50_000_000)), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        for n in range(5):
            front.connect()
            front.put_frame(numbered(n, 1000, source=front.mac))
            front.send()
            made.settle()
            front.show(State.CLOSED)
            front.show(State.INITIALISING)
        assert len(peer.got) == 1
        clock.advance(50_000_000)
        front.connect()
        front.put_frame(numbered(9, 1000, source=front.mac))
        front.send()
        made.settle()
        assert len(peer.got) == 2
        plug.unplug()


# -- G1 to G3: hostile packets --------------------------------------------------------------------


BAD_SLOTS = [
    (0xFFFFFFFF, 0, 60),
    (1024, 0, 60),
    (SPARE, 0, 60),
    (FIRST_TX, 4095, 4096),
    (FIRST_TX, 4037, 60),
    (FIRST_TX, 0xFFFF, 60),
    (FIRST_TX, 0, 0xFFFF),
]


@pytest.mark.parametrize(
    ("pieces", "slot"),
    [
        *((1, slot) for slot in (*BAD_SLOTS, (FIRST_TX, 0, 13), (FIRST_TX, 0, 0))),
        *((2, slot) for slot in (*BAD_SLOTS, (FIRST_TX, 0, 101))),
    ],
)
def test_a_bad_slot_costs_its_packet_alone(pieces: int, slot: tuple[int, int, int]) -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        good = [numbered(n, source=front.mac) for n in range(2)]
        ids = [front.put_frame(good[0])]
        if pieces == 2:  # it is the second one of them
            front.put_slot(FIRST_TX, 0, NETTXF_more_data, 300, 100)
        ref, offset, size = slot
        front.put_slot(ref, offset, 0, 301, size)
        ids.append(front.put_frame(good[1]))
        bad = (300, 301)[-pieces:]
        okay = dict.fromkeys(ids, NETIF_RSP_OKAY)
        assert front.sent() == okay | dict.fromkeys(bad, NETIF_RSP_ERROR)
        assert peer.take() == good
        assert front.vif.counters.tx_errors == 1
        assert len(list(front.domain.grants.uses())) == 2, "the rings alone"
        assert made.control.audit() == []
        plug.unplug()


def test_pages_that_are_only_to_be_read_are_sent_and_not_received_into() -> None:
    with net() as made:
        front, peer = made.add(mtu=9000), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        front.offer(FIRST_TX + SLOTS - 1, FIRST_TX, GTF_readonly)
        number = front.put_frame(numbered(1, source=front.mac))
        assert number == SLOTS - 1
        assert front.sent() == {number: NETIF_RSP_OKAY}
        front.offer(FIRST_RX + 1, FIRST_RX + 1, GTF_readonly)
        front.revoke(FIRST_RX + 4)
        frames = [numbered(n, size) for n, size in enumerate((60, 61, 9000, 62))]
        front.vif.deliver(frames)
        responses = front.take_responses()
        statuses = [60, NETIF_RSP_ERROR, *[NETIF_RSP_ERROR] * 3, 62]
        assert [response.status for response in responses] == statuses
        assert (front.vif.counters.rx_errors, front.vif.counters.rx_packets) == (2, 2)
        assert front.vif.counters.rx_bytes == 122
        assert made.control.audit() == []
        plug.unplug()


def test_a_grant_may_be_taken_back_at_any_moment() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        ids = [front.put_frame(numbered(n, source=front.mac)) for n in range(4)]
        front.revoke(FIRST_TX + ids[1])
        assert front.sent() == {
            number: NETIF_RSP_ERROR if number == ids[1] else NETIF_RSP_OKAY for number in ids
        }
        assert [one[14:18] for one in peer.take()] == [bytes([0, 0, 0, n]) for n in (0, 2, 3)]
        # The rings' own pages stay in use, whatever their offers say by now.
        front.revoke(TX_REF)
        front.revoke(RX_REF)
        number = front.put_frame(numbered(9, source=front.mac))
        assert front.sent() == {number: NETIF_RSP_OKAY}
        plug.unplug()


def test_a_chain_that_is_published_slot_by_slot_is_one_packet() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        whole = numbered(5, 1000, source=front.mac)
        number = front.put_frame(numbered(4, source=front.mac))
        front.put([(n, whole[n * 100 : n * 100 + 100]) for n in range(10)])
        total = front.tx._put
        page = front.page(TX_REF)
        for shown in range(1, 12):
            page.write_u32(SRING_REQ_PROD, total - 11 + shown)
            front.domain.events.send(front.tx_port)
            made.settle()
            assert len(peer.got) == (1 if shown < 11 else 2)
        # A slot that has been taken is not read again.
        front.tx._published = total
        front.take_statuses()
        assert list(front.statuses.values()) == [NETIF_RSP_OKAY] * 11
        assert number in front.statuses
        assert peer.take()[1] == whole
        plug.unplug()


def test_what_is_written_into_a_slot_that_was_taken_changes_nothing() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect()
        whole = numbered(5, 100, source=front.mac)
        front.put([(0, whole[:40])], NETTXF_more_data, whole=100)
        front.send()
        made.settle()
        front.page(TX_REF).write(64, b"\xff" * 12)
        front.put([(0, whole[40:])])
        assert set(front.sent().values()) == {NETIF_RSP_OKAY}
        assert peer.take() == [whole]
        plug.unplug()


def endless_chain(front: NetFront) -> None:
    """Put in a packet without end."""
    for n in range(SLOTS):
        front.put_slot(FIRST_TX, 0, NETTXF_more_data, n, 60)


def endless_extras(front: NetFront) -> None:
    """Put in a packet with extra slots without end."""
    front.put_slot(FIRST_TX, 0, NETTXF_extra_info, 1, 60)
    for _ in range(SLOTS - 1):
        front.put_extra(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_FLAG_MORE, group(1))


@pytest.mark.parametrize("put_in", [endless_chain, endless_extras])
def test_an_endless_chain_closes_the_device(put_in: object) -> None:
    with net() as made:
        front, other = made.add(), made.add()
        front.connect()
        other.connect()
        assert callable(put_in)
        put_in(front)
        front.send()
        made.settle()
        assert front.seen == "5"
        assert len(front.said) == 1
        assert list(front.domain.grants.uses()) == []
        assert (other.seen, other.said) == ("4", [])


@pytest.mark.parametrize("ring", [TX_REF, RX_REF])
@pytest.mark.parametrize("jump", [SLOTS + 1, 1 << 31, -SLOTS - 1])
def test_an_impossible_index_closes_its_device_and_nothing_else(ring: int, jump: int) -> None:
    with net() as made:
        front, other = made.add(), made.add()
        front.connect()
        other.connect()
        page = front.page(ring)
        page.write_u32(SRING_REQ_PROD, (page.read_u32(SRING_REQ_PROD) + jump) & 0xFFFFFFFF)
        # The sender meets the other's broken ring, and is none the worse for it.
        number = other.put_frame(numbered(1, to=front.mac, source=other.mac))
        assert other.sent() == {number: NETIF_RSP_OKAY}
        front.domain.events.send(front.tx_port)
        made.settle()
        assert (front.seen, len(front.said)) == ("5", 1)
        assert (other.seen, other.said) == ("4", [])
        assert list(front.domain.grants.uses()) == []
        # The frontend may come back.
        front.show(State.CLOSED)
        front.show(State.INITIALISING)
        assert front.seen == "2"
        front.connect()
        other.put_frame(numbered(2, to=front.mac, source=other.mac))
        other.sent()
        assert front.receive() == [numbered(2, to=front.mac, source=other.mac)]


def test_one_page_for_both_rings_harms_its_owner_alone() -> None:
    with net() as made:
        front, other = made.add(), made.add()
        other.connect()
        front.make_rings()
        front.write("tx-ring-ref", TX_REF)
        front.write("rx-ring-ref", TX_REF)
        front.write("event-channel", front.domain.events.alloc_unbound(0))
        front.write("request-rx-copy", 1)
        front.show(State.CONNECTED)
        for n in range(5):
            front.put_frame(numbered(n, to=other.mac, source=front.mac))
        front.tx.publish()
        front.vif.deliver([numbered(1)] * 10)
        made.settle()
        assert (other.seen, other.said) == ("4", [])
        assert made.control.audit() == []


def test_an_event_storm_is_served_once() -> None:
    with net() as made:
        front = made.add()
        front.connect()
        before = front.vif.counters.events
        for _ in range(1000):
            front.domain.events.send(front.tx_port)
        made.settle()
        assert front.vif.counters.events - before == 1


# -- G5: states in any order ----------------------------------------------------------------------


def test_a_frontend_is_ready_when_it_says_four_and_not_before() -> None:
    """GNU Mach's still reads features at 3, and waits for 2 there (COMPAT.md, 4)."""
    with net() as made:
        front = made.add()
        assert front.seen == "2"
        store = front.net.store
        backend = {
            name: store.read(f"{front.paths.backend}/{name}")
            for name in ("mac", "handle", "feature-rx-copy", "feature-rx-flip", "feature-gso-tcpv4")
        }
        assert backend == {
            "mac": front.mac_text,
            "handle": "0",
            "feature-rx-copy": "1",
            "feature-rx-flip": None,
            "feature-gso-tcpv4": None,
        }
        front.show(State.INITIALISED)
        assert front.seen == "2"
        front.connect()
        assert front.seen == "4"
        for state, want in ((5, "5"), (6, "6"), (1, "2")):
            front.show(state)
            assert front.seen == want


@given(st.lists(st.tuples(st.sampled_from(["state", "ring", "gone", "again"]), st.integers(0, 9))))
@settings(max_examples=60, deadline=None)
def test_states_in_any_order_survive(changes: list[tuple[str, int]]) -> None:
    with net() as made:
        front, other = made.add(), made.add()
        other.connect()
        front.make_rings()
        front.write("event-channel", front.domain.events.alloc_unbound(0))
        for name, ref in (("tx-ring-ref", TX_REF), ("rx-ring-ref", RX_REF), ("request-rx-copy", 1)):
            front.write(name, ref)
        for what, number in changes:
            if what == "state":
                front.show(number)
            elif what == "ring":
                front.write("rx-ring-ref", number * 7)
            elif what == "gone":
                front.net.store.remove(front.paths.frontend)
                made.settle()
            elif front.vif.rings is None:
                front.write("rx-ring-ref", RX_REF)
                front.write("event-channel", front.domain.events.alloc_unbound(0))
            other.put_frame(numbered(1, to=front.mac, source=other.mac))
            assert set(other.sent().values()) == {NETIF_RSP_OKAY}
        front.show(State.CLOSED)
        assert front.seen == "6"
        assert list(front.domain.grants.uses()) == []
        front.show(State.INITIALISING)
        front.connect()
        assert front.seen == "4"
        other.put_frame(numbered(2, to=front.mac, source=other.mac))
        other.sent()
        assert front.receive() == [numbered(2, to=front.mac, source=other.mac)]


def test_states_six_and_one_a_thousand_times() -> None:
    with net() as made:
        front = made.add()
        for _ in range(1000):
            front.show(1)
            front.show(6)
        front.show(1)
        ports = len([port for port in range(1024) if front.domain.events.channel(port)])
        for _ in range(50):
            front.connect(post=0)
            front.domain.events.close(front.tx_port)
            front.show(6)
            front.show(1)
        assert len([p for p in range(1024) if front.domain.events.channel(p)]) == ports
        assert (front.seen, front.said) == ("2", [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tx-ring-ref", "x"),
        ("tx-ring-ref", "99999"),
        ("rx-ring-ref", "-1"),
        ("rx-ring-ref", "4294967296"),
        ("event-channel", ""),
        ("event-channel", "77"),
        ("event-channel-tx", "78"),
        ("request-rx-copy", "0"),
        ("request-rx-copy", "2"),
        ("request-rx-copy", None),
        ("tx-ring-ref", None),
        ("rx-ring-ref", None),
        ("event-channel", None),
        ("feature-sg", "yes"),
        ("request-multicast-control", "3"),
    ],
)
def test_a_bad_offer_is_said_and_closed(name: str, value: str | None) -> None:
    with net() as made:
        front = made.add()
        front.make_rings()
        nodes = {"tx-ring-ref": TX_REF, "rx-ring-ref": RX_REF, "request-rx-copy": 1}
        nodes["event-channel"] = front.domain.events.alloc_unbound(0)
        for node, content in nodes.items():
            front.write(node, content)
        if value is None:
            front.net.store.remove(f"{front.paths.frontend}/{name}")
        else:
            front.write(name, value)
        front.show(State.CONNECTED)
        assert front.seen == "5"
        assert len(front.said) == 1
        assert "\n" not in front.said[0]
        assert list(front.domain.grants.uses()) == []


def test_an_impossible_index_before_the_backend_looks_is_no_worse() -> None:
    with net() as made:
        front = made.add()
        front.make_rings()
        for node, content in (
            ("tx-ring-ref", TX_REF),
            ("rx-ring-ref", RX_REF),
            ("request-rx-copy", 1),
            ("event-channel", front.domain.events.alloc_unbound(0)),
        ):
            front.write(node, content)
        front.page(TX_REF).write_u32(SRING_REQ_PROD, 1 << 31)
        front.show(State.CONNECTED)
        assert (front.seen, front.vif.rings) == ("5", None)


# -- ends and beginnings --------------------------------------------------------------------------


def test_a_frontend_that_dies_in_the_middle_leaves_nothing_in_use() -> None:
    clock = ManualClock()
    with net(clock) as made:
        front, other = made.add(rate=Rate(1000, 10**6)), made.add()
        front.connect(post=0, tells_of_room=False)
        other.connect()
        front.vif.deliver([numbered(1)] * 5)
        for n in range(100):
            front.put_frame(numbered(n, 500, to=other.mac, source=front.mac))
        front.send()
        made.settle(2)
        made.control.destroy_domain(front.domid)
        for _ in range(50):  # its work, its credit and its look for room come due
            made.settle(1)
            clock.advance(10**6)
        other.put_frame(numbered(1, to=front.mac, source=other.mac))
        assert set(other.sent().values()) == {NETIF_RSP_OKAY}
        made.store.remove(front.paths.frontend)
        made.settle()
        assert front.seen == "6"
        assert front.said == []
        assert made.control.audit() == []


def test_a_backend_that_starts_again_goes_on_with_the_rings_as_they_are() -> None:
    with net() as made:
        front, peer = made.add(), Peer()
        plug = made.bridge.plug("peer", peer, PEER)
        front.connect(start=0xFFFFFFF8)
        for round_ in range(20):
            front.write("request-multicast-control", round_ % 2)
            before = [front.put_frame(numbered(n, source=front.mac)) for n in range(5)]
            front.tx.publish()
            front.vif.close()
            assert list(front.domain.grants.uses()) == []
            front.vif = front.make_vif()
            made.settle()
            assert front.seen == "4"
            front.take_statuses()
            assert all(front.statuses[number] == NETIF_RSP_OKAY for number in before), round_
            assert len(peer.take()) == 5
            # Which groups it had joined is forgotten, so that it gets all of them.
            back = [numbered(round_, to=to, source=PEER) for to in (front.mac, group(1))]
            plug.send(back)
            assert front.receive() == back
        plug.unplug()
