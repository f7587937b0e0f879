# SPDX-License-Identifier: GPL-2.0-or-later
"""No run of instructions makes the engine overwrite itself: its blocks are short.

The long runs go through a process of their own: where the limit is missing, they end it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.bare_machine import BareMachine
from xenlite.machine.engine import library
from xenlite.machine.short_blocks import MOST_INSTRUCTIONS

LONG_RUN = """
from tests.support.bare_machine import DATA, BareMachine
from xenlite.machine.probes import Cell, Cells
machine = BareMachine()
if {is_watched}:
    machine.cpu.set_quiet_memory(quiet=False)
    Cells(machine.cpu).watch([Cell(machine.maddr(DATA), 0xFF)])
machine.load(bytes.fromhex({code!r}) * {count} + bytes.fromhex("cd82"))
print([trap.vector for trap in machine.run()])
"""


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("code", ["ddd8", "d9c9", "dac1", "d9ebddd8"])
def test_a_long_run_of_x87_instructions_is_survived(code: str, *, is_watched: bool) -> None:
    """Under a debugger as well, which has something done before each of them."""
    script = LONG_RUN.format(code=code, count=2000 // (len(code) // 2), is_watched=is_watched)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[130]\n"), done.stderr


def test_a_block_ends_after_so_many_instructions() -> None:
    assert library().has_short_blocks
    machine = BareMachine()
    try:
        budget = 1000
        machine.run_code(bytes.fromhex("90" * (4 * MOST_INSTRUCTIONS) + "cd82"), blocks=budget)
        assert budget - machine.cpu.blocks_left >= 5
    finally:
        machine.close()
