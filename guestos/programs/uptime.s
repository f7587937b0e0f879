# SPDX-License-Identifier: GPL-2.0-or-later
#
# uptime: tell how long the system has been up.

.include "lib/program.inc"

USAGE "usage: uptime\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov ebx, CLOCK_MONOTONIC
    mov ecx, offset uptime_clock
    SYSTEM_CALL clock_gettime
    mov edx, offset uptime_what
    test eax, eax
    js fail
    PRINT "up "
    mov eax, [uptime_clock]
    call put_decimal
    PRINT "."
    mov eax, [uptime_clock + 4]
    xor edx, edx
    mov ecx, 1000000
    div ecx
    mov ebx, eax
    mov esi, 100                    # three digits, with their zeros
.Luptime_digit:
    mov eax, ebx
    xor edx, edx
    div esi
    mov ebx, edx
    add al, '0'
    call put_char
    mov eax, esi
    xor edx, edx
    mov ecx, 10
    div ecx
    mov esi, eax
    test esi, esi
    jnz .Luptime_digit
    PRINT " s\n"
    xor eax, eax
    ret

.section .rodata
uptime_what:
    .asciz "clock"

.section .bss
.p2align 2
uptime_clock:
    .space 8
