# SPDX-License-Identifier: GPL-2.0-or-later
#
# Disks as files: /dev/xvda and so on, any bytes of which can be read and written.
#
# What a program wants is a span: bytes of the disk that lie one behind the other. Its whole sectors
# go straight between the disk and the program's memory, as one transfer, however many they are
# (blkfront.s). What is left at its ends, and all that does not lie in memory as sectors must (at a
# multiple of 512), goes through the cache. Writes are on their way to the disk when write returns;
# fsync has the backend make them last.

.equ SPAN_DISK, 0
.equ SPAN_OPERATION, 4              # BLKIF_OP_READ or WRITE
.equ SPAN_SECTOR, 8
.equ SPAN_OFFSET, 12                # in the sector
.equ SPAN_ADDRESS, 16               # in the program
.equ SPAN_BYTES, 20
.equ SPAN_GENERATION, 24            # of the disk
.equ SIZEOF_SPAN, 28
.equ DISK_DIRECT, PAGE_SIZE         # less than this goes through the cache, which reads more

.section .text

# Open a disk. In: eax = its name behind "dev/xvd", esi = rights. Out: eax = file; CF set: -errno.
disk_open:
    push ebx
    push edi
    mov edi, eax
    call xenbus_wait_for_search
    cmp byte ptr [edi + 1], 0
    jne .Ldisk_open_none
    mov al, [edi]
    call blk_find
    jc .Ldisk_open_none
    mov ebx, eax
    mov edx, [eax + DISK_GENERATION]
    call disk_ready
    test eax, eax
    js .Ldisk_open_failed
    test esi, RIGHT_WRITE
    jz .Ldisk_open_allowed
    test dword ptr [ebx + DISK_INFO], VDISK_READONLY
    jnz .Ldisk_open_read_only
.Ldisk_open_allowed:
    mov eax, offset disk_kind
    mov edx, esi
    call file_new
    test eax, eax
    jz .Ldisk_open_too_many
    mov [eax + FILE_OBJECT], ebx
    mov edx, [ebx + DISK_GENERATION]
    mov [eax + FILE_GENERATION], edx
    clc
.Ldisk_open_out:
    pop edi
    pop ebx
    ret
.Ldisk_open_none:
    mov eax, -ENOENT
    jmp .Ldisk_open_failed
.Ldisk_open_read_only:
    mov eax, -EROFS
    jmp .Ldisk_open_failed
.Ldisk_open_too_many:
    mov eax, -ENFILE
.Ldisk_open_failed:
    stc
    jmp .Ldisk_open_out

# Wait until a disk can be used. In: eax = disk, edx = its generation. Out: eax = 0, -EIO where it
# is closed, gone, or another one; -EINTR.
disk_ready:
    push ebx
    push esi
    mov ebx, eax
    mov esi, edx
.Ldisk_ready_look:
    cmp [ebx + DISK_GENERATION], esi
    jne .Ldisk_ready_gone
    mov eax, [ebx + DISK_STATE]
    cmp eax, DISK_LIVE
    je .Ldisk_ready_yes
    cmp eax, DISK_WAITING
    jne .Ldisk_ready_gone
    lea eax, [ebx + DISK_EVENTS]
    xor edx, edx
    call process_sleep              # states change under kernel_lock: none is missed
    test eax, eax
    jz .Ldisk_ready_look
    mov eax, -EINTR
    jmp .Ldisk_ready_out
.Ldisk_ready_yes:
    xor eax, eax
    jmp .Ldisk_ready_out
.Ldisk_ready_gone:
    mov eax, -EIO
.Ldisk_ready_out:
    pop esi
    pop ebx
    ret

# -- spans -----------------------------------------------------------------------------------

# Move a span between a disk and a program. In: eax = span. Out: eax = 0 or -errno.
disk_move:
    push ebx
    mov ebx, eax
    mov eax, [ebx + SPAN_ADDRESS]
    add eax, [ebx + SPAN_BYTES]
    jc .Lmove_fault
    cmp eax, USER_END
    ja .Lmove_fault
.Lmove_next:
    xor eax, eax
    cmp [ebx + SPAN_BYTES], eax
    je .Lmove_done
    mov edx, [ebx + SPAN_DISK]
    mov edx, [edx + DISK_GENERATION]
    cmp [ebx + SPAN_GENERATION], edx
    jne .Lmove_gone
    mov eax, [ebx + SPAN_ADDRESS]
    and eax, SECTOR_SIZE - 1
    or eax, [ebx + SPAN_OFFSET]
    jnz .Lmove_piece
    cmp dword ptr [ebx + SPAN_BYTES], DISK_DIRECT
    jb .Lmove_piece
    call disk_move_sectors
    jmp .Lmove_moved
