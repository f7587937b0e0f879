# SPDX-License-Identifier: GPL-2.0-or-later
#
# Exceptions: how the kernel is entered for one, how it returns, and what it says when it cannot.
#
# Xen enters a handler much as the processor would, on the current stack (or, out of ring 3, on the
# one of port_load_space), and the stubs below complete the frame so that all look alike:
#
#   esp -> es ds | edi esi ebp - ebx edx ecx eax | word | error | eip | cs | eflags [ | esp | ss ]
#          -------- pushed by TRAP_ENTER --------  stub   Xen, or the stub        only from ring 3
#
# "word" is the vector; for a page fault it is the faulting address, which xenlite pushes on top of
# the error code when asked to. The address is thus part of the frame: a second page fault, taken
# before the first handler has looked, cannot overwrite it as it would overwrite CR2.
# On a hypervisor without that addition the stub pushes the same word from shared memory. The word
# "plainfaults" of the command line shows that way on xenlite, too.
#
# The ring that was interrupted is read from the saved cs in the frame, never from CS itself.
# Bits 16-23 of that word hold the event mask from before the trap; the return sets the mask from
# the frame's IF, which says the same.

.equ FRAME_ES, 0
.equ FRAME_DS, 4
.equ FRAME_EDI, 8
.equ FRAME_ESI, 12
.equ FRAME_EBP, 16
.equ FRAME_EBX, 24
.equ FRAME_EDX, 28
.equ FRAME_ECX, 32
.equ FRAME_EAX, 36
.equ FRAME_WORD, 40
.equ FRAME_ERROR, 44
.equ FRAME_EIP, 48
.equ FRAME_CS, 52
.equ FRAME_EFLAGS, 56
.equ FRAME_USER_ESP, 60             # only in the frame of a program

# Save everything. A program in ring 3 may have left any selector in ds and es, and DF set.
# After it, esp is the frame and eax is lost. (fs and gs stay as they are: the kernel uses neither.)
.macro TRAP_ENTER
    pushad
    push ds
    push es
    mov eax, FLAT_KERNEL_DS
    mov ds, eax
    mov es, eax
    cld
.endm

# Restore everything, drop the two words above eip, and go back to where the trap came from.
.macro TRAP_LEAVE
    pop es
    pop ds
    popad
    add esp, 8
    jmp port_iret
.endm

# Make the handler of an exception without an error code.
.macro TRAP_STUB name
trap_\name:
    push 0
    push TRAP_\name
    jmp trap_enter
.endm

# Make the handler of an exception with one.
.macro TRAP_STUB_WITH_ERROR name
trap_\name:
    push TRAP_\name
    jmp trap_enter
.endm

# Make an entry of the trap table.
.macro TRAP_TABLE_ENTRY vector, flags, handler
    .byte \vector, \flags
    .word FLAT_KERNEL_CS
    .long \handler
.endm

.section .text

# Ask for the faulting address on the stack, and register the handlers. A hypervisor other than
# xenlite refuses the first, and page faults keep the handler that fetches the address.
traps_open:
    mov eax, offset word_plainfaults
    call command_line_has
    test eax, eax
    jnz traps_open_cpu
    mov eax, VMASST_TYPE_xenlite_fault_address
    call port_enable_assist
    test eax, eax
    js traps_open_cpu
    mov byte ptr [traps_has_fault_address], 1

# Register the handlers on this processor.
traps_open_cpu:
    mov eax, offset trap_table
    call port_load_trap_table
    cmp byte ptr [traps_has_fault_address], 0
    je .Ltraps_plain
    mov eax, offset trap_table_fault_address
    jmp port_load_trap_table
.Ltraps_plain:
    ret

TRAP_STUB divide_error
TRAP_STUB debug
TRAP_STUB int3
TRAP_STUB overflow
TRAP_STUB bounds
TRAP_STUB invalid_op
TRAP_STUB_WITH_ERROR invalid_tss
TRAP_STUB_WITH_ERROR no_segment
TRAP_STUB_WITH_ERROR stack_error
TRAP_STUB_WITH_ERROR gp_fault
TRAP_STUB copro_error
TRAP_STUB_WITH_ERROR alignment_check
TRAP_STUB simd_error

# The first use of the FPU in a turn, or a mistake of the kernel, which uses none.
trap_no_device:
    push 0
    push TRAP_no_device
    TRAP_ENTER
    mov ebx, esp
    mov ecx, [ebx + FRAME_CS]
    and ecx, SELECTOR_RPL
    cmp ecx, SELECTOR_RPL
    mov eax, TRAP_no_device
    jne trap_fatal
    call fpu_trap
    jmp trap_return

# An exception that nothing handles: it ends the program or the kernel.
trap_enter:
    TRAP_ENTER
    mov ebx, esp
    mov eax, [ebx + FRAME_WORD]
    jmp trap_fatal

# A page fault whose address Xen left in shared memory.
page_fault_plain:
    PORT_PUSH_FAULT_ADDRESS
    # and on into the same handler

