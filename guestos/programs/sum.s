# SPDX-License-Identifier: GPL-2.0-or-later
#
# sum: a checksum and the length of files, as POSIX's cksum prints them: a CRC of 32 bits with the
# polynomial 0x04C11DB7, the highest bit first, over the bytes and then the length, inverted.

.include "lib/program.inc"

USAGE "usage: sum [FILE]...   (the checksum of cksum)\n"

.section .text
.equ SUM_SIZE, 44 * 1024            # as much as a request to a disk can have
.equ SUM_POLYNOMIAL, 0x04C11DB7

main:
    lea ebp, [edx + 4]
    call sum_make_table
    cmp dword ptr [ebp], 0
    jne .Lsum_file
    xor ebx, ebx
    xor edx, edx
    call sum_print
    jmp .Lsum_done
.Lsum_file:
    mov ebx, [ebp]
    test ebx, ebx
    jz .Lsum_done
    mov ecx, O_RDONLY
    SYSTEM_CALL open
    mov ebx, eax
    mov edx, [ebp]
    test eax, eax
    js .Lsum_missing
    call sum_print
    SYSTEM_CALL close
.Lsum_next:
    add ebp, 4
    jmp .Lsum_file
.Lsum_missing:
    call complain
    mov dword ptr [sum_status], STATUS_FAILED
    jmp .Lsum_next
.Lsum_done:
    mov eax, [sum_status]
    ret

# Print the sum of an open file. In: ebx = file, edx = its name, 0 for none. Keeps ebx.
sum_print:
    push esi
    push edi
    push ebp
    mov ebp, edx
    xor esi, esi                    # the checksum so far
    xor edi, edi                    # bytes so far: below 4 GB
.Lsum_read:
    mov ecx, offset sum_buffer
    mov edx, SUM_SIZE
    SYSTEM_CALL read
    test eax, eax
    jz .Lsum_end
    js .Lsum_failed
    add edi, eax
    mov edx, offset sum_buffer
    lea ecx, [edx + eax]
.Lsum_byte:
    mov eax, esi
    shr eax, 24
    xor al, [edx]
    shl esi, 8
    xor esi, [sum_table + eax * 4]
    inc edx
    cmp edx, ecx
    jb .Lsum_byte
    jmp .Lsum_read
.Lsum_end:
    mov ecx, edi
.Lsum_length:
    test ecx, ecx
    jz .Lsum_show
    mov eax, esi
    shr eax, 24
    xor al, cl
    shl esi, 8
    xor esi, [sum_table + eax * 4]
    shr ecx, 8
    jmp .Lsum_length
.Lsum_show:
    mov eax, esi
    not eax
    call put_decimal
    PRINT " "
    mov eax, edi
    call put_decimal
    test ebp, ebp
    jz .Lsum_nameless
    PRINT " "
    mov eax, ebp
    call put_text
.Lsum_nameless:
    PRINT "\n"
.Lsum_out:
    pop ebp
    pop edi
    pop esi
    ret
.Lsum_failed:
    mov edx, ebp
    test edx, edx
    jnz .Lsum_complain
    mov edx, offset sum_input
.Lsum_complain:
    call complain
    mov dword ptr [sum_status], STATUS_FAILED
    jmp .Lsum_out

# Make the table of the checksum: for each byte, what it adds.
sum_make_table:
    xor edx, edx
.Ltable_byte:
    mov eax, edx
    shl eax, 24
    mov ecx, 8
.Ltable_bit:
    add eax, eax
    jnc .Ltable_no_carry
    xor eax, SUM_POLYNOMIAL
.Ltable_no_carry:
    dec ecx
    jnz .Ltable_bit
    mov [sum_table + edx * 4], eax
    inc edx
    cmp edx, 256
    jb .Ltable_byte
    ret

.section .rodata
sum_input:
    .asciz "standard input"

.section .bss
.p2align 12                         # whole pages: so a disk's sectors come without a copy
sum_buffer:
    .space SUM_SIZE
sum_table:
    .space 256 * 4
sum_status:
    .space 4
