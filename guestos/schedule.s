# SPDX-License-Identifier: GPL-2.0-or-later
#
# Taking turns: who gets a processor, and how it is passed on.
#
# One queue of processes that could run, first come, first served. A turn ends when the process
# sleeps, ends or yields, or with the tick. Only ring 3 is preempted: a process in the kernel runs
# until it sleeps or returns. A process that does not run has all its registers on its kernel stack:
#
#   PROCESS_STACK -> gs fs ebp edi esi ebx | return address | ... | frame of traps.s | KSTACK_TOP
#                    ------ schedule_switch ------  of its caller
#
# schedule_lock protects the queue and the states of all processes; it is taken with events masked.
# It is held across a switch: who leaves takes it, who comes gives it back. So nobody can see a
# process as waiting, or as ended, while it still stands on its stack.
#
# A processor without work runs its idle process, which waits for an event. Whoever makes a process
# ready sends an interrupt to a processor that waits.

.section .text

# Let another process run, if one is waiting. Events may be masked.
schedule_yield:
    mov eax, offset schedule_lock
    call lock_events
    push eax
    CPU ecx
    mov eax, [ecx + CPU_CURRENT]
    call schedule_enqueue
    call schedule_switch
    pop eax
    jmp port_restore_events

# Put a process at the end of the queue. In: eax. schedule_lock is held. Keeps eax.
schedule_enqueue:
    mov dword ptr [eax + PROCESS_STATE], PROCESS_READY
    mov dword ptr [eax + PROCESS_NEXT], 0
    mov ecx, [schedule_last]
    mov [schedule_last], eax
    test ecx, ecx
    jz .Lenqueue_first
    mov [ecx + PROCESS_NEXT], eax
    ret
.Lenqueue_first:
    mov [schedule_first], eax
    ret

# Let a process run again, and wake a processor for it. In: eax. schedule_lock is held.
schedule_ready:
    call schedule_enqueue
    cmp dword ptr [cpus_online], 1
    je .Lready_done
    mov ecx, offset cpu_table
.Lready_look:
    cmp byte ptr [ecx + CPU_SLEEPS], 0
    jne .Lready_wake
    add ecx, SIZEOF_CPU
    cmp ecx, offset cpu_table_end
    jb .Lready_look
.Lready_done:
    ret
.Lready_wake:
    mov byte ptr [ecx + CPU_SLEEPS], 0      # one interrupt is enough
    mov eax, [ecx + CPU_IPI_PORT]
    jmp port_send_event

# Go on with the first process of the queue, or with the idle one. schedule_lock is held, events are
# masked, and whoever calls has said what the current process does: waits, sleeps, has ended.
# Returns, with the lock given back, when the current process has its next turn; perhaps on another
# processor.
schedule_switch:
    push ebx
    push esi
    push edi
    push ebp
    push fs
    push gs
    CPU ebx
    mov byte ptr [ebx + CPU_RESCHEDULE], 0
    mov esi, [ebx + CPU_IDLE]
    cmp dword ptr [ebx + CPU_STATE], CPU_LEAVING
    je .Lswitch_chosen
    mov eax, [schedule_first]
    test eax, eax
    jz .Lswitch_chosen
    mov esi, eax
    mov eax, [esi + PROCESS_NEXT]
    mov [schedule_first], eax
    test eax, eax
    jnz .Lswitch_chosen
    mov [schedule_last], eax
.Lswitch_chosen:
    mov eax, [ebx + CPU_CURRENT]
    cmp eax, esi
    je .Lswitch_same
    mov [eax + PROCESS_STACK], esp
    call fpu_save
    mov [ebx + CPU_CURRENT], esi
    mov eax, [esi + PROCESS_STACK_BASE]
    mov [eax + KSTACK_CPU], ebx
    mov esp, [esi + PROCESS_STACK]
    call schedule_load
.Lswitch_same:
    mov dword ptr [esi + PROCESS_STATE], PROCESS_RUNNING
    mov [esi + PROCESS_CPU], ebx
    mov dword ptr [schedule_lock], 0
    pop gs
    pop fs
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Load the address space and the kernel stack of a process, if they are not loaded. In: esi, ebx =
# the processor.
#
# Processes of the kernel, idle ones among them, need no space of their own: whatever is loaded has
# the kernel's half. So they leave it, and who sleeps until an answer comes, with nobody else to
# run, finds all as it was: four hypercalls less. But a space must not be loaded when it is taken
# apart. It is not where its process has ended here; and it cannot be elsewhere, for with several
# processors the kernel's own is loaded instead.
schedule_load:
    mov ecx, [ebx + CPU_LOADED]
    mov eax, [esi + PROCESS_SPACE]
    test eax, eax
    jz .Lload_kernel
    cmp ecx, esi
    je .Lload_done
    mov [ebx + CPU_LOADED], esi
    mov edx, [esi + PROCESS_STACK_BASE]
    add edx, KSTACK_TOP
    mov eax, [eax + SPACE_L3]
    jmp port_load_space
.Lload_kernel:
    test ecx, ecx
    jz .Lload_done
    cmp dword ptr [ecx + PROCESS_STATE], PROCESS_ZOMBIE
    je .Lload_kernel_now
    cmp dword ptr [cpus_online], 1
    je .Lload_done
.Lload_kernel_now:
    mov dword ptr [ebx + CPU_LOADED], 0
    mov edx, [esi + PROCESS_STACK_BASE]
    add edx, KSTACK_TOP
    mov eax, [kernel_tables]
    jmp port_load_space
.Lload_done:
    ret

# What an idle process does. Never returns.
schedule_idle:
    PORT_MASK_EVENTS
    mov eax, offset schedule_lock
    call lock_take
    CPU ebx
    cmp dword ptr [ebx + CPU_STATE], CPU_LEAVING
    je schedule_leave
    cmp dword ptr [schedule_first], 0
    je .Lidle_wait
    call schedule_switch
    jmp schedule_idle
.Lidle_wait:
    cmp byte ptr [network_is_behind], 0
    jne schedule_idle_network
    # The event of whoever makes a process ready from here on ends the wait: it stays pending until
    # the wait begins, for events are masked.
    mov byte ptr [ebx + CPU_SLEEPS], 1
    call time_set_alarm
    mov dword ptr [schedule_lock], 0
    call console_tell               # of a line that has not ended
    call port_wait_for_event
    mov byte ptr [ebx + CPU_SLEEPS], 0
    jmp schedule_idle
# Packets were left for when there is nothing else to do.
schedule_idle_network:
    mov dword ptr [schedule_lock], 0
    call netfront_catch_up
    jmp schedule_idle
# The processor is to stop: see smp.s.
schedule_leave:
    mov dword ptr [schedule_lock], 0
    call smp_leave
    jmp schedule_idle

# -- sleeping --------------------------------------------------------------------------------

# Sleep as below, but for what must not be left half done: a signal ends one such sleep at most, and
# is then waited for by nobody: whoever calls looks whether what it waits for is so, and comes
# again.
process_sleep_deaf:
    xor ecx, ecx
    jmp .Lsleep_begin

# Sleep until process_wake is called for a channel, or PROCESS_DEADLINE comes, or somebody kills the
# process. In: eax = channel, any address; edx = 0, or a lock that is held with events masked: it is
# given back when the process is marked asleep, so that whoever takes it then finds it so. Out:
# eax = 0, or the signal that the process was killed by. kernel_lock is given back meanwhile. Events
# are let in afterwards.
process_sleep:
    or ecx, -1                      # every signal counts
.Lsleep_begin:
    push ebx
    push esi
    push edi
    push ebp
    mov ebx, eax
    mov ebp, ecx
    mov edi, edx
    PORT_MASK_EVENTS
    mov eax, offset schedule_lock
    call lock_take
    test edi, edi
    jz .Lsleep_unlocked
    mov dword ptr [edi], 0
.Lsleep_unlocked:
    call process_current
    mov esi, eax
    test [esi + PROCESS_KILLED], ebp
    jnz process_sleep_killed
    mov [esi + PROCESS_CHANNEL], ebx
    mov dword ptr [esi + PROCESS_STATE], PROCESS_SLEEPING
    call time_note_deadline
    call kernel_leave
    call schedule_switch
    call port_unmask_events
    call kernel_enter
.Lsleep_done:
    mov dword ptr [esi + PROCESS_DEADLINE], -1
    mov dword ptr [esi + PROCESS_DEADLINE + 4], -1
    mov eax, [esi + PROCESS_KILLED]
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
# It was killed before it could sleep.
process_sleep_killed:
    mov dword ptr [schedule_lock], 0
    call port_unmask_events
    jmp .Lsleep_done

# Wake all that sleep on a channel. In: eax. Event handlers may call it.
process_wake:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov eax, offset schedule_lock
    call lock_events
    mov edi, eax
    mov ebx, offset process_first_slot
.Lwake_look:
    cmp dword ptr [ebx + PROCESS_STATE], PROCESS_SLEEPING
    jne .Lwake_next
    cmp [ebx + PROCESS_CHANNEL], esi
    jne .Lwake_next
    mov eax, ebx
    call schedule_ready
.Lwake_next:
    add ebx, SIZEOF_PROCESS
    cmp ebx, [process_slots_end]
    jb .Lwake_look
    mov eax, offset schedule_lock
    mov edx, edi
    pop edi
    pop esi
    pop ebx
    jmp unlock_events

.section .bss
.p2align 2
schedule_lock:
    .space 4
schedule_first:
    .space 4                        # the queue: its first process, or 0,
schedule_last:
    .space 4                        # and its last one
