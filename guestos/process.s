# SPDX-License-Identifier: GPL-2.0-or-later
#
# Programs in ring 3: their pages, the way in, system calls, taking turns, the way out.
#
#   USER_BASE (memory.s) the pages of section .user, read-only and executable
#   USER_STACK          one page, writable and not executable, with its top at USER_END
#
# Only these pages have the user bit; the rest of the address space is closed to ring 3. A system
# call is int 0x80: number in eax, arguments in ebx, ecx and edx, result in eax, negative for an
# error. Xen enters syscall_entry from ring 3 without looking at the call.
#
# There is room for two programs. Both run the same code; each has a page of its own, mapped at
# USER_STACK while the program runs, so that it cannot reach the other's; and each has a kernel
# stack of its own, which holds its registers while it does not run:
#
#   PROCESS_STACK -> gs fs ebp edi esi ebx | return address | frame of traps.s | PROCESS_STACK_TOP
#                    -- process_switch --    into the kernel   from ring 3
#
# The tick takes the processor from a program, never from the kernel: its place in the kernel is
# always process_preempt, or process_first where it has not run yet. Programs have no FPU.
#
# Running a program is a call that returns when the program is over: process_return_stack keeps the
# caller's stack pointer, and the end goes back to it.

.equ USER_STACK, USER_BASE + 0x00100000
.equ USER_END, USER_STACK + PAGE_SIZE
.equ SYSCALL_VECTOR, 0x80
.equ SYS_exit, 0
.equ SYS_write, 1
.equ SYS_getpid, 2
.equ SYSCALL_COUNT, 3
.equ PROCESS_STACK, 0               # in process_table
.equ PROCESS_STACK_TOP, 4
.equ PROCESS_PAGE, 8                # its address above VIRT_BASE
.equ PROCESS_TURNS, 12
.equ SIZEOF_PROCESS, 16
.equ process_second, process_table + SIZEOF_PROCESS
.equ process_table_end, process_table + 2 * SIZEOF_PROCESS
.equ FIRST_FRAME, 7 * 4            # where the frame of traps.s begins on a waiting program's stack
.equ FIRST_SIZE, FIRST_FRAME + FRAME_EFLAGS + 3 * 4
.equ RACE_TICKS, 20
.equ USER_ENTRY_RX, _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
.equ USER_ENTRY_RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY
.equ user_code_end, USER_BASE + __user_end - __user_start
.equ KILLED, 128                    # status of a program ended by exception n: 128 + n

.section .text

# Map the programs' code, and give each place for a program its page and its stack.
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
    mov ebx, offset process_table
.Lprocess_place:
    call page_alloc
    mov [ebx + PROCESS_PAGE], eax
    call page_alloc
    add eax, PAGE_SIZE
    mov [ebx + PROCESS_STACK_TOP], eax
    add ebx, SIZEOF_PROCESS
    cmp ebx, offset process_table_end
    jb .Lprocess_place
    pop ebx
    ret

# Run the good program from its beginning, and print how it ended.
process_run:
    mov eax, USER_HELLO
    jmp process_start

# Run one that reads the kernel's memory, which ends it.
process_trespass:
    mov eax, USER_TRESPASS

# Run one program. In: eax = which, see user.s.
process_start:
    push ebx
    push esi
    push edi
    push ebp
    PRINT "process 1: entering ring 3\n"
    mov edx, offset process_table
    call process_prepare
    mov [process_return_stack], esp
    jmp process_resume

# Run two programs that never give way, and print how far each has come.
process_race:
    push ebx
    push esi
    push edi
    push ebp
    PRINT "race: two programs that never give way, in turns of one tick\n"
    mov eax, USER_RACE
    mov edx, offset process_second
    call process_prepare
    mov eax, USER_RACE
    mov edx, offset process_table
    call process_prepare
    mov byte ptr [process_turn_is_over], 0
    mov dword ptr [process_ticks_left], RACE_TICKS
    mov [process_return_stack], esp
    jmp process_resume

# Set a program up as if it had been interrupted before its first instruction. Its registers show
# nothing of the kernel. In: eax = which, edx = its place in the table. Keeps edx.
process_prepare:
    push esi
    push edi
    push eax
    xor eax, eax
    mov [edx + PROCESS_TURNS], eax
    mov edi, [edx + PROCESS_PAGE]
    mov ecx, PAGE_SIZE / 4
    rep stosd
    mov edi, [edx + PROCESS_STACK_TOP]
    sub edi, FIRST_SIZE
    mov [edx + PROCESS_STACK], edi
    mov esi, offset process_first_frame
    mov ecx, FIRST_SIZE / 4
    rep movsd
    mov edi, [edx + PROCESS_STACK]
    pop eax
    mov [edi + FIRST_FRAME + FRAME_EAX], eax
    pop edi
    pop esi
    ret

