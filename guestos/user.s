# SPDX-License-Identifier: GPL-2.0-or-later
#
# The programs of ring 3. They lie in pages of their own, which process.s maps at USER_BASE and
# opens to ring 3; they know nothing of the kernel but the numbers of the system calls.
#
# In: eax = which one to be: USER_HELLO is a good program, USER_TRESPASS reads the kernel's memory,
# USER_RACE counts for ever. esp = top of its stack, in a page of zeros at USER_STACK. All other
# registers are 0, and it may use all of them.

.equ USER_HELLO, 0
.equ USER_TRESPASS, 1
.equ USER_RACE, 2
.equ user_race_count, USER_STACK    # where the kernel reads how far it has come

# Make a system call. Arguments are in ebx, ecx and edx already.
.macro SYSTEM_CALL name
    mov eax, SYS_\name
    int SYSCALL_VECTOR
.endm

# Print a text of this file, from where the program sees it.
.macro WRITE_TEXT text, end
    mov ebx, USER_BASE + \text - __user_start
    mov ecx, offset \end - \text
    SYSTEM_CALL write
.endm

.section .user, "ax"

user_start:
    cmp eax, USER_TRESPASS
    je user_trespass
    cmp eax, USER_RACE
    je user_race
    WRITE_TEXT user_hello, user_hello_end
    SYSTEM_CALL getpid
    add eax, '0'                    # ids have one digit
    push '\n' << 8
    mov [esp], al
    mov ebx, esp
    mov ecx, 2
    SYSTEM_CALL write
    pop eax

    # A program cannot have the kernel read for it what it cannot read itself.
    mov ebx, VIRT_BASE
    mov ecx, 16
    SYSTEM_CALL write
    cmp eax, -EFAULT
    jne user_fail
    WRITE_TEXT user_refused, user_refused_end
    xor ebx, ebx
    SYSTEM_CALL exit
user_fail:
    mov ebx, 1
    SYSTEM_CALL exit

# This must end the program: the page is the kernel's.
user_trespass:
    mov eax, [VIRT_BASE]
    jmp user_fail

# Count in two registers and in memory, and never call the kernel. The three agree as long as
# whoever takes the processor away brings back all that it has taken.
user_race:
    inc ebx
    dec esi
    inc dword ptr [user_race_count]
    lea eax, [ebx + esi]
    test eax, eax
    jnz user_fail
    cmp ebx, [user_race_count]
    je user_race
    jmp user_fail

.type user_hello, @object
user_hello:
    .ascii "ring 3: hello; getpid says "
user_hello_end:
.type user_refused, @object
user_refused:
    .ascii "ring 3: the kernel refused to print its own memory for me\n"
user_refused_end:
