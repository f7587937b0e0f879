# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest starts a second vCPU, and what it may not ask for (SECURITY E3)."""

from __future__ import annotations

import pytest

from tests.support.guest import START, boot, made
from tests.support.guests import SMP
from xenlite.abi.x86_32p import (
    EEXIST,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSYS,
    ENXIO,
    FLAT_RING3_DS,
    SHUTDOWN_poweroff,
)
from xenlite.doors import RunState

WORD = 1 << 32


def smp(text: str) -> str:
    """Write a kernel that may start vCPUs."""
    return SMP + START + "MAP_SHARED_INFO\n" + text


def test_a_vcpu_starts_with_the_registers_of_its_context() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_USER_REGS_EAX], 0x11111111
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_USER_REGS_EBP], 0x22222222
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_USER_REGS_EFLAGS], 0x7C9D
        mov word ptr [context1 + VCPU_GUEST_CONTEXT_USER_REGS_FS], FLAT_RING3_DS
        VCPU_OP initialise, 1, offset context1
        VCPU_OP is_up, 1
        mov [result], eax
        VCPU_OP up, 1
        VCPU_OP is_up, 1
        shl eax, 8
        or [result], eax
    wait:
        cmp dword ptr [done], 0
        je wait
        FINISH 7
    worker:
        mov [seen], eax
        mov [seen + 4], ebp
        mov [seen + 8], esp
        pushfd
        pop eax
        mov [seen + 12], eax
        mov eax, fs
        mov [seen + 16], eax
        mov eax, cr0
        mov [seen + 20], eax
        mov dword ptr [done], 1
    spin:
        jmp spin
    .data
    done: .long 0
    seen: .fill 8, 4, 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        eax, ebp, esp, eflags, fs, cr0 = guest.words("seen", 6)
        assert (eax, ebp, esp) == (0x11111111, 0x22222222, guest.symbols["stack1_top"])
        assert eflags == 0x0E9F, "IF on; IOPL and NT not taken"
        assert fs & 0xFFFF == FLAT_RING3_DS
        assert not cr0 & 8
        assert guest.word("result") == 0x0100


def test_a_vcpu_starts_with_the_debug_registers_that_it_may_have() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_DEBUGREG], 0xC0001000
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_DEBUGREG + 4], 0xF5800000
        mov dword ptr [context1 + VCPU_GUEST_CONTEXT_DEBUGREG + 28], 0x2001
        VCPU_OP initialise, 1, offset context1
        mov [result], eax
        FINISH 7
    worker:
        int3
    """
    with boot(smp(text), vcpus=2) as guest:
        assert (guest.reason, guest.word("result")) == (7, 0)
        registers = guest.domain.vcpus[1].debug_registers
        assert registers == [0xC0001000, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]


HOSTILE = {
    "a foreign frame as cr3": (
        "mov dword ptr [edi + VCPU_GUEST_CONTEXT_CTRLREG + 12], 0x1000",
        -EINVAL,
    ),
    "no frame as cr3": (
        "mov dword ptr [edi + VCPU_GUEST_CONTEXT_CTRLREG + 12], 0xFFFFFFFF",
        -EINVAL,
    ),
    "a huge GDT": ("mov dword ptr [edi + VCPU_GUEST_CONTEXT_GDT_ENTS], 0xFFFFFFFF", -EINVAL),
    "a GDT one too long": ("mov dword ptr [edi + VCPU_GUEST_CONTEXT_GDT_ENTS], 7169", -EINVAL),
    "a foreign frame as GDT": ("mov dword ptr [edi + VCPU_GUEST_CONTEXT_GDT_ENTS], 1", -EINVAL),
    "a page table as GDT": (
        "mov dword ptr [edi + VCPU_GUEST_CONTEXT_GDT_ENTS], 1\n"
        "mov eax, cr3\nshr eax, 12\nmov [edi + VCPU_GUEST_CONTEXT_GDT_FRAMES], eax",
        -EINVAL,
    ),
    "an LDT between pages": ("mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_BASE], 8", -EINVAL),
    "an LDT too long": ("mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_ENTS], 8193", -EINVAL),
    "an LDT in the hole": (
        "mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_BASE], 0xFC000000\n"
        "mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_ENTS], 1",
        -EINVAL,
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_context_is_refused_whole_and_a_good_one_may_follow(what: str) -> None:
    lines, expected = HOSTILE[what]
    text = f"""
        PREPARE_CONTEXT offset context1, worker, stack1_top
        {lines}
        VCPU_OP initialise, 1, offset context1
        mov [result], eax
        VCPU_OP up, 1
        mov [result2], eax
        START_VCPU 2, worker, stack2_top
    wait:
        jmp wait
    worker:
        FINISH 7
    .data
    result2: .long 0
    """
    with boot(smp(text), vcpus=3) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == expected % WORD
        assert guest.word("result2") == WORD - EINVAL, "not initialised"
        assert guest.domain.vcpus[1].gdt_frames == ()


def test_a_page_table_below_the_top_is_no_cr3() -> None:
    text = """
        mov ebp, [esi + START_INFO_PT_BASE]
        MAP_SHARED_INFO
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov eax, [ebp + 24]
        and eax, 0xFFFFF000
        mov [edi + VCPU_GUEST_CONTEXT_CTRLREG + 12], eax
        VCPU_OP initialise, 1, offset context1
        mov [result], eax
    worker:
        FINISH 7
    """
    with boot(SMP + START + text, vcpus=2) as guest:
        assert guest.word("result") == WORD - EINVAL


def test_initialising_twice_is_refused() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        VCPU_OP initialise, 0, offset context1
        mov [seen], eax
        VCPU_OP initialise, 1, offset context1
        mov [seen + 4], eax
        VCPU_OP initialise, 1, offset context1
        mov [seen + 8], eax
        VCPU_OP initialise, 2, offset context1
        mov [seen + 12], eax
        VCPU_OP initialise, 1, 0xF5800000
        mov [seen + 16], eax
        VCPU_OP up, 2
        mov [seen + 20], eax
        mov ebx, 99
        xor ecx, ecx
        XEN vcpu_op
        mov [seen + 24], eax
        FINISH 7
    worker:
        int3
    .data
    seen: .fill 8, 4, 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.words("seen", 7) == [
            -error % WORD for error in (EEXIST, 0, EEXIST, ENOENT, EFAULT, ENOENT, ENOSYS)
        ]


def test_a_vcpu_comes_up_at_once_where_its_context_says_so() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        or dword ptr [edi + VCPU_GUEST_CONTEXT_FLAGS], VGCF_online
        VCPU_OP initialise, 1, offset context1
    wait:
        jmp wait
    worker:
        FINISH 7
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash


@pytest.mark.parametrize(
    ("field", "selector", "rule"),
    [
        ("CS", 0x8, "vcpu.start-selectors"),
        ("CS", 0, "vcpu.start-selectors"),
        ("CS", 0xFFFF, "vcpu.start-selectors"),
        ("SS", 0, "vcpu.start-selectors"),
        ("SS", 0xE033, "vcpu.start-selectors"),
        ("DS", 0x10, "traps.no-handler"),
        ("GS", 0xFC00 | 7, "traps.no-handler"),
    ],
)
def test_a_selector_that_is_none_ends_the_domain_when_the_vcpu_starts(
    field: str, selector: int, rule: str
) -> None:
    text = f"""
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov word ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_{field}], {selector}
        VCPU_OP initialise, 1, offset context1
        mov [result], eax
        VCPU_OP up, 1
    wait:
        jmp wait
    worker:
        FINISH 7
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.crash is not None
        assert (guest.crash.rule, guest.crash.vcpu) == (rule, 1)
        assert guest.word("result") == 0


def test_a_data_selector_that_is_none_enters_the_failsafe_callback() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov word ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_FS], 0x10 | 1
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_FAILSAFE_CALLBACK_CS], FLAT_RING1_CS
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_FAILSAFE_CALLBACK_EIP], offset failsafe
        VCPU_OP initialise, 1, offset context1
        VCPU_OP up, 1
    wait:
        jmp wait
    worker:
        FINISH 6
    failsafe:
        mov ax, ss
        mov ds, ax
        mov es, ax
        KEEP_FRAME 6, 7
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.words("frame", 5)[2] == 0x11
        assert guest.words("frame", 5)[4] == guest.symbols["worker"]


FPU = """
    fld1
    fldpi
    mov eax, 0x12345678
    movd xmm3, eax
    fnstcw [control]
    mov word ptr [control], 0x27F
    fldcw [control]
    fxsave [context1]
    fninit
    pxor xmm3, xmm3
    mov dword ptr [control], 0
"""


