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
#   cr2                               PORT_PUSH_FAULT_ADDRESS     none: a word in shared memory
#   mov [pte], x                      port_set_entry              mmu_update, collected
#   mov [pde], x                      port_set_upper_entry        mmu_update, collected
#   invlpg                            port_forget_page            mmuext_op, collected
#   invlpg by all, an IPI for it      ..._page_everywhere         mmuext_op, collected
#   mov [pte], x; invlpg              port_set_mapping            update_va_mapping
#   nothing                           port_flush_entries          the collected ones, multicall
#   nothing                           port_make_table             mmu_update, collected
#   nothing                           port_free_table             mmu_update, collected
#   nothing                           port_pin, port_unpin        mmuext_op, PIN_L3_TABLE, UNPIN
#   mov cr3, x                        port_leave_boot_tables      mmuext_op: pin, load, unpin
#   mov cr3, x; mov [tss + 4], y      port_load_space             mmuext_op and stack_switch
#   nothing                           port_give_page, take_page   memory_op: the balloon
#   mov cr0, x                        port_hide_fpu               fpu_taskswitch
#   a table of the firmware           port_find_cpu               vcpu_op, is_up
#   INIT and SIPI by the APIC         port_prepare_, start_cpu    vcpu_op, initialise and up
#   cli; hlt                          port_stop_cpu               vcpu_op, down
#   an IPI; a device's doorbell       port_send_event             event_channel_op, send
#   routing of an interrupt           port_bind_virq, bind_ipi    event_channel_op
#   a vector for a device, and back   port_alloc_event, close_event  event_channel_op
#   the table of an IOMMU             port_map_grants             grant_table_op, setup_table
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

# The shared structure of this processor.
.macro VCPU_INFO reg
    CPU \reg
    mov \reg, [\reg + CPU_INFO]
.endm

