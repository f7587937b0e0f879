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

.equ vcpu_time, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_TIME

.section .text

# Begin to tick. Needs events.
time_open:
    call time_now
    mov [time_boot], eax
    mov [time_boot + 4], edx
    mov eax, VIRQ_TIMER
    call port_bind_virq
    mov edx, offset time_tick
    call event_open
    mov eax, TICK_NS
    jmp port_set_tick

# The handler of VIRQ_TIMER.
time_tick:
    inc dword ptr [time_ticks]
    mov byte ptr [process_turn_is_over], 1
    ret

# Read the clock. Out: edx:eax = system time in ns. It never goes back.
time_now:
    push ebx
    push esi
    push edi
.Lnow_again:
    mov esi, [vcpu_time + VCPU_TIME_INFO_VERSION]
    test esi, 1
    jnz .Lnow_again                 # Xen is writing
    rdtsc
    sub eax, [vcpu_time + VCPU_TIME_INFO_TSC_TIMESTAMP]
    sbb edx, [vcpu_time + VCPU_TIME_INFO_TSC_TIMESTAMP + 4]
    mov cl, [vcpu_time + VCPU_TIME_INFO_TSC_SHIFT]
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
    mov edi, [vcpu_time + VCPU_TIME_INFO_TSC_TO_SYSTEM_MUL]
    mul edi
    mov eax, ebx
    mov ebx, edx
    mul edi
    add eax, ebx
    adc edx, 0
    add eax, [vcpu_time + VCPU_TIME_INFO_SYSTEM_TIME]
    adc edx, [vcpu_time + VCPU_TIME_INFO_SYSTEM_TIME + 4]
    cmp esi, [vcpu_time + VCPU_TIME_INFO_VERSION]
    jne .Lnow_again                 # what was read may be half old, half new
    pop edi
    pop esi
    pop ebx
    ret

# Print how long this kernel has been up.
time_print:
    PRINT "up "
    call time_now
    sub eax, [time_boot]
    sbb edx, [time_boot + 4]
    mov ecx, NS_PER_S
    div ecx                         # seconds have 32 bits: 136 years
    push edx
    call print_decimal
    PRINT "."
    pop eax
    xor edx, edx
    mov ecx, NS_PER_MS
    div ecx
    call print_three_digits
    PRINT " s, "
    mov eax, [time_ticks]
    call print_decimal
    PRINT " ticks\n"
    ret

# Print a number below 1000 with its zeros. In: eax.
print_three_digits:
    push ebx
    mov ecx, 100
    xor edx, edx
    div ecx
    mov ebx, edx
    call print_decimal
    mov eax, ebx
    mov ecx, 10
    xor edx, edx
    div ecx
    mov ebx, edx
    call print_decimal
    mov eax, ebx
    pop ebx
    jmp print_decimal

# Sleep. In: eax = seconds. Events are unmasked afterwards.
time_sleep:
    push ebx
    push esi
    mov ecx, NS_PER_S
    mul ecx
    mov ebx, eax
    mov esi, edx
    call time_now
    add ebx, eax                    # esi:ebx = when to wake
    adc esi, edx
.Lsleep_look:
    # Masked while looking, for the reason that console_read gives.
    PORT_MASK_EVENTS
    call time_now
    sub eax, ebx
    sbb edx, esi
    jae .Lsleep_done
    mov eax, ebx
    mov edx, esi
    call port_set_alarm
    call port_wait_for_event        # perhaps another one: then the alarm is set again
    jmp .Lsleep_look
.Lsleep_done:
    call port_unmask_events
    pop esi
    pop ebx
    ret

.section .bss
.p2align 3
time_boot:
    .space 8                        # system time at boot
time_ticks:
    .space 4
