# SPDX-License-Identifier: GPL-2.0-or-later
#
# faulttest: make every exception that a program can make, each in a child, and see that the kernel
# ends the child by the right signal and nobody else. A word chooses one by its name, a number all
# that have this vector.

.include "lib/program.inc"

USAGE "usage: faulttest [NAME | VECTOR]\n"

.equ FAULT_NAME, 0
.equ FAULT_VECTOR, 4
.equ FAULT_SIGNAL, 8
.equ FAULT_ROUTINE, 12
.equ SIZEOF_FAULT, 16

.equ KERNEL, 0xC0000000
.equ NOWHERE, 0x50000000
.equ STACK_SIZE, 0x100000           # the most that a stack may have
.equ EFLAGS_TF, 0x100
.equ EFLAGS_NT, 0x4000
.equ FPU_CONTROL, 0x037B            # all exceptions masked but a division by zero

.section .text
main:
    cmp eax, 2
    ja usage
    mov esi, [edx + 4]              # the word, or 0
    mov edi, -1                     # the vector, or -1
    test esi, esi
    jz .Lfaults_begin
    mov eax, esi
    call parse_number
    jc .Lfaults_begin
    mov edi, eax
.Lfaults_begin:
    mov ebx, offset faults
.Lfaults_next:
    cmp dword ptr [ebx], 0
    je .Lfaults_done
    test esi, esi
    jz .Lfaults_run
    cmp edi, [ebx + FAULT_VECTOR]
    je .Lfaults_run
    mov eax, [ebx + FAULT_NAME]
    mov edx, esi
    call text_equals
    test eax, eax
    jz .Lfaults_skip
.Lfaults_run:
    inc dword ptr [faults_run]
    call fault_run
.Lfaults_skip:
    add ebx, SIZEOF_FAULT
    jmp .Lfaults_next
.Lfaults_done:
    cmp dword ptr [faults_run], 0
    je usage
    mov eax, [faults_wrong]
    ret

# Make one fault in a child, and say what came of it. In: ebx = entry.
fault_run:
    call flush
    SYSTEM_CALL fork
    mov edx, offset faults_fork
    test eax, eax
    js fail
    jz fault_child
    push ebx
    mov ebx, eax
    mov ecx, offset faults_word
    xor edx, edx
    SYSTEM_CALL waitpid
    pop ebx
    mov edx, offset faults_wait
    test eax, eax
    js fail                         # or the verdict would be that of the child before
    mov eax, [ebx + FAULT_NAME]
    mov edx, 13
    call put_text_wide
    PRINT "vector "
    mov eax, [ebx + FAULT_VECTOR]
    mov edx, 2
    call put_decimal_wide
    mov eax, [faults_word]
    and eax, WAIT_SIGNAL
    jz .Lrun_survived
    PRINT ": ended by signal "
    push eax
    call put_decimal
    pop eax
    cmp eax, [ebx + FAULT_SIGNAL]
    jne .Lrun_wrong
    PRINT ", as it should\n"
    ret
.Lrun_survived:
    PRINT ": not ended"
.Lrun_wrong:
    PRINT ": WRONG\n"
    mov dword ptr [faults_wrong], STATUS_FAILED
    ret

fault_child:
    call dword ptr [ebx + FAULT_ROUTINE]
    xor ebx, ebx                    # nothing has happened
    SYSTEM_CALL exit

# -- the faults ------------------------------------------------------------------------------

fault_divide:
    xor edx, edx
    xor ecx, ecx
    div ecx
    ret
fault_debug:
    pushfd
    or dword ptr [esp], EFLAGS_TF
    popfd
    nop                             # traps behind this
    ret
fault_breakpoint:
    int3
    ret
fault_overflow:
    mov al, 0x7F
    inc al
    into
    ret
fault_bounds:
    mov eax, 3
    bound eax, [faults_bounds]
    ret
fault_invalid:
    ud2
    ret
fault_task:
    pushfd                          # an iret out of a task that nobody was switched from
    or dword ptr [esp], EFLAGS_NT
    popfd
    iretd
fault_privileged:
    hlt
    ret
fault_mask:
    cli
    ret
fault_port:
    mov edx, 0x60
    in al, dx
    ret
fault_tables:
    mov eax, KERNEL
    mov cr3, eax
    ret
fault_interrupt:
    int 0x20
    ret
fault_hypercall:
    xor eax, eax
    int 0x82
    ret
fault_selector:
    mov eax, 0xFFF8
    mov ds, eax
    ret
fault_ring:
    mov eax, 0xE019                 # the kernel's own code
    push eax
    push offset fault_ring
    retf
