# SPDX-License-Identifier: GPL-2.0-or-later
#
# A first task for GNU Mach, which GRUB loads as its module: says hello, reads a sector of the disk
# through the kernel's driver, shows some of its bytes, and gives the processor away for ever.
#
# Its argument is the number of the port of all devices. Its system calls go through the call gate
# that Mach keeps in its LDT, selector 7: the number is negative, the arguments lie on the stack
# behind a return address. Devices are asked by messages: a header, then a word of type before each
# value. Source: gnumach-dev, mach/message.h and device/device.defs.

.equ MACH_MSG, -25
.equ MACH_REPLY_PORT, -26
.equ MACH_PRINT, -30
.equ SWTCH_PRI, -59

.equ SEND_AND_RECEIVE, 3
.equ COPY_SEND_MAKE_SEND_ONCE, 0x1513
.equ DEVICE_OPEN, 2800
.equ DEVICE_READ, 2804
.equ READ, 1
.equ A_NUMBER, 0x10012002       # one INTEGER_32, inline
.equ A_LONG_TYPE, 0x30000000    # inline, its parts in two words of their own
.equ NAME, 1024 << 16 | 12      # STRING_C of 128 bytes

.equ SECTOR, 2                  # ext2 has its superblock there
.equ SHOWN_FROM, 56             # which has its magic number there
.equ SHOWN_BYTES, 16
.equ ANSWER_BYTES, 256

# Header of a message: bits, size, whom to, reply port, sequence, what.
.equ TO, 8
.equ REPLY, 12
.equ RESULT, 28                 # behind the header of an answer and a word of type
.equ PORT, 36                   # of the opened device
.equ ADDRESS, 44                # of the data that was read, behind three words of type

.macro TRAP number, arguments
    mov eax, \number
    push 0                      # where a return address belongs
    .byte 0x9A                  # lcall 7:0
    .long 0
    .word 7
    add esp, 4 + 4 * \arguments
.endm
.macro PRINT text
    push offset \text
    TRAP MACH_PRINT, 1
.endm

.text
_start:
    mov esi, [esp + 8]          # the first argument
    PRINT hello
    TRAP MACH_REPLY_PORT, 0
    mov [reply_port], eax
    call number
    mov ebx, offset open
    call ask
    mov eax, [answer + PORT]
    mov ebx, offset read
    call ask
    mov esi, [answer + ADDRESS]
    add esi, SHOWN_FROM
    call show
    PRINT shown
again:
    push 0                      # the lowest priority
    TRAP SWTCH_PRI, 1
    jmp again

# In: esi = decimal digits and a zero. Out: eax = the number.
number:
    xor eax, eax
digit:
    movzx ecx, byte ptr [esi]
    inc esi
    sub ecx, '0'
    jb no_digit
    lea eax, [eax + eax * 4]
    lea eax, [ecx + eax * 2]
    jmp digit
no_digit:
    ret

# Send the message at ebx to the port eax, and wait for the answer, which must be good news.
ask:
    mov [ebx + TO], eax
    mov eax, [reply_port]
    mov [ebx + REPLY], eax
    mov esi, ebx
    mov edi, offset answer
    mov ecx, [ebx + 4]
    cld
    rep movsb
    push 0                      # no one to notify
    push 0                      # no time-out
    push dword ptr [reply_port]
    push ANSWER_BYTES
    push dword ptr [ebx + 4]
    push SEND_AND_RECEIVE
    push offset answer
    TRAP MACH_MSG, 7
    or eax, [answer + RESULT]
    jnz failed
    ret
failed:
    PRINT refused
    jmp again

# Write bytes at esi as hexadecimal digits into the text.
show:
    mov edi, offset digits
    mov ecx, SHOWN_BYTES
    cld
next:
    lodsb
    mov ah, al
    shr al, 4
    call nibble
    mov al, ah
    and al, 15
    call nibble
    dec ecx
    jnz next
    ret
nibble:
    add al, '0'
    cmp al, '9'
    jbe is_digit
    add al, 'a' - '0' - 10
is_digit:
    stosb
    ret

.data
hello: .asciz "hello from a task of Mach\n"
refused: .asciz "a device refused\n"
shown: .ascii "sector 2 has "
digits: .space 2 * SHOWN_BYTES
    .asciz "\n"
.p2align 2
reply_port: .long 0
open: .long COPY_SEND_MAKE_SEND_ONCE, open_end - open, 0, 0, 0, DEVICE_OPEN
    .long A_NUMBER, READ, A_LONG_TYPE, NAME, 1
    .ascii "xvd0"
    .space 124
open_end:
read: .long COPY_SEND_MAKE_SEND_ONCE, read_end - read, 0, 0, 0, DEVICE_READ
    .long A_NUMBER, READ, A_NUMBER, SECTOR, A_NUMBER, 512
read_end:
answer: .space ANSWER_BYTES
