# SPDX-License-Identifier: GPL-2.0-or-later
#
# cat: print files, or what comes in.

.include "lib/program.inc"

USAGE "usage: cat [FILE]...\n"

.section .text
.equ CAT_SIZE, 1024

main:
    lea ebx, [edx + 4]
    cmp dword ptr [ebx], 0
    jne .Lcat_file
    xor ebx, ebx
    mov edx, offset cat_input
    call cat_copy
    xor eax, eax
    ret
.Lcat_file:
    mov eax, [ebx]
    test eax, eax
    jz .Lcat_done
    push ebx
    mov ebx, eax
    mov ecx, O_RDONLY
    SYSTEM_CALL open
    mov ebx, eax
    pop edx
    push edx
    mov edx, [edx]
    test eax, eax
    js .Lcat_missing
    call cat_copy
    SYSTEM_CALL close
.Lcat_next:
    pop ebx
    add ebx, 4
    jmp .Lcat_file
.Lcat_missing:
    call complain
    mov dword ptr [cat_status], STATUS_FAILED
    jmp .Lcat_next
.Lcat_done:
    mov eax, [cat_status]
    ret

# Copy an open file to the standard output. In: ebx = file, edx = its name.
cat_copy:
    push esi
    mov esi, edx
.Lcopy_next:
    mov ecx, offset cat_buffer
    mov edx, CAT_SIZE
    SYSTEM_CALL read
    test eax, eax
    jz .Lcopy_done
    js .Lcopy_failed
    mov edx, eax
    mov eax, offset cat_buffer
    call put_bytes
    jmp .Lcopy_next
.Lcopy_failed:
    mov edx, esi
    call complain
    mov dword ptr [cat_status], STATUS_FAILED
.Lcopy_done:
    call flush
    pop esi
    ret

.section .rodata
cat_input:
    .asciz "standard input"

.section .bss
.p2align 2
cat_status:
    .space 4
cat_buffer:
    .space CAT_SIZE
