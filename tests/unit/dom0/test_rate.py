# SPDX-License-Identifier: GPL-2.0-or-later
"""A rate limit: never more than a frame beyond it, and what is owed is waited off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenlite.dom0.rate import Rate, RateLimit


def test_an_interval_brings_its_credit_and_none_is_saved_up() -> None:
    limit = RateLimit(Rate(bytes=1000, interval_ns=50), now_ns=7)
    limit.spend(900)
    assert limit.credit(56) == 100
    assert limit.credit(57) == 1000
    assert limit.credit(10**12) == 1000


def test_what_was_too_much_is_waited_off() -> None:
    limit = RateLimit(Rate(bytes=1000, interval_ns=50), now_ns=0)
    for debt, wait in ((1, 50), (999, 50), (1000, 100), (1001, 100), (5000, 300)):
        limit = RateLimit(Rate(bytes=1000, interval_ns=50), now_ns=0)
        limit.spend(1000 + debt)
        assert limit.credit(49) == -debt
        assert limit.next_ns() == wait
        assert limit.credit(limit.next_ns() - 1) <= 0
        assert limit.credit(limit.next_ns()) > 0
    limit.spend(limit.credit(300))
    assert limit.credit(300) == 0
    assert limit.next_ns() == 350


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 10**6)), max_size=60),
)
def test_no_time_sees_more_than_its_rate_and_a_burst(
    size: int, interval_ns: int, steps: list[tuple[int, int]]
) -> None:
    limit = RateLimit(Rate(size, interval_ns), 0)
    now_ns = passed = 0
    for frame, wait_ns in steps:
        now_ns += wait_ns
        if limit.credit(now_ns) <= 0:
            due_ns = limit.next_ns()
            assert due_ns > now_ns
            now_ns = due_ns
            assert limit.credit(now_ns) > 0
        limit.spend(frame)
        passed += frame
        assert passed <= (now_ns // interval_ns + 1) * size + 2000
