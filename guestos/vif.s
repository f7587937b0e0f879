# SPDX-License-Identifier: GPL-2.0-or-later
#
# vif: how a network interface meets its backend, and parts from it. The rules of meeting are those
# of xenbus.s; what is told in XenStore is netif.h's.
#
#   device/vif/0/mac                        ours, or else the backend has it
#   device/vif/0/tx-ring-ref, rx-ring-ref   grants of the two rings
#   device/vif/0/event-channel              one port for both
#   device/vif/0/request-rx-copy            1: it copies packets to our pages
#
# An interface costs memory only from here on. How much depends on what there is: on a big machine
# VIF_RX buffers to receive and NETFRONT_SLOTS to send, two of which share a page. Two fifths of
# those to receive lie in the ring, the others are there for packets that wait at sockets.
#
# Buffers are kept in pages of their own, VIF_CHUNK in each: the pages that the backend can write
# hold nothing but frames. They are given back when the next backend is met, or the device is gone;
# what the one before still holds then is lost.
#
# Addresses outlive a backend: they belong to the interface, as long as the device exists.

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
.equ MAC_BYTES, 6

.section .text

# -- as a driver: in: eax = device -----------------------------------------------------------

vif_connect:
    push ebx
    push ebp
    mov ebx, eax
    mov eax, -ENODEV
    mov ecx, [ebx + DEVICE_NUMBER]
    cmp ecx, NETWORK_MAX
    jae .Lvif_connect_out
    imul ebp, ecx, SIZEOF_NIC
    add ebp, offset network_nics
    mov [ebx + DEVICE_DATA], ebp
    mov [ebp + NIC_DEVICE], ebx
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_ABSENT
    jne .Lvif_connect_known
    mov dword ptr [ebp + NETWORK_STATE], NETWORK_DOWN
    mov dword ptr [ebp + NIC_ONE], 1
.Lvif_connect_known:
    call vif_release                # of an earlier connection
    mov eax, ebx
    mov edx, offset vif_rx_copy
    call xenbus_backend_number
    jc .Lvif_connect_refused
    cmp eax, 1
    jne .Lvif_connect_refused
    call vif_read_mac
    test eax, eax
    js .Lvif_connect_out
    call grants_open
    test eax, eax
    js .Lvif_connect_failed
    call vif_make
    test eax, eax
    js .Lvif_connect_failed
    call vif_tell
    test eax, eax
    jns .Lvif_connect_out
.Lvif_connect_failed:
    push eax
    call vif_leave
    call vif_release
    pop eax
.Lvif_connect_out:
    pop ebp
    pop ebx
    ret
.Lvif_connect_refused:
    mov eax, -EINVAL                # it would want pages for pages: nobody does that any more
    jmp .Lvif_connect_out

vif_live:
    push ebx
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    mov dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    call arp_announce
    mov eax, offset network_lock
    mov edx, ebx
    call unlock_events
    xor eax, eax
    pop ebp
    pop ebx
    ret

# Packets in work may be lost at any time: nothing has to be waited for.
vif_idle:
    mov eax, 1
    ret

vif_stop:
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    test ebp, ebp
    jz .Lvif_stop_out               # it was never connected
    call vif_leave
.Lvif_stop_out:
    pop ebp
    ret

vif_remove:
    push edi
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    test ebp, ebp
    jz .Lvif_remove_out
    call vif_release
    mov edi, ebp
    xor eax, eax
    mov ecx, SIZEOF_NIC / 4
    rep stosd                       # NETWORK_ABSENT, and no address
.Lvif_remove_out:
    pop ebp
    pop edi
    ret

# -- making ----------------------------------------------------------------------------------

# Read the address of the interface. In: ebx = device, ebp = interface. Out: eax = 0 or -errno.
vif_read_mac:
    push esi
    push edi
    lea eax, [ebx + DEVICE_PATH]
    mov edx, offset vif_mac
    call store_read
    test eax, eax
    jns .Lmac_read
    lea eax, [ebx + DEVICE_BACKEND]
    mov edx, offset vif_mac
    call store_read
    test eax, eax
    js .Lmac_out
.Lmac_read:
    mov esi, offset store_answer
    xor edi, edi
.Lmac_byte:
    call vif_hex_digit
    jc .Lmac_bad
    mov ecx, eax
    call vif_hex_digit
    jc .Lmac_bad
    shl ecx, 4
    or eax, ecx
    mov [ebp + NETWORK_MAC + edi], al
    inc edi
    lodsb
    cmp edi, MAC_BYTES
    je .Lmac_end
    cmp al, ':'
    je .Lmac_byte
.Lmac_bad:
    mov eax, -EINVAL
.Lmac_out:
    pop edi
    pop esi
    ret
.Lmac_end:
    test al, al
    jnz .Lmac_bad
    test byte ptr [ebp + NETWORK_MAC], 1
    jnz .Lmac_bad                   # that of a group
    xor eax, eax
    jmp .Lmac_out

# Read a digit. In: esi. Out: eax, esi behind it; CF set where it is none. Keeps ecx.
vif_hex_digit:
    movzx eax, byte ptr [esi]
    inc esi
    sub eax, '0'
    cmp eax, 10
    jb .Ldigit_done
    add eax, '0'
    or eax, 0x20                    # a lower-case letter
    sub eax, 'a'
    cmp eax, 6
    jae .Ldigit_none
    add eax, 10
    clc
    ret
.Ldigit_none:
    stc
    ret
.Ldigit_done:
    clc
    ret

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

# -- parting ---------------------------------------------------------------------------------

# Use the backend no more, and forget what came by it. In: ebp = interface.
vif_leave:
    push ebx
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    call netfront_leave
    call socket_forget
    call arp_forget
    xor eax, eax
    mov [ebp + NIC_TX_FREE], eax
    mov [ebp + NIC_RX_FREE], eax
    mov [ebp + NIC_RX_SPARE], eax
    mov eax, offset network_lock
    mov edx, ebx
    pop ebx
    call unlock_events
    xor eax, eax
    xchg eax, [ebp + NIC_EVENT]
    test eax, eax
    jnz event_disconnect
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

.section .rodata
.p2align 2
# What the backend is told: a name, and where in the interface the number stands.
vif_nodes:
    .long .Lvif_tx_ref, NIC_TX_GRANT, .Lvif_rx_ref, NIC_RX_GRANT, .Lvif_event, NIC_EVENT
    .long .Lvif_request_copy, NIC_ONE, .Lvif_notify, NIC_ONE, 0
.Lvif_tx_ref: .asciz "tx-ring-ref"
.Lvif_rx_ref: .asciz "rx-ring-ref"
.Lvif_event: .asciz "event-channel"
.Lvif_request_copy: .asciz "request-rx-copy"
.Lvif_notify: .asciz "feature-rx-notify"
vif_rx_copy:
    .asciz "feature-rx-copy"
vif_mac:
    .asciz "mac"
vif_path:
    .asciz "device/vif"
