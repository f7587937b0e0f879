# SPDX-License-Identifier: GPL-2.0-or-later
#
# netfront: the driver of a network interface whose backend is in another domain
# (public/io/netif.h).
#
#   the ring to send      request: page, offset, length, id        response: id, what became of it
#   the ring to receive   request: an empty page, id               response: offset, length, id
#
# Both rings have NETIF_TX_RING_SIZE slots, and one event port serves both. All pages are granted
# when the interface is connected (vif.s), and stay so: no packet needs a hypercall for its page.
#
# What costs is telling: an event of ours is a hypercall, and one of the backend interrupts us. So
# both ends tell seldom. What is to be sent is put in the ring, and told once for all of a system
# call, or of a handler's run (netfront_push). Responses to what was sent are not told at all: they
# are collected when buffers run short; only who finds none left asks to be told, when three
# quarters are done. The backend tells of the first packet received; those that came meanwhile are
# taken along before the next event is asked for. For each page that a socket keeps, another one
# takes its slot, so the ring to receive is always full, and is shown as such once per run.
#
# A flood of packets must not stop programs, least of all those that are to read them. So handlers
# take as many as a ring has slots (network_budget), and leave the rest in the ring, with no event
# asked for. They may take more with each tick of the clock; when a processor has nothing to do; and
# when a program wants to read from a socket that has nothing: then it takes them itself. What waits
# at sockets already counts against it, but for a few: the kernel answers, however little is read.
#
# The backend may be hostile. What it writes is read once, and what cannot be (a response that
# nobody asked for, an id of no buffer in the ring, more bytes than a page has) ends the use of its
# rings: netfront_break. That may happen deep in the handling of a packet, when an answer needs a
# buffer: so the rings' pages are looked at before each use. network_lock is held by all routines
# that do not say otherwise.

.equ NETFRONT_SLOTS, NETIF_RX_RING_SIZE
.equ NETFRONT_CHUNK, 32             # frames taken while the lock is held
.equ NETFRONT_BUDGET, NETFRONT_SLOTS
.equ NETFRONT_LEAST_BUDGET, 16
.equ NETFRONT_RX_CHECKED, NETRXF_data_validated | NETRXF_csum_blank

.section .text

# -- sending ---------------------------------------------------------------------------------

# Put a frame into the ring. In: eax = buffer, edx = bytes, ebp = interface. Where the interface is
# not connected it is lost.
netfront_send:
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    jne .Lsend_down
    push ebx
    push esi
    inc dword ptr [ebp + NETWORK_TX_PACKETS]
    add [ebp + NETWORK_TX_BYTES], edx
    adc dword ptr [ebp + NETWORK_TX_BYTES + 4], 0
    mov ebx, eax
    lea esi, [ebp + NIC_TX]
    RING_SLOT ecx, esi, FRONT_PUT, NETFRONT_SLOTS, SIZEOF_NETIF_TX_REQUEST
    inc dword ptr [esi + FRONT_PUT]
    mov dword ptr [ebx + PBUF_IN_RING], 1
    mov eax, [ebx + PBUF_GRANT]
    mov [ecx + NETIF_TX_REQUEST_GREF], eax
    mov eax, [ebx + PBUF_DATA]
    and eax, PAGE_SIZE - 1
    mov [ecx + NETIF_TX_REQUEST_OFFSET], eax        # and flags: no checksum is left blank
    shl edx, 16
    or edx, [ebx + PBUF_NUMBER]
    mov [ecx + NETIF_TX_REQUEST_ID], edx            # and size
    pop esi
    pop ebx
    ret
.Lsend_down:
    inc dword ptr [ebp + NETWORK_TX_DROPPED]
    jmp network_discard

# Show the backend what was put into both rings, and tell it if it wants to be told. In: ebp.
netfront_push:
    push ebx
    xor ebx, ebx
    cmp [ebp + NIC_TX + FRONT_PAGE], ebx
    je .Lpush_done                  # it is not connected any more
    mov eax, [ebp + NIC_TX + FRONT_PUT]
    cmp eax, [ebp + NIC_TX + FRONT_PUBLISHED]
    je .Lpush_tx_done
    lea eax, [ebp + NIC_TX]
    call ring_publish
    mov ebx, eax
.Lpush_tx_done:
    mov eax, [ebp + NIC_RX + FRONT_PUT]
    cmp eax, [ebp + NIC_RX + FRONT_PUBLISHED]
    je .Lpush_rx_done
    lea eax, [ebp + NIC_RX]
    call ring_publish
    or ebx, eax
.Lpush_rx_done:
    test ebx, ebx
    jz .Lpush_done
    inc dword ptr [ebp + NETWORK_NOTIFIES]
    mov eax, [ebp + NIC_EVENT]
    call port_send_event
.Lpush_done:
    pop ebx
    ret

# Take the buffers back that the backend has sent. In: ebp.
netfront_collect:
    push ebx
    push esi
    push edi
    lea esi, [ebp + NIC_TX]
    cmp dword ptr [esi + FRONT_PAGE], 0
    je .Lcollect_done
    mov eax, esi
    call ring_waiting
    jc .Lcollect_broken
    mov edi, ecx
