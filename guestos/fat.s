# SPDX-License-Identifier: GPL-2.0-or-later
#
# The file system of the first disk: FAT, with entries of 12, 16 or 32 bits, as /disk.
#
#   reserved sectors | FAT, twice or so | root directory | data: clusters 2, 3, ...
#   the first: BPB     fat_table          fat_root         fat_data
#
# A cluster is one or more sectors, a power of two. The FAT has an entry for each: the cluster that
# follows it in its file. So a file is a chain; a directory says where it begins (fat_names.s). With
# 32 bits the root directory is such a chain, too.
#
# The volume is on all of the disk, or in the first partition that says it is FAT. It is found when
# somebody opens a path below /disk, and anew when the disk is another one. Files are read, and
# written in place: nothing is made, nothing grows, so the FAT itself never changes.
#
# Nothing of the disk is believed. A cluster that is none ends its chain; a file that claims to be
# larger than all clusters is refused, so a chain that bites its tail ends by the file's size.

.equ BPB_SECTOR_SIZE, 11            # of the volume's first sector: two bytes
.equ BPB_CLUSTER_SECTORS, 13        # a byte
.equ BPB_RESERVED, 14               # two
.equ BPB_FATS, 16                   # one
.equ BPB_ROOT_ENTRIES, 17           # two
.equ BPB_SECTORS_16, 19             # two, 0 where it takes more
.equ BPB_FAT_SECTORS_16, 22         # two, 0 with FAT32
.equ BPB_SECTORS_32, 32             # four
.equ BPB_FAT_SECTORS_32, 36         # four
.equ BPB_ROOT_CLUSTER, 44           # four, with FAT32
.equ BOOT_SIGNATURE, 510
.equ BOOT_SIGNED, 0xAA55
.equ MBR_PARTITIONS, 446            # four entries of 16 bytes
.equ PARTITION_TYPE, 4
.equ PARTITION_START, 8
.equ SIZEOF_PARTITION, 16
.equ FAT_SECTORS_MAX, 1 << 21        # 2^28 clusters are the most that there can be
.equ FAT12_CLUSTERS, 4085           # from so many on entries have 16 bits

.section .text

# Is a path one of /disk? In: eax = path. Out: eax = what stands behind; CF set where it is not.
fat_path:
    mov edx, offset fat_mount_point
    call text_behind
    jc .Lfat_path_done
    cmp byte ptr [eax], 0
    je .Lfat_path_done              # CF is clear
    cmp byte ptr [eax], '/'
    je .Lfat_path_done
    stc
.Lfat_path_done:
    ret

# -- the volume ------------------------------------------------------------------------------

# Have the volume of the first disk known. Out: eax = 0 or -errno.
fat_mount:
    push ebx
    push esi
    push edi
    call xenbus_wait_for_search
    mov ebx, offset disks
    mov eax, -ENOENT
    cmp dword ptr [ebx + DISK_STATE], DISK_GONE
    je .Lmount_out
    mov edi, [ebx + DISK_GENERATION]
    mov eax, ebx
    mov edx, edi
    call disk_ready
    test eax, eax
    js .Lmount_out
    cmp [fat_generation], edi
    je .Lmount_out                  # eax = 0
    xor eax, eax
    call fat_find_volume
    jnc .Lmount_found
    xor esi, esi                    # the partitions
.Lmount_partition:
    mov eax, esi
    call fat_partition
    jc .Lmount_next
    call fat_find_volume
    jnc .Lmount_found
.Lmount_next:
    inc esi
    cmp esi, 4
    jb .Lmount_partition
    mov eax, -EINVAL
    jmp .Lmount_out
.Lmount_found:
    mov [fat_generation], edi
    xor eax, eax
.Lmount_out:
    pop edi
    pop esi
    pop ebx
    ret

# Where does a partition begin? In: eax = its number, from 0; ebx = disk. Out: eax = sector; CF set
# where it is not one of FAT.
fat_partition:
    push esi
    push eax
    xor edx, edx
    mov eax, ebx
    call cache_get
    pop ecx
    jc .Lpartition_out
    mov edx, [eax + BUFFER_PAGE]
    cmp word ptr [edx + BOOT_SIGNATURE], BOOT_SIGNED
    jne .Lpartition_none
    shl ecx, 4                      # SIZEOF_PARTITION
    lea edx, [edx + ecx + MBR_PARTITIONS]
    mov cl, [edx + PARTITION_TYPE]
    mov esi, offset fat_types
.Lpartition_type:
    cmp byte ptr [esi], 0
    je .Lpartition_none
    cmp [esi], cl
    je .Lpartition_found
    inc esi
    jmp .Lpartition_type
.Lpartition_found:
    mov esi, [edx + PARTITION_START]
    call cache_put
    mov eax, esi
    cmp esi, 1                      # sector 0 has the table: CF set
    jmp .Lpartition_out
.Lpartition_none:
    call cache_put
    stc
.Lpartition_out:
    pop esi
    ret

# Look for a volume. In: eax = sector, ebx = disk. Out: CF clear where there is one, and all fat_
# words say what it is.
fat_find_volume:
    push esi
    push edi
    push ebp
    mov edi, eax
    mov edx, eax
    shr edx, BLOCK_SECTORS_SHIFT
    mov eax, ebx
    call cache_get
    jc .Lvolume_out
    mov ebp, eax
    mov esi, edi
    and esi, BLOCK_SECTORS - 1
    shl esi, SECTOR_SHIFT
    add esi, [eax + BUFFER_PAGE]
    call fat_check
    sbb esi, esi                    # -1 where CF is set
    mov eax, ebp
    call cache_put
    add esi, 1                      # CF as it was
.Lvolume_out:
    pop ebp
    pop edi
    pop esi
    ret

# Check a BPB, and keep what it says. In: esi = first sector of the volume, edi = its number, ebx =
# disk. Out: CF set where it makes no sense.
fat_check:
    cmp word ptr [esi + BOOT_SIGNATURE], BOOT_SIGNED
    jne .Lcheck_bad
    cmp word ptr [esi + BPB_SECTOR_SIZE], SECTOR_SIZE
    jne .Lcheck_bad
    movzx eax, byte ptr [esi + BPB_CLUSTER_SECTORS]
    bsf ecx, eax
    jz .Lcheck_bad
    mov [fat_cluster_shift], ecx
    btr eax, ecx
    test eax, eax
    jnz .Lcheck_bad                 # not a power of two
    movzx eax, word ptr [esi + BPB_RESERVED]
    test eax, eax
    jz .Lcheck_bad
    lea ecx, [edi + eax]
    mov [fat_table], ecx
    push eax                        # sectors before the data
    movzx ecx, word ptr [esi + BPB_FAT_SECTORS_16]
    mov dword ptr [fat_bits], 16
    test ecx, ecx
    jnz .Lcheck_sectors
    mov dword ptr [fat_bits], 32
    mov ecx, [esi + BPB_FAT_SECTORS_32]
.Lcheck_sectors:
    cmp ecx, FAT_SECTORS_MAX
    ja .Lcheck_bad_pop
    movzx eax, byte ptr [esi + BPB_FATS]
    mul ecx
    jc .Lcheck_bad_pop
    test eax, eax
    jz .Lcheck_bad_pop
    add [esp], eax
    jc .Lcheck_bad_pop
    mov eax, [esp]
    add eax, edi
    mov [fat_root], eax
    movzx eax, word ptr [esi + BPB_ROOT_ENTRIES]
    mov [fat_root_entries], eax
    add eax, 15
    shr eax, 4                      # entries of 32 bytes
    add [esp], eax
    jc .Lcheck_bad_pop
    mov eax, [esp]
    add eax, edi
    jc .Lcheck_bad_pop
    mov [fat_data], eax
    movzx eax, word ptr [esi + BPB_SECTORS_16]
    test eax, eax
    jnz .Lcheck_size
    mov eax, [esi + BPB_SECTORS_32]
.Lcheck_size:
    mov edx, eax
    add edx, edi
    jc .Lcheck_bad_pop
    cmp edx, [ebx + DISK_SECTORS]
    ja .Lcheck_bad_pop
    pop edx
    sub eax, edx
    jbe .Lcheck_bad
    push ecx
    mov ecx, [fat_cluster_shift]
    shr eax, cl
    pop ecx
    cmp dword ptr [fat_bits], 32
    je .Lcheck_table
    cmp eax, FAT12_CLUSTERS
    jae .Lcheck_table
    mov dword ptr [fat_bits], 12
