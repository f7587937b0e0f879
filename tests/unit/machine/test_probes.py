# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest stops where a probe says, to the instruction, in every way it can run."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.bare_machine import CODE, DATA, STACK_TOP, WAYS, BareMachine, PortAccess, Trap
from xenlite.errors import Refused
from xenlite.machine.engine import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE
from xenlite.machine.probes import MAX_BREAKPOINTS, Breakpoints, Cell, Cells
from xenlite.machine.trap import EAX, ECX, EDI, EIP, ESP, SyscallKind

BLOCKS = 1000
WORD = 0xFFFFFFFF


@pytest.fixture(params=list(WAYS))
def guest(request: pytest.FixtureRequest) -> Iterator[BareMachine]:
    machine = BareMachine(*WAYS[request.param])
    machine.cpu.set_quiet_memory(quiet=False)
    machine.regs[ESP] = STACK_TOP
    machine.regs[EIP] = CODE
    yield machine
    machine.close()


def steps(guest: BareMachine, count: int) -> list[int]:
    eips = []
    for _ in range(count):
        guest.cpu.step(BLOCKS)
        eips.append(guest.regs[EIP] - CODE)
    return eips


def test_a_step_is_one_instruction_and_one_element(guest: BareMachine) -> None:
    guest.load(f"inc dword ptr [{DATA:#x}]; push eax; mov ecx, 2; rep stosb; jmp on; on: nop")
    guest.regs[EDI] = DATA + 16
    assert steps(guest, 8) == [6, 7, 12, 12, 12, 14, 16, 17]
    assert guest.word(DATA) == 1
    assert guest.regs[ECX] == 0


def test_a_step_of_a_loop_that_has_run_before_is_one_turn(guest: BareMachine) -> None:
    guest.load("mov ecx, 9; again: inc eax; loop again; int 0x82")
    breakpoints = Breakpoints(guest.cpu)
    breakpoints.set(CODE + 6)
    for turn in range(3):
        guest.cpu.enter(BLOCKS)
        assert breakpoints.hit == CODE + 6
        breakpoints.clear(CODE + 6)
        assert steps(guest, 1) == [5]
        assert guest.regs[ECX] == 8 - turn
        breakpoints.set(CODE + 6)


def test_a_step_over_what_traps_ends_behind_the_trap(guest: BareMachine) -> None:
    seen: list[str] = []
    code = "int 0x80; ud2; in al, dx; sysenter; mov eax, [0x90000]; nop; cpuid; nop"
    guest.load(code)

    def on_interrupt(trap: Trap) -> None:
        seen.append(str(trap.vector))
        if not trap.is_int:
            guest.regs[EIP] += 5

    def on_invalid() -> bool:
        seen.append("ud")
        guest.regs[EIP] += 2
        return True

    def on_port(access: PortAccess) -> None:
        seen.append("port")
        guest.regs[EIP] = access.next_eip

    def on_syscall(kind: SyscallKind) -> None:
        seen.append(kind.value)
        guest.regs[EIP] += 2

    guest.on_interrupt, guest.on_invalid = on_interrupt, on_invalid
    guest.on_port, guest.on_syscall = on_port, on_syscall
    assert steps(guest, 8) == [2, 4, 5, 7, 12, 13, 15, 16]
    assert seen == ["128", "ud", "port", "sysenter", "14"]


def test_kicks_do_not_eat_steps(guest: BareMachine) -> None:
    """A kick stops a run at the next block, and each step begins one."""
    guest.load("again: inc eax; cmp eax, 0; jmp again")
    is_over = threading.Event()

    def kick() -> None:
        while not is_over.is_set():
            guest.cpu.kick()

    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        eips = steps(guest, 300)
    finally:
        is_over.set()
        kicker.join()
    assert eips == [1, 4, 0] * 100
    assert guest.regs[EAX] == 100


