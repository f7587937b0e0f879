# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbered packets with checksums from one frontend to another, of which none may be lost.

Except where a queue was full, and then it is counted. Sizes, pieces, bursts and pauses are random,
by a seed; the receiver stops now and then, so that queues fill.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from struct import pack, unpack
from zlib import crc32

from tests.support.net_front import NetFront, frame, net
from xenlite.abi.x86_32p import NETIF_RSP_OKAY
from xenlite.dom0.netback import QUEUE_FRAMES

_HEAD = 14 + 8
SHORTEST, LONGEST = 60, 1514


class PacketRun:
    """Both ends of one stream; every frame is checked as it comes."""

    def __init__(self, sender: NetFront, receiver: NetFront, seed: int) -> None:
        self.sender = sender
        self.receiver = receiver
        self.random = Random(seed)
        self.sent = 0
        self.received = 0
        self.last = -1  # number that was received
        self._filler = self.random.randbytes(LONGEST)

    def burst(self, most: int) -> None:
        """Send some packets, as many as there is room for."""
        random, front = self.random, self.sender
        for _ in range(min(random.randint(1, most), front.tx_room // 3)):
            size = random.choice((SHORTEST, random.randint(SHORTEST, LONGEST), LONGEST))
            payload = pack(">I", self.sent) + self._filler[: size - _HEAD]
            content = frame(self.receiver.mac, front.mac, pack(">I", crc32(payload)) + payload)
            if random.random() < 0.1:
                at = random.randint(1, len(content) - 1)
                front.put([(random.randint(0, 2000), content[:at]), (7, content[at:])])
            else:
                front.put([(random.randint(0, 2000), content)])
            self.sent += 1
        front.send()

    def take_statuses(self) -> None:
        """Demand that whatever was sent was taken."""
        self.sender.statuses = {}
        self.sender.take_statuses()
        assert set(self.sender.statuses.values()) <= {NETIF_RSP_OKAY}, self.sender.statuses

    def receive(self) -> None:
        """Check what has come: whole, in order, nothing twice."""
        for content in self.receiver.receive():
            checksum, number = unpack(">II", content[14:_HEAD])
            assert crc32(content[18:]) == checksum, number
            assert number > self.last, (number, self.last)
            self.last = number
            self.received += 1

    @property
    def dropped(self) -> int:
        """Count what found no room, and was counted."""
        return self.receiver.vif.counters.rx_dropped

    def check(self) -> None:
        """Demand, once nothing is on its way, that all is accounted for."""
        assert self.sender.vif.counters.tx_packets == self.sent
        assert self.received + self.dropped == self.sent, (self.received, self.dropped, self.sent)


def run(count: int, seed: int, progress: Callable[[str], None] = lambda _: None) -> PacketRun:
    """Send at least ``count`` packets and account for each."""
    with net() as made:
        sender, receiver = made.add(), made.add()
        for front in (sender, receiver):
            front.connect(start=0xFFFFFF00, split=front is receiver)
        stream = PacketRun(sender, receiver, seed)
        random = stream.random
        asleep = 0
        while stream.sent < count:
            before = stream.sent
            stream.burst(200)
            made.settle(random.randint(1, 4))
            stream.take_statuses()
            if asleep:
                asleep -= 1
            else:
                stream.receive()
                if random.random() < 0.002:  # until its queue is full, and beyond
                    asleep = 2 * QUEUE_FRAMES // 100
            if stream.sent // 10_000 != before // 10_000:
                progress(
                    f"{stream.sent} sent, {stream.received} received, {stream.dropped} dropped"
                )
        for _ in range(10):
            made.settle()
            stream.take_statuses()
            stream.receive()
        stream.check()
    return stream
