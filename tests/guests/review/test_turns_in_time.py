# SPDX-License-Identifier: GPL-2.0-or-later
"""A turn ends in time however slow a guest's blocks are, and one that was too long is paid for."""

from __future__ import annotations

import time

from tests.support.guest import made
from xenlite.core.vcpu import VcpuState
from xenlite.hypervisor import SLICE_NS, Hypervisor

SLOW_BLOCKS = """
    fninit
again:
    .rept 20
    fldpi
    fsin
    fstp st(0)
    .endr
    jmp again
"""
DEADLINE_SECONDS = 0.1
AT_MOST_SECONDS = 5.0  # ten million of these blocks take a minute at least


def test_slow_blocks_do_not_make_a_turn_long() -> None:
    with made(SLOW_BLOCKS) as guest:
        guest.hypervisor._guests[guest.domid].slice_blocks = 10_000_000
        started = time.monotonic()
        assert not guest.run(DEADLINE_SECONDS)
        assert time.monotonic() - started < AT_MOST_SECONDS
        assert guest.hypervisor._guests[guest.domid].slice_blocks < 10_000_000


def test_a_domain_sits_out_the_turns_that_it_had_before_time() -> None:
    hypervisor = Hypervisor(16 << 20)
    try:
        control = hypervisor.control()
        greedy, other = (control.create_domain(n, max_pages=8, max_vcpus=1) for n in "ab")
        for domid in (greedy, other):
            hypervisor.domains[domid].current.state = VcpuState.RUNNABLE
            control.unpause(domid)
        entries = hypervisor._guests
        entries[greedy].owed_ns = 2 * SLICE_NS
        turns = [hypervisor._next_guest() for _ in range(5)]
        names = [turn.domain.name for turn in turns if turn is not None]
        assert names == ["b", "b", "a", "b", "a"]
        control.pause(other)
        entries[greedy].owed_ns = 2 * SLICE_NS
        assert hypervisor._next_guest() is entries[greedy]
    finally:
        hypervisor.close()
