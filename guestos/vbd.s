# SPDX-License-Identifier: GPL-2.0-or-later
#
# The driver of disks, as xenbus.s calls it: from the nodes in XenStore to a ring, and back.
#
#   connect   the disk's place in the table, an empty ring, its grant and an event port
#   live      what the backend says of the disk; requests of before go into the new ring
#   idle      whether the backend may close
#   stop      the port is given back; requests wait for the next ring, or fail
#   remove    the disk is gone, and its pages are free
#
# A disk is named by its number: 202 * 256 is xvda, and the next ones are 16 apart. Partitions as
# devices of their own, which toolstacks can make, too, are left alone.

.section .text

# Offer a ring. In: eax = device. Out: eax = 0 or -errno.
blk_connect:
    push ebx
    push esi
    mov esi, eax
    call blk_disk_of
    jc .Lconnect_unknown
    mov ebx, eax
    mov [esi + DEVICE_DATA], eax
    cmp dword ptr [ebx + DISK_DEVICE], 0
    jne .Lconnect_known
    mov dword ptr [ebx + DISK_FREE], -1
    mov dword ptr [ebx + DISK_SECTORS], 0
    inc dword ptr [ebx + DISK_GENERATION]
    mov [ebx + DISK_DEVICE], esi
.Lconnect_known:
    mov dword ptr [ebx + DISK_STATE], DISK_WAITING
    mov dword ptr [ebx + DISK_IS_LEAVING], 0
    call grants_open
    test eax, eax
    jnz .Lconnect_no_memory
    call blk_end_ring               # of an earlier connection
    mov edx, [ebx + DISK_FRONT + FRONT_PAGE]
    test edx, edx
    jnz .Lconnect_has_page
    call page_alloc
    test eax, eax
    jz .Lconnect_no_memory
    mov edx, eax
.Lconnect_has_page:
    lea eax, [ebx + DISK_FRONT]
    call ring_open
    mov eax, [ebx + DISK_FRONT + FRONT_PAGE]
    mov edx, [esi + DEVICE_DOMID]
    xor ecx, ecx
    call grant_give
    test eax, eax
    jz .Lconnect_no_memory
    mov [ebx + DISK_RING_REF], eax
    mov eax, [esi + DEVICE_DOMID]
    mov edx, offset eventcount_event
    lea ecx, [ebx + DISK_EVENTS]
    call event_connect
    test eax, eax
    js .Lconnect_failed
    mov [ebx + DISK_PORT], eax
    mov ecx, eax
    mov eax, esi
    mov edx, offset blk_event_channel
    call xenbus_write_number
    test eax, eax
    js .Lconnect_failed
    mov eax, esi
    mov edx, offset blk_ring_ref
    mov ecx, [ebx + DISK_RING_REF]
    call xenbus_write_number
    test eax, eax
    js .Lconnect_failed
    mov eax, esi
    mov edx, offset blk_protocol
    mov ecx, offset blk_protocol_name
    call xenbus_write
    test eax, eax
    jns .Lconnect_done
.Lconnect_failed:
    push eax
    mov eax, esi
    mov edx, 1
    call blk_stop
    pop eax
    jmp .Lconnect_out
.Lconnect_done:
    xor eax, eax
.Lconnect_out:
    pop esi
    pop ebx
    ret
.Lconnect_no_memory:
    mov eax, -ENOMEM
    jmp .Lconnect_failed
.Lconnect_unknown:
    mov eax, -ENODEV
    jmp .Lconnect_out

# The backend has joined: find out what the disk is, and ask for what was in work. In: eax = device.
# Out: eax = 0 or -errno.
blk_live:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov ebx, [eax + DEVICE_DATA]
    push dword ptr [ebx + DISK_SECTORS]
    mov edi, offset blk_features
.Llive_feature:
    mov eax, esi
    mov edx, [edi]
    call xenbus_backend_number
    jnc .Llive_told
    mov eax, [edi + 8]              # what it is where it is not told
.Llive_told:
    mov ecx, [edi + 4]
    mov [ebx + ecx], eax
    add edi, 12
    cmp edi, offset blk_features_end
    jb .Llive_feature
    cmp dword ptr [ebx + DISK_SECTORS], 0
    je .Llive_unknown
    cmp dword ptr [ebx + DISK_SEGMENTS], BLKIF_MAX_SEGMENTS_PER_REQUEST
    jae .Llive_at_least
    mov dword ptr [ebx + DISK_SEGMENTS], BLKIF_MAX_SEGMENTS_PER_REQUEST
.Llive_at_least:
    cmp dword ptr [ebx + DISK_SEGMENTS], BLK_SEGMENTS_MAX
    jbe .Llive_at_most
    mov dword ptr [ebx + DISK_SEGMENTS], BLK_SEGMENTS_MAX
