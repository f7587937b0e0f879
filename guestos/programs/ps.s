# SPDX-License-Identifier: GPL-2.0-or-later
#
# ps: list the processes.

.include "lib/program.inc"

USAGE "usage: ps\n"

.section .text
.equ PS_RECORDS, 128

main:
    cmp eax, 1
    jne usage
    mov ebx, offset ps_records
    mov ecx, PS_RECORDS * SIZEOF_PROCESS_INFO
    SYSTEM_CALL processes
    mov edx, offset ps_what
    test eax, eax
    js fail
    mov ebx, offset ps_records
    lea esi, [ebx + eax]
    PRINT "    ID PARENT S VCPU  PAGES  TICKS NAME\n"
.Lps_next:
    cmp ebx, esi
    jae .Lps_done
    mov eax, [ebx + PROCESS_INFO_ID]
    mov edx, 6
    call put_decimal_wide
    mov eax, [ebx + PROCESS_INFO_PARENT]
    mov edx, 7
    call put_decimal_wide
    PRINT " "
    mov al, [ebx + PROCESS_INFO_STATE]
    call put_char
    movzx eax, byte ptr [ebx + PROCESS_INFO_VCPU]
    mov edx, 5
    call put_decimal_wide
    mov eax, [ebx + PROCESS_INFO_PAGES]
    mov edx, 7
    call put_decimal_wide
    mov eax, [ebx + PROCESS_INFO_TICKS]
    mov edx, 7
    call put_decimal_wide
    PRINT " "
    lea eax, [ebx + PROCESS_INFO_NAME]
    call put_text
    PRINT "\n"
    add ebx, SIZEOF_PROCESS_INFO
    jmp .Lps_next
.Lps_done:
    xor eax, eax
    ret

.section .rodata
ps_what:
    .asciz "processes"

.section .bss
.p2align 2
ps_records:
    .space PS_RECORDS * SIZEOF_PROCESS_INFO
