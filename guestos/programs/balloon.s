# SPDX-License-Identifier: GPL-2.0-or-later
#
# balloon: give pages to the hypervisor, or take some of them back.

.include "lib/program.inc"

USAGE "usage: balloon PAGES | balloon -PAGES\n"

.section .text
main:
    cmp eax, 2
    jne usage
    mov esi, [edx + 4]
    mov edi, 1
    mov eax, esi
    cmp byte ptr [esi], '-'
    jne .Lballoon_number
    inc eax
    neg edi
.Lballoon_number:
    call want_number
    imul eax, edi
    mov ebx, eax
    SYSTEM_CALL balloon
    mov edx, esi
    test eax, eax
    js fail
    call put_decimal
    test edi, edi
    mov eax, offset balloon_given
    jns .Lballoon_show
    mov eax, offset balloon_taken
.Lballoon_show:
    call put_text
    xor eax, eax
    ret

.section .rodata
balloon_given:
    .asciz " pages given to the hypervisor\n"
balloon_taken:
    .asciz " pages taken back\n"
