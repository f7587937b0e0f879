# SPDX-License-Identifier: GPL-2.0-or-later
#
# ls: list the files of the RAM disk: size, and a star behind what can be run.

.include "lib/program.inc"

USAGE "usage: ls\n"

.section .text
.equ LS_ENTRIES, 8

main:
    cmp eax, 1
    jne usage
    xor edi, edi                    # number of the next entry
.Lls_more:
    mov ebx, offset ls_entries
    mov ecx, LS_ENTRIES * SIZEOF_DIRECTORY
    mov edx, edi
    SYSTEM_CALL directory
    mov edx, offset ls_what
    test eax, eax
    js fail
    jz .Lls_done
    mov esi, offset ls_entries
    lea ebp, [esi + eax]
.Lls_entry:
    mov eax, [esi + DIRECTORY_BYTES]
    mov edx, 8
    call put_decimal_wide
    PRINT " "
    lea eax, [esi + DIRECTORY_NAME]
    call put_text
    test dword ptr [esi + DIRECTORY_MODE], 0x49     # 0111
    jz .Lls_plain
    PRINT "*"
.Lls_plain:
    PRINT "\n"
    inc edi
    add esi, SIZEOF_DIRECTORY
    cmp esi, ebp
    jb .Lls_entry
    jmp .Lls_more
.Lls_done:
    xor eax, eax
    ret

.section .rodata
ls_what:
    .asciz "directory"

.section .bss
.p2align 2
ls_entries:
    .space LS_ENTRIES * SIZEOF_DIRECTORY
