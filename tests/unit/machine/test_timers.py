# SPDX-License-Identifier: GPL-2.0-or-later
"""Timers fire once, in order, at or after their deadline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenlite.machine.timers import Timer, TimerQueue


def test_a_timer_fires_once_at_its_deadline() -> None:
    queue, fired = TimerQueue(), []
    timer = Timer(lambda: fired.append(1))
    queue.arm(timer, 100)
    queue.fire_due(99)
    assert not fired
    queue.fire_due(100)
    queue.fire_due(200)
    assert fired == [1]
    assert not timer.is_armed


def test_arming_again_moves_it_and_disarming_forgets_it() -> None:
    queue, fired = TimerQueue(), []
    timer = Timer(lambda: fired.append(1))
    queue.arm(timer, 100)
    queue.arm(timer, 300)
    queue.fire_due(200)
    assert not fired
    assert queue.next_deadline_ns() == 300
    queue.disarm(timer)
    assert queue.next_deadline_ns() is None
    queue.fire_due(400)
    assert not fired


def test_a_timer_that_arms_itself_for_the_past_does_not_hold_the_loop() -> None:
    queue = TimerQueue()
    fired = []

    def again() -> None:
        fired.append(1)
        queue.arm(timer, 0)

    timer = Timer(again)
    queue.arm(timer, 0)
    queue.fire_due(10)
    assert fired == [1]
    queue.fire_due(10)
    assert fired == [1, 1]


def test_every_64_bit_deadline_is_good() -> None:
    queue = TimerQueue()
    for deadline in (0, 1, 1 << 50, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        queue.arm(Timer(lambda: None), deadline)
    queue.fire_due(1 << 50)
    assert queue.next_deadline_ns() == (1 << 63) - 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=300))
def test_what_fires_is_what_was_armed_last(steps: list[tuple[int, int]]) -> None:
    queue = TimerQueue()
    fired: list[int] = []
    timers = [Timer(lambda n=n: fired.append(n)) for n in range(10)]  # type: ignore[misc]
    model: dict[int, int] = {}
    for n, deadline in steps:
        if deadline == 50:
            queue.disarm(timers[n])
            model.pop(n, None)
        else:
            queue.arm(timers[n], deadline)
            model[n] = deadline
    queue.fire_due(25)
    assert sorted(fired) == sorted(n for n, deadline in model.items() if deadline <= 25)
    assert [model[n] for n in fired] == sorted(model[n] for n in fired)
