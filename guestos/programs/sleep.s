# SPDX-License-Identifier: GPL-2.0-or-later
#
# sleep: wait. SECONDS may have a fraction of up to nine digits.

.include "lib/program.inc"

USAGE "usage: sleep SECONDS[.FRACTION]\n"

.section .text
.equ FRACTION_DIGITS, 9

main:
    cmp eax, 2
    jne usage
    mov ebx, [edx + 4]
    mov esi, ebx
.Lsleep_point:
    mov al, [esi]
    test al, al
    jz .Lsleep_whole
    inc esi
    cmp al, '.'
    jne .Lsleep_point
    mov byte ptr [esi - 1], 0       # the fraction is a number of its own
    mov eax, esi
    call text_length
    mov edi, FRACTION_DIGITS
    sub edi, eax
    js usage
    mov eax, esi
    call want_number
.Lsleep_scale:
    dec edi
    js .Lsleep_scaled
    imul eax, eax, 10
    jmp .Lsleep_scale
.Lsleep_scaled:
    mov [sleep_time + 4], eax
.Lsleep_whole:
    mov eax, ebx
    call want_number
    mov [sleep_time], eax
    mov ebx, offset sleep_time
    xor ecx, ecx
    SYSTEM_CALL nanosleep
    mov edx, offset sleep_what
    test eax, eax
    js fail
    ret

.section .rodata
sleep_what:
    .asciz "sleep"

.section .bss
.p2align 2
sleep_time:
    .space 8