# A page fault: [esp] = address, [esp + 4] = error code, then eip, cs, eflags [, esp, ss].
page_fault:
    TRAP_ENTER
    mov ebx, esp
    mov ecx, [ebx + FRAME_CS]
    and ecx, SELECTOR_RPL
    cmp ecx, SELECTOR_RPL
    jne .Lpage_fault_kernel
    call kernel_enter
    mov eax, [ebx + FRAME_WORD]
    mov edx, [ebx + FRAME_ERROR]
    call fault_repair
    call kernel_leave
    test eax, eax
    jz trap_return
    cmp eax, FAULT_NO_MEMORY
    mov eax, TRAP_page_fault
    jne trap_fatal
    # Out of memory: the end of whoever it is, but for process 1, which all others need.
    mov edx, SIGKILL
    call process_current
    cmp eax, [process_init]
    jne process_fail
    call kernel_enter
    call process_wait_for_memory
    call kernel_leave
    jmp trap_return

# The kernel itself: only where it copies from or to a program, and so holds kernel_lock.
.Lpage_fault_kernel:
    mov eax, [ebx + FRAME_EIP]
    call fault_is_expected
    mov eax, TRAP_page_fault
    jnc trap_fatal
    mov eax, [ebx + FRAME_WORD]
    mov edx, [ebx + FRAME_ERROR]
    call fault_repair
    test eax, eax
    jz .Lpage_fault_repaired
    mov dword ptr [ebx + FRAME_EIP], offset user_copy_failed
.Lpage_fault_repaired:
    TRAP_LEAVE

# Go back to a program. In: ebx = the frame, and esp too; kernel_lock is not held. On the way: a
# process that was killed ends, and one whose turn is over lets another run.
trap_return:
    CPU esi
    mov eax, [esi + CPU_CURRENT]
    cmp dword ptr [eax + PROCESS_KILLED], 0
    jne trap_return_killed
    cmp byte ptr [esi + CPU_RESCHEDULE], 0
    jne .Lreturn_turn_is_over
    TRAP_LEAVE
.Lreturn_turn_is_over:
    call schedule_yield
    jmp trap_return                 # on another processor, perhaps
trap_return_killed:
    call port_unmask_events
    call kernel_enter
    call process_current
    mov eax, [eax + PROCESS_KILLED]
    jmp process_exit

# End whoever made an exception. In: eax = vector, ebx = frame. Never returns.
trap_fatal:
    mov ecx, [ebx + FRAME_CS]
    and ecx, SELECTOR_RPL
    cmp ecx, SELECTOR_RPL
    mov edx, [trap_signals + eax * 4]
    je process_fail
    mov esi, eax
    mov dword ptr [console_lock], 0 # it may be what the exception has interrupted
    PRINT "guestos: panic: "
    mov eax, esi
    call trap_print
    call trap_print_registers
    mov eax, SHUTDOWN_crash
    jmp port_shutdown

# End the current process for an exception, and say so in one line. In: eax = vector, edx = signal,
# ebx = frame. Never returns.
process_fail:
    mov esi, eax
    mov edi, edx
    call port_unmask_events
    call kernel_enter
    PRINT "process "
    call process_current
    mov ebp, eax
    mov eax, [ebp + PROCESS_ID]
    call print_decimal
    PRINT " ("
    lea eax, [ebp + PROCESS_NAME]
    call print
    PRINT "): killed: "
    cmp edi, SIGKILL
    je .Lfail_no_memory
    mov eax, esi
    call trap_print
    jmp .Lfail_exit
.Lfail_no_memory:
    PRINT "out of memory\n"
.Lfail_exit:
    mov eax, edi
    jmp process_exit

# Xen could not load a selector that a return asked for. Frame: ds, es, fs, gs, eip, cs, eflags ...
# The kernel's own selectors never change, so this was a program's doing.
trap_failsafe:
    add esp, 16
    push 0
    push TRAP_gp_fault
    jmp trap_enter

# A hypercall that had to succeed did not. In: eax = Xen's result, edx = its name. Never returns.
panic_refused:
    mov ebx, eax
    mov esi, edx
    mov dword ptr [console_lock], 0
    PRINT "guestos: panic: Xen refused "
    mov eax, esi
    call print
    PRINT ": error "
    mov eax, ebx
    neg eax
    call print_decimal
    PRINT "\n"
    mov eax, SHUTDOWN_crash
    jmp port_shutdown

# Say what happened and where. In: eax = vector, ebx = frame.
trap_print:
    push eax
    mov eax, [trap_names + eax * 4]
    call print
    pop eax
    cmp eax, TRAP_page_fault
    jne .Ltrap_print_place
    PRINT " at "
    mov eax, [ebx + FRAME_WORD]
    call print_hex
.Ltrap_print_place:
    PRINT ", error "
    mov eax, [ebx + FRAME_ERROR]
    call print_hex
    PRINT ", eip "
    mov eax, [ebx + FRAME_EIP]
    call print_hex
    PRINT "\n"
    ret

# Print the registers of a frame, one line for each word of the list. In: ebx = frame.
trap_print_registers:
    push esi
    mov esi, offset trap_registers
