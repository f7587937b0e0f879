# SPDX-License-Identifier: GPL-2.0-or-later
"""When an event enters the kernel, and when it must wait (SECURITY B4, C1)."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, made, traps
from xenlite.abi.x86_32p import EFLAGS_IF, FLAT_RING1_CS, FLAT_RING3_CS
from xenlite.doors import RunState

LOOPBACK = """
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset alloc_unbound
    XEN event_channel_op
    mov eax, [alloc_unbound + 4]
    mov [bind_interdomain + 4], eax
    mov ebx, EVTCHNOP_bind_interdomain
    mov ecx, offset bind_interdomain
    XEN event_channel_op
    mov ebx, FLAT_RING1_CS
    mov ecx, offset callback
    mov edx, FLAT_RING1_CS
    mov esi, offset failsafe
    XEN set_callbacks
"""
SEND = """
    mov ebx, EVTCHNOP_send
    mov ecx, offset alloc_unbound + 4
    XEN event_channel_op
"""
UNMASK = "mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0\n"
PENDING = "[shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING]"
EVENT_DATA = """
failsafe:
    KEEP_FRAME 7, 3
.data
alloc_unbound: .word DOMID_SELF, DOMID_SELF
    .long 0
bind_interdomain: .long DOMID_SELF, 0, 0
result: .long 0x5A5A5A5A
.text
"""


def kernel(text: str, callback: str = "KEEP_FRAME 4, 2") -> str:
    """Write a kernel with a port joined to another of its own, the second of which is pending."""
    return "MAP_SHARED_INFO\n" + LOOPBACK + text + "\ncallback:\n" + callback + EVENT_DATA


def test_an_event_waits_for_the_mask_byte() -> None:
    with boot(kernel(f"movzx eax, byte ptr {PENDING}\nmov [result], eax\nFINISH 1")) as guest:
        assert (guest.reason, guest.word("result")) == (1, 1)


def test_an_event_comes_before_the_next_hypercall_returns() -> None:
    callback = "movzx eax, word ptr [shared_info]\nmov [result], eax\nKEEP_FRAME 3, 2"
    text = UNMASK + "mov ebx, XENVER_version\nxor ecx, ecx\nXEN xen_version\nbehind:\nFINISH 1"
    with boot(kernel(text, callback)) as guest:
        assert guest.reason == 2, guest.crash
        eip, cs, eflags = guest.words("frame", 3)
        assert (eip, cs) == (guest.symbols["behind"], FLAT_RING1_CS)
        assert eflags & EFLAGS_IF
        assert guest.word("result") == 0x0101, "pending, and masked by the entry"


def test_an_event_interrupts_a_program_on_the_kernels_stack() -> None:
    before = LOOPBACK.replace("offset callback", "offset handler")
    source = KERNEL_AND_PROGRAM.replace("\\before", before).replace("\\program", "jmp program")
    source = source.replace("\\handler", "KEEP_FRAME 4, 2" + EVENT_DATA)
    with boot(source + traps()) as guest:
        assert guest.reason == 2, guest.crash
        assert guest.words("frame", 4)[1] == FLAT_RING3_CS
        assert guest.words("frame", 4)[3] == guest.symbols["user_stack_top"]


def test_an_iret_that_unmasks_delivers_at_once() -> None:
    text = """
        push 0x202
        push FLAT_RING1_CS
        push offset behind
        push 0
        XEN iret
    behind:
        FINISH 1
    """
    with boot(kernel(text)) as guest:
        assert guest.reason == 2, guest.crash
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING1_CS]


@pytest.mark.parametrize("mask", [1, 2, 0x80, 0xFF])
def test_any_mask_but_zero_keeps_events_out(mask: int) -> None:
    text = f"""
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], {mask}
        mov ebx, XENVER_version
        xor ecx, ecx
        XEN xen_version
        mov ebx, SCHEDOP_yield
        XEN sched_op
        FINISH 1
    """
    with boot(kernel(text)) as guest:
        assert guest.reason == 1


def test_a_masked_port_is_pending_and_nothing_more_until_it_is_unmasked() -> None:
    text = f"""
        mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
        mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
        mov byte ptr {PENDING}, 0
        mov dword ptr [shared_info + SHARED_INFO_EVTCHN_MASK], 0x10
        {SEND}
        mov eax, [shared_info + SHARED_INFO_EVTCHN_PENDING]
        shl eax, 8
        mov al, byte ptr {PENDING}
        mov [result], eax
        {UNMASK}
        mov ebx, EVTCHNOP_unmask
        mov ecx, offset bind_interdomain + 8
        XEN event_channel_op
        FINISH 1
    """
    with boot(kernel(text)) as guest:
        assert guest.word("bind_interdomain", 2) == 4
        assert guest.word("result") == 0x1000
        assert guest.reason == 2, "unmasking delivered it"


def test_an_event_without_a_callback_crashes_the_domain() -> None:
    source = kernel(UNMASK + "XEN xen_version\nFINISH 1").replace("XEN set_callbacks", "nop")
    with boot(source) as guest:
        assert guest.crash_rule == "traps.no-handler"


def test_a_callback_with_a_bad_selector_crashes_the_domain() -> None:
    source = kernel(UNMASK + "XEN xen_version\nFINISH 1").replace(
        "mov ebx, FLAT_RING1_CS\n    mov ecx, offset callback", "mov ebx, 0xE008\nmov ecx, 5"
    )
    with boot(source) as guest:
        assert guest.crash_rule == "traps.no-frame"


BLOCK = "mov ebx, SCHEDOP_block\nXEN sched_op\n"


def test_blocking_unmasks_and_returns_at_once_when_an_event_waits() -> None:
    with boot(kernel(BLOCK + "behind:\nFINISH 1")) as guest:
        assert guest.reason == 2
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING1_CS]


def test_a_blocked_vcpu_sleeps_until_its_event_comes() -> None:
    text = f"""
        mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
        mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
        mov byte ptr {PENDING}, 0
        {BLOCK}
    behind:
        FINISH 1
    """
    with made(kernel(text)) as guest:

        def blocked() -> bool:
            return guest.control.info(guest.domid).state is RunState.BLOCKED

        assert guest.run(5, blocked)
        assert not guest.run(0.05, lambda: not blocked()), "nothing else wakes it"
        guest.domain.events.send(3)
        assert guest.run(5)
        assert guest.reason == 2
        assert guest.words("frame", 2) == [guest.symbols["behind"], FLAT_RING1_CS]


def test_a_data_selector_that_has_lost_its_table_enters_the_failsafe_callback() -> None:
    text = """
        REMAP offset ldt, PTE_RO_DATA
        mov ebx, offset set_ldt
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
        mov eax, 7
        mov fs, ax
        mov dword ptr [set_ldt + 8], 0
        mov ebx, offset set_ldt
        mov ecx, 1
        xor edx, edx
        mov esi, DOMID_SELF
        XEN mmuext_op
        mov ebx, SCHEDOP_yield
        XEN sched_op
    behind:
        mov eax, fs
        FINISH 1
    .data
    set_ldt: .long MMUEXT_SET_LDT, ldt, 1
    .p2align 12
    ldt: .quad 0x00CFF3000000FFFF
    .p2align 12
    .text
    """
    start = ".text\nstart:\nmov eax, [esi + START_INFO_MFN_LIST]\nmov [p2m], eax\n"
    with boot(start + kernel(text)) as guest:
        assert guest.reason == 3, guest.crash
        ds, es, fs, gs, eip, cs, _ = guest.words("frame", 7)
        assert (ds, es, fs, gs) == (0xE021, 0xE021, 7, 0xE021)
        assert (eip, cs & 0xFFFF) == (guest.symbols["behind"], FLAT_RING1_CS)
    with boot(start + kernel(text).replace("XEN set_callbacks", "nop")) as guest:
        assert guest.crash_rule == "traps.no-handler"
