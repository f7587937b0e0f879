# SPDX-License-Identifier: GPL-2.0-or-later
#
# The program of ring 3. It lies in pages of its own, which process.s maps at USER_BASE and opens to
# ring 3; it knows nothing of the kernel but the numbers of the system calls.
#
# In: eax = what to do: 0 to be a good program, 1 to read the kernel's memory. esp = top of its
# stack. All other registers are 0, and it may use all of them.

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
    test eax, eax
    jnz user_trespass
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

.type user_hello, @object
user_hello:
    .ascii "ring 3: hello; getpid says "
user_hello_end:
.type user_refused, @object
user_refused:
    .ascii "ring 3: the kernel refused to print its own memory for me\n"
user_refused_end:
