# SPDX-License-Identifier: GPL-2.0-or-later
#
# XenStore: a tree of small texts that Dom0 keeps, in which both ends of each device find each
# other.
#
#   device/vbd/51712/backend = "/local/domain/0/backend/vbd/1/51712"        ours, paths without "/"
#   /local/domain/0/backend/vbd/1/51712/state = "2"                         its
#
# Requests and answers go over a page shared with Dom0 (public/io/xs_wire.h): two rings of bytes
# like the console's, and an event port. A message is a header of four words and its payload:
#
#   type | req_id | tx_id | length || a path, 0, a value            write, read, directory, watch
#
# Only one process talks to XenStore: that of xenbus.s, and the drivers when it calls them. So there
# is one request at a time, one buffer for it and one for its answer; and nobody else ever waits.
#
# A watch tells of each change below a path, by a message that may come between a request and its
# answer. It is not kept: a watch is a number, the message becomes that bit of store_changes, and
# whoever acts on it reads how things are then. So no flood of changes needs memory.
#
# XenStore is a part of the machine, and believed as far as that: lengths are checked, and where
# they make no sense nothing is asked any more.

.equ STORE_TOKEN, '0'               # what a watch's number is added to, to be sent
.equ STORE_WATCHES, 32              # numbers of watches
.equ STORE_MESSAGE, 512             # the longest request, header and all
.equ STORE_ANSWER, 2048             # the longest answer that is kept

.section .text

# Find the page and listen.
store_open:
    push ebx
    mov edx, [start_info]
    mov eax, [edx + START_INFO_STORE_EVTCHN]
    mov [store_port], eax
    mov dword ptr [event_arguments + eax * 4], offset store_events
    mov ecx, [edx + START_INFO_STORE_MFN]
    mov ecx, [MACH2PHYS_VIRT_START + ecx * 4]
    shl ecx, PAGE_SHIFT
    add ecx, VIRT_BASE
    mov [store_page], ecx
    mov edx, offset eventcount_event
    mov ebx, offset cpu_table
    call event_open
    pop ebx
    ret

# -- requests --------------------------------------------------------------------------------
#
# A path is given in two parts, a directory and a name in it, or 0 for none. Results are 0 or more,
# or -errno; the answer's bytes lie in store_answer, with a 0 behind them, up to the next request.

# Read a node. In: eax = directory, edx = name or 0. Out: eax = length.
store_read:
    call store_begin
    mov eax, XS_READ
    jmp store_ask

# List the nodes in a node. In: as above. Out: eax = bytes of names, each of which ends in 0.
store_list:
    call store_begin
    mov eax, XS_DIRECTORY
    jmp store_ask

# Write a node. In: eax = directory, edx = name or 0, ecx = value, a text. Out: eax = 0 or more.
store_write:
    push ecx
    call store_begin
    pop eax
    call store_add                  # without a 0
    mov eax, XS_WRITE
    jmp store_ask

# Watch what is at and below a path; it counts as changed at once. In: eax = directory, edx = name
# or 0, ecx = number of the watch.
store_watch:
    call store_begin_watch
    mov eax, XS_WATCH
    jmp store_ask

# End such a watch. In: as above.
store_unwatch:
    call store_begin_watch
    mov eax, XS_UNWATCH
    jmp store_ask

store_begin_watch:
    add ecx, STORE_TOKEN
    push ecx                        # little-endian: a character, and zeros
    call store_begin
    mov eax, esp
    mov edx, 2
    call store_add_bytes
    pop ecx
    ret

# Read a node as a number. In: eax = directory, edx = name or 0. Out: eax = the number; CF set where
# there is no such node, or it is no number of 32 bits.
store_read_number:
    call store_read
    test eax, eax
    js .Lread_number_none
    mov eax, offset store_answer
    jmp store_number
.Lread_number_none:
    stc
    ret

# Write a number. In: eax = directory, edx = name or 0, ecx = number. Out: eax = 0 or more.
store_write_number:
    push ebx
    push esi
    sub esp, 12
    mov esi, eax
    push edx
    mov eax, ecx
    lea ebx, [esp + 15]             # the last byte of the twelve
    mov byte ptr [ebx], 0
    mov ecx, 10
.Lwrite_number_digit:
    xor edx, edx
    div ecx
    add dl, '0'
    dec ebx
    mov [ebx], dl
    test eax, eax
    jnz .Lwrite_number_digit
    pop edx
    mov eax, esi
    mov ecx, ebx
    call store_write
    add esp, 12
    pop esi
    pop ebx
    ret

# Read a text as a number. In: eax = text. Out: eax; CF set where it is none of 32 bits.
store_number:
    push ebx
    push esi
    mov esi, eax
    xor eax, eax
    cmp byte ptr [esi], 0
    je .Lstore_number_none
.Lstore_number_digit:
    movzx ebx, byte ptr [esi]
    inc esi
    test ebx, ebx
    jz .Lstore_number_out           # CF is clear
    sub ebx, '0'
    cmp ebx, 9
    ja .Lstore_number_none
    mov edx, 10
    mul edx
    jc .Lstore_number_out
    add eax, ebx
    jnc .Lstore_number_digit
.Lstore_number_none:
    stc
.Lstore_number_out:
    pop esi
    pop ebx
    ret

# Sleep until a watch has something to tell, or store_poke is called. Out: eax = a bit for each
# watch that has; edx = a bit for each number that was poked.
store_wait:
    push ebx
.Lstore_wait_look:
    mov ebx, [store_events + EVENTCOUNT_COUNT]
    call store_has_message
    jc .Lstore_wait_sleep
    call store_receive
    jmp .Lstore_wait_look
.Lstore_wait_sleep:
    xor eax, eax
    xor edx, edx
    xchg eax, [store_changes]       # what changes from here on is told anew
    xchg edx, [store_pokes]
    mov ecx, eax
    or ecx, edx
    jnz .Lstore_wait_done
    mov eax, offset store_events
    mov edx, ebx
    call eventcount_wait
    jmp .Lstore_wait_look
.Lstore_wait_done:
    pop ebx
    ret

# Wake the process that talks to XenStore, from any other one. In: eax = number.
store_poke:
    lock bts dword ptr [store_pokes], eax
    mov eax, offset store_events
    jmp eventcount_advance

# What a watch has told so far counts no more: its node was read after that. In: eax = number of the
# watch. Out: CF set where it had told something.
store_forget_change:
    lock btr dword ptr [store_changes], eax
    ret

# -- messages --------------------------------------------------------------------------------

# Begin a request with a path and a 0. In: eax = directory, edx = name or 0.
store_begin:
    push edx
    mov dword ptr [store_length], SIZEOF_XSD_SOCKMSG
    call store_add
    cmp dword ptr [esp], 0
    je .Lbegin_path_done
    mov eax, offset store_slash
    call store_add
    mov eax, [esp]
    call store_add
.Lbegin_path_done:
    pop eax
    mov eax, offset store_zero
    mov edx, 1
    jmp store_add_bytes

# Add a text to the request, without the 0 at its end. In: eax.
store_add:
    mov edx, eax
.Ladd_measure:
    cmp byte ptr [edx], 0
    je .Ladd_measured
    inc edx
    jmp .Ladd_measure
.Ladd_measured:
    sub edx, eax

# Add bytes to the request; what finds no room is left out, and XenStore refuses the rest. In: eax =
# address, edx = how many.
store_add_bytes:
    push esi
    push edi
    mov esi, eax
    mov ecx, STORE_MESSAGE
    sub ecx, [store_length]
    cmp ecx, edx
    jbe .Ladd_room
    mov ecx, edx
.Ladd_room:
    mov edi, offset store_message
    add edi, [store_length]
    add [store_length], ecx
    rep movsb
    pop edi
    pop esi
    ret

# Send the request, and wait for its answer. In: eax = type. Out: eax = length of the answer, which
# lies in store_answer with a 0 behind it; or -errno.
store_ask:
    push ebx
    push esi
    mov esi, offset store_message
    mov [esi + XSD_SOCKMSG_TYPE], eax
    inc dword ptr [store_last_id]
    mov eax, [store_last_id]
    mov [esi + XSD_SOCKMSG_REQ_ID], eax
    mov dword ptr [esi + XSD_SOCKMSG_TX_ID], 0
    mov eax, [store_length]
    sub eax, SIZEOF_XSD_SOCKMSG
    mov [esi + XSD_SOCKMSG_LEN], eax
    mov eax, esi
    mov edx, [store_length]
    call store_put
