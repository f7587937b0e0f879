# SPDX-License-Identifier: GPL-2.0-or-later
"""The way back by hypercall, and every frame that it must not follow (SECURITY B5)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import (
    EFLAGS_IF,
    EFLAGS_IOPL,
    FLAT_RING1_CS,
    FLAT_RING3_CS,
    FLAT_RING3_SS,
)

MASKED = 1 << 16
HANDLERS = """
    KEEP_FRAME 5, 1
protection_fault:
    KEEP_FRAME 6, 2
"""
GP = "TRAP_gp_fault, 0, protection_fault"


def outer(frame: str, *, program: str = "int 0x80", handler: str = HANDLERS) -> str:
    """Write a kernel that leaves through ``frame``, words pushed in that order."""
    pushes = "\n".join(f"push {word.strip()}" for word in frame.split(","))
    source = KERNEL_AND_PROGRAM.replace("\\before", f"{pushes}\nXEN iret\n")
    source = source.replace("\\program", program).replace("\\handler", handler)
    return source + traps("0x80, 3, handler", GP)


def test_a_return_to_ring_1_goes_on_above_the_frame() -> None:
    source = """
        SET_TRAPS traps
        mov [stack], esp
        push 0x246
        push FLAT_RING1_CS
        push offset target
        push 0xCAFE
        XEN iret
    target:
        mov [eax_then], eax
        mov [esp_then], esp
        pushfd
        pop eax
        mov [eflags_then], eax
        FINISH
    .data
    stack: .long 0
    eax_then: .long 0
    esp_then: .long 0
    eflags_then: .long 0
    """
    with boot(source + traps()) as guest:
        assert guest.word("eax_then") == 0xCAFE
        assert guest.word("esp_then") == guest.word("stack")
        assert guest.word("eflags_then") & 0x8D5 == 0x44


def test_a_return_to_ring_3_loads_all_six_words() -> None:
    source = outer("FLAT_RING3_SS, 0x3000, 0x202, FLAT_RING3_CS, offset program, 0xCAFE")
    with boot(source.replace("handler:", "handler:\nmov [eax_then], eax") + DATA) as guest:
        assert guest.reason == 1
        eip, cs, eflags, esp, ss = guest.words("frame", 5)
        assert (eip, cs) == (guest.symbols["program"] + 2, FLAT_RING3_CS)
        assert (esp, ss) == (0x3000, FLAT_RING3_SS)
        assert eflags & EFLAGS_IF
        assert guest.word("eax_then") == 0xCAFE


DATA = ".data\neax_then: .long 0\nmask_then: .long 0\n"


@pytest.mark.parametrize(("flags", "mask"), [(0x202, 0), (0x002, 1)])
def test_the_new_mask_is_the_opposite_of_if(flags: int, mask: int) -> None:
    source = outer(
        f"FLAT_RING3_SS, 0, {flags}, FLAT_RING3_CS, offset program, 0",
        handler="movzx eax, byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]\n"
        "mov [mask_then], eax\nKEEP_FRAME 3\nprotection_fault:\n",
    )
    with boot(source + DATA) as guest:
        assert guest.word("mask_then") == mask
        assert guest.words("frame", 2)[1] == FLAT_RING3_CS | mask << 16
        assert bool(guest.words("frame", 3)[2] & EFLAGS_IF) == (not mask)


def test_flags_of_all_ones_give_no_privilege() -> None:
    """All but VM: IOPL stays 0 (cli in ring 3 faults), IF on; TF takes the first instruction."""
    source = outer(
        "FLAT_RING3_SS, 0, 0xFFFDFFFF, FLAT_RING3_CS, offset program, 0",
        program="nop\nstepped:\ncli",
        handler="KEEP_FRAME 3, 1\nprotection_fault:\nKEEP_FRAME 4, 2\n"
        "single_step:\nand dword ptr [esp + 8], ~(EFLAGS_TF | EFLAGS_NT)\niretd\n",
    ).replace("    GATES_END", "    GATE TRAP_debug, 0, single_step\n    GATES_END")
    with boot(source) as guest:
        assert guest.reason == 2
        error_code, eip, cs, eflags = guest.words("frame", 4)
        assert (error_code, eip, cs) == (0, guest.symbols["stepped"], FLAT_RING3_CS)
        assert eflags & (EFLAGS_IF | EFLAGS_IOPL) == EFLAGS_IF


def test_a_nested_task_flag_is_given_back_and_harms_nobody() -> None:
    source = outer(
        "FLAT_RING3_SS, 0, 0x4202, FLAT_RING3_CS, offset program, 0",
        program="nop\nfault:\niretd",
        handler="KEEP_FRAME 3, 1\nprotection_fault:\nKEEP_FRAME 4, 2\nbad_tss:\nKEEP_FRAME 4, 3\n",
    ).replace("    GATES_END", "    GATE TRAP_invalid_tss, 0, bad_tss\n    GATES_END")
    with boot(source) as guest:
        assert guest.reason == 3, guest.crash
        assert guest.words("frame", 2) == [0, guest.symbols["fault"]]


@pytest.mark.parametrize("cs", ["0xE008", "0", "0xE010", "4", "0xE030"])
def test_a_return_to_ring_0_crashes_the_domain(cs: str) -> None:
    with boot(outer(f"FLAT_RING3_SS, 0, 0x202, {cs}, offset program, 0")) as guest:
        assert guest.crash_rule == "traps.iret-to-ring-0"


@pytest.mark.parametrize(
    ("cs", "ss", "error_code"),
    [
        ("0x7", "FLAT_RING3_SS", 0x4),  # an LDT that isn't there
        ("0x3", "FLAT_RING3_SS", 0x0),
        ("FLAT_RING3_SS", "FLAT_RING3_SS", FLAT_RING3_SS & ~3),  # data
        ("FLAT_RING1_CS + 2", "FLAT_RING3_SS", FLAT_RING1_CS & ~3),  # too inner
        ("0xFFFF", "FLAT_RING3_SS", 0xFFFC),
        ("FLAT_RING3_CS", "0", 0),
        ("FLAT_RING3_CS", "FLAT_RING1_SS", 0xE020),
        ("FLAT_RING3_CS", "FLAT_RING3_CS", 0xE028),
        ("FLAT_RING3_CS", "0x7", 0x4),
    ],
)
def test_a_selector_that_cannot_be_loaded_is_a_fault_at_the_target(
    cs: str, ss: str, error_code: int
) -> None:
    source = outer(f"{ss}, 0x3000, 0x202, {cs}, offset program, 0")
    with boot(source) as guest:
        assert guest.reason == 2, guest.crash
        frame = guest.words("frame", 6)
        assert frame[:2] == [error_code, guest.symbols["program"]]
        assert frame[4] == 0x3000


def test_a_bad_code_selector_of_ring_1_is_a_fault_on_the_kernels_stack() -> None:
    source = """
        SET_TRAPS traps
        push 0x246
        push 0x1F01
        push offset target
        push 0
        XEN iret
    target:
        FINISH 99
    protection_fault:
        KEEP_FRAME 3, 2
    """
    with boot(source + traps(GP)) as guest:
        assert guest.reason == 2
        assert guest.words("frame", 2) == [0x1F00, guest.symbols["target"]]
        assert guest.words("frame", 3)[2] & 0xFFFF == 0x1F01


@pytest.mark.parametrize(
    "stack",
    ["0x10000000", "0xFFFFFFFC", "0xF5800000", "0xFC000000", "offset beyond - 12", "0"],
)
def test_a_frame_that_cannot_be_read_crashes_the_domain(stack: str) -> None:
    source = f"""
        mov ebx, offset beyond
        xor ecx, ecx
        xor edx, edx
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        mov esp, {stack}
        XEN iret
    .bss
    .p2align 12
    .space 4096
    beyond: .space 4096
    """
    with boot(source) as guest:
        assert guest.crash_rule == "traps.iret-frame", guest.crash


def test_the_outer_words_are_read_only_where_they_are_needed() -> None:
    """A frame to ring 1 may end with its page; one to ring 3 may not."""
    source = """
        SET_TRAPS traps
        mov ebx, offset beyond
        xor ecx, ecx
        xor edx, edx
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        mov esp, offset beyond
        push 0x246
        push \\cs
        push offset target
        push 0
        XEN iret
    target:
        mov esp, offset kernel_stack_top
        FINISH 1
    .bss
    .p2align 12
    .space 4096
    beyond: .space 4096
    """
    with boot(source.replace("\\cs", "FLAT_RING1_CS") + traps()) as guest:
        assert guest.reason == 1, guest.crash
    with boot(source.replace("\\cs", "FLAT_RING3_CS") + traps()) as guest:
        assert guest.crash_rule == "traps.iret-frame"


def test_a_frame_may_cross_a_page() -> None:
    source = """
        push 0x246
        push FLAT_RING1_CS
        push offset target
        push 0xCAFE
        pop dword ptr [across]
        pop dword ptr [across + 4]
        pop dword ptr [across + 8]
        pop dword ptr [across + 12]
        mov esp, offset across
        XEN iret
    target:
        mov [eax_then], eax
        FINISH 1
    .data
    eax_then: .long 0
    .p2align 12
    .space 4096 - 8
    across: .space 4096
    """
    with boot(source) as guest:
        assert guest.reason == 1
        assert guest.word("eax_then") == 0xCAFE


def test_virtual_8086_mode_is_answered_with_gp_as_xen_does() -> None:
    frame = "4, 3, 2, 1, FLAT_RING3_SS, 0x3000, 0x20202, FLAT_RING3_CS, offset program, 0xCAFE"
    source = outer(
        frame,
        handler="KEEP_FRAME 1, 1\nprotection_fault:\nmov [eax_then], eax\nmov [esp_then], esp\n"
        "KEEP_FRAME 10, 2\n",
    )
    with boot(source + DATA + "esp_then: .long 0\n") as guest:
        assert guest.reason == 2
        assert guest.words("frame", 10) == [
            0, guest.symbols["program"], FLAT_RING3_CS, 0x20202, 0x3000, FLAT_RING3_SS, 1, 2, 3, 4,
        ]  # fmt: skip
        assert guest.word("eax_then") == 0xCAFE
        assert guest.word("esp_then") == guest.symbols["kernel_stack_top"] - 40


def test_native_entry_into_virtual_8086_mode_stays_inside_the_guest() -> None:
    """Hardware ignores VM in an iret from ring 3; the engine does not (ENGINES 6)."""
    program = """
        push 0
        push 0
        push 0
        push 0
        push 0
        push 0x1000
        push 0x20202
        push 0
        push 0x100
        iretd
    """
    source = outer(
        "FLAT_RING3_SS, offset user_stack_top, 0x202, FLAT_RING3_CS, offset program, 0",
        program=program,
        handler="KEEP_FRAME 1, 1\nprotection_fault:\nKEEP_FRAME 1, 2\n"
        "page_fault:\nmov ax, ds\nmov [eax_then], eax\nKEEP_FRAME 6, 3\n",
    ).replace("    GATES_END", "    GATE TRAP_page_fault, 0, page_fault\n    GATES_END")
    with boot(source + DATA) as guest:
        assert guest.reason == 3, guest.crash
        assert guest.words("frame", 6) == [0x14, 0x100, 0, 0x20202, 0x1000, 0]
        assert guest.word("eax_then") & 0xFFFF == 0, "its data segments are gone"


def test_an_inner_data_selector_is_null_in_ring_3() -> None:
    source = outer(
        "FLAT_RING3_SS, offset user_stack_top, 0x202, FLAT_RING3_CS, offset program, 0",
        program="mov eax, ds\nmov ebx, es\nmov ecx, fs\nmov edx, gs\nint 0x80",
        handler="mov esi, FLAT_RING1_DS\nmov ds, esi\nmov es, esi\nmov [selectors], eax\n"
        "mov [selectors + 4], ebx\nmov [selectors + 8], ecx\nmov [selectors + 12], edx\n"
        "KEEP_FRAME 1\nprotection_fault:\n",
    ).replace("XEN iret", "mov ecx, FLAT_RING3_DS\nmov fs, ecx\nXEN iret")
    with boot(source + ".data\nselectors: .fill 4, 4, 9\n") as guest:
        assert guest.words("selectors", 4) == [0, 0, FLAT_RING3_SS, 0]


def test_many_system_calls_come_and_go_alike() -> None:
    """The short way in and out, against the long one, which the first round takes."""
    source = outer(
        "FLAT_RING3_SS, offset user_stack_top, 0x202, FLAT_RING3_CS, offset program, 0",
        program="""
            mov ecx, 1000
            xor ebx, ebx
            xor edi, edi
        again:
            cmp ecx, 500
            int 0x80
            adc edi, 0              # CF came through both ways
            add ebx, eax
            dec ecx
            jnz again
            int 0x81
        """,
        handler="""
            cmp ecx, 0
            mov eax, 3
            push eax
            XEN iret
        protection_fault:
            FINISH 99
        last:
            mov ax, FLAT_RING1_DS
            mov ds, eax
            mov [sum], ebx
            mov [carries], edi
            FINISH 1
        """,
    ).replace("    GATES_END", "    GATE 0x81, 3, last\n    GATES_END")
    with boot(source + ".data\nsum: .long 0\ncarries: .long 0\n") as guest:
        assert guest.reason == 1, guest.crash
        assert guest.word("sum") == 3000
        assert guest.word("carries") == 499


def test_an_iret_ends_a_multicall() -> None:
    source = """
        push 0x246
        push FLAT_RING1_CS
        push offset target
        push 0xCAFE
        mov ebx, offset calls
        mov ecx, 2
        XEN multicall
        FINISH 99
    target:
        mov [eax_then], eax
        FINISH 1
    .data
    eax_then: .long 0
    calls:
        .long HYPERVISOR_iret, 0x1234, 0, 0, 0, 0, 0, 0
        .long HYPERVISOR_sched_op, 0x1234, SCHEDOP_shutdown, 0, 0, 0, 0, 0
    """
    with boot(source) as guest:
        assert guest.reason == 1, guest.crash
        assert guest.word("eax_then") == 0xCAFE
        assert guest.word("calls", 8 + 1) == 0x1234, "the second entry was not called"
