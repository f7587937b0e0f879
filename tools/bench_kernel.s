# SPDX-License-Identifier: GPL-2.0-or-later
#
# The kernel that tools/bench times: one operation over and over, as a ported kernel would do it.
#
# Command line: the name of an operation and how often to do it, such as "stack_switch 10000".
# Round after round it does the operation N times and then 2N times, printing one byte by console_io
# before, between and after; then it yields. The difference of the two times is N operations, with
# nothing of the printing or of the way in and out of the stretch.
#
# All that an operation touches lies in pages that never were executable, as data should: stores to
# executable pages are ten times slower on this engine, and Xen's builder maps all it loads so.
#
#   VIRT_BASE             the kernel and its boot page tables, as the builder left them
#   WORK                  one L1 table, ours: pages that the builder did not map
#
# An operation is a routine `prepare_<name>`, called once, and a routine `run_<name>`, entered with
# the count in ebp and left by `ret`. Each result is checked: a refused call must not count as fast.

.include "xen_abi.inc"

.equ VIRT_BASE, 0xC0000000
.equ WORK, 0xE0000000

.xen_note GUEST_OS, "bench"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, VIRT_BASE
.xen_note HYPERCALL_PAGE, hypercall_page
.xen_note FEATURES, "!writable_page_tables|pae_pgdir_above_4gb"

# The pages of WORK: which of the domain's they are, and where. Page FIRST_PFN is the L1 itself.
.equ FIRST_PFN, 1024                # behind the 4 MB that the builder maps
.equ STACK_TOP, WORK + 2 * PAGE_SIZE
.equ LIST, WORK + 2 * PAGE_SIZE     # requests of mmu_update and mmuext_op
.equ CALLS, WORK + 3 * PAGE_SIZE    # requests of multicall
.equ DATA, WORK + 4 * PAGE_SIZE     # what loops load and store, and what console_io prints
.equ USER_STACK_TOP, WORK + 6 * PAGE_SIZE
.equ OTHER_L3, WORK + 6 * PAGE_SIZE
.equ OTHER_L2, WORK + 7 * PAGE_SIZE
.equ SHARED, WORK + 8 * PAGE_SIZE   # shared_info
.equ MAPPED_PAGES, 8
.equ TARGETS, WORK + 16 * PAGE_SIZE # 32 pages whose entries are rewritten
.equ ABSENT, WORK + 64 * PAGE_SIZE  # nothing, except for a moment
.equ USER_CODE, WORK + 80 * PAGE_SIZE
.equ L1_WINDOW, WORK + 96 * PAGE_SIZE

# Events: nobody touches DATA beside them.
.equ PENDING, SHARED + SHARED_INFO_EVTCHN_PENDING
.equ UPCALL_PENDING, SHARED + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_PENDING
.equ UPCALL_MASK, SHARED + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
.equ SELECTOR, SHARED + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_PENDING_SEL
.equ PORT, DATA                     # as EVTCHNOP_send wants it
.equ CAME, DATA + 4                 # how many upcalls came that nobody has waited for
.equ JOINED_PORT, 3                 # the toolstack's: ports 1 and 2 are the store and the console

.equ BATCH, 32                      # entries of a long list
.equ LINE_SIZE, 64                  # bytes of one console_io
.equ SYSCALL_VECTOR, 0x80
.equ LEAVE_VECTOR, 0x81
.equ NX, 1 << 31                    # in the upper word of an entry
.equ RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ RO, _PAGE_PRESENT | _PAGE_ACCESSED
.equ TABLE, _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY

.macro CHECKED name
    HYPERCALL \name
    test eax, eax
    jnz failed
.endm

# Do the lines between LOOP and AGAIN as often as ebp says; both only once in a routine.
.macro LOOP
    .p2align 4
1:
.endm
.macro AGAIN
    dec ebp
    jnz 1b
    ret
.endm

# -- start -------------------------------------------------------------------------------------

.section .text
.p2align PAGE_SHIFT
hypercall_page:
    .space PAGE_SIZE

