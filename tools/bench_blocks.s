# SPDX-License-Identifier: GPL-2.0-or-later
# A block frontend that does COUNT requests, DEPTH at a time, and stops.
#
# Every request has buffers of its own, granted for good under BUFFER_REF and on: request n of DEPTH
# uses SEGMENTS of them. It asks for an event when half of what is in work is answered. With CHECK
# set, all words that were read, or are to be written, are added up in `sum`. The tool sets DEPTH,
# SEGMENTS, COUNT, OPERATION (of blkif), SPAN (requests that the disk is long), RANDOM, INDIRECT,
# CHECK.

.equ SLOT, SIZEOF_BLKIF_REQUEST
.equ SECTORS, SEGMENTS * 8
.equ BUFFER_REF, 16
.equ TABLE_REF, 480

.text
    push esi
    call close_data
    pop esi
    MAP_SHARED_INFO
    EVENT_OP alloc_unbound, offered
    mov eax, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], eax
    mov dword ptr [ring + SRING_REQ_EVENT], 1
    mov dword ptr [ring + SRING_RSP_EVENT], 1
    xor eax, eax
make_free:
    mov [free + eax * 4], eax
    inc eax
    cmp eax, DEPTH
    jb make_free
    mov [free_count], eax
    call make_tables
    call wait                           # the backend is there, and has sent an event

again:
    cmp dword ptr [free_count], 0
    je filled
    cmp dword ptr [sent], COUNT
    je filled
    call put
    jmp again
filled:
    call publish
    call take
    cmp dword ptr [answered], COUNT
    je finished
    test eax, eax
    jnz again
    # Nothing was there: be told when half of what is in work is answered.
    mov eax, [sent]
    sub eax, [answered]
    shr eax, 1
    cmp eax, 1
    adc eax, 0
    mov edx, eax
    add eax, [answered]
    mov [ring + SRING_RSP_EVENT], eax
    mov eax, [ring + SRING_RSP_PROD]
    sub eax, [answered]
    cmp eax, edx
    jae again
    call wait
    jmp again
finished:
    cmp dword ptr [bad_status], 0
    jne bad
    FINISH 1
bad:
    FINISH 2

# Sleep until the port is pending, and take the event.
wait:
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
    jc woken
    SCHED_OP poll, offset polled
    jmp wait
woken:
    inc dword ptr [wakes]
    ret

# Put one request into the ring.
put:
    dec dword ptr [free_count]
    mov eax, [free_count]
    mov ebp, [free + eax * 4]           # which request
    mov eax, [sent]
    and eax, BLKIF_RING_SIZE - 1
    imul edi, eax, SLOT
    add edi, offset ring + SIZEOF_SRING
    call choose                         # eax = where on the disk
    mov ecx, SECTORS
    mul ecx
.if CHECK
    call fill
.endif
.if INDIRECT
    mov byte ptr [edi + BLKIF_REQUEST_INDIRECT_OPERATION], BLKIF_OP_INDIRECT
    mov byte ptr [edi + BLKIF_REQUEST_INDIRECT_INDIRECT_OP], OPERATION
    mov word ptr [edi + BLKIF_REQUEST_INDIRECT_NR_SEGMENTS], SEGMENTS
    mov [edi + BLKIF_REQUEST_INDIRECT_ID], ebp
    mov dword ptr [edi + BLKIF_REQUEST_INDIRECT_ID + 4], 0
    mov [edi + BLKIF_REQUEST_INDIRECT_SECTOR_NUMBER], eax
    mov [edi + BLKIF_REQUEST_INDIRECT_SECTOR_NUMBER + 4], edx
    lea eax, [ebp + TABLE_REF]
    mov [edi + BLKIF_REQUEST_INDIRECT_INDIRECT_GREFS], eax
.else
    mov byte ptr [edi + BLKIF_REQUEST_OPERATION], OPERATION
    mov byte ptr [edi + BLKIF_REQUEST_NR_SEGMENTS], SEGMENTS
    mov [edi + BLKIF_REQUEST_ID], ebp
    mov dword ptr [edi + BLKIF_REQUEST_ID + 4], 0
    mov [edi + BLKIF_REQUEST_SECTOR_NUMBER], eax
    mov [edi + BLKIF_REQUEST_SECTOR_NUMBER + 4], edx
    add edi, BLKIF_REQUEST_SEG
    call put_segments
