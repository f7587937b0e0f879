# SPDX-License-Identifier: GPL-2.0-or-later
#
# Pipes: a ring of bytes in a page, with two files, one for each end.
#
#   0 PIPE_WRITTEN   4 PIPE_READ   8 PIPE_ENDS   ...   PIPE_BYTES: PIPE_SIZE bytes, to the end
#
# The counts of bytes written and read only grow and wrap at 2^32; a byte lies at count % PIPE_SIZE.
# PIPE_ENDS has a bit for each end that is still open: the end of the file is an empty pipe that
# nobody can write to; a pipe that nobody can read refuses to be written. With the last end the page
# goes. Whoever changes anything wakes all who sleep on the page; they look again.

.equ PIPE_WRITTEN, 0
.equ PIPE_READ, 4
.equ PIPE_ENDS, 8                   # RIGHT_READ and RIGHT_WRITE
.equ PIPE_SIZE, PAGE_SIZE / 2
.equ PIPE_BYTES, PAGE_SIZE - PIPE_SIZE

.section .text

# pipe(address): two words come to stand there: the end to read, the end to write.
sys_pipe:
    push esi
    push edi
    call page_alloc
    test eax, eax
    jz .Lpipe_no_page
    mov esi, eax
    mov dword ptr [esi + PIPE_ENDS], RIGHT_READ | RIGHT_WRITE
    mov eax, RIGHT_READ
    call pipe_open_end
    test eax, eax
    js .Lpipe_none
    push eax
    mov eax, RIGHT_WRITE
    call pipe_open_end
    pop edi
    test eax, eax
    js .Lpipe_one
    push eax
    push edi
    mov eax, [ebx + FRAME_EBX]      # out of the stack: the end to read, the end to write
    mov edx, esp
    mov ecx, 8
    call user_copy_out
    pop edx
    pop ecx
    test eax, eax
    js .Lpipe_both
    pop edi
    pop esi
    ret
.Lpipe_both:
    push eax
    push edx
    mov eax, ecx
    call pipe_close_end
    pop eax
    call pipe_close_end             # and the page is gone
    pop eax
    jmp .Lpipe_out
.Lpipe_one:
    and dword ptr [esi + PIPE_ENDS], RIGHT_READ     # there never was the other end
    push eax
    mov eax, edi
    call pipe_close_end
    pop eax
    jmp .Lpipe_out
.Lpipe_none:
    push eax
    mov eax, esi
    call page_free
    pop eax
.Lpipe_out:
    pop edi
    pop esi
    ret
.Lpipe_no_page:
    mov eax, -ENOMEM
    jmp .Lpipe_out

# Make a file and a descriptor for an end. In: eax = right, esi = page. Out: eax = descriptor or
# -errno; then nothing is left of it.
pipe_open_end:
    push ebx
    mov edx, eax
    mov eax, offset pipe_kind
    call file_new
    test eax, eax
    jz .Lpipe_no_file
    mov [eax + FILE_OBJECT], esi
    mov ebx, eax
    call file_describe
    test eax, eax
    jns .Lpipe_described
    mov dword ptr [ebx + FILE_REFERENCES], 0
.Lpipe_described:
    pop ebx
    ret
.Lpipe_no_file:
    mov eax, -ENFILE
    pop ebx
    ret

# In: eax = a descriptor of the current process.
pipe_close_end:
    call file_of
    mov dword ptr [edx], 0
    jmp file_release

# -- the kind of file ------------------------------------------------------------------------

# Read what there is, up to ecx bytes; wait only where there is nothing.
pipe_read:
    push ebx
    push esi
    push edi
    push ebp
    mov ebx, [eax + FILE_OBJECT]
    mov edi, edx                    # the program's address
    mov ebp, ecx                    # bytes wanted
    xor esi, esi                    # bytes read
