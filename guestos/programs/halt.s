# SPDX-License-Identifier: GPL-2.0-or-later
#
# halt: power the machine off.

.include "lib/program.inc"

USAGE "usage: halt\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov ebx, REBOOT_POWEROFF
    SYSTEM_CALL reboot
    mov edx, [program_name]
    jmp fail
