# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that tries to harm the kernel harms itself alone; a long mix of all leaves nothing."""

from __future__ import annotations

import re

import pytest

from tests.support.guestos import Machine

LAST = re.compile(r"^(\d+) children, (\d+) ended by a signal; 0 bad addresses taken$", re.MULTILINE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hostile_program_harms_nobody(shell: Machine, seed: int) -> None:
    answer = shell.command(f"primes 20000 & hostile 40 {seed}; wait")
    found = LAST.search(answer)
    assert found is not None, answer[-500:]
    assert found[1] == "40"
    assert int(found[2]) >= 10
    assert "2262 primes up to 20000, the last is 19997\n" in answer
    assert shell.status("cowtest") == 0


@pytest.mark.parametrize("seed", [11, 12])
def test_a_soak_leaves_no_page_behind(shell: Machine, seed: int) -> None:
    answer = shell.command(f"stress 2 {seed}")
    assert re.search(r"^\d+ commands run, \d+ of them ended from outside$", answer, re.MULTILINE)
    shell.wait_for_quiet()
    assert shell.control.audit() == []