.Lpipe_read_next:
    mov eax, [ebx + PIPE_WRITTEN]
    sub eax, [ebx + PIPE_READ]
    jnz .Lpipe_read_some
    test esi, esi
    jnz .Lpipe_read_done
    test dword ptr [ebx + PIPE_ENDS], RIGHT_WRITE
    jz .Lpipe_read_done             # the end of the file
    mov eax, ebx
    xor edx, edx
    call process_sleep
    test eax, eax
    jz .Lpipe_read_next
    mov esi, -EINTR
    jmp .Lpipe_read_done
.Lpipe_read_some:
    mov ecx, [ebx + PIPE_READ]
    call pipe_piece
    lea edx, [ebx + edx + PIPE_BYTES]
    push ecx
    mov eax, edi
    call user_copy_out
    pop ecx
    test eax, eax
    js .Lpipe_read_bad
    add [ebx + PIPE_READ], ecx
    add edi, ecx
    add esi, ecx
    sub ebp, ecx
    mov eax, ebx
    call process_wake
    test ebp, ebp
    jnz .Lpipe_read_next
.Lpipe_read_done:
    mov eax, esi
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lpipe_read_bad:
    test esi, esi
    jnz .Lpipe_read_done
    mov esi, eax
    jmp .Lpipe_read_done

# Write all of ecx bytes, waiting for room as often as it takes.
pipe_write:
    push ebx
    push esi
    push edi
    push ebp
    mov ebx, [eax + FILE_OBJECT]
    mov edi, edx
    mov ebp, ecx
    xor esi, esi                    # bytes written
.Lpipe_write_next:
    test dword ptr [ebx + PIPE_ENDS], RIGHT_READ
    jz .Lpipe_write_broken
    mov eax, PIPE_SIZE
    sub eax, [ebx + PIPE_WRITTEN]
    add eax, [ebx + PIPE_READ]
    jnz .Lpipe_write_some
    mov eax, ebx
    xor edx, edx
    call process_sleep
    test eax, eax
    jz .Lpipe_write_next
    mov eax, -EINTR
    jmp .Lpipe_write_failed
.Lpipe_write_some:
    mov ecx, [ebx + PIPE_WRITTEN]
    call pipe_piece
    lea eax, [ebx + edx + PIPE_BYTES]
    push ecx
    mov edx, edi
    call user_copy_in
    pop ecx
    test eax, eax
    js .Lpipe_write_failed
    add [ebx + PIPE_WRITTEN], ecx
    add edi, ecx
    add esi, ecx
    sub ebp, ecx
    mov eax, ebx
    call process_wake
    test ebp, ebp
    jnz .Lpipe_write_next
.Lpipe_write_done:
    mov eax, esi
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lpipe_write_broken:
    mov eax, -EPIPE
.Lpipe_write_failed:
    test esi, esi
    jnz .Lpipe_write_done           # what was written counts
    mov esi, eax
    jmp .Lpipe_write_done

# Say how many bytes can be copied at once. In: eax = bytes that there are, ebp = bytes wanted,
# ecx = the count where they begin. Out: ecx = bytes, edx = where in the ring they begin.
pipe_piece:
    mov edx, ecx
    and edx, PIPE_SIZE - 1
    mov ecx, PIPE_SIZE
    sub ecx, edx                    # up to the end of the ring
    cmp ecx, eax
    jbe .Lpiece_within
    mov ecx, eax
.Lpiece_within:
    cmp ecx, ebp
    jbe .Lpiece_done
    mov ecx, ebp
.Lpiece_done:
    ret

# An end is closed for good. In: eax = file.
pipe_close:
    mov edx, [eax + FILE_RIGHTS]
    mov eax, [eax + FILE_OBJECT]
    not edx
    and [eax + PIPE_ENDS], edx
    jz page_free                    # both are
    jmp process_wake

.section .rodata
.p2align 2
pipe_kind:
    .long pipe_read, pipe_write, pipe_close, file_no_ioctl, file_no_size, file_no_sync
