# SPDX-License-Identifier: GPL-2.0-or-later
#
# Directories of FAT: entries of 32 bytes, in the root directory or in a chain of clusters.
#
#   name, 8 | extension, 3 | attributes | ... | cluster, upper 16 | ... | cluster, lower 16 | size
#
# A name in capitals is all that such an entry has room for. A longer one stands in entries before
# it, the end of the name first, 13 characters of 16 bits in each; old systems take them for
# something like volume labels, and pass them over. A number and a checksum of the short name tell
# whether they belong to it; if not, the short name counts.
#
# A walk goes through a directory. A chain of clusters that bites its tail has an end, too: the walk
# remembers a cluster that it has passed, a later one each time that it has gone twice as far, and
# ends where it meets that again.

.equ FAT_NAME_SIZE, 11
.equ FAT_ATTRIBUTES, 11
.equ FAT_READ_ONLY, 0x01
.equ FAT_LABEL, 0x08
.equ FAT_DIRECTORY, 0x10
.equ FAT_LONG, 0x0F                 # all lower four: a piece of a long name
.equ FAT_CASE, 12                   # bits: the name's, the extension's letters are small
.equ FAT_CASE_NAME, 0x08
.equ FAT_CASE_EXTENSION, 0x10
.equ FAT_CLUSTER_HIGH, 20
.equ FAT_CLUSTER_LOW, 26
.equ FAT_SIZE, 28
.equ SIZEOF_FAT_ENTRY, 32
.equ FAT_ENTRIES_MAX, 65536
.equ FAT_DELETED, 0xE5
.equ FAT_KANJI, 0x05                # stands for a first letter that is FAT_DELETED

.equ LONG_SEQUENCE, 0               # from 1; the last piece, which comes first, has LONG_LAST
.equ LONG_LAST, 0x40
.equ LONG_CHECKSUM, 13
.equ LONG_CHARACTERS, 13
.equ LONG_PIECES, 20

.equ WALK_CLUSTER, 0                # that its place is in, 0 for the root directory of old
.equ WALK_INDEX, 4                  # of the next entry
.equ WALK_EXPECTED, 8               # of a long name: the next piece; 0: all are there
.equ WALK_CHECKSUM, 12              # its pieces'; -1 for no long name
.equ WALK_PASSED, 16                # the cluster that it remembers,
.equ WALK_STEPS, 20                 # clusters since then,
.equ WALK_STEPS_MAX, 24             # and after how many it remembers another one
.equ WALK_ENTRY, 28                 # a copy
.equ WALK_NAME, WALK_ENTRY + SIZEOF_FAT_ENTRY   # a text
.equ SIZEOF_WALK, WALK_NAME + LONG_PIECES * LONG_CHARACTERS + 4

.section .text

# Find a file or directory. In: eax = path below /disk, edx = walk. Out: eax = 0, and the walk's
# entry is its; or -errno.
fat_lookup:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov ebx, edx
    call fat_mount
    test eax, eax
    js .Llookup_out
    lea edi, [ebx + WALK_ENTRY]     # the root directory has no entry: this would be it
    xor eax, eax
    mov ecx, SIZEOF_FAT_ENTRY / 4
    rep stosd
    mov byte ptr [ebx + WALK_ENTRY + FAT_ATTRIBUTES], FAT_DIRECTORY
.Llookup_next:
    mov eax, esi
    call file_skip_slash
    mov esi, eax
    xor eax, eax
    cmp byte ptr [esi], 0
    je .Llookup_out
    mov eax, ebx
    call fat_walk
    test eax, eax
    js .Llookup_out
.Llookup_entry:
    mov eax, ebx
    call fat_walk_next
    jc .Llookup_missing
    lea eax, [ebx + WALK_NAME]
    mov edx, esi
    call fat_name_is
    jc .Llookup_entry
    mov esi, eax
    jmp .Llookup_next
.Llookup_missing:
    test eax, eax
    js .Llookup_out
    mov eax, -ENOENT
.Llookup_out:
    pop edi
    pop esi
    pop ebx
    ret

# Does the first name of a path mean an entry? Small letters and capitals are the same. In: eax =
# the entry's name, edx = path. Out: eax = the path behind it; CF set where it does not.
fat_name_is:
    push ebx
.Lname_is_next:
    mov bl, [eax]
    mov cl, [edx]
    cmp cl, '/'
    jne .Lname_is_letter
    xor cl, cl
.Lname_is_letter:
    call fat_fold
    xchg cl, bl
    call fat_fold
    cmp cl, bl
    jne .Lname_is_not
    test cl, cl
    jz .Lname_is_whole
    inc eax
    inc edx
    jmp .Lname_is_next
.Lname_is_whole:
    mov eax, edx
    pop ebx
    ret                             # test has cleared CF
