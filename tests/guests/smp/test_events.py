# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to one vCPU: its events, its vcpu_info, its traps and stacks, its end."""

from __future__ import annotations

import pytest

from tests.support.guest import START, BootedGuest, boot, made
from tests.support.guests import SMP
from xenlite.abi.x86_32p import EINVAL, FLAT_RING1_CS, SHUTDOWN_poweroff
from xenlite.core.vcpu import VcpuState
from xenlite.machine.memory import PAGE_SHIFT

WORD = 1 << 32
INFO1 = "shared_info + SIZEOF_VCPU_INFO"
CALLBACKS = """
    mov ebx, FLAT_RING1_CS
    mov ecx, offset {callback}
    mov edx, FLAT_RING1_CS
    mov esi, offset shutdown
    XEN set_callbacks
"""
# Take the pending events of the vCPU whose vcpu_info is at ebx: all ports are acknowledged.
TAKE = """
    mov byte ptr [ebx + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    mov dword ptr [ebx + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
"""


def smp(text: str) -> str:
    """Write a kernel that may start vCPUs."""
    return SMP + START + "MAP_SHARED_INFO\n" + text


IPIS = f"""
    {CALLBACKS.format(callback="on_event0")}
    EVENT_OP bind_ipi, ipi0
    EVENT_OP bind_ipi, ipi1
    START_VCPU 1, worker, stack1_top
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
wait_ready:
    SCHED_OP yield
    cmp dword ptr [ready], 1
    jne wait_ready
    EVENT_OP send, ipi1 + EVTCHN_BIND_IPI_PORT
sleep:
    cmp dword ptr [rounds], 500
    jae finish
    SCHED_OP block
    jmp sleep
finish:
    FINISH 7
on_event0:
    mov ebx, offset shared_info
    {TAKE}
    inc dword ptr [rounds]
    EVENT_OP send, ipi1 + EVTCHN_BIND_IPI_PORT
    push eax
    XEN iret
worker:
    {CALLBACKS.format(callback="on_event1")}
    mov byte ptr [{INFO1} + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    mov dword ptr [ready], 1
worker_sleep:
    SCHED_OP block
    jmp worker_sleep
on_event1:
    mov ebx, offset {INFO1}
    {TAKE}
    inc dword ptr [rounds + 4]
    EVENT_OP send, ipi0 + EVTCHN_BIND_IPI_PORT
    push eax
    XEN iret
.data
ipi0: .long 0, 0
ipi1: .long 1, 0
ready: .long 0
rounds: .long 0, 0
"""


