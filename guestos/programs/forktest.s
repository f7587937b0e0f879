# SPDX-License-Identifier: GPL-2.0-or-later
#
# forktest: fork so many times, 1,000 without a word, and see that every child comes back.

.include "lib/program.inc"

USAGE "usage: forktest [COUNT]\n"

.section .text
.equ FORKTEST_COUNT, 1000
.equ FORKTEST_STATUS, 42

main:
    mov esi, FORKTEST_COUNT
    mov eax, [edx + 4]
    test eax, eax
    jz .Lforktest_begin
    call want_number
    mov esi, eax
.Lforktest_begin:
    xor edi, edi
.Lforktest_next:
    cmp edi, esi
    jae .Lforktest_done
    SYSTEM_CALL fork
    mov edx, offset forktest_fork
    test eax, eax
    js fail
    jz .Lforktest_child
    mov ebp, eax
    mov ebx, eax
    mov ecx, offset forktest_word
    xor edx, edx
    SYSTEM_CALL waitpid
    cmp eax, ebp
    jne .Lforktest_wrong
    cmp dword ptr [forktest_word], FORKTEST_STATUS << WAIT_STATUS_SHIFT
    jne .Lforktest_wrong
    inc edi
    jmp .Lforktest_next
.Lforktest_child:
    mov eax, FORKTEST_STATUS
    ret
.Lforktest_wrong:
    call to_stderr
    PRINT "forktest: a child did not come back as it should\n"
    mov eax, STATUS_FAILED
    ret
.Lforktest_done:
    mov eax, edi
    call put_decimal
    PRINT " children forked and waited for\n"
    xor eax, eax
    ret

.section .rodata
forktest_fork:
    .asciz "fork"

.section .bss
.p2align 2
forktest_word:
    .space 4
