# SPDX-License-Identifier: GPL-2.0-or-later
#
# Files: what a descriptor of a process stands for.
#
#   process                     file                         kind: routines
#   PROCESS_FILES[0] ---------> references, rights,  ------> read write close ioctl size sync
#   PROCESS_FILES[1] --------/  object, position             console_kind, pipe_kind, ramdisk_kind,
#                                                            disk_kind, fat_kind
#
# fork and dup copy the pointer and count it; so a parent and its child read on from one position.
# The last close gives the file back, and tells its kind.
#
# A routine of a kind: in: eax = file; for read and write edx = an address of the program, ecx =
# bytes, at least 1; for ioctl edx = command, ecx = argument. Out: eax = result, or -errno; for size
# edx:eax = bytes, CF set where such a file has no positions.
#
# Everything here holds the kernel lock. A routine may sleep: its own descriptor keeps the file.

.equ FILES_MAX, 16                  # of a process
.equ SIZEOF_PROCESS_FILES, 4 * FILES_MAX

.equ FILE_REFERENCES, 0             # 0: free
.equ FILE_KIND, 4
.equ FILE_RIGHTS, 8
.equ FILE_OBJECT, 12                # of a pipe its page, of a RAM disk's file its bytes, a disk
.equ FILE_SIZE, 16                  # of a RAM disk's file, and of FAT's
.equ FILE_POSITION, 20              # two words; of files that can be positioned
.equ FILE_GENERATION, 28            # of the disk
.equ FILE_FIRST_CLUSTER, 32         # of FAT's files,
.equ FILE_CLUSTER, 36               # one that was found in the chain,
.equ FILE_CLUSTER_INDEX, 40         # and which it is
.equ SIZEOF_FILE, 44
.equ FILE_COUNT, 128                # of all processes

.equ RIGHT_READ, 1
.equ RIGHT_WRITE, 2

.equ KIND_READ, 0
.equ KIND_WRITE, 4
.equ KIND_CLOSE, 8
.equ KIND_IOCTL, 12
.equ KIND_SIZE, 16
.equ KIND_SYNC, 20

.section .text

# -- processes -------------------------------------------------------------------------------

# Give a new process the console as 0, 1 and 2. In: eax = process. Out: eax = 0 or -ENFILE.
files_open_console:
    push ebx
    mov ebx, eax
    mov eax, offset console_kind
    mov edx, RIGHT_READ | RIGHT_WRITE
    call file_new
    test eax, eax
    jz .Lopen_console_none
    mov dword ptr [eax + FILE_REFERENCES], 3
    mov [ebx + PROCESS_FILES], eax
    mov [ebx + PROCESS_FILES + 4], eax
    mov [ebx + PROCESS_FILES + 8], eax
    xor eax, eax
    pop ebx
    ret
.Lopen_console_none:
    mov eax, -ENFILE
    pop ebx
    ret

# Share a parent's files with its child. In: eax = child, edx = parent.
files_copy:
    push ebx
    xor ecx, ecx
.Lfiles_copy_next:
    mov ebx, [edx + PROCESS_FILES + ecx * 4]
    mov [eax + PROCESS_FILES + ecx * 4], ebx
    test ebx, ebx
    jz .Lfiles_copy_none
    inc dword ptr [ebx + FILE_REFERENCES]
.Lfiles_copy_none:
    inc ecx
    cmp ecx, FILES_MAX
    jb .Lfiles_copy_next
    pop ebx
    ret

# Close what a process has open. In: eax = process.
files_close_all:
    push ebx
    push esi
    mov ebx, eax
    xor esi, esi
.Lclose_all_next:
    xor eax, eax
    xchg eax, [ebx + PROCESS_FILES + esi * 4]
    test eax, eax
    jz .Lclose_all_none
    call file_release
.Lclose_all_none:
    inc esi
    cmp esi, FILES_MAX
    jb .Lclose_all_next
    pop esi
    pop ebx
    ret

# -- files and descriptors -------------------------------------------------------------------

# Take a free file. In: eax = kind, edx = rights. Out: eax = file, with one reference; 0 for none.
file_new:
    mov ecx, offset files
.Lfile_new_next:
    cmp dword ptr [ecx + FILE_REFERENCES], 0
    je .Lfile_new_found
    add ecx, SIZEOF_FILE
    cmp ecx, offset files_end
    jb .Lfile_new_next
    xor eax, eax
    ret
.Lfile_new_found:
    mov [ecx + FILE_KIND], eax
    mov [ecx + FILE_RIGHTS], edx
    mov dword ptr [ecx + FILE_POSITION], 0
    mov dword ptr [ecx + FILE_POSITION + 4], 0
    mov dword ptr [ecx + FILE_REFERENCES], 1
    mov eax, ecx
    ret

# Drop a reference to a file. In: eax = file.
file_release:
    dec dword ptr [eax + FILE_REFERENCES]
    jnz .Lrelease_done
    mov edx, [eax + FILE_KIND]
    jmp dword ptr [edx + KIND_CLOSE]
.Lrelease_done:
    ret

# The close of kinds that keep nothing.
file_close_nothing:
    ret

