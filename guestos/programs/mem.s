# SPDX-License-Identifier: GPL-2.0-or-later
#
# mem: tell how memory is used, in pages of 4 KB.

.include "lib/program.inc"

USAGE "usage: mem\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov ebx, offset mem_info
    mov ecx, SIZEOF_MEMORY_INFO
    SYSTEM_CALL memory
    mov edx, offset mem_what
    test eax, eax
    js fail
    mov ebx, offset mem_lines
.Lmem_next:
    mov eax, [ebx]
    test eax, eax
    jz .Lmem_done
    mov edx, 12
    call put_text_wide
    mov eax, [ebx + 4]
    mov eax, [mem_info + eax]
    mov edx, 6
    call put_decimal_wide
    PRINT "\n"
    add ebx, 8
    jmp .Lmem_next
.Lmem_done:
    xor eax, eax
    ret

.section .rodata
.p2align 2
mem_lines:
    .long .Lmem_total, MEMORY_INFO_TOTAL, .Lmem_free, MEMORY_INFO_FREE
    .long .Lmem_tables, MEMORY_INFO_TABLES, .Lmem_shared, MEMORY_INFO_SHARED
    .long .Lmem_ballooned, MEMORY_INFO_BALLOONED, .Lmem_processes, MEMORY_INFO_PROCESSES
    .long 0
.Lmem_total: .asciz "pages"
.Lmem_free: .asciz "free"
.Lmem_tables: .asciz "tables"
.Lmem_shared: .asciz "shared"
.Lmem_ballooned: .asciz "ballooned"
.Lmem_processes: .asciz "processes"
mem_what:
    .asciz "memory"

.section .bss
.p2align 2
mem_info:
    .space SIZEOF_MEMORY_INFO
