# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sending and receiving: a program's message becomes a packet in the ring, and a buffer of a
# socket's queue becomes a program's bytes.
#
# A message (MESSAGE_) is what a system call wants to be sent, or to be filled. kernel_lock is held,
# and given back while somebody waits: for the address of the next station, for a buffer to send,
# for a packet that comes.

.equ MESSAGE_DATA, 0                # in the program
.equ MESSAGE_BYTES, 4
.equ MESSAGE_FLAGS, 8               # MSG_
.equ MESSAGE_ADDRESS, 12            # of the other end
.equ MESSAGE_PORT, 16
.equ MESSAGE_NAME, 20               # where in the program these two stand, or go; 0 for nowhere,
.equ MESSAGE_NAME_BYTES, 24         # and bytes there
.equ SIZEOF_MESSAGE, 28

.section .text

# Send a message, as far as the ring: whoever calls does network_push after the last one. In: eax =
# socket, edx = message. Out: eax = bytes, or -errno.
socket_send:
    push ebx
    push esi
    push edi
    push ebp
    sub esp, 8                      # the station that it goes to
    mov esi, eax
    mov ebx, edx
    mov eax, -EMSGSIZE
    mov ecx, [ebx + MESSAGE_BYTES]
    cmp dword ptr [esi + SOCKET_PROTOCOL], IPPROTO_ICMP
    je .Lsend_icmp
    cmp ecx, ETHERNET_MTU - IP_HEADER - UDP_HEADER
    ja .Lsend_out
    jmp .Lsend_bind
.Lsend_icmp:
    cmp ecx, ETHERNET_MTU - IP_HEADER
    ja .Lsend_out
    mov eax, -EINVAL
    cmp ecx, ICMP_HEADER
    jb .Lsend_out
.Lsend_bind:
    cmp dword ptr [esi + SOCKET_PORT], 0
    jne .Lsend_again
    mov eax, esi
    xor edx, edx
    call socket_bind
    test eax, eax
    js .Lsend_out
.Lsend_again:
    mov eax, [ebx + MESSAGE_ADDRESS]
    mov edx, [esi + SOCKET_NIC]
    call ip_route
    mov ecx, -ENETUNREACH
    jc .Lsend_failed
    mov edx, esp
    call arp_resolve
    mov ecx, eax
    test eax, eax
    js .Lsend_failed
    mov eax, [ebx + MESSAGE_FLAGS]
    and eax, MSG_DONTWAIT
    call network_take_waiting
    test eax, eax
    jz .Lsend_again
    mov ecx, eax
    cmp eax, -4095
    jae .Lsend_failed
    mov edi, eax
    mov edx, esp
    call socket_fill
    jmp .Lsend_out
.Lsend_failed:
    mov eax, ecx
.Lsend_out:
    add esp, 8
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Fill a buffer with a message, and put it into the ring. In: edi = buffer, edx = address of the
# station, ebx = message, esi = socket, ebp = interface. Out: eax = bytes, or -errno: then the
# buffer is given back. Changes edi.
socket_fill:
    push edi
    push edx
    mov eax, [edi + PBUF_DATA]
    add eax, ETHERNET_HEADER + IP_HEADER
    cmp dword ptr [esi + SOCKET_PROTOCOL], IPPROTO_UDP
    jne .Lsocket_fill_copy
    add eax, UDP_HEADER
.Lsocket_fill_copy:
    mov edx, [ebx + MESSAGE_DATA]
    mov ecx, [ebx + MESSAGE_BYTES]
    call user_copy_in
    pop edx
    test eax, eax
    js .Lsocket_fill_failed
    mov edi, [edi + PBUF_DATA]
    mov eax, edx
    mov edx, ETHERNET_IP
    call ethernet_header
    add edi, ETHERNET_HEADER
    mov eax, [esi + SOCKET_PROTOCOL]
    mov edx, [ebx + MESSAGE_BYTES]
    mov ecx, [ebx + MESSAGE_ADDRESS]
    cmp eax, IPPROTO_UDP
    jne .Lsocket_fill_icmp
    add edx, UDP_HEADER
    call ip_header
    add edi, IP_HEADER
    mov ecx, [ebx + MESSAGE_PORT]
    call udp_output
    jmp .Lsocket_fill_send
.Lsocket_fill_icmp:
    call ip_header
    add edi, IP_HEADER
    call icmp_output
    mov eax, -EINVAL
    jc .Lsocket_fill_failed
.Lsocket_fill_send:
    add edx, ETHERNET_HEADER + IP_HEADER
    mov eax, offset network_lock
    call lock_events
    xchg eax, [esp]                 # the buffer
    call ethernet_send
    mov eax, offset network_lock
    pop edx
    call unlock_events
    mov eax, [ebx + MESSAGE_BYTES]
    ret
