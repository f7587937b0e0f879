# SPDX-License-Identifier: GPL-2.0-or-later
#
# The RAM disk: files to read, in an archive that the domain builder loads into memory (start_info's
# mod_start and mod_len). Its format is ustar (POSIX): each file a header of 512 bytes and then its
# bytes, filled up to 512; a header of zeros ends it.
#
#   0 name, 100 bytes   100 mode, octal digits   124 size, octal digits   156 kind   257 "ustar"
#
# Nothing of the archive is believed: a header that makes no sense, or whose file does not lie
# within the archive, ends it there.

.equ USTAR_NAME, 0
.equ USTAR_NAME_SIZE, 100
.equ USTAR_MODE, 100
.equ USTAR_MODE_DIGITS, 8
.equ USTAR_SIZE, 124
.equ USTAR_SIZE_DIGITS, 12
.equ USTAR_KIND, 156                # '0' or 0: a file
.equ USTAR_MAGIC, 257
.equ USTAR_BLOCK, 512

.section .text

# Find the archive, and say what it holds.
ramdisk_open:
    push ebx
    push esi
    mov edx, [start_info]
    mov eax, [edx + START_INFO_MOD_START]
    mov ecx, [edx + START_INFO_MOD_LEN]
    mov [ramdisk], eax
    add ecx, eax
    mov [ramdisk_end], ecx
    xor ebx, ebx                    # files
    xor esi, esi                    # bytes
    xor eax, eax
.Lramdisk_count:
    call ramdisk_next
    test eax, eax
    jz .Lramdisk_counted
    inc ebx
    add esi, edx
    jmp .Lramdisk_count
.Lramdisk_counted:
    PRINT "ramdisk: "
    mov eax, ebx
    call print_decimal
    PRINT " files, "
    mov eax, esi
    call print_decimal
    PRINT " bytes\n"
    pop esi
    pop ebx
    ret

# Go to the next file. In: eax = a header, or 0 for the first. Out: eax = header or 0, edx = size.
ramdisk_next:
    push ebx
    mov ebx, [ramdisk]
    test eax, eax
    jz .Lnext_look
    mov ebx, eax
.Lnext_skip:
    mov eax, ebx
    call ramdisk_size               # known to be good: the header was given out, or looked at
    lea ebx, [ebx + eax + 2 * USTAR_BLOCK - 1]
    sub ebx, [ramdisk]
    and ebx, -USTAR_BLOCK
    add ebx, [ramdisk]
.Lnext_look:
    mov eax, [ramdisk_end]
    sub eax, ebx
    jb .Lnext_none
    cmp eax, USTAR_BLOCK
    jb .Lnext_none
    cmp dword ptr [ebx + USTAR_MAGIC], 0x61747375   # "usta"
    jne .Lnext_none
    mov eax, ebx
    call ramdisk_size
    mov edx, [ramdisk_end]
    sub edx, ebx
    sub edx, USTAR_BLOCK
    cmp eax, edx
    ja .Lnext_none
    mov dl, [ebx + USTAR_KIND]
    test dl, dl
    jz .Lnext_file
    cmp dl, '0'
    jne .Lnext_skip
.Lnext_file:
    mov edx, eax
    mov eax, ebx
    pop ebx
    ret
.Lnext_none:
    xor eax, eax
    xor edx, edx
    pop ebx
    ret

# In: eax = header. Out: eax = size of the file, -1 where that is no number.
ramdisk_size:
    add eax, USTAR_SIZE
    mov edx, USTAR_SIZE_DIGITS
    # and on

# Read octal digits, which a blank or a 0 may end. In: eax = address, edx = how many. Out: eax = the
# number; -1 where it is none, or has more than 31 bits.
ramdisk_number:
    push ebx
    push esi
    mov esi, eax
    xor eax, eax
.Lnumber_digit:
    movzx ebx, byte ptr [esi]
    inc esi
    test ebx, ebx
    jz .Lnumber_end
    cmp ebx, ' '
    je .Lnumber_end
    sub ebx, '0'
    cmp ebx, 7
    ja .Lnumber_none
    test eax, 0xF0000000
    jnz .Lnumber_none
    shl eax, 3
    or eax, ebx
    dec edx
    jnz .Lnumber_digit
.Lnumber_end:
    pop esi
    pop ebx
    ret
.Lnumber_none:
    mov eax, -1
    pop esi
    pop ebx
    ret

# Find a file. In: eax = its path, which may begin with a slash. Out: eax = its bytes or 0, edx =
# size.
ramdisk_find:
    push ebx
    push esi
    call file_skip_slash
    mov esi, eax
    xor ebx, ebx
.Lfind_next:
    mov eax, ebx
    call ramdisk_next
    test eax, eax
    jz .Lfind_done
    mov ebx, eax
    push edx
    mov edx, esi
    call ramdisk_name_is
    pop edx
    test eax, eax
    jz .Lfind_next
    lea eax, [ebx + USTAR_BLOCK]
.Lfind_done:
    pop esi
    pop ebx
    ret