# The ioctl of kinds that have none.
file_no_ioctl:
    mov eax, -ENOTTY
    ret

# The size of kinds that have no positions.
file_no_size:
    stc
    ret

# The sync of kinds that keep nothing back.
file_no_sync:
    mov eax, -EINVAL
    ret

# Look a descriptor up. In: eax = descriptor. Out: eax = file or 0, edx = where the pointer stands.
file_of:
    cmp eax, FILES_MAX
    jae .Lfile_of_none
    mov edx, eax
    call process_current
    lea edx, [eax + PROCESS_FILES + edx * 4]
    mov eax, [edx]
    ret
.Lfile_of_none:
    xor eax, eax
    ret

# Give a file the lowest free descriptor. In: eax = file. Out: eax = descriptor or -EMFILE.
file_describe:
    push ebx
    mov ebx, eax
    call process_current
    xor ecx, ecx
.Ldescribe_next:
    cmp dword ptr [eax + PROCESS_FILES + ecx * 4], 0
    je .Ldescribe_found
    inc ecx
    cmp ecx, FILES_MAX
    jb .Ldescribe_next
    mov eax, -EMFILE
    pop ebx
    ret
.Ldescribe_found:
    mov [eax + PROCESS_FILES + ecx * 4], ebx
    mov eax, ecx
    pop ebx
    ret

# -- system calls: in: ebx = frame; out: eax = result ----------------------------------------

# read(file, address, bytes)
sys_read:
    push esi
    mov esi, RIGHT_READ
    mov ecx, KIND_READ
    jmp .Lread_or_write

# write(file, address, bytes)
sys_write:
    push esi
    mov esi, RIGHT_WRITE
    mov ecx, KIND_WRITE
.Lread_or_write:
    push ecx
    mov eax, [ebx + FRAME_EBX]
    call file_of
    pop edx                         # which routine of the kind
    test eax, eax
    jz .Lread_bad
    test [eax + FILE_RIGHTS], esi
    jz .Lread_bad
    mov esi, [eax + FILE_KIND]
    add esi, edx
    mov edx, [ebx + FRAME_ECX]
    mov ecx, [ebx + FRAME_EDX]
    test ecx, ecx
    jz .Lread_nothing
    js .Lread_invalid
    call dword ptr [esi]
    pop esi
    ret
.Lread_bad:
    mov eax, -EBADF
    pop esi
    ret
.Lread_invalid:
    mov eax, -EINVAL
    pop esi
    ret
.Lread_nothing:
    xor eax, eax
    pop esi
    ret

# ioctl(file, command, argument)
sys_ioctl:
    mov eax, [ebx + FRAME_EBX]
    call file_of
    test eax, eax
    jz file_bad
    push esi
    mov esi, [eax + FILE_KIND]
    mov edx, [ebx + FRAME_ECX]
    mov ecx, [ebx + FRAME_EDX]
    call dword ptr [esi + KIND_IOCTL]
    pop esi
    ret

# lseek(file, offset, from where) -> position
sys_lseek:
    mov eax, [ebx + FRAME_ECX]
    cdq
    mov ecx, [ebx + FRAME_EDX]
    call file_seek
    test edx, edx
    js .Llseek_done                 # -errno
    jnz .Llseek_too_far
    test eax, eax
    jns .Llseek_done
.Llseek_too_far:
    mov eax, -EOVERFLOW
.Llseek_done:
    ret

# _llseek(file, upper word of the offset, lower word, address for the position, from where)
sys_llseek:
    mov eax, [ebx + FRAME_EDX]
    mov edx, [ebx + FRAME_ECX]
    mov ecx, [ebx + FRAME_EDI]
    call file_seek
    test edx, edx
    js .Lllseek_done
    push edx
    push eax
    mov eax, [ebx + FRAME_ESI]
    mov edx, esp
    mov ecx, 8
    call user_copy_out
    add esp, 8
.Lllseek_done:
    ret

# Set a file's position. In: edx:eax = offset, ecx = from where, ebx = frame, with the descriptor.
# Out: edx:eax = position, or -errno.
file_seek:
    push esi
    push edi
    push ebp
    mov edi, eax
    mov ebp, edx
    push ecx
    mov eax, [ebx + FRAME_EBX]
    call file_of
    mov esi, eax
    pop ecx
    mov eax, -EBADF
    test esi, esi
    jz .Lseek_refused
    push ecx
    mov eax, esi
    mov edx, [esi + FILE_KIND]
    call dword ptr [edx + KIND_SIZE]
    pop ecx
    jc .Lseek_no_positions
    cmp ecx, SEEK_END
    je .Lseek_add
    mov eax, [esi + FILE_POSITION]
    mov edx, [esi + FILE_POSITION + 4]
    cmp ecx, SEEK_CUR
    je .Lseek_add
    xor eax, eax
    xor edx, edx
    cmp ecx, SEEK_SET
    jne .Lseek_invalid
.Lseek_add:
    add eax, edi
    adc edx, ebp
    js .Lseek_invalid
    mov [esi + FILE_POSITION], eax
    mov [esi + FILE_POSITION + 4], edx
    jmp .Lseek_out
.Lseek_no_positions:
    mov eax, -ESPIPE
    jmp .Lseek_refused
.Lseek_invalid:
    mov eax, -EINVAL
.Lseek_refused:
    cdq
.Lseek_out:
    pop ebp
    pop edi
    pop esi
    ret

# fsync(file)
sys_fsync:
    mov eax, [ebx + FRAME_EBX]
    call file_of
    test eax, eax
    jz file_bad
    mov edx, [eax + FILE_KIND]
    jmp dword ptr [edx + KIND_SYNC]

# close(file)
sys_close:
    mov eax, [ebx + FRAME_EBX]
    call file_of
    test eax, eax
    jz file_bad
    mov dword ptr [edx], 0
    call file_release
    xor eax, eax
    ret
file_bad:
    mov eax, -EBADF
    ret

# dup(file)
sys_dup:
    mov eax, [ebx + FRAME_EBX]
    call file_of
    test eax, eax
    jz file_bad
    push eax
    call file_describe
    pop edx
    test eax, eax
    js .Ldup_done
    inc dword ptr [edx + FILE_REFERENCES]
.Ldup_done:
    ret

# dup2(file, wanted): what was open as `wanted` is closed.
sys_dup2:
    mov eax, [ebx + FRAME_ECX]
    cmp eax, FILES_MAX
    jae file_bad
    mov eax, [ebx + FRAME_EBX]
    call file_of
    test eax, eax
    jz file_bad
    inc dword ptr [eax + FILE_REFERENCES]
    push eax
    mov eax, [ebx + FRAME_ECX]
    call file_of
    pop ecx
    mov [edx], ecx
    test eax, eax
    jz .Ldup2_done
    call file_release
.Ldup2_done:
    mov eax, [ebx + FRAME_ECX]
    ret

# open(path, flags): the console, a disk, a file of the first disk, or one of the RAM disk for
# reading.
sys_open:
    push esi
    push edi
    sub esp, PATH_MAX
    mov eax, esp
    mov edx, [ebx + FRAME_EBX]
    mov ecx, PATH_MAX
    call user_copy_text
    test eax, eax
    js .Lopen_done
    mov esi, [ebx + FRAME_ECX]
    cmp esi, O_RDWR
    ja .Lopen_invalid
    inc esi                         # O_RDONLY 0, O_WRONLY 1, O_RDWR 2: now bits of rights
    mov edi, esp
    mov eax, edi
    call file_skip_slash
    mov edi, eax
    mov edx, offset file_console
    call texts_are_equal
    test eax, eax
    jz .Lopen_disk
    mov eax, offset console_kind
    mov edx, esi
    call file_new
    test eax, eax
    jz .Lopen_too_many
    jmp .Lopen_describe
.Lopen_disk:
    mov eax, edi
    mov edx, offset file_disks
    call text_behind
    jc .Lopen_fat
    call disk_open
    jnc .Lopen_describe
    jmp .Lopen_done
.Lopen_fat:
    mov eax, edi
    call fat_path
    jc .Lopen_ramdisk
    call fat_open
    jnc .Lopen_describe
    jmp .Lopen_done
.Lopen_ramdisk:
    mov eax, edi
    call ramdisk_find
    test eax, eax
    jz .Lopen_missing
    cmp esi, RIGHT_READ
    jne .Lopen_read_only
    mov edi, eax
    mov esi, edx
    mov eax, offset ramdisk_kind
    mov edx, RIGHT_READ
    call file_new
    test eax, eax
    jz .Lopen_too_many
    mov [eax + FILE_OBJECT], edi
    mov [eax + FILE_SIZE], esi
.Lopen_describe:
    mov esi, eax
    call file_describe
    test eax, eax
    jns .Lopen_done
    mov edi, eax
    mov eax, esi
    call file_release
    mov eax, edi
.Lopen_done:
    add esp, PATH_MAX
    pop edi
    pop esi
    ret
.Lopen_invalid:
    mov eax, -EINVAL
    jmp .Lopen_done
.Lopen_missing:
    mov eax, -ENOENT
    jmp .Lopen_done
.Lopen_read_only:
    mov eax, -EROFS
    jmp .Lopen_done
.Lopen_too_many:
    mov eax, -ENFILE
    jmp .Lopen_done

# Does a text begin with another one? In: eax, edx = the other one. Out: eax = what stands behind
# it; CF set where it does not.
text_behind:
    cmp byte ptr [edx], 0
    je .Lbehind_yes                 # CF is clear
    mov cl, [eax]
    cmp cl, [edx]
    jne .Lbehind_no
    inc eax
    inc edx
    jmp text_behind
.Lbehind_no:
    stc
.Lbehind_yes:
    ret

# In: eax = a path. Out: eax = the same behind the slashes that it begins with.
file_skip_slash:
    cmp byte ptr [eax], '/'
    jne .Lskip_done
    inc eax
    jmp file_skip_slash
.Lskip_done:
    ret

.section .rodata
file_console:
    .asciz "dev/console"
file_disks:
    .asciz "dev/xvd"

.section .bss
.p2align 2
files:
    .space FILE_COUNT * SIZEOF_FILE
files_end:
