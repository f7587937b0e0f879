# SPDX-License-Identifier: GPL-2.0-or-later
#
# Processes: what they are, how one becomes two, how they end, and who learns of it.
#
#   FREE -> NEW -> READY <-> RUNNING -> ZOMBIE -> FREE
#                    ^          |
#                    +- SLEEPING +
#
# NEW is a place that fork is filling. A process that has ended keeps its place, its kernel stack
# and its empty address space until its parent has asked for its status; whose parent ends first
# becomes a child of process 1, which asks always.
#
# Killing a process is a mark (PROCESS_KILLED = the signal): it ends itself, when it would go back
# to ring 3, or when its sleep ends, which the mark does. So nobody takes a process apart from
# outside.
#
# States and the mark are schedule_lock's; all other fields are the process's own, or kernel_lock's.

.equ PROCESS_ID, 0
.equ PROCESS_STATE, 4               # one of
.equ PROCESS_FREE, 0
.equ PROCESS_NEW, 1
.equ PROCESS_READY, 2
.equ PROCESS_RUNNING, 3
.equ PROCESS_SLEEPING, 4
.equ PROCESS_ZOMBIE, 5
.equ PROCESS_PARENT, 8              # the process's address
.equ PROCESS_STACK, 12              # stack pointer while it does not run
.equ PROCESS_STACK_BASE, 16         # the block of its kernel stack
.equ PROCESS_SPACE, 20              # 0 for one that lives in the kernel only
.equ PROCESS_CHANNEL, 24            # what it sleeps for
.equ PROCESS_KILLED, 28             # the signal that ends it, or 0
.equ PROCESS_STATUS, 32             # waitpid's word
.equ PROCESS_NEXT, 36               # in the queue of schedule.s
.equ PROCESS_CPU, 40                # where it runs, or ran last
.equ PROCESS_TICKS, 44              # of the clock that it was found running at
.equ PROCESS_DEADLINE, 48           # system time in ns that its sleep ends at, -1 for none
.equ PROCESS_HEAP, 56               # pages of zeros appear from here
.equ PROCESS_BREAK_MIN, 60
.equ PROCESS_BREAK, 64              # to here
.equ PROCESS_GROUP, 68
.equ PROCESS_NAME, 72
.equ PROCESS_HAS_FPU, 84            # a byte: it has used the FPU
.equ PROCESS_HAS_STACK, 85          # a byte of the place, not the process
.equ PROCESS_FILES, 88              # files.s
.equ SIZEOF_PROCESS, 192
.equ PROCESSES_MAX, L2_REGION / KSTACK_SIZE        # the first CPUS_MAX are the idle ones
.equ process_first_slot, process_table + CPUS_MAX * SIZEOF_PROCESS
.equ process_table_end, process_table + PROCESSES_MAX * SIZEOF_PROCESS
.equ PROCESS_INHERITED, PROCESS_HAS_FPU - PROCESS_HEAP  # bytes that a child has from its parent
.equ GROUP_NONE, -1                 # of processes of the kernel: no kill can name it
.equ INIT_PAUSE_NS, 10 * NS_PER_MS
.equ SWITCH_WORDS, 7                # what schedule_switch leaves on a stack, return address and all
.equ SIZEOF_USER_FRAME, FRAME_EFLAGS + 3 * 4
.equ PROCESS_FRAME, KSTACK_TOP - SIZEOF_USER_FRAME      # from the base of the stack's block

.section .text

# Give each place in the table its stack's address, and make what runs now the first idle process.
process_open:
    mov eax, offset process_table
    mov ecx, KSTACKS_BASE
.Lprocess_place:
    mov [eax + PROCESS_STACK_BASE], ecx
    add eax, SIZEOF_PROCESS
    add ecx, KSTACK_SIZE
    cmp eax, offset process_table_end
    jb .Lprocess_place
    mov dword ptr [process_slots_end], offset process_first_slot
    mov eax, offset process_table
    mov dword ptr [eax + PROCESS_STACK_BASE], offset kernel_stack
    mov dword ptr [eax + PROCESS_STATE], PROCESS_RUNNING
    mov ecx, offset cpu_table
    mov [eax + PROCESS_CPU], ecx
    mov [ecx + CPU_IDLE], eax
    mov [ecx + CPU_CURRENT], eax
    ret

# Which process runs here? Out: eax. Changes no other register.
process_current:
    CPU eax
    mov eax, [eax + CPU_CURRENT]
    ret

# Take a place for a process, with a kernel stack. Out: eax = process, NEW; or 0.
process_new:
    push ebx
    push esi
    xor esi, esi                    # the first free place without a stack
    mov ebx, offset process_first_slot
