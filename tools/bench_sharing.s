# SPDX-License-Identifier: GPL-2.0-or-later
#
# A kernel of 4 MB that shares the machine, for tools/bench. Command line: "idle" blocks for ever,
# "spin" never stops, "tick" sleeps 10 ms again and again and prints, by console_io, how many ns
# after its deadline its first instruction ran: 4 bytes each time.

.include "xen_abi.inc"

.equ VIRT_BASE, 0xC0000000

.xen_note GUEST_OS, "bench"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, VIRT_BASE
.xen_note HYPERCALL_PAGE, hypercall_page
.xen_note FEATURES, "!writable_page_tables|pae_pgdir_above_4gb"

.equ PERIOD_NS, 10000000
.equ RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ NX, 1 << 31                    # in the upper word of an entry
.equ VCPU, shared_info + SHARED_INFO_VCPU_INFO

.macro CHECKED name
    HYPERCALL \name
    test eax, eax
    jnz failed
.endm

.section .text
.p2align PAGE_SHIFT
hypercall_page:
    .space PAGE_SIZE

.global _start
_start:
    mov edi, esi
    mov esp, offset stack_top
    mov ebx, offset shared_info
    mov ecx, [edi + START_INFO_SHARED_INFO]
    or ecx, RW
    mov edx, NX
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    mov byte ptr [VCPU + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov ebx, FLAT_KERNEL_CS
    mov ecx, offset on_event
    mov edx, FLAT_KERNEL_CS
    mov esi, offset failed
    CHECKED set_callbacks
    mov ebx, VCPUOP_stop_periodic_timer
    xor ecx, ecx
    CHECKED vcpu_op
    cmp byte ptr [edi + START_INFO_CMD_LINE], 't'
    je tick
    cmp byte ptr [edi + START_INFO_CMD_LINE], 'i'
    jne spin
idle:
    call block
    jmp idle
spin:
    jmp spin

block:
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    CHECKED sched_op
    ret

failed:
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset reason
    HYPERCALL sched_op
    ud2

tick:
    mov ebx, EVTCHNOP_bind_virq
    mov ecx, offset bind_timer
    CHECKED event_channel_op
tick_next:
    call time_now
    add eax, PERIOD_NS
    adc edx, 0
    mov [deadline], eax
    mov ebx, eax
    mov ecx, edx
    CHECKED set_timer_op
tick_wait:
    mov byte ptr [VCPU + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    cmp byte ptr [came], 0
    jne tick_came
    call block
    jmp tick_wait
tick_came:
    mov byte ptr [came], 0
    mov ebx, CONSOLEIO_write
    mov ecx, 4
    mov edx, offset late
    CHECKED console_io
    jmp tick_next

on_event:
    pushad
    call time_now
    mov byte ptr [VCPU + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    mov dword ptr [VCPU + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov ecx, [bind_timer + EVTCHN_BIND_VIRQ_PORT]
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], ecx
    jnc on_other_event
    sub eax, [deadline]             # less than 4 s: 32 bits will do
    mov [late], eax
    mov byte ptr [came], 1
on_other_event:
    popad
    HYPERCALL_IRET

# Out: edx:eax = system time in ns.
time_now:
    mov esi, [VCPU + VCPU_INFO_TIME_VERSION]
    rdtsc
    sub eax, [VCPU + VCPU_INFO_TIME_TSC_TIMESTAMP]
    sbb edx, [VCPU + VCPU_INFO_TIME_TSC_TIMESTAMP + 4]
    mov cl, [VCPU + VCPU_INFO_TIME_TSC_SHIFT]
    test cl, cl
    js time_right
    shld edx, eax, cl
    shl eax, cl
    jmp time_scale
time_right:
    neg cl
    shrd eax, edx, cl
    shr edx, cl
time_scale:
    mov ebx, edx
    mov edi, [VCPU + VCPU_INFO_TIME_TSC_TO_SYSTEM_MUL]
    mul edi
    mov eax, ebx
    mov ebx, edx
    mul edi
    add eax, ebx
    adc edx, 0
    add eax, [VCPU + VCPU_INFO_TIME_SYSTEM_TIME]
    adc edx, [VCPU + VCPU_INFO_TIME_SYSTEM_TIME + 4]
    cmp esi, [VCPU + VCPU_INFO_TIME_VERSION]
    jne time_now
    ret

.section .data
.p2align 3
bind_timer:
    .long VIRQ_TIMER, 0, 0
deadline:
    .long 0
late:
    .long 0
came:
    .long 0
reason:
    .long SHUTDOWN_crash

.section .bss
.p2align PAGE_SHIFT
shared_info:
    .space PAGE_SIZE
    .space PAGE_SIZE
stack_top:
