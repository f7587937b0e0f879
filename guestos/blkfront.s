# SPDX-License-Identifier: GPL-2.0-or-later
#
# The frontend of disks: sectors between memory and a backend (public/io/blkif.h, x86_32-abi).
#
# A transfer is what one process wants: sectors that lie one behind the other, and bytes in memory.
# It becomes as many requests as it takes, all of them in the ring at once as far as there is room;
# the process sleeps until none is in work. So one large read keeps the ring full as well as many
# processes with small ones do.
#
#   transfer (on the stack of who waits) <--- request (32, one for each slot of the ring)
#                                             its segments, in a page: reference, first, last sector
#                                                                          |
#                                             a page of the program, or of the kernel
#
# The backend works on the program's own pages: nothing is copied. Each request grants its pages and
# takes the grants back, for which Xen need not be called; so they are never the backend's longer
# than needed, and persistent grants, which save the backend the mapping, are not asked for. Up to
# 11 segments lie in the request itself; where the backend takes more ("indirect"), it is granted
# the page of segments.
#
# States of a disk (vbd.s changes them): GONE -> WAITING <-> LIVE -> CLOSED. While it is WAITING for
# its backend, or for a new one, requests in work are kept, and put into the new ring when it is
# there: both reading and writing the same sectors twice does no harm. They fail when the disk is
# closed or gone.
#
# The backend is not trusted. An answer counts for a request that is in work, and once. A page that
# it still uses after the answer is never used for anything else (blk_end_grant).
#
# All here holds kernel_lock. The event's handler only counts the event: whoever waits takes the
# answers out of the ring, also those of others.

.equ SECTOR_SHIFT, 9
.equ SECTOR_SIZE, 1 << SECTOR_SHIFT
.equ BLK_SEGMENTS_MAX, 64           # of a request; the pages of segments have room for 512
.equ BLK_FIRST, 202 << 8            # the number of xvda; the next ones are 16 apart
.equ DISKS_MAX, 16

.equ REQUEST_TRANSFER, 0
.equ REQUEST_OPERATION, 4
.equ REQUEST_SECTOR, 8
.equ REQUEST_COUNT, 12              # of segments
.equ REQUEST_PAGE, 16               # of segments; taken when first used
.equ REQUEST_PAGE_REF, 20           # by which the backend reads them, or 0
.equ SIZEOF_REQUEST, 24

.equ DISK_DEVICE, 0                 # of xenbus.s
.equ DISK_STATE, 4                  # one of
.equ DISK_GONE, 0
.equ DISK_WAITING, 1
.equ DISK_LIVE, 2
.equ DISK_CLOSED, 3
.equ DISK_SECTORS, 8
.equ DISK_INFO, 12                  # VDISK_
.equ DISK_SEGMENTS, 16              # the most that a request may have
.equ DISK_CAN_FLUSH, 20
.equ DISK_GENERATION, 24            # counts disks that were in this place
.equ DISK_PORT, 28                  # 0 where there is no connection
.equ DISK_RING_REF, 32
.equ DISK_FRONT, 36                 # ring.s
.equ DISK_EVENTS, DISK_FRONT + SIZEOF_FRONT
.equ DISK_FREE, DISK_EVENTS + SIZEOF_EVENTCOUNT     # a bit for each request that is free
.equ DISK_IS_LEAVING, DISK_FREE + 4 # its backend wants to close
.equ DISK_REQUESTS, DISK_IS_LEAVING + 4
.equ SIZEOF_DISK, DISK_REQUESTS + BLKIF_RING_SIZE * SIZEOF_REQUEST

.equ TRANSFER_DISK, 0
.equ TRANSFER_OPERATION, 4          # BLKIF_OP_READ, WRITE, FLUSH_DISKCACHE
.equ TRANSFER_SECTOR, 8             # the first, the next when some are in work,
.equ TRANSFER_ADDRESS, 12           # and in memory, a multiple of SECTOR_SIZE,
.equ TRANSFER_BYTES, 16             # and how many are left to be asked for
.equ TRANSFER_PENDING, 20           # requests in work
.equ TRANSFER_ERROR, 24             # -errno of the first that failed
.equ TRANSFER_GENERATION, 28        # of the disk that is meant
.equ SIZEOF_TRANSFER, 32

.section .text

# -- transfers -------------------------------------------------------------------------------

# Do a transfer, and wait until nothing of it is in work. In: eax = transfer. Out: eax = 0 or
# -errno.
blk_transfer:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov ebx, [esi + TRANSFER_DISK]
    mov dword ptr [esi + TRANSFER_PENDING], 0
    mov dword ptr [esi + TRANSFER_ERROR], 0
.Ltransfer_again:
    mov edi, [ebx + DISK_EVENTS + EVENTCOUNT_COUNT]
    call blk_take_answers
    call blk_issue
    cmp dword ptr [esi + TRANSFER_PENDING], 0
    jne .Ltransfer_wait
    mov eax, [esi + TRANSFER_ERROR]
    test eax, eax
    jnz .Ltransfer_done
    cmp dword ptr [esi + TRANSFER_BYTES], 0
    je .Ltransfer_done
.Ltransfer_wait:
    lea eax, [ebx + DISK_EVENTS]
    mov edx, edi
    call eventcount_wait
    jmp .Ltransfer_again
.Ltransfer_done:
    pop edi
    pop esi
    pop ebx
    ret

# Ask for as much of a transfer as there is room for. In: esi = transfer, ebx = disk.
blk_issue:
    cmp dword ptr [esi + TRANSFER_ERROR], 0
    jne .Lissue_done
    cmp dword ptr [esi + TRANSFER_BYTES], 0
    je .Lissue_done
    mov eax, [esi + TRANSFER_GENERATION]
    cmp eax, [ebx + DISK_GENERATION]
    jne .Lissue_refused             # it has gone, and another one has come while we slept
    mov eax, [ebx + DISK_STATE]
    cmp eax, DISK_WAITING
    je .Lissue_done
    cmp eax, DISK_LIVE
    jne .Lissue_refused
    cmp dword ptr [ebx + DISK_IS_LEAVING], 0
    jne .Lissue_refused
.Lissue_next:
    bsf eax, [ebx + DISK_FREE]
    jz .Lissue_tell
    call blk_fill
    jc .Lissue_tell                 # no memory, or no grants, until something is done
    cmp dword ptr [esi + TRANSFER_ERROR], 0
    jne .Lissue_tell
    cmp dword ptr [esi + TRANSFER_BYTES], 0
    jne .Lissue_next
.Lissue_tell:
    jmp blk_tell
.Lissue_refused:
    mov dword ptr [esi + TRANSFER_ERROR], -EIO
.Lissue_done:
    ret

# Show the backend what is new in the ring. In: ebx = disk.
blk_tell:
    lea eax, [ebx + DISK_FRONT]
    call ring_publish
    test eax, eax
    jz .Ltell_no_event
    mov eax, [ebx + DISK_PORT]
    jmp port_send_event
.Ltell_no_event:
    ret

# Make the next request of a transfer. In: eax = number of a free one, esi = transfer, ebx = disk.
# Out: CF set where there is no memory or no grant for it now; TRANSFER_ERROR where there cannot be
# any.
blk_fill:
    push edi
    push ebp
    push eax
    imul edi, eax, SIZEOF_REQUEST
    lea edi, [ebx + edi + DISK_REQUESTS]
    cmp dword ptr [edi + REQUEST_PAGE], 0
    jne .Lfill_has_page
    call page_take
    test eax, eax
    jz .Lfill_no_memory
    mov [edi + REQUEST_PAGE], eax
.Lfill_has_page:
    mov [edi + REQUEST_TRANSFER], esi
    mov eax, [esi + TRANSFER_OPERATION]
    mov [edi + REQUEST_OPERATION], eax
    mov eax, [esi + TRANSFER_SECTOR]
    mov [edi + REQUEST_SECTOR], eax
    xor ebp, ebp                    # segments
    mov [edi + REQUEST_COUNT], ebp
    mov [edi + REQUEST_PAGE_REF], ebp
    cmp dword ptr [esi + TRANSFER_OPERATION], BLKIF_OP_FLUSH_DISKCACHE
    jne .Lfill_segment
    mov [esi + TRANSFER_BYTES], ebp
    jmp .Lfill_put
