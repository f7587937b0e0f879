# SPDX-License-Identifier: GPL-2.0-or-later
"""What a handler finds on its stack, and what happens when there is no stack (SECURITY B4)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, BootedGuest, boot, traps
from xenlite.abi.x86_32p import (
    EFLAGS_DF,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_RF,
    EFLAGS_TF,
    FLAT_RING1_CS,
    FLAT_RING3_CS,
    FLAT_RING3_SS,
)

UNTOUCHED = 0xAAAAAAAA
MASKED = 1 << 16


def test_a_fault_of_the_kernel_lies_on_its_own_stack() -> None:
    source = """
        SET_TRAPS traps
        mov [stack], esp
        xor ecx, ecx
        stc
    fault:
        div ecx
    handler:
        mov [entered], esp
        KEEP_FRAME 4
    .data
    stack: .long 0
    entered: .long 0
    """
    with boot(source + traps("TRAP_divide_error, 0, handler")) as guest:
        eip, cs, eflags, beyond = guest.words("frame", 4)
        assert guest.word("entered") == guest.word("stack") - 12
        assert eip == guest.symbols["fault"]
        assert cs == FLAT_RING1_CS | MASKED, "the mask byte before the trap was 1"
        assert eflags & (EFLAGS_IF | EFLAGS_IOPL) == 0
        assert eflags & 1, "arithmetic flags are whole"
        assert beyond != UNTOUCHED


def test_the_saved_mask_is_the_whole_byte_and_if_its_opposite() -> None:
    source = """
        MAP_SHARED_INFO
        SET_TRAPS traps
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], \\mask
        ud2
    handler:
        movzx eax, byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]
        mov [after], eax
        KEEP_FRAME 3
    .data
    after: .long 0
    """
    for mask, flags, after in ((0, 0, 0), (0, 4, 1), (0xFF, 0, 0xFF), (0x80, 4, 0x81)):
        table = traps(f"TRAP_invalid_op, {flags}, handler")
        with boot(source.replace("\\mask", str(mask)) + table) as guest:
            _, cs, eflags = guest.words("frame", 3)
            assert cs == FLAT_RING1_CS | mask << 16
            assert bool(eflags & EFLAGS_IF) == (mask == 0)
            assert guest.word("after") == after


def test_a_fault_of_a_program_lies_on_the_stack_that_stack_switch_set() -> None:
    source = """
        MAP_SHARED_INFO
        SET_TRAPS traps
        mov ebx, FLAT_RING1_SS
        mov ecx, offset kernel_stack_top - 16
        XEN stack_switch
        REMAP offset program_page, PTE_USER_RO
        REMAP offset user_stack_top - 4096, PTE_USER_RW
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
        TO_USER program
    handler:
        mov [entered], esp
        KEEP_FRAME 5
    .data
    entered: .long 0
    .text
    .p2align 12
    program_page:
    program:
        ud2
    .p2align 12
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        eip, cs, eflags, esp, ss = guest.words("frame", 5)
        assert guest.word("entered") == guest.symbols["kernel_stack_top"] - 16 - 20
        assert (eip, cs, esp, ss) == (
            guest.symbols["program"],
            FLAT_RING3_CS,
            guest.symbols["user_stack_top"],
            FLAT_RING3_SS,
        )
        assert eflags & EFLAGS_IF


PAGE_FAULT = """
    MAP_SHARED_INFO
    SET_TRAPS traps
    \\before
fault:
    mov byte ptr [0x12345678], 1
handler:
    mov eax, [shared_info + VCPU_INFO_ARCH_CR2]
    mov [in_shared_info], eax
    mov eax, cr2
    mov [read_cr2], eax
    KEEP_FRAME 5
.data
in_shared_info: .long 0
read_cr2: .long 0
"""
ASSIST = """
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_xenlite_fault_address
    XEN vm_assist
"""


def test_a_page_fault_has_its_error_code_and_its_address_in_cr2() -> None:
    source = PAGE_FAULT.replace("\\before", "")
    # Bit 3 of the flags means nothing to Xen.
    with boot(source + traps("TRAP_page_fault, TI_FAULT_ADDRESS, handler")) as guest:
        assert guest.words("frame", 3) == [
            2,
            guest.symbols["fault"],
            FLAT_RING1_CS | MASKED,
        ]
        assert guest.word("in_shared_info") == guest.word("read_cr2") == 0x12345678


def test_a_page_fault_carries_its_address_on_the_stack_when_asked_to() -> None:
    source = PAGE_FAULT.replace("\\before", ASSIST)
    with boot(source + traps("TRAP_page_fault, TI_FAULT_ADDRESS, handler")) as guest:
        assert guest.words("frame", 4) == [
            0x12345678,
            2,
            guest.symbols["fault"],
            FLAT_RING1_CS | MASKED,
        ]
        assert guest.word("in_shared_info") == guest.word("read_cr2") == 0x12345678


def test_the_address_comes_only_to_the_gate_that_asked() -> None:
    source = PAGE_FAULT.replace("\\before", ASSIST)
    with boot(source + traps("TRAP_page_fault, 0, handler")) as guest:
        assert guest.words("frame", 2) == [2, guest.symbols["fault"]]


def test_a_software_interrupt_14_pushes_neither_word() -> None:
    source = PAGE_FAULT.replace("\\before", ASSIST + "int 14\nbehind:")
    with boot(source + traps("TRAP_page_fault, TI_FAULT_ADDRESS, handler")) as guest:
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING1_CS | MASKED]