def test_a_vcpu_starts_with_the_fpu_of_its_context() -> None:
    text = (
        FPU
        + """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        or dword ptr [edi + VCPU_GUEST_CONTEXT_FLAGS], VGCF_i387_valid
        VCPU_OP initialise, 1, offset context1
        VCPU_OP up, 1
    wait:
        jmp wait
    worker:
        movd eax, xmm3
        mov [result], eax
        fnstcw [control]
        fxch st(1)
        fistp dword ptr [integer]
        fistp dword ptr [integer + 4]
        fnstsw ax
        mov [status], eax
        fxsave [again]
        FINISH 7
    .data
    control: .long 0
    integer: .long 0, 0
    status: .long 0
    .p2align 4
    again: .space 512
    """
    )
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0x12345678
        assert guest.word("control") == 0x27F
        assert guest.words("integer", 2) == [1, 3]
        assert guest.word("status") & 0x3841 == 0, "an empty stack, and no fault"
        assert guest.bytes_at("again", 5)[4] == 0, "every register is free again"


def test_task_switched_of_the_context_makes_the_first_use_of_the_fpu_trap() -> None:
    text = """
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_CTRLREG], 8
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_TRAP_CTXT + 7 * SIZEOF_TRAP_INFO + 2], FLAT_RING1_CS
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_TRAP_CTXT + 7 * SIZEOF_TRAP_INFO + 4], offset nm
        VCPU_OP initialise, 1, offset context1
        VCPU_OP up, 1
        fld1
    wait:
        jmp wait
    worker:
        fld1
        FINISH 6
    nm:
        FINISH 7
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash


def test_a_vcpu_that_goes_down_stops_and_goes_on_behind_its_call() -> None:
    text = """
        START_VCPU 1, worker, stack1_top
    again:
        SCHED_OP yield
        VCPU_OP is_up, 1
        test eax, eax
        jnz again
        mov eax, [steps]
        mov [result], eax
        VCPU_OP up, 1
    wait:
        jmp wait
    worker:
        inc dword ptr [steps]
        VCPU_OP down, 1
        inc dword ptr [steps]
        FINISH 7
    .data
    steps: .long 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert (guest.word("result"), guest.word("steps")) == (1, 2)


def test_the_last_vcpu_that_goes_down_takes_the_domain_with_it() -> None:
    text = """
        START_VCPU 1, worker, stack1_top
        VCPU_OP down, 0
        int3
    worker:
        VCPU_OP is_up, 0
        test eax, eax
        jnz worker
        VCPU_OP down, 1
        int3
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == SHUTDOWN_poweroff, guest.crash


def test_another_one_can_be_taken_down_and_sleeps_on_when_it_comes_up() -> None:
    text = """
        START_VCPU 1, worker, stack1_top
    again:
        SCHED_OP yield
        cmp dword ptr [steps], 1
        jne again
        VCPU_OP down, 1
        VCPU_OP up, 1
        SCHED_OP yield
        SCHED_OP yield
        VCPU_OP down, 0
        int3
    worker:
        inc dword ptr [steps]
        SCHED_OP block
        inc dword ptr [steps]
        FINISH 7
    .data
    steps: .long 0
    """
    with made(smp(text), vcpus=2) as guest:
        assert not guest.run(seconds=0.2)
        assert guest.control.info(guest.domid).state is RunState.BLOCKED
        assert guest.word("steps") == 1


def test_each_vcpu_has_an_identity() -> None:
    text = """
        VCPU_OP get_physid, 0, offset structure
        VCPU_OP get_physid, 1, offset structure + 8
        FINISH 7
    .data
    structure: .fill 4, 4, 9
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.words("structure", 4) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("offset", "vcpu", "expected"),
    [(0xFFF, 0, -ENXIO), (4096 - 60, 0, -ENXIO), (2, 0, -ENXIO), (1 << 31, 0, -ENXIO)],
)
def test_a_place_for_vcpu_info_that_is_none(offset: int, vcpu: int, expected: int) -> None:
    text = f"""
        mov dword ptr [structure + VCPU_REGISTER_VCPU_INFO_OFFSET], {offset}
        VCPU_OP register_vcpu_info, {vcpu}, offset structure
        mov [result], eax
        FINISH 7
    .data
    structure: .fill 4, 4, 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.word("result") == expected % WORD


# Page tables of the vCPU's own: forty tables to validate, more than one call may.
LONG = """
    .equ TABLES, 40
    mov ebp, [esi + START_INFO_PT_BASE]
    MAP_SHARED_INFO
    mov eax, [ebp + 24]
    shr eax, 12
    mov eax, [HYPERVISOR_VIRT_START_PAE + eax * 4]
    shl eax, 12
    lea esi, [eax + VIRT_BASE]
    mov edi, offset top_l2
    mov ecx, 1024
    cld
    rep movsd
    mov eax, offset top_l2
    call entry_of
    mov [new_l3 + 24], eax
    mov eax, offset low_l2
    call entry_of
    mov [new_l3], eax
    xor edi, edi
