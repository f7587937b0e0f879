# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about the emulator that xenlite's correctness rests on, one test each.

A failure here after an upgrade of the engine means: read what depends on the fact, then decide.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.support.asm import assemble
from tests.support.bare_machine import (
    ACCESSED,
    CODE,
    DATA,
    DIRTY,
    GATE,
    GDT_BASE,
    L3_MFN,
    NX,
    RING1_CS,
    RING1_DS,
    RING3_CS,
    RING3_DS,
    RW,
    STACK_TOP,
    TSS_BASE,
    TSS_SELECTOR,
    US,
    WAYS,
    BareMachine,
    P,
    Trap,
    Way,
)
from xenlite.machine.memory import MachineMemory
from xenlite.machine.probes import Breakpoints
from xenlite.machine.trap import (
    CR2,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    EFLAGS,
    EFLAGS_DF,
    EFLAGS_VM,
    EFLAGS_ZF,
    EIP,
    ESP,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    SS_SELECTOR,
    TR,
    VECTOR_DB,
    VECTOR_DF,
    VECTOR_GP,
    VECTOR_NM,
    VECTOR_PF,
    VECTOR_TS,
    VECTOR_UD,
    IoDirection,
    SyscallKind,
)

UNMAPPED = 0x50000
STOP = 0x82


@pytest.fixture(params=["live", "copied", "slowest"])
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = WAYS[request.param]
    return way


@pytest.fixture
def guest(way: Way) -> Iterator[BareMachine]:
    machine = BareMachine(*way)
    yield machine
    machine.close()


def vector_and_error(traps: list[Trap]) -> list[tuple[int, int]]:
    return [(trap.vector, trap.error_code) for trap in traps]


# Translations outlive what Python, the API or another engine writes


def test_a_write_through_a_view_leaves_a_stale_translation_until_it_is_invalidated(
    guest: BareMachine,
) -> None:
    guest.run_code("mov eax, 1; int 0x82")
    maddr = guest.maddr(CODE)
    guest.memory.m8[maddr + 1] = 2
    guest.run()
    assert guest.regs[EAX] == 1, "the engine noticed: invalidation would be needless"
    guest.cpu.load_cr3(L3_MFN << 12)
    guest.run()
    assert guest.regs[EAX] == 1, "a CR3 write drops translations"
    guest.memory.wrote(maddr >> 12)
    guest.run()
    assert guest.regs[EAX] == 2


def test_a_guests_own_store_shows_in_the_next_instruction(guest: BareMachine) -> None:
    guest.run_code(f"mov byte ptr [{CODE + 8:#x}], 7; mov eax, 1; int 0x82")
    assert guest.regs[EAX] == 7


def test_another_engines_store_leaves_a_stale_translation(way: Way) -> None:
    memory = MachineMemory(16 << 20)
    first = BareMachine(*way, memory=memory)
    first._make_tables()
    second = BareMachine(*way, memory=memory)
    second.map(CODE, 16, P | RW | US)
    first.load("mov eax, 1; int 0x82")
    second.run()
    assert second.regs[EAX] == 1
    first.load(f"mov byte ptr [{CODE + 1:#x}], 9; int 0x82", CODE + 0x1000)
    first.run(CODE + 0x1000)
    second.cpu.load_cr3(L3_MFN << 12)
    second.run()
    assert second.regs[EAX] == 1, "an engine learns of another's stores"
    memory.wrote(16)
    second.run()
    assert second.regs[EAX] == 9
    second.close()
    first.close()
    memory.close()


def test_a_store_through_an_nx_alias_is_stale_until_the_tlb_is_flushed(guest: BareMachine) -> None:
    """The known gap. Not stale at all would mean that stores have lost their fast path."""
    alias = UNMAPPED
    guest.map(alias, 16, P | RW | US | NX)
    writer = CODE + 0x1000
    guest.load("jmp over; over: mov eax, 0; int 0x82")
    operand = alias + len(assemble("jmp over; over:", 0)) + 1
    guest.load(f"mov dword ptr [{operand:#x}], ebx; int 0x82", writer)
    guest.run()
    for value in (1, 2):
        guest.regs[EBX] = value
        guest.run(writer)
        guest.run()
    assert guest.regs[EAX] == 1, "the known gap is closed: say so to the users"
    guest.regs[EBX] = 3
    guest.cpu.flush_tlb()
    guest.run(writer)
    guest.run()
    assert guest.regs[EAX] == 3


# Paging


def test_accessed_and_dirty_are_set_in_the_tables(guest: BareMachine) -> None:
    guest.run_code(f"mov eax, [{DATA:#x}]; int 0x82")
    assert guest.pte(DATA) & (ACCESSED | DIRTY) == ACCESSED
    guest.run_code(f"mov [{DATA:#x}], eax; int 0x82")
    assert guest.pte(DATA) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


@pytest.mark.parametrize(("ring", "error"), [(1, 3), (3, 7)])
def test_a_read_only_page_is_read_only_to_ring_1_too(
    guest: BareMachine, ring: int, error: int
) -> None:
    guest.map(DATA, 34, P | US | NX)
    guest.enter_ring(ring)
    assert vector_and_error(guest.run_code(f"mov [{DATA + 4:#x}], eax")) == [(VECTOR_PF, error)]
    assert guest.regs[CR2] == DATA + 4
    assert guest.word(DATA + 4) == 0


@pytest.mark.parametrize(("ring", "error"), [(1, 0x11), (3, 0x15)])
def test_an_nx_page_is_not_executable(guest: BareMachine, ring: int, error: int) -> None:
    guest.enter_ring(ring)
    assert vector_and_error(guest.run(DATA)) == [(VECTOR_PF, error)]


def test_ring_1_is_supervisor_and_ring_3_is_not(guest: BareMachine) -> None:
    guest.map(DATA, 34, P | RW | NX)
    guest.load(f"mov eax, [{DATA:#x}]; int 0x82")
    assert [trap.vector for trap in guest.run()] == [STOP]
    guest.enter_ring(3)
    assert vector_and_error(guest.run()) == [(VECTOR_PF, 5)]


@pytest.mark.parametrize("bit", [40, 51, 62])
def test_reserved_bits_of_an_entry_fault(guest: BareMachine, bit: int) -> None:
    guest.memory.m64[guest.pte_index(DATA)] |= 1 << bit
    assert vector_and_error(guest.run_code(f"mov eax, [{DATA:#x}]")) == [(VECTOR_PF, 9)]


def test_not_present_to_present_needs_no_flush(guest: BareMachine) -> None:
    source = f"mov eax, [{UNMAPPED:#x}]; int 0x82"
    assert vector_and_error(guest.run_code(source)) == [(VECTOR_PF, 0)]
    guest.map(UNMAPPED, 34, P | NX)
    assert [trap.vector for trap in guest.run()] == [STOP]


@pytest.mark.parametrize("flush", ["page", "all", "cr3", "context"])
def test_a_cached_mapping_keeps_its_rights_until_a_flush(guest: BareMachine, flush: str) -> None:
    guest.run_code(f"inc dword ptr [{DATA:#x}]; int 0x82")
    guest.map(DATA, 34, P | US | NX)
    guest.run()
    assert guest.word(DATA) == 2, "the TLB noticed: flushes would be needless"
    if flush == "page":
        guest.cpu.flush_page(DATA)
    elif flush == "all":
        guest.cpu.flush_tlb()
    elif flush == "cr3":
        guest.cpu.load_cr3(L3_MFN << 12)
    else:
        context = guest.cpu.new_context()
        guest.cpu.save_context(context)
        guest.cpu.restore_context(context)
    assert vector_and_error(guest.run()) == [(VECTOR_PF, 3)]
    assert guest.word(DATA) == 2


def test_a_store_where_no_ram_is_ends_the_run_with_its_block(guest: BareMachine) -> None:
    """Not at the instruction: so the domain ends, and nothing is made of its state."""
    guest.map(DATA, guest.memory.nr_frames, P | RW | NX)
    guest.regs[EBX] = 0
    guest.load(f"mov [{DATA:#x}], eax; jmp next; next: inc ebx; again: inc ebx; jmp again")
    guest.run()
    assert guest.unmapped == [guest.memory.nr_frames << 12]
    assert guest.regs[EBX] == 0


def test_an_entry_that_names_no_ram_ends_the_run_at_a_load(guest: BareMachine) -> None:
    beyond = guest.memory.nr_frames + 5
    guest.map(DATA, beyond, P | RW | NX)
    guest.regs[EAX] = 77
    assert guest.run_code(f"nop; mov eax, [{DATA + 0x10:#x}]; int 0x82") == []
    assert guest.unmapped == [(beyond << 12) + 0x10]
    assert (guest.regs[EIP], guest.regs[EAX]) == (CODE + 1, 77)


def test_a_present_large_page_is_honoured(guest: BareMachine) -> None:
    """So the hypervisor must refuse PSE: the emulator would map 2 MB unchecked."""
    guest.memory.m64[((L3_MFN + 1) << 9) + 4] = 0x80 | P | RW | US
    guest.memory.m32[0x3000 >> 2] = 0x1234
    guest.run_code(f"mov eax, [{(4 << 21) + 0x3000:#x}]; int 0x82")
    assert guest.regs[EAX] == 0x1234


def test_segment_limits_are_not_enforced(guest: BareMachine) -> None:
    """So the hole above the guest may hold nothing secret."""
    guest.write_descriptor(6, FLAT_SMALL)
    guest.run_code(f"mov ax, 0x31; mov ds, ax; mov eax, [{DATA:#x}]; int 0x82")
    assert [trap.vector for trap in guest.traps] == [STOP]


FLAT_SMALL = 0x0040B300 << 32 | 0x0FFF


def test_a_gdt_without_user_rights_serves_ring_3(guest: BareMachine) -> None:
    guest.enter_ring(3)
    guest.run_code(f"mov ax, {RING3_DS}; mov es, ax; int 0x82")
    assert [trap.vector for trap in guest.traps] == [STOP]


def test_an_accessed_bit_is_written_to_the_gdt_unless_it_is_set(guest: BareMachine) -> None:
    guest.map(GDT_BASE, 36, P | NX)
    source = f"mov ax, {RING1_DS}; mov es, ax; int 0x82"
    assert [trap.vector for trap in guest.run_code(source)] == [STOP]
    guest.write_descriptor(2, 0x00CFB200 << 32 | 0xFFFF)
    assert vector_and_error(guest.run()) == [(VECTOR_PF, 3)]


# Gates, TSS, iret


def make_call_gate(guest: BareMachine, target: int, parameters: int) -> None:
    low = RING1_CS << 16 | target & 0xFFFF
    high = target & 0xFFFF0000 | 0xEC00 | parameters
    guest.write_descriptor(GATE >> 3, high << 32 | low)


def test_a_call_gate_takes_the_inner_stack_from_the_tss(guest: BareMachine) -> None:
    inner_top = DATA + 0x800
    guest.write_tss_stack(1, RING1_DS, inner_top)
    guest.cpu.set_tss(TSS_SELECTOR, TSS_BASE)
    make_call_gate(guest, CODE + 0x1000, 1)
    guest.load("mov eax, [esp + 8]; retf 4", CODE + 0x1000)
    guest.enter_ring(3)
    guest.load(GATE_CALL)
    traps = guest.run()
    assert [(trap.vector, trap.cpl) for trap in traps] == [(STOP, 3)]
    assert guest.regs[EAX] == 0x55
    assert guest.regs[ESP] == STACK_TOP
    assert guest.word(inner_top - 4) == RING3_DS


GATE_CALL = assemble("push 0x55", 0) + b"\x9a\0\0\0\0" + GATE.to_bytes(2, "little") + b"\xcd\x82"


