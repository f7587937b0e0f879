# SPDX-License-Identifier: GPL-2.0-or-later
"""A turn ends in time however slow a guest's blocks are, and one that was too long is paid for."""

from __future__ import annotations

import time

from tests.support.guest import made

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
