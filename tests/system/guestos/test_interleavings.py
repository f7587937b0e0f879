# SPDX-License-Identifier: GPL-2.0-or-later
"""Processors take turns in the middle of everything: slices of some blocks, and many ticks.

The slices come from a seed, and time passes each time somebody looks at the clock. So processors
lose their turn with locks held, in the middle of traps, between a wake and the sleep it ends, and
processes move to another one all the time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.support.guestos import PROMPT, Machine
from xenlite.machine.clock import ManualClock

MOST_BLOCKS = 60
MOST_SLICES = 150_000
LOOK_NS = 20_000

COMMANDS = (
    "faulttest | cat | cat",
    "forktest 20 & forktest 20 & cowtest; wait",
    "sleep 0.01 | cat & ls | cat | cat | wc; wait",
    "forktest 20 & vcpu down 1; vcpu down 2; vcpu up 1; vcpu up 2; wait",
    *["vcpu down 1; vcpu up 1"] * 15,
    "spin 0.02 | cat | sleep 0.01; fputest 3 20",
)
NOTHING = re.compile(r"guestos: |wrong|lost|missing", re.IGNORECASE)
"""What only a kernel in disorder says: panics, and verdicts of programs that try it."""


class LookClock(ManualClock):
    """A clock that moves with each look at it."""

    __slots__ = ("_random",)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def monotonic_ns(self) -> int:
        self.advance(self._random.randrange(LOOK_NS))
        return super().monotonic_ns()


def slices(seed: int) -> Iterator[int]:
    """Say how long each slice is; a kernel that needs too many stands still."""
    source = random.Random(seed)
    for _ in range(MOST_SLICES):
        yield source.randint(1, MOST_BLOCKS)
    raise AssertionError("guestos stands still")


@pytest.mark.parametrize("vcpus", [2, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_processors_take_turns_anywhere(
    vcpus: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenlite.hypervisor._MIN_SLICE_BLOCKS", 1)
    machine = Machine(f"vcpus={vcpus}", clock=LookClock(seed))
    machine.wait_for(PROMPT)
    before = machine.memory()["free"]
    machine.blocks_of_slices = slices(seed).__next__
    for line in COMMANDS:
        answer = machine.command(line)
        assert not NOTHING.search(answer), answer
    machine.wait_for_quiet()
    assert machine.memory()["free"] == before
    machine.close()
