# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that have become fast, when something they rest on changes (B3, B4, B5).

A program makes system calls in a loop; after the fifth the kernel changes one thing, from inside
the handler, and what follows must be as if nothing had ever been fast.
"""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import EFLAGS_IF, EFLAGS_TF, FLAT_RING3_CS, FLAT_RING3_SS

PROGRAM = """
    xor ebx, ebx
again:
    \\each
    int 0x80
behind:
    inc ebx
    cmp ebx, 10
    jne again
    int 0x81
"""
HANDLER = """
    cmp ebx, 5
    je change
    \\back
change:
    mov [user_ebx], ebx
    mov ax, FLAT_RING1_DS
    mov ds, ax
    mov es, ax
    \\change
    mov ebx, [user_ebx]
    mov ax, FLAT_RING3_DS
    mov ds, ax
    mov es, ax
    \\back
end:
    mov ax, FLAT_RING1_DS
    mov ds, ax
    mov es, ax
    mov [user_ebx], ebx
    KEEP_FRAME 5, 1
protection_fault:
    mov ax, FLAT_RING1_DS
    mov ds, ax
    mov es, ax
    mov [user_ebx], ebx
    KEEP_FRAME 6, 2
other_handler:
    mov ax, FLAT_RING1_DS
    mov ds, ax
    mov es, ax
    mov [user_ebx], ebx
    mov [entered], esp
    KEEP_FRAME 5, 3
.data
user_ebx: .long 0
entered: .long 0
other_traps:
    \\other
    GATES_END
