# SPDX-License-Identifier: GPL-2.0-or-later
#
# true: do nothing, and succeed.

.include "lib/program.inc"

USAGE "usage: true\n"

.section .text
main:
    mov eax, 0
    ret
