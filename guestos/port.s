# SPDX-License-Identifier: GPL-2.0-or-later
#
# The port: every privileged operation of guestos, each beside the native one that it replaces.
#
#   native                            here                        hypercall
#   ------------------------------    --------------------------  ---------------------------
#   cli                               PORT_MASK_EVENTS            none: a byte in shared memory
#   sti                               port_unmask_events          none, unless an event waits
#   pushf; cli                        port_save_and_mask          none
#   popf                              port_restore_events         none, unless an event waits
#   iret                              jmp port_iret               iret
#   sti; hlt                          port_wait_for_event         sched_op, block
#   pause                             port_yield                  sched_op, yield
#   lidt                              port_load_trap_table        set_trap_table
#   an interrupt gate                 port_set_callbacks          set_callbacks
#   tss.esp0 = x                      port_set_kernel_stack       stack_switch
#   cr2                               PORT_PUSH_FAULT_ADDRESS     none: a word in shared memory
#   mov [pte], x; invlpg              port_set_mapping            update_va_mapping
#   mov cr3, x                        port_switch_page_tables     mmuext_op
#   out to a device's doorbell        port_send_event             event_channel_op, send
#   routing of an interrupt           port_bind_virq              event_channel_op, bind_virq
#   the period of a timer chip        port_set_tick               vcpu_op, set_periodic_timer
#   a timer's deadline                port_set_alarm              set_timer_op
#   cpuid, a chipset's registers      port_xen_version            xen_version
#   a bit of CR4                      port_enable_assist          vm_assist
#   power button, reset line          port_shutdown               sched_op, shutdown
#
# Nothing else in guestos names a hypercall. A hypercall is a call to its stub in a page that the
# domain builder fills: number * 32 bytes into it, arguments in ebx, ecx, edx, esi and edi, the
# result in eax, negative for an error. All other registers are kept.
#
# The interrupt flag is a byte, vcpu_info.evtchn_upcall_mask: nonzero keeps events out. Clearing it
# does not deliver an event that came meanwhile, as sti would; so whoever clears it looks at the
# pending byte afterwards. Between the two an event may come by itself: it is then delivered once,
# and the pending byte is clear.
#
# Operations that cannot fail in a correct kernel panic when Xen refuses them. The others return
# Xen's result.

.section .text
.p2align PAGE_SHIFT
.type hypercall_page, @object
hypercall_page:
    .space PAGE_SIZE                # the builder writes the stubs here
port_start:

# Make hypercall \name; panic with its name if Xen refuses it.
.macro HYPERCALL_OR_PANIC name
    HYPERCALL \name
    test eax, eax
    jns .Laccepted\@
    mov edx, offset .Lrefused\@
    jmp panic_refused
    .section .rodata
.Lrefused\@:
    .asciz "\name"
    .section .text
.Laccepted\@:
.endm

# -- events: the virtual interrupt flag ------------------------------------------------------

.equ upcall_mask, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
.equ upcall_pending, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_PENDING
.equ upcall_pending_sel, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_PENDING_SEL

# native: cli
.macro PORT_MASK_EVENTS
    mov byte ptr [upcall_mask], 1
.endm

# native: sti. Keeps all registers.
port_unmask_events:
    mov byte ptr [upcall_mask], 0
    cmp byte ptr [upcall_pending], 0
    jne .Lunmask_deliver
    ret
.Lunmask_deliver:
    # Any hypercall will do: Xen delivers what is pending before it returns to the guest.
    push eax
    push ebx
    push ecx
    mov ebx, XENVER_version
    xor ecx, ecx
    HYPERCALL xen_version
    pop ecx
    pop ebx
    pop eax
    ret

# native: pushf; pop eax; cli. Out: eax for port_restore_events.
port_save_and_mask:
    movzx eax, byte ptr [upcall_mask]
    PORT_MASK_EVENTS
    ret

# native: push eax; popf.
port_restore_events:
    test eax, eax
    jz port_unmask_events
    ret

# native: iret. Jump here with esp at eip, cs, eflags [, esp, ss]. The mask becomes the opposite of
# the frame's IF in the same step as the jump, which no sequence of instructions could do.
port_iret:
    HYPERCALL_IRET

# native: sti; hlt. Returns after an event was delivered, with events unmasked. Xen unmasks and
# looks for a pending event in one step, so an event between the caller's last look and the sleep
# is not slept through.
port_wait_for_event:
    push ebx
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    HYPERCALL_OR_PANIC sched_op
    pop ebx
    ret

# native: pause. Lets Dom0 run, for instance to empty a ring.
port_yield:
    push ebx
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    HYPERCALL_OR_PANIC sched_op
    pop ebx
    ret

# -- traps -----------------------------------------------------------------------------------

# native: lidt. In: eax = trap_info entries up to one with address 0. They add to earlier ones.
port_load_trap_table:
    push ebx
    mov ebx, eax
    HYPERCALL_OR_PANIC set_trap_table
    pop ebx
    ret

# native: the interrupt controller's gate in the IDT. In: eax = the handler of events, edx = the
# handler for a return whose selectors Xen could not load.
port_set_callbacks:
    push ebx
    push esi
    mov ebx, FLAT_KERNEL_CS
    mov ecx, eax
    mov esi, edx
    mov edx, FLAT_KERNEL_CS
    HYPERCALL_OR_PANIC set_callbacks
    pop esi
    pop ebx
    ret

# native: mov [tss + 4], eax. In: eax = stack pointer for traps out of ring 3.
port_set_kernel_stack:
    push ebx
    mov ebx, FLAT_KERNEL_SS
    mov ecx, eax
    HYPERCALL_OR_PANIC stack_switch
    pop ebx
    ret

# native: push cr2. Only for a hypervisor that does not push the address on the stack. It comes
# before the registers are saved, when ds may still be the program's: so it goes through ss.
.macro PORT_PUSH_FAULT_ADDRESS
    push dword ptr ss:[shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_ARCH_CR2]
.endm

# -- page tables -----------------------------------------------------------------------------

# native: mov [entry], low; mov [entry + 4], high; invlpg [va]
# In: eax = virtual address, edx = low word of the entry, ecx = high word. Its L1 table must exist.
port_set_mapping:
    push ebx
    push esi
    mov ebx, eax
    xchg ecx, edx
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    HYPERCALL_OR_PANIC update_va_mapping
    pop esi
    pop ebx
    ret

# native: mov cr3, eax. In: eax = frame number of the new L3 table, edx = that of the old one.
# The pin makes Xen validate the whole tree now, and keep it valid while other tables are in use;
# without the unpin the old tables could never become ordinary pages again.
port_switch_page_tables:
    push ebx
    push esi
    mov [port_new_tables + MMUEXT_OP_ARG1_MFN], eax
    mov [port_new_tables + SIZEOF_MMUEXT_OP + MMUEXT_OP_ARG1_MFN], eax
    mov [port_new_tables + 2 * SIZEOF_MMUEXT_OP + MMUEXT_OP_ARG1_MFN], edx
    mov ebx, offset port_new_tables
    mov ecx, 3
    xor edx, edx                    # a count of what was done is not wanted: all or panic
    mov esi, DOMID_SELF
    HYPERCALL_OR_PANIC mmuext_op
    pop esi
    pop ebx
    ret

.section .data
.p2align 2
port_new_tables:
    .long MMUEXT_PIN_L3_TABLE, 0, 0
    .long MMUEXT_NEW_BASEPTR, 0, 0
    .long MMUEXT_UNPIN_TABLE, 0, 0
.section .text

# -- the machine -----------------------------------------------------------------------------

# native: out to a device's doorbell. In: eax = event port.
port_send_event:
    push ebx
    push eax                        # struct evtchn_send
    mov ebx, EVTCHNOP_send
    mov ecx, esp
    HYPERCALL_OR_PANIC event_channel_op
    pop eax
    pop ebx
    ret

# native: the entry of an interrupt controller that names a vector. In: eax = VIRQ_. Out: eax = the
# event port that stands for it on this virtual processor.
port_bind_virq:
    push ebx
    sub esp, SIZEOF_EVTCHN_BIND_VIRQ
    mov [esp + EVTCHN_BIND_VIRQ_VIRQ], eax
    mov dword ptr [esp + EVTCHN_BIND_VIRQ_VCPU], 0
    mov ebx, EVTCHNOP_bind_virq
    mov ecx, esp
    HYPERCALL_OR_PANIC event_channel_op
    mov eax, [esp + EVTCHN_BIND_VIRQ_PORT]
    add esp, SIZEOF_EVTCHN_BIND_VIRQ
    pop ebx
    ret

# native: out to a timer chip's divisor. In: eax = period in ns.
port_set_tick:
    push ebx
    push 0                          # struct vcpu_set_periodic_timer: 64 bits
    push eax
    mov ebx, VCPUOP_set_periodic_timer
    xor ecx, ecx                    # this virtual processor is number 0
    mov edx, esp
    HYPERCALL_OR_PANIC vcpu_op
    add esp, SIZEOF_VCPU_SET_PERIODIC_TIMER
    pop ebx
    ret

# native: wrmsr to the deadline of the processor's timer. In: edx:eax = system time in ns. A time
# that is past comes at once.
port_set_alarm:
    push ebx
    mov ebx, eax
    mov ecx, edx
    HYPERCALL_OR_PANIC set_timer_op
    pop ebx
    ret

# native: cpuid. In: eax = XENVER_ command, edx = where the answer goes. Out: eax = Xen's result.
port_xen_version:
    push ebx
    mov ebx, eax
    mov ecx, edx
    HYPERCALL xen_version
    pop ebx
    ret

# native: a bit of CR4. In: eax = VMASST_TYPE_. Out: eax = 0, or negative if Xen has it not.
port_enable_assist:
    push ebx
    mov ebx, VMASST_CMD_enable
    mov ecx, eax
    HYPERCALL vm_assist
    pop ebx
    ret

# native: the power button or the reset line. In: eax = SHUTDOWN_ reason. Never returns.
port_shutdown:
    push eax                        # struct sched_shutdown
    mov ebx, SCHEDOP_shutdown
    mov ecx, esp
    HYPERCALL sched_op
    ud2                             # an answer would mean that the domain outlived itself

port_end:
