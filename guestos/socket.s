# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sockets: where datagrams wait for a program, and where a program's begin their way.
#
# A socket is of UDP, with a port; or of ICMP, for ping, with an identifier in its place: the kernel
# writes both into what is sent, so that answers find back. A port is bound by the program, or is
# found for it with the first datagram.
#
# The queue holds the buffers themselves. It grows to SOCKET_QUEUE_MAX, but never beyond twice as
# many as the interface has to spare: so a socket that nobody reads cannot take what the others
# need, and all of them together leave the ring full. What finds no room is dropped and counted.

.equ SOCKET_COUNT, 32
.equ SOCKET_QUEUE_MAX, 256
.equ SOCKET_FIRST_PORT, 49152       # of those that are found for a program; up to 65535

.equ SOCKET_PROTOCOL, 0             # IPPROTO_UDP or IPPROTO_ICMP; 0: free
.equ SOCKET_PORT, 4                 # 0 for none yet
.equ SOCKET_NIC, 8                  # the one interface that it uses, or 0 for all
.equ SOCKET_REMOTE, 12              # the one address that it talks to, or 0 for all;
.equ SOCKET_REMOTE_PORT, 16         # and its port
.equ SOCKET_PATIENCE, 20            # how long a read waits: ns, 64 bits; 0 for ever
.equ SOCKET_FIRST, 28               # the queue
.equ SOCKET_LAST, 32
.equ SOCKET_QUEUED, 36
.equ SOCKET_ERROR, 40               # what the next call is told
.equ SIZEOF_SOCKET, 44

.section .text

# -- what comes in: network_lock is held -----------------------------------------------------

# Which socket is meant? In: eax = protocol, edx = port, ebp = interface, ebx = buffer with the
# other end's address and port. Out: eax = socket or 0.
socket_find:
    mov ecx, offset sockets
    test edx, edx
    jz .Lsocket_none                # nobody has port 0: it stands for none yet
.Lsocket_look:
    cmp [ecx + SOCKET_PORT], edx
    je .Lsocket_port
.Lsocket_other:
    add ecx, SIZEOF_SOCKET
    cmp ecx, [sockets_end]
    jb .Lsocket_look
.Lsocket_none:
    xor eax, eax
    ret
.Lsocket_port:
    cmp [ecx + SOCKET_PROTOCOL], eax
    jne .Lsocket_other
    cmp dword ptr [ecx + SOCKET_NIC], 0
    je .Lsocket_remote
    cmp [ecx + SOCKET_NIC], ebp
    jne .Lsocket_other
.Lsocket_remote:
    push eax
    mov eax, [ecx + SOCKET_REMOTE]
    test eax, eax
    jz .Lsocket_found
    cmp eax, [ebx + PBUF_SOURCE]
    jne .Lsocket_stranger
    mov eax, [ecx + SOCKET_REMOTE_PORT]
    cmp eax, [ebx + PBUF_PORT]
    je .Lsocket_found
.Lsocket_stranger:
    pop eax
    jmp .Lsocket_other
.Lsocket_found:
    pop eax
    mov eax, ecx
    ret

# May a socket have one more? In: eax = socket, ebp = interface. Out: CF set if so. Changes edx;
# keeps all else.
socket_has_room:
    mov edx, [ebp + NIC_RX_SPARE]
    add edx, edx
    cmp edx, SOCKET_QUEUE_MAX
    jbe .Lhas_room_look
    mov edx, SOCKET_QUEUE_MAX
.Lhas_room_look:
    cmp [eax + SOCKET_QUEUED], edx
    ret

# Queue what came, and wake who waits for it. In: eax = socket, which has room; ebx = buffer, esi
# and ecx = what the socket gets of it. Out: eax = 1.
socket_queue:
    mov edx, [eax + SOCKET_QUEUED]
    mov [ebx + PBUF_PAYLOAD], esi
    mov [ebx + PBUF_BYTES], ecx
    mov dword ptr [ebx + PBUF_NEXT], 0
    mov ecx, [eax + SOCKET_LAST]
    mov [eax + SOCKET_LAST], ebx
    inc dword ptr [eax + SOCKET_QUEUED]
    inc dword ptr [network_unread]
    test edx, edx
    jz .Lqueue_first
    mov [ecx + PBUF_NEXT], ebx
    mov eax, 1
    ret
.Lqueue_first:
    mov [eax + SOCKET_FIRST], ebx
    call process_wake               # who waits found the queue empty: once is enough
    mov eax, 1
    ret

# Give all buffers of a queue back that an interface had given: all where that is 0. In: eax =
# socket, edx = interface or 0.
socket_drain:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax
    mov ebp, edx
    mov ebx, [esi + SOCKET_FIRST]
    mov ecx, [esi + SOCKET_QUEUED]
    mov dword ptr [esi + SOCKET_QUEUED], 0