@pytest.mark.parametrize(("kind", "survives"), [("0x8900", True), ("0x8b00", False)])
def test_a_busy_tss_makes_a_gate_call_kill_the_process(kind: str, survives: bool) -> None:
    """In a child process: the reason for TSS_FLAGS."""
    script = f"""
        from tests.architecture.test_engine_facts import *
        guest = BareMachine("live")
        guest.write_tss_stack(1, RING1_DS, DATA + 0x800)
        guest.cpu.set_tss(TSS_SELECTOR, TSS_BASE)
        guest.cpu.set_segment({TR}, TSS_SELECTOR, TSS_BASE, 0x67, {kind})
        make_call_gate(guest, CODE + 0x1000, 1)
        guest.load("int 0x82", CODE + 0x1000)
        guest.load(GATE_CALL)
        guest.enter_ring(3)
        assert guest.run()[0].cpl == 1
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False
    )
    assert (child.returncode == 0) is survives, child.stderr.decode()


def test_iret_from_ring_1_to_ring_3_needs_no_trap(guest: BareMachine) -> None:
    guest.load("int 0x82", CODE + 0x1000)
    frame = (STACK_TOP - 0x100, RING3_DS)
    guest.run_code(
        f"push {frame[1]}; push {frame[0]:#x}; push 0x202; push {RING3_CS};"
        f"push {CODE + 0x1000:#x}; iretd"
    )
    (trap,) = guest.traps
    assert (trap.vector, trap.cpl, trap.eip) == (STOP, 3, CODE + 0x1002)
    assert (guest.regs[ESP], guest.regs[SS_SELECTOR]) == frame


def test_iret_to_ring_0_or_inward_faults_with_the_selector(guest: BareMachine) -> None:
    guest.load(f"push 0x202; push {RING1_CS & ~3}; push {CODE:#x}; iretd")
    assert vector_and_error(guest.run()) == [(VECTOR_GP, RING1_CS & ~3)]
    guest.enter_ring(3)
    guest.load(f"push 0x202; push {RING1_CS}; push {CODE:#x}; iretd")
    assert vector_and_error(guest.run()) == [(VECTOR_GP, RING1_CS & ~3)]


def test_iret_with_nested_task_set_faults(guest: BareMachine) -> None:
    guest.cpu.set_tss(TSS_SELECTOR, TSS_BASE)
    guest.load(
        f"pushfd; or dword ptr [esp], 0x4000; popfd;"
        f"push 0x202; push {RING1_CS}; push {CODE:#x}; iretd"
    )
    assert vector_and_error(guest.run()) == [(VECTOR_TS, 0)]


def test_iret_can_enter_vm86_from_ring_3(guest: BareMachine) -> None:
    """Hardware would ignore the bit; trap code must expect it."""
    guest.enter_ring(3)
    guest.run_code(
        "push 0; push 0; push 0; push 0; push 0; push 0x1000;"
        f"push {EFLAGS_VM | 0x202:#x}; push 0; push 0x50; iretd"
    )
    (trap,) = guest.traps
    assert trap.eflags & EFLAGS_VM
    assert trap.cpl == 3


def test_ring_1_may_not_touch_privileged_state(guest: BareMachine) -> None:
    for source in (
        "cli", "sti", "hlt", "clts", "mov eax, cr0", "mov cr3, eax", "invlpg [eax]", "wbinvd",
        "rdmsr", "wrmsr", "lgdt [eax]", "lidt [eax]", "lldt ax", "ltr ax", "lmsw ax",
        "mov eax, dr7",
    ):  # fmt: skip
        (trap,) = guest.run_code(source + "; int 0x82")
        assert (trap.vector, trap.error_code, trap.eip) == (VECTOR_GP, 0, CODE), source


def test_popf_in_ring_1_changes_neither_if_nor_iopl(guest: BareMachine) -> None:
    guest.cpu.write_eflags(0x202)
    (trap,) = guest.run_code("push 0x3000; popfd; int 0x82")
    assert trap.eflags & 0x3200 == 0x200


# Traps


def test_a_software_interrupt_and_a_fault_are_told_apart(guest: BareMachine) -> None:
    (trap,) = guest.run_code("int 0x0e")
    assert (trap.vector, trap.is_int, trap.eip) == (VECTOR_PF, 1, CODE + 2)
    (trap,) = guest.run_code(f"mov eax, [{UNMAPPED:#x}]")
    assert (trap.vector, trap.is_int, trap.eip) == (VECTOR_PF, 0, CODE)


def test_a_fault_leaves_no_exception_in_delivery(guest: BareMachine) -> None:
    """Else the second of two page faults would arrive as #DF."""
    source = f"mov eax, [{UNMAPPED:#x}]"
    for _ in range(2):
        assert vector_and_error(guest.run_code(source)) == [(VECTOR_PF, 0)]
        assert guest.regs[OLD_EXCEPTION] == NO_EXCEPTION
    guest.regs[OLD_EXCEPTION] = VECTOR_PF
    assert vector_and_error(guest.run()) == [(VECTOR_DF, 0)]


