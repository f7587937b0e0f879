# SPDX-License-Identifier: GPL-2.0-or-later
#
# sync: have all disks keep what was written to them.

.include "lib/program.inc"

USAGE "usage: sync\n"

.section .text
main:
    cmp eax, 1
    jne usage
    SYSTEM_CALL sync
    ret
