# SPDX-License-Identifier: GPL-2.0-or-later
#
# A small cache of disk blocks: for pieces of sectors, and for what file systems keep on a disk.
#
# A buffer is a page with one block, which is 8 sectors. Whoever gets one has it alone until it
# gives it back, also while it sleeps; others who want the same block wait. What is written goes to
# the disk at once, so a buffer that nobody has can be used for another block at any time.
#
# Large transfers pass the cache by (disk.s). What they write they have it forget: a buffer that
# somebody has at that moment is marked, and forgotten when it is given back.

.equ BLOCK_SECTORS, PAGE_SIZE >> SECTOR_SHIFT
.equ BLOCK_SECTORS_SHIFT, PAGE_SHIFT - SECTOR_SHIFT
.equ BUFFER_COUNT, 16

.equ BUFFER_DISK, 0
.equ BUFFER_GENERATION, 4           # of the disk
.equ BUFFER_BLOCK, 8
.equ BUFFER_PAGE, 12                # taken when first used
.equ BUFFER_STATE, 16               # bits:
.equ BUFFER_VALID, 1                # it holds the block
.equ BUFFER_BUSY, 2                 # somebody has it
.equ BUFFER_STALE, 4                # it is to be forgotten
.equ BUFFER_USED, 20                # when it was last got, counted in gets
.equ SIZEOF_BUFFER, 24

.section .text

# Get a block. In: eax = disk, edx = number of the block. Out: eax = buffer; CF set: eax = -errno.
cache_get:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax
    mov edi, edx
.Lget_again:
    xor ebp, ebp                    # of those that nobody has, the one not used for longest
    mov ebx, offset buffers
.Lget_look:
    test dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY | BUFFER_VALID
    jz .Lget_candidate
    cmp [ebx + BUFFER_DISK], esi
    jne .Lget_other
    cmp [ebx + BUFFER_BLOCK], edi
    jne .Lget_other
    mov eax, [esi + DISK_GENERATION]
    cmp [ebx + BUFFER_GENERATION], eax
    je .Lget_same
.Lget_other:
    test dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY
    jnz .Lget_next
.Lget_candidate:
    test ebp, ebp
    jz .Lget_better
    mov eax, [ebx + BUFFER_USED]
    sub eax, [ebp + BUFFER_USED]
    jns .Lget_next
.Lget_better:
    mov ebp, ebx
.Lget_next:
    add ebx, SIZEOF_BUFFER
    cmp ebx, offset buffers_end
    jb .Lget_look
    mov ebx, ebp
    test ebx, ebx
    jz .Lget_wait                   # somebody has each of them
    mov [ebx + BUFFER_DISK], esi
    mov [ebx + BUFFER_BLOCK], edi
    mov eax, [esi + DISK_GENERATION]
    mov [ebx + BUFFER_GENERATION], eax
    mov dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY
    call cache_fill
    test eax, eax
    js .Lget_failed
    or dword ptr [ebx + BUFFER_STATE], BUFFER_VALID
    jmp .Lget_got
.Lget_same:
    test dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY
    jz .Lget_got
.Lget_wait:
    mov dword ptr [cache_is_wanted], 1
    mov eax, offset buffers
    xor edx, edx
    call process_sleep_deaf         # whoever has a buffer gives it back
    jmp .Lget_again
.Lget_got:
    or dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY
    inc dword ptr [cache_gets]
    mov eax, [cache_gets]
    mov [ebx + BUFFER_USED], eax
    mov eax, ebx
    clc
.Lget_out:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lget_failed:
    push eax
    mov dword ptr [ebx + BUFFER_DISK], 0
    mov eax, ebx
    call cache_put
    pop eax
    stc
    jmp .Lget_out

# Give a buffer back. In: eax.
cache_put:
    and dword ptr [eax + BUFFER_STATE], ~BUFFER_BUSY
    test dword ptr [eax + BUFFER_STATE], BUFFER_STALE
    jz .Lcache_put_fresh
    mov dword ptr [eax + BUFFER_STATE], 0
.Lcache_put_fresh:
    xor eax, eax
    xchg eax, [cache_is_wanted]
    test eax, eax
    jz .Lcache_put_done
    mov eax, offset buffers
    jmp process_wake