fault_null:
    mov eax, [0]
    ret
fault_nowhere:
    inc dword ptr [NOWHERE]
    ret
fault_kernel_read:
    mov eax, [KERNEL]
    ret
fault_kernel_write:
    mov dword ptr [KERNEL], 0
    ret
fault_kernel_jump:
    mov eax, KERNEL
    jmp eax
fault_code_write:
    mov dword ptr [fault_code_write], 0
    ret
fault_constant_write:
    mov dword ptr [faults_fork], 0
    ret
fault_data_jump:
    mov byte ptr [faults_code], 0xC3    # ret
    mov eax, offset faults_code
    call eax
    ret
fault_stack_jump:
    push 0xC3
    mov eax, esp
    call eax
    pop eax
    ret
fault_guard:
    sub esp, STACK_SIZE
    push eax
    ret
fault_float:
    fninit
    push FPU_CONTROL
    fldcw [esp]
    fld1
    fldz
    fdivp st(1), st
    fwait
    pop eax
    ret

.section .rodata
.p2align 2
# Name, vector, signal, routine.
faults:
    .long .Lname_divide, 0, SIGFPE, fault_divide
    .long .Lname_debug, 1, SIGTRAP, fault_debug
    .long .Lname_breakpoint, 3, SIGTRAP, fault_breakpoint
    .long .Lname_overflow, 4, SIGSEGV, fault_overflow
    .long .Lname_bounds, 5, SIGSEGV, fault_bounds
    .long .Lname_invalid, 6, SIGILL, fault_invalid
    .long .Lname_task, 10, SIGSEGV, fault_task
    .long .Lname_privileged, 13, SIGSEGV, fault_privileged
    .long .Lname_mask, 13, SIGSEGV, fault_mask
    .long .Lname_port, 13, SIGSEGV, fault_port
    .long .Lname_tables, 13, SIGSEGV, fault_tables
    .long .Lname_interrupt, 13, SIGSEGV, fault_interrupt
    .long .Lname_hypercall, 13, SIGSEGV, fault_hypercall
    .long .Lname_selector, 13, SIGSEGV, fault_selector
    .long .Lname_ring, 13, SIGSEGV, fault_ring
    .long .Lname_null, 14, SIGSEGV, fault_null
    .long .Lname_nowhere, 14, SIGSEGV, fault_nowhere
    .long .Lname_kernel_read, 14, SIGSEGV, fault_kernel_read
    .long .Lname_kernel_write, 14, SIGSEGV, fault_kernel_write
    .long .Lname_kernel_jump, 14, SIGSEGV, fault_kernel_jump
    .long .Lname_code_write, 14, SIGSEGV, fault_code_write
    .long .Lname_constant_write, 14, SIGSEGV, fault_constant_write
    .long .Lname_data_jump, 14, SIGSEGV, fault_data_jump
    .long .Lname_stack_jump, 14, SIGSEGV, fault_stack_jump
    .long .Lname_guard, 14, SIGSEGV, fault_guard
    .long .Lname_float, 16, SIGFPE, fault_float
    .long 0
.Lname_divide: .asciz "divide"
.Lname_debug: .asciz "debug"
.Lname_breakpoint: .asciz "breakpoint"
.Lname_overflow: .asciz "overflow"
.Lname_bounds: .asciz "bounds"
.Lname_invalid: .asciz "invalid"
.Lname_task: .asciz "task"
.Lname_privileged: .asciz "privileged"
.Lname_mask: .asciz "mask"
.Lname_port: .asciz "port"
.Lname_tables: .asciz "tables"
.Lname_interrupt: .asciz "interrupt"
.Lname_hypercall: .asciz "hypercall"
.Lname_selector: .asciz "selector"
.Lname_ring: .asciz "ring"
.Lname_null: .asciz "null"
.Lname_nowhere: .asciz "nowhere"
.Lname_kernel_read: .asciz "kernel-read"
.Lname_kernel_write: .asciz "kernel-write"
.Lname_kernel_jump: .asciz "kernel-jump"
.Lname_code_write: .asciz "code-write"
.Lname_constant_write: .asciz "const-write"
.Lname_data_jump: .asciz "data-jump"
.Lname_stack_jump: .asciz "stack-jump"
.Lname_guard: .asciz "guard"
.Lname_float: .asciz "float"
faults_bounds:
    .long 1, 2
faults_fork:
    .asciz "fork"
faults_wait:
    .asciz "waitpid"

.section .bss
.p2align 2
faults_word:
    .space 4
faults_run:
    .space 4
faults_wrong:
    .space 4
faults_code:
    .space 4