.Lfill_segment:
    call blk_add_segment
    test eax, eax
    jz .Lfill_no_more
    cmp dword ptr [esi + TRANSFER_BYTES], 0
    je .Lfill_full
    cmp ebp, [ebx + DISK_SEGMENTS]
    jb .Lfill_segment
.Lfill_full:
    mov [edi + REQUEST_COUNT], ebp
    call blk_grant_segments
.Lfill_put:
    mov eax, [esp]
    lock btr [ebx + DISK_FREE], eax
    inc dword ptr [esi + TRANSFER_PENDING]
    call blk_put
    pop eax
    pop ebp
    pop edi
    clc
    ret
.Lfill_no_more:
    test ebp, ebp
    jnz .Lfill_full                 # what it has so far is a request, too
    cmp dword ptr [esi + TRANSFER_ERROR], 0
    jne .Lfill_failed
.Lfill_no_memory:
    cmp dword ptr [esi + TRANSFER_PENDING], 0
    jne .Lfill_failed
    cmp dword ptr [ebx + DISK_FREE], -1
    jne .Lfill_failed               # others will give some back
    mov dword ptr [esi + TRANSFER_ERROR], -ENOMEM
.Lfill_failed:
    pop eax
    pop ebp
    pop edi
    stc
    ret

# Add the next page of a transfer to a request. In: esi = transfer, ebx = disk, edi = request, ebp =
# segments so far. Out: eax = 1, ebp counted, the transfer moved on; or 0: no grant, or an error.
blk_add_segment:
    mov eax, [esi + TRANSFER_ADDRESS]
    cmp eax, VIRT_BASE
    jae .Lsegment_kernel
    xor edx, edx
    cmp dword ptr [esi + TRANSFER_OPERATION], BLKIF_OP_READ
    jne .Lsegment_user
    mov edx, PFEC_WRITE
.Lsegment_user:
    call user_page
    test eax, eax
    jz .Lsegment_fault
.Lsegment_kernel:
    and eax, PAGE_MASK
    mov edx, [ebx + DISK_DEVICE]
    mov edx, [edx + DEVICE_DOMID]
    xor ecx, ecx
    cmp dword ptr [esi + TRANSFER_OPERATION], BLKIF_OP_READ
    je .Lsegment_give
    mov ecx, GTF_readonly
.Lsegment_give:
    call grant_give
    test eax, eax
    jz .Lsegment_none
    mov edx, [edi + REQUEST_PAGE]
    lea edx, [edx + ebp * SIZEOF_BLKIF_REQUEST_SEGMENT]
    inc ebp
    mov [edx + BLKIF_REQUEST_SEGMENT_GREF], eax
    mov ecx, [esi + TRANSFER_ADDRESS]
    and ecx, PAGE_SIZE - 1
    mov eax, PAGE_SIZE
    sub eax, ecx                    # bytes up to the end of the page
    shr ecx, SECTOR_SHIFT
    mov [edx + BLKIF_REQUEST_SEGMENT_FIRST_SECT], cl
    cmp eax, [esi + TRANSFER_BYTES]
    jbe .Lsegment_size
    mov eax, [esi + TRANSFER_BYTES]
.Lsegment_size:
    add [esi + TRANSFER_ADDRESS], eax
    sub [esi + TRANSFER_BYTES], eax
    shr eax, SECTOR_SHIFT
    add [esi + TRANSFER_SECTOR], eax
    lea ecx, [ecx + eax - 1]
    mov [edx + BLKIF_REQUEST_SEGMENT_LAST_SECT], cl
    mov eax, 1
    ret
.Lsegment_fault:
    mov dword ptr [esi + TRANSFER_ERROR], -EFAULT
.Lsegment_none:
    xor eax, eax
    ret