.Llive_at_most:
    mov dword ptr [ebx + DISK_STATE], DISK_LIVE
    mov eax, [esp]
    cmp [ebx + DISK_SECTORS], eax
    je .Llive_known                 # its backend has come again
    call blk_print
.Llive_known:
    call blk_ask_again
    lea eax, [ebx + DISK_EVENTS]
    call eventcount_advance         # who waits for the disk can ask now
    xor eax, eax
.Llive_out:
    pop edx
    pop edi
    pop esi
    pop ebx
    ret
.Llive_unknown:
    mov eax, -EINVAL
    jmp .Llive_out

# Put requests that were in work into a new ring. In: ebx = disk, esi = device.
blk_ask_again:
    push edi
    push ebp
    xor ebp, ebp
.Lask_again_next:
    bt [ebx + DISK_FREE], ebp
    jc .Lask_again_skip
    imul edi, ebp, SIZEOF_REQUEST
    lea edi, [ebx + edi + DISK_REQUESTS]
    call blk_grant_again
    jc .Lask_again_fail
    call blk_put
.Lask_again_skip:
    inc ebp
    cmp ebp, BLKIF_RING_SIZE
    jb .Lask_again_next
    pop ebp
    pop edi
    jmp blk_tell
.Lask_again_fail:
    mov eax, ebp
    mov edx, -EIO
    call blk_finish
    jmp .Lask_again_skip

# Grant the pages of a request to the backend that is there now. In: edi = request, ebx = disk, esi
# = device. Out: CF set where that cannot be.
blk_grant_again:
    push ebp
    mov eax, [edi + REQUEST_COUNT]
    cmp eax, [ebx + DISK_SEGMENTS]
    ja .Lgrant_again_failed
    xor ebp, ebp
.Lgrant_again_next:
    cmp ebp, [edi + REQUEST_COUNT]
    jae .Lgrant_again_segments
    mov eax, [edi + REQUEST_PAGE]
    mov eax, [eax + ebp * SIZEOF_BLKIF_REQUEST_SEGMENT + BLKIF_REQUEST_SEGMENT_GREF]
    push eax
    call grant_page
    mov edx, [esi + DEVICE_DOMID]
    xor ecx, ecx
    cmp dword ptr [edi + REQUEST_OPERATION], BLKIF_OP_READ
    je .Lgrant_again_give
    mov ecx, GTF_readonly
.Lgrant_again_give:
    call grant_give
    mov edx, eax
    pop eax
    test edx, edx
    jz .Lgrant_again_failed
    mov ecx, [edi + REQUEST_PAGE]
    mov [ecx + ebp * SIZEOF_BLKIF_REQUEST_SEGMENT + BLKIF_REQUEST_SEGMENT_GREF], edx
    call blk_end_grant
    inc ebp
    jmp .Lgrant_again_next
.Lgrant_again_segments:
    mov eax, [edi + REQUEST_PAGE_REF]
    test eax, eax
    jz .Lgrant_again_done
    call blk_end_grant
    mov eax, [edi + REQUEST_PAGE]
    mov edx, [esi + DEVICE_DOMID]
    mov ecx, GTF_readonly
    call grant_give
    mov [edi + REQUEST_PAGE_REF], eax
    test eax, eax
    jz .Lgrant_again_failed
.Lgrant_again_done:
    clc
    pop ebp
    ret
.Lgrant_again_failed:
    stc
    pop ebp
    ret

# The backend wants to close: begin nothing new. In: eax = device. Out: eax = 1 where nothing is in
# work.
blk_idle:
    mov ecx, [eax + DEVICE_DATA]
    mov dword ptr [ecx + DISK_IS_LEAVING], 1
    xor eax, eax
    cmp dword ptr [ecx + DISK_FREE], -1
    sete al
    ret

# Leave the connection. In: eax = device, edx = 1 where what is in work is to fail.
blk_stop:
    push ebx
    push esi
    push edi
    mov esi, edx
    mov ebx, [eax + DEVICE_DATA]
    test ebx, ebx
    jz .Lstop_out                   # it never was connected
    mov dword ptr [ebx + DISK_STATE], DISK_WAITING
    xor eax, eax
    xchg eax, [ebx + DISK_PORT]
    test eax, eax
    jz .Lstop_no_port
    call event_disconnect
.Lstop_no_port:
    test esi, esi
    jz .Lstop_told
    mov dword ptr [ebx + DISK_STATE], DISK_CLOSED
    xor edi, edi
.Lstop_fail:
    bt [ebx + DISK_FREE], edi
    jc .Lstop_skip
    mov eax, edi
    mov edx, -EIO
    call blk_finish
.Lstop_skip:
    inc edi
    cmp edi, BLKIF_RING_SIZE
    jb .Lstop_fail