.Lcache_put_done:
    ret

# Read a buffer's block. In: ebx = buffer. Out: eax = 0 or -errno.
cache_fill:
    mov edx, [ebx + BUFFER_BLOCK]
    shl edx, BLOCK_SECTORS_SHIFT
    mov eax, [ebx + BUFFER_DISK]
    mov ecx, [eax + DISK_SECTORS]
    sub ecx, edx
    jbe .Lcache_fill_beyond
    cmp ecx, BLOCK_SECTORS
    jbe .Lcache_fill_count
    mov ecx, BLOCK_SECTORS
.Lcache_fill_count:
    push ecx
    push edx
    cmp dword ptr [ebx + BUFFER_PAGE], 0
    jne .Lcache_fill_has_page
    call page_alloc
    mov [ebx + BUFFER_PAGE], eax
    test eax, eax
    jz .Lcache_fill_no_page
.Lcache_fill_has_page:
    pop edx
    pop ecx
    mov eax, BLKIF_OP_READ
    jmp cache_transfer
.Lcache_fill_no_page:
    add esp, 8
    mov eax, -ENOMEM
    ret
.Lcache_fill_beyond:
    mov eax, -EIO
    ret

# Write some sectors of a buffer to the disk. In: ebx = buffer, edx = the first, of the disk; ecx =
# how many. Out: eax = 0 or -errno.
cache_write:
    mov eax, BLKIF_OP_WRITE

# Transfer sectors of a buffer. In: eax = operation, ebx, edx, ecx as above. Out: as above.
cache_transfer:
    sub esp, SIZEOF_TRANSFER
    mov [esp + TRANSFER_OPERATION], eax
    mov [esp + TRANSFER_SECTOR], edx
    shl ecx, SECTOR_SHIFT
    mov [esp + TRANSFER_BYTES], ecx
    and edx, BLOCK_SECTORS - 1
    shl edx, SECTOR_SHIFT
    add edx, [ebx + BUFFER_PAGE]
    mov [esp + TRANSFER_ADDRESS], edx
    mov eax, [ebx + BUFFER_DISK]
    mov [esp + TRANSFER_DISK], eax
    mov eax, [ebx + BUFFER_GENERATION]
    mov [esp + TRANSFER_GENERATION], eax
    mov eax, esp
    call blk_transfer
    add esp, SIZEOF_TRANSFER
    push eax
    mov eax, [ebx + BUFFER_PAGE]
    call page_count_of
    cmp dword ptr [ecx], 1
    pop eax
    je .Lcache_transfer_done
    mov eax, [ebx + BUFFER_PAGE]    # a backend has kept it (blk_end_grant): no cache for others
    call page_free
    mov dword ptr [ebx + BUFFER_PAGE], 0
    or dword ptr [ebx + BUFFER_STATE], BUFFER_STALE
    mov eax, -EIO
.Lcache_transfer_done:
    ret

# Forget sectors that were written past the cache. In: eax = disk, edx = first, ecx = how many, at
# least 1.
cache_forget:
    push ebx
    lea ecx, [edx + ecx - 1]
    shr edx, BLOCK_SECTORS_SHIFT
    shr ecx, BLOCK_SECTORS_SHIFT
    mov ebx, offset buffers
.Lforget_look:
    cmp [ebx + BUFFER_DISK], eax
    jne .Lforget_next
    cmp [ebx + BUFFER_BLOCK], edx
    jb .Lforget_next
    cmp [ebx + BUFFER_BLOCK], ecx
    ja .Lforget_next
    test dword ptr [ebx + BUFFER_STATE], BUFFER_BUSY
    jnz .Lforget_busy
    mov dword ptr [ebx + BUFFER_STATE], 0
    jmp .Lforget_next
.Lforget_busy:
    or dword ptr [ebx + BUFFER_STATE], BUFFER_STALE
.Lforget_next:
    add ebx, SIZEOF_BUFFER
    cmp ebx, offset buffers_end
    jb .Lforget_look
    pop ebx
    ret

.section .bss
.p2align 2
buffers:
    .space BUFFER_COUNT * SIZEOF_BUFFER
buffers_end:
cache_gets:
    .space 4
cache_is_wanted:
    .space 4                        # somebody sleeps for a buffer