.Lname_is_not:
    stc
    pop ebx
    ret

# Make a capital a small letter. In: cl. Out: cl. Keeps all else.
fat_fold:
    cmp cl, 'A'
    jb .Lfold_done
    cmp cl, 'Z'
    ja .Lfold_done
    add cl, 'a' - 'A'
.Lfold_done:
    ret

# Where does the chain of an entry begin? In: eax = walk. Out: eax = cluster, 0 for none.
fat_first_cluster:
    movzx edx, word ptr [eax + WALK_ENTRY + FAT_CLUSTER_LOW]
    xor ecx, ecx
    cmp dword ptr [fat_bits], 32
    jne .Lfirst_cluster_done
    movzx ecx, word ptr [eax + WALK_ENTRY + FAT_CLUSTER_HIGH]
    shl ecx, 16
.Lfirst_cluster_done:
    lea eax, [edx + ecx]
    ret

# -- going through a directory ---------------------------------------------------------------

# Begin to go through the directory that a walk stands on. In: eax = walk. Out: eax = 0, or
# -ENOTDIR.
fat_walk:
    push ebx
    mov ebx, eax
    mov eax, -ENOTDIR
    test byte ptr [ebx + WALK_ENTRY + FAT_ATTRIBUTES], FAT_DIRECTORY
    jz .Lfat_walk_out
    mov eax, ebx
    call fat_first_cluster
    test eax, eax
    jnz .Lfat_walk_begin                # also ".." of a directory in the root says 0
    cmp dword ptr [fat_bits], 32
    jne .Lfat_walk_begin
    mov eax, [fat_root_cluster]
.Lfat_walk_begin:
    mov [ebx + WALK_CLUSTER], eax
    xor eax, eax
    mov [ebx + WALK_INDEX], eax
    mov [ebx + WALK_EXPECTED], eax
    mov dword ptr [ebx + WALK_CHECKSUM], -1
    call fat_walk_remember
    mov dword ptr [ebx + WALK_STEPS_MAX], 1
    xor eax, eax
.Lfat_walk_out:
    pop ebx
    ret

# Remember the cluster that a walk is in. In: ebx = walk.
fat_walk_remember:
    mov eax, [ebx + WALK_CLUSTER]
    mov [ebx + WALK_PASSED], eax
    mov dword ptr [ebx + WALK_STEPS], 0
    ret

# Go to the next cluster of a directory. In: ebx = walk. Out: CF set where there is none.
fat_walk_step:
    mov eax, [ebx + WALK_CLUSTER]
    call fat_next
    jc .Lfat_step_out
    cmp eax, [ebx + WALK_PASSED]
    stc
    je .Lfat_step_out
    mov [ebx + WALK_CLUSTER], eax
    inc dword ptr [ebx + WALK_STEPS]
    mov eax, [ebx + WALK_STEPS]
    cmp eax, [ebx + WALK_STEPS_MAX]
    jb .Lfat_step_on
    add eax, eax
    mov [ebx + WALK_STEPS_MAX], eax
    call fat_walk_remember
.Lfat_step_on:
    clc
.Lfat_step_out:
    ret

# Go to the next file or directory. In: eax = walk. Out: CF clear: it stands on one, and has its
# name. CF set: eax = 0 at the end, or -errno.
fat_walk_next:
    push ebx
    mov ebx, eax
.Lfat_walk_next:
    call fat_read_entry
    jc .Lfat_walk_next_out
    mov al, [ebx + WALK_ENTRY]
    test al, al
    jz .Lfat_walk_end                   # never used, nor any behind it
    cmp al, FAT_DELETED
    je .Lfat_walk_skip
    mov al, [ebx + WALK_ENTRY + FAT_ATTRIBUTES]
    and al, FAT_LONG
    cmp al, FAT_LONG
    je .Lfat_walk_piece
    test al, FAT_LABEL
    jnz .Lfat_walk_skip
    call fat_take_name
    mov eax, ebx
    clc
    jmp .Lfat_walk_next_out
.Lfat_walk_piece:
    call fat_take_piece
    jmp .Lfat_walk_next
.Lfat_walk_skip:
    mov dword ptr [ebx + WALK_CHECKSUM], -1
    jmp .Lfat_walk_next
.Lfat_walk_end:
    xor eax, eax
    stc
.Lfat_walk_next_out:
    pop ebx
    ret

# Copy the entry at a walk's place, and move on. In: ebx = walk. Out: CF set: eax = 0 at the end, or
# -errno.
fat_read_entry:
    push esi
    push edi
    mov esi, [ebx + WALK_INDEX]
    cmp esi, FAT_ENTRIES_MAX
    jae .Lread_entry_end
    cmp dword ptr [ebx + WALK_CLUSTER], 0
    je .Lread_entry_root
    mov ecx, [fat_cluster_shift]
    mov edx, SECTOR_SIZE / SIZEOF_FAT_ENTRY
    shl edx, cl
    dec edx
    and edx, esi                    # which entry of the cluster
    jnz .Lread_entry_within
    test esi, esi
    jz .Lread_entry_within
    call fat_walk_step
    jc .Lread_entry_end
    xor edx, edx