.Lstop_told:
    lea eax, [ebx + DISK_EVENTS]
    call eventcount_advance
.Lstop_out:
    pop edi
    pop esi
    pop ebx
    ret

# End the grant of a ring that is not used any more; not earlier, for a backend lets go of it when
# it sees our state. In: ebx = disk.
blk_end_ring:
    xor eax, eax
    xchg eax, [ebx + DISK_RING_REF]
    test eax, eax
    jz .Lend_ring_done
    call grant_end
    test eax, eax
    jz .Lend_ring_done
    mov dword ptr [ebx + DISK_FRONT + FRONT_PAGE], 0        # the backend may write to it for ever
.Lend_ring_done:
    ret

# The disk is gone: give back what it has. In: eax = device.
blk_remove:
    push ebx
    push edi
    mov ebx, [eax + DEVICE_DATA]
    test ebx, ebx
    jz .Lremove_out
    mov dword ptr [ebx + DISK_STATE], DISK_GONE
    mov dword ptr [ebx + DISK_DEVICE], 0
    call blk_end_ring
    lea eax, [ebx + DISK_FRONT + FRONT_PAGE]
    call blk_free_page
    lea edi, [ebx + DISK_REQUESTS]
.Lremove_request:
    lea eax, [edi + REQUEST_PAGE]
    call blk_free_page
    add edi, SIZEOF_REQUEST
    lea eax, [ebx + SIZEOF_DISK]
    cmp edi, eax
    jb .Lremove_request
    mov eax, ebx
    call blk_name_of
    call print
    PRINT ": gone\n"
.Lremove_out:
    pop edi
    pop ebx
    ret

# Give back a page if there is one. In: eax = where its address stands, which becomes 0.
blk_free_page:
    xor edx, edx
    xchg edx, [eax]
    mov eax, edx
    test eax, eax
    jnz page_free
    ret

# Say that a disk is there. In: ebx = disk.
blk_print:
    mov eax, ebx
    call blk_name_of
    call print
    PRINT ": "
    mov eax, [ebx + DISK_SECTORS]
    call print_decimal
    PRINT " sectors"
    test dword ptr [ebx + DISK_INFO], VDISK_READONLY
    jz .Lprint_writable
    PRINT ", read-only"
.Lprint_writable:
    PRINT "\n"
    ret

# -- names -----------------------------------------------------------------------------------

# Which disk is a device? In: eax = device. Out: eax = disk; CF set for a number that is no disk's.
blk_disk_of:
    mov eax, [eax + DEVICE_NUMBER]
    sub eax, BLK_FIRST
    jb .Ldisk_of_none
    test eax, 15
    jnz .Ldisk_of_none              # a partition: toolstacks can make such, too
    shr eax, 4
    cmp eax, DISKS_MAX
    jae .Ldisk_of_none
    imul eax, eax, SIZEOF_DISK
    add eax, offset disks
    clc
    ret
.Ldisk_of_none:
    stc
    ret

# In: eax = disk. Out: eax = its name, a text that lasts until the next call.
blk_name_of:
    sub eax, offset disks
    xor edx, edx
    mov ecx, SIZEOF_DISK
    div ecx
    add al, 'a'
    shl eax, 24
    or eax, 0x647678                # "xvd"
    mov [blk_name], eax             # a 0 follows
    mov eax, offset blk_name
    ret

# Find a disk by its letter. In: al. Out: eax = disk; CF set where there is none.
blk_find:
    movzx eax, al
    sub eax, 'a'
    cmp eax, DISKS_MAX
    jae .Lfind_none
    imul eax, eax, SIZEOF_DISK
    add eax, offset disks
    cmp dword ptr [eax + DISK_STATE], DISK_GONE
    je .Lfind_none
    clc
    ret
.Lfind_none:
    stc
    ret

.section .rodata
.p2align 2
blk_features:                       # name, where it goes, what it is otherwise
    .long .Lblk_sectors, DISK_SECTORS, 0
    .long .Lblk_info, DISK_INFO, 0
    .long .Lblk_flush, DISK_CAN_FLUSH, 0
    .long .Lblk_indirect, DISK_SEGMENTS, 0
blk_features_end:
.Lblk_sectors: .asciz "sectors"
.Lblk_info: .asciz "info"
.Lblk_flush: .asciz "feature-flush-cache"
.Lblk_indirect: .asciz "feature-max-indirect-segments"
blk_path:
    .asciz "device/vbd"
blk_ring_ref:
    .asciz "ring-ref"
blk_event_channel:
    .asciz "event-channel"
blk_protocol:
    .asciz "protocol"
blk_protocol_name:
    .asciz "x86_32-abi"

.section .bss
.p2align 2
blk_name:
    .space 8
