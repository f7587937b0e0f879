# SPDX-License-Identifier: GPL-2.0-or-later
#
# Several processors: bringing them up, taking them down.
#
# Each has, before it runs its first instruction: a structure in cpu_table, an idle process with a
# kernel stack, a list for changes to page tables, event ports for its timer and for interrupts from
# the others. Then it starts at smp_start, loads what a processor keeps in itself, and idles.
#
# Going down is the processor's own doing. Whoever wants it so marks it as LEAVING and interrupts
# it; it finds the mark when it chooses whom to run next, leaves its process in the queue, and
# stops. The processor that the kernel has booted on stays: it takes the console's events.

.section .text

# Make the processor that the kernel boots on known. Needs the kernel's own stack.
cpu_open:
    mov eax, offset cpu_table
    mov [kernel_stack + KSTACK_CPU], eax
    mov dword ptr [eax + CPU_INFO], offset shared_info + SHARED_INFO_VCPU_INFO
    mov dword ptr [eax + CPU_STATE], CPU_ONLINE
    mov dword ptr [eax + CPU_BATCH], offset cpu_first_batch
    mov dword ptr [cpus_present], 1
    mov dword ptr [cpus_online], 1
    ret

# Find the structure of a processor. In: eax = its number. Out: eax.
cpu_of:
    imul eax, eax, SIZEOF_CPU
    add eax, offset cpu_table
    ret

# Bring up all processors that the domain has.
smp_open:
    push ebx
    push esi
    mov ebx, offset cpu_table
    call smp_open_ipi
    mov esi, 1
.Lsmp_next:
    mov eax, esi
    call port_find_cpu
    test eax, eax
    js .Lsmp_done
    mov eax, esi
    call smp_prepare
    jc .Lsmp_done                   # no memory: those that are up will do
    inc dword ptr [cpus_present]
    mov eax, esi
    call cpu_of
    call smp_up
    inc esi
    cmp esi, CPUS_MAX
    jb .Lsmp_next
.Lsmp_done:
    pop esi
    pop ebx
    ret

# Let the others interrupt a processor. In: ebx = its structure.
smp_open_ipi:
    mov eax, [ebx + CPU_ID]
    call port_bind_ipi
    mov [ebx + CPU_IPI_PORT], eax
    mov edx, offset smp_interrupt
    jmp event_open

# The handler of an interrupt from another processor: it has come so that this one looks for work.
smp_interrupt:
    CPU ecx
    mov byte ptr [ecx + CPU_RESCHEDULE], 1
    ret

# Give a processor all that it needs to start. In: eax = number. Out: CF set if there is no memory.
smp_prepare:
    push ebx
    push esi
    push edi
    mov esi, eax
    call cpu_of
    mov ebx, eax
    mov [ebx + CPU_ID], esi
    imul ecx, esi, SIZEOF_VCPU_INFO
    add ecx, offset shared_info + SHARED_INFO_VCPU_INFO
    mov [ebx + CPU_INFO], ecx
    imul edi, esi, SIZEOF_PROCESS
    add edi, offset process_table   # its idle process
    mov [ebx + CPU_IDLE], edi
    mov [ebx + CPU_CURRENT], edi
    mov [edi + PROCESS_CPU], ebx
    mov eax, edi
    call kstack_open
    test eax, eax
    jnz .Lprepare_no_memory
    mov dword ptr [edi + PROCESS_STATE], PROCESS_RUNNING
    mov edi, [edi + PROCESS_STACK_BASE]
    mov [edi + KSTACK_CPU], ebx
    call page_alloc
    test eax, eax
    jz .Lprepare_no_memory
    mov [ebx + CPU_BATCH], eax
    call page_alloc                 # only to be copied by Xen
    test eax, eax
    jz .Lprepare_no_memory
    push eax
    mov edx, eax
    mov eax, esi
    lea ecx, [edi + KSTACK_TOP]
    call port_prepare_cpu
    pop eax
    call page_free
    mov dword ptr [ebx + CPU_STATE], CPU_OFFLINE
    call smp_open_ipi
    clc
    jmp .Lprepare_out
.Lprepare_no_memory:
    stc
.Lprepare_out:
    pop edi
    pop esi
    pop ebx
    ret

