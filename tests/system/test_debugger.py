# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger changes nothing: guestos lives as ever under steps, holds, breakpoints and watches."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.guest import made
from tests.support.guestos import PROMPT, Machine
from xenlite.abi.x86_32p import SHUTDOWN_poweroff
from xenlite.debug_doors import Access, Debugger, DebugStop, StopKind
from xenlite.errors import Refused
from xenlite.machine.clock import ManualClock

STEPS = 3000


@pytest.fixture
def guestos() -> Iterator[Machine]:
    machine = Machine(clock=ManualClock())
    yield machine
    machine.close()


class Attached:
    """A debugger on guestos, and the stops it has heard of."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.stops: list[DebugStop] = []
        self.debugger: Debugger = machine.control.attach_debugger(machine.domid, self.stops.append)

    def wait(self) -> DebugStop:
        """Run until the next stop."""
        self.machine.run_until(lambda: bool(self.stops), "a stop")
        return self.stops.pop(0)

    def step(self, *, watches: bool = False) -> int:
        """Make a step, which may change what is watched; return where it ends."""
        self.debugger.step(0)
        kind = self.wait().kind
        assert kind is StopKind.STEPPED or (watches and kind is StopKind.WATCHPOINT)
        return self.machine.control.registers(self.machine.domid, 0)["eip"]


def test_guestos_in_steps_says_what_it_says_in_one_go(guestos: Machine) -> None:
    attached = Attached(guestos)
    places = {attached.step() for _ in range(STEPS)}
    assert len(places) > STEPS // 20, "it goes nowhere"
    assert guestos.control.audit() == []
    attached.debugger.detach()
    in_steps = guestos.wait_for(PROMPT)
    other = Machine(clock=ManualClock())
    in_one_go = other.wait_for(PROMPT)
    other.close()
    assert in_steps.splitlines()[0] == in_one_go.splitlines()[0]
    assert len(in_steps.splitlines()) == len(in_one_go.splitlines())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_debugger_does_guestos_comes_to_its_prompt(guestos: Machine, seed: int) -> None:
    choose = random.Random(seed)
    attached = Attached(guestos)
    debugger, control, domid = attached.debugger, guestos.control, guestos.domid
    breakpoints: set[int] = set()
    watched: set[int] = set()
    for _ in range(300):
        registers = control.registers(domid, 0)
        match choose.randrange(8):
            case 0 | 1 | 2:
                attached.step(watches=bool(watched))
            case 3:
                here = registers["eip"] + choose.randrange(16)
                debugger.set_breakpoint(here)
                breakpoints.add(here)
            case 4 if breakpoints:
                debugger.clear_breakpoint(breakpoints.pop())
            case 5 if len(watched) < 6:
                word = (registers["esp"] - choose.randrange(16) * 4) & ~3
                access = choose.choice(list(Access))
                if word not in watched:
                    debugger.set_watchpoint(0, word, 4, access)
                    debugger.clear_watchpoint(word, 4, access)
                    debugger.set_watchpoint(0, word, 4, Access.CHANGE)
                    watched.add(word)
            case 6 if watched:
                debugger.clear_watchpoint(watched.pop(), 4, Access.CHANGE)
            case 7:
                attached.step(watches=bool(watched))  # off a breakpoint, where it would stop
                debugger.resume()
                guestos.hypervisor.defer(debugger.interrupt)
                attached.wait()
                attached.stops.clear()
            case _:
                pass  # nothing there to take away
    assert control.audit() == []
    debugger.detach()
    guestos.wait_for(PROMPT)
    guestos.type("halt\r")
    assert guestos.wait_for_end() == SHUTDOWN_poweroff


def test_a_domain_has_one_debugger_and_only_while_it_is_held_can_it_be_changed() -> None:
    source = """
spin:
    jmp spin
"""
    with made(source) as guest:
        control, domid = guest.control, guest.domid
        stops: list[DebugStop] = []
        debugger = control.attach_debugger(domid, stops.append)
        with pytest.raises(Refused, match=r"debug\.has-a-debugger"):
            control.attach_debugger(domid, stops.append)
        with pytest.raises(Refused, match=r"debug\.register-is-read-only"):
            debugger.write_registers(0, {"cs": 0})
        debugger.resume()
        for change in (
            lambda: debugger.write_registers(0, {"eax": 1}),
            lambda: debugger.read_fpu(0),
            lambda: debugger.step(0),
        ):
            with pytest.raises(Refused, match=r"debug\.not-held"):
                change()
        debugger.interrupt()
        assert [stop.kind for stop in stops] == [StopKind.ASKED]
        debugger.write_registers(0, {"eflags": 0xFFFFFFFF})
        kept = control.registers(domid, 0)["eflags"]
        assert not kept & 0x23000  # IOPL and VM are not the guest's to have
        debugger.write_registers(0, {"eflags": 0})
        assert control.registers(domid, 0)["eflags"] & 0x200
        guest.destroy()
        assert stops[-1].kind is StopKind.ENDED
        for act in (debugger.resume, debugger.interrupt, lambda: debugger.set_breakpoint(0)):
            with pytest.raises(Refused, match=r"debug\.not-attached"):
                act()
        debugger.detach()


def test_a_write_reaches_all_its_pages_or_none() -> None:
    source = """
spin:
    jmp spin
.data
.p2align 12
first: .space 4096
"""
    with made(source) as guest:
        control, domid = guest.control, guest.domid
        table = control.registers(domid, 0)["cr3"]
        boundary = next(
            vaddr
            for vaddr in range(0xC0001000, 0xC0400000, 4096)
            if control.translate(domid, 0, vaddr) == table
        )
        before = control.read_virtual(domid, 0, boundary - 4, 8)
        with pytest.raises(Refused):
            control.write_virtual(domid, 0, boundary - 4, b"\xff" * 8)
        with pytest.raises(Refused):
            control.write_virtual(domid, 0, 0x1000, b"\xff")
        with pytest.raises(Refused):
            control.write_virtual(domid, 0, 0xF5800000, b"\xff")
        assert control.read_virtual(domid, 0, boundary - 4, 8) == before
        control.write_virtual(domid, 0, guest.symbols["first"] + 4090, b"across")
        assert control.read_virtual(domid, 0, guest.symbols["first"] + 4090, 6) == b"across"
