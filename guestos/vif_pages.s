# SPDX-License-Identifier: GPL-2.0-or-later
#
# The pages of a network interface: two rings, and buffers, granted to the backend once.
#
# An interface costs memory only when it meets a backend. How much depends on what there is: on a
# big machine VIF_RX buffers to receive and NETFRONT_SLOTS to send, two of which share a page. Two
# fifths of those to receive lie in the ring, the others are for packets that wait at sockets.
#
# Buffers are kept in pages of their own, VIF_CHUNK in each: the pages that the backend can write
# hold nothing but frames. They are given back when the next backend is met, or the device is gone;
# what the one before still holds then is lost.

.equ VIF_RX, 640
.equ VIF_RX_SHARE, 6                # of the free pages: one of so many, at most
.equ VIF_TX_SHARE, 32
.equ VIF_LEAST, 10                  # with less it makes no sense
.equ VIF_CHUNK_NEXT, 0
.equ VIF_CHUNK_COUNT, 4
.equ VIF_CHUNK_BUFFERS, 8
.equ VIF_CHUNK, (PAGE_SIZE - VIF_CHUNK_BUFFERS) / SIZEOF_PBUF
.equ VIF_TX_OFFSET, 2               # so that the header of IP begins at a multiple of 4
.equ VIF_HALF, PAGE_SIZE / 2

.section .text

# Make rings and buffers. In: ebx = device, ebp = interface. Out: eax = 0 or -errno; what was made
# is for vif_release.
vif_make:
    push esi
    call page_alloc
    test eax, eax
    jz .Lmake_no_memory
    mov [ebp + NIC_TX_SLOTS], eax
    add eax, NETFRONT_SLOTS * 4
    mov [ebp + NIC_RX_SLOTS], eax
    lea eax, [ebp + NIC_TX]
    call vif_make_ring
    mov [ebp + NIC_TX_GRANT], eax
    test eax, eax
    jz .Lmake_no_memory
    lea eax, [ebp + NIC_RX]
    call vif_make_ring
    mov [ebp + NIC_RX_GRANT], eax
    test eax, eax
    jz .Lmake_no_memory
    mov eax, VIF_TX_SHARE
    mov edx, NETFRONT_SLOTS / 2
    call vif_share
    mov esi, eax
.Lmake_tx:
    dec esi
    js .Lmake_tx_done
    call vif_make_tx
    jnc .Lmake_tx
.Lmake_tx_done:
    mov eax, VIF_RX_SHARE
    mov edx, VIF_RX
    call vif_share
    mov esi, eax
.Lmake_rx:
    dec esi
    js .Lmake_rx_done
    call vif_make_rx
    jnc .Lmake_rx
.Lmake_rx_done:
    cmp dword ptr [ebp + NIC_TX_FREE], 0
    je .Lmake_no_memory
    cmp dword ptr [ebp + NIC_RX_SPARE], VIF_LEAST
    jb .Lmake_no_memory
    call vif_fill_ring
    xor eax, eax
    pop esi
    ret
.Lmake_no_memory:
    mov eax, -ENOMEM
    pop esi
    ret

# How many pages may be used for something? In: eax = one of so many free ones, edx = enough. Out:
# eax.
vif_share:
    push ebx
    push esi
    mov ebx, eax
    mov esi, edx
    call page_count_free
    xor edx, edx
    div ebx
    cmp eax, esi
    jbe .Lshare_out
    mov eax, esi
.Lshare_out:
    pop esi
    pop ebx
    ret

# Make a ring. In: eax = front, ebx = device. Out: eax = its grant, or 0.
vif_make_ring:
    push esi
    mov esi, eax
    xor ecx, ecx
    call vif_make_page
    test eax, eax
    jz .Lmake_ring_out
    push eax
    mov eax, esi
    call ring_open
    pop eax
.Lmake_ring_out:
    pop esi
    ret

# Make a page and grant it. In: ecx = 0 or GTF_readonly, ebx = device. Out: eax = grant or 0, edx =
# page.
vif_make_page:
    push esi
    push ecx
    call page_alloc
    pop ecx
    mov esi, eax
    test eax, eax
    jz .Lmake_page_out
    mov edx, [ebx + DEVICE_DOMID]
    call grant_give
    mov edx, esi
    test eax, eax
    jnz .Lmake_page_out
    mov eax, esi
    call page_free
    xor eax, eax
.Lmake_page_out:
    pop esi
    ret

# Make two buffers to send, in one page. In: ebx = device, ebp = interface, esi = number of the
# page. Out: CF set where there is no memory.
vif_make_tx:
    push edi
    mov ecx, GTF_readonly
    call vif_make_page
    test eax, eax
    jz .Lmake_buffer_none
    push eax
    lea edi, [edx + VIF_TX_OFFSET]
    lea ecx, [esi * 2]
    call vif_make_tx_half
    pop edx
    jc .Lmake_buffer_undo
    lea ecx, [esi * 2 + 1]
    mov eax, edx
    add edi, VIF_HALF
    call vif_make_tx_half           # without the second half the first one will do
    clc
    pop edi
    ret

# In: eax = grant, ecx = number, edi = memory. Out: CF set where there is no memory.
vif_make_tx_half:
    push ecx
    call vif_make_buffer
    pop ecx
    jc .Lmake_half_out
    mov edx, [ebp + NIC_TX_SLOTS]
    mov [edx + ecx * 4], eax
    call network_discard            # onto the list of free ones
    clc