.endif
    inc dword ptr [sent]
    ret

# In: edi = where, ebp = which request.
put_segments:
    imul eax, ebp, SEGMENTS
    add eax, BUFFER_REF
    mov ecx, SEGMENTS
put_segment:
    mov [edi + BLKIF_REQUEST_SEGMENT_GREF], eax
    mov word ptr [edi + BLKIF_REQUEST_SEGMENT_FIRST_SECT], 0x700
    inc eax
    add edi, SIZEOF_BLKIF_REQUEST_SEGMENT
    dec ecx
    jnz put_segment
    ret

# Out: eax = which of the SPAN places on the disk is next.
choose:
.if RANDOM
    imul eax, dword ptr [seed], 1664525
    add eax, 1013904223
    mov [seed], eax
    mov ecx, SPAN
    mul ecx
    mov eax, edx
.else
    mov eax, [place]
    lea ecx, [eax + 1]
    xor edx, edx
    cmp ecx, SPAN
    cmove ecx, edx
    mov [place], ecx
.endif
    ret

publish:
    mov eax, [sent]
    mov ebx, [published]
    cmp eax, ebx
    je told
    mov [ring + SRING_REQ_PROD], eax
    mov [published], eax
    mov ecx, eax
    sub ecx, [ring + SRING_REQ_EVENT]
    sub eax, ebx
    cmp ecx, eax
    jae told
    inc dword ptr [events]
    EVENT_OP send, port
told:
    ret

# Take what is answered. Out: eax = how many that were.
take:
    xor esi, esi
next_answer:
    mov eax, [answered]
    cmp eax, [ring + SRING_RSP_PROD]
    je taken
    and eax, BLKIF_RING_SIZE - 1
    imul edi, eax, SLOT
    add edi, offset ring + SIZEOF_SRING
    mov ebp, [edi + BLKIF_RESPONSE_ID]
    movzx eax, word ptr [edi + BLKIF_RESPONSE_STATUS]
    or [bad_status], eax
.if CHECK
.if OPERATION
.else
    call add_up
.endif
.endif
    mov eax, [free_count]
    mov [free + eax * 4], ebp
    inc dword ptr [free_count]
    inc dword ptr [answered]
    inc esi
    jmp next_answer
taken:
    mov eax, esi
    ret

# In: ebp = which request. Out: ebx = its buffers, ecx = the words of them.
buffers:
    imul ebx, ebp, SEGMENTS * 4096
    add ebx, offset data
    mov ecx, SEGMENTS * 1024
    ret

add_up:
    call buffers
    mov edx, [sum]
add_word:
    add edx, [ebx]
    rol edx, 1
    add ebx, 4
    dec ecx
    jnz add_word
    mov [sum], edx
    ret

# Write something of its own into what is to be written, and add it up as it lies on the disk.
fill:
.if OPERATION
    push eax
    push edx
    call buffers
    mov edx, [sum]
fill_word:
    mov eax, [pattern]
    imul eax, eax, 1664525
    add eax, 1013904223
    mov [pattern], eax
    mov [ebx], eax
    add edx, eax
    rol edx, 1
    add ebx, 4
    dec ecx
    jnz fill_word
    mov [sum], edx
    pop edx
    pop eax
.endif
    ret

# Describe the segments of every request in a page of its own.
make_tables:
    mov ebp, 0
make_table:
    mov edi, ebp
    shl edi, 12
    add edi, offset tables
    call put_segments
    inc ebp
    cmp ebp, DEPTH
    jb make_table
    ret

.data
.p2align 12
first_data:
offered: .word DOMID_SELF, 0
    .long 0
port: .long 0
polled: .long port, 1, 0, 0
seed: .long 12345
pattern: .long 99
place: .long 0
sent: .long 0
published: .long 0
answered: .long 0
bad_status: .long 0
events: .long 0
wakes: .long 0
sum: .long 0
free_count: .long 0
free: .fill 32, 4, 0
.bss
.p2align 12
ring: .space 4096
tables: .space 4096 * 32
data: .space 4096 * SEGMENTS * DEPTH
end_of_data:
.text
