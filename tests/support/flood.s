# SPDX-License-Identifier: GPL-2.0-or-later
# A network frontend without manners, for tests/support/flood.py. It never ends.
#
# With SENDS set, it sends the same frame of SIZE bytes as often as there is room, and sleeps only
# where there is none. With READS set, it takes what comes and looks at none of it; without, its
# buffers are full after 256 frames, and stay so. All pages are granted for good: frame n of a ring
# uses buffer n, under TX_REF + n or RX_REF + n.

.equ RING, NETIF_TX_RING_SIZE
.equ TX_REF, 16
.equ RX_REF, TX_REF + RING
.equ WORDS, 16                          # of a frame, that the tool gives

.text
    MAP_SHARED_INFO
    EVENT_OP alloc_unbound, offered_start
    EVENT_OP alloc_unbound, offered
    mov dword ptr [tx + SRING_REQ_EVENT], 1
    mov dword ptr [tx + SRING_RSP_EVENT], 1
    mov dword ptr [rx + SRING_REQ_EVENT], 1
    mov dword ptr [rx + SRING_RSP_EVENT], 1
    mov dword ptr [given], RING
    call give_back
    mov eax, [offered_start + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [polled_port], eax
    mov ecx, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], ecx                     # the tool waits for this
    call wait                           # until it says that all are there
    mov eax, [port]
    mov [polled_port], eax
    call make_frames

again:
.if SENDS
    call fill
.endif
.if READS
    mov eax, [rx + SRING_RSP_PROD]
    add eax, RING
    mov [given], eax
    call give_back
.endif
    call rest
    jnz again
    call wait
    jmp again

# Sleep until the port is pending, and take the event.
wait:
    mov eax, [polled_port]
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    jc woken
    SCHED_OP poll, offset polled
    jmp wait
woken:
    ret

make_frames:
    mov edi, offset tx_data
    cld
make_frame:
    mov esi, offset template
    mov ecx, WORDS
    rep movsd
    add edi, 4096 - 4 * WORDS
    cmp edi, offset tx_data + 4096 * RING
    jb make_frame
    ret

# Fill the ring of frames to send, and tell of them if that is asked for.
fill:
    mov eax, [sent]
    mov edi, [tx + SRING_RSP_PROD]
    add edi, RING
put:
    cmp eax, edi
    je full
    mov ecx, eax
    and ecx, RING - 1
    imul edx, ecx, SIZEOF_NETIF_TX_REQUEST
    add edx, offset tx + SIZEOF_SRING
    add ecx, TX_REF
    mov [edx + NETIF_TX_REQUEST_GREF], ecx
    mov dword ptr [edx + NETIF_TX_REQUEST_OFFSET], 0    # and no flags
    mov word ptr [edx + NETIF_TX_REQUEST_ID], 0
    mov word ptr [edx + NETIF_TX_REQUEST_SIZE], SIZE
    inc eax
    jmp put
full:
    mov ebx, [sent]
    mov [sent], eax
    mov [tx + SRING_REQ_PROD], eax
    mov ecx, eax
    sub ecx, [tx + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae told
    EVENT_OP send, port
told:
    ret

# Let the backend have buffers up to `given`, and tell of them if that is asked for.
give_back:
    mov eax, [rx + SRING_REQ_PROD]
    mov ebx, eax
give:
    cmp eax, [given]
    je given_back
    mov ecx, eax
    and ecx, RING - 1
    mov [rx + SIZEOF_SRING + ecx * 8 + NETIF_RX_REQUEST_ID], ecx
    lea edx, [ecx + RX_REF]
    mov [rx + SIZEOF_SRING + ecx * 8 + NETIF_RX_REQUEST_GREF], edx
    inc eax
    jmp give
given_back:
    mov [rx + SRING_REQ_PROD], eax
    mov ecx, eax
    sub ecx, [rx + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae room_told
    cmp dword ptr [port], 0
    je room_told                        # there is nobody to tell yet
    EVENT_OP send, port
room_told:
    ret

# Ask to be told of room to send, and of frames. Out: not zero if some of it is there already.
rest:
    xor eax, eax
.if SENDS
    mov ecx, [sent]
    sub ecx, RING / 2
    mov [tx + SRING_RSP_EVENT], ecx
    sub ecx, [tx + SRING_RSP_PROD]
    dec ecx
    shr ecx, 31                         # as many answers as that have come
    or eax, ecx
.endif
.if READS
    mov ecx, [given]
    sub ecx, RING - 1
    mov [rx + SRING_RSP_EVENT], ecx
    sub ecx, [rx + SRING_RSP_PROD]
    dec ecx
    shr ecx, 31
    or eax, ecx
.endif
    test eax, eax
    ret

.data
.p2align 12
offered_start: .word DOMID_SELF, 0
    .long 0
offered: .word DOMID_SELF, 0
    .long 0
polled: .long polled_port, 1, 0, 0
polled_port: .long 0
port: .long 0
sent: .long 0
given: .long 0
template: .space 4 * WORDS
.bss
.p2align 12
tx: .space 4096
rx: .space 4096
tx_data: .space 4096 * RING
rx_data: .space 4096 * RING
.text
