# SPDX-License-Identifier: GPL-2.0-or-later
#
# dd: copy bytes between files and disks, in blocks, and tell how fast that was.
#
#   dd if=/dev/xvda of=/dev/xvdb bs=64K count=16 skip=2 seek=5
#
# Without if= it reads its input, without of= it throws away what it has read. skip= and seek= count
# blocks of the file to read and of the one to write.

.include "lib/program.inc"

USAGE "usage: dd [if=FILE] [of=FILE] [bs=BYTES] [count=N] [skip=N] [seek=N]; K, M behind N\n"

.section .text
.equ DD_SIZE_MAX, 2 << 20
.equ DD_SIZE, 44 << 10              # the most that fits into one request to a disk

main:
    lea ebp, [edx + 4]
    mov dword ptr [dd_size], DD_SIZE
    mov dword ptr [dd_count], -1
    mov dword ptr [dd_output], -1
.Ldd_word:
    mov eax, [ebp]
    test eax, eax
    jz .Ldd_open
    call dd_set
    add ebp, 4
    jmp .Ldd_word
.Ldd_open:
    mov eax, [dd_size]
    dec eax
    cmp eax, DD_SIZE_MAX
    jae usage                       # 0, or more than there is room for
    mov eax, [dd_input_path]
    mov ecx, O_RDONLY
    call dd_open
    js .Ldd_opened                  # the standard input
    mov [dd_input], eax
.Ldd_opened:
    mov eax, [dd_output_path]
    mov ecx, O_WRONLY
    call dd_open
    mov [dd_output], eax
    mov ebx, [dd_input]
    mov eax, [dd_skip]
    mov edx, [dd_input_path]
    call dd_seek
    mov ebx, [dd_output]
    mov eax, [dd_to_seek]
    mov edx, [dd_output_path]
    call dd_seek
    call dd_now
    mov esi, eax                    # edi:esi = when it began
    mov edi, edx
    call dd_copy
    call dd_now
    sub eax, esi
    sbb edx, edi
    mov esi, eax
    mov edi, edx
    call dd_tell
    mov eax, [dd_status]
    ret

# -- words -----------------------------------------------------------------------------------

# Take one word of the command. In: eax.
dd_set:
    push ebx
    push esi
    mov esi, eax
    mov ebx, offset dd_words
.Lset_look:
    mov edx, [ebx]
    test edx, edx
    jz usage
    mov eax, esi
.Lset_letter:
    mov cl, [edx]
    test cl, cl
    jz .Lset_found
    cmp cl, [eax]
    jne .Lset_next
    inc eax
    inc edx
    jmp .Lset_letter
.Lset_next:
    add ebx, 12
    jmp .Lset_look
.Lset_found:
    cmp dword ptr [ebx + 8], 0
    je .Lset_store
    call dd_number
.Lset_store:
    mov edx, [ebx + 4]
    mov [edx], eax
    pop esi
    pop ebx
    ret

# Read a number, with K or M behind it. In: eax = text, which is changed. Out: eax.
dd_number:
    push ebx
    push esi
    mov esi, eax
    call text_length
    xor ebx, ebx                    # how far to shift
    test eax, eax
    jz usage
    mov cl, [esi + eax - 1]
    cmp cl, 'K'
    je .Lnumber_k
    cmp cl, 'M'
    jne .Lnumber_plain
    add ebx, 10
.Lnumber_k:
    add ebx, 10
    mov byte ptr [esi + eax - 1], 0
.Lnumber_plain:
    mov eax, esi
    call want_number
    mov ecx, ebx
    mov edx, eax
    shl eax, cl
    mov ebx, eax
    shr ebx, cl
    cmp ebx, edx
    jne usage                       # more than 32 bits
    pop esi
    pop ebx
    ret

# Open a file. In: eax = path or 0, ecx = O_. Out: eax = file, -1 for no path; flags as test has
# them.
dd_open:
    test eax, eax
    jz .Lopen_none
    push ebx
    mov ebx, eax
    SYSTEM_CALL open
    mov edx, ebx
    test eax, eax
    js fail
    pop ebx
    test eax, eax
    ret
.Lopen_none:
    or eax, -1
    ret

# Set a file's position. In: ebx = file, eax = blocks, edx = its path.
dd_seek:
    test eax, eax
    jz .Lseek_done
    push esi
    push edi
    push edx
    mul dword ptr [dd_size]
    mov ecx, edx
    mov edx, eax
    mov esi, offset dd_position
    mov edi, SEEK_SET
    SYSTEM_CALL llseek
    pop edx
    test eax, eax
    js .Lseek_failed
    pop edi
    pop esi
.Lseek_done:
    ret
.Lseek_failed:
    test edx, edx
    jnz fail
    mov edx, offset dd_input_name
    jmp fail