def test_a_breakpoint_stops_before_its_instruction_and_is_gone_when_cleared(
    guest: BareMachine,
) -> None:
    guest.load(f"mov eax, 1; inc dword ptr [{DATA:#x}]; inc dword ptr [{DATA:#x}]; int 0x82")
    breakpoints = Breakpoints(guest.cpu)
    breakpoints.set(CODE + 11)
    guest.cpu.enter(BLOCKS)
    assert (breakpoints.hit, guest.regs[EIP]) == (CODE + 11, CODE + 11)
    assert guest.word(DATA) == 1
    breakpoints.clear_all()
    breakpoints.forget_hit()
    guest.cpu.enter(BLOCKS)
    assert breakpoints.hit is None
    assert guest.word(DATA) == 2


def test_breakpoints_have_a_limit_that_takes_none_away(guest: BareMachine) -> None:
    guest.load("nop; nop; int 0x82")
    breakpoints = Breakpoints(guest.cpu)
    for vaddr in range(MAX_BREAKPOINTS):
        breakpoints.set(CODE + 1 + vaddr)
    breakpoints.set(CODE + 1)
    with pytest.raises(Refused, match=r"debug\.too-many-breakpoints"):
        breakpoints.set(CODE)
    guest.cpu.enter(BLOCKS)
    assert breakpoints.hit == CODE + 1


def test_a_changed_cell_stops_behind_the_store(guest: BareMachine) -> None:
    code = f"mov ecx, 3; again: inc dword ptr [{DATA + 8:#x}]; inc dword ptr [{DATA:#x}]; nop;"
    guest.load(code + "loop again; int 0x82")
    cells = Cells(guest.cpu)
    cells.watch([Cell(guest.maddr(DATA), WORD)])
    for turn in range(3):
        guest.cpu.enter(BLOCKS)
        assert cells.has_stopped
        assert cells.have_changed()
        assert (cells.last_eip, guest.regs[EIP]) == (CODE + 11, CODE + 17)
        assert cells.entries_since == 0
        assert guest.word(DATA) == turn + 1
        cells.expect()
    guest.cpu.enter(BLOCKS)
    assert not cells.has_stopped
    assert len(guest.traps) == 1


def test_a_trap_that_changes_a_cell_is_told_from_an_instruction(guest: BareMachine) -> None:
    def on_interrupt(trap: Trap) -> None:
        guest.set_word(DATA, 7)
        if trap.vector == 0x82:
            guest.cpu.stop()

    guest.on_interrupt = on_interrupt
    guest.load("int 0x80; nop; nop")
    cells = Cells(guest.cpu)
    cells.watch([Cell(guest.maddr(DATA), WORD)])
    guest.cpu.enter(BLOCKS)
    assert cells.has_stopped
    assert cells.last_eip == CODE
    traps_alone = 1
    blocks = 1 if guest.cpu.capabilities.exact_stop else 0
    assert cells.entries_since == traps_alone + blocks


def test_only_the_masked_bits_of_a_cell_count(guest: BareMachine) -> None:
    guest.load(f"inc dword ptr [{DATA:#x}]; inc byte ptr [{DATA + 1:#x}]; nop; int 0x82")
    cells = Cells(guest.cpu)
    cells.watch([Cell(guest.maddr(DATA), 0xFF00)])
    guest.cpu.enter(BLOCKS)
    assert cells.has_stopped
    assert guest.regs[EIP] == CODE + 12


def test_a_load_and_a_store_of_the_same_value_are_accesses(guest: BareMachine) -> None:
    guest.load(
        f"mov eax, [{DATA + 20:#x}]; mov eax, [{DATA + 14:#x}]; nop;"
        f" mov dword ptr [{DATA + 16:#x}], 0; nop; int 0x82"
    )
    maddr = guest.maddr(DATA + 16)
    cells = Cells(guest.cpu)
    cells.watch([], [(range(maddr, maddr + 4), UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE)])
    stops = []
    for _ in range(2):
        guest.cpu.enter(BLOCKS)
        assert cells.was_accessed
        stops.append(guest.regs[EIP] - CODE)
        cells.expect()
    assert stops == [10, 21]
    guest.cpu.enter(BLOCKS)
    assert not cells.has_stopped