.Lmake_half_out:
    ret

# Make a buffer to receive. In and out: as of vif_make_tx.
vif_make_rx:
    push edi
    xor ecx, ecx
    call vif_make_page
    test eax, eax
    jz .Lmake_buffer_none
    push eax
    mov edi, edx
    xor ecx, ecx
    call vif_make_buffer
    pop edx
    jc .Lmake_buffer_undo
    call network_recycle
    clc
    pop edi
    ret
.Lmake_buffer_undo:
    mov eax, edx
    call vif_end
.Lmake_buffer_none:
    stc
    pop edi
    ret

# Make a buffer. In: eax = grant, ecx = number, edi = memory. Out: eax = buffer; CF set for none.
vif_make_buffer:
    push ebx
    push eax
    push ecx
    mov ebx, [ebp + NIC_CHUNKS]
    test ebx, ebx
    jz .Lbuffer_chunk
    cmp dword ptr [ebx + VIF_CHUNK_COUNT], VIF_CHUNK
    jb .Lbuffer_room
.Lbuffer_chunk:
    call page_alloc
    test eax, eax
    stc
    jz .Lbuffer_none
    mov [eax + VIF_CHUNK_NEXT], ebx
    mov [ebp + NIC_CHUNKS], eax
    mov ebx, eax
.Lbuffer_room:
    imul eax, [ebx + VIF_CHUNK_COUNT], SIZEOF_PBUF
    inc dword ptr [ebx + VIF_CHUNK_COUNT]
    lea eax, [ebx + eax + VIF_CHUNK_BUFFERS]
    mov [eax + PBUF_NIC], ebp
    mov [eax + PBUF_DATA], edi
    mov ecx, [esp]
    mov [eax + PBUF_NUMBER], ecx
    mov ecx, [esp + 4]
    mov [eax + PBUF_GRANT], ecx
    clc
.Lbuffer_none:
    pop ecx
    pop ecx
    pop ebx
    ret

# Put two fifths of the buffers to receive into the ring, and no more than it has slots. In: ebp.
vif_fill_ring:
    push ebx
    push esi
    push edi
    mov eax, [ebp + NIC_RX_SPARE]
    add eax, eax
    xor edx, edx
    mov ecx, 5
    div ecx
    mov esi, eax
.Lfill_ring_next:
    mov ebx, [ebp + NIC_RX_FREE]
    mov eax, [ebx + PBUF_NEXT]
    mov [ebp + NIC_RX_FREE], eax
    dec dword ptr [ebp + NIC_RX_SPARE]
    call netfront_post
    dec esi
    jnz .Lfill_ring_next
    lea eax, [ebp + NIC_RX]
    call ring_publish               # the backend has no port yet: it looks when it joins
    pop edi
    pop esi
    pop ebx
    ret

# Take a port, and tell the backend all. In: ebx = device, ebp = interface. Out: eax = 0 or more, or
# -errno.
vif_tell:
    push esi
    mov eax, [ebx + DEVICE_DOMID]
    mov edx, offset netfront_event
    mov ecx, ebp
    call event_connect
    test eax, eax
    js .Lvif_tell_out
    mov [ebp + NIC_EVENT], eax
    mov esi, offset vif_nodes
.Lvif_tell_next:
    mov edx, [esi]
    test edx, edx
    jz .Lvif_tell_out
    mov ecx, [esi + 4]
    mov ecx, [ebp + ecx]
    mov eax, ebx
    call xenbus_write_number
    test eax, eax
    js .Lvif_tell_out
    add esi, 8
    jmp .Lvif_tell_next
.Lvif_tell_out:
    pop esi
    ret

# Give the pages back that the backend had; not earlier, for it lets go of them when it sees our
# state. In: ebp = interface, which is not connected.
vif_release:
    push ebx
    push esi
    push edi
    xor eax, eax
    xchg eax, [ebp + NIC_TX_GRANT]
    call vif_end
    xor eax, eax
    xchg eax, [ebp + NIC_RX_GRANT]
    call vif_end
    xor eax, eax
    xchg eax, [ebp + NIC_TX_SLOTS]
    test eax, eax
    jz .Lvif_release_buffers
    call page_free
.Lvif_release_buffers:
    xor ebx, ebx
    xchg ebx, [ebp + NIC_CHUNKS]
.Lvif_release_chunk:
    test ebx, ebx
    jz .Lvif_release_done
    mov esi, [ebx + VIF_CHUNK_COUNT]
    lea edi, [ebx + VIF_CHUNK_BUFFERS]
.Lvif_release_buffer:
    test dword ptr [edi + PBUF_NUMBER], 1
    jnz .Lvif_release_half          # the second one of a page
    mov eax, [edi + PBUF_GRANT]
    call vif_end
.Lvif_release_half:
    add edi, SIZEOF_PBUF
    dec esi
    jnz .Lvif_release_buffer
    mov eax, ebx
    mov ebx, [ebx + VIF_CHUNK_NEXT]
    call page_free
    jmp .Lvif_release_chunk
.Lvif_release_done:
    pop edi
    pop esi
    pop ebx
    ret

# End a grant, and free its page; a page that the backend still holds is lost. In: eax = grant, or
# 0.
vif_end:
    test eax, eax
    jz .Lvif_end_done
    push ebx
    mov ebx, eax
    call grant_page
    xchg eax, ebx
    call grant_end
    test eax, eax
    mov eax, ebx
    pop ebx
    jz page_free
.Lvif_end_done:
    ret
