# SPDX-License-Identifier: GPL-2.0-or-later
#
# echo: print the words that it is given.

.include "lib/program.inc"

USAGE "usage: echo [WORD]...\n"

.section .text
main:
    lea ebx, [edx + 4]
    cmp dword ptr [ebx], 0
    je .Lecho_end
.Lecho_word:
    mov eax, [ebx]
    call put_text
    add ebx, 4
    cmp dword ptr [ebx], 0
    je .Lecho_end
    PRINT " "
    jmp .Lecho_word
.Lecho_end:
    PRINT "\n"
    xor eax, eax
    ret