def test_two_vcpus_wake_each_other_and_no_wake_is_lost() -> None:
    with boot(smp(IPIS), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.words("rounds", 2) == [500, 500]


MOVED = f"""
    mov eax, [p2m]
    mov ecx, offset new_info
    sub ecx, VIRT_BASE
    shr ecx, 12
    mov eax, [eax + ecx * 4]
    mov [structure], eax
    mov dword ptr [structure + VCPU_REGISTER_VCPU_INFO_OFFSET], 64
    VCPU_OP register_vcpu_info, 0, offset structure
    mov [result], eax
    VCPU_OP register_vcpu_info, 0, offset structure
    mov [result2], eax
    SET_TRAPS traps
    {CALLBACKS.format(callback="on_event")}
    mov eax, cr2
    mov [seen], eax
    mov eax, [0x10]
    mov byte ptr [moved + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    EVENT_OP bind_ipi, ipi
    mov [seen + 16], eax
    EVENT_OP send, ipi + EVTCHN_BIND_IPI_PORT
    cmp dword ptr [seen + 12], 2
    jb again
    FINISH 7
again:
    SCHED_OP yield
    jmp again
on_fault:
    add esp, 4
    mov eax, [moved + VCPU_INFO_ARCH_CR2]
    mov [seen + 4], eax
    mov eax, cr2
    mov [seen + 8], eax
    mov dword ptr [esp], offset behind_fault
    push eax
    XEN iret
behind_fault:
    mov byte ptr [moved + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    EVENT_OP bind_ipi, ipi
    EVENT_OP send, ipi + EVTCHN_BIND_IPI_PORT
    FINISH 7
on_event:
    mov al, [moved + VCPU_INFO_EVTCHN_UPCALL_MASK]
    mov [masks], al
    mov al, [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK]
    mov [masks + 1], al
    mov ebx, offset moved
    {TAKE}
    inc dword ptr [seen + 12]
    push eax
    XEN iret
.data
structure: .fill 4, 4, 0
result2: .long 0
ipi: .long 0, 0
masks: .long 0
seen: .fill 8, 4, 0
traps:
    GATE 14, 0, on_fault
    GATES_END
.p2align 12
new_info: .fill 64, 1, 0xEE
moved: .fill 1024, 4, 0xEEEEEEEE
"""


def test_a_vcpu_info_that_moved_is_the_one_that_counts() -> None:
    with boot(smp(MOVED), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert (guest.word("result"), guest.word("result2")) == (0, WORD - EINVAL)
        _, by_word, by_cr2, events, _ = guest.words("seen", 5)
        assert (by_word, by_cr2) == (0x10, 0x10)
        assert events == 2, "what may have been pending, and the event"
        assert guest.word("masks") == 0x0101, "the callback masks the new one; the old stays as is"
        assert guest.word("new_info", 15) == 0xEEEEEEEE
        assert guest.word("moved", 16) == 0xEEEEEEEE, "64 bytes and no more"
        assert guest.word("moved", 8), "the version of the time has moved too"


def test_a_domain_may_not_keep_its_vcpu_info_in_a_page_table() -> None:
    text = """
        mov eax, cr3
        shr eax, 12
        mov [structure], eax
        VCPU_OP register_vcpu_info, 0, offset structure
        mov [result], eax
        mov dword ptr [structure], 1
        VCPU_OP register_vcpu_info, 0, offset structure
        mov [structure], eax
        FINISH 7
    .data
    structure: .fill 4, 4, 0
    """
    with boot(smp(text)) as guest:
        assert guest.word("result") == WORD - EINVAL
        assert guest.word("structure") == WORD - EINVAL


OWN_TABLES = """
    # Each vCPU has its own GDT, handlers, kernel stack and debug registers.
    SET_TRAPS traps0
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    mov eax, 0x1000
    mov dr0, eax
    START_VCPU 1, worker, stack1_top
    REMAP offset program_page, PTE_USER_RO
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    REMAP offset stack3_top - 4096, PTE_USER_RW
    mov eax, 0x1000
    mov dr0, eax
    mov dword ptr [go], 1
    TO_USER program
worker:
    SET_TRAPS traps1
    cmp dword ptr [go], 0
    je worker
    mov eax, dr0
    mov [seen + 8], eax
    mov eax, 0x2000
    mov dr0, eax
    push FLAT_RING3_SS
    push offset stack3_top
    push EFLAGS_IF
    push FLAT_RING3_CS
    push offset program
    iretd
handler0:
    mov [seen], esp
    inc dword ptr [calls]
    cmp dword ptr [calls], 1000
    jb back
    mov eax, dr0
    mov [seen + 12], eax
    cmp dword ptr [calls + 4], 100
    jb back
    FINISH 7
handler1:
    mov [seen + 4], esp
    inc dword ptr [calls + 4]
    mov eax, dr0
    mov [seen + 16], eax
back:
    push eax
    XEN iret
.data
go: .long 0
seen: .fill 8, 4, 0
calls: .long 0, 0
traps0:
    GATE 0x80, 3, handler0
    GATES_END
traps1:
    GATE 0x80, 3, handler1
    GATES_END
.text
.p2align 12
program_page:
program:
    int 0x80
    jmp program
.p2align 12
"""


def test_handlers_stacks_and_debug_registers_are_each_vcpus_own() -> None:
    with boot(smp(OWN_TABLES), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        esp0, esp1, dr0_at_start, dr0, dr0_of_1 = guest.words("seen", 5)
        assert esp0 == guest.symbols["kernel_stack_top"] - 20
        assert esp1 == guest.symbols["stack1_top"] - 20
        assert (dr0_at_start, dr0, dr0_of_1) == (0, 0x1000, 0x2000)


OWN_GDT = """
    mov eax, [p2m]
    mov ecx, offset gdt
    sub ecx, VIRT_BASE
    shr ecx, 12
    mov edx, [eax + ecx * 4]
    push edx
    REMAP offset gdt, PTE_RO_DATA
    pop edx
    PREPARE_CONTEXT offset context1, worker, stack1_top
    mov [edi + VCPU_GUEST_CONTEXT_GDT_FRAMES], edx
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_GDT_ENTS], 512
    mov word ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_FS], 9
    VCPU_OP initialise, 1, offset context1
    mov [result], eax
    VCPU_OP up, 1
again:
    SCHED_OP yield
    cmp dword ptr [seen], 0
    je again
    # the same selector means nothing here
    SET_TRAPS traps
    mov eax, 9
    mov fs, ax
    FINISH 6
worker:
    mov eax, fs:[0]
    mov [seen], eax
    SCHED_OP yield
    jmp worker
on_gp:
    pop eax
    mov [seen + 4], eax
    FINISH 7
.data
seen: .long 0, 0
traps:
    GATE 13, 0, on_gp
    GATES_END
.p2align 2
marked: .long 0x600DC0DE
.p2align 12
gdt:
    .quad 0
    .word 0xFFFF
    .word GDT_LOW
    .byte GDT_MIDDLE, 0xB3, 0xCF, GDT_HIGH
    .fill 510, 8, 0
.p2align 12
"""


def test_a_descriptor_table_is_one_vcpus_own() -> None:
    # where ``marked`` comes to lie decides the descriptor: found by a first, failing pass
    defines = {"GDT_LOW": 0, "GDT_MIDDLE": 0, "GDT_HIGH": 0}
    with made(smp(OWN_GDT), vcpus=2, defines=defines) as guest:
        marked = guest.symbols["marked"]
    defines = {
        "GDT_LOW": marked & 0xFFFF,
        "GDT_MIDDLE": marked >> 16 & 0xFF,
        "GDT_HIGH": marked >> 24,
    }
    with boot(smp(OWN_GDT), vcpus=2, defines=defines) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0
        assert guest.words("seen", 2) == [0x600DC0DE, 8]
        assert guest.domain.vcpus[0].gdt_frames == ()


CRASHES = """
    START_VCPU 1, worker, stack1_top
spin:
    jmp spin
worker:
    mov eax, 0xDEAD
    mov ebp, 0xBEEF
    mov ebx, XENVER_version
    xor ecx, ecx
    XEN xen_version
    ud2
"""


def test_a_crash_of_one_vcpu_ends_the_domain_and_shows_that_one() -> None:
    with boot(smp(CRASHES), vcpus=2) as guest:
        crash = guest.crash
        assert crash is not None
        assert (crash.vcpu, crash.rule) == (1, "traps.no-handler")
        assert crash.registers["ebp"] == 0xBEEF
        assert crash.registers["cs"] == FLAT_RING1_CS
        assert guest.control.registers(guest.domid, 1)["ebp"] == 0xBEEF
        assert guest.control.registers(guest.domid, 0)["eip"] == guest.symbols["spin"]


ENDS = {
    "blocked": ("SCHED_OP block", "blocked"),
    "polling": ("SCHED_OP poll, offset poll", "blocked"),
    "down": ("VCPU_OP down, 1", "down"),
    "yielding": ("again: SCHED_OP yield\njmp again", "runnable"),
    "spinning": ("again: jmp again", "runnable"),
    "in a restarted call": ("again: mov ebx, offset endless\nXEN set_trap_table\njmp again", ""),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_domain_goes_whatever_its_vcpus_do(how: str) -> None:
    lines, state = ENDS[how]
    text = f"""
        START_VCPU 1, worker, stack1_top
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
        EVENT_OP bind_ipi, ipi
        mov ecx, 20
    settle:
        push ecx
        SCHED_OP yield
        pop ecx
        dec ecx
        jnz settle
        mov dword ptr [result], 1
        SCHED_OP poll, offset poll
    rest:
        jmp rest
    worker:
        {lines}
        int3
    .data
    ipi: .long 1, 0
    port: .long 1
    poll: .long port, 1, 0, 0
    .p2align 12
    endless: .fill 4096, 4, 0x01010101
    """
    with made(smp(text), vcpus=2) as guest:
        assert guest.run(until=lambda: guest.word("result") == 1)
        turns = iter(range(20))
        guest.run(until=lambda: next(turns, None) is None, seconds=0.05)
        assert guest.reason is None
        if state:
            assert guest.domain.vcpus[1].state is VcpuState(state)
        assert guest.control.audit() == []


PORT_OF_ANOTHER = f"""
    {CALLBACKS.format(callback="shutdown")}
    EVENT_OP bind_ipi, ipi
    START_VCPU 1, worker, stack1_top
wait_ready:
    SCHED_OP yield
    cmp dword ptr [ready], 1
    jne wait_ready
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    EVENT_OP send, ipi + EVTCHN_BIND_IPI_PORT
wait_done:
    SCHED_OP yield
    cmp dword ptr [ready], 2
    jne wait_done
    movzx eax, word ptr [{INFO1}]
    mov [result], eax
    FINISH 7
worker:
    mov dword ptr [ready], 1
worker_wait:
    SCHED_OP yield
    cmp byte ptr [{INFO1} + VCPU_INFO_EVTCHN_UPCALL_PENDING], 1
    jne worker_wait
    mov dword ptr [ready], 2
    jmp worker_wait
.data
ipi: .long 1, 0
ready: .long 0
"""


def test_an_event_of_one_vcpu_is_masked_by_its_own_byte() -> None:
    with boot(smp(PORT_OF_ANOTHER), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0x0101, "pending and masked: no callback was needed"


def vcpu_info_mfn(guest: BootedGuest, vcpu: int) -> int:
    """Return the frame that holds the vcpu_info of a vCPU."""
    return guest.domain.vcpus[vcpu].info_maddr >> PAGE_SHIFT


def test_vcpu_info_of_one_that_is_down_can_be_moved_by_another() -> None:
    text = """
        mov eax, [p2m]
        mov ecx, offset new_info
        sub ecx, VIRT_BASE
        shr ecx, 12
        mov eax, [eax + ecx * 4]
        mov [structure], eax
        VCPU_OP register_vcpu_info, 1, offset structure
        mov [result], eax
        mov dword ptr [shared_info + SIZEOF_VCPU_INFO], 0x77
        START_VCPU 1, worker, stack1_top
        VCPU_OP down, 0
    worker:
        cmp byte ptr [new_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
        jne wrong
        cmp byte ptr [new_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 1
        jne wrong
        VCPU_OP is_up, 0
        test eax, eax
        jnz worker
        VCPU_OP down, 1
    wrong:
        FINISH 6
    .data
    structure: .fill 4, 4, 0
    .p2align 12
    new_info: .fill 1024, 4, 0
    """
    with boot(smp(text), vcpus=2) as guest:
        assert guest.reason == SHUTDOWN_poweroff, guest.crash
        assert guest.word("result") == 0
        assert vcpu_info_mfn(guest, 1) != vcpu_info_mfn(guest, 0)


NMI = """
    START_VCPU 1, worker, stack1_top
again:
    SCHED_OP yield
    cmp dword ptr [ready], 1
    jne again
    VCPU_OP send_nmi, 1, 1
    mov [result], eax
    {send}
spin:
    SCHED_OP yield
    jmp spin
worker:
    SET_TRAPS traps
    mov byte ptr [shared_info + SIZEOF_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov dword ptr [ready], 1
    {rest}
    FINISH 6
on_nmi:
    KEEP_FRAME 3, 7
.data
ready: .long 0
poll: .long 0, 0, 0, 0
traps:
    GATE 2, 4, on_nmi
    GATES_END
.text
"""


@pytest.mark.parametrize(
    ("rest", "mask"),
    [("wait: jmp wait", 1), ("SCHED_OP block", 0), ("SCHED_OP poll, offset poll", 1)],
)
def test_an_nmi_enters_a_vcpu_that_masks_events_and_wakes_it(rest: str, mask: int) -> None:
    source = NMI.replace("{rest}", rest).replace("{send}", "VCPU_OP send_nmi, 1")
    with boot(smp(source), vcpus=2) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.words("frame", 2)[1] == FLAT_RING1_CS | mask << 16
        assert guest.word("result") == WORD - EINVAL


def test_an_nmi_to_itself_comes_before_the_call_returns_and_is_lost_without_a_handler() -> None:
    text = """
        VCPU_OP send_nmi, 0
        SET_TRAPS traps
        VCPU_OP send_nmi, 0
    behind:
        FINISH 6
    on_nmi:
        KEEP_FRAME 3, 7
    .data
    traps:
        GATE 2, 4, on_nmi
        GATES_END
    """
    with boot(smp(text)) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("frame") == guest.symbols["behind"]
