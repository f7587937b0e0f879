# SPDX-License-Identifier: GPL-2.0-or-later
"""An abort of the engine's translator is an invalid opcode of its guest; any other ends all."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.bare_machine import CODE, WAYS, BareMachine, bare_machine
from xenlite.machine.abort_guard import abort_guard
from xenlite.machine.trap import EAX, EIP, VECTOR_UD

LOCK_BTS = b"\xf0\x0f\xab\xd0"  # lock bts eax, edx: #UD on hardware
COUNTED = b"\x40\xcd\x30"  # inc eax; int 0x30
RELAPSES = 100  # more than the 64 nested runs that the engine has room for
GUARDED = [name for name, (_, caps) in WAYS.items() if caps.live_state]

OTHER_ABORT = """
import faulthandler, os
faulthandler.enable()
from tests.support.bare_machine import CODE, BareMachine
machine = BareMachine()
machine.on_interrupt = lambda trap: os.abort()
{before}
machine.run_code(b"\\xcd\\x30")
"""


@pytest.mark.parametrize("way", GUARDED)
def test_an_abort_of_the_translator_is_an_invalid_opcode(way: str) -> None:
    guard = abort_guard()
    assert guard is not None
    before = guard.count
    mode, caps = WAYS[way]
    with bare_machine(mode, caps=caps) as machine:
        for _ in range(RELAPSES):
            [trap] = machine.run_code(LOCK_BTS)
            assert (trap.vector, trap.eip) == (VECTOR_UD, CODE)
        assert guard.count == before + RELAPSES
        machine.regs[EAX] = 7
        [trap] = machine.run_code(COUNTED)
        assert (trap.vector, machine.regs[EAX]) == (0x30, 8)


def test_it_is_reported_at_the_start_of_a_block_that_has_not_run() -> None:
    with bare_machine() as machine:
        machine.regs[EAX] = 7
        [trap] = machine.run_code(b"\x40\x40" + LOCK_BTS)
        assert (trap.eip, machine.regs[EAX]) == (CODE, 7)


def test_the_guest_goes_on_where_its_handler_says() -> None:
    with bare_machine() as machine:
        machine.on_invalid = lambda: _skip(machine, len(LOCK_BTS))
        machine.regs[EAX] = 7
        [trap] = machine.run_code(LOCK_BTS + COUNTED)
        assert (trap.vector, machine.regs[EAX]) == (0x30, 8)


@pytest.mark.parametrize("before", ["", "machine.run_code(b'\\xf0\\x0f\\xab\\xd0')"])
def test_an_abort_of_python_goes_to_the_handler_before(before: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_ABORT.format(before=before)],
        stderr=subprocess.PIPE,
        check=False,
    )
    assert ended.returncode == -signal.SIGABRT
    assert b"Fatal Python error: Aborted" in ended.stderr


def _skip(machine: BareMachine, size: int) -> bool:
    machine.regs[EIP] += size
    return True