.Ldrain_buffer:
    dec ecx
    js .Ldrain_done
    mov edi, [ebx + PBUF_NEXT]
    push ecx
    test ebp, ebp
    jz .Ldrain_give_back
    cmp [ebx + PBUF_NIC], ebp
    je .Ldrain_give_back
    mov dword ptr [ebx + PBUF_NEXT], 0
    mov eax, [esi + SOCKET_LAST]
    cmp dword ptr [esi + SOCKET_QUEUED], 0
    jne .Ldrain_append
    lea eax, [esi + SOCKET_FIRST - PBUF_NEXT]
.Ldrain_append:
    mov [eax + PBUF_NEXT], ebx
    mov [esi + SOCKET_LAST], ebx
    inc dword ptr [esi + SOCKET_QUEUED]
    jmp .Ldrain_next
.Ldrain_give_back:
    dec dword ptr [network_unread]
    mov eax, ebx
    call network_recycle
.Ldrain_next:
    pop ecx
    mov ebx, edi
    jmp .Ldrain_buffer
.Ldrain_done:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# An interface goes: give its buffers back, and let go of it. In: ebp = interface.
socket_forget:
    push ebx
    mov ebx, offset sockets
.Lforget_socket:
    cmp dword ptr [ebx + SOCKET_PROTOCOL], 0
    je .Lforget_socket_next
    mov eax, ebx
    mov edx, ebp
    call socket_drain
.Lforget_socket_next:
    add ebx, SIZEOF_SOCKET
    cmp ebx, [sockets_end]
    jb .Lforget_socket
    pop ebx
    ret

# -- what programs do: kernel_lock is held ---------------------------------------------------

# Take a socket. In: eax = protocol. Out: eax = socket, or 0.
socket_new:
    push edi
    mov edx, offset sockets
.Lsocket_new_look:
    cmp dword ptr [edx + SOCKET_PROTOCOL], 0
    je .Lsocket_new_found
    add edx, SIZEOF_SOCKET
    cmp edx, offset sockets_limit
    jb .Lsocket_new_look
    xor eax, eax
    pop edi
    ret
.Lsocket_new_found:
    push eax
    mov edi, edx
    xor eax, eax
    mov ecx, SIZEOF_SOCKET / 4
    rep stosd
    pop dword ptr [edx + SOCKET_PROTOCOL]
    cmp edi, [sockets_end]
    jbe .Lsocket_new_counted
    mov [sockets_end], edi
.Lsocket_new_counted:
    mov eax, edx
    pop edi
    ret

# The last descriptor of a socket is closed. In: eax = file.
socket_close:
    push ebx
    mov ebx, [eax + FILE_OBJECT]
    mov eax, offset network_lock
    call lock_events
    push eax
    mov eax, ebx
    xor edx, edx
    call socket_drain
    mov dword ptr [ebx + SOCKET_PROTOCOL], 0
    pop edx
    mov eax, offset network_lock
    pop ebx
    jmp unlock_events

# Give a socket a port that no other one of its protocol has. In: eax = socket, edx = port, 0 for
# any. Out: eax = 0, -EADDRINUSE; or -EINVAL for one that has a port already.
socket_bind:
    push ebx
    push esi
    mov ebx, eax
    mov eax, -EINVAL
    cmp dword ptr [ebx + SOCKET_PORT], 0
    jne .Lbind_out
    mov esi, edx
    test edx, edx
    jnz .Lbind_try
.Lbind_any:
    inc dword ptr [socket_last_port]
    movzx eax, word ptr [socket_last_port]
    or eax, SOCKET_FIRST_PORT
    xchg al, ah
    mov esi, eax
    call socket_has_port
    jc .Lbind_any                   # there are more ports than sockets
.Lbind_try:
    call socket_has_port
    mov eax, -EADDRINUSE
    jc .Lbind_out
    mov [ebx + SOCKET_PORT], esi
    xor eax, eax
.Lbind_out:
    pop esi
    pop ebx
    ret

# Has another socket a port? In: ebx = socket, esi = port. Out: CF set if so.
socket_has_port:
    mov ecx, offset sockets
.Lhas_port_look:
    cmp [ecx + SOCKET_PORT], esi
    jne .Lhas_port_next
    mov edx, [ecx + SOCKET_PROTOCOL]
    cmp edx, [ebx + SOCKET_PROTOCOL]
    jne .Lhas_port_next
    mov edx, [ecx + SOCKET_NIC]     # each interface has ports of its own, as far as they are bound
    cmp edx, [ebx + SOCKET_NIC]
    je .Lhas_port_yes
    test edx, edx
    jz .Lhas_port_yes
    cmp dword ptr [ebx + SOCKET_NIC], 0
    je .Lhas_port_yes
.Lhas_port_next:
    add ecx, SIZEOF_SOCKET
    cmp ecx, [sockets_end]
    jb .Lhas_port_look
    clc
    ret
.Lhas_port_yes:
    stc
    ret

.section .bss
.p2align 2
sockets:
    .space SOCKET_COUNT * SIZEOF_SOCKET
sockets_limit:
sockets_end:
    .space 4                        # no socket from here on was ever used
socket_last_port:
    .space 4
