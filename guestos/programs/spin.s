# SPDX-License-Identifier: GPL-2.0-or-later
#
# spin: use the processor for so many seconds, or until killed, and never call the kernel.
#
# It counts in two registers and in memory. The three agree as long as whoever takes the processor
# away brings back all that it has taken.

.include "lib/program.inc"

USAGE "usage: spin [SECONDS]\n"

.section .text
.equ SPIN_ROUNDS, 1000000           # between two looks at the clock

main:
    mov ebp, -1
    mov eax, [edx + 4]
    test eax, eax
    jz .Lspin_begin
    call want_number
    mov ebp, eax
    call spin_clock
    add ebp, eax                    # when to end
.Lspin_begin:
    xor ebx, ebx
    xor esi, esi
.Lspin_round:
    mov edi, SPIN_ROUNDS
.Lspin_count:
    inc ebx
    dec esi
    inc dword ptr [spin_counter]
    lea eax, [ebx + esi]
    test eax, eax
    jnz .Lspin_wrong
    cmp ebx, [spin_counter]
    jne .Lspin_wrong
    dec edi
    jnz .Lspin_count
    cmp ebp, -1
    je .Lspin_round
    push ebx
    call spin_clock
    pop ebx
    cmp eax, ebp
    jb .Lspin_round
    PRINT "counted to "
    mov eax, ebx
    call put_decimal
    PRINT "\n"
    xor eax, eax
    ret
.Lspin_wrong:
    call to_stderr
    PRINT "spin: the registers and memory disagree\n"
    mov eax, STATUS_FAILED
    ret

# Out: eax = seconds of the clock. Changes ebx.
spin_clock:
    mov ebx, CLOCK_MONOTONIC
    mov ecx, offset spin_now
    SYSTEM_CALL clock_gettime
    mov eax, [spin_now]
    ret

.section .bss
.p2align 2
spin_counter:
    .space 4
spin_now:
    .space 8