# native: cli. Changes eax.
.macro PORT_MASK_EVENTS
    VCPU_INFO eax
    mov byte ptr [eax + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
.endm

# native: sti. Keeps all registers.
port_unmask_events:
    push eax
    VCPU_INFO eax
    mov byte ptr [eax + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    cmp byte ptr [eax + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    jne .Lunmask_deliver
    pop eax
    ret
.Lunmask_deliver:
    # Any hypercall will do: Xen delivers what is pending before it returns to the guest.
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
    push edx
    VCPU_INFO edx
    movzx eax, byte ptr [edx + VCPU_INFO_EVTCHN_UPCALL_MASK]
    mov byte ptr [edx + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    pop edx
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

# native: push cr2. Only for a hypervisor that does not push the address on the stack. It comes
# before the registers are saved, when ds may still be the program's: so it goes through ss.
.macro PORT_PUSH_FAULT_ADDRESS
    push eax
    mov eax, esp
    or eax, KSTACK_SIZE - 1
    mov eax, ss:[eax - (KSTACK_SIZE - 1 - KSTACK_CPU)]
    mov eax, ss:[eax + CPU_INFO]
    mov eax, ss:[eax + VCPU_INFO_ARCH_CR2]
    xchg eax, [esp]
.endm

# -- page tables -----------------------------------------------------------------------------
#
# An entry's frame is a machine frame, because the processor walks the tables: two lists translate.
# start_info's mfn_list (P2M) gives a page's frame, the list that Xen maps into every guest (M2P) a
# frame's page. Natively both are the identity, or an addition.
#
# Changes are collected in a list of each processor and made by port_flush_entries, for a hypercall
# costs as much as ten changes. Two words of the command line choose other ways for comparison:
#
#   (none)    collected: mmu_update takes the whole list, and the flush goes along in a multicall
#   nobatch   each change is a hypercall at once, and so is each invlpg
#   assist    each change is the store itself, as on a native machine: the table is mapped
#             read-only, and Xen emulates the store that faults (vm_assist, writable_pagetables)
#
# The list is empty whenever kernel_lock is free.

.equ BATCH_MAX, PAGE_SIZE / SIZEOF_MMU_UPDATE
.equ BATCH_LIST, 0
.equ BATCH_SINGLE, 1
.equ BATCH_ASSIST, 2
.equ FLUSH_HERE, 1
.equ FLUSH_EVERYWHERE, 2

# Choose the way by the words of the command line. A hypervisor without the assist: single calls.
port_open_batching:
    mov eax, offset word_nobatch
    call command_line_has
    test eax, eax
    jnz .Lbatching_single
    mov eax, offset word_assist
    call command_line_has
    test eax, eax
    jz .Lbatching_chosen
    mov eax, VMASST_TYPE_writable_pagetables
    call port_enable_assist
    test eax, eax
    js .Lbatching_single
    mov byte ptr [port_batching], BATCH_ASSIST
.Lbatching_chosen:
    ret
.Lbatching_single:
    mov byte ptr [port_batching], BATCH_SINGLE
    ret

# native: nothing: a page's frame is its address. In: eax = page (its address above VIRT_BASE). Out:
# eax = mfn. Changes no other register.
port_frame_of:
    push ecx
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT
    mov ecx, [start_info]
    mov ecx, [ecx + START_INFO_MFN_LIST]
    mov eax, [ecx + eax * 4]
    pop ecx
    ret

# native: sub page, VIRT_BASE. Make an entry. In: eax = page, ecx = flags of the lower word, edx =
# of the upper word. Out: edx:eax. Keeps ecx.
port_entry_of:
    push ebx
    call port_frame_of
    mov ebx, eax
    shl eax, PAGE_SHIFT
    or eax, ecx
    shr ebx, 32 - PAGE_SHIFT        # what a frame above 4 GB has in the upper word
    or edx, ebx
    pop ebx
    ret

# native: add page, VIRT_BASE. Find the page that an entry maps. In: edx:eax = the entry, of one of
# our own pages. Out: eax = page. Changes edx.
port_page_of:
    shr eax, PAGE_SHIFT
    shl edx, 32 - PAGE_SHIFT        # NX and what is above falls out: frames have 32 bits at most
    or eax, edx
    mov eax, [MACH2PHYS_VIRT_START + eax * 4]
    shl eax, PAGE_SHIFT
    add eax, VIRT_BASE
    ret

# native: mov [slot + 4], high; mov [slot], low. Change an entry of an L1 table; what it allowed may
# still be allowed until port_flush_entries. In: eax = slot, edx = low word, ecx = high word.
port_set_entry:
    cmp byte ptr [port_batching], BATCH_ASSIST
    jne port_set_upper_entry
    push ebx
    push esi
    mov esi, eax
    mov ebx, edx
    mov eax, [esi]
    mov edx, [esi + 4]
.Lset_entry_again:
    lock cmpxchg8b [esi]            # both words in one store: half an entry would be refused
    jnz .Lset_entry_again
    pop esi
    pop ebx
    ret

# The same for an entry that points at a table. (Xen emulates no stores to tables of tables.)
port_set_upper_entry:
    push ebx
    push esi
    push edi
    CPU ebx
    mov esi, [ebx + CPU_BATCH_COUNT]
    inc dword ptr [ebx + CPU_BATCH_COUNT]
    mov edi, esi
    shl esi, 4                      # SIZEOF_MMU_UPDATE
    add esi, [ebx + CPU_BATCH]
    mov [esi + 8], edx
    mov [esi + 12], ecx
    mov edx, eax
    and edx, PAGE_SIZE - 1
    call port_frame_of
    mov ecx, eax
    shl ecx, PAGE_SHIFT
    or ecx, edx
    mov [esi], ecx
    shr eax, 32 - PAGE_SHIFT
    mov [esi + 4], eax
    cmp byte ptr [port_batching], BATCH_LIST
    jne .Lset_upper_now
    cmp edi, BATCH_MAX - 1
    jae .Lset_upper_now
    pop edi
    pop esi
    pop ebx
    ret
.Lset_upper_now:
    pop edi
    pop esi
    pop ebx
    jmp port_flush_entries

# native: invlpg [eax]. Forget how an address of this address space was translated, after a change
# that took a right away. In: eax = address.
port_forget_page:
    mov edx, FLUSH_HERE
    mov ecx, MMUEXT_INVLPG_LOCAL
    jmp .Lforget

# native: invlpg [eax], an interrupt that makes all other processors do it, and waiting for them.
# For the kernel's addresses, which every processor sees.
port_forget_page_everywhere:
    mov edx, FLUSH_EVERYWHERE
    mov ecx, MMUEXT_INVLPG_ALL
.Lforget:
    push ebx
    cmp byte ptr [port_batching], BATCH_SINGLE
    je .Lforget_now
    CPU ebx
    cmp edx, [ebx + CPU_BATCH_FLUSH]
    jbe .Lforget_noted
    mov [ebx + CPU_BATCH_FLUSH], edx
.Lforget_noted:
    pop ebx
    ret
.Lforget_now:
    pop ebx
    mov edx, ecx
    xor ecx, ecx
    xchg eax, edx

# One mmuext_op. In: eax = command, edx = its first argument, ecx = its second.
port_extended:
    push ebx
    push esi
    push ecx
    push edx
    push eax
    mov ebx, esp
    mov ecx, 1
    xor edx, edx                    # a count of what was done is not wanted: all or panic
    mov esi, DOMID_SELF
    HYPERCALL_OR_PANIC mmuext_op
    add esp, SIZEOF_MMUEXT_OP
    pop esi
    pop ebx
    ret

# native: nothing. Make the collected changes, and forget what was noted to be forgotten.
port_flush_entries:
    push ebx
    push esi
    CPU eax
    mov ecx, [eax + CPU_BATCH_COUNT]
    cmp dword ptr [eax + CPU_BATCH_FLUSH], 0
    jne .Lflush_with_translations
    test ecx, ecx
    jz .Lflush_done
    mov dword ptr [eax + CPU_BATCH_COUNT], 0
    mov ebx, [eax + CPU_BATCH]
    xor edx, edx
    mov esi, DOMID_SELF
    HYPERCALL_OR_PANIC mmu_update
.Lflush_done:
    pop esi
    pop ebx
    ret
.Lflush_with_translations:
    mov edx, MMUEXT_TLB_FLUSH_LOCAL
    cmp dword ptr [eax + CPU_BATCH_FLUSH], FLUSH_HERE
    je .Lflush_scope
    mov edx, MMUEXT_TLB_FLUSH_ALL
.Lflush_scope:
    mov dword ptr [eax + CPU_BATCH_FLUSH], 0
    mov dword ptr [eax + CPU_BATCH_COUNT], 0
    push 0                          # struct mmuext_op
    push 0
    push edx
    mov esi, esp
    sub esp, 2 * SIZEOF_MULTICALL_ENTRY
    mov edx, [eax + CPU_BATCH]
    mov dword ptr [esp + MULTICALL_ENTRY_OP], HYPERVISOR_mmu_update
    mov [esp + MULTICALL_ENTRY_ARGS], edx
    mov [esp + MULTICALL_ENTRY_ARGS + 4], ecx
    mov dword ptr [esp + MULTICALL_ENTRY_ARGS + 8], 0
    mov dword ptr [esp + MULTICALL_ENTRY_ARGS + 12], DOMID_SELF
    lea edx, [esp + SIZEOF_MULTICALL_ENTRY]
    call port_put_extended
    mov ebx, esp
    call port_multicall
    add esp, 2 * SIZEOF_MULTICALL_ENTRY + SIZEOF_MMUEXT_OP
    pop esi
    pop ebx
    ret

# Write a multicall's entry for one mmuext_op. In: edx = the entry, esi = the operation.
port_put_extended:
    mov dword ptr [edx + MULTICALL_ENTRY_OP], HYPERVISOR_mmuext_op
    mov [edx + MULTICALL_ENTRY_ARGS], esi
    mov dword ptr [edx + MULTICALL_ENTRY_ARGS + 4], 1
    mov dword ptr [edx + MULTICALL_ENTRY_ARGS + 8], 0
    mov dword ptr [edx + MULTICALL_ENTRY_ARGS + 12], DOMID_SELF
    ret

# Make two calls in one. In: ebx = the entries. Panics if either is refused.
port_multicall:
    mov ecx, 2
    HYPERCALL_OR_PANIC multicall
    mov eax, [ebx + MULTICALL_ENTRY_RESULT]
    test eax, eax
    js .Lmulticall_refused
    mov eax, [ebx + SIZEOF_MULTICALL_ENTRY + MULTICALL_ENTRY_RESULT]
    test eax, eax
    js .Lmulticall_refused
    ret
.Lmulticall_refused:
    mov edx, offset .Lmulticall_name
    jmp panic_refused

# native: mov [slot + 4], high; mov [slot], low; invlpg [va]. Change one entry of the address space
# in use, at once. In: eax = virtual address, edx = low word, ecx = high word, ebx = slot.
port_set_mapping:
    cmp byte ptr [port_batching], BATCH_ASSIST
    je .Lset_mapping_store
    push ebx
    push esi
    mov ebx, eax
    xchg ecx, edx
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    HYPERCALL_OR_PANIC update_va_mapping
    pop esi
    pop ebx
    ret
.Lset_mapping_store:
    push eax
    mov eax, ebx
    call port_set_entry
    pop edx
    mov eax, MMUEXT_INVLPG_LOCAL
    xor ecx, ecx
    jmp port_extended

# native: nothing. From now on a page is to be a page table: take the kernel's right to write it,
# for a frame may be a table or be mapped writable, never both. In: eax = page.
port_make_table:
    push eax
    mov ecx, ENTRY_RO
    mov edx, NX
    call port_entry_of
    mov ecx, edx
    mov edx, eax
    pop eax
    call kernel_slot_of
    jmp port_set_entry

# native: nothing. A page that was a table, and is not referred to as one any more, is an ordinary
# page again. In: eax = page.
port_free_table:
    push eax
    mov ecx, ENTRY_RW
    mov edx, NX
    call port_entry_of
    mov ecx, edx
    mov edx, eax
    pop eax
    call kernel_slot_of
    jmp port_set_entry

# native: nothing. Have Xen validate a whole address space now, and keep it valid while others are
# in use. In: eax = the L3 table.
port_pin:
    mov edx, MMUEXT_PIN_L3_TABLE
    jmp .Lpin

# native: nothing. Let go of an address space. In: eax = the L3 table.
port_unpin:
    mov edx, MMUEXT_UNPIN_TABLE
.Lpin:
    call port_frame_of
    xchg eax, edx
    xor ecx, ecx
    jmp port_extended

# native: mov cr3, eax; mov [tss + 4], edx. In: eax = the L3 table, edx = where the kernel's stack
# begins for traps out of ring 3.
port_load_space:
    push ebx
    push eax
    mov ebx, FLAT_KERNEL_SS
    mov ecx, edx
    HYPERCALL_OR_PANIC stack_switch
    pop eax
    pop ebx
    call port_frame_of
    mov edx, eax
    mov eax, MMUEXT_NEW_BASEPTR
    xor ecx, ecx
    jmp port_extended

# native: mov cr3, eax, when the kernel takes over from the boot loader's tables. In: eax = frame of
# the new L3 table, edx = that of the old one, which no longer counts afterwards.
port_leave_boot_tables:
    push edx
    push eax
    mov edx, eax
    mov eax, MMUEXT_PIN_L3_TABLE
    xor ecx, ecx
    call port_extended
    pop edx
    mov eax, MMUEXT_NEW_BASEPTR
    xor ecx, ecx
    call port_extended
    pop edx
    mov eax, MMUEXT_UNPIN_TABLE
    xor ecx, ecx
    jmp port_extended

# native: nothing, a machine's memory does not come and go. Give a page's frame back to Xen. Nothing
# maps it. In: eax = page.
port_give_page:
    push ebx
    mov ebx, eax
    call port_frame_of
    mov edx, XENMEM_decrease_reservation
    call port_reserve
    cmp eax, 1
    jne .Lgive_refused
    sub ebx, VIRT_BASE
    shr ebx, PAGE_SHIFT
    mov eax, [start_info]
    mov eax, [eax + START_INFO_MFN_LIST]
    mov dword ptr [eax + ebx * 4], -1
    pop ebx
    ret
.Lgive_refused:
    mov edx, offset .Lgive_name
    jmp panic_refused

# native: nothing. Get a frame for a page that has none. In: eax = page. Out: eax = 0, or -ENOMEM.
port_take_page:
    push ebx
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT
    mov ebx, eax
    mov edx, XENMEM_populate_physmap
    call port_reserve
    cmp eax, 1
    jne .Ltake_refused
    mov eax, [start_info]
    mov eax, [eax + START_INFO_MFN_LIST]
    mov [eax + ebx * 4], edx
    xor eax, eax
    pop ebx
    ret
.Ltake_refused:
    mov eax, -ENOMEM
    pop ebx
    ret

# One memory_op for one frame. In: eax = the number in its list, edx = command. Out: eax = how many
# were done, edx = the number that Xen left in the list.
port_reserve:
    push ebx
    push eax
    mov ecx, esp
    sub esp, SIZEOF_XEN_MEMORY_RESERVATION
    mov [esp + XEN_MEMORY_RESERVATION_EXTENT_START], ecx
    mov dword ptr [esp + XEN_MEMORY_RESERVATION_NR_EXTENTS], 1
    mov dword ptr [esp + XEN_MEMORY_RESERVATION_EXTENT_ORDER], 0
    mov dword ptr [esp + XEN_MEMORY_RESERVATION_MEM_FLAGS], 0
    mov dword ptr [esp + XEN_MEMORY_RESERVATION_DOMID], DOMID_SELF
    mov ebx, edx
    mov ecx, esp
    HYPERCALL memory_op
    add esp, SIZEOF_XEN_MEMORY_RESERVATION
    pop edx
    pop ebx
    ret

.section .rodata
.Lmulticall_name: .asciz "multicall"
.Lgive_name: .asciz "memory_op"
.section .bss
port_batching:
    .space 1
.section .text

# -- processors ------------------------------------------------------------------------------

# native: cr0.TS = 1. The next instruction of the FPU traps. (Xen clears the bit when it does.)
port_hide_fpu:
    push ebx
    mov ebx, 1
    HYPERCALL_OR_PANIC fpu_taskswitch
    pop ebx
    ret

# native: the processor's entry in a table of the firmware. Is there such a processor? In: eax =
# number. Out: eax = 0 or 1, 1 for one that runs; negative if there is none.
port_find_cpu:
    push ebx
    mov ebx, VCPUOP_is_up
    mov ecx, eax
    xor edx, edx
    HYPERCALL vcpu_op
    pop ebx
    ret

# native: INIT and SIPI, and code below 1 MB that finds its way to the kernel. Prepare a processor
# to start at smp_start, on the kernel's address space. In: eax = number, edx = a page of zeros, ecx
# = top of its stack, of which the context needs nothing later.
port_prepare_cpu:
    push ebx
    mov ebx, edx
    mov dword ptr [ebx + VCPU_GUEST_CONTEXT_FLAGS], VGCF_in_kernel
    mov dword ptr [ebx + VCPU_GUEST_CONTEXT_USER_REGS_EIP], offset smp_start
    mov [ebx + VCPU_GUEST_CONTEXT_USER_REGS_ESP], ecx
    mov [ebx + VCPU_GUEST_CONTEXT_KERNEL_SP], ecx
    mov word ptr [ebx + VCPU_GUEST_CONTEXT_USER_REGS_CS], FLAT_KERNEL_CS
    mov word ptr [ebx + VCPU_GUEST_CONTEXT_USER_REGS_SS], FLAT_KERNEL_SS
    mov word ptr [ebx + VCPU_GUEST_CONTEXT_USER_REGS_DS], FLAT_KERNEL_DS
    mov word ptr [ebx + VCPU_GUEST_CONTEXT_USER_REGS_ES], FLAT_KERNEL_DS
    mov dword ptr [ebx + VCPU_GUEST_CONTEXT_KERNEL_SS], FLAT_KERNEL_SS
    mov ecx, eax
    mov eax, [kernel_tables]
    call port_frame_of
    mov edx, eax
    shl eax, PAGE_SHIFT
    shr edx, 32 - PAGE_SHIFT        # CR3 keeps the frame's upper bits in its lower ones
    or eax, edx
    mov [ebx + VCPU_GUEST_CONTEXT_CTRLREG + 3 * 4], eax
    mov edx, ebx
    mov ebx, VCPUOP_initialise
    HYPERCALL_OR_PANIC vcpu_op
    pop ebx
    ret

# native: the SIPI. A processor that was stopped goes on behind port_stop_cpu. In: eax = number.
port_start_cpu:
    push ebx
    mov ebx, VCPUOP_up
    mov ecx, eax
    xor edx, edx
    HYPERCALL_OR_PANIC vcpu_op
    pop ebx
    ret

# native: cli; hlt. Stop this processor until port_start_cpu.
port_stop_cpu:
    push ebx
    CPU ecx
    mov ecx, [ecx + CPU_ID]
    mov ebx, VCPUOP_down
    xor edx, edx
    HYPERCALL_OR_PANIC vcpu_op
    pop ebx
    ret

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

# native: the entry of an interrupt controller that names a vector. In: eax = VIRQ_, edx = number of
# the processor. Out: eax = the event port that stands for it there.
port_bind_virq:
    push ebx
    sub esp, SIZEOF_EVTCHN_BIND_VIRQ
    mov [esp + EVTCHN_BIND_VIRQ_VIRQ], eax
    mov [esp + EVTCHN_BIND_VIRQ_VCPU], edx
    mov ebx, EVTCHNOP_bind_virq
    mov ecx, esp
    HYPERCALL_OR_PANIC event_channel_op
    mov eax, [esp + EVTCHN_BIND_VIRQ_PORT]
    add esp, SIZEOF_EVTCHN_BIND_VIRQ
    pop ebx
    ret

# native: the vector of an inter-processor interrupt. In: eax = number of the processor that is to
# get it. Out: eax = the event port that stands for it.
port_bind_ipi:
    push ebx
    sub esp, SIZEOF_EVTCHN_BIND_IPI
    mov [esp + EVTCHN_BIND_IPI_VCPU], eax
    mov ebx, EVTCHNOP_bind_ipi
    mov ecx, esp
    HYPERCALL_OR_PANIC event_channel_op
    mov eax, [esp + EVTCHN_BIND_IPI_PORT]
    add esp, SIZEOF_EVTCHN_BIND_IPI
    pop ebx
    ret

# native: a vector of the interrupt controller for a device. In: eax = domid of the domain that is
# to raise the event. Out: eax = event port that it can join, or -errno.
port_alloc_event:
    push ebx
    sub esp, SIZEOF_EVTCHN_ALLOC_UNBOUND
    mov word ptr [esp + EVTCHN_ALLOC_UNBOUND_DOM], DOMID_SELF
    mov [esp + EVTCHN_ALLOC_UNBOUND_REMOTE_DOM], ax
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, esp
    HYPERCALL event_channel_op
    test eax, eax
    js .Lalloc_event_refused
    mov eax, [esp + EVTCHN_ALLOC_UNBOUND_PORT]
.Lalloc_event_refused:
    add esp, SIZEOF_EVTCHN_ALLOC_UNBOUND
    pop ebx
    ret

# native: the same vector, given back. In: eax = event port.
port_close_event:
    push ebx
    push eax                        # struct evtchn_close
    mov ebx, EVTCHNOP_close
    mov ecx, esp
    HYPERCALL_OR_PANIC event_channel_op
    pop eax
    pop ebx
    ret

# native: the address of an IOMMU's table in one of its registers. Have the grant table so many
# frames, and map them in place of pages of the kernel. In: eax = the first of these pages, edx =
# how many, GRANT_FRAMES_MAX at most. Out: eax = 0 or negative.
.equ GRANT_FRAMES_MAX, 16
port_map_grants:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov edi, edx
    sub esp, SIZEOF_GNTTAB_SETUP_TABLE + GRANT_FRAMES_MAX * 4
    mov word ptr [esp + GNTTAB_SETUP_TABLE_DOM], DOMID_SELF
    mov [esp + GNTTAB_SETUP_TABLE_NR_FRAMES], edx
    lea eax, [esp + SIZEOF_GNTTAB_SETUP_TABLE]
    mov [esp + GNTTAB_SETUP_TABLE_FRAME_LIST], eax
    mov ebx, GNTTABOP_setup_table
    mov ecx, esp
    mov edx, 1
    HYPERCALL grant_table_op
    test eax, eax
    jnz .Lmap_grants_out
    movsx eax, word ptr [esp + GNTTAB_SETUP_TABLE_STATUS]
    test eax, eax
    jnz .Lmap_grants_out
.Lmap_grants_next:
    dec edi
    mov eax, edi
    shl eax, PAGE_SHIFT
    add eax, esi
    push eax
    call kernel_slot_of
    mov ebx, eax
    mov edx, [esp + 4 + SIZEOF_GNTTAB_SETUP_TABLE + edi * 4]
    mov ecx, edx
    shl edx, PAGE_SHIFT
    or edx, ENTRY_RW
    shr ecx, 32 - PAGE_SHIFT
    or ecx, NX
    pop eax
    call port_set_mapping
    test edi, edi
    jnz .Lmap_grants_next
    xor eax, eax
.Lmap_grants_out:
    add esp, SIZEOF_GNTTAB_SETUP_TABLE + GRANT_FRAMES_MAX * 4
    pop edi
    pop esi
    pop ebx
    ret

# native: out to a timer chip's divisor. In: eax = period in ns. For this processor.
port_set_tick:
    push ebx
    push 0                          # struct vcpu_set_periodic_timer: 64 bits
    push eax
    CPU ecx
    mov ecx, [ecx + CPU_ID]
    mov ebx, VCPUOP_set_periodic_timer
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