.Lask_wait:
    mov ebx, [store_events + EVENTCOUNT_COUNT]
    call store_has_message
    jnc .Lask_receive
    mov eax, offset store_events
    mov edx, ebx
    call eventcount_wait
    jmp .Lask_wait
.Lask_receive:
    call store_receive
    cmp dword ptr [store_header + XSD_SOCKMSG_TYPE], XS_WATCH_EVENT
    je .Lask_wait
    mov ecx, [store_last_id]
    cmp [store_header + XSD_SOCKMSG_REQ_ID], ecx
    jne .Lask_wait
    cmp dword ptr [store_header + XSD_SOCKMSG_TYPE], XS_ERROR
    jne .Lask_done
    call store_errno
.Lask_done:
    pop esi
    pop ebx
    ret

# Take one message; note what a watch tells. Out: eax = length of its payload, in store_answer, or
# -E2BIG; the header in store_header.
store_receive:
    push ebx
    mov eax, offset store_header
    mov edx, SIZEOF_XSD_SOCKMSG
    call store_take
    mov ebx, [store_header + XSD_SOCKMSG_LEN]
    cmp ebx, XENSTORE_PAYLOAD_MAX
    ja store_broken
    mov edx, ebx
    cmp edx, STORE_ANSWER
    jbe .Lreceive_fits
    mov edx, STORE_ANSWER
.Lreceive_fits:
    mov byte ptr [store_answer + edx], 0
    mov eax, offset store_answer
    call store_take
    mov edx, ebx
    sub edx, STORE_ANSWER
    jbe .Lreceive_whole
    xor eax, eax                    # drop what does not fit
    call store_take
    mov ebx, -E2BIG
.Lreceive_whole:
    call store_tell                 # of the room
    cmp dword ptr [store_header + XSD_SOCKMSG_TYPE], XS_WATCH_EVENT
    jne .Lreceive_done
    call store_note
.Lreceive_done:
    mov eax, ebx
    pop ebx
    ret

# Note a message of a watch: a path, 0, a token of one character, 0. In: ebx = its length. Below
# devices only what toolstacks make and remove counts, for there each change by ourselves is told
# too.
store_note:
    mov eax, offset store_answer
    lea ecx, [store_answer + ebx - 2]
    xor edx, edx                    # dl = slashes
.Lstore_note_path:
    cmp eax, ecx
    jae .Lstore_note_done                 # no token
    mov dh, [eax]
    inc eax
    test dh, dh
    jz .Lstore_note_token
    cmp dh, '/'
    jne .Lstore_note_path
    inc dl
    jmp .Lstore_note_path
.Lstore_note_token:
    movzx eax, byte ptr [eax]
    sub eax, STORE_TOKEN
    cmp eax, STORE_WATCHES
    jae .Lstore_note_done
    cmp eax, WATCH_DEVICES
    jne .Lstore_note_counts
    cmp dl, 2                       # device/vbd/51712
    ja .Lstore_note_done
.Lstore_note_counts:
    lock bts dword ptr [store_changes], eax
.Lstore_note_done:
    ret

# What does an error mean? In: the name of an errno in store_answer. Out: eax = -errno.
store_errno:
    push esi
    mov esi, offset store_errors
.Lerrno_next:
    mov eax, [esi]
    test eax, eax
    jz .Lerrno_unknown
    mov edx, offset store_answer
    call texts_are_equal
    test eax, eax
    jnz .Lerrno_found
    add esi, 8
    jmp .Lerrno_next
.Lerrno_unknown:
    mov eax, -EIO
    pop esi
    ret
.Lerrno_found:
    mov eax, [esi + 4]
    pop esi
    ret

# -- bytes -----------------------------------------------------------------------------------

# Does a byte of a message wait? Out: CF clear if so.
store_has_message:
    mov edx, [store_page]
    mov eax, [edx + XENSTORE_DOMAIN_INTERFACE_RSP_CONS]
    cmp [edx + XENSTORE_DOMAIN_INTERFACE_RSP_PROD], eax
    jne .Lhas_message
    stc
    ret
.Lhas_message:
    clc
    ret

# Put bytes into the ring, waiting for room. In: eax = address, edx = how many.
store_put:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax
    mov ebp, edx
    mov ebx, [store_page]
