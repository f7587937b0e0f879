# SPDX-License-Identifier: GPL-2.0-or-later
#
# A first task for GNU Mach, which GRUB loads as its module: says hello and gives the processor away
# for ever. Its system calls go through the call gate that Mach keeps in its LDT, selector 7; the
# number is negative, the arguments lie on the stack behind a return address.

.equ MACH_PRINT, -30
.equ SWTCH_PRI, -59

.macro MACH_TRAP number
    mov eax, \number
    .byte 0x9A          # lcall 7:0
    .long 0
    .word 7
.endm

.text
_start:
    push offset text
    push 0
    MACH_TRAP MACH_PRINT
    add esp, 8
again:
    push 0              # the lowest priority
    push 0
    MACH_TRAP SWTCH_PRI
    add esp, 8
    jmp again

.data
text:
    .asciz "hello from a task of Mach\n"
