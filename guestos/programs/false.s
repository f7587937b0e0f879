# SPDX-License-Identifier: GPL-2.0-or-later
#
# false: do nothing, and fail.

.include "lib/program.inc"

USAGE "usage: false\n"

.section .text
main:
    mov eax, STATUS_FAILED
    ret
