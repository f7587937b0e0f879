# SPDX-License-Identifier: GPL-2.0-or-later
#
# kill: end processes, or groups of them, by their ids. Signal 0 only looks whether they are there.

.include "lib/program.inc"
.include "lib/kill.inc"

USAGE "usage: kill [-SIGNAL] ID... (-GROUP for a group)\n"

.section .text
main:
    mov eax, edx
    call kill_words
    cmp eax, STATUS_USAGE
    je usage
    ret
