# SPDX-License-Identifier: GPL-2.0-or-later
#
# Locks: words that are 0 when free and 1 when held.
#
# A virtual processor may lose its real one at any instruction, also while it holds a lock. Whoever
# finds a lock held therefore spins only for a moment, which is enough if the holder runs, and then
# yields: the holder may be waiting for the very processor that would be wasted by spinning.
#
# Two kinds. A lock that event handlers take, too, is only ever held with events masked: otherwise a
# handler could interrupt the holder and wait for it for ever. lock_events is for those.
#
# The order in which locks are taken, when one is held already:
#
#   kernel_lock     process context: system calls and page faults; never in an event handler
#   tty_lock        keys typed, mode, foreground group (events masked, as all of those below)
#   network_lock    interfaces, their rings and buffers, queues of sockets, ARP
#   smp_lock        a processor has left
#   EVENTCOUNT_LOCK of an event count
#   grants_lock     the list of free grants
#   schedule_lock   run queue and states of processes
#   console_lock    the console's ring
#
# The kernel is not preempted: a process that has entered it keeps its processor until it sleeps or
# returns, and an event handler always goes back to where it interrupted.

.equ LOCK_SPINS, 64

.section .text

# Take the lock of process context.
kernel_enter:
    mov eax, offset kernel_lock

# Take a lock. In: eax = address. Changes no register but ecx.
lock_take:
    lock bts dword ptr [eax], 0
    jc .Llock_held
    ret
.Llock_held:
    mov ecx, LOCK_SPINS
.Llock_spin:
    cmp dword ptr [eax], 0
    je lock_take
    dec ecx
    jnz .Llock_spin
    push eax
    push edx
    call port_yield
    pop edx
    pop eax
    jmp lock_take

# Give the lock of process context back. Changes no register. Changes to page tables that are still
# collected are made first: whoever enters the kernel next must find the tables as they should be.
kernel_leave:
    push eax
    push ecx
    CPU eax
    mov ecx, [eax + CPU_BATCH_COUNT]
    or ecx, [eax + CPU_BATCH_FLUSH]
    jnz .Lleave_flush
.Lleave_flushed:
    mov dword ptr [kernel_lock], 0
    pop ecx
    pop eax
    ret
.Lleave_flush:
    push edx
    call port_flush_entries
    pop edx
    jmp .Lleave_flushed

# Mask events and take a lock. In: eax = address. Out: eax = what unlock_events takes.
lock_events:
    push ebx
    mov ebx, eax
    call port_save_and_mask
    xchg eax, ebx
    call lock_take
    mov eax, ebx
    pop ebx
    ret

# Give a lock back, and let events in if they were let in before. In: eax = address, edx = what
# lock_events gave.
unlock_events:
    mov dword ptr [eax], 0          # x86 shows stores in order: no barrier is needed
    mov eax, edx
    jmp port_restore_events

.section .bss
.p2align 2
kernel_lock:
    .space 4
