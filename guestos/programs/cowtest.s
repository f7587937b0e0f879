# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowtest: see that parent and child share pages until one of them writes, and never see each
# other's writing, not even when it is the kernel that writes for them.

.include "lib/program.inc"

USAGE "usage: cowtest\n"

.equ COWTEST_PAGES, 32
.equ COWTEST_PAGE, 4096
.equ COWTEST_WORDS, COWTEST_PAGES * COWTEST_PAGE / 4
.equ PARENT_PATTERN, 0x11111111
.equ CHILD_PATTERN, 0x22222222
.equ GRANDCHILD_PATTERN, 0x33333333

.section .text
main:
    cmp eax, 1
    jne usage
    mov eax, PARENT_PATTERN
    call cow_fill

    call cow_fork                   # a child that reads, writes, and forks a child of its own
    jz cow_child
    call cow_wait
    mov edx, offset cow_children
    call cow_verdict
    mov eax, PARENT_PATTERN
    call cow_check
    mov edx, offset cow_parent
    call cow_verdict

    call cow_fork                   # a child for which the kernel writes
    jz cow_kernel_child
    call cow_wait
    mov edx, offset cow_kernel
    call cow_verdict
    mov eax, PARENT_PATTERN
    call cow_check
    mov edx, offset cow_parent
    call cow_verdict

    call cow_fork                   # a parent that writes first
    jz cow_late_child
    push eax
    mov eax, CHILD_PATTERN
    call cow_fill
    pop eax
    call cow_wait
    mov edx, offset cow_late
    call cow_verdict
    mov eax, [cow_status]
    ret

# The child sees what the parent wrote, writes, and has a child that sees that.
cow_child:
    mov eax, PARENT_PATTERN
    call cow_check
    call cow_leave_if_wrong
    mov eax, CHILD_PATTERN
    call cow_fill
    call cow_fork
    jz .Lcow_grandchild
    call cow_wait
    call cow_leave_if_wrong
    mov eax, CHILD_PATTERN
    call cow_check
    jmp cow_leave
.Lcow_grandchild:
    mov eax, CHILD_PATTERN
    call cow_check
    call cow_leave_if_wrong
    mov eax, GRANDCHILD_PATTERN
    call cow_fill
    call cow_check
    jmp cow_leave

# The clock's answer is written by the kernel, into a page that is shared, and over the border of
# two of them.
cow_kernel_child:
    mov ebx, CLOCK_MONOTONIC
    mov ecx, offset cow_memory + COWTEST_PAGE - 4
    SYSTEM_CALL clock_gettime
    test eax, eax
    jnz cow_leave
    cmp dword ptr [cow_memory + COWTEST_PAGE], PARENT_PATTERN
    sete al
    movzx eax, al                   # 1, and wrong, where nothing was written
    jmp cow_leave

# The parent writes while this child sleeps.
cow_late_child:
    mov ebx, offset cow_nap
    xor ecx, ecx
    SYSTEM_CALL nanosleep
    mov eax, PARENT_PATTERN
    call cow_check
    jmp cow_leave

# -- parts -----------------------------------------------------------------------------------

# Write a pattern to all of the memory. In: eax. Keeps eax.
cow_fill:
    push edi
    mov edi, offset cow_memory
    mov ecx, COWTEST_WORDS
    rep stosd
    pop edi
    ret

# Look whether all of the memory has a pattern. In: eax. Out: eax = 0, or 1 where it has not.
cow_check:
    push edi
    mov edi, offset cow_memory
    mov ecx, COWTEST_WORDS
    repe scasd
    setne al
    movzx eax, al
    pop edi
    ret

# Out: eax = id of the child, or 0 and ZF in the child.
cow_fork:
    SYSTEM_CALL fork
    mov edx, offset cow_fork_word
    test eax, eax
    js fail
    ret

# Wait for a child. In: eax = id. Out: eax = 0 where it ended with status 0, else 1.
cow_wait:
    push ebx
    mov ebx, eax
    mov ecx, offset cow_word
    xor edx, edx
    SYSTEM_CALL waitpid
    xor eax, eax
    cmp dword ptr [cow_word], 0
    setne al
    pop ebx
    ret

# End a child. In: eax = its status; for the second one only where it is not 0.
cow_leave_if_wrong:
    test eax, eax
    jnz cow_leave
    ret
cow_leave:
    mov ebx, eax
    SYSTEM_CALL exit

# Say how something went, and remember what went wrong. In: eax = 0 for well, edx = what.
cow_verdict:
    push ebx
    push eax
    mov ebx, edx
    mov eax, ebx
    call put_text
    pop eax
    or [cow_status], eax
    test eax, eax
    mov eax, offset cow_well
    jz .Lverdict_show
    mov eax, offset cow_wrong
.Lverdict_show:
    call put_text
    pop ebx
    ret

.section .rodata
.p2align 2
cow_nap:
    .long 0, 20000000
cow_children:
    .asciz "a child and a grandchild, each with pages of its own"
cow_kernel:
    .asciz "a child for which the kernel writes"
cow_late:
    .asciz "a child whose parent writes first"
cow_parent:
    .asciz "the parent, untouched by them"
cow_well:
    .asciz ": well\n"
cow_wrong:
    .asciz ": WRONG\n"
cow_fork_word:
    .asciz "fork"

.section .bss
.p2align 12
cow_memory:
    .space COWTEST_PAGES * COWTEST_PAGE
cow_status:
    .space 4
cow_word:
    .space 4