.Lread_entry_within:
    mov esi, edx
    mov eax, [ebx + WALK_CLUSTER]
    call fat_sector_of
    jc .Lread_entry_broken
    jmp .Lread_entry_sector
.Lread_entry_root:
    cmp esi, [fat_root_entries]
    jae .Lread_entry_end
    mov eax, [fat_root]
.Lread_entry_sector:
    mov edx, esi
    shr edx, 4                      # 16 in a sector
    add eax, edx
    call fat_get_sector
    jc .Lread_entry_out
    and esi, 15
    shl esi, 5
    add esi, edx
    lea edi, [ebx + WALK_ENTRY]
    mov ecx, SIZEOF_FAT_ENTRY / 4
    rep movsd
    call cache_put
    inc dword ptr [ebx + WALK_INDEX]
    clc
.Lread_entry_out:
    pop edi
    pop esi
    ret
.Lread_entry_broken:
    mov eax, -EIO
    stc
    jmp .Lread_entry_out
.Lread_entry_end:
    xor eax, eax
    stc
    jmp .Lread_entry_out

# -- names -----------------------------------------------------------------------------------

# Take a piece of a long name out of the entry. In: ebx = walk.
fat_take_piece:
    push esi
    push edi
    movzx eax, byte ptr [ebx + WALK_ENTRY + LONG_SEQUENCE]
    movzx edx, byte ptr [ebx + WALK_ENTRY + LONG_CHECKSUM]
    test al, LONG_LAST
    jz .Lfat_piece_follows
    and eax, LONG_LAST - 1
    lea ecx, [eax - 1]
    cmp ecx, LONG_PIECES
    jae .Lfat_piece_wrong
    mov [ebx + WALK_EXPECTED], eax
    mov [ebx + WALK_CHECKSUM], edx
    imul ecx, eax, LONG_CHARACTERS
    mov byte ptr [ebx + ecx + WALK_NAME], 0         # where the name has no end of its own
.Lfat_piece_follows:
    test eax, eax
    jz .Lfat_piece_wrong
    cmp [ebx + WALK_EXPECTED], eax
    jne .Lfat_piece_wrong
    cmp [ebx + WALK_CHECKSUM], edx
    jne .Lfat_piece_wrong
    dec eax
    mov [ebx + WALK_EXPECTED], eax
    imul eax, eax, LONG_CHARACTERS
    lea edi, [ebx + eax + WALK_NAME]
    mov esi, offset fat_characters
.Lfat_piece_character:
    movzx eax, byte ptr [esi]
    test eax, eax
    jz .Lfat_piece_done
    inc esi
    movzx eax, word ptr [ebx + eax + WALK_ENTRY]
    call fat_character
    stosb
    jmp .Lfat_piece_character
.Lfat_piece_wrong:
    mov dword ptr [ebx + WALK_CHECKSUM], -1
.Lfat_piece_done:
    pop edi
    pop esi
    ret

# Make a character one that can be shown, and be part of a path. In: eax = the character, 0 for the
# end of a name. Out: al. Changes no other register.
fat_character:
    test eax, eax
    jz .Lcharacter_done
    cmp eax, '/'
    je .Lcharacter_strange
    cmp eax, ' '
    jb .Lcharacter_strange
    cmp eax, 0x7F
    jb .Lcharacter_done
.Lcharacter_strange:
    mov al, '?'
.Lcharacter_done:
    ret

# Have the name of an entry: the long one, if it belongs to it and a path can hold it. In: ebx =
# walk.
fat_take_name:
    push esi
    push edi
    mov edi, -1
    xchg edi, [ebx + WALK_CHECKSUM]
    cmp dword ptr [ebx + WALK_EXPECTED], 0
    jne .Ltake_name_short
    xor eax, eax                    # of the short name
    lea esi, [ebx + WALK_ENTRY]
    mov ecx, FAT_NAME_SIZE
.Ltake_name_sum:
    ror al, 1
    add al, [esi]
    inc esi
    dec ecx
    jnz .Ltake_name_sum
    cmp eax, edi
    jne .Ltake_name_short
    lea eax, [ebx + WALK_NAME]
    mov ecx, PATH_MAX
.Ltake_name_measure:
    cmp byte ptr [eax], 0
    je .Ltake_name_done
    inc eax
    dec ecx
    jnz .Ltake_name_measure
.Ltake_name_short:
    call fat_short_name
.Ltake_name_done:
    pop edi
    pop esi
    ret

# Make a name of the entry's own, such as "readme.txt". In: ebx = walk. Changes esi and edi.
fat_short_name:
    lea esi, [ebx + WALK_ENTRY]
    lea edi, [ebx + WALK_NAME]
    cmp byte ptr [esi], FAT_KANJI
    jne .Lshort_name
    mov byte ptr [esi], FAT_DELETED
.Lshort_name:
    mov ecx, 8
    mov dl, FAT_CASE_NAME
    call fat_copy_part
    mov al, '.'
    stosb
    lea esi, [ebx + WALK_ENTRY + 8]
    mov ecx, 3
    mov dl, FAT_CASE_EXTENSION
    call fat_copy_part
    cmp byte ptr [edi - 1], '.'
    jne .Lshort_name_end
    dec edi                         # no extension
.Lshort_name_end:
    mov byte ptr [edi], 0
    ret

# Copy a part of a short name without the blanks at its end. In: esi = part, ecx = its size, edi =
# where to, dl = bit of FAT_CASE, ebx = walk. Out: edi = behind it.
fat_copy_part:
    cmp byte ptr [esi + ecx - 1], ' '
    jne .Lcopy_part_next
    dec ecx
    jnz fat_copy_part
    ret
.Lcopy_part_next:
    movzx eax, byte ptr [esi]
    inc esi
    call fat_character
    test [ebx + WALK_ENTRY + FAT_CASE], dl
    jz .Lcopy_part_letter
    xchg eax, ecx
    call fat_fold
    xchg eax, ecx
.Lcopy_part_letter:
    stosb
    dec ecx
    jnz .Lcopy_part_next
    ret

# -- for programs ----------------------------------------------------------------------------

# List a directory: the part of sys_directory that concerns /disk. In: eax = path below /disk, ebx =
# frame. Out: eax = bytes or -errno.
fat_directory:
    push esi
    push edi
    push ebp
    sub esp, SIZEOF_WALK + SIZEOF_DIRECTORY
    mov esi, esp
    xor ebp, ebp                    # bytes given
    mov edx, esi
    call fat_lookup
    test eax, eax
    js .Lfat_directory_out
    mov eax, esi
    call fat_walk
    test eax, eax
    js .Lfat_directory_out
    mov edi, [ebx + FRAME_ESI]      # how many to pass over
.Lfat_directory_next:
    mov eax, esi
    call fat_walk_next
    jc .Lfat_directory_end
    cmp byte ptr [esi + WALK_ENTRY], '.'
    je .Lfat_directory_next         # itself, and the one above
    sub edi, 1
    jae .Lfat_directory_next
    xor edi, edi
    mov eax, [ebx + FRAME_EDX]
    sub eax, ebp
    cmp eax, SIZEOF_DIRECTORY
    jb .Lfat_directory_done
    mov eax, esi
    lea edx, [esi + SIZEOF_WALK]
    call fat_describe
    mov eax, [ebx + FRAME_ECX]
    add eax, ebp
    lea edx, [esi + SIZEOF_WALK]
    mov ecx, SIZEOF_DIRECTORY
    call user_copy_out
    test eax, eax
    js .Lfat_directory_out
    add ebp, SIZEOF_DIRECTORY
    jmp .Lfat_directory_next
.Lfat_directory_end:
    test eax, eax
    js .Lfat_directory_out
.Lfat_directory_done:
    mov eax, ebp
.Lfat_directory_out:
    add esp, SIZEOF_WALK + SIZEOF_DIRECTORY
    pop ebp
    pop edi
    pop esi
    ret

# Write an entry of the directory. In: eax = walk, edx = where to.
fat_describe:
    push esi
    push edi
    mov ecx, [eax + WALK_ENTRY + FAT_SIZE]
    mov [edx + DIRECTORY_BYTES], ecx
    mov ecx, MODE_DIRECTORY
    test byte ptr [eax + WALK_ENTRY + FAT_ATTRIBUTES], FAT_DIRECTORY
    jnz .Lfat_describe_mode
    mov ecx, MODE_FILE
    test byte ptr [eax + WALK_ENTRY + FAT_ATTRIBUTES], FAT_READ_ONLY
    jz .Lfat_describe_mode
    mov ecx, MODE_READ_ONLY
.Lfat_describe_mode:
    mov [edx + DIRECTORY_MODE], ecx
    lea esi, [eax + WALK_NAME]
    lea edi, [edx + DIRECTORY_NAME]
    mov ecx, (SIZEOF_DIRECTORY - DIRECTORY_NAME) / 4
    rep movsd                       # a name is shorter than that
    pop edi
    pop esi
    ret

.section .rodata
fat_characters:                     # where in an entry a long name's characters are
    .byte 1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30, 0