# -- copying ---------------------------------------------------------------------------------

# Copy until the end, or as many blocks as are wanted.
dd_copy:
    push esi
.Lcopy_block:
    cmp dword ptr [dd_count], 0
    je .Lcopy_done
    mov ebx, [dd_input]
    mov ecx, offset dd_buffer
    mov edx, [dd_size]
    SYSTEM_CALL read
    test eax, eax
    jz .Lcopy_done
    mov edx, [dd_input_path]
    js .Lcopy_failed
    mov esi, eax
    call dd_write
    test eax, eax
    mov edx, [dd_output_path]
    js .Lcopy_failed
    add [dd_bytes], esi
    adc dword ptr [dd_bytes + 4], 0
    dec dword ptr [dd_count]
    jmp .Lcopy_block
.Lcopy_done:
    mov ebx, [dd_output]
    test ebx, ebx
    js .Lcopy_out
    SYSTEM_CALL fsync               # -EINVAL for what is no disk
.Lcopy_out:
    pop esi
    ret
.Lcopy_failed:
    test edx, edx
    jnz .Lcopy_complain
    mov edx, offset dd_input_name
.Lcopy_complain:
    call complain
    mov dword ptr [dd_status], STATUS_FAILED
    jmp .Lcopy_done

# Write a block, in as many pieces as it takes. In: esi = bytes. Out: eax = 0 or more, or -errno.
dd_write:
    push esi
    push edi
    mov ebx, [dd_output]
    mov edi, offset dd_buffer
    xor eax, eax
    test ebx, ebx
    js .Lwrite_done
.Lwrite_piece:
    mov ecx, edi
    mov edx, esi
    SYSTEM_CALL write
    test eax, eax
    js .Lwrite_done
    add edi, eax
    sub esi, eax
    jnz .Lwrite_piece
.Lwrite_done:
    pop edi
    pop esi
    ret

# -- telling ---------------------------------------------------------------------------------

# Read the clock. Out: edx:eax = us since boot.
dd_now:
    mov ebx, CLOCK_MONOTONIC
    mov ecx, offset dd_clock
    SYSTEM_CALL clock_gettime
    mov eax, [dd_clock + 4]
    xor edx, edx
    mov ecx, 1000
    div ecx
    mov ecx, eax
    mov eax, 1000000
    mul dword ptr [dd_clock]
    add eax, ecx
    adc edx, 0
    ret

# Say how much was copied, how long it took, and how fast that was. In: edi:esi = us.
dd_tell:
    call to_stderr
    mov eax, [dd_bytes]
    mov edx, [dd_bytes + 4]
    mov ecx, 1 << 20
    cmp edx, ecx
    jae .Ltell_many                 # more than fits into the words below
    test edx, edx
    jnz .Ltell_many
    call put_decimal
    PRINT " bytes, "
.Ltell_time:
    test edi, edi
    jnz .Ltell_end
    mov eax, esi
    call put_decimal
    PRINT " us, "
    mov eax, [dd_bytes]
    mov edx, [dd_bytes + 4]
    test esi, esi
    jz .Ltell_end
    cmp edx, esi
    jae .Ltell_end
    div esi                         # bytes a us are MB a second
    call put_decimal
    PRINT " MB/s"
.Ltell_end:
    PRINT "\n"
    jmp to_stdout
.Ltell_many:
    shrd eax, edx, 20
    call put_decimal
    PRINT " MB, "
    jmp .Ltell_time

.section .rodata
.p2align 2
dd_words:                           # text, where its value goes, 1 for a number
    .long .Lword_if, dd_input_path, 0, .Lword_of, dd_output_path, 0
    .long .Lword_bs, dd_size, 1, .Lword_count, dd_count, 1
    .long .Lword_skip, dd_skip, 1, .Lword_seek, dd_to_seek, 1
    .long 0
.Lword_if: .asciz "if="
.Lword_of: .asciz "of="
.Lword_bs: .asciz "bs="
.Lword_count: .asciz "count="
.Lword_skip: .asciz "skip="
.Lword_seek: .asciz "seek="
dd_input_name:
    .asciz "standard input"

.section .bss
.p2align 12                         # whole pages: so a disk's sectors come without a copy
dd_buffer:
    .space DD_SIZE_MAX
dd_input_path:
    .space 4
dd_output_path:
    .space 4
dd_size:
    .space 4
dd_count:
    .space 4
dd_skip:
    .space 4
dd_to_seek:
    .space 4
dd_input:
    .space 4                        # 0: the standard input
dd_output:
    .space 4                        # -1: nowhere
dd_bytes:
    .space 8
dd_position:
    .space 8
dd_clock:
    .space 8
dd_status:
    .space 4
