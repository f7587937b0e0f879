# SPDX-License-Identifier: GPL-2.0-or-later
#
# hello: say hello from ring 3.

.include "lib/program.inc"

USAGE "usage: hello\n"

.section .text
main:
    cmp eax, 1
    jne usage
    PRINT "hello from ring "
    mov eax, cs                     # the processor's own word on where this runs
    and eax, 3
    call put_decimal
    PRINT ", process "
    SYSTEM_CALL getpid
    call put_decimal
    PRINT "\n"
    xor eax, eax
    ret