.Lstore_put_next:
    mov edx, [store_events + EVENTCOUNT_COUNT]
    mov edi, [ebx + XENSTORE_DOMAIN_INTERFACE_REQ_PROD]
    mov ecx, XENSTORE_RING_SIZE
    sub ecx, edi
    add ecx, [ebx + XENSTORE_DOMAIN_INTERFACE_REQ_CONS]     # ecx = room
    jz .Lstore_put_wait
    call store_piece
    lea edi, [ebx + eax + XENSTORE_DOMAIN_INTERFACE_REQ]
    mov eax, ecx
    rep movsb
    add [ebx + XENSTORE_DOMAIN_INTERFACE_REQ_PROD], eax
    sub ebp, eax
    jnz .Lstore_put_next
    call store_tell
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret
.Lstore_put_wait:
    push edx
    call store_tell                 # of what is in it
    pop edx
    mov eax, offset store_events
    call eventcount_wait
    jmp .Lstore_put_next

# Take bytes out of the ring, waiting for them. In: eax = where to, or 0 to drop them; edx = how
# many.
store_take:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax
    mov ebp, edx
    mov ebx, [store_page]
.Lstore_take_next:
    test ebp, ebp
    jz .Lstore_take_done
    mov edx, [store_events + EVENTCOUNT_COUNT]
    mov edi, [ebx + XENSTORE_DOMAIN_INTERFACE_RSP_CONS]
    mov ecx, [ebx + XENSTORE_DOMAIN_INTERFACE_RSP_PROD]
    sub ecx, edi                    # ecx = bytes that wait
    jz .Lstore_take_wait
    call store_piece
    push ecx
    test esi, esi
    jz .Lstore_take_dropped
    mov edi, esi
    lea esi, [ebx + eax + XENSTORE_DOMAIN_INTERFACE_RSP]
    rep movsb
    mov esi, edi
.Lstore_take_dropped:
    pop eax
    add [ebx + XENSTORE_DOMAIN_INTERFACE_RSP_CONS], eax
    sub ebp, eax
    jmp .Lstore_take_next
.Lstore_take_wait:
    push edx
    call store_tell                 # of the room
    pop edx
    mov eax, offset store_events
    call eventcount_wait
    jmp .Lstore_take_next
.Lstore_take_done:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# How much can be copied at once? In: edi = index, ecx = bytes that wait, or room for them; ebp =
# how many are wanted. Out: eax = where in the ring, ecx = how many. Keeps edx.
store_piece:
    cmp ecx, XENSTORE_RING_SIZE
    ja store_broken
    and edi, XENSTORE_RING_SIZE - 1
    mov eax, XENSTORE_RING_SIZE
    sub eax, edi                    # up to the end of the ring
    cmp ecx, eax
    jbe .Lstore_piece_within
    mov ecx, eax
.Lstore_piece_within:
    cmp ecx, ebp
    jbe .Lstore_piece_done
    mov ecx, ebp
.Lstore_piece_done:
    mov eax, edi
    ret

# Tell XenStore that there are bytes, or is room.
store_tell:
    mov eax, [store_port]
    jmp port_send_event

# The ring makes no sense. The process that talks to XenStore stays here; all others go on, and so
# do devices that are connected.
store_broken:
    PRINT "guestos: the ring of XenStore is broken: devices stay as they are\n"
.Lbroken_for_ever:
    mov eax, offset store_events
    mov edx, [eax + EVENTCOUNT_COUNT]
    call eventcount_wait
    jmp .Lbroken_for_ever

.section .rodata
.p2align 2
store_errors:
    .long .Lstore_enoent, -ENOENT, .Lstore_eacces, -EACCES, .Lstore_einval, -EINVAL
    .long 0
.Lstore_enoent: .asciz "ENOENT"
.Lstore_eacces: .asciz "EACCES"
.Lstore_einval: .asciz "EINVAL"
store_slash:
    .asciz "/"
store_zero:
    .byte 0

.section .bss
.p2align 2
store_page:
    .space 4
store_port:
    .space 4
store_events:
    .space SIZEOF_EVENTCOUNT
store_changes:
    .space 4                        # a bit for each watch that has something to tell
store_pokes:
    .space 4
store_last_id:
    .space 4
store_length:
    .space 4                        # of the request so far
store_header:
    .space SIZEOF_XSD_SOCKMSG       # of the answer
store_message:
    .space STORE_MESSAGE
store_answer:
    .space STORE_ANSWER + 4