.Lnew_look:
    cmp dword ptr [ebx + PROCESS_STATE], PROCESS_FREE
    jne .Lnew_next
    cmp byte ptr [ebx + PROCESS_HAS_STACK], 0
    jne .Lnew_take
    test esi, esi
    jnz .Lnew_next
    mov esi, ebx
    cmp dword ptr [kstacks_spare_count], 0
    je .Lnew_found
.Lnew_next:
    add ebx, SIZEOF_PROCESS
    cmp ebx, offset process_table_end
    jb .Lnew_look
    test esi, esi
    jz .Lnew_none
.Lnew_found:
    mov ebx, esi
.Lnew_take:
    mov eax, ebx
    call kstack_open
    test eax, eax
    jnz .Lnew_none
    inc dword ptr [processes_count]
    lea eax, [ebx + SIZEOF_PROCESS]
    cmp eax, [process_slots_end]
    jbe .Lnew_reset
    mov [process_slots_end], eax
.Lnew_reset:
    call process_reset
    mov eax, ebx
    jmp .Lnew_out
.Lnew_none:
    xor eax, eax
.Lnew_out:
    pop esi
    pop ebx
    ret

# Fill in what a new process begins with. In: ebx = process.
process_reset:
    inc dword ptr [process_last_id]
    mov eax, [process_last_id]
    mov [ebx + PROCESS_ID], eax
    mov [ebx + PROCESS_GROUP], eax
    call process_current
    mov [ebx + PROCESS_PARENT], eax
    xor eax, eax
    mov [ebx + PROCESS_SPACE], eax
    mov [ebx + PROCESS_KILLED], eax
    mov [ebx + PROCESS_TICKS], eax
    mov [ebx + PROCESS_HAS_FPU], al
    mov dword ptr [ebx + PROCESS_DEADLINE], -1
    mov dword ptr [ebx + PROCESS_DEADLINE + 4], -1
    CPU eax
    mov [ebx + PROCESS_CPU], eax
    mov dword ptr [ebx + PROCESS_STATE], PROCESS_NEW
    ret

# Give a place back. Its address space and its files are gone. In: eax = process.
process_release:
    dec dword ptr [processes_count]
    mov dword ptr [eax + PROCESS_STATE], PROCESS_FREE
    jmp kstack_close

# Prepare the stack of a new process so that its first turn begins at a routine, with nothing but a
# frame of a program on the stack. In: eax = process, edx = routine.
process_prepare:
    push edi
    mov edi, [eax + PROCESS_STACK_BASE]
    add edi, PROCESS_FRAME - SWITCH_WORDS * 4
    mov [eax + PROCESS_STACK], edi
    xor eax, eax
    mov ecx, SWITCH_WORDS - 1
    rep stosd
    mov [edi], edx
    pop edi
    ret

# Make a process that lives in the kernel alone. It has no id: nobody lists it, kills it or waits
# for it. In: eax = its first routine, which lets events in and enters the kernel; edx = name, of
# PROCESS_NAME_BYTES. kernel_lock is held.
process_make_kernel:
    push ebx
    push esi
    push edi
    mov edi, eax
    mov esi, edx
    call process_new                # not refused: the boot is not over
    mov ebx, eax
    mov edx, edi
    call process_prepare
    lea edi, [ebx + PROCESS_NAME]
    mov ecx, PROCESS_NAME_BYTES / 4
    rep movsd
    dec dword ptr [process_last_id]
    dec dword ptr [processes_count]
    mov dword ptr [ebx + PROCESS_ID], 0
    mov dword ptr [ebx + PROCESS_GROUP], GROUP_NONE
    mov eax, ebx
    pop edi
    pop esi
    pop ebx
    # and on

# Let a new process run. In: eax. A signal that came to its parent while this one was NEW, and so
# not yet among those of a group, is meant for it, too: nobody gets away from Ctrl-C by forking.
process_start:
    push ebx
    mov ebx, eax
    mov eax, offset schedule_lock
    call lock_events
    push eax
    mov ecx, [ebx + PROCESS_PARENT]
    mov ecx, [ecx + PROCESS_KILLED]
    mov [ebx + PROCESS_KILLED], ecx
    mov eax, ebx
    call schedule_ready
    pop edx
    mov eax, offset schedule_lock
    pop ebx
    jmp unlock_events

# -- the first process -----------------------------------------------------------------------

# Make process 1, which starts init. kernel_lock is held.
process_make_init:
    call process_new
    mov [process_init], eax
    push eax
    mov edx, offset process_become_init
    call process_prepare
    pop eax
    jmp process_start