# End the turn of a program that an event has interrupted, if a tick came. In: ebx = the frame of
# the event; events are still masked. Returns when the program's next turn begins.
process_preempt:
    mov eax, [ebx + FRAME_CS]
    and eax, SELECTOR_RPL
    cmp eax, SELECTOR_RPL
    jne .Lpreempt_done              # the kernel was interrupted
    cmp dword ptr [process_ticks_left], 0
    je .Lpreempt_done               # there is nobody else
    cmp byte ptr [process_turn_is_over], 0
    je .Lpreempt_done
    mov byte ptr [process_turn_is_over], 0
    dec dword ptr [process_ticks_left]
    jz process_race_over
    mov edx, offset process_table
    cmp edx, [process_current]
    jne process_switch
    add edx, SIZEOF_PROCESS
    jmp process_switch
.Lpreempt_done:
    ret

# Leave the current program here, and go on with another where it was left. In: edx = its place in
# the table. Events are masked: the caller's frame says what they will be.
process_switch:
    push ebx
    push esi
    push edi
    push ebp
    push fs
    push gs
    mov eax, [process_current]
    mov [eax + PROCESS_STACK], esp
process_resume:
    mov [process_current], edx
    inc dword ptr [edx + PROCESS_TURNS]
    mov esp, [edx + PROCESS_STACK]
    mov ebx, edx
    mov eax, [ebx + PROCESS_STACK_TOP]
    call port_set_kernel_stack
    mov eax, [ebx + PROCESS_PAGE]
    mov ecx, USER_ENTRY_RW
    mov edx, NX
    call entry_of
    mov ecx, edx
    mov edx, eax
    mov eax, USER_STACK
    call port_set_mapping
    pop gs
    pop fs
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Where a program that has not run yet goes on.
process_first:
    TRAP_LEAVE

# The time of a race is up. Goes back to the caller of process_race.
process_race_over:
    mov esp, [process_return_stack]
    call port_unmask_events         # the event that led here has masked them
    mov ebx, offset process_table
.Lrace_result:
    PRINT "  program "
    mov eax, ebx
    call process_number_of
    call print_decimal
    PRINT ": "
    mov eax, [ebx + PROCESS_TURNS]
    call print_decimal
    PRINT " turns, counted to "
    mov eax, [ebx + PROCESS_PAGE]
    mov eax, [eax + user_race_count - USER_STACK]
    call print_decimal
    PRINT "\n"
    add ebx, SIZEOF_PROCESS
    cmp ebx, offset process_table_end
    jb .Lrace_result
    jmp process_return

# The program is over, and a race with it. In: eax = its status. Goes back to whoever started it.
process_leave:
    mov esp, [process_return_stack]
    mov dword ptr [process_ticks_left], 0
    mov ebx, eax
    call port_unmask_events         # the trap that led here may have masked them
    call process_print_name
    PRINT "ended with status "
    mov eax, ebx
    call print_decimal
    PRINT "\n"
process_return:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# The program made an exception that nothing repairs. In: eax = vector, ebx = frame.
process_kill:
    mov esi, eax
    call process_print_name
    PRINT "killed: "
    mov eax, esi
    call trap_print
    lea eax, [esi + KILLED]
    jmp process_leave

process_print_name:
    PRINT "process "
    call syscall_getpid
    call print_decimal
    PRINT ": "
    ret

# In: eax = place in the table. Out: eax = 1 or 2.
process_number_of:
    sub eax, offset process_table - SIZEOF_PROCESS
    shr eax, 4                      # SIZEOF_PROCESS is 16
    ret

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
    mov eax, [process_current]
    jmp process_number_of

.section .rodata
.p2align 2
syscall_table:
    .long syscall_exit, syscall_write, syscall_getpid
# What lies on the stack of a program that has not run yet, see the head.
process_first_frame:
    .long 0, 0, 0, 0, 0, 0, process_first
    .long FLAT_USER_DS, FLAT_USER_DS
    .long 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .long USER_BASE, FLAT_USER_CS, EFLAGS_IF | EFLAGS_MBS, USER_END, FLAT_USER_SS

.section .bss
.p2align 2
process_return_stack:
    .space 4
process_table:
    .space 2 * SIZEOF_PROCESS
process_current:
    .space 4                        # the place of who runs, or ran last
process_ticks_left:
    .space 4                        # of a race; 0 where nobody takes turns
process_turn_is_over:
    .space 1                        # a tick came
