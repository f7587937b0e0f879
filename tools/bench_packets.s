# SPDX-License-Identifier: GPL-2.0-or-later
# A network frontend that does one thing for COUNT packets of SIZE bytes, and stops.
#
# ROLE 0 sends them as fast as its ring takes them, each published by itself as a stack does; 1
# receives; 2 sends one, waits for one, and so on; 3 sends back what it receives. Every slot has a
# buffer of its own, granted for good under TX_REF and RX_REF and on; the tool writes the frames. It
# asks for an event when half of what it has sent is answered, and for each packet that it receives
# while it rests. The tool sets ROLE, COUNT, SIZE.

.equ TX_REF, 16
.equ RX_REF, 272
.equ MASK, NETIF_TX_RING_SIZE - 1

.text
    push esi
    call close_data
    pop esi
    push dword ptr [esi + START_INFO_SHARED_INFO]
    MAP_SHARED_INFO
    mov ebx, offset shared_info         # again, as data: each event would cost 4 us more else
    pop ecx
    or ecx, PTE_RW_DATA
    mov edx, 0x80000000
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    EVENT_OP alloc_unbound, offered
    mov eax, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], eax
    mov dword ptr [tx + SRING_REQ_EVENT], 1
    mov dword ptr [tx + SRING_RSP_EVENT], 1
    mov dword ptr [rx + SRING_REQ_EVENT], 1
    mov dword ptr [rx + SRING_RSP_EVENT], 1
    xor eax, eax
post_all:
    mov [rx + SIZEOF_SRING + eax * 8 + NETIF_RX_REQUEST_ID], ax
    lea ecx, [eax + RX_REF]
    mov [rx + SIZEOF_SRING + eax * 8 + NETIF_RX_REQUEST_GREF], ecx
    inc eax
    cmp eax, NETIF_RX_RING_SIZE
    jb post_all
    mov [posted], eax
    mov [rx + SRING_REQ_PROD], eax
    call wait                           # the backend is there, and has sent an event

.if ROLE - 1
.else
receive_all:
    call receive
    cmp dword ptr [received], COUNT
    jae finished
    test eax, eax
    jnz receive_all
    call rest
    jmp receive_all
.endif

.if ROLE - 3
.else
echo_all:
    call take
    call receive
    mov esi, eax
    test eax, eax
    jz echo_none
echo_one:
    call put
    call publish
    dec esi
    jnz echo_one
    cmp dword ptr [received], COUNT
    jae finished
    jmp echo_all
echo_none:
    call rest
    jmp echo_all
.endif

.if ROLE - 2
.else
ping:
    call put
    call publish
pong:
    call take
    call receive
    test eax, eax
    jnz ponged
    call rest
    jmp pong
ponged:
    cmp dword ptr [received], COUNT
    jb ping
    jmp finished
.endif

.if ROLE
.else
send_all:
    cmp dword ptr [sent], COUNT
    je drain
    mov eax, [sent]
    sub eax, [answered]
    cmp eax, NETIF_TX_RING_SIZE
    je full
    call put
    call publish
    jmp send_all
full:
    call take
    test eax, eax
    jnz send_all
    call rest
    jmp send_all
drain:
    call take
    cmp dword ptr [answered], COUNT
    je finished
    test eax, eax
    jnz drain
    call rest
    jmp drain
.endif

finished:
    mov dword ptr [done], 1
    cmp dword ptr [bad_status], 0
    jne bad
    FINISH 1
bad:
    FINISH 2

# Take the right to execute from all data: stores to it are ten times faster then.
close_data:
    mov ebp, offset first_data
close_page:
    mov ebx, ebp
    mov eax, ebp
    sub eax, VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov edx, [edx + eax * 4]
    mov ecx, edx
    shl ecx, 12
    or ecx, PTE_RW_DATA
    shr edx, 20
    or edx, 0x80000000
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    add ebp, 4096
    cmp ebp, offset end_of_data
    jb close_page
    ret

