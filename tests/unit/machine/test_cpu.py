# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPU keeps its promises in every way it can run."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.bare_machine import (
    CODE,
    DATA,
    GDT_BASE,
    L3_MFN,
    NX,
    RING1_DS,
    RW,
    STACK_TOP,
    US,
    WAYS,
    BareMachine,
    P,
    Way,
)
from xenlite.machine.engine import EngineError
from xenlite.machine.memory import MachineMemory
from xenlite.machine.trap import (
    CR0,
    CR3,
    CS,
    DS,
    EAX,
    EBX,
    ECX,
    EIP,
    ERROR_CODE,
    ESP,
    FLAT_DATA,
    FLAT_LIMIT,
    GDT,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_SS32,
    HFLAGS,
    LDT,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    SEG0,
    SEGMENT_BASE,
    SEGMENT_FLAGS,
    SEGMENT_LIMIT,
    SEGMENT_WORDS,
    SS,
    STATE_SIZE_BYTES,
    TR,
    VECTOR_PF,
    SyscallKind,
)

STOP = 0x82


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = WAYS[request.param]
    return way


@pytest.fixture
def guest(way: Way) -> Iterator[BareMachine]:
    machine = BareMachine(*way)
    yield machine
    machine.close()


# Running and stopping


def test_a_budget_ends_an_endless_loop(guest: BareMachine) -> None:
    guest.load("again: inc eax; jmp again")
    guest.regs[EAX] = 0
    guest.run(blocks=1000)
    assert guest.cpu.blocks_left == 0
    assert guest.regs[EAX] >= 1000
    before = guest.regs[EAX]
    guest.cpu.enter(1000)
    assert guest.regs[EAX] == 2 * before


def test_no_budget_runs_nothing(guest: BareMachine) -> None:
    guest.regs[EAX] = 5
    guest.load("inc eax; int 0x82")
    assert guest.run(blocks=0) == []
    assert (guest.regs[EAX], guest.regs[EIP]) == (5, CODE)


def test_a_stop_leaves_the_rest_of_the_budget(guest: BareMachine) -> None:
    guest.run_code("int 0x82", blocks=100_000)
    assert guest.cpu.blocks_left > 0


def test_a_kick_before_a_run_ends_it_and_is_used_up(guest: BareMachine) -> None:
    guest.load("inc eax; int 0x82")
    guest.cpu.kick()
    assert guest.run() == []
    assert guest.regs[EIP] == CODE
    assert [trap.vector for trap in guest.run()] == [STOP]


def test_a_kick_from_a_thread_ends_a_run_that_would_last_for_ever(guest: BareMachine) -> None:
    """A storm of them, until the guest has been stopped in mid-run many times."""
    guest.load(f"again: inc dword ptr [{DATA:#x}]; inc eax; jmp again")
    guest.regs[EAX] = 0
    done = threading.Event()

    def storm() -> None:
        while not done.is_set():
            guest.cpu.kick()

    thread = threading.Thread(target=storm)
    thread.start()
    guest.run(blocks=1 << 40)
    for _ in range(20):
        guest.cpu.enter(1 << 40)
    done.set()
    thread.join()
    progress = (guest.word(DATA) - guest.regs[EAX]) & 0xFFFFFFFF
    assert progress == (1 if guest.regs[EIP] == CODE + 6 else 0)


def test_what_a_trap_handler_raises_comes_out_of_enter(guest: BareMachine) -> None:
    def refuse(trap: object) -> None:
        raise KeyError("from the handler")

    guest.on_interrupt = refuse
    guest.load("int 0x80; inc eax; int 0x82")
    guest.regs[EAX] = 0
    with pytest.raises(KeyError, match="from the handler"):
        guest.run()
    assert (guest.regs[EIP], guest.regs[EAX]) == (CODE + 2, 0)
    guest.on_interrupt = guest._record
    assert [trap.vector for trap in guest.run(guest.regs[EIP])] == [STOP]


@pytest.mark.parametrize("source", ["cpuid", "in al, dx", "syscall", "ud2"])
def test_what_any_other_handler_raises_comes_out_too(guest: BareMachine, source: str) -> None:
    def refuse(*_: object) -> tuple[int, int, int, int]:
        raise KeyError("from the handler")

    guest.on_cpuid = refuse
    guest.on_port = refuse  # type: ignore[assignment]
    guest.on_syscall = refuse  # type: ignore[assignment]
    guest.on_invalid = refuse  # type: ignore[assignment]
    with pytest.raises(KeyError, match="from the handler"):
        guest.run_code(f"{source}; again: jmp again", blocks=1000)