.global _start
_start:
    cld
    mov [start_info], esi
    call make_work
    mov esp, STACK_TOP
    call choose
    push dword ptr [ebx + OPERATION_RUN]
    call dword ptr [ebx + OPERATION_PREPARE]
    pop edi
rounds:
    call print_mark
    mov ebp, [count]
    call stretch
    call print_mark
    mov ebp, [count]
    add ebp, ebp
    call stretch
    call print_mark
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    CHECKED sched_op
    jmp rounds

stretch:
    push edi
    call edi
    pop edi
    ret

print_mark:
    mov ebx, CONSOLEIO_write
    mov ecx, 1
    mov edx, offset mark
    CHECKED console_io
    ret

# Find the operation that the command line names, and the count behind it. Out: ebx = operation.
choose:
    mov ebx, offset operations
choose_next:
    mov esi, [start_info]
    add esi, START_INFO_CMD_LINE
    mov edi, [ebx + OPERATION_NAME]
    test edi, edi
    jz failed
choose_compare:
    mov al, [edi]
    test al, al
    jz choose_whole
    cmp al, [esi]
    jne choose_other
    inc esi
    inc edi
    jmp choose_compare
choose_whole:
    cmp byte ptr [esi], ' '
    je choose_count
choose_other:
    add ebx, SIZEOF_OPERATION
    jmp choose_next
choose_count:
    xor ecx, ecx
choose_digit:
    inc esi
    movzx eax, byte ptr [esi]
    sub eax, '0'
    cmp eax, 9
    ja choose_done
    imul ecx, ecx, 10
    add ecx, eax
    jmp choose_digit
choose_done:
    mov [count], ecx
    ret

# A hypercall was refused, or the command line is none.
failed:
    mov dword ptr [reason], SHUTDOWN_crash
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset reason
    HYPERCALL sched_op
    ud2

# -- pages -------------------------------------------------------------------------------------

# In: eax = pfn. Out: eax = mfn.
frame_of:
    push edx
    mov edx, [start_info]
    mov edx, [edx + START_INFO_MFN_LIST]
    mov eax, [edx + eax * 4]
    pop edx
    ret

# Make the entry of a page of this domain. In: eax = pfn, edx = flags of the lower word.
# Out: ecx = lower word, edx = upper word, not executable.
entry_of:
    call frame_of
    mov ecx, eax
    shl ecx, PAGE_SHIFT
    or ecx, edx
    mov edx, eax
    shr edx, 32 - PAGE_SHIFT
    or edx, NX
    ret

# In: ebx = address in WORK. Out: eax = pfn of the page that belongs there.
pfn_of_work:
    mov eax, ebx
    sub eax, WORK
    shr eax, PAGE_SHIFT
    add eax, FIRST_PFN + 1
    ret

# Map the page that belongs at ebx, an address in WORK. In: edx = flags. Keeps ebx.
map_work:
    call pfn_of_work
map_page:                           # the same for page eax
    call entry_of
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    ret

# Give WORK its L1 table, a page that is zero as all new ones are, and map its first pages.
make_work:
    mov edi, [start_info]
    mov edi, [edi + START_INFO_PT_BASE]
    mov eax, [edi + 3 * 8]          # the L2 of the last gigabyte: the entry's frame
    mov edx, [edi + 3 * 8 + 4]
    and eax, PAGE_MASK
    add eax, ((WORK >> L2_SHIFT) & (PT_ENTRIES - 1)) * 8
    mov [request], eax
    mov [request + 4], edx
    mov eax, FIRST_PFN
    mov edx, TABLE
    call entry_of
    and edx, NX - 1
    mov [request + 8], ecx
    mov [request + 12], edx
    mov ebx, offset request
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    CHECKED mmu_update
    mov ebx, WORK
make_next:
    mov edx, RW
    call map_work
    add ebx, PAGE_SIZE
    cmp ebx, WORK + MAPPED_PAGES * PAGE_SIZE
    jb make_next
    ret

# Set eax:edx to the machine address of the entry for ebx, an address in WORK.
slot_of:
    mov eax, FIRST_PFN
    call frame_of
    mov edx, eax
    shr edx, 32 - PAGE_SHIFT
    shl eax, PAGE_SHIFT
    mov ecx, ebx
    sub ecx, WORK
    shr ecx, PAGE_SHIFT - 3
    add eax, ecx
    ret

# Map the 32 target pages, and keep the entry of the first in eax:edx of `target`.
map_targets:
    mov ebx, TARGETS
map_targets_next:
    mov edx, RW
    call map_work
    add ebx, PAGE_SIZE
    cmp ebx, TARGETS + BATCH * PAGE_SIZE
    jb map_targets_next
    mov ebx, TARGETS
    call pfn_of_work
    mov edx, RW
    call entry_of
    mov [target], ecx
    mov [target + 4], edx
    ret

# In: ebx = trap table.
set_traps:
    CHECKED set_trap_table
    ret

# In: ecx = assist.
enable_assist:
    mov ebx, VMASST_CMD_enable
    CHECKED vm_assist
    ret

prepare_nothing:
    ret

# -- hypercalls --------------------------------------------------------------------------------

run_null_hypercall:
    LOOP
    mov ebx, XENVER_version
    xor ecx, ecx
    HYPERCALL xen_version
    test eax, eax
    js failed
    AGAIN

run_stack_switch:
    mov edi, STACK_TOP
    LOOP
    xor edi, 64
    mov ebx, FLAT_KERNEL_SS
    mov ecx, edi
    CHECKED stack_switch
    AGAIN

prepare_console_io:
    mov edi, DATA
    mov ecx, LINE_SIZE
    mov al, '.'
    rep stosb
    ret
run_console_io:
    LOOP
    mov ebx, CONSOLEIO_write
    mov ecx, LINE_SIZE
    mov edx, DATA
    CHECKED console_io
    AGAIN

# -- page tables -------------------------------------------------------------------------------

run_uvm_same:
    LOOP
    mov ebx, TARGETS
    mov ecx, [target]
    mov edx, [target + 4]
    mov esi, UVMF_NONE
    CHECKED update_va_mapping
    AGAIN

run_uvm_toggle:
    mov edi, [target]
    LOOP
    mov ebx, TARGETS
    xor edi, _PAGE_RW
    mov ecx, edi
    mov edx, [target + 4]
    mov esi, UVMF_NONE
    CHECKED update_va_mapping
    AGAIN

run_uvm_invlpg:
    mov edi, [target]
    LOOP
    mov ebx, TARGETS
    xor edi, _PAGE_RW
    mov ecx, edi
    mov edx, [target + 4]
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    AGAIN

# 32 requests at LIST, each of which toggles the right to write one target.
prepare_mmu_update:
    call map_targets
    mov ebx, TARGETS
    mov edi, LIST
prepare_request:
    call slot_of
    mov [edi], eax
    mov [edi + 4], edx
    call pfn_of_work
    mov edx, RW
    call entry_of
    mov [edi + 8], ecx
    mov [edi + 12], edx
    add edi, SIZEOF_MMU_UPDATE
    add ebx, PAGE_SIZE
    cmp ebx, TARGETS + BATCH * PAGE_SIZE
    jb prepare_request
    ret

run_mmu_update:
    LOOP
    xor dword ptr [LIST + 8], _PAGE_RW
    mov ebx, LIST
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    CHECKED mmu_update
    AGAIN

run_mmu_update_32:
    LOOP
    mov ecx, BATCH
    mov ebx, LIST + 8
2:
    xor dword ptr [ebx], _PAGE_RW
    add ebx, SIZEOF_MMU_UPDATE
    dec ecx
    jnz 2b
    mov ebx, LIST
    mov ecx, BATCH
    xor edx, edx
    mov esi, DOMID_SELF
    CHECKED mmu_update
    AGAIN

# 32 calls of update_va_mapping at CALLS.
prepare_multicall:
    call map_targets
    mov ebx, TARGETS
    mov edi, CALLS
prepare_call:
    call pfn_of_work
    mov edx, RW
    call entry_of
    mov dword ptr [edi], HYPERVISOR_update_va_mapping
    mov [edi + MULTICALL_ENTRY_ARGS], ebx
    mov [edi + MULTICALL_ENTRY_ARGS + 4], ecx
    mov [edi + MULTICALL_ENTRY_ARGS + 8], edx
    mov dword ptr [edi + MULTICALL_ENTRY_ARGS + 12], UVMF_NONE
    add edi, SIZEOF_MULTICALL_ENTRY
    add ebx, PAGE_SIZE
    cmp ebx, TARGETS + BATCH * PAGE_SIZE
    jb prepare_call
    ret

run_multicall_32:
    LOOP
    mov ecx, BATCH
    mov ebx, CALLS
2:
    cmp dword ptr [ebx + MULTICALL_ENTRY_RESULT], 0
    jne failed
    xor dword ptr [ebx + MULTICALL_ENTRY_ARGS + 4], _PAGE_RW
    add ebx, SIZEOF_MULTICALL_ENTRY
    dec ecx
    jnz 2b
    mov ebx, CALLS
    mov ecx, BATCH
    CHECKED multicall
    AGAIN

# Stores to the L1 table of WORK, through a read-only mapping.
prepare_assist:
    call map_targets
    mov ecx, VMASST_TYPE_writable_pagetables
    call enable_assist
    mov eax, FIRST_PFN
    mov ebx, L1_WINDOW
    mov edx, RO
    jmp map_page
run_assist:
    mov edi, [target]
    LOOP
    xor edi, _PAGE_RW
    mov [L1_WINDOW + (TARGETS - WORK) / PAGE_SIZE * 8], edi
    AGAIN

# A second address space: the boot L2's entries below Xen's, under an L3 of its own.
prepare_new_baseptr:
    mov esi, [start_info]
    mov esi, [esi + START_INFO_PT_BASE]
    mov edi, OTHER_L3
    mov ebx, OTHER_L2
    call pfn_of_work
    call frame_of
    mov ecx, eax
    shl ecx, PAGE_SHIFT
    or ecx, _PAGE_PRESENT
    shr eax, 32 - PAGE_SHIFT
    mov [edi + 3 * 8], ecx
    mov [edi + 3 * 8 + 4], eax
    add esi, PAGE_SIZE              # the boot L2 lies behind the boot L3
    mov edi, OTHER_L2
    mov ecx, ((HYPERVISOR_VIRT_START >> L2_SHIFT) & (PT_ENTRIES - 1)) * 2
    rep movsd
    mov edx, RO
    call map_work
    mov ebx, OTHER_L3
    mov edx, RO
    call map_work
    call pfn_of_work
    call frame_of
    mov [other_l3], eax
    mov dword ptr [LIST], MMUEXT_PIN_L3_TABLE
    mov [LIST + MMUEXT_OP_ARG1_MFN], eax
    call extend
    mov eax, [start_info]
    mov eax, [eax + START_INFO_PT_BASE]
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT
    call frame_of
    xor eax, [other_l3]
    mov [switch], eax               # turns the frame of one L3 into the other's
    mov dword ptr [LIST], MMUEXT_NEW_BASEPTR
    ret
extend:
    mov ebx, LIST
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    CHECKED mmuext_op
    ret
run_new_baseptr:
    mov edi, [switch]
    LOOP
    xor [LIST + MMUEXT_OP_ARG1_MFN], edi
    mov ebx, LIST
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    CHECKED mmuext_op
    AGAIN

# -- traps -------------------------------------------------------------------------------------

.equ LOAD_SIZE, 2                   # mov eax, [edi]
.equ DIV_SIZE, 2                    # div ecx

# The address of a page fault comes on the stack.
prepare_fault_skipped:
    mov ecx, VMASST_TYPE_xenlite_fault_address
    call enable_assist
    mov ebx, offset traps_skip
    jmp set_traps
run_fault_skipped:
    mov edi, ABSENT
    LOOP
    mov eax, [edi]
    AGAIN
fault_skip:
    add esp, 8                      # address, error code
    add dword ptr [esp], LOAD_SIZE
    iretd

