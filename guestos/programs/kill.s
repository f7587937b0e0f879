# SPDX-License-Identifier: GPL-2.0-or-later
#
# kill: end processes by their ids. Signal 0 only looks whether they are there.

.include "lib/program.inc"

USAGE "usage: kill [-SIGNAL] ID...\n"

.section .text
main:
    mov ebp, SIGTERM
    lea ebx, [edx + 4]
    mov eax, [ebx]
    test eax, eax
    jz usage
    cmp byte ptr [eax], '-'
    jne .Lkill_next
    inc eax
    call want_number
    mov ebp, eax
    add ebx, 4
    cmp dword ptr [ebx], 0
    je usage
.Lkill_next:
    mov eax, [ebx]
    test eax, eax
    jz .Lkill_done
    call want_number
    push ebx
    mov ebx, eax
    mov ecx, ebp
    SYSTEM_CALL kill
    pop ebx
    test eax, eax
    jns .Lkill_sent
    mov edx, [ebx]
    call complain
    mov dword ptr [kill_status], STATUS_FAILED
.Lkill_sent:
    add ebx, 4
    jmp .Lkill_next
.Lkill_done:
    mov eax, [kill_status]
    ret

.section .bss
.p2align 2
kill_status:
    .space 4