.Lmove_piece:
    call disk_move_piece
.Lmove_moved:
    test eax, eax
    jns .Lmove_next
.Lmove_done:
    pop ebx
    ret
.Lmove_fault:
    mov eax, -EFAULT
    pop ebx
    ret
.Lmove_gone:
    mov eax, -EIO
    pop ebx
    ret

# Move a span's whole sectors, from its beginning, without the cache. In: ebx = span. Out: eax = 0
# or -errno.
disk_move_sectors:
    push esi
    push edi
    sub esp, SIZEOF_TRANSFER
    mov esi, [ebx + SPAN_SECTOR]
    mov edi, [ebx + SPAN_BYTES]
    and edi, -SECTOR_SIZE
    mov eax, [ebx + SPAN_DISK]
    mov [esp + TRANSFER_DISK], eax
    mov eax, [ebx + SPAN_GENERATION]
    mov [esp + TRANSFER_GENERATION], eax
    mov eax, [ebx + SPAN_OPERATION]
    mov [esp + TRANSFER_OPERATION], eax
    mov eax, [ebx + SPAN_ADDRESS]
    mov [esp + TRANSFER_ADDRESS], eax
    mov [esp + TRANSFER_SECTOR], esi
    mov [esp + TRANSFER_BYTES], edi
    mov eax, edi
    call span_advance
    mov eax, esp
    call blk_transfer
    cmp dword ptr [ebx + SPAN_OPERATION], BLKIF_OP_WRITE
    jne .Lmove_sectors_done
    push eax
    mov eax, [ebx + SPAN_DISK]
    mov edx, esi
    mov ecx, edi
    shr ecx, SECTOR_SHIFT
    call cache_forget
    pop eax
.Lmove_sectors_done:
    add esp, SIZEOF_TRANSFER
    pop edi
    pop esi
    ret

# Move as much of a span as lies in one block, through the cache. In: ebx = span. Out: eax = 0 or
# -errno.
disk_move_piece:
    push esi
    push edi
    push ebp
    mov eax, [ebx + SPAN_DISK]
    mov edx, [ebx + SPAN_SECTOR]
    shr edx, BLOCK_SECTORS_SHIFT
    call cache_get
    jc .Lspan_piece_out
    mov esi, eax
    mov edi, [ebx + SPAN_SECTOR]
    and edi, BLOCK_SECTORS - 1
    shl edi, SECTOR_SHIFT
    add edi, [ebx + SPAN_OFFSET]    # where in the block
    mov ebp, PAGE_SIZE
    sub ebp, edi
    cmp ebp, [ebx + SPAN_BYTES]
    jbe .Lspan_piece_size
    mov ebp, [ebx + SPAN_BYTES]
.Lspan_piece_size:
    add edi, [esi + BUFFER_PAGE]
    mov ecx, ebp
    cmp dword ptr [ebx + SPAN_OPERATION], BLKIF_OP_WRITE
    je .Lspan_piece_write
    mov eax, [ebx + SPAN_ADDRESS]
    mov edx, edi
    call user_copy_out
    jmp .Lspan_piece_copied
.Lspan_piece_write:
    mov eax, edi
    mov edx, [ebx + SPAN_ADDRESS]
    call user_copy_in
    test eax, eax
    js .Lspan_piece_spoilt
    call disk_write_piece
    test eax, eax
    jns .Lspan_piece_copied
.Lspan_piece_spoilt:
    or dword ptr [esi + BUFFER_STATE], BUFFER_STALE         # it is not what the disk holds
.Lspan_piece_copied:
    push eax
    mov eax, ebp
    call span_advance
    mov eax, esi
    call cache_put
    pop eax
.Lspan_piece_out:
    pop ebp
    pop edi
    pop esi
    ret

# Write the sectors that a piece lies in. In: ebx = span, esi = buffer, ebp = bytes. Out: eax = 0 or
# -errno.
disk_write_piece:
    mov edx, [ebx + SPAN_SECTOR]
    mov ecx, [ebx + SPAN_OFFSET]
    lea ecx, [ecx + ebp + SECTOR_SIZE - 1]
    shr ecx, SECTOR_SHIFT
    push ebx
    mov ebx, esi
    call cache_write
    pop ebx
    ret

# A part of a span is done. In: ebx = span, eax = bytes.
span_advance:
    add [ebx + SPAN_ADDRESS], eax
    sub [ebx + SPAN_BYTES], eax
    add eax, [ebx + SPAN_OFFSET]
    mov edx, eax
    and edx, SECTOR_SIZE - 1
    mov [ebx + SPAN_OFFSET], edx
    shr eax, SECTOR_SHIFT
    add [ebx + SPAN_SECTOR], eax
    ret

# -- the kind of file ------------------------------------------------------------------------