# Where process 1 begins, and begins again when init has ended.
process_become_init:
    call port_unmask_events
    call kernel_enter
    call process_current
    mov edi, [eax + PROCESS_STACK_BASE]
    add edi, PROCESS_FRAME
    mov esp, edi
    call files_open_console
    test eax, eax
    jnz .Linit_later
    mov esi, offset process_first_frame
    mov ecx, SIZEOF_USER_FRAME / 4
    rep movsd
    mov ebx, esp
    call process_init_arguments
    mov edx, eax
    mov eax, offset init_path
    call exec_program
    cmp eax, -ENOMEM
    je .Linit_later
    test eax, eax
    jnz .Linit_missing
    call kernel_leave
    jmp trap_return
.Linit_later:
    call process_current
    call files_close_all
    call process_wait_for_memory
    call kernel_leave
    jmp process_become_init
.Linit_missing:
    PRINT "guestos: panic: no "
    mov eax, offset init_path
    call print
    PRINT " in the RAM disk\n"
    mov eax, SHUTDOWN_crash
    jmp port_shutdown

# Wait a moment for others to give back memory, or files. Process 1 does that where others are
# refused or ended. kernel_lock is held.
process_wait_for_memory:
    push esi
    call process_current
    mov esi, eax
    call time_now
    add eax, INIT_PAUSE_NS
    adc edx, 0
    mov [esi + PROCESS_DEADLINE], eax
    mov [esi + PROCESS_DEADLINE + 4], edx
    mov eax, esi                    # whoever is woken by a child's end looks again, too
    xor edx, edx
    call process_sleep
    pop esi
    ret

# With the word "autohalt" on the command line init gets a script of that name, which ends in a
# halt. Out: eax = a page of arguments, or 0 for none.
process_init_arguments:
    push esi
    push edi
    mov eax, offset word_autohalt
    call command_line_has
    test eax, eax
    jz .Linit_arguments_done
    call page_alloc
    test eax, eax
    jz .Linit_arguments_done
    mov edi, eax
    mov esi, offset init_script
    mov ecx, offset init_script_end - init_script
    rep movsb
.Linit_arguments_done:
    pop edi
    pop esi
    ret

# -- fork ------------------------------------------------------------------------------------

# fork()
sys_fork:
    push esi
    push edi
    call process_new
    test eax, eax
    jz .Lfork_refuse
    mov edi, eax
    call process_current
    mov esi, eax
    call space_take
    test eax, eax
    jz .Lfork_undo
    mov [edi + PROCESS_SPACE], eax
    mov edx, [esi + PROCESS_SPACE]
    call space_copy
    test eax, eax
    jnz .Lfork_undo_space
    mov eax, edi
    mov edx, esi
    call process_inherit
    mov eax, edi
    mov edx, esi
    call fpu_copy
    mov eax, edi
    mov edx, esi
    call files_copy
    mov eax, edi
    call process_start
    mov eax, [edi + PROCESS_ID]
    jmp .Lfork_out
.Lfork_undo_space:
    mov eax, [edi + PROCESS_SPACE]
    call space_free
    call port_flush_entries
.Lfork_undo:
    mov eax, edi
    call process_release
.Lfork_refuse:
    mov eax, -ENOMEM
.Lfork_out:
    pop edi
    pop esi
    ret

# Copy the fields of a parent, and let the child return from the same system call with 0. In: eax =
# child, edx = parent, ebx = the parent's frame.
process_inherit:
    push ebx
    push esi
    push edi
    push ebp
    mov ebp, eax
    lea esi, [edx + PROCESS_HEAP]
    lea edi, [ebp + PROCESS_HEAP]
    mov ecx, PROCESS_INHERITED / 4
    rep movsd
    mov edx, offset process_first_return
    call process_prepare
    mov edi, [ebp + PROCESS_STACK]
    mov [edi], gs
    mov [edi + 4], fs
    add edi, SWITCH_WORDS * 4
    mov esi, ebx
    mov ecx, SIZEOF_USER_FRAME / 4
    rep movsd
    mov dword ptr [edi - SIZEOF_USER_FRAME + FRAME_EAX], 0
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Where a child begins.
process_first_return:
    jmp trap_return

# -- the end ---------------------------------------------------------------------------------

# exit(status)
sys_exit:
    movzx eax, byte ptr [ebx + FRAME_EBX]
    shl eax, WAIT_STATUS_SHIFT

# End the current process. In: eax = waitpid's word. kernel_lock is held, with nothing else. Never
# returns.
process_exit:
    mov edi, eax
    call process_current
    mov ebx, eax
    mov eax, ebx
    call fpu_forget
    mov eax, ebx
    call files_close_all
    mov eax, [ebx + PROCESS_SPACE]
    test eax, eax
    jz .Lexit_no_space
    call space_clear
    call port_flush_entries
