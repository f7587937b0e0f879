# SPDX-License-Identifier: GPL-2.0-or-later
# A network frontend that sends COUNT frames of SIZE bytes, or takes them, and stops.
#
# All pages are granted for good: frame n of a ring uses buffer n, under TX_REF + n or RX_REF + n.
# A frame begins with the tool's `template`, and has a number in it, counted from 0. Who takes frames
# sends back each whose number is the last of STEP; the sender has no more than WINDOW on their way
# of which it has not heard so. So none finds a queue full, and both stop where a number is missing.
# With CHECK set, what else is in a frame is filled from its number, and added up by its sender, by
# who takes it, and by the sender again. The tool sets SENDS, COUNT, SIZE, WINDOW, STEP and CHECK.

.equ RING, NETIF_TX_RING_SIZE
.equ NUMBER, 44                         # behind the headers of Ethernet, IP and UDP, aligned
.equ SUM, 48
.equ FILL, 52
.equ WORDS, (SIZE - FILL) / 4
.equ TX_REF, 16
.equ RX_REF, TX_REF + RING

.text
    push esi
    call close_data
    pop esi
    MAP_SHARED_INFO
    EVENT_OP alloc_unbound, offered_start
    EVENT_OP alloc_unbound, offered
    mov dword ptr [tx + SRING_REQ_EVENT], 1
    mov dword ptr [tx + SRING_RSP_EVENT], 1
    mov dword ptr [rx + SRING_REQ_EVENT], 1
    mov dword ptr [rx + SRING_RSP_EVENT], 1
    call make_frames
    call give_all
    mov eax, [offered_start + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [polled_port], eax
    mov ecx, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], ecx                     # the tool waits for this
    call wait                           # until it says that all are there
    mov eax, [port]
    mov [polled_port], eax

again:
.if SENDS
    call fill
.endif
    call publish_tx
    call take_answers
    push eax
    call take_frames
    call give_back
    pop ecx
    call end_if_done
    or eax, ecx
    jnz again
    call rest
    jnz again
    call wait
    jmp again

# Stop when all is done that is this guest's.
end_if_done:
    cmp dword ptr [bad], 0
    jne broken
    cmp dword ptr [expected], COUNT
    jne not_done
    mov edx, [sent]
    cmp edx, [answered]
    jne not_done
    FINISH 1
not_done:
    ret
broken:
    FINISH 2

# Sleep until the port is pending, and take the event.
wait:
    mov eax, [polled_port]
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    jc woken
    SCHED_OP poll, offset polled
    jmp wait
woken:
    ret

# Have the tool's headers in every frame.
make_frames:
    mov edi, offset tx_data
    cld
make_frame:
    mov esi, offset template
    mov ecx, NUMBER / 4
    rep movsd
    add edi, 4096 - NUMBER
    cmp edi, offset tx_data + 4096 * RING
    jb make_frame
    ret

# -- what is sent -----------------------------------------------------------------------------

# Put in as many frames as may be on their way.
fill:
    mov eax, [sent]
    cmp eax, COUNT
    je filled
    mov ecx, eax
    sub ecx, [answered]
    cmp ecx, RING
    jae filled
    sub eax, [expected]
    cmp eax, WINDOW
    jae filled
    call buffer
    mov eax, [sent]
    mov [edi + NUMBER], eax
.if CHECK
    call make_content
.endif
    call put
    jmp fill
filled:
    ret

# Out: edi = the buffer of the next frame to send.
buffer:
    mov edi, [sent]
    and edi, RING - 1
    shl edi, 12
    add edi, offset tx_data
    ret

# In: edi = a frame. Fill it with what follows from its number.
make_content:
    mov eax, [sent]
    xor edx, edx
    mov ecx, WORDS
    lea ebx, [edi + FILL]
make_word:
    imul eax, eax, 1664525
    add eax, 1013904223
    mov [ebx], eax
    add edx, eax
    rol edx, 1
    add ebx, 4
    dec ecx
    jnz make_word
    mov [edi + SUM], edx
    ret

# Put the frame in the next buffer into the ring.
put:
    mov eax, [sent]
    and eax, RING - 1
    imul edx, eax, SIZEOF_NETIF_TX_REQUEST
    add edx, offset tx + SIZEOF_SRING
    lea ecx, [eax + TX_REF]
    mov [edx + NETIF_TX_REQUEST_GREF], ecx
    mov dword ptr [edx + NETIF_TX_REQUEST_OFFSET], 0    # and no flags
    mov [edx + NETIF_TX_REQUEST_ID], ax
    mov word ptr [edx + NETIF_TX_REQUEST_SIZE], SIZE
    inc dword ptr [sent]
    ret

publish_tx:
    mov eax, [sent]
    mov ebx, [tx + SRING_REQ_PROD]
    cmp eax, ebx
    je told
    mov [tx + SRING_REQ_PROD], eax
    mov ecx, eax
    sub ecx, [tx + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae told
    EVENT_OP send, port
told:
    ret

# Take what is answered; answers come in order. Out: eax = how many that were.
take_answers:
    xor eax, eax
next_answer:
    mov ecx, [answered]
    cmp ecx, [tx + SRING_RSP_PROD]
    je no_answer
    and ecx, RING - 1
    imul edx, ecx, SIZEOF_NETIF_TX_REQUEST
    cmp [tx + SIZEOF_SRING + edx + NETIF_TX_RESPONSE_ID], ecx   # the status is 0
    je good_answer
    inc dword ptr [bad]
good_answer:
    inc dword ptr [answered]
    inc eax
    jmp next_answer
no_answer:
    ret

# -- what is received -------------------------------------------------------------------------

# Let the backend have every buffer.
give_all:
    xor eax, eax
give:
    mov [rx + SIZEOF_SRING + eax * 8 + NETIF_RX_REQUEST_ID], eax
    lea ecx, [eax + RX_REF]
    mov [rx + SIZEOF_SRING + eax * 8 + NETIF_RX_REQUEST_GREF], ecx
    inc eax
    cmp eax, RING
    jb give
    mov [rx + SRING_REQ_PROD], eax
    ret

# Take the frames that have come, and put their buffers back. Out: eax = how many that were.
take_frames:
    xor eax, eax
next_frame:
    mov ecx, [received]
    cmp ecx, [rx + SRING_RSP_PROD]
    je no_frame
    mov edx, [sent]
    sub edx, [answered]
    cmp edx, RING
    jae no_frame                        # there would be no room to send it back
    and ecx, RING - 1
    lea edx, [rx + SIZEOF_SRING + ecx * 8]
    movzx esi, word ptr [edx + NETIF_RX_RESPONSE_ID]
    cmp word ptr [edx + NETIF_RX_RESPONSE_STATUS], SIZE
    jne bad_frame
    lea ecx, [esi + RX_REF]
    mov dword ptr [edx + NETIF_RX_REQUEST_ID], esi
    mov [edx + NETIF_RX_REQUEST_GREF], ecx
    shl esi, 12
    add esi, offset rx_data
    mov ecx, [expected]
.if SENDS
    add ecx, STEP - 1
.endif
    cmp ecx, [esi + NUMBER]
    jne bad_frame
    inc ecx
    mov [expected], ecx
    push eax
.if CHECK
    call check_content
.endif
.if SENDS
.else
    test dword ptr [expected], STEP - 1
    jnz kept
    call send_back
kept:
.endif
    pop eax
    inc dword ptr [received]
    inc eax
    jmp next_frame
bad_frame:
    inc dword ptr [bad]
no_frame:
    ret

# In: esi = a frame. Send it back, with our own headers.
send_back:
    call buffer
    add esi, NUMBER
    add edi, NUMBER
    mov ecx, (SIZE - NUMBER) / 4
    rep movsd
    jmp put

# In: esi = a frame.
check_content:
    xor edx, edx
    mov ecx, WORDS
    lea ebx, [esi + FILL]
check_word:
    add edx, [ebx]
    rol edx, 1
    add ebx, 4
    dec ecx
    jnz check_word
    cmp edx, [esi + SUM]
    je content_is_good
    inc dword ptr [bad]
content_is_good:
    ret

# Tell of the buffers that were put back, if the backend waits for some.
give_back:
    push eax
    mov eax, [received]
    add eax, RING
    mov ebx, [rx + SRING_REQ_PROD]
    cmp eax, ebx
    je given
    mov [rx + SRING_REQ_PROD], eax
    mov ecx, eax
    sub ecx, [rx + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae given
    EVENT_OP send, port
given:
    pop eax
    ret

# Nothing was there. Ask to be told of frames; of answers when half a full ring has them, and at the
# end. Out: not zero if something of that has come already.
rest:
    mov edx, [sent]
    sub edx, [answered]
    mov ecx, 0x7FFFFFFF                 # of no answer: it is not this that is waited for
    cmp dword ptr [expected], COUNT
    cmove ecx, edx
    cmp edx, RING
    jne has_room
    mov ecx, RING / 2
has_room:
    mov ebx, [answered]
    add ebx, ecx
    mov [tx + SRING_RSP_EVENT], ebx
    mov ebx, [received]
    lea edx, [ebx + 1]
    mov [rx + SRING_RSP_EVENT], edx
    cmp ebx, [rx + SRING_RSP_PROD]
    jne rested
    mov eax, [tx + SRING_RSP_PROD]
    sub eax, [answered]
    cmp eax, ecx
    mov eax, 1
    jae has_more
    dec eax
has_more:
    test eax, eax
rested:
    ret

.data
.p2align 12
first_data:
offered_start: .word DOMID_SELF, 0
    .long 0
offered: .word DOMID_SELF, 0
    .long 0
polled: .long polled_port, 1, 0, 0
polled_port: .long 0
port: .long 0
sent: .long 0
answered: .long 0
received: .long 0
expected: .long 0
bad: .long 0
template: .space 64
.bss
.p2align 12
tx: .space 4096
rx: .space 4096
tx_data: .space 4096 * RING
rx_data: .space 4096 * RING
end_of_data:
.text