.Lsocket_fill_failed:
    mov edi, eax
    mov eax, offset network_lock
    call lock_events
    xchg eax, [esp]
    call network_discard
    mov eax, offset network_lock
    pop edx
    call unlock_events
    mov eax, edi
    ret

# Wait for a message, and copy it to the program. In: eax = socket, edx = message. Out: eax = bytes,
# or -errno; the message has the other end's address and port.
socket_receive:
    push ebx
    push esi
    push edi
    push ebp
    sub esp, 8                      # when it stops waiting
    mov dword ptr [esp + 4], -1
    mov esi, eax
    mov ebp, edx
    cmp dword ptr [esi + SOCKET_QUEUED], 0
    jne .Lsocket_receive_look
    call port_save_and_mask
    mov edi, eax
    call netfront_catch_up
    mov eax, edi
    call port_restore_events
.Lsocket_receive_look:
    mov eax, offset network_lock
    call lock_events
    mov edi, eax
    xor eax, eax
    xchg eax, [esi + SOCKET_ERROR]
    test eax, eax
    js .Lsocket_receive_unlock
    cmp dword ptr [esi + SOCKET_QUEUED], 0
    jne .Lsocket_receive_take
    mov eax, -EAGAIN
    test dword ptr [ebp + MESSAGE_FLAGS], MSG_DONTWAIT
    jnz .Lsocket_receive_unlock
    mov eax, esp
    call socket_set_deadline
    test eax, eax
    js .Lsocket_receive_unlock
    mov eax, esi
    mov edx, offset network_lock
    call process_sleep              # gives the lock back
    test eax, eax
    jz .Lsocket_receive_look
    mov eax, -EINTR
    jmp .Lsocket_receive_out
.Lsocket_receive_take:
    mov ebx, [esi + SOCKET_FIRST]
    mov eax, [ebx + PBUF_NEXT]
    mov [esi + SOCKET_FIRST], eax
    dec dword ptr [esi + SOCKET_QUEUED]
    dec dword ptr [network_unread]
    mov eax, offset network_lock
    mov edx, edi
    call unlock_events
    mov eax, [ebx + PBUF_SOURCE]
    mov [ebp + MESSAGE_ADDRESS], eax
    mov eax, [ebx + PBUF_PORT]
    mov [ebp + MESSAGE_PORT], eax
    mov ecx, [ebx + PBUF_BYTES]
    cmp ecx, [ebp + MESSAGE_BYTES]
    jbe .Lsocket_receive_copy
    mov ecx, [ebp + MESSAGE_BYTES]  # the rest is lost
.Lsocket_receive_copy:
    push ecx
    mov eax, [ebp + MESSAGE_DATA]
    mov edx, [ebx + PBUF_PAYLOAD]
    call user_copy_out
    pop ecx
    test eax, eax
    js .Lsocket_receive_copied
    mov eax, ecx
.Lsocket_receive_copied:
    mov ebp, eax
    mov eax, offset network_lock
    call lock_events
    mov edi, eax
    mov eax, ebx
    call network_recycle
    mov eax, ebp
.Lsocket_receive_unlock:
    mov ebp, eax
    mov eax, offset network_lock
    mov edx, edi
    call unlock_events
    mov eax, ebp
.Lsocket_receive_out:
    add esp, 8
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Set the end of a sleep by a socket's patience. In: eax = address of the moment that the wait ends
# at, with an upper word of -1 where it was not found out yet; esi = socket. Out: eax = 0, or
# -EAGAIN when it is past. network_lock is held.
socket_set_deadline:
    push ebx
    mov ebx, eax
    mov eax, [esi + SOCKET_PATIENCE]
    or eax, [esi + SOCKET_PATIENCE + 4]
    jz .Ldeadline_out               # for ever: 0
    call time_now
    cmp dword ptr [ebx + 4], -1
    jne .Ldeadline_known
    mov ecx, eax
    add ecx, [esi + SOCKET_PATIENCE]
    mov [ebx], ecx
    mov ecx, edx
    adc ecx, [esi + SOCKET_PATIENCE + 4]
    mov [ebx + 4], ecx
.Ldeadline_known:
    cmp eax, [ebx]
    sbb edx, [ebx + 4]
    mov eax, -EAGAIN
    jae .Ldeadline_out
    call process_current
    mov edx, [ebx]
    mov [eax + PROCESS_DEADLINE], edx
    mov edx, [ebx + 4]
    mov [eax + PROCESS_DEADLINE + 4], edx
    xor eax, eax
.Ldeadline_out:
    pop ebx
    ret