def test_an_invalid_opcode_that_nobody_takes_is_our_bug(guest: BareMachine) -> None:
    guest.on_invalid = lambda: False
    with pytest.raises(EngineError, match="error 10"):
        guest.run_code("ud2")


def test_a_vector_handler_takes_its_vector_alone(way: Way) -> None:
    calls: list[int] = []
    machine = BareMachine(*way, vectors={0x80: lambda: calls.append(machine.regs[EAX])})
    machine.run_code("mov eax, 7; int 0x80; mov eax, 8; int 0x80; int 0x81")
    assert calls == [7, 8]
    assert [trap.vector for trap in machine.traps] == [0x81]
    machine.close()


def test_a_vector_handler_that_changes_state_is_obeyed(way: Way) -> None:
    def double() -> None:
        machine.regs[EAX] *= 2

    machine = BareMachine(*way, vectors={0x80: double})
    machine.run_code("mov eax, 1; int 0x80; int 0x80; int 0x80; int 0x82")
    assert machine.regs[EAX] == 8
    machine.close()


def test_a_fault_in_a_vector_handler_leaves_no_exception_in_delivery(way: Way) -> None:
    codes: list[int] = []

    def page_fault() -> None:
        codes.append(machine.regs[ERROR_CODE])
        machine.regs[EIP] += 5

    machine = BareMachine(*way, vectors={VECTOR_PF: page_fault})
    machine.run_code("mov eax, [0x50000]; mov [0x50000], eax; int 0x82")
    assert codes == [0, 2]
    assert machine.regs[OLD_EXCEPTION] == NO_EXCEPTION
    machine.close()


def test_a_syscall_handler_may_go_on_without_leaving(guest: BareMachine) -> None:
    def skip(kind: SyscallKind) -> None:
        guest.syscalls.append((kind, guest.regs[EIP]))
        guest.regs[EIP] += 2

    guest.on_syscall = skip
    guest.run_code("sysenter; syscall; sysenter; int 0x82")
    assert [eip for _, eip in guest.syscalls] == [CODE, CODE + 2, CODE + 4]
    assert [trap.vector for trap in guest.traps] == [STOP]


def test_a_machine_address_without_ram_is_reported_and_may_be_skipped(guest: BareMachine) -> None:
    guest.map(DATA, guest.memory.nr_frames + 1, P | RW | US | NX)
    guest.run_code(f"mov eax, [{DATA + 8:#x}]; int 0x82")
    guest.run(guest.regs[EIP] + 5)
    assert guest.unmapped == [(guest.memory.nr_frames + 1 << 12) + 8]
    assert [trap.vector for trap in guest.traps] == [STOP]


# State


def test_a_fresh_cpu_is_flat_at_privilege_level_1(way: Way) -> None:
    with_tables = BareMachine(*way)
    regs = with_tables.cpu.regs
    assert regs[HFLAGS] & (HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG) == 1 | HF_CS32 | HF_SS32
    assert regs[CR0] == 0x80010033
    assert regs[CR3] == L3_MFN << 12
    assert regs[SEG0 + SEGMENT_WORDS * TR + SEGMENT_FLAGS] == 0x8900
    assert with_tables.cpu.read_eflags() == 0x202
    with_tables.close()


def test_fpu_control_words_are_set(guest: BareMachine) -> None:
    guest.run_code(f"fnstcw [{DATA:#x}]; stmxcsr [{DATA + 4:#x}]; int 0x82")
    assert guest.word(DATA) & 0xFFFF == 0x37F
    assert guest.word(DATA + 4) == 0x1F80


def test_a_segment_base_is_added(guest: BareMachine) -> None:
    guest.set_word(DATA + 0x40, 0xCAFE)
    guest.cpu.set_segment(DS, RING1_DS, 0x40, FLAT_LIMIT, FLAT_DATA[1])
    assert guest.regs[HFLAGS] & HF_ADDSEG
    guest.run_code(f"mov eax, [{DATA:#x}]; int 0x82")
    assert guest.regs[EAX] == 0xCAFE
    guest.cpu.set_segment(DS, RING1_DS, 0, FLAT_LIMIT, FLAT_DATA[1])
    assert not guest.regs[HFLAGS] & HF_ADDSEG


def test_a_16_bit_stack_segment_shows_in_hflags(guest: BareMachine) -> None:
    guest.cpu.set_segment(SS, RING1_DS, 0, 0xFFFF, FLAT_DATA[1] & ~(1 << 22))
    assert not guest.regs[HFLAGS] & HF_SS32
    assert guest.regs[HFLAGS] & HF_CS32