.Lcollect_next:
    dec edi
    js .Lcollect_done
    RING_SLOT ecx, esi, FRONT_TAKEN, NETFRONT_SLOTS, SIZEOF_NETIF_TX_REQUEST
    mov ecx, [ecx]                  # id, and what became of it above
    movzx eax, cx
    cmp eax, NETFRONT_SLOTS
    jae .Lcollect_broken
    mov edx, [ebp + NIC_TX_SLOTS]
    mov ebx, [edx + eax * 4]
    test ebx, ebx
    jz .Lcollect_broken
    cmp dword ptr [ebx + PBUF_IN_RING], 1
    jne .Lcollect_broken
    mov dword ptr [ebx + PBUF_IN_RING], 0
    inc dword ptr [esi + FRONT_TAKEN]
    sar ecx, 16
    jns .Lcollect_sent
    inc dword ptr [ebp + NETWORK_TX_DROPPED]
.Lcollect_sent:
    mov eax, ebx
    call network_discard
    jmp .Lcollect_next
.Lcollect_broken:
    call netfront_break
.Lcollect_done:
    pop edi
    pop esi
    pop ebx
    ret

# Ask to be told when there is room to send, three quarters of the ring. In: ebp. Out: eax = 1 where
# there is some already.
netfront_want_room:
    call netfront_push
    mov edx, [ebp + NIC_TX + FRONT_PAGE]
    test edx, edx
    jz .Lwant_some                  # it is not connected any more: whoever asks finds out
    mov eax, [ebp + NIC_TX + FRONT_PUT]
    sub eax, [ebp + NIC_TX + FRONT_TAKEN]
    mov ecx, eax
    shr ecx, 2
    sub eax, ecx
    add eax, [ebp + NIC_TX + FRONT_TAKEN]
    xchg [edx + SRING_RSP_EVENT], eax       # before the last look: see ring.s
    call netfront_collect
    cmp dword ptr [ebp + NIC_TX_FREE], 0
    jne .Lwant_some
    xor eax, eax
    ret
.Lwant_some:
    mov eax, 1
    ret

# -- receiving -------------------------------------------------------------------------------

# The handler of the event. In: edx = interface. Events are masked.
netfront_event:
    push ebp
    mov ebp, edx
    inc dword ptr [ebp + NETWORK_EVENTS]
    mov eax, offset network_lock
    call lock_take
    cmp dword ptr [ebp + NIC_TX_WAITERS], 0
    je .Levent_no_waiters
    call netfront_collect
    cmp dword ptr [ebp + NIC_TX_FREE], 0
    je .Levent_no_waiters
    mov dword ptr [ebp + NIC_TX_WAITERS], 0
    lea eax, [ebp + NIC_TX_FREE]
    call process_wake
.Levent_no_waiters:
    mov dword ptr [network_lock], 0
    call netfront_receive
    pop ebp
    ret

# Take what has come. In: ebp = interface. Events are masked, network_lock is not held.
netfront_receive:
    push esi
    push edi
    lea edi, [ebp + NIC_RX]
.Lnetfront_rx_chunk:
    mov eax, offset network_lock
    call lock_take
    cmp dword ptr [edi + FRONT_PAGE], 0
    je .Lnetfront_rx_done           # it is not connected any more
    mov eax, edi
    call ring_waiting
    jc .Lnetfront_rx_broken
    test ecx, ecx
    jz .Lnetfront_rx_rest
    mov esi, NETFRONT_CHUNK
    cmp ecx, esi
    jae .Lnetfront_rx_budget
    mov esi, ecx
.Lnetfront_rx_budget:
    mov ecx, [network_budget]
    test ecx, ecx
    jz .Lnetfront_rx_behind
    cmp ecx, esi
    jae .Lnetfront_rx_some
    mov esi, ecx
.Lnetfront_rx_some:
    sub [network_budget], esi
.Lnetfront_rx_next:
    call netfront_take
    jc .Lnetfront_rx_broken
    dec esi
    jnz .Lnetfront_rx_next
    mov dword ptr [network_lock], 0
    jmp .Lnetfront_rx_chunk
.Lnetfront_rx_behind:
    mov byte ptr [network_is_behind], 1
    call netfront_push
    jmp .Lnetfront_rx_done
.Lnetfront_rx_rest:
    call netfront_push              # pages for those that were kept, and answers
    mov eax, edi
    call ring_rest
    jc .Lnetfront_rx_broken
    mov dword ptr [network_lock], 0
    test ecx, ecx
    jnz .Lnetfront_rx_chunk
    jmp .Lnetfront_rx_out
.Lnetfront_rx_broken:
    call netfront_break
.Lnetfront_rx_done:
    mov dword ptr [network_lock], 0
.Lnetfront_rx_out:
    pop edi
    pop esi
    ret

# Take one frame, and put a page into the ring in its place. In: ebp. Out: CF set where the backend
# has done what cannot be.
netfront_take:
    push ebx
    push esi
    push edi
    lea edi, [ebp + NIC_RX]
    RING_SLOT eax, edi, FRONT_TAKEN, NETFRONT_SLOTS, SIZEOF_NETIF_RX_REQUEST
    mov edx, [eax]                  # id, and offset above
    mov eax, [eax + NETIF_RX_RESPONSE_FLAGS]        # and status above
    mov ecx, [edi + FRONT_TAKEN]
    and ecx, NETFRONT_SLOTS - 1
    cmp dx, cx                      # ids are the slots' numbers
    jne .Ltake_broken
    mov ebx, [ebp + NIC_RX_SLOTS]
    mov ebx, [ebx + ecx * 4]
    inc dword ptr [edi + FRONT_TAKEN]
    mov ecx, eax
    sar ecx, 16                     # bytes, or an error
    js .Ltake_dropped
    shr edx, 16
    lea esi, [edx + ecx]
    cmp esi, PAGE_SIZE
    ja .Ltake_broken
    test eax, NETRXF_more_data | NETRXF_extra_info
    jnz .Ltake_broken               # of what we have not offered
    and eax, NETFRONT_RX_CHECKED
    mov [ebx + PBUF_CHECKED], eax
    inc dword ptr [ebp + NETWORK_RX_PACKETS]
    add [ebp + NETWORK_RX_BYTES], ecx
    adc dword ptr [ebp + NETWORK_RX_BYTES + 4], 0
    mov esi, [ebx + PBUF_DATA]
    add esi, edx
    call ethernet_input
    cmp dword ptr [ebp + NIC_RX + FRONT_PAGE], 0
    je .Ltake_broken                # its rings have broken meanwhile
    test eax, eax
    jz .Ltake_post
    mov ebx, [ebp + NIC_RX_FREE]    # socket_queue keeps none without one in its place
    mov eax, [ebx + PBUF_NEXT]
    mov [ebp + NIC_RX_FREE], eax
    dec dword ptr [ebp + NIC_RX_SPARE]
.Ltake_post:
    call netfront_post
    clc
.Ltake_out:
    pop edi
    pop esi
    pop ebx
    ret
.Ltake_dropped:
    inc dword ptr [ebp + NETWORK_RX_DROPPED]
    jmp .Ltake_post
.Ltake_broken:
    stc
    jmp .Ltake_out

# Put a page into the ring to receive. In: ebx = buffer, ebp = interface. Changes edi.
netfront_post:
    lea edi, [ebp + NIC_RX]
    RING_SLOT eax, edi, FRONT_PUT, NETFRONT_SLOTS, SIZEOF_NETIF_RX_REQUEST
    mov ecx, [edi + FRONT_PUT]
    inc dword ptr [edi + FRONT_PUT]
    and ecx, NETFRONT_SLOTS - 1
    mov [eax + NETIF_RX_REQUEST_ID], ecx
    mov edx, [ebx + PBUF_GRANT]
    mov [eax + NETIF_RX_REQUEST_GREF], edx
    mov edx, [ebp + NIC_RX_SLOTS]
    mov [edx + ecx * 4], ebx
    ret

# Let handlers take more, and take what was left. Events are masked, network_lock is not held.
netfront_catch_up:
    mov eax, NETFRONT_BUDGET - NETFRONT_LEAST_BUDGET
    sub eax, [network_unread]
    jns .Lcatch_up_budget
    xor eax, eax
.Lcatch_up_budget:
    add eax, NETFRONT_LEAST_BUDGET
    mov [network_budget], eax
    cmp byte ptr [network_is_behind], 0
    je .Lcatch_up_done
    mov byte ptr [network_is_behind], 0
    push ebp
    mov ebp, offset network_nics
.Lcatch_up_next:
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    jne .Lcatch_up_skip
    call netfront_receive
.Lcatch_up_skip:
    add ebp, SIZEOF_NIC
    cmp ebp, offset network_nics_end
    jb .Lcatch_up_next
    pop ebp
.Lcatch_up_done:
    ret

# The backend has done what cannot be: use nothing of it any more. The process of xenbus.s does the
# rest. In: ebp. Once is enough.
netfront_break:
    cmp dword ptr [ebp + NIC_RX + FRONT_PAGE], 0
    je .Lbreak_done
    call netfront_leave
    mov eax, [ebp + NIC_DEVICE]
    mov edx, offset netfront_broken
    jmp xenbus_break
.Lbreak_done:
    ret

# Use the rings no more, and wake who waits for room. In: ebp.
netfront_leave:
    mov dword ptr [ebp + NETWORK_STATE], NETWORK_DOWN
    mov dword ptr [ebp + NIC_TX + FRONT_PAGE], 0
    mov dword ptr [ebp + NIC_RX + FRONT_PAGE], 0
    mov dword ptr [ebp + NIC_TX_FREE], 0
    mov dword ptr [ebp + NIC_TX_WAITERS], 0
    lea eax, [ebp + NIC_TX_FREE]
    jmp process_wake

.section .rodata
netfront_broken:
    .asciz "the backend breaks the rules of a ring"

.section .bss
.p2align 2
network_budget:
    .space 4                        # frames that handlers may take yet
network_is_behind:
    .space 1                        # 1: frames were left in a ring
