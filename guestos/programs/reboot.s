# SPDX-License-Identifier: GPL-2.0-or-later
#
# reboot: shut down for a reboot.

.include "lib/program.inc"

USAGE "usage: reboot\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov ebx, REBOOT_RESTART
    SYSTEM_CALL reboot
    mov edx, [program_name]
    jmp fail