# The handler maps a page and the load is tried again; then the page goes, for the next time.
prepare_fault_map_retry:
    mov ecx, VMASST_TYPE_xenlite_fault_address
    call enable_assist
    call map_targets
    mov ebx, offset traps_map
    jmp set_traps
run_fault_map_retry:
    mov edi, ABSENT
    LOOP
    mov eax, [edi]
    mov ebx, edi
    xor ecx, ecx
    xor edx, edx
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    AGAIN
fault_map:
    mov ebx, [esp]
    mov ecx, [target]
    mov edx, [target + 4]
    xor esi, esi                    # a page that was absent is in no TLB
    CHECKED update_va_mapping
    add esp, 8
    iretd

prepare_divide_error:
    mov ebx, offset traps_divide
    jmp set_traps
run_divide_error:
    xor ecx, ecx
    LOOP
    div ecx
    AGAIN
divide_skip:
    add dword ptr [esp], DIV_SIZE
    iretd

# System calls of a program in ring 3, which leaves by another vector. Its stack is never used.
prepare_int80_native:
    mov ebx, offset traps_int80_native
    jmp prepare_user
prepare_int80_hypercall:
    mov ebx, offset traps_int80_hypercall
prepare_user:
    call set_traps
    mov ebx, USER_STACK_TOP - PAGE_SIZE
    mov edx, RW | _PAGE_USER
    call map_work
    mov eax, offset user_loop
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT
    mov edx, RO | _PAGE_USER
    call entry_of
    and edx, NX - 1
    mov ebx, USER_CODE
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    mov ebx, FLAT_KERNEL_SS
    mov ecx, STACK_TOP - 256        # above it stands what is to be found again
    CHECKED stack_switch
    ret
run_int80:
    mov [kernel_stack], esp
    mov eax, FLAT_USER_DS
    call load_selectors
    push FLAT_USER_SS
    push USER_STACK_TOP
    push EFLAGS_IF
    push FLAT_USER_CS
    push USER_CODE
    iretd
int80_native:
    iretd
int80_hypercall:
    HYPERCALL_IRET
int80_leave:
    mov esp, [kernel_stack]
    mov eax, FLAT_KERNEL_DS
load_selectors:
    mov ds, eax
    mov es, eax
    ret

.section .user, "ax"
user_loop:
    int SYSCALL_VECTOR
    dec ebp
    jnz user_loop
    int LEAVE_VECTOR
.section .text

# -- events and turns --------------------------------------------------------------------------

# Map shared_info, let only the port in eax through, and take its upcalls, that of an event which
# has come already included; events stay masked.
open_events:
    push eax
    mov ecx, [start_info]
    mov ecx, [ecx + START_INFO_SHARED_INFO]
    or ecx, RW
    mov edx, NX
    mov ebx, SHARED
    mov esi, UVMF_INVLPG | UVMF_LOCAL
    CHECKED update_va_mapping
    pop eax
    mov byte ptr [UPCALL_MASK], 1
    mov [PORT], eax
    mov ecx, eax
    mov eax, 1
    shl eax, cl
    not eax
    mov [SHARED + SHARED_INFO_EVTCHN_MASK], eax
    not eax
    and [PENDING], eax
    setnz al
    movzx eax, al
    mov [SELECTOR], eax
    mov [UPCALL_PENDING], al
    mov ebx, FLAT_KERNEL_CS
    mov ecx, offset take_event
    mov edx, FLAT_KERNEL_CS
    mov esi, offset failed
    CHECKED set_callbacks
    mov ebx, VCPUOP_stop_periodic_timer
    xor ecx, ecx
    CHECKED vcpu_op
    ret

# The same, and forget what has come.
open_fresh_events:
    call open_events
forget_events:
    mov byte ptr [UPCALL_PENDING], 0
    mov dword ptr [SELECTOR], 0
    mov dword ptr [PENDING], 0
    ret

# The upcall: forget what is pending, count.
take_event:
    call forget_events
    inc dword ptr [CAME]
    HYPERCALL_IRET

send_event:
    mov ebx, EVTCHNOP_send
    mov ecx, PORT
    CHECKED event_channel_op
    ret