disk_read:
    push esi
    mov esi, BLKIF_OP_READ
    jmp .Ldisk_move

disk_write:
    push esi
    mov esi, BLKIF_OP_WRITE
.Ldisk_move:
    push ebx
    push edi
    sub esp, SIZEOF_SPAN
    mov ebx, eax
    mov [esp + SPAN_ADDRESS], edx
    mov [esp + SPAN_BYTES], ecx
    mov [esp + SPAN_OPERATION], esi
    mov eax, [ebx + FILE_OBJECT]
    mov [esp + SPAN_DISK], eax
    mov edx, [ebx + FILE_GENERATION]
    mov [esp + SPAN_GENERATION], edx
    call disk_ready
    test eax, eax
    js .Ldisk_move_out
    call disk_left
    test eax, eax
    jz .Ldisk_move_end
    cmp eax, [esp + SPAN_BYTES]
    jae .Ldisk_move_within
    mov [esp + SPAN_BYTES], eax
.Ldisk_move_within:
    mov edi, [esp + SPAN_BYTES]
    mov eax, [ebx + FILE_POSITION]
    mov edx, [ebx + FILE_POSITION + 4]
    mov ecx, eax
    and ecx, SECTOR_SIZE - 1
    mov [esp + SPAN_OFFSET], ecx
    shrd eax, edx, SECTOR_SHIFT
    mov [esp + SPAN_SECTOR], eax
    mov eax, esp
    call disk_move
    test eax, eax
    js .Ldisk_move_out
    add [ebx + FILE_POSITION], edi
    adc dword ptr [ebx + FILE_POSITION + 4], 0
    mov eax, edi
.Ldisk_move_out:
    add esp, SIZEOF_SPAN
    pop edi
    pop ebx
    pop esi
    ret
.Ldisk_move_end:
    cmp esi, BLKIF_OP_READ
    je .Ldisk_move_out              # the end of the file
    mov eax, -ENOSPC
    jmp .Ldisk_move_out

# How many bytes are there from a file's position on? In: ebx = file. Out: eax, 2^31 at most.
disk_left:
    mov eax, ebx
    call disk_size
    sub eax, [ebx + FILE_POSITION]
    sbb edx, [ebx + FILE_POSITION + 4]
    jb .Ldisk_left_none
    jnz .Ldisk_left_many
    test eax, eax
    js .Ldisk_left_many
    ret
.Ldisk_left_many:
    mov eax, 1 << 31
    ret
.Ldisk_left_none:
    xor eax, eax
    ret

# In: eax = file. Out: edx:eax = bytes; CF is clear.
disk_size:
    mov eax, [eax + FILE_OBJECT]
    mov eax, [eax + DISK_SECTORS]
    xor edx, edx
    shld edx, eax, SECTOR_SHIFT
    shl eax, SECTOR_SHIFT
    clc
    ret

# Have the backend make lasting what was written. In: eax = file. Out: eax = 0 or -errno.
disk_sync:
    push ebx
    mov ebx, [eax + FILE_OBJECT]
    mov edx, [eax + FILE_GENERATION]
    mov eax, ebx
    call disk_ready
    test eax, eax
    js .Ldisk_sync_out
    call disk_flush
.Ldisk_sync_out:
    pop ebx
    ret

# In: ebx = disk, which is ready. Out: eax = 0 or -errno.
disk_flush:
    xor eax, eax
    cmp [ebx + DISK_CAN_FLUSH], eax
    je .Lflush_disk_done
    sub esp, SIZEOF_TRANSFER
    mov [esp + TRANSFER_DISK], ebx
    mov edx, [ebx + DISK_GENERATION]
    mov [esp + TRANSFER_GENERATION], edx
    mov dword ptr [esp + TRANSFER_OPERATION], BLKIF_OP_FLUSH_DISKCACHE
    mov [esp + TRANSFER_SECTOR], eax
    mov dword ptr [esp + TRANSFER_BYTES], SECTOR_SIZE       # anything but 0: to be asked for
    mov eax, esp
    call blk_transfer
    add esp, SIZEOF_TRANSFER
.Lflush_disk_done:
    ret

# sync(): all disks
sys_sync:
    push ebx
    mov ebx, offset disks
.Lsync_next:
    cmp dword ptr [ebx + DISK_STATE], DISK_LIVE
    jne .Lsync_skip
    call disk_flush
.Lsync_skip:
    add ebx, SIZEOF_DISK
    cmp ebx, offset disks + DISKS_MAX * SIZEOF_DISK
    jb .Lsync_next
    xor eax, eax
    pop ebx
    ret

.section .rodata
.p2align 2
disk_kind:
    .long disk_read, disk_write, file_close_nothing, file_no_ioctl, disk_size, disk_sync
