# SPDX-License-Identifier: GPL-2.0-or-later
#
# vcpu: list the virtual processors, or bring one up or down.

.include "lib/program.inc"

USAGE "usage: vcpu [list | up NUMBER | down NUMBER]\n"

.section .text
main:
    mov ebx, edx
    cmp eax, 1
    je vcpu_list
    cmp eax, 2
    je .Lvcpu_list
    cmp eax, 3
    jne usage
    mov esi, VCPU_UP
    mov eax, [ebx + 4]
    mov edx, offset vcpu_up
    call text_equals
    test eax, eax
    jnz .Lvcpu_change
    mov esi, VCPU_DOWN
    mov eax, [ebx + 4]
    mov edx, offset vcpu_down
    call text_equals
    test eax, eax
    jz usage
.Lvcpu_change:
    mov edi, [ebx + 8]
    mov eax, edi
    call want_number
    mov ecx, eax
    mov ebx, esi
    SYSTEM_CALL vcpu
    mov edx, edi
    test eax, eax
    js fail
    ret
.Lvcpu_list:
    mov eax, [ebx + 4]
    mov edx, offset vcpu_word_list
    call text_equals
    test eax, eax
    jz usage
    # and on

vcpu_list:
    mov ebx, VCPU_COUNT
    SYSTEM_CALL vcpu
    mov esi, eax
    xor edi, edi
.Lvcpu_next:
    cmp edi, esi
    jae .Lvcpu_done
    mov eax, edi
    call put_decimal
    mov ebx, VCPU_STATE
    mov ecx, edi
    SYSTEM_CALL vcpu
    test eax, eax
    mov eax, offset vcpu_is_up
    jnz .Lvcpu_show
    mov eax, offset vcpu_is_down
.Lvcpu_show:
    call put_text
    inc edi
    jmp .Lvcpu_next
.Lvcpu_done:
    xor eax, eax
    ret

.section .rodata
vcpu_word_list:
    .asciz "list"
vcpu_up:
    .asciz "up"
vcpu_down:
    .asciz "down"
vcpu_is_up:
    .asciz " up\n"
vcpu_is_down:
    .asciz " down\n"