# Block until an upcall has come; events are masked outside of the block, or one might slip by.
await_event:
    mov byte ptr [UPCALL_MASK], 1
    cmp dword ptr [CAME], 0
    jne await_came
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    CHECKED sched_op
    jmp await_event
await_came:
    mov dword ptr [CAME], 0
    ret

prepare_event_self:
    mov dword ptr [request + EVTCHN_BIND_IPI_VCPU], 0
    mov ebx, EVTCHNOP_bind_ipi
    mov ecx, offset request
    CHECKED event_channel_op
    mov eax, [request + EVTCHN_BIND_IPI_PORT]
    jmp open_fresh_events
run_event_self:
    LOOP
    mov ebx, EVTCHNOP_send
    mov ecx, PORT
    CHECKED event_channel_op
    mov byte ptr [UPCALL_PENDING], 0
    mov dword ptr [SELECTOR], 0
    mov dword ptr [PENDING], 0
    AGAIN
run_event_self_upcall:
    mov byte ptr [UPCALL_MASK], 0
    LOOP
    mov ebx, EVTCHNOP_send
    mov ecx, PORT
    CHECKED event_channel_op
    dec dword ptr [CAME]
    jnz failed
    AGAIN

# There and back: this domain sends first, and "event_echo DOMID" is the other one.
prepare_event_round_trip:
    mov eax, JOINED_PORT
    call open_events
    jmp await_event                 # until the echo is there
run_event_round_trip:
    LOOP
    call send_event
    call await_event
    AGAIN
prepare_event_echo:
    mov eax, [count]
    mov [request + EVTCHN_BIND_INTERDOMAIN_REMOTE_DOM], ax
    mov dword ptr [request + EVTCHN_BIND_INTERDOMAIN_REMOTE_PORT], JOINED_PORT
    mov ebx, EVTCHNOP_bind_interdomain
    mov ecx, offset request
    CHECKED event_channel_op
    mov eax, [request + EVTCHN_BIND_INTERDOMAIN_LOCAL_PORT]
    call open_fresh_events          # a port is pending from its birth
echo_next:
    call send_event
    call await_event
    jmp echo_next

# A timer that is due at once: what sleeping costs, without the sleep.
prepare_block_timer:
    mov dword ptr [request + EVTCHN_BIND_VIRQ_VIRQ], VIRQ_TIMER
    mov dword ptr [request + EVTCHN_BIND_VIRQ_VCPU], 0
    mov ebx, EVTCHNOP_bind_virq
    mov ecx, offset request
    CHECKED event_channel_op
    mov eax, [request + EVTCHN_BIND_VIRQ_PORT]
    jmp open_fresh_events
run_block_timer:
    LOOP
    mov ebx, 1
    xor ecx, ecx
    CHECKED set_timer_op
    call await_event
    AGAIN

run_yield:
    LOOP
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    CHECKED sched_op
    AGAIN

# A second vCPU, which does nothing but yield to the first.
prepare_vcpu_switch:
    mov edi, DATA
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_FLAGS], VGCF_in_kernel
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_EIP], offset other_vcpu
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_ESP], USER_STACK_TOP
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_CS], FLAT_KERNEL_CS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_SS], FLAT_KERNEL_SS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_DS], FLAT_KERNEL_DS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_USER_REGS_ES], FLAT_KERNEL_DS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_KERNEL_SS], FLAT_KERNEL_SS
    mov dword ptr [edi + VCPU_GUEST_CONTEXT_KERNEL_SP], USER_STACK_TOP
    mov eax, cr3
    mov [edi + VCPU_GUEST_CONTEXT_CTRLREG + 3 * 4], eax
    mov ebx, VCPUOP_initialise
    mov ecx, 1
    mov edx, DATA
    CHECKED vcpu_op
    mov ebx, VCPUOP_up
    mov ecx, 1
    CHECKED vcpu_op
    ret
other_vcpu:
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    CHECKED sched_op
    jmp other_vcpu

# -- the processor -----------------------------------------------------------------------------

run_cpu_register:
    LOOP
    add eax, edx
    AGAIN

