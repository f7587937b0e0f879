# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with several vCPUs, guests that tell the time, and several guests in one hypervisor.

``SMP`` and ``TIME`` are macros to put before a kernel's lines (``tests/support/guest.py``). A
second vCPU starts at a label with a stack of its own::

    MAP_SHARED_INFO
    START_VCPU 1, worker, stack1_top
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.support.guest import MEGABYTE, BootedGuest, add_guest
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock

SMP = """
.macro VCPU_OP op, id, argument=0
    mov ebx, VCPUOP_\\op
    mov ecx, \\id
    mov edx, \\argument
    XEN vcpu_op
.endm

# Fill in the start of a vCPU in \\context, which is zero: flat segments, the caller's page tables.
.macro PREPARE_CONTEXT context, entry, stack_top
    mov edi, \\context
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_FLAGS], VGCF_in_kernel
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_EIP], offset \\entry
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_ESP], offset \\stack_top
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_CS], FLAT_RING1_CS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_SS], FLAT_RING1_SS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_DS], FLAT_RING1_DS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_ES], FLAT_RING1_DS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_KERNEL_SS], FLAT_RING1_SS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_KERNEL_SP], offset \\stack_top
    mov eax, cr3
    mov [edi + VCPU_GUEST_CONTEXT_CTRLREG + 12], eax
.endm

.macro START_VCPU id, entry, stack_top
    PREPARE_CONTEXT offset context\\id, \\entry, \\stack_top
    VCPU_OP initialise, \\id, offset context\\id
    test eax, eax
    jnz failed
    VCPU_OP up, \\id
    test eax, eax
    jnz failed
.endm

.macro EVENT_OP op, structure
    mov ebx, EVTCHNOP_\\op
    mov ecx, offset \\structure
    XEN event_channel_op
.endm

.macro SCHED_OP op, structure=0
    mov ebx, SCHEDOP_\\op
    mov ecx, \\structure
    XEN sched_op
.endm

.text
    jmp start
failed:
    mov [result], eax
    FINISH 0xF0
.data
result: .long 0x5A5A5A5A
.bss
.p2align 12
context1: .space 4096
context2: .space 4096
context3: .space 4096
stack1: .space 4096
stack1_top: .space 4096
stack2_top: .space 4096
stack3_top:
.text
"""
"""Macros and room for up to three vCPUs more; a failure to start one ends with 0xF0."""

TIME = """
# Read the system time in nanoseconds, as guests do, from the vcpu_time_info at ebx.
# Out: edx:eax; changes ecx, esi, edi.
.text
    jmp start
system_time:
    mov ebp, [ebx + VCPU_TIME_INFO_VERSION]
    test ebp, 1
    jnz system_time
    rdtsc
    sub eax, [ebx + VCPU_TIME_INFO_TSC_TIMESTAMP]
    sbb edx, [ebx + VCPU_TIME_INFO_TSC_TIMESTAMP + 4]
    mov cl, [ebx + VCPU_TIME_INFO_TSC_SHIFT]
    test cl, cl
    js shift_right
    shld edx, eax, cl
    shl eax, cl
    jmp scale
shift_right:
    neg cl
    shrd eax, edx, cl
    shr edx, cl
scale:
    mov ecx, [ebx + VCPU_TIME_INFO_TSC_TO_SYSTEM_MUL]
    mov esi, edx
    mul ecx
    mov edi, edx
    mov eax, esi
    mul ecx
    add eax, edi
    adc edx, 0
    add eax, [ebx + VCPU_TIME_INFO_SYSTEM_TIME]
    adc edx, [ebx + VCPU_TIME_INFO_SYSTEM_TIME + 4]
    cmp ebp, [ebx + VCPU_TIME_INFO_VERSION]
    jne system_time
    ret

# Sleep until the 64-bit system time in edx:eax (set_timer_op), events off; returns after a wake.
.macro SET_TIMER
    mov ebx, eax
    mov ecx, edx
    XEN set_timer_op
.endm
"""
"""``system_time`` reads the time; ``SET_TIMER`` asks for VIRQ_TIMER at edx:eax."""

TIMER_EVENTS = """
    MAP_SHARED_INFO
    mov ebx, EVTCHNOP_bind_virq
    mov ecx, offset bind_timer
    XEN event_channel_op
    mov ebx, FLAT_RING1_CS
    mov ecx, offset on_event
    mov edx, FLAT_RING1_CS
    mov esi, offset shutdown
    XEN set_callbacks
    jmp behind_timer_events

# Count the upcall and take the timer's event away.
on_event:
    pushad
    inc dword ptr [ticks]
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov eax, [bind_timer + EVTCHN_BIND_VIRQ_PORT]
    btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    popad
    push eax
    XEN iret
.data
bind_timer: .long VIRQ_TIMER, 0, 0
ticks: .long 0
.text
behind_timer_events:
    mov ebx, VCPUOP_stop_periodic_timer
    xor ecx, ecx
    XEN vcpu_op
"""
"""Bind VIRQ_TIMER of the first vCPU, stop its ticks, and count upcalls in ``ticks``."""


@contextmanager
def several(
    sources: Sequence[str],
    *,
    memory_mb: int = 4,
    host_mb: int = 64,
    clock: Clock | None = None,
) -> Iterator[list[BootedGuest]]:
    """Build a domain of each source, unpaused, and leave running them to the caller.

    At the end all are destroyed, the machine is audited, and nothing may be left of them.
    """
    hypervisor = Hypervisor(host_mb * MEGABYTE, clock)
    try:
        control = hypervisor.control()
        free = sum(hypervisor.machine.frames.refs)
        with ExitStack() as undo:
            guests = [
                add_guest(hypervisor, source, undo, name=f"guest{n}", memory_mb=memory_mb)
                for n, source in enumerate(sources)
            ]
            for guest in guests:
                control.unpause(guest.domid)
            yield guests
            assert control.audit() == []
        assert control.audit() == []
        assert sum(hypervisor.machine.frames.refs) == free, "a domain left references behind"
    finally:
        hypervisor.close()
