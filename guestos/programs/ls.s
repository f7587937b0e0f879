# SPDX-License-Identifier: GPL-2.0-or-later
#
# ls: list a directory: size, and a star behind what can be run, a slash behind directories.

.include "lib/program.inc"

USAGE "usage: ls [DIRECTORY]\n"

.section .text
.equ LS_ENTRIES, 32

main:
    cmp eax, 2
    ja usage
    mov eax, offset ls_root
    jb .Lls_begin
    mov eax, [edx + 4]
.Lls_begin:
    mov [ls_path], eax
    xor edi, edi                    # number of the next entry
.Lls_more:
    mov ebx, [ls_path]
    mov ecx, offset ls_entries
    mov edx, LS_ENTRIES * SIZEOF_DIRECTORY
    mov esi, edi
    SYSTEM_CALL directory
    mov edx, [ls_path]
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
    mov eax, [esi + DIRECTORY_MODE]
    cmp eax, MODE_DIRECTORY
    je .Lls_directory
    test eax, 0x49                  # 0111
    jz .Lls_plain
    PRINT "*"
    jmp .Lls_plain
.Lls_directory:
    PRINT "/"
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
ls_root:
    .asciz "/"

.section .bss
.p2align 2
ls_path:
    .space 4
ls_entries:
    .space LS_ENTRIES * SIZEOF_DIRECTORY