@pytest.mark.parametrize(
    ("setup", "set_bits"),
    [("cmp eax, eax", EFLAGS_ZF), ("std", EFLAGS_DF), ("stc", 1), ("xor eax, eax; dec eax", 0x84)],
)
def test_a_trap_sees_and_sets_the_flags_kept_apart(
    guest: BareMachine, setup: str, set_bits: int
) -> None:
    watched = 0x8D5 | EFLAGS_DF

    def flip(trap: Trap) -> None:
        guest.traps.append(trap)
        if trap.vector == STOP:
            guest.stop()
        else:
            guest.cpu.write_eflags(trap.eflags ^ watched)

    guest.on_interrupt = flip
    guest.run_code(f"cld; xor eax, eax; {setup}; int 0x80; pushfd; pop eax; cld; int 0x82")
    seen = guest.traps[0].eflags
    assert seen & set_bits == set_bits
    assert guest.regs[EAX] & watched == ~seen & watched


def test_flags_survive_a_stop_and_a_new_run(guest: BareMachine) -> None:
    guest.run_code("std; stc; int 0x82; pushfd; pop eax; int 0x82")
    before = guest.cpu.read_eflags()
    guest.run(guest.regs[EIP])
    assert guest.regs[EAX] == before & ~0x30000
    assert before & (EFLAGS_DF | 1) == EFLAGS_DF | 1


def test_a_trap_that_goes_on_may_change_everything(guest: BareMachine) -> None:
    def redirect(trap: Trap) -> None:
        if trap.vector == STOP:
            guest.traps.append(trap)
            guest.stop()
            return
        guest.enter_ring(3)
        guest.regs[EIP] = CODE + 0x1000
        guest.regs[ECX] = 5

    guest.on_interrupt = redirect
    guest.load("mov eax, ecx; int 0x82", CODE + 0x1000)
    guest.run_code("int 0x80")
    assert guest.traps[0].cpl == 3
    assert guest.regs[EAX] == 5


def test_a_stop_in_a_trap_is_exact(guest: BareMachine) -> None:
    guest.load(f"int 0x80; inc dword ptr [{DATA:#x}]; mov eax, [{UNMAPPED:#x}]")
    for round_ in range(200):
        (trap,) = guest.run()
        assert (trap.eip, guest.regs[EIP]) == (CODE + 2, CODE + 2)
        (trap,) = guest.run(CODE + 2)
        assert trap.vector == VECTOR_PF
        assert guest.regs[EIP] == trap.eip
        assert guest.word(DATA) == round_ + 1


def test_an_undefined_opcode_arrives_at_the_instruction(guest: BareMachine) -> None:
    (trap,) = guest.run_code("nop; ud2")
    assert (trap.vector, trap.eip) == (VECTOR_UD, CODE + 1)


def test_single_step_traps_after_one_instruction(guest: BareMachine) -> None:
    """What the emulation of page-table writes stands on."""
    guest.load(f"inc dword ptr [{DATA:#x}]; nop; nop")
    guest.cpu.write_eflags(0x302)
    (trap,) = guest.run()
    assert (trap.vector, guest.word(DATA)) == (VECTOR_DB, 1)
    assert trap.eip == CODE + len(assemble(f"inc dword ptr [{DATA:#x}]", CODE))


def test_task_switched_makes_the_fpu_trap(guest: BareMachine) -> None:
    guest.load("fninit; fldz; movaps xmm0, xmm1; int 0x82")
    assert [trap.vector for trap in guest.run()] == [STOP]
    guest.cpu.set_task_switched(True)
    assert vector_and_error(guest.run()) == [(VECTOR_NM, 0)]
    guest.cpu.set_task_switched(False)
    assert [trap.vector for trap in guest.run()] == [STOP]


# Ports


@pytest.mark.parametrize("ring", [1, 3])
@pytest.mark.parametrize(
    ("instruction", "size", "direction"),
    [
        ("in al, dx", 1, IoDirection.IN),
        ("in eax, dx", 4, IoDirection.IN),
        ("out dx, ax", 2, IoDirection.OUT),
        ("insd", 4, IoDirection.IN),
        ("outsb", 1, IoDirection.OUT),
        ("rep insb", 1, IoDirection.IN),
        ("rep outsd", 4, IoDirection.OUT),
    ],
)
def test_a_port_access_is_exact(
    guest: BareMachine, ring: int, instruction: str, size: int, direction: IoDirection
) -> None:
    guest.enter_ring(ring)
    prefix = f"mov edx, 0x3f8; mov ecx, 3; mov edi, {DATA:#x}; mov esi, {DATA:#x}; mov eax, -1;"
    guest.load(f"{prefix} stc; {instruction}; inc dword ptr [{DATA + 0x100:#x}]; int 0x82")
    at = CODE + len(assemble(f"{prefix} stc", CODE))
    assert guest.run() == []
    (access,) = guest.ports
    assert (access.port, access.size, access.direction, access.eip) == (0x3F8, size, direction, at)
    if "rep" not in instruction:
        assert access.next_eip == at + len(assemble(instruction, 0))
    registers = [guest.regs[register] for register in (EAX, ECX, EDX, EDI, EIP)]
    assert registers == [0xFFFFFFFF, 3, 0x3F8, DATA, at]
    assert guest.cpu.read_eflags() & 1
    assert guest.word(DATA + 0x100) == 0, "the rest of the block ran"


def test_a_completed_port_access_goes_on(guest: BareMachine) -> None:
    def complete(access: object) -> None:
        guest.regs[EAX] += 1
        guest.regs[EIP] += 1

    guest.on_port = complete
    guest.run_code("mov eax, 4; in al, dx; out dx, al; mov ebx, eax; int 0x82")
    assert guest.regs[EBX] == 6


# CPUID, TSC, fast system calls


def test_cpuid_is_answered_by_the_handler(guest: BareMachine) -> None:
    guest.on_cpuid = lambda leaf, subleaf: (leaf + 1, subleaf + 1, 0xC, 0xD)
    guest.run_code("mov eax, 0x40000000; mov ecx, 6; cpuid; mov esi, eax; int 0x82")
    seen = [guest.regs[register] for register in (EAX, EBX, ECX, EDX)]
    assert seen == [0x40000001, 7, 0xC, 0xD]


def test_rdtsc_is_answered_by_the_handler(way: Way) -> None:
    machine = BareMachine(*way, rdtsc=lambda: 0x1_0000_0002)
    machine.run_code("rdtsc; mov ebx, eax; mov esi, edx; rdtscp; int 0x82")
    assert [machine.regs[register] for register in (EAX, EDX, EBX, ECX)] == [2, 1, 2, 0]
    machine.close()


@pytest.mark.parametrize(
    ("source", "kind"),
    [("sysenter", SyscallKind.SYSENTER), ("syscall", SyscallKind.SYSCALL)],
)
def test_a_fast_system_call_has_not_happened(
    guest: BareMachine, source: str, kind: SyscallKind
) -> None:
    guest.enter_ring(3)
    guest.load(f"nop; {source}; inc dword ptr [{DATA:#x}]; int 0x82")
    assert guest.run() == []
    assert guest.syscalls == [(kind, CODE + 1)]
    assert guest.word(DATA) == 0


def test_a_fast_system_call_can_be_redirected(guest: BareMachine) -> None:
    def redirect(kind: SyscallKind) -> None:
        guest.regs[EIP] = CODE + 0x1000

    guest.on_syscall = redirect
    guest.load("mov eax, 3; int 0x82", CODE + 0x1000)
    guest.run_code("sysenter; mov eax, 1; int 0x82")
    assert guest.regs[EAX] == 3


# Stopping


def test_stops_under_a_storm_of_kicks_are_exact(guest: BareMachine) -> None:
    """Each instruction runs once, however often the run is stopped: counts, not times."""
    rounds = 2000
    guest.load(
        f"mov ecx, {rounds}; again: inc dword ptr [{DATA:#x}];"
        f"add dword ptr [{DATA + 4:#x}], 3; dec ecx; jnz again; int 0x82"
    )
    guest.regs[EIP] = CODE
    stops = 0
    while not guest.traps:
        guest.cpu.enter(1 + stops % 3)
        stops += 1
    assert guest.word(DATA) == rounds
    assert guest.word(DATA + 4) == 3 * rounds
    assert stops > rounds // 5


def test_exit_addresses_never_end_a_run(guest: BareMachine) -> None:
    """``until`` of a run must not match a guest's address."""
    guest.map(0xFFFFF000, 40, P | RW | US)
    guest.load(b"\xeb\x0d", 0xFFFFFFF0)
    guest.load(b"\xcd", 0xFFFFFFFF)
    guest.map(0, 41, P | RW | US)
    guest.load(b"\x82", 0)
    assert [trap.vector for trap in guest.run(0xFFFFFFF0)] == [STOP]


def test_contexts_of_two_virtual_cpus_take_turns(guest: BareMachine) -> None:
    guest.load("inc eax; int 0x82; jmp back; back: inc eax; int 0x82")
    first, second = guest.cpu.new_context(), guest.cpu.new_context()
    guest.regs[EAX] = 10
    guest.run()
    guest.cpu.save_context(first)
    guest.regs[EAX] = 20
    guest.run()
    guest.cpu.save_context(second)
    guest.cpu.restore_context(first)
    guest.run(guest.regs[EIP])
    assert guest.regs[EAX] == 12
    guest.cpu.restore_context(second)
    guest.run(guest.regs[EIP])
    assert guest.regs[EAX] == 22


def test_arithmetic_bits_in_the_word_of_eflags_mean_nothing_in_a_trap(guest: BareMachine) -> None:
    def spoil(trap: Trap) -> None:
        guest.traps.append(trap)
        guest.regs[EFLAGS] |= 0x8D5 | EFLAGS_DF
        if trap.vector == STOP:
            guest.stop()

    guest.on_interrupt = spoil
    guest.run_code("test esp, esp; cld; int 0x80; pushfd; pop eax; int 0x82")
    assert guest.regs[EAX] & (1 | EFLAGS_ZF | EFLAGS_DF) == 0
    assert guest.cpu.read_eflags() & (1 | EFLAGS_ZF | EFLAGS_DF) == 0
    guest.run(CODE + len(assemble("test esp, esp; cld; int 0x80", CODE)))
    assert guest.regs[EAX] & (1 | EFLAGS_ZF | EFLAGS_DF) == 0


# Stopping at single instructions (machine/probes.py)


def test_a_stop_in_a_code_hook_is_late_without_stop_tests_and_exact_with_them() -> None:
    stops = {}
    for quiet in (True, False):
        guest = BareMachine(*WAYS["live"])
        guest.cpu.set_quiet_memory(quiet=quiet)
        guest.load(f"nop; inc dword ptr [{DATA:#x}]; inc dword ptr [{DATA:#x}]; nop; int 0x82")
        breakpoints = Breakpoints(guest.cpu)
        breakpoints.set(CODE + 7)
        guest.run()
        stops[quiet] = guest.regs[EIP] - CODE
        guest.close()
    assert stops[False] == 7
    assert stops[True] > 7, "stop tests are needless: a debugger need not slow its guest down"


def test_instructions_are_counted_only_in_what_is_translated_from_then_on() -> None:
    guest = BareMachine(*WAYS["live"])
    guest.cpu.set_quiet_memory(quiet=False)
    guest.run_code("mov ecx, 9; again: inc eax; loop again; int 0x82")
    guest.regs[EIP], guest.regs[ECX], guest.regs[EAX] = CODE + 5, 9, 0
    guest.cpu._enter(1000, guest.cpu._run_one)
    assert guest.regs[EAX] > 1, "Cpu.step need not forget what is translated"
    guest.close()
