# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted guestos for the tests of one file; each test leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guestos import PROMPT, Machine


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
        return machine

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