def test_descriptor_tables_are_set(guest: BareMachine) -> None:
    guest.cpu.set_ldt(0x50, 0x123000, 0x7F)
    ldt = SEG0 + SEGMENT_WORDS * LDT
    assert [guest.regs[ldt + n] for n in (0, SEGMENT_BASE, SEGMENT_LIMIT)] == [
        0x50,
        0x123000,
        0x7F,
    ]
    assert guest.regs[SEG0 + SEGMENT_WORDS * GDT + SEGMENT_BASE] == GDT_BASE
    guest.cpu.set_ldt(0, 0, 0)
    assert guest.regs[ldt + SEGMENT_FLAGS] == 0


def test_no_ldt_means_no_descriptor(guest: BareMachine) -> None:
    guest.cpu.set_ldt(0, 0, 0)
    (trap,) = guest.run_code("mov ax, 0x0d; mov es, ax; int 0x82")
    assert (trap.vector, trap.error_code) == (13, 0x0C)


@pytest.mark.parametrize("value", [0x202, 0x202 | 0x8D5 | 0x400, 0x246, 0x303, 0x40202])
def test_eflags_read_back_as_written(guest: BareMachine, value: int) -> None:
    guest.cpu.write_eflags(value)
    assert guest.cpu.read_eflags() == value


def test_a_context_holds_everything(guest: BareMachine) -> None:
    fresh = guest.cpu.new_context()
    assert len(fresh) == STATE_SIZE_BYTES
    guest.run_code("mov eax, 1; fld1; stc; int 0x82")
    saved = guest.cpu.new_context()
    guest.cpu.save_context(saved)
    guest.cpu.restore_context(fresh)
    guest.cpu.load_cr3(L3_MFN << 12)
    guest.enter_ring(1)
    guest.cpu.set_gdt(GDT_BASE, 0xFFF)
    guest.run_code("mov eax, 2; fldz; clc; int 0x82")
    guest.cpu.restore_context(saved)
    assert guest.regs[EAX] == 1
    assert guest.cpu.read_eflags() & 1
    guest.load(f"fistp dword ptr [{DATA:#x}]; int 0x82")
    guest.regs[EIP], guest.regs[ESP] = CODE, STACK_TOP
    guest.cpu.enter(1000)
    assert guest.word(DATA) == 1


def test_registers_written_outside_a_run_are_what_the_guest_finds(guest: BareMachine) -> None:
    guest.regs[EBX], guest.regs[ECX] = 3, 4
    guest.run_code("lea eax, [ebx + ecx]; int 0x82")
    assert guest.regs[EAX] == 7
    assert guest.regs[SEG0 + SEGMENT_WORDS * CS] & 3 == 1


# Translations and memory


def test_memory_write_is_enough_for_code(guest: BareMachine) -> None:
    for value in range(1, 20):
        guest.load(f"mov eax, {value}; int 0x82")
        guest.run()
        assert guest.regs[EAX] == value


def test_a_write_from_a_trap_replaces_the_code_that_comes_next(guest: BareMachine) -> None:
    patched = CODE + 0x100

    def patch(trap: object) -> None:
        if guest.regs[EAX] == 5:
            guest.stop()
            return
        guest.memory.write(guest.maddr(patched) + 1, bytes([guest.regs[EAX] + 1]))

    guest.on_interrupt = patch
    guest.load(f"again: int 0x80; jmp {patched:#x}")
    guest.load(f"mov eax, 0; jmp {CODE:#x}", patched)
    guest.regs[EAX] = 0
    guest.run()
    assert guest.regs[EAX] == 5


def test_a_released_frame_keeps_no_translation(guest: BareMachine) -> None:
    guest.run_code("mov eax, 1; int 0x82")
    guest.memory.release(16)
    assert not guest.memory.code[16]
    guest.memory.m8[guest.maddr(CODE) + 1] = 2
    guest.run()
    assert guest.regs[EAX] == 2


def test_dropping_every_translation_is_enough_too(guest: BareMachine) -> None:
    guest.run_code("mov eax, 1; int 0x82")
    guest.memory.m8[guest.maddr(CODE) + 1] = 2
    guest.cpu.invalidate_all_code()
    guest.run()
    assert guest.regs[EAX] == 2


def test_close_gives_the_slot_back(way: Way) -> None:
    memory = MachineMemory(16 << 20)
    for _ in range(3):
        guest = BareMachine(*way, memory=memory)
        assert guest.cpu.slot == 1
        guest.close()
        assert guest.cpu.slot == 0
    memory.close()