# Let the backend read the segments of a request that has more than fit into it. In: edi = request,
# ebx = disk. Without a grant the request shrinks, and its transfer goes back.
blk_grant_segments:
    cmp dword ptr [edi + REQUEST_COUNT], BLKIF_MAX_SEGMENTS_PER_REQUEST
    jbe .Lgrant_segments_done
    mov eax, [edi + REQUEST_PAGE]
    mov edx, [ebx + DISK_DEVICE]
    mov edx, [edx + DEVICE_DOMID]
    mov ecx, GTF_readonly
    call grant_give
    mov [edi + REQUEST_PAGE_REF], eax
    test eax, eax
    jz blk_shrink
.Lgrant_segments_done:
    ret

# Take segments off a request until what is left fits into it. In: edi = request, with TRANSFER.
blk_shrink:
    push esi
    push ebp
    mov esi, [edi + REQUEST_TRANSFER]
    mov ebp, [edi + REQUEST_COUNT]
.Lshrink_next:
    dec ebp
    mov edx, [edi + REQUEST_PAGE]
    lea edx, [edx + ebp * SIZEOF_BLKIF_REQUEST_SEGMENT]
    movzx eax, byte ptr [edx + BLKIF_REQUEST_SEGMENT_LAST_SECT]
    movzx ecx, byte ptr [edx + BLKIF_REQUEST_SEGMENT_FIRST_SECT]
    sub eax, ecx
    inc eax
    sub [esi + TRANSFER_SECTOR], eax
    shl eax, SECTOR_SHIFT
    sub [esi + TRANSFER_ADDRESS], eax
    add [esi + TRANSFER_BYTES], eax
    mov eax, [edx + BLKIF_REQUEST_SEGMENT_GREF]
    call grant_end                  # the backend has not seen it
    cmp ebp, BLKIF_MAX_SEGMENTS_PER_REQUEST
    ja .Lshrink_next
    mov [edi + REQUEST_COUNT], ebp
    pop ebp
    pop esi
    ret

# Put a request into the ring, where there is room: there are as many requests as slots. In: edi =
# request, ebx = disk.
blk_put:
    push esi
    push edi
    mov esi, edi
    lea edx, [ebx + DISK_FRONT]
    RING_SLOT edi, edx, FRONT_PUT, BLKIF_RING_SIZE, SIZEOF_BLKIF_REQUEST
    inc dword ptr [edx + FRONT_PUT]
    mov eax, esi
    sub eax, ebx
    sub eax, DISK_REQUESTS
    xor edx, edx
    mov ecx, SIZEOF_REQUEST
    div ecx                         # eax = its number, which is its id; edx = 0
    mov [edi + BLKIF_REQUEST_ID], eax
    mov [edi + BLKIF_REQUEST_ID + 4], edx
    mov eax, [esi + REQUEST_SECTOR]
    mov [edi + BLKIF_REQUEST_SECTOR_NUMBER], eax
    mov [edi + BLKIF_REQUEST_SECTOR_NUMBER + 4], edx
    mov eax, [esi + REQUEST_OPERATION]
    mov ecx, [esi + REQUEST_COUNT]
    cmp ecx, BLKIF_MAX_SEGMENTS_PER_REQUEST
    ja .Lput_indirect
    mov [edi + BLKIF_REQUEST_OPERATION], al
    mov [edi + BLKIF_REQUEST_NR_SEGMENTS], cl
    mov [edi + BLKIF_REQUEST_HANDLE], dx
    mov esi, [esi + REQUEST_PAGE]
    add edi, BLKIF_REQUEST_SEG
    add ecx, ecx                    # words
    rep movsd
    pop edi
    pop esi
    ret
.Lput_indirect:
    mov byte ptr [edi + BLKIF_REQUEST_INDIRECT_OPERATION], BLKIF_OP_INDIRECT
    mov [edi + BLKIF_REQUEST_INDIRECT_INDIRECT_OP], al
    mov [edi + BLKIF_REQUEST_INDIRECT_NR_SEGMENTS], cx
    mov [edi + BLKIF_REQUEST_INDIRECT_HANDLE], dx
    mov eax, [esi + REQUEST_PAGE_REF]
    mov [edi + BLKIF_REQUEST_INDIRECT_INDIRECT_GREFS], eax
    pop edi
    pop esi
    ret

# -- answers ---------------------------------------------------------------------------------

# Take what the backend has answered. In: ebx = disk.
blk_take_answers:
    push esi
.Lanswers_look:
    cmp dword ptr [ebx + DISK_STATE], DISK_LIVE
    jne .Lanswers_done
    lea eax, [ebx + DISK_FRONT]
    call ring_waiting
    jc .Lanswers_impossible
    test ecx, ecx
    jnz .Lanswers_answer
    call ring_rest
    jc .Lanswers_impossible
    test ecx, ecx
    jz .Lanswers_done
.Lanswers_answer:
    lea edx, [ebx + DISK_FRONT]
    RING_SLOT esi, edx, FRONT_TAKEN, BLKIF_RING_SIZE, SIZEOF_BLKIF_REQUEST
    inc dword ptr [edx + FRONT_TAKEN]
    mov eax, [esi + BLKIF_RESPONSE_ID]
    cmp dword ptr [esi + BLKIF_RESPONSE_ID + 4], 0
    jne .Lanswers_unknown
    cmp eax, BLKIF_RING_SIZE
    jae .Lanswers_unknown
    bt [ebx + DISK_FREE], eax
    jc .Lanswers_unknown
    movsx edx, word ptr [esi + BLKIF_RESPONSE_STATUS]
    neg edx
    sbb edx, edx                    # 0 for BLKIF_RSP_OKAY
    and edx, -EIO
    call blk_finish
    jmp .Lanswers_look
.Lanswers_unknown:
    mov edx, offset blk_text_unknown
    jmp .Lanswers_break
.Lanswers_impossible:
    mov edx, offset blk_text_index
.Lanswers_break:
    mov dword ptr [ebx + DISK_STATE], DISK_CLOSED
    mov eax, [ebx + DISK_DEVICE]
    call xenbus_break
.Lanswers_done:
    pop esi
    ret

# A request is done. In: eax = its number, edx = 0 or -errno, ebx = disk.
blk_finish:
    push esi
    push edi
    push ebp
    lock bts [ebx + DISK_FREE], eax
    imul edi, eax, SIZEOF_REQUEST
    lea edi, [ebx + edi + DISK_REQUESTS]
    mov esi, [edi + REQUEST_TRANSFER]
    dec dword ptr [esi + TRANSFER_PENDING]
    test edx, edx
    jz .Lfinish_no_error
    mov [esi + TRANSFER_ERROR], edx
.Lfinish_no_error:
    mov ebp, [edi + REQUEST_COUNT]
    mov esi, [edi + REQUEST_PAGE]
.Lfinish_segment:
    dec ebp
    js .Lfinish_segments_done
    mov eax, [esi + BLKIF_REQUEST_SEGMENT_GREF]
    call blk_end_grant
    add esi, SIZEOF_BLKIF_REQUEST_SEGMENT
    jmp .Lfinish_segment
.Lfinish_segments_done:
    mov eax, [edi + REQUEST_PAGE_REF]
    test eax, eax
    jz .Lfinish_direct
    call grant_end
    test eax, eax
    jz .Lfinish_direct
    mov dword ptr [edi + REQUEST_PAGE], 0   # it may be read for ever
.Lfinish_direct:
    cmp dword ptr [ebx + DISK_IS_LEAVING], 0
    je .Lfinish_done
    mov eax, [ebx + DISK_DEVICE]
    call xenbus_poke
.Lfinish_done:
    pop ebp
    pop edi
    pop esi
    ret

# Take a grant back. Where the backend does not let go of the page, the page is lost for all others:
# one more user than there is keeps it from ever being free. In: eax = reference.
blk_end_grant:
    push eax
    call grant_end
    test eax, eax
    pop eax
    jz .Lend_grant_done
    call grant_page
    jmp page_share
.Lend_grant_done:
    ret

.section .rodata
blk_text_unknown:
    .asciz "answers what was not asked"
blk_text_index:
    .asciz "answers more than was asked"

.section .bss
.p2align 2
disks:
    .space DISKS_MAX * SIZEOF_DISK
