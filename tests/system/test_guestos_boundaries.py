# SPDX-License-Identifier: GPL-2.0-or-later
"""An event comes between any two instructions of guestos: it is served once, and disturbs nothing.

The kernel runs under the trap flag, whose traps it does not see. At each place of its code, with
events masked and unmasked, one event is raised while it stands there; the next one waits until that
is served. What is typed and shown must be as without them, and the kernel must end asleep, with
nothing pending.

Source: guestos/port.s, whose sequences stand for cli, sti, pushf, popf, hlt and iret.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import capstone
import pytest

from tests.support.guestos import PROMPT, ROOT, Machine
from xenlite.abi.x86_32p import SHARED_INFO_EVTCHN_PENDING, VIRQ_TIMER
from xenlite.core.vcpu import VcpuState
from xenlite.devkit.assembler import AssembledKernel, assemble
from xenlite.hypercalls.restart import NoteRefusal
from xenlite.machine.clock import ManualClock
from xenlite.machine.cpu import Cpu
from xenlite.machine.trap import EFLAGS, EFLAGS_TF, EIP, TrapHandlers
from xenlite.traps import TrapRoute, make_route

KERNEL = 0xC0000000
# A turn of a program in ring 3 lasts so many instructions, that it gets somewhere in each.
USER_TURN = 97
KEYS_OF_A_LINE = 50


# The sequences that stand for the interrupt flag, and what is built on them.
CRITICAL = (
    *("port_save_and_mask", "port_iret", "events_upcall", "events_dispatch", "time_tick"),
    *("lock_events", "unlock_events", "console_write", "schedule_yield", "schedule_switch"),
    *("schedule_idle", "process_sleep", "process_wake", "trap_return"),
)
# They fork, start a program, wait, sleep by the clock, and pass bytes through a pipe.
COMMANDS = {"": "", "sleep 1": "", "echo a | cat": "a\n"}


@pytest.fixture(scope="module")
def kernel() -> AssembledKernel:
    return assemble(ROOT / "guestos/main.s")


class Stepper:
    """A shell that is stopped before each instruction, and what comes to it there."""

    def __init__(self, kernel: AssembledKernel, patch: pytest.MonkeyPatch, *overrides: str) -> None:
        self._kernel = kernel
        self.seen: set[tuple[int, bool]] = set()
        self.steps = self.user_steps = 0
        self.typed = 0
        self.come: Callable[[], bool] = self.tick
        self.runs_freely = False
        self._is_stepping = False
        patch.setattr("xenlite.hypervisor.make_route", self._stepped_route)
        self.machine = Machine(*overrides, clock=ManualClock())
        self.domain = self.machine.hypervisor.domains[self.machine.domid]
        self._ticks_at = kernel.address_of("time_ticks")
        self._queue_at = kernel.address_of("schedule_first")
        self._first_ticks = self._raised = 0
        self._was_pending = False
        self.machine.wait_for(PROMPT)
        self._sleep()
        self._first_ticks = self._counted() - self._raised
        self._is_stepping = True

    # -- between two instructions -------------------------------------------------------------

    def _stepped_route(
        self, cpu_of: Callable[[], Cpu], note: NoteRefusal, rdtsc: Callable[[], int] | None = None
    ) -> TrapRoute:
        """Stop after each trap too: every one of them leads to a boundary."""
        route = make_route(cpu_of, note, rdtsc)
        traps = route.handlers

        def stop() -> None:
            if self._is_stepping:
                try:
                    self._at_boundary()
                    self._set_trap_flag()
                except BaseException as error:  # noqa: BLE001 - enter raises it again
                    cpu_of().fail(error)

        def call(number: int, *arguments: int) -> int:
            result = traps.call(number, *arguments)
            stop()
            return result

        def upcall() -> None:
            traps.upcall()
            stop()

        def interrupt(handle: int, vector: int, user: object) -> None:
            traps.interrupt(handle, vector, user)
            stop()

        def stopping(handler: Callable[[], None]) -> Callable[[], None]:
            def handle() -> None:
                handler()
                stop()

            return handle

        vectors = {vector: stopping(handler) for vector, handler in traps.vectors.items()}
        stepped: TrapHandlers = replace(
            traps, call=call, upcall=upcall, interrupt=interrupt, debug=stop, vectors=vectors
        )
        return replace(route, handlers=stepped)

    def _at_boundary(self) -> None:
        """Check what came so far, and let an event come if this place has not seen one."""
        self.steps += 1
        waiting = self._waiting()
        # One may be pending while another is being served.
        assert 0 <= waiting <= 2, f"{waiting} events wait at {self.domain.engine.regs[EIP]:#x}"
        assert waiting or not self._was_pending, "served first, then cleared: one gets lost"
        if self.domain.current.state is VcpuState.BLOCKED:
            return
        place = (self.domain.engine.regs[EIP], self.is_masked)
        is_due = place not in self.seen
        if place[0] < KERNEL:
            # Counted apart: a switch that takes a multiple of this would let nobody get anywhere.
            self.user_steps += 1
            is_due = self.user_steps % USER_TURN == 0
        if is_due and self.come():
            self.seen.add(place)

    def _set_trap_flag(self) -> None:
        """Stop at the next instruction, or run freely where the kernel has to find an event itself.

        A trap would let an event in that came while they were masked.
        """
        regs = self.domain.engine.regs
        if self.runs_freely and self._timer_is_pending():
            regs[EFLAGS] &= ~EFLAGS_TF & 0xFFFFFFFF
        else:
            regs[EFLAGS] |= EFLAGS_TF

    def tick(self) -> bool:
        """Raise the timer's event, unless one is pending: the two would be one."""
        if self._timer_is_pending():
            return False
        self.domain.events.raise_virq(0, VIRQ_TIMER)
        self._raised += 1
        self._was_pending = True
        return True

    def key(self) -> bool:
        """Type a key, and end the line now and then: it has room for so many."""
        self.typed += 1
        self.machine.type("k" if self.typed % KEYS_OF_A_LINE else "k\r")
        return True

    # -- looking ------------------------------------------------------------------------------

    @property
    def is_masked(self) -> bool:
        """Tell whether the kernel lets no event in."""
        return bool(self.domain.machine.memory.m8[self.domain.current.mask_at])

    def _waiting(self) -> int:
        """Return how many of the timer's events were raised, by whomever, and not served."""
        is_pending = self._timer_is_pending()
        self._raised += is_pending and not self._was_pending
        self._was_pending = is_pending
        return self._raised - (self._counted() - self._first_ticks)

    def _counted(self) -> int:
        return self._word(self._ticks_at)

    def _word(self, address: int) -> int:
        word = self.machine.control.read_virtual(self.machine.domid, 0, address, 4)
        return int.from_bytes(word, "little")

    def _timer_is_pending(self) -> bool:
        words = self.domain.machine.memory.m32
        base = (self.domain.shared_info_mfn << 12) + SHARED_INFO_EVTCHN_PENDING
        port = self.domain.events._virqs[0, VIRQ_TIMER]
        return bool(words[(base >> 2) + port // 32] >> port % 32 & 1)

    # -- commands -----------------------------------------------------------------------------

    def _sleep(self) -> None:
        vcpu = self.domain.current
        self._run_until(lambda: vcpu.state is VcpuState.BLOCKED, "a sleeping kernel")

    def _run_until(self, until: Callable[[], bool], what: str) -> None:
        """Run, looking between two turns too: there the machine's own timers fire."""

        def look() -> bool:
            self._waiting()
            return until()

        self.machine.run_until(look, what)

    def type(self, keys: str) -> None:
        """Type, and let the kernel do all that it does until it sleeps."""
        self.domain.engine.regs[EFLAGS] |= EFLAGS_TF
        self.machine.type(keys)
        self._sleep()
        self.check_at_rest()

    def begin(self, line: str) -> None:
        """Give a command that goes on until it sleeps; forget what is shown up to there."""
        self.type(line + "\r")
        self.machine.output = ""

    def command(self, line: str) -> str:
        """Give a command, and return what is shown up to the next prompt."""
        machine = self.machine
        self.domain.engine.regs[EFLAGS] |= EFLAGS_TF
        machine.type(line + "\r")
        self._run_until(lambda: PROMPT in machine.output, "a prompt")
        self._sleep()
        self.check_at_rest()
        shown, _, machine.output = machine.output.partition(PROMPT)
        return shown

    def check_at_rest(self) -> None:
        """See that nothing waits: every event was served once, events are let in, none can run."""
        assert self._waiting() == 0
        assert self._word(self._queue_at) == 0, "it sleeps, and has work to do"
        assert self.domain.machine.memory.m16[self.domain.current.upcall_index] == 0

    def until_seen(self, routines: Iterable[str], most: int = 300) -> None:
        """Give the commands until an event has come to every instruction of some routines."""
        for _ in range(most):
            for line, answer in COMMANDS.items():
                shown = self.command(line)
                assert shown.endswith(f"{line}\n{answer}"), shown
            if not self.missing(*routines):
                break

    def missing(self, *routines: str) -> list[str]:
        """Return the instructions of some routines that no event has come to."""
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
        text = next(section for section in self._kernel.sections if section.name == ".text")
        seen = {eip for eip, _ in self.seen}
        found = []
        for name in routines:
            symbol = next(symbol for symbol in self._kernel.symbols if symbol.name == name)
            start = symbol.address - text.address
            code = text.data[start : start + symbol.size]
            for address, _, mnemonic, operands in engine.disasm_lite(code, symbol.address):
                if address not in seen:
                    found.append(f"{name}: {mnemonic} {operands}".rstrip())
        return found


def test_an_event_that_interrupts_any_instruction_is_served_once(
    kernel: AssembledKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(kernel, monkeypatch)
    stepper.until_seen(CRITICAL)
    assert stepper.missing(*CRITICAL) == []
    # Behind this look an event waits already; see the next test.
    assert stepper.missing("port_unmask_events")[0] == "port_unmask_events: push ebx"
    stepper.machine.close()


def test_an_event_that_comes_while_they_are_masked_is_found_by_the_kernel(
    kernel: AssembledKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(kernel, monkeypatch, "cmdline=plainfaults")
    stepper.runs_freely = True
    masking = ("port_save_and_mask", "port_restore_events")
    stepper.until_seen((*masking, "page_fault_plain"), most=30)
    assert stepper.missing(*masking) == []
    unmask = stepper.missing("port_unmask_events")
    assert unmask[0] == "port_unmask_events: push ebx"
    assert unmask[-1].startswith("port_unmask_events: call"), "it asks Xen, and goes on"
    stepper.machine.close()


def test_a_key_that_comes_at_any_instruction_is_read_once(
    kernel: AssembledKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(kernel, monkeypatch)
    type_until_all_seen(stepper)
    assert stepper.missing("console_take", "events_upcall", "events_dispatch") == []
    stepper.machine.close()


def type_until_all_seen(stepper: Stepper) -> None:
    """Type lines for `cat` until no place is left; each key is echoed once, and written once."""
    stepper.begin("cat")
    seen, by_us = -1, 0
    while len(stepper.seen) > seen:
        seen = len(stepper.seen)
        stepper.come = stepper.key
        stepper.type("k\r")
        by_us += 1
        stepper.come = lambda: False
        stepper.type("\r")  # of what was typed behind the line
        assert stepper.machine.output.count("k") == 2 * (by_us + stepper.typed)


# -- the check itself -----------------------------------------------------------------------------


def changed(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """Copy guestos with one change."""
    copy = tmp_path / "guestos"
    shutil.copytree(ROOT / "guestos", copy)
    text = (copy / file).read_text()
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new))
    return copy / "main.s"


def test_the_check_notices_a_wait_that_begins_unmasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = "    call port_wait_for_event\n"
    main = changed(tmp_path, "schedule.s", wait, "    call port_unmask_events\n" + wait)
    stepper = Stepper(assemble(main), monkeypatch, f"kernel={main}")
    with pytest.raises(AssertionError, match="work to do"):
        type_until_all_seen(stepper)
    stepper.machine.close()


def test_the_check_notices_an_event_that_is_cleared_after_it_was_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = "    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING + ebx * 4], edi\n"
    serve = "    call dword ptr [event_handlers + eax * 4]\n"
    between = "    mov eax, ebx\n    shl eax, 5\n    or eax, edi\n"
    between += "    mov edx, [event_arguments + eax * 4]\n"
    order = (clear + between + serve, between + serve + clear)
    main = changed(tmp_path, "events.s", *order)
    stepper = Stepper(assemble(main), monkeypatch, f"kernel={main}")
    with pytest.raises(AssertionError, match="served first"):
        stepper.until_seen(CRITICAL)
    stepper.machine.close()