# Let a processor that is down run. In: eax = its structure.
smp_up:
    push ebx
    mov ebx, eax
.Lup_wait:
    mov eax, [ebx + CPU_ID]         # one that is leaving may have an instruction or two left
    call port_find_cpu
    test eax, eax
    jz .Lup_down
    call port_yield
    jmp .Lup_wait
.Lup_down:
    mov dword ptr [ebx + CPU_STATE], CPU_ONLINE
    lock inc dword ptr [cpus_online]
    mov eax, [ebx + CPU_ID]
    pop ebx
    jmp port_start_cpu

# The first instruction of another processor. In: esp = its idle process's stack. Events are masked.
smp_start:
    cld
    call traps_open_cpu
    call events_open_cpu
    call port_hide_fpu
    call time_open_cpu
    jmp schedule_idle

# Stop this processor, which is marked as leaving. Returns when it is up again. Events are masked.
smp_leave:
    push ebx
    CPU ebx
    mov eax, offset smp_lock
    call lock_take
    mov dword ptr [ebx + CPU_STATE], CPU_OFFLINE
    mov dword ptr [smp_lock], 0
    lock dec dword ptr [cpus_online]
    mov eax, ebx
    call process_wake               # who waits for it, see sys_vcpu
    mov eax, [cpu_table + CPU_IPI_PORT]
    call port_send_event            # what is left in the queue, or sleeps, is for the first one now
    call port_stop_cpu
    pop ebx
    mov eax, TICK_NS
    jmp port_set_tick

# vcpu(what, number): VCPU_COUNT: how many there can be; VCPU_UP, VCPU_DOWN: 0 when it is so;
# VCPU_STATE: 1 for up, 0 for down
sys_vcpu:
    push esi
    mov edx, [ebx + FRAME_EBX]
    cmp edx, VCPU_COUNT
    je .Lvcpu_count
    mov eax, [ebx + FRAME_ECX]
    cmp eax, [cpus_present]
    jae .Lvcpu_invalid
    call cpu_of
    mov esi, eax
    cmp edx, VCPU_UP
    je .Lvcpu_up
    cmp edx, VCPU_DOWN
    je .Lvcpu_down
    cmp edx, VCPU_STATE
    jne .Lvcpu_invalid
    xor eax, eax
    cmp dword ptr [esi + CPU_STATE], CPU_ONLINE
    sete al
    jmp .Lvcpu_out
.Lvcpu_count:
    mov eax, [cpus_present]
    jmp .Lvcpu_out
.Lvcpu_up:
    mov eax, -EBUSY
    cmp dword ptr [esi + CPU_STATE], CPU_LEAVING
    je .Lvcpu_out
    cmp dword ptr [esi + CPU_STATE], CPU_ONLINE
    je .Lvcpu_so
    mov eax, esi
    call smp_up
    jmp .Lvcpu_so
.Lvcpu_down:
    cmp esi, offset cpu_table
    je .Lvcpu_invalid
    cmp dword ptr [esi + CPU_STATE], CPU_ONLINE
    jne .Lvcpu_leaving
    mov dword ptr [esi + CPU_STATE], CPU_LEAVING
    mov eax, [esi + CPU_IPI_PORT]
    call port_send_event
.Lvcpu_leaving:
    # The lock: it must not leave, and wake nobody, between this look and the sleep.
    mov eax, offset smp_lock
    call lock_events
    mov edx, eax
    cmp dword ptr [esi + CPU_STATE], CPU_LEAVING
    jne .Lvcpu_left
    mov eax, esi
    mov edx, offset smp_lock
    call process_sleep              # gives smp_lock back
    test eax, eax
    jz .Lvcpu_leaving
    mov eax, -EINTR
    jmp .Lvcpu_out
.Lvcpu_left:
    mov eax, offset smp_lock
    call unlock_events
.Lvcpu_so:
    xor eax, eax
    jmp .Lvcpu_out
.Lvcpu_invalid:
    mov eax, -EINVAL
.Lvcpu_out:
    pop esi
    ret

.section .bss
.p2align 2
smp_lock:
    .space 4                        # held to end the state LEAVING, or to wait for its end
