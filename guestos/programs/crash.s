# SPDX-License-Identifier: GPL-2.0-or-later
#
# crash: shut down as if the kernel had crashed.

.include "lib/program.inc"

USAGE "usage: crash\n"

.section .text
main:
    cmp eax, 1
    jne usage
    mov ebx, REBOOT_CRASH
    SYSTEM_CALL reboot
    mov edx, [program_name]
    jmp fail