fill:
    mov eax, edi
    shl eax, 12
    add eax, offset tables
    call entry_of
    or eax, _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY
    mov [low_l2 + edi * 8], eax
    inc edi
    cmp edi, TABLES
    jne fill
    mov dword ptr [tables + (TABLES - 1) * 4096], {last}
    mov edi, offset new_l3
protect:
    REMAP edi, PTE_RO_DATA
    test eax, eax
    jnz failed
    add edi, 4096
    cmp edi, offset tables + TABLES * 4096
    jne protect
    PREPARE_CONTEXT offset context1, worker, stack1_top
    mov eax, offset new_l3
    call entry_of
    and eax, 0xFFFFF000
    mov [edi + VCPU_GUEST_CONTEXT_CTRLREG + 12], eax
    VCPU_OP initialise, 1, offset context1
    mov [result], eax
    test eax, eax
    jnz refused
    VCPU_OP up, 1
wait:
    jmp wait
refused:
    FINISH 5
worker:
    mov eax, cr3
    mov ecx, [context1 + VCPU_GUEST_CONTEXT_CTRLREG + 12]
    cmp eax, ecx
    jne failed
    FINISH 7
# The frame of the page at eax, present.
entry_of:
    sub eax, VIRT_BASE
    shr eax, 12
    mov ecx, [p2m]
    mov eax, [ecx + eax * 4]
    shl eax, 12
    or eax, _PAGE_PRESENT
    ret
.bss
.p2align 12
new_l3: .space 4096
top_l2: .space 4096
low_l2: .space 4096
tables: .space TABLES * 4096
.text
"""


@pytest.mark.parametrize(("last", "reason", "expected"), [("0", 7, 0), ("0x1001", 5, -EINVAL)])
def test_long_validation_restarts_and_keeps_or_returns_all(
    last: str, reason: int, expected: int
) -> None:
    with boot(SMP + START + LONG.replace("{last}", last), vcpus=2) as guest:
        assert guest.reason == reason, guest.crash
        assert guest.word("result") == expected % WORD


def test_a_vcpu_starts_with_the_ldt_of_its_context() -> None:
    text = """
        mov dword ptr [ldt + 8], 0x0000FFFF
        mov dword ptr [ldt + 12], 0x00CFB300
        REMAP offset ldt, PTE_RO_DATA
        PREPARE_CONTEXT offset context1, worker, stack1_top
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_BASE], offset ldt
        mov dword ptr [edi + VCPU_GUEST_CONTEXT_LDT_ENTS], 2
        mov word ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_GS], 13
        VCPU_OP initialise, 1, offset context1
        mov [result], eax
        VCPU_OP up, 1
        SET_TRAPS traps
    again:
        SCHED_OP yield
        cmp dword ptr [seen], 0
        je again
        mov eax, 13
        mov gs, ax
        FINISH 6
    worker:
        mov eax, gs:[marked]
        mov [seen], eax
        SCHED_OP yield
        jmp worker
    on_gp:
        FINISH 7
    .data
    seen: .long 0
    marked: .long 0x600DC0DE
    traps:
        GATE 13, 0, on_gp
        GATES_END
    .p2align 12
    ldt: .fill 512, 8, 0
    .p2align 12
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert (guest.word("result"), guest.word("seen")) == (0, 0x600DC0DE)


@pytest.mark.parametrize("high", [0, 1, 0xFFFFFFFF])
def test_vcpu_info_in_a_frame_that_is_none(high: int) -> None:
    text = f"""
        mov dword ptr [structure], 0x7FFFFFFF
        mov dword ptr [structure + 4], {high}
        VCPU_OP register_vcpu_info, 0, offset structure
        mov [result], eax
        FINISH 7
    .data
    structure: .fill 4, 4, 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.word("result") == WORD - EINVAL