.bss
.p2align 12
other_stack: .space 4096
other_stack_top:
"""
BACK = {"native": "iretd", "call": "push 0\n    XEN iret"}
TABLE = traps("0x80, 3, handler", "0x81, 3, end", "TRAP_gp_fault, 0, protection_fault")


def warm(change: str, back: str, other: str = "", each: str = "") -> str:
    """Write the whole guest."""
    handler = HANDLER.replace("\\change", change).replace("\\back", BACK[back])
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace("\\handler", handler)
    source = source.replace("\\program", PROGRAM.replace("\\each", each))
    return source.replace("\\other", other) + TABLE


both = pytest.mark.parametrize("back", BACK)


@both
def test_nothing_changes_and_all_ten_calls_return(back: str) -> None:
    with boot(warm("nop", back)) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (1, 10), guest.crash
        eip, cs, eflags, esp, ss = guest.words("frame", 5)
        assert eip == guest.symbols["behind"] + len(b"\x43\x83\xfb\x0a\x75\x00\xcd\x81")
        assert (cs, esp, ss) == (FLAT_RING3_CS, guest.symbols["user_stack_top"], FLAT_RING3_SS)
        assert eflags & EFLAGS_IF


@both
def test_another_handler_is_entered_at_once(back: str) -> None:
    change = "SET_TRAPS other_traps"
    with boot(warm(change, back, "GATE 0x80, 3, other_handler")) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (3, 6), guest.crash


@both
def test_a_gate_that_was_closed_is_a_protection_fault(back: str) -> None:
    change = "SET_TRAPS other_traps"
    with boot(warm(change, back, "GATE 0x80, 0, handler")) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (2, 6), guest.crash
        assert guest.words("frame", 2) == [0x80 * 8 + 2, guest.symbols["behind"] - 2]


@both
def test_another_stack_is_used_at_once(back: str) -> None:
    change = """
        mov ebx, FLAT_RING1_SS
        mov ecx, offset other_stack_top
        XEN stack_switch
        SET_TRAPS other_traps
    """
    with boot(warm(change, back, "GATE 0x80, 3, other_handler")) as guest:
        assert guest.reason == 3, guest.crash
        assert guest.word("entered") == guest.symbols["other_stack_top"] - 20


@both
def test_a_gate_that_masks_events_masks_them(back: str) -> None:
    change = "SET_TRAPS other_traps"
    with boot(warm(change, back, "GATE 0x80, 7, other_handler")) as guest:
        assert guest.reason == 3, guest.crash
        assert guest.bytes_at("shared_info", 2)[1] == 1


@both
def test_a_mask_that_was_set_meanwhile_is_saved(back: str) -> None:
    """Through the frame of the hypercall, or in memory where the native iret leaves it."""
    change = "mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0x80"
    with boot(warm(change, back)) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (1, 10), guest.crash
        saved, eflags = guest.words("frame", 3)[1:]
        assert saved == FLAT_RING3_CS | (0x80 << 16 if back == "native" else 0)
        assert bool(eflags & EFLAGS_IF) == (back == "call")


@both
def test_a_program_that_steps_itself_is_seen_to(back: str) -> None:
    """TF is in the frame, and the handler runs without it."""
    each = "cmp ebx, 7\nja plain\njne plain\npushfd\nor dword ptr [esp], EFLAGS_TF\npopfd\nplain:"
    source = warm("nop", back, each=each).replace("    GATES_END", "GATE 1, 0, step\n GATES_END", 1)
    source += """
    step:
        push eax
        mov ax, FLAT_RING1_DS
        mov ds, ax
        inc dword ptr [steps]
        and dword ptr [esp + 12], ~EFLAGS_TF
        mov ax, FLAT_RING3_DS
        mov ds, ax
        pop eax
        iretd
    .data
    steps: .long 0
    """
    source = source.replace(TABLE, TABLE.replace("GATES_END", "GATE 1, 0, step\n    GATES_END"))
    with boot(source) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (1, 10), guest.crash
        assert guest.word("steps") == 1
        assert not guest.words("frame", 3)[2] & EFLAGS_TF


@both
def test_an_inner_selector_is_taken_from_the_program(back: str) -> None:
    change = "mov ax, FLAT_RING1_DS\nmov fs, ax"
    source = warm(change, back).replace("int 0x81", "mov edx, fs\nint 0x81")
    source = source.replace("end:", "end:\nmov ecx, edx").replace(
        "KEEP_FRAME 5, 1", "mov [entered], ecx\nKEEP_FRAME 5, 1"
    )
    with boot(source) as guest:
        assert (guest.reason, guest.word("entered") & 0xFFFF) == (1, 0), guest.crash


def test_flags_that_give_privilege_give_none_after_many_that_did_not() -> None:
    change = "or dword ptr [esp + 8], 0x3000 | EFLAGS_NT"
    source = warm(change, "call").replace("int 0x81", "cli\nint 0x81")
    with boot(source) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (2, 10), guest.crash


@pytest.mark.parametrize(("word", "value"), [(4, "0xE008"), (4, "0"), (4, "FLAT_RING1_CS")])
def test_a_frame_that_was_changed_goes_where_it_says_or_nowhere(word: int, value: str) -> None:
    change = f"mov dword ptr [esp + {word}], {value}"
    with boot(warm(change, "call")) as guest:
        if value == "FLAT_RING1_CS":
            assert guest.reason == 1, guest.crash
            assert guest.word("frame", 1) & 3 == 1, "the kernel ran the program's code itself"
        else:
            assert guest.crash_rule == "traps.iret-to-ring-0"


def test_an_event_that_came_meanwhile_enters_on_the_way_back() -> None:
    change = """
        mov ebx, EVTCHNOP_alloc_unbound
        mov ecx, offset alloc_unbound
        XEN event_channel_op
        mov eax, [alloc_unbound + 4]
        mov [bind_interdomain + 4], eax
        mov ebx, FLAT_RING1_CS
        mov ecx, offset other_handler
        mov edx, FLAT_RING1_CS
        mov esi, 0
        XEN set_callbacks
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
        mov ebx, EVTCHNOP_bind_interdomain
        mov ecx, offset bind_interdomain
        XEN event_channel_op
    """
    data = """
    .data
    alloc_unbound: .word DOMID_SELF, DOMID_SELF
        .long 0
    bind_interdomain: .long DOMID_SELF, 0, 0
    """
    with boot(warm(change, "call") + data) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (3, 5), guest.crash
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING3_CS]


@both
def test_a_changed_descriptor_is_loaded_at_the_next_call(back: str) -> None:
    """The program's stack selector, of its own LDT, is dropped by SET_LDT: #GP, not old state."""
    change = """
        mov dword ptr [set_ldt + 8], 0
        mov ebx, offset set_ldt
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
    """
    before = """
        REMAP offset ldt, PTE_RO_DATA
        mov ebx, offset set_ldt
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
    """
    data = """
    .data
    set_ldt: .long MMUEXT_SET_LDT, ldt, 1
    .p2align 12
    ldt: .quad 0x00CFF3000000FFFF
    .p2align 12
    """
    handler = HANDLER.replace("\\change", change).replace("\\back", BACK[back])
    source = KERNEL_AND_PROGRAM.replace("\\before", before).replace("\\handler", handler)
    program = "mov ax, 7\nmov ss, ax\nmov esp, offset user_stack_top\n" + PROGRAM
    source = source.replace("\\program", program.replace("\\each", "")).replace("\\other", "")
    with boot(source + TABLE + data) as guest:
        assert (guest.reason, guest.word("user_ebx")) == (2, 5), (guest.reason, guest.crash)
        assert guest.word("frame") == 4
