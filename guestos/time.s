# SPDX-License-Identifier: GPL-2.0-or-later
#
# Time: a tick, the time since boot, and sleeping.
#
# Xen gives each virtual processor a clock and timers. The clock is the processor's own counter;
# what a count means stands in shared memory (public/xen.h, vcpu_time_info), where Xen renews it
# each time it lets us run. System time in ns is
#
#   system_time + ((rdtsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul / 2^32
#
# Both timers, the periodic and the single one, raise the same virtual interrupt, VIRQ_TIMER:
# whoever waits for a moment looks at the clock. The periodic one does not wake a kernel that
# sleeps, which has nobody to give turns to.

.equ NS_PER_S, 1000000000
.equ NS_PER_MS, 1000000
.equ TICK_NS, 10000000
.equ LONGEST_SLEEP, 1000000         # seconds

.section .text

# Begin to tick, on the processor that the kernel boots on. Needs events.
time_open:
    mov dword ptr [time_earliest], -1
    mov dword ptr [time_earliest + 4], -1
    call time_now
    mov [time_boot], eax
    mov [time_boot + 4], edx

# Begin to tick on this processor.
time_open_cpu:
    push ebx
    CPU ebx
    mov eax, VIRQ_TIMER
    mov edx, [ebx + CPU_ID]
    call port_bind_virq
    mov [ebx + CPU_TIMER_PORT], eax
    mov edx, offset time_tick
    call event_open
    pop ebx
    mov eax, TICK_NS
    jmp port_set_tick

# The handler of VIRQ_TIMER.
time_tick:
    lock inc dword ptr [time_ticks]
    CPU ecx
    mov byte ptr [ecx + CPU_RESCHEDULE], 1
    mov ecx, [ecx + CPU_CURRENT]
    inc dword ptr [ecx + PROCESS_TICKS]
    call netfront_catch_up
    jmp time_wake_due

# Read the clock. Out: edx:eax = system time in ns. It never goes back.
time_now:
    push ebx
    push esi
    push edi
    push ebp
    VCPU_INFO ebp
    add ebp, VCPU_INFO_TIME
.Lnow_again:
    mov esi, [ebp + VCPU_TIME_INFO_VERSION]
    test esi, 1
    jnz .Lnow_again                 # Xen is writing
    rdtsc
    sub eax, [ebp + VCPU_TIME_INFO_TSC_TIMESTAMP]
    sbb edx, [ebp + VCPU_TIME_INFO_TSC_TIMESTAMP + 4]
    mov cl, [ebp + VCPU_TIME_INFO_TSC_SHIFT]
    test cl, cl
    js .Lnow_right
    shld edx, eax, cl
    shl eax, cl
    jmp .Lnow_scale
.Lnow_right:
    neg cl
    shrd eax, edx, cl
    shr edx, cl
.Lnow_scale:
    # edx:eax * mul / 2^32, from two products of 32 bits
    mov ebx, edx
    mov edi, [ebp + VCPU_TIME_INFO_TSC_TO_SYSTEM_MUL]
    mul edi
    mov eax, ebx
    mov ebx, edx
    mul edi
    add eax, ebx
    adc edx, 0
    add eax, [ebp + VCPU_TIME_INFO_SYSTEM_TIME]
    adc edx, [ebp + VCPU_TIME_INFO_SYSTEM_TIME + 4]
    cmp esi, [ebp + VCPU_TIME_INFO_VERSION]
    jne .Lnow_again                 # what was read may be half old, half new
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Read the clock as Xen left it when it let this processor run: old by some milliseconds, but
# without a look at the processor's counter. Out: edx:eax = system time in ns.
time_coarse:
    push ebx
    push esi
    VCPU_INFO ebx
    add ebx, VCPU_INFO_TIME
.Lcoarse_again:
    mov esi, [ebx + VCPU_TIME_INFO_VERSION]
    test esi, 1
    jnz .Lcoarse_again              # Xen is writing
    mov eax, [ebx + VCPU_TIME_INFO_SYSTEM_TIME]
    mov edx, [ebx + VCPU_TIME_INFO_SYSTEM_TIME + 4]
    cmp esi, [ebx + VCPU_TIME_INFO_VERSION]
    jne .Lcoarse_again
    pop esi
    pop ebx
    ret

# -- sleeping --------------------------------------------------------------------------------
#
# time_earliest is the first moment at which a sleep ends. The tick looks at it; a processor that
# has nothing to do does not tick, and sets its alarm instead (schedule.s).

# Note when the sleep of a process ends. In: esi = process. schedule_lock is held.
time_note_deadline:
    mov eax, [esi + PROCESS_DEADLINE]
    mov edx, [esi + PROCESS_DEADLINE + 4]

