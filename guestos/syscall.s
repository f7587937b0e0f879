# SPDX-License-Identifier: GPL-2.0-or-later
#
# System calls: from int 0x80 to the routine that serves it, and back to ring 3.
#
# A program's int 0x80 enters here from ring 3 without the hypervisor looking at the call. The
# contract with programs, numbers and all, is syscalls.inc.
#
# Each routine: in: ebx = frame of traps.s, with the arguments in FRAME_EBX, FRAME_ECX and so on;
# out: eax = result. A call holds kernel_lock unless its entry says that it needs none.

.equ SYSCALLS_LINUX, SYS_clock_gettime + 1      # numbers of Linux come first in the table,
.equ SYSCALLS_OWN, 512                          # and ours behind them
.equ SYSCALLS_OWN_COUNT, 6
.equ SYSCALLS, SYSCALLS_LINUX + SYSCALLS_OWN_COUNT
.equ UNLOCKED, 0x10000                          # in syscall_list, beside the number

.section .text

# Spread the list over a table that the number leads into.
syscall_open:
    push esi
    push edi
    mov edi, offset syscall_table
    mov ecx, SYSCALLS
.Lsyscall_none:
    mov dword ptr [edi], offset sys_unknown
    add edi, 8
    dec ecx
    jnz .Lsyscall_none
    mov esi, offset syscall_list
.Lsyscall_spread:
    mov eax, [esi]
    mov ecx, eax
    and ecx, UNLOCKED
    and eax, ~UNLOCKED
    call syscall_index
    mov edx, [esi + 4]
    mov [syscall_table + eax * 8], edx
    mov [syscall_table + eax * 8 + 4], ecx
    add esi, 8
    cmp esi, offset syscall_list_end
    jb .Lsyscall_spread
    pop edi
    pop esi
    ret

# Where does a number's entry lie? In: eax = number. Out: eax = index into syscall_table; SYSCALLS
# or more for a number that nobody has. Changes no other register.
syscall_index:
    cmp eax, SYSCALLS_LINUX
    jb .Lindex_done
    sub eax, SYSCALLS_OWN
    jb .Lindex_none
    cmp eax, SYSCALLS_OWN_COUNT
    jae .Lindex_none
    add eax, SYSCALLS_LINUX
.Lindex_done:
    ret
.Lindex_none:
    mov eax, SYSCALLS
    ret

syscall_entry:
    push 0                          # the frame of traps.s
    push SYSCALL_VECTOR
    TRAP_ENTER
    mov ebx, esp
    mov eax, [ebx + FRAME_EAX]
    call syscall_index
    cmp eax, SYSCALLS
    jae .Lsyscall_unknown
    lea esi, [syscall_table + eax * 8]
    cmp dword ptr [esi + 4], 0
    jne .Lsyscall_unlocked
    call kernel_enter
    call dword ptr [esi]
    mov [ebx + FRAME_EAX], eax
    call kernel_leave
    jmp trap_return
.Lsyscall_unlocked:
    call dword ptr [esi]
    mov [ebx + FRAME_EAX], eax
    jmp trap_return
.Lsyscall_unknown:
    mov dword ptr [ebx + FRAME_EAX], -ENOSYS
    jmp trap_return

sys_unknown:
    mov eax, -ENOSYS
    ret

# getpid()
sys_getpid:
    call process_current
    mov eax, [eax + PROCESS_ID]
    ret

# getppid(): 0 for process 1
sys_getppid:
    call process_current
    mov eax, [eax + PROCESS_PARENT]
    mov eax, [eax + PROCESS_ID]
    ret

# sched_yield()
sys_sched_yield:
    call schedule_yield
    xor eax, eax
    ret

# brk(new end of the heap or 0) -> the end of the heap, unchanged where the wish is refused
sys_brk:
    push esi
    push edi
    call process_current
    mov esi, eax
    mov edi, [ebx + FRAME_EBX]
    mov ecx, [esi + PROCESS_BREAK]
    cmp edi, [esi + PROCESS_BREAK_MIN]
    jb .Lbrk_out
    cmp edi, USER_LIMIT
    jae .Lbrk_out
    cmp edi, ecx
    jae .Lbrk_grow
    mov [esi + PROCESS_BREAK], edi
    lea edx, [edi + PAGE_SIZE - 1]
    and edx, PAGE_MASK
    mov eax, [esi + PROCESS_SPACE]
    call space_clear_range
    jmp .Lbrk_out
.Lbrk_grow:
    # More than there is would only be found out page by page, and then end the program.
    mov edx, edi
    sub edx, ecx
    shr edx, PAGE_SHIFT
    push edx
    call page_count_free
    pop edx
    cmp edx, eax
    jae .Lbrk_out
    mov [esi + PROCESS_BREAK], edi
.Lbrk_out:
    mov eax, [esi + PROCESS_BREAK]
    pop edi
    pop esi
    ret

# reboot(reason): one of REBOOT_, which are Xen's reasons
sys_reboot:
    mov eax, [ebx + FRAME_EBX]
    cmp eax, REBOOT_POWEROFF
    je .Lreboot_off
    cmp eax, REBOOT_RESTART
    je .Lreboot_restart
    cmp eax, REBOOT_CRASH
    je .Lreboot_crash
    mov eax, -EINVAL
    ret
.Lreboot_off:
    PRINT "guestos: powering off\n"
    jmp port_shutdown
.Lreboot_restart:
    PRINT "guestos: rebooting\n"
    jmp port_shutdown
.Lreboot_crash:
    PRINT "guestos: crashing, as asked\n"
    jmp port_shutdown

.section .rodata
.p2align 3
syscall_list:
    .long SYS_exit, sys_exit
    .long SYS_fork, sys_fork
    .long SYS_waitpid, sys_waitpid
    .long SYS_time, sys_time
    .long SYS_getpid | UNLOCKED, sys_getpid
    .long SYS_kill, sys_kill
    .long SYS_brk, sys_brk
    .long SYS_getppid, sys_getppid
    .long SYS_reboot, sys_reboot
    .long SYS_sched_yield | UNLOCKED, sys_sched_yield
    .long SYS_nanosleep, sys_nanosleep
    .long SYS_clock_gettime, sys_clock_gettime
    .long SYS_read, sys_read
    .long SYS_write, sys_write
    .long SYS_open, sys_open
    .long SYS_close, sys_close
    .long SYS_execve, sys_execve
    .long SYS_dup, sys_dup
    .long SYS_pipe, sys_pipe
    .long SYS_ioctl, sys_ioctl
    .long SYS_setpgid, sys_setpgid
    .long SYS_socketcall, sys_socketcall
    .long SYS_dup2, sys_dup2
    .long SYS_directory, sys_directory
    .long SYS_lseek, sys_lseek
    .long SYS_llseek, sys_llseek
    .long SYS_fsync, sys_fsync
    .long SYS_sync, sys_sync
    .long SYS_processes, sys_processes
    .long SYS_memory, sys_memory
    .long SYS_vcpu, sys_vcpu
    .long SYS_balloon, sys_balloon
    .long SYS_network, sys_network
syscall_list_end:

.section .bss
.p2align 3
syscall_table:
    .space SYSCALLS * 8             # routine, UNLOCKED or 0