.Lcheck_table:
    # No more clusters than the FAT has entries: sectors * 4096 / bits, less the first two.
    push eax
    mov eax, SECTOR_SIZE * 8
    mul ecx
    div dword ptr [fat_bits]        # no overflow: see FAT_SECTORS_MAX
    pop edx
    sub eax, 2
    jbe .Lcheck_bad
    cmp eax, edx
    jb .Lcheck_clusters
    mov eax, edx
.Lcheck_clusters:
    add eax, 2
    mov [fat_clusters_end], eax
    mov eax, [esi + BPB_ROOT_CLUSTER]
    mov [fat_root_cluster], eax
    clc
    ret
.Lcheck_bad_pop:
    pop eax
.Lcheck_bad:
    stc
    ret

# -- clusters --------------------------------------------------------------------------------

# Where does a cluster lie? In: eax = cluster. Out: eax = its first sector; CF set where there is no
# such cluster.
fat_sector_of:
    cmp eax, 2
    jb .Lsector_of_none
    cmp eax, [fat_clusters_end]
    jae .Lsector_of_none
    sub eax, 2
    mov ecx, [fat_cluster_shift]
    shl eax, cl
    add eax, [fat_data]
    clc
    ret
.Lsector_of_none:
    stc
    ret

# Follow the chain. In: eax = cluster. Out: eax = the next one; CF set where the chain ends, or
# cannot be read.
fat_next:
    push ebx
    mov ebx, eax
    cmp eax, [fat_clusters_end]
    jae .Lfat_next_end
    mov ecx, [fat_bits]
    cmp ecx, 16
    jb .Lfat_next_12
    ja .Lfat_next_32
    add eax, eax
    call fat_entry
    jc .Lfat_next_out
    jmp .Lfat_next_check
.Lfat_next_32:
    shl eax, 2
    call fat_entry
    jc .Lfat_next_out
    and eax, 0x0FFFFFFF             # the upper four bits mean nothing
    jmp .Lfat_next_check
.Lfat_next_12:
    shr eax, 1
    add eax, ebx                    # one and a half bytes each: they may lie in two blocks
    push eax
    call fat_entry
    mov ecx, eax
    pop eax
    jc .Lfat_next_out
    push ecx
    inc eax
    call fat_entry
    pop ecx
    jc .Lfat_next_out
    mov ch, al
    movzx eax, cx
    test ebx, 1
    jz .Lfat_next_even
    shr eax, 4
.Lfat_next_even:
    and eax, 0xFFF
.Lfat_next_check:
    cmp eax, 2
    jb .Lfat_next_out               # CF is set
    cmp [fat_clusters_end], eax
    jbe .Lfat_next_end
    clc
.Lfat_next_out:
    pop ebx
    ret
.Lfat_next_end:
    stc
    pop ebx
    ret

# Read from the FAT. In: eax = offset in bytes. Out: eax = the byte, the word or the two words that
# are there, as fat_bits is 12, 16 or 32; CF set where they cannot be read.
fat_entry:
    push ebx
    push esi
    mov esi, eax
    shr eax, SECTOR_SHIFT
    add eax, [fat_table]
    and esi, SECTOR_SIZE - 1
    call fat_get_sector
    jc .Lfat_entry_out
    add esi, edx
    mov ecx, [fat_bits]
    cmp ecx, 16
    jb .Lfat_entry_byte
    je .Lfat_entry_word
    mov ebx, [esi]
    jmp .Lfat_entry_read
.Lfat_entry_byte:
    movzx ebx, byte ptr [esi]
    jmp .Lfat_entry_read
.Lfat_entry_word:
    movzx ebx, word ptr [esi]
.Lfat_entry_read:
    call cache_put
    mov eax, ebx
    clc
.Lfat_entry_out:
    pop esi
    pop ebx
    ret

# Get a sector of the disk. In: eax = sector. Out: eax = buffer, edx = where the sector is in
# memory; CF set: eax = -errno.
fat_get_sector:
    push ebx
    mov ebx, eax
    mov edx, eax
    shr edx, BLOCK_SECTORS_SHIFT
    mov eax, offset disks
    call cache_get
    jc .Lget_sector_out
    mov edx, ebx
    and edx, BLOCK_SECTORS - 1
    shl edx, SECTOR_SHIFT
    add edx, [eax + BUFFER_PAGE]
    clc
.Lget_sector_out:
    pop ebx
    ret

# -- the kind of file ------------------------------------------------------------------------

# Open a file. In: eax = path below /disk, esi = rights. Out: eax = file; CF set: -errno.
fat_open:
    push ebx
    push edi
    sub esp, SIZEOF_WALK
    mov edi, esp
    mov edx, edi
    call fat_lookup
    test eax, eax
    js .Lfat_open_failed
    mov eax, -EISDIR
    test byte ptr [edi + WALK_ENTRY + FAT_ATTRIBUTES], FAT_DIRECTORY
    jnz .Lfat_open_failed
    test esi, RIGHT_WRITE
    jz .Lfat_open_allowed
    mov eax, -EROFS
    test dword ptr [disks + DISK_INFO], VDISK_READONLY
    jnz .Lfat_open_failed
    mov eax, -EACCES
    test byte ptr [edi + WALK_ENTRY + FAT_ATTRIBUTES], FAT_READ_ONLY
    jnz .Lfat_open_failed
.Lfat_open_allowed:
    call fat_is_possible
    mov eax, -EIO
    jc .Lfat_open_failed
    mov eax, offset fat_kind
    mov edx, esi
    call file_new
    test eax, eax
    jz .Lfat_open_too_many
    mov ebx, eax
    mov dword ptr [ebx + FILE_OBJECT], offset disks
    mov eax, [fat_generation]
    mov [ebx + FILE_GENERATION], eax
    mov eax, [edi + WALK_ENTRY + FAT_SIZE]
    mov [ebx + FILE_SIZE], eax
    mov eax, edi
    call fat_first_cluster
    mov [ebx + FILE_FIRST_CLUSTER], eax
    mov [ebx + FILE_CLUSTER], eax
    mov dword ptr [ebx + FILE_CLUSTER_INDEX], 0
    mov eax, ebx
    clc
.Lfat_open_out:
    lea esp, [esp + SIZEOF_WALK]    # which leaves CF
    pop edi
    pop ebx
    ret
.Lfat_open_too_many:
    mov eax, -ENFILE
.Lfat_open_failed:
    stc
    jmp .Lfat_open_out

# Can a file be as large as it claims? In: edi = walk that stands on it. Out: CF set where not.
fat_is_possible:
    mov eax, [fat_clusters_end]
    sub eax, 2
    xor edx, edx
    mov ecx, [fat_cluster_shift]
    add ecx, SECTOR_SHIFT
    shld edx, eax, cl
    shl eax, cl                     # edx:eax = bytes in all clusters
    cmp eax, [edi + WALK_ENTRY + FAT_SIZE]
    sbb edx, 0
    ret

# Find a file's cluster. In: eax = which one of its chain, from 0; ebx = file. Out: eax = cluster;
# CF set where the chain is shorter, or broken.
fat_cluster_at:
    push esi
    mov esi, eax
    cmp eax, [ebx + FILE_CLUSTER_INDEX]
    jae .Lcluster_at_next
    mov eax, [ebx + FILE_FIRST_CLUSTER]
    mov [ebx + FILE_CLUSTER], eax
    mov dword ptr [ebx + FILE_CLUSTER_INDEX], 0
.Lcluster_at_next:
    mov eax, [ebx + FILE_CLUSTER]
    cmp [ebx + FILE_CLUSTER_INDEX], esi
    je .Lcluster_at_out             # CF is clear
    call fat_next
    jc .Lcluster_at_out
    mov [ebx + FILE_CLUSTER], eax
    inc dword ptr [ebx + FILE_CLUSTER_INDEX]
    jmp .Lcluster_at_next
.Lcluster_at_out:
    pop esi
    ret

fat_read:
    push esi
    mov esi, BLKIF_OP_READ
    jmp .Lfat_move

# In place: bytes that the file has.
fat_write:
    push esi
    mov esi, BLKIF_OP_WRITE
.Lfat_move:
    push ebx
    push edi
    push ebp
    sub esp, SIZEOF_SPAN
    mov ebx, eax
    mov edi, ecx                    # bytes wanted
    xor ebp, ebp                    # bytes moved
    mov [esp + SPAN_ADDRESS], edx
    mov [esp + SPAN_OPERATION], esi
    mov eax, [ebx + FILE_OBJECT]
    mov [esp + SPAN_DISK], eax
    mov edx, [ebx + FILE_GENERATION]
    mov [esp + SPAN_GENERATION], edx
    call disk_ready
    test eax, eax
    js .Lfat_move_out
    xor eax, eax
    cmp [ebx + FILE_POSITION + 4], eax
    jne .Lfat_move_end
    mov eax, [ebx + FILE_SIZE]
    sub eax, [ebx + FILE_POSITION]
    jbe .Lfat_move_end
    cmp edi, eax
    jbe .Lfat_move_next
    mov edi, eax
.Lfat_move_next:
    mov esi, esp
    call fat_run
    jc .Lfat_move_broken
    mov esi, [esp + SPAN_BYTES]
    mov eax, esp
    call disk_move
    test eax, eax
    js .Lfat_move_failed
    add [ebx + FILE_POSITION], esi
    add ebp, esi
    sub edi, esi
    jnz .Lfat_move_next
.Lfat_move_done:
    mov eax, ebp
.Lfat_move_out:
    add esp, SIZEOF_SPAN
    pop ebp
    pop edi
    pop ebx
    pop esi
    ret
.Lfat_move_end:
    xor eax, eax
    cmp esi, BLKIF_OP_READ
    je .Lfat_move_out
    mov eax, -ENOSPC                # it does not grow
    jmp .Lfat_move_out
.Lfat_move_broken:
    mov eax, -EIO
.Lfat_move_failed:
    test ebp, ebp
    jnz .Lfat_move_done
    jmp .Lfat_move_out

# Find as much of a file as lies in one piece, from its position on. In: ebx = file, edi = bytes
# wanted, esi = span to complete. Out: CF set where the chain is broken.
fat_run:
    push edi
    push ebp
    mov ecx, [fat_cluster_shift]
    add ecx, SECTOR_SHIFT
    mov ebp, 1
    shl ebp, cl                     # bytes of a cluster
    mov eax, [ebx + FILE_POSITION]
    shr eax, cl
    call fat_cluster_at
    jc .Lfat_run_out
    call fat_sector_of
    jc .Lfat_run_out
    lea edx, [ebp - 1]
    and edx, [ebx + FILE_POSITION]  # where in the cluster
    mov ecx, edx
    shr ecx, SECTOR_SHIFT
    add eax, ecx
    mov [esi + SPAN_SECTOR], eax
    mov eax, edx
    and eax, SECTOR_SIZE - 1
    mov [esi + SPAN_OFFSET], eax
    mov eax, ebp
    sub eax, edx
    mov [esi + SPAN_BYTES], eax
.Lfat_run_more:
    cmp [esi + SPAN_BYTES], edi
    jae .Lfat_run_enough
    mov eax, [ebx + FILE_CLUSTER]
    call fat_next
    jc .Lfat_run_found              # whoever wants what follows will find that out
    mov ecx, [ebx + FILE_CLUSTER]
    inc ecx
    cmp eax, ecx
    jne .Lfat_run_found
    mov [ebx + FILE_CLUSTER], eax
    inc dword ptr [ebx + FILE_CLUSTER_INDEX]
    add [esi + SPAN_BYTES], ebp
    jmp .Lfat_run_more
.Lfat_run_enough:
    mov [esi + SPAN_BYTES], edi
.Lfat_run_found:
    clc
.Lfat_run_out:
    pop ebp
    pop edi
    ret

# In: eax = file. Out: edx:eax = bytes; CF is clear.
fat_file_size:
    mov eax, [eax + FILE_SIZE]
    xor edx, edx
    ret

.section .rodata
.p2align 2
fat_kind:
    .long fat_read, fat_write, file_close_nothing, file_no_ioctl, fat_file_size, disk_sync
fat_mount_point:
    .asciz "disk"
fat_types:                          # of partitions
    .byte 0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0

.section .bss
.p2align 2
fat_generation:
    .space 4                        # of the disk that the words below tell of; 0: of none
fat_bits:
    .space 4                        # of an entry of the FAT
fat_cluster_shift:
    .space 4                        # sectors of a cluster, as a power of two
fat_table:
    .space 4                        # the first sector of the FAT,
fat_root:
    .space 4                        # of the root directory, not with FAT32,
fat_data:
    .space 4                        # and of cluster 2
fat_root_entries:
    .space 4
fat_root_cluster:
    .space 4                        # with FAT32
fat_clusters_end:
    .space 4                        # no cluster has this number, or a higher one