.Lregisters_next:
    mov eax, [esi]
    test eax, eax
    jz .Lregisters_done
    call print
    mov eax, [esi + 4]
    mov eax, [ebx + eax]
    call print_hex
    add esi, 8
    jmp .Lregisters_next
.Lregisters_done:
    PRINT "\n"
    pop esi
    ret

.section .rodata

.p2align 2
trap_table:
    TRAP_TABLE_ENTRY TRAP_divide_error, 0, trap_divide_error
    TRAP_TABLE_ENTRY TRAP_debug, 0, trap_debug
    TRAP_TABLE_ENTRY TRAP_int3, 3, trap_int3         # 3: programs may use int3 and into
    TRAP_TABLE_ENTRY TRAP_overflow, 3, trap_overflow
    TRAP_TABLE_ENTRY TRAP_bounds, 0, trap_bounds
    TRAP_TABLE_ENTRY TRAP_invalid_op, 0, trap_invalid_op
    TRAP_TABLE_ENTRY TRAP_no_device, 0, trap_no_device
    TRAP_TABLE_ENTRY TRAP_invalid_tss, 0, trap_invalid_tss
    TRAP_TABLE_ENTRY TRAP_no_segment, 0, trap_no_segment
    TRAP_TABLE_ENTRY TRAP_stack_error, 0, trap_stack_error
    TRAP_TABLE_ENTRY TRAP_gp_fault, 0, trap_gp_fault
    # Events stay out until the address has been fetched: an upcall's own fault would replace it.
    TRAP_TABLE_ENTRY TRAP_page_fault, TI_MASK_EVENTS, page_fault_plain
    TRAP_TABLE_ENTRY TRAP_copro_error, 0, trap_copro_error
    TRAP_TABLE_ENTRY TRAP_alignment_check, 0, trap_alignment_check
    TRAP_TABLE_ENTRY TRAP_simd_error, 0, trap_simd_error
    TRAP_TABLE_ENTRY SYSCALL_VECTOR, 3, syscall_entry
    TRAP_TABLE_ENTRY 0, 0, 0

trap_table_fault_address:
    TRAP_TABLE_ENTRY TRAP_page_fault, TI_FAULT_ADDRESS, page_fault
    TRAP_TABLE_ENTRY 0, 0, 0

# What waitpid says of a program that made the exception.
trap_signals:
    .long SIGFPE, SIGTRAP, SIGSEGV, SIGTRAP, SIGSEGV, SIGSEGV, SIGILL, SIGFPE, SIGSEGV, SIGFPE
    .long SIGSEGV, SIGBUS, SIGBUS, SIGSEGV, SIGSEGV, SIGSEGV, SIGFPE, SIGBUS, SIGBUS, SIGFPE

trap_names:
    .long .Ltrap0, .Ltrap1, .Ltrap2, .Ltrap3, .Ltrap4, .Ltrap5, .Ltrap6, .Ltrap7, .Ltrap8, .Ltrap9
    .long .Ltrap10, .Ltrap11, .Ltrap12, .Ltrap13, .Ltrap14, .Ltrap15, .Ltrap16, .Ltrap17, .Ltrap18
    .long .Ltrap19
.Ltrap0: .asciz "divide error"
.Ltrap1: .asciz "debug exception"
.Ltrap2: .asciz "NMI"
.Ltrap3: .asciz "breakpoint"
.Ltrap4: .asciz "overflow"
.Ltrap5: .asciz "bound exceeded"
.Ltrap6: .asciz "invalid opcode"
.Ltrap7: .asciz "no FPU"
.Ltrap8: .asciz "double fault"
.Ltrap9: .asciz "coprocessor segment"
.Ltrap10: .asciz "invalid TSS"
.Ltrap11: .asciz "segment not present"
.Ltrap12: .asciz "stack fault"
.Ltrap13: .asciz "general protection"
.Ltrap14: .asciz "page fault"
.Ltrap15: .asciz "spurious interrupt"
.Ltrap16: .asciz "FPU error"
.Ltrap17: .asciz "alignment check"
.Ltrap18: .asciz "machine check"
.Ltrap19: .asciz "SIMD error"

.p2align 2
trap_registers:
    .long .Lname_eax, FRAME_EAX, .Lname_ebx, FRAME_EBX, .Lname_ecx, FRAME_ECX
    .long .Lname_edx, FRAME_EDX, .Lname_esi, FRAME_ESI, .Lname_edi, FRAME_EDI
    .long .Lname_ebp, FRAME_EBP, .Lname_eflags, FRAME_EFLAGS, .Lname_cs, FRAME_CS, 0
.Lname_eax: .asciz "  eax "
.Lname_ebx: .asciz " ebx "
.Lname_ecx: .asciz " ecx "
.Lname_edx: .asciz " edx "
.Lname_esi: .asciz "\n  esi "
.Lname_edi: .asciz " edi "
.Lname_ebp: .asciz " ebp "
.Lname_eflags: .asciz "\n  eflags "
.Lname_cs: .asciz " cs "

.section .bss
traps_has_fault_address:
    .space 1