.Lexit_no_space:
    cmp ebx, [process_init]
    je .Lexit_init
    mov [ebx + PROCESS_STATUS], edi
    call process_leave_children
    PORT_MASK_EVENTS
    mov eax, [ebx + PROCESS_PARENT]
    call process_wake               # it looks when it gets kernel_lock
    mov eax, offset schedule_lock
    call lock_take
    mov dword ptr [ebx + PROCESS_STATE], PROCESS_ZOMBIE
    call kernel_leave
    jmp schedule_switch             # and never comes back
.Lexit_init:
    mov dword ptr [ebx + PROCESS_KILLED], 0
    PRINT "guestos: init has ended, and begins again\n"
    call kernel_leave
    jmp process_become_init

# Give the children of a process to process 1. In: ebx = process.
process_leave_children:
    mov ecx, [process_init]
    mov eax, offset process_first_slot
.Lchildren_look:
    cmp dword ptr [eax + PROCESS_STATE], PROCESS_FREE
    je .Lchildren_next
    cmp [eax + PROCESS_PARENT], ebx
    jne .Lchildren_next
    mov [eax + PROCESS_PARENT], ecx
    cmp dword ptr [eax + PROCESS_STATE], PROCESS_ZOMBIE
    jne .Lchildren_next
    push eax
    push ecx
    mov eax, ecx
    call process_wake
    pop ecx
    pop eax
.Lchildren_next:
    add eax, SIZEOF_PROCESS
    cmp eax, [process_slots_end]
    jb .Lchildren_look
    ret

# waitpid(id or -1, address of the status word or 0, options)
sys_waitpid:
    push esi
    push edi
.Lwait_look:
    xor edi, edi                    # a child that has not ended
    call process_current
    mov ecx, eax
    mov edx, [ebx + FRAME_EBX]
    mov esi, offset process_first_slot
.Lwait_child:
    cmp [esi + PROCESS_PARENT], ecx
    jne .Lwait_next
    cmp dword ptr [esi + PROCESS_STATE], PROCESS_FREE
    je .Lwait_next
    cmp edx, -1
    je .Lwait_asked_for
    cmp edx, [esi + PROCESS_ID]
    jne .Lwait_next
.Lwait_asked_for:
    cmp dword ptr [esi + PROCESS_STATE], PROCESS_ZOMBIE
    je .Lwait_reap
    mov edi, esi
.Lwait_next:
    add esi, SIZEOF_PROCESS
    cmp esi, [process_slots_end]
    jb .Lwait_child
    mov eax, -ECHILD
    test edi, edi
    jz .Lwait_out
    xor eax, eax
    test dword ptr [ebx + FRAME_EDX], WNOHANG
    jnz .Lwait_out
    mov eax, ecx                    # the channel: the parent itself
    xor edx, edx
    call process_sleep
    test eax, eax
    jz .Lwait_look
    mov eax, -EINTR
    jmp .Lwait_out
.Lwait_reap:
    call process_settle
    mov eax, [ebx + FRAME_ECX]
    test eax, eax
    jz .Lwait_told
    lea edx, [esi + PROCESS_STATUS]
    mov ecx, 4
    call user_copy_out
    test eax, eax
    jnz .Lwait_out
.Lwait_told:
    mov edi, [esi + PROCESS_ID]
    mov eax, [esi + PROCESS_SPACE]
    test eax, eax
    jz .Lwait_spaceless
    call space_free
.Lwait_spaceless:
    mov eax, esi
    call process_release
    call port_flush_entries
    mov eax, edi
.Lwait_out:
    pop edi
    pop esi
    ret

# See that a process that has ended has left its stack: it holds schedule_lock until it has.
process_settle:
    mov eax, offset schedule_lock
    call lock_events
    mov edx, eax
    mov eax, offset schedule_lock
    jmp unlock_events

.section .rodata
.p2align 2
# The frame of a program that has not run yet; exec.s fills in where it begins.
process_first_frame:
    .long FLAT_USER_DS, FLAT_USER_DS
    .long 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .long 0, FLAT_USER_CS, EFLAGS_IF | EFLAGS_MBS, STACK_TOP, FLAT_USER_SS

init_path:
    .asciz "bin/sh"
.p2align 2
init_script:                        # how many words, and the words
    .long 2
    .asciz "sh"
    .asciz "autohalt"
init_script_end:

.section .bss
.p2align 4
process_table:
    .space PROCESSES_MAX * SIZEOF_PROCESS
process_slots_end:
    .space 4                        # no place from here on was ever used
process_init:
    .space 4                        # process 1
process_last_id:
    .space 4
processes_count:
    .space 4