run_cpu_load:
    mov edi, DATA
    LOOP
    mov eax, [edi]
    AGAIN

run_cpu_store:
    mov edi, DATA
    LOOP
    mov [edi], eax
    AGAIN

run_cpu_call:
    LOOP
    call prepare_nothing
    AGAIN

# -- tables ------------------------------------------------------------------------------------

.equ OPERATION_NAME, 0
.equ OPERATION_PREPARE, 4
.equ OPERATION_RUN, 8
.equ SIZEOF_OPERATION, 12

.macro OPERATION name, prepare, run
    .long name\@, \prepare, \run
    .section .rodata
name\@:
    .asciz "\name"
    .section .data
.endm

.macro TRAP vector, flags, handler
    .byte \vector, \flags
    .word FLAT_KERNEL_CS
    .long \handler
.endm
.macro END_OF_TRAPS
    TRAP 0, 0, 0
.endm

.section .data
.p2align 2
operations:
    OPERATION null_hypercall, prepare_nothing, run_null_hypercall
    OPERATION update_va_mapping, map_targets, run_uvm_same
    OPERATION update_va_mapping_rw, map_targets, run_uvm_toggle
    OPERATION update_va_mapping_invlpg, map_targets, run_uvm_invlpg
    OPERATION mmu_update, prepare_mmu_update, run_mmu_update
    OPERATION mmu_update_32, prepare_mmu_update, run_mmu_update_32
    OPERATION multicall_32, prepare_multicall, run_multicall_32
    OPERATION page_table_write, prepare_assist, run_assist
    OPERATION fault_skipped, prepare_fault_skipped, run_fault_skipped
    OPERATION fault_map_retry, prepare_fault_map_retry, run_fault_map_retry
    OPERATION divide_error, prepare_divide_error, run_divide_error
    OPERATION int80_native_iret, prepare_int80_native, run_int80
    OPERATION int80_hypercall_iret, prepare_int80_hypercall, run_int80
    OPERATION stack_switch, prepare_nothing, run_stack_switch
    OPERATION new_baseptr, prepare_new_baseptr, run_new_baseptr
    OPERATION console_io_64, prepare_console_io, run_console_io
    OPERATION event_self, prepare_event_self, run_event_self
    OPERATION event_self_upcall, prepare_event_self, run_event_self_upcall
    OPERATION event_round_trip, prepare_event_round_trip, run_event_round_trip
    OPERATION block_timer, prepare_block_timer, run_block_timer
    OPERATION yield, prepare_nothing, run_yield
    OPERATION vcpu_switch, prepare_vcpu_switch, run_yield
    OPERATION cpu_register, prepare_nothing, run_cpu_register
    OPERATION cpu_load, prepare_nothing, run_cpu_load
    OPERATION cpu_store, prepare_nothing, run_cpu_store
    OPERATION cpu_call, prepare_nothing, run_cpu_call
partners:                           # those that another operation needs
    OPERATION event_echo, prepare_event_echo, failed
    .long 0

traps_skip:
    TRAP TRAP_page_fault, TI_FAULT_ADDRESS, fault_skip
    END_OF_TRAPS
traps_map:
    TRAP TRAP_page_fault, TI_FAULT_ADDRESS, fault_map
    END_OF_TRAPS
traps_divide:
    TRAP TRAP_divide_error, 0, divide_skip
    END_OF_TRAPS
traps_int80_native:
    TRAP SYSCALL_VECTOR, 3, int80_native
    TRAP LEAVE_VECTOR, 3, int80_leave
    END_OF_TRAPS
traps_int80_hypercall:
    TRAP SYSCALL_VECTOR, 3, int80_hypercall
    TRAP LEAVE_VECTOR, 3, int80_leave
    END_OF_TRAPS

.p2align 3
request:                            # of the largest structure that is passed here
    .space SIZEOF_MMU_UPDATE
start_info:
    .space 4
count:
    .space 4
target:
    .space 8
other_l3:
    .space 4
switch:
    .space 4
kernel_stack:
    .space 4
reason:
    .space 4
mark:
    .ascii "."
