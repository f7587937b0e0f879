# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted guestos for the tests of one file; each test leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guestos import PROMPT, Machine

HISTORY_LINES = 16
JOBS_MAX = 8


class Booted:
    """One machine for many tests; one that a test has left in disorder is replaced."""

    def __init__(self, *overrides: str) -> None:
        self._overrides = overrides
        self._machine: Machine | None = None

    def take(self) -> Machine:
        machine, self._machine = self._machine, None
        if machine is None:
            machine = Machine(*self._overrides)
            machine.wait_for(PROMPT)
            self._touch(machine)
        return machine

    @staticmethod
    def _touch(machine: Machine) -> None:
        """Have shell and kernel use what they then keep: history, jobs, places for processes."""
        for number in range(HISTORY_LINES):
            machine.command(f"# {'x' * 240} {number}")
        machine.command("balloon 100000")
        for _ in range(4):
            machine.command("sleep 0.1 & " * JOBS_MAX)
            machine.command("wait")
        machine.wait_for_quiet()
        machine.command("balloon -100000")

    def give_back(self, machine: Machine) -> None:
        self._machine = machine

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close()


@pytest.fixture(scope="module", params=[1, 4], ids=["1 vCPU", "4 vCPUs"])
def booted(request: pytest.FixtureRequest) -> Iterator[Booted]:
    system = Booted(f"vcpus={request.param}")
    yield system
    system.close()


@pytest.fixture
def shell(booted: Booted) -> Iterator[Machine]:
    """The shell of a system with 8 MB: afterwards it runs, alone, and no page is missing."""
    machine = booted.take()
    before = machine.memory()["free"]
    yield machine
    machine.wait_for_quiet()
    assert machine.memory()["free"] == before
    assert machine.output == ""
    booted.give_back(machine)
