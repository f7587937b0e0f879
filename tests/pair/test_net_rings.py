# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of network rings back to back, in any order of their steps; and very many packets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.net_front import net
from tests.support.packet_run import PacketRun, run

STEPS = st.lists(
    st.sampled_from(["burst", "turn", "statuses", "receive", "event", "split burst"]), max_size=80
)


@given(
    STEPS,
    st.integers(0, 2**32),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFF00, 0xFFFFFFFF)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_packet_arrives_once_whatever_the_order_of_steps(
    steps: list[str], seed: int, start: int, split: object, slow: object
) -> None:
    """Both ends sleep unless they were told, so that a missing event would leave some over."""
    with net() as made:
        sender, receiver = made.add(), made.add()
        for front in (sender, receiver):
            front.connect(start=start, split=bool(split), post=20 if slow else 256)
        stream = PacketRun(sender, receiver, seed)
        for step in steps:
            if step == "burst":
                stream.burst(90)
            elif step == "turn":
                made.settle(1)
            elif step == "statuses":
                stream.take_statuses()
            elif step == "receive":
                stream.receive()
            elif step == "event":
                sender.domain.events.send(sender.tx_port)
                receiver.domain.events.send(receiver.rx_port)
            else:
                stream.burst(3)
        for _ in range(300):
            made.settle(3)
            stream.take_statuses()
            before = stream.received
            stream.receive()
            if before == stream.received and stream.received + stream.dropped == stream.sent:
                break
        stream.check()
        assert stream.dropped == 0 or stream.sent > 1024


def test_a_hundred_thousand_packets_are_all_accounted_for() -> None:
    """``tools/soak packets`` sends as many as one likes."""
    stream = run(100_000, seed=1)
    assert stream.sent >= 100_000
    assert stream.dropped > 0, "queues were full too"
    assert stream.received > 50_000
