# SPDX-License-Identifier: GPL-2.0-or-later
#
# One program in ring 3: its pages, the way in, system calls, the way out.
#
#   USER_BASE (memory.s) the pages of section .user, read-only and executable
#   USER_STACK          one page, writable and not executable, with its top at USER_END
#
# Only these pages have the user bit; the rest of the address space is closed to ring 3. A system
# call is int 0x80: number in eax, arguments in ebx, ecx and edx, result in eax, negative for an
# error. Xen enters syscall_entry from ring 3 without looking at the call.
#
# Running a program is a call that returns when the program is over: process_run keeps its stack
# pointer, everything that comes out of ring 3 lands below it, and the exit goes back to it.

.equ USER_STACK, USER_BASE + 0x00100000
.equ USER_END, USER_STACK + PAGE_SIZE
.equ SYSCALL_VECTOR, 0x80
.equ SYS_exit, 0
.equ SYS_write, 1
.equ SYS_getpid, 2
.equ SYSCALL_COUNT, 3
.equ PROCESS_ID, 1
.equ USER_ENTRY_RX, _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
.equ USER_ENTRY_RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY
.equ user_code_end, USER_BASE + __user_end - __user_start
.equ KILLED, 128                    # status of a program ended by exception n: 128 + n

.section .text

# Map the program's pages.
process_open:
    push ebx
    mov ebx, offset __user_start
.Lprocess_code:
    mov eax, ebx
    mov ecx, USER_ENTRY_RX
    xor edx, edx
    call entry_of
    mov ecx, edx
    mov edx, eax
    lea eax, [ebx + USER_BASE]
    sub eax, offset __user_start
    call port_set_mapping
    add ebx, PAGE_SIZE
    cmp ebx, offset __user_end
    jb .Lprocess_code
    call page_alloc
    mov ecx, USER_ENTRY_RW
    mov edx, NX
    call entry_of
    mov ecx, edx
    mov edx, eax
    mov eax, USER_STACK
    call port_set_mapping
    pop ebx
    ret

# Run the program from its beginning, and print how it ended.
process_run:
    xor eax, eax
    jmp process_start

# Run it so that it reads the kernel's memory, which ends it.
process_trespass:
    mov eax, 1

# In: eax = what the program is to do, see user.s.
process_start:
    push ebx
    push esi
    push edi
    push ebp
    PRINT "process 1: entering ring 3\n"
    mov [process_return_stack], esp
    mov ebx, eax
    mov eax, esp
    call port_set_kernel_stack
    mov eax, ebx
    # A frame as if the program had been interrupted before its first instruction. Its registers
    # must show nothing of the kernel.
    push FLAT_USER_SS
    push USER_END
    push EFLAGS_IF | EFLAGS_MBS
    push FLAT_USER_CS
    push USER_BASE
    xor ecx, ecx
    mov fs, ecx
    mov gs, ecx
    mov ecx, FLAT_USER_DS
    mov ds, ecx
    mov es, ecx
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    xor ebp, ebp
    jmp port_iret

# The program is over. In: eax = its status. Goes back to the caller of process_run.
process_leave:
    mov esp, [process_return_stack]
    mov ebx, eax
    call port_unmask_events         # the trap that led here may have masked them
    PRINT "process 1: ended with status "
    mov eax, ebx
    call print_decimal
    PRINT "\n"
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# The program made an exception that nothing repairs. In: eax = vector, ebx = frame.
process_kill:
    mov esi, eax
    PRINT "process 1: killed: "
    mov eax, esi
    call trap_print
    lea eax, [esi + KILLED]
    jmp process_leave

# -- system calls ----------------------------------------------------------------------------

syscall_entry:
    push 0                          # the frame of traps.s
    push SYSCALL_VECTOR
    TRAP_ENTER
    mov ebx, esp
    mov eax, [ebx + FRAME_EAX]
    cmp eax, SYSCALL_COUNT
    jae .Lsyscall_unknown
    call dword ptr [syscall_table + eax * 4]
.Lsyscall_done:
    mov [ebx + FRAME_EAX], eax
    TRAP_LEAVE
.Lsyscall_unknown:
    mov eax, -ENOSYS
    jmp .Lsyscall_done

# Each of these: in: ebx = frame, out: eax = result.

# exit(status)
syscall_exit:
    movzx eax, byte ptr [ebx + FRAME_EBX]
    jmp process_leave

# write(address, length): print bytes of the program's own memory; the result is the length.
# The pointer is the program's word and nothing more. Ring 1 may read every page, so without
# these checks a program could have the kernel print its secrets, or make it fault.
syscall_write:
    mov eax, [ebx + FRAME_EBX]
    mov edx, [ebx + FRAME_ECX]
    mov ecx, eax
    add ecx, edx
    jc .Lwrite_bad
    cmp eax, USER_STACK
    jae .Lwrite_in_stack
    cmp eax, USER_BASE
    jb .Lwrite_bad
    cmp ecx, offset user_code_end
    ja .Lwrite_bad
.Lwrite_checked:
    call console_write
    mov eax, [ebx + FRAME_ECX]
    ret
.Lwrite_in_stack:
    cmp ecx, USER_END
    jbe .Lwrite_checked
.Lwrite_bad:
    mov eax, -EFAULT
    ret

# getpid()
syscall_getpid:
    mov eax, PROCESS_ID
    ret


.section .rodata
.p2align 2
syscall_table:
    .long syscall_exit, syscall_write, syscall_getpid

.section .bss
.p2align 2
process_return_stack:
    .space 4