# Compare a name, which ends in 0 or at its full size. In: eax = header, edx = text. Out: eax = 1 or
# 0.
ramdisk_name_is:
    push ebx
    xor ecx, ecx
.Lname_next:
    cmp ecx, USTAR_NAME_SIZE
    je .Lname_at_end
    mov bl, [eax + ecx]
    cmp bl, [edx + ecx]
    jne .Lname_differs
    inc ecx
    test bl, bl
    jnz .Lname_next
    mov eax, 1
    pop ebx
    ret
.Lname_at_end:
    cmp byte ptr [edx + ecx], 0
    jne .Lname_differs
    mov eax, 1
    pop ebx
    ret
.Lname_differs:
    xor eax, eax
    pop ebx
    ret

# directory(path, address, bytes, first): entries from number `first` on, as many as there is room
# for. The RAM disk has the root directory alone.
sys_directory:
    push esi
    push edi
    sub esp, PATH_MAX
    mov eax, esp
    mov edx, [ebx + FRAME_EBX]
    mov ecx, PATH_MAX
    call user_copy_text
    test eax, eax
    js .Lsys_directory_out
    mov eax, esp
    call file_skip_slash
    mov esi, eax
    call fat_path
    jc .Lsys_directory_ramdisk
    call fat_directory
    jmp .Lsys_directory_out
.Lsys_directory_ramdisk:
    mov eax, -ENOENT
    cmp byte ptr [esi], 0
    jne .Lsys_directory_out
    call ramdisk_directory
.Lsys_directory_out:
    add esp, PATH_MAX
    pop edi
    pop esi
    ret

# List the RAM disk. In: ebx = frame. Out: eax = bytes or -errno.
ramdisk_directory:
    push esi
    push edi
    push ebp
    sub esp, SIZEOF_DIRECTORY
    mov edi, [ebx + FRAME_ESI]      # how many to pass over
    xor ebp, ebp                    # bytes given
    xor esi, esi
.Ldirectory_next:
    mov eax, esi
    call ramdisk_next
    test eax, eax
    jz .Ldirectory_done
    mov esi, eax
    sub edi, 1
    jae .Ldirectory_next
    xor edi, edi
    mov eax, [ebx + FRAME_EDX]
    sub eax, ebp
    cmp eax, SIZEOF_DIRECTORY
    jb .Ldirectory_done
    mov ecx, esp
    call ramdisk_describe
    mov eax, [ebx + FRAME_ECX]
    add eax, ebp
    mov edx, esp
    mov ecx, SIZEOF_DIRECTORY
    call user_copy_out
    test eax, eax
    js .Ldirectory_out
    add ebp, SIZEOF_DIRECTORY
    jmp .Ldirectory_next
.Ldirectory_done:
    mov eax, ebp
.Ldirectory_out:
    add esp, SIZEOF_DIRECTORY
    pop ebp
    pop edi
    pop esi
    ret

# Write an entry of the directory. In: esi = header, ecx = where to, edx = size of the file.
ramdisk_describe:
    push esi
    push edi
    mov edi, ecx
    mov [edi + DIRECTORY_BYTES], edx
    lea eax, [esi + USTAR_MODE]
    mov edx, USTAR_MODE_DIGITS
    call ramdisk_number
    mov [edi + DIRECTORY_MODE], eax
    add edi, DIRECTORY_NAME
    mov ecx, USTAR_NAME_SIZE / 4
    rep movsd
    xor eax, eax
    stosd                           # the 0 behind the longest name
    pop edi
    pop esi
    ret

# -- the kind of file ------------------------------------------------------------------------

# Read on from the file's position.
ramdisk_read:
    push ebx
    mov ebx, eax
    xor eax, eax
    cmp [ebx + FILE_POSITION + 4], eax
    jne .Lramdisk_read_done         # far behind the end
    mov eax, [ebx + FILE_SIZE]
    sub eax, [ebx + FILE_POSITION]
    ja .Lramdisk_read_some
    xor eax, eax
.Lramdisk_read_some:
    cmp ecx, eax
    jbe .Lramdisk_read_within
    mov ecx, eax
.Lramdisk_read_within:
    push ecx
    mov eax, edx
    mov edx, [ebx + FILE_OBJECT]
    add edx, [ebx + FILE_POSITION]
    call user_copy_out
    pop ecx
    test eax, eax
    js .Lramdisk_read_done
    add [ebx + FILE_POSITION], ecx
    mov eax, ecx
.Lramdisk_read_done:
    pop ebx
    ret

# In: eax = file. Out: edx:eax = bytes; CF is clear.
ramdisk_file_size:
    mov eax, [eax + FILE_SIZE]
    xor edx, edx
    ret

# Never called: such a file is opened for reading alone.
ramdisk_write:
    mov eax, -EROFS
    ret

.section .rodata
.p2align 2
ramdisk_kind:
    .long ramdisk_read, ramdisk_write, file_close_nothing, file_no_ioctl, ramdisk_file_size
    .long file_no_sync

.section .bss
.p2align 2
ramdisk:
    .space 4                        # the first header
ramdisk_end:
    .space 4                        # what lies behind the archive