# Sleep until the port is pending, and take the event.
wait:
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
    jc woken
    SCHED_OP poll, offset polled
    jmp wait
woken:
    inc dword ptr [wakes]
    ret

# Ask to be told of news on both rings, look again, and sleep where there is none.
rest:
    mov eax, [received]
    inc eax
    mov [rx + SRING_RSP_EVENT], eax
    mov eax, [sent]
    sub eax, [answered]
    shr eax, 1
    cmp eax, 1
    adc eax, 0
    mov edx, eax
    add eax, [answered]
    mov [tx + SRING_RSP_EVENT], eax
    mov eax, [rx + SRING_RSP_PROD]
    cmp eax, [received]
    jne rested
    mov eax, [tx + SRING_RSP_PROD]
    sub eax, [answered]
    cmp eax, edx
    jae rested
    call wait
rested:
    ret

# Put one packet into the ring.
put:
    mov eax, [sent]
    and eax, MASK
    imul edi, eax, SIZEOF_NETIF_TX_REQUEST
    add edi, offset tx + SIZEOF_SRING
    mov [edi + NETIF_TX_REQUEST_ID], ax
    add eax, TX_REF
    mov [edi + NETIF_TX_REQUEST_GREF], eax
    mov word ptr [edi + NETIF_TX_REQUEST_OFFSET], 0
    mov word ptr [edi + NETIF_TX_REQUEST_FLAGS], 0
    mov word ptr [edi + NETIF_TX_REQUEST_SIZE], SIZE
    inc dword ptr [sent]
    ret

publish:
    mov eax, [sent]
    mov ebx, [published]
    mov [tx + SRING_REQ_PROD], eax
    mov [published], eax
    mov ecx, eax
    sub ecx, [tx + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae told
    inc dword ptr [events]
    EVENT_OP send, port
told:
    ret

# Take what is answered. Out: eax = how many that were.
take:
    xor edx, edx
next_answer:
    mov eax, [answered]
    cmp eax, [tx + SRING_RSP_PROD]
    je taken
    and eax, MASK
    imul edi, eax, SIZEOF_NETIF_TX_REQUEST
    movzx eax, word ptr [tx + SIZEOF_SRING + edi + NETIF_TX_RESPONSE_STATUS]
    or [bad_status], eax
    inc dword ptr [answered]
    inc edx
    jmp next_answer
taken:
    mov eax, edx
    ret

# Take what has come, and let others come into the same buffers. Out: eax = how many that were.
receive:
    xor edx, edx
next_packet:
    mov eax, [received]
    cmp eax, [rx + SRING_RSP_PROD]
    je received_all
    and eax, MASK
    lea edi, [rx + SIZEOF_SRING + eax * 8]
    mov cx, [edi + NETIF_RX_RESPONSE_STATUS]
    cmp cx, SIZE
    je right_size
    mov dword ptr [bad_status], 1
right_size:
    add eax, RX_REF
    mov [edi + NETIF_RX_REQUEST_GREF], eax
    inc dword ptr [received]
    inc edx
    jmp next_packet
received_all:
    test edx, edx
    jz posted_all
    mov ebx, [posted]
    lea eax, [ebx + edx]
    mov [posted], eax
    mov [rx + SRING_REQ_PROD], eax
    mov ecx, eax
    sub ecx, [rx + SRING_REQ_EVENT]
    cmp ecx, edx
    jae posted_all
    push edx
    EVENT_OP send, port
    pop edx
posted_all:
    mov eax, edx
    ret

.data
.p2align 12
first_data:
offered: .word DOMID_SELF, 0
    .long 0
port: .long 0
polled: .long port, 1, 0, 0
sent: .long 0
published: .long 0
answered: .long 0
posted: .long 0
received: .long 0
bad_status: .long 0
events: .long 0
wakes: .long 0
done: .long 0
.bss
.p2align 12
tx: .space 4096
rx: .space 4096
sending: .space 4096 * NETIF_TX_RING_SIZE
receiving: .space 4096 * NETIF_RX_RING_SIZE
end_of_data:
.text