def test_the_trap_flag_is_saved_and_cleared() -> None:
    source = """
        SET_TRAPS traps
        push 0x8fd7             # all that may be set: TF, DF and the arithmetic flags
        popfd
    stepped:
        nop
    next:
    handler:
        pushfd
        pop eax
        mov [inside], eax
        KEEP_FRAME 3
    .data
    inside: .long 0
    """
    with boot(source + traps("TRAP_debug, 0, handler")) as guest:
        eip, _, eflags = guest.words("frame", 3)
        assert eip == guest.symbols["next"]
        assert eflags & (EFLAGS_TF | EFLAGS_DF | 0x8D5) == EFLAGS_TF | EFLAGS_DF | 0x8D5
        assert guest.word("inside") & (EFLAGS_TF | EFLAGS_RF | 0x4000) == 0
        assert guest.word("inside") & EFLAGS_IOPL == 0


def test_a_selector_fault_carries_its_error_code() -> None:
    source = """
        SET_TRAPS traps
        mov eax, 0x44
    fault:
        mov fs, ax
    handler:
        KEEP_FRAME 2
    """
    with boot(source + traps("TRAP_gp_fault, 0, handler")) as guest:
        assert guest.words("frame", 2) == [0x44, guest.symbols["fault"]]


def test_a_frame_may_cross_a_page() -> None:
    source = """
        SET_TRAPS traps
        mov esp, offset kernel_stack_top - 4096 + 4
    fault:
        ud2
    handler:
        mov [entered], esp
        KEEP_FRAME 3
    .data
    entered: .long 0
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        assert guest.words("frame", 2) == [guest.symbols["fault"], FLAT_RING1_CS | MASKED]
        assert guest.word("entered") == guest.symbols["kernel_stack_top"] - 4096 - 8


def crashes(guest: BootedGuest, rule: str) -> None:
    """Assert that the domain ended by a rule, with the registers of that moment."""
    assert guest.crash_rule == rule, guest.crash


@pytest.mark.parametrize(
    "stack",
    [
        "mov esp, 0xFBADC0DC",  # in the hole
        "mov esp, 0xF5800004",  # the top of the frame in the M2P
        "mov esp, 4",
        "xor esp, esp",
        "mov esp, 0xFFFFFFF0",
        "mov esp, 0x10000000",
        "mov esp, offset read_only + 64",
        "mov esp, offset read_only + 4096 + 4",  # the lower part only
        "mov esp, [page_table]",
    ],
)
def test_a_frame_that_cannot_be_written_crashes_the_domain(stack: str) -> None:
    source = f"""
        mov eax, [esi + START_INFO_PT_BASE]
        add eax, 64
        mov [page_table], eax
        SET_TRAPS traps
        REMAP offset read_only, PTE_RO_DATA
        {stack}
        ud2
    handler:
        FINISH 99
    .data
    page_table: .long 0
    .bss
    .p2align 12
    read_only: .space 4096
    above: .space 4096
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        crashes(guest, "traps.no-frame")
        assert guest.words("above", 2) == [0, 0], "nothing of the frame was written"


@pytest.mark.parametrize(
    ("ss", "esp"),
    [
        ("0", "offset kernel_stack_top"),
        ("FLAT_RING3_SS", "offset kernel_stack_top"),
        ("FLAT_RING1_CS", "offset kernel_stack_top"),
        ("0x7", "offset kernel_stack_top"),
        ("FLAT_RING1_SS", "4"),
        ("FLAT_RING1_SS", "0xFC000000"),
        ("FLAT_RING1_SS", "0"),
    ],
)
def test_a_bad_kernel_stack_crashes_the_domain_when_it_is_needed(ss: str, esp: str) -> None:
    before = f"""
        mov ebx, {ss}
        mov ecx, {esp}
        XEN stack_switch
        test eax, eax
        jnz shutdown
    """
    source = KERNEL_AND_PROGRAM.replace("\\before", before).replace("\\program", "ud2")
    source = source.replace("\\handler", "FINISH 99")
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        crashes(guest, "traps.no-frame")


def test_a_trap_without_a_handler_crashes_the_domain() -> None:
    with boot("    ud2\n") as guest:
        crashes(guest, "traps.no-handler")


def test_an_undelivered_fault_in_the_handler_is_delivered_again_not_twice() -> None:
    """The second #UD comes on top of the first frame, and each exactly once."""
    source = """
        SET_TRAPS traps
        mov [stack], esp
        ud2
    handler:
        inc dword ptr [count]
        cmp dword ptr [count], 3
        je enough
        ud2
    enough:
        mov [entered], esp
        FINISH
    .data
    count: .long 0
    stack: .long 0
    entered: .long 0
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        assert guest.reason == 0
        assert guest.word("count") == 3
        assert guest.word("stack") - guest.word("entered") == 3 * 12


def test_the_virtual_iopl_is_pushed_only_with_the_assist() -> None:
    source = """
        mov ebx, VMASST_CMD_enable
        mov ecx, VMASST_TYPE_architectural_iopl
        XEN vm_assist
        SET_TRAPS traps
        push 0x3002             # eflags with IOPL 3
        push FLAT_RING1_CS
        push offset next
        push 0
        XEN iret
    next:
        ud2
    handler:
        KEEP_FRAME 3
    """
    with boot(source + traps("TRAP_invalid_op, 0, handler")) as guest:
        assert guest.words("frame", 3)[2] & EFLAGS_IOPL == EFLAGS_IOPL
    without = source.replace("XEN vm_assist", "")
    with boot(without + traps("TRAP_invalid_op, 0, handler")) as guest:
        assert guest.words("frame", 3)[2] & EFLAGS_IOPL == 0