# Is a moment the earliest? In: edx:eax. schedule_lock is held.
time_note:
    cmp edx, [time_earliest + 4]
    ja .Lnote_later
    jb .Lnote_earlier
    cmp eax, [time_earliest]
    jae .Lnote_later
.Lnote_earlier:
    mov [time_earliest], eax
    mov [time_earliest + 4], edx
.Lnote_later:
    ret

# Set this processor's alarm to the end of the first sleep. schedule_lock is held.
time_set_alarm:
    mov eax, [time_earliest]
    mov edx, [time_earliest + 4]
    cmp edx, -1
    jne port_set_alarm
    ret                             # nobody sleeps for a time

# Wake whose sleep has ended. Events are masked.
time_wake_due:
    push ebx
    push esi
    push edi
    call time_now
    mov esi, eax
    mov edi, edx
    mov eax, offset schedule_lock
    call lock_take
    cmp esi, [time_earliest]
    mov eax, edi
    sbb eax, [time_earliest + 4]
    jb .Ldue_done
    mov dword ptr [time_earliest], -1
    mov dword ptr [time_earliest + 4], -1
    mov ebx, offset process_first_slot
.Ldue_look:
    cmp dword ptr [ebx + PROCESS_STATE], PROCESS_SLEEPING
    jne .Ldue_next
    mov eax, [ebx + PROCESS_DEADLINE]
    mov edx, [ebx + PROCESS_DEADLINE + 4]
    cmp esi, eax
    mov ecx, edi
    sbb ecx, edx
    jb .Ldue_later
    mov eax, ebx
    call schedule_ready
    jmp .Ldue_next
.Ldue_later:
    call time_note
.Ldue_next:
    add ebx, SIZEOF_PROCESS
    cmp ebx, [process_slots_end]
    jb .Ldue_look
.Ldue_done:
    mov dword ptr [schedule_lock], 0
    pop edi
    pop esi
    pop ebx
    ret

# -- system calls ----------------------------------------------------------------------------

# nanosleep(address of two words: seconds and nanoseconds)
sys_nanosleep:
    push esi
    sub esp, 8
    mov eax, esp
    mov edx, [ebx + FRAME_EBX]
    mov ecx, 8
    call user_copy_in
    test eax, eax
    jnz .Lnanosleep_out
    mov eax, -EINVAL
    cmp dword ptr [esp], LONGEST_SLEEP
    ja .Lnanosleep_out
    cmp dword ptr [esp + 4], NS_PER_S
    jae .Lnanosleep_out
    mov eax, NS_PER_S
    mul dword ptr [esp]
    add [esp + 4], eax
    adc edx, 0
    mov [esp], edx
    call process_current
    mov esi, eax
    call time_now
    add eax, [esp + 4]
    adc edx, [esp]
    mov [esi + PROCESS_DEADLINE], eax
    mov [esi + PROCESS_DEADLINE + 4], edx
    mov eax, esp                    # a channel that nobody else knows
    xor edx, edx
    call process_sleep
    test eax, eax
    jz .Lnanosleep_out
    mov eax, -EINTR
.Lnanosleep_out:
    add esp, 8
    pop esi
    ret

# clock_gettime(CLOCK_MONOTONIC, address of two words): the time since boot
sys_clock_gettime:
    mov eax, -EINVAL
    cmp dword ptr [ebx + FRAME_EBX], CLOCK_MONOTONIC
    jne .Lgettime_out
    call time_now
    sub eax, [time_boot]
    sbb edx, [time_boot + 4]
    mov ecx, NS_PER_S
    div ecx                         # seconds have 32 bits: 136 years
    push edx
    push eax
    mov eax, [ebx + FRAME_ECX]
    mov edx, esp
    mov ecx, 8
    call user_copy_out
    add esp, 8
.Lgettime_out:
    ret

# time(): seconds since 1970, from the time of boot that Xen tells
sys_time:
    push esi
    push edi
.Ltime_again:
    mov esi, [shared_info + SHARED_INFO_WC_VERSION]
    test esi, 1
    jnz .Ltime_again                # Xen is writing
    call time_now
    add eax, [shared_info + SHARED_INFO_WC_NSEC]
    adc edx, 0
    mov ecx, NS_PER_S
    div ecx
    add eax, [shared_info + SHARED_INFO_WC_SEC]
    cmp esi, [shared_info + SHARED_INFO_WC_VERSION]
    jne .Ltime_again
    pop edi
    pop esi
    ret

.section .bss
.p2align 3
time_boot:
    .space 8                        # system time at boot
time_earliest:
    .space 8                        # the first end of a sleep, -1 for none
time_ticks:
    .space 4
