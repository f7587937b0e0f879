# SPDX-License-Identifier: GPL-2.0-or-later
#
# The system calls of sockets: what programs say, made into messages.
#
# As on Linux for i386 they are one call, with the number of an operation and the address of its
# arguments. sendmmsg and recvmmsg take many messages at once: what a call costs, and what telling
# the backend costs, is then paid once for all of them.
#
# A routine of the table: in: ebx = arguments, copied in, esi = socket where the operation has one
# as its first argument; out: eax = result, or -errno. It may change esi and edi. (Frames of this
# file are addressed by edi: a MESSAGE_ on the stack.)

.equ SOCKETCALL_WORDS, 6            # arguments, at most
.equ SOCKET_ETH, 0x687465           # "eth"
.equ MMSG_MAX, 128                  # messages of one call: the kernel lock is held meanwhile

.section .text

# socketcall(operation, address of its arguments)
sys_socketcall:
    push ebx
    push esi
    push edi
    sub esp, SOCKETCALL_WORDS * 4
    mov esi, [ebx + FRAME_EBX]
    mov eax, -EINVAL
    cmp esi, SOCKETCALL_LAST
    ja .Lsocketcall_out
    lea esi, [socketcall_table + esi * 8]
    mov ecx, [esi + 4]
    shl ecx, 2
    jz .Lsocketcall_out             # no such operation
    mov eax, esp
    mov edx, [ebx + FRAME_ECX]
    call user_copy_in
    test eax, eax
    js .Lsocketcall_out
    mov ebx, esp
    mov edi, [esi]
    cmp edi, offset socketcall_socket
    je .Lsocketcall_do
    mov eax, [ebx]
    call socket_of
    test eax, eax
    js .Lsocketcall_error
.Lsocketcall_do:
    mov esi, eax
    call edi
.Lsocketcall_out:
    add esp, SOCKETCALL_WORDS * 4
    pop edi
    pop esi
    pop ebx
    ret
.Lsocketcall_error:
    cmp eax, -4095                  # a socket's address is negative, too
    jb .Lsocketcall_do
    jmp .Lsocketcall_out

# Which socket is a descriptor? In: eax = descriptor. Out: eax = socket, or -errno.
socket_of:
    call file_of
    test eax, eax
    jz .Lsocket_of_none
    cmp dword ptr [eax + FILE_KIND], offset socket_kind
    jne .Lsocket_of_other
    mov eax, [eax + FILE_OBJECT]
    ret
.Lsocket_of_none:
    mov eax, -EBADF
    ret
.Lsocket_of_other:
    mov eax, -ENOTSOCK
    ret

# socket(AF_INET, SOCK_DGRAM, 0 or IPPROTO_UDP or IPPROTO_ICMP) -> descriptor
socketcall_socket:
    mov eax, -EAFNOSUPPORT
    cmp dword ptr [ebx], AF_INET
    jne .Lsocket_refused
    mov eax, -EPROTONOSUPPORT
    cmp dword ptr [ebx + 4], SOCK_DGRAM
    jne .Lsocket_refused
    mov esi, [ebx + 8]
    test esi, esi
    jnz .Lsocket_protocol
    mov esi, IPPROTO_UDP
.Lsocket_protocol:
    cmp esi, IPPROTO_UDP
    je .Lsocket_make
    cmp esi, IPPROTO_ICMP
    jne .Lsocket_refused
.Lsocket_make:
    mov eax, offset socket_kind
    mov edx, RIGHT_READ | RIGHT_WRITE
    call file_new
    mov edi, eax
    test eax, eax
    mov eax, -ENFILE
    jz .Lsocket_refused
    mov dword ptr [edi + FILE_REFERENCES], 0
    mov eax, esi
    call socket_new
    test eax, eax
    mov ecx, eax
    mov eax, -ENOBUFS
    jz .Lsocket_refused
    mov [edi + FILE_OBJECT], ecx
    mov dword ptr [edi + FILE_REFERENCES], 1
    mov eax, edi
    call file_describe
    test eax, eax
    jns .Lsocket_refused            # it was not
    push eax
    mov eax, edi
    call file_release
    pop eax
.Lsocket_refused:
    ret

# bind(socket, address of a sockaddr, bytes of it): a port, 0 for any; and all interfaces, or that
# one that has the address
socketcall_bind:
    mov eax, [ebx + 4]
    mov edx, [ebx + 8]
    call socketcall_address
    test eax, eax
    js .Lsocketcall_bind_out
    test edx, edx
    jz .Lsocketcall_bind_port
    mov eax, offset network_nics
.Lsocketcall_bind_look:
    cmp [eax + NETWORK_ADDRESS], edx
    je .Lsocketcall_bind_nic
    add eax, SIZEOF_NIC
    cmp eax, offset network_nics_end
    jb .Lsocketcall_bind_look
    mov eax, -EADDRNOTAVAIL
.Lsocketcall_bind_out:
    ret
.Lsocketcall_bind_nic:
    mov [esi + SOCKET_NIC], eax
.Lsocketcall_bind_port:
    mov eax, esi
    mov edx, ecx
    jmp socket_bind

# connect(socket, address of a sockaddr, bytes of it): from now on it talks to that end alone
socketcall_connect:
    mov eax, [ebx + 4]
    mov edx, [ebx + 8]
    call socketcall_address
    test eax, eax
    js .Lsocket_connect_out
    mov [esi + SOCKET_REMOTE_PORT], ecx
    mov [esi + SOCKET_REMOTE], edx
    mov eax, esi
    xor edx, edx
    cmp dword ptr [esi + SOCKET_PORT], 0
    je socket_bind
    xor eax, eax
.Lsocket_connect_out:
    ret

# getsockname(socket, address of a sockaddr, address of its length)
socketcall_name:
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    mov eax, [ebx + 4]
    mov [edi + MESSAGE_NAME], eax
    mov eax, [esi + SOCKET_PORT]
    mov [edi + MESSAGE_PORT], eax
    mov dword ptr [edi + MESSAGE_ADDRESS], 0
    mov eax, [esi + SOCKET_NIC]
    test eax, eax
    jz .Lname_length
    mov eax, [eax + NETWORK_ADDRESS]
    mov [edi + MESSAGE_ADDRESS], eax
.Lname_length:
    mov eax, [ebx + 8]
    call socketcall_name_out
    add esp, SIZEOF_MESSAGE
    ret

# sendto(socket, address, bytes, flags, address of a sockaddr or 0, bytes of it) -> bytes
socketcall_sendto:
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    call socketcall_buffer
    mov eax, [ebx + 16]
    mov [edi + MESSAGE_NAME], eax
    mov eax, [ebx + 20]
    mov [edi + MESSAGE_NAME_BYTES], eax
    call socketcall_send
    push eax
    call network_push
    pop eax
    add esp, SIZEOF_MESSAGE
    ret

# recvfrom(socket, address, bytes, flags, address of a sockaddr or 0, address of its length) ->
# bytes
socketcall_recvfrom:
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    call socketcall_buffer
    mov eax, [ebx + 16]
    mov [edi + MESSAGE_NAME], eax
    mov eax, esi
    mov edx, edi
    call socket_receive
    cmp dword ptr [edi + MESSAGE_NAME], 0
    je .Lrecvfrom_out
    test eax, eax
    js .Lrecvfrom_out
    mov esi, eax
    mov eax, [ebx + 20]
    call socketcall_name_out
    test eax, eax
    js .Lrecvfrom_out
    mov eax, esi
.Lrecvfrom_out:
    add esp, SIZEOF_MESSAGE
    ret

# setsockopt(socket, SOL_SOCKET, SO_, address of the value, bytes of it)
socketcall_option:
    sub esp, 8
    mov eax, -ENOPROTOOPT
    cmp dword ptr [ebx + 4], SOL_SOCKET
    jne .Loption_out
    cmp dword ptr [ebx + 8], SO_BROADCAST
    je .Loption_done                # nobody is kept from it
    cmp dword ptr [ebx + 8], SO_RCVTIMEO
    je .Loption_value
    cmp dword ptr [ebx + 8], SO_BINDTODEVICE
    jne .Loption_out
.Loption_value:
    mov eax, -EINVAL
    mov ecx, [ebx + 16]
    sub ecx, 4                      # two words; or "eth0", with or without its 0
    cmp ecx, 4
    ja .Loption_out
    mov dword ptr [esp + 4], 0
    mov eax, esp
    mov edx, [ebx + 12]
    mov ecx, [ebx + 16]
    call user_copy_in
    test eax, eax
    js .Loption_out
    cmp dword ptr [ebx + 8], SO_BINDTODEVICE
    je .Loption_device
    mov eax, -EINVAL                # seconds, microseconds
    cmp dword ptr [esp], LONGEST_SLEEP
    ja .Loption_out
    cmp dword ptr [esp + 4], 1000000
    jae .Loption_out
    imul ecx, [esp + 4], 1000
    mov eax, NS_PER_S
    mul dword ptr [esp]
    add eax, ecx
    adc edx, 0
    mov [esi + SOCKET_PATIENCE], eax
    mov [esi + SOCKET_PATIENCE + 4], edx
    jmp .Loption_done
.Loption_device:
    mov eax, -ENODEV
    mov ecx, [esp]                  # "eth0"
    mov edx, ecx
    and edx, 0xFFFFFF
    cmp edx, SOCKET_ETH
    jne .Loption_out
    shr ecx, 24
    lea eax, [ecx - '0']
    call network_of
    test eax, eax
    mov ecx, eax
    mov eax, -ENODEV
    jz .Loption_out
    mov [esi + SOCKET_NIC], ecx
.Loption_done:
    xor eax, eax
.Loption_out:
    add esp, 8
    ret

# sendmmsg(socket, address of mmsghdr records, how many, flags) -> how many were sent
socketcall_sendmmsg:
    push ebp
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    mov eax, [ebx + 12]
    mov [edi + MESSAGE_FLAGS], eax
    xor ebp, ebp
.Lsendmmsg_next:
    mov eax, ebp
    cmp ebp, [ebx + 8]
    jae .Lsendmmsg_done
    cmp ebp, MMSG_MAX
    jae .Lsendmmsg_done
    call socketcall_record
    test eax, eax
    js .Lsendmmsg_failed
    call socketcall_send
    test eax, eax
    js .Lsendmmsg_failed
    call socketcall_record_done
    test eax, eax
    js .Lsendmmsg_failed
    inc ebp
    jmp .Lsendmmsg_next
.Lsendmmsg_failed:
    test ebp, ebp
    jz .Lsendmmsg_done
    mov eax, ebp
.Lsendmmsg_done:
    push eax
    call network_push
    pop eax
    add esp, SIZEOF_MESSAGE
    pop ebp
    ret

# recvmmsg(socket, address of mmsghdr records, how many, flags, 0) -> how many came. It waits for
# all of them, or with MSG_WAITFORONE for the first.
socketcall_recvmmsg:
    push ebp
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    xor ebp, ebp
    mov eax, -EINVAL
    cmp ebp, [ebx + 16]             # a limit of time for all is not to be had
    jne .Lrecvmmsg_done
    mov eax, [ebx + 12]
    mov [edi + MESSAGE_FLAGS], eax
.Lrecvmmsg_next:
    mov eax, ebp
    cmp ebp, [ebx + 8]
    jae .Lrecvmmsg_done
    cmp ebp, MMSG_MAX
    jae .Lrecvmmsg_done
    call socketcall_record
    test eax, eax
    js .Lrecvmmsg_failed
    mov eax, esi
    mov edx, edi
    call socket_receive
    test eax, eax
    js .Lrecvmmsg_failed
    cmp dword ptr [edi + MESSAGE_NAME], 0
    je .Lrecvmmsg_bytes
    push eax
    mov edx, [edi + MESSAGE_NAME_BYTES]
    call socketcall_put_name
    pop edx
    test eax, eax
    js .Lrecvmmsg_failed
    mov eax, edx
.Lrecvmmsg_bytes:
    call socketcall_record_done
    test eax, eax
    js .Lrecvmmsg_failed
    inc ebp
    test dword ptr [edi + MESSAGE_FLAGS], MSG_WAITFORONE
    jz .Lrecvmmsg_next
    or dword ptr [edi + MESSAGE_FLAGS], MSG_DONTWAIT
    jmp .Lrecvmmsg_next
.Lrecvmmsg_failed:
    test ebp, ebp
    jz .Lrecvmmsg_done
    mov eax, ebp
.Lrecvmmsg_done:
    add esp, SIZEOF_MESSAGE
    pop ebp
    ret

# -- a socket as a file ----------------------------------------------------------------------

# read and write: of a socket that is connected; a read takes from anybody, too.
socket_read:
    push esi
    push edi
    mov esi, [eax + FILE_OBJECT]
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    mov [edi + MESSAGE_DATA], edx
    mov [edi + MESSAGE_BYTES], ecx
    mov dword ptr [edi + MESSAGE_FLAGS], 0
    mov eax, esi
    mov edx, edi
    call socket_receive
    jmp .Lsocket_file_out

socket_write:
    push esi
    push edi
    mov esi, [eax + FILE_OBJECT]
    sub esp, SIZEOF_MESSAGE
    mov edi, esp
    mov [edi + MESSAGE_DATA], edx
    mov [edi + MESSAGE_BYTES], ecx
    mov dword ptr [edi + MESSAGE_FLAGS], 0
    mov dword ptr [edi + MESSAGE_NAME], 0
    call socketcall_send
    push eax
    call network_push
    pop eax
.Lsocket_file_out:
    add esp, SIZEOF_MESSAGE
    pop edi
    pop esi
    ret

.section .rodata
.p2align 2
socket_kind:
    .long socket_read, socket_write, socket_close, file_no_ioctl
# Routine, and how many words it takes; 0 where there is no such operation.
socketcall_table:
    .long 0, 0                      # none has the number 0
    .long socketcall_socket, 3
    .long socketcall_bind, 3
    .long socketcall_connect, 3
    .long 0, 0                      # listen
    .long 0, 0                      # accept
    .long socketcall_name, 3
    .long 0, 0                      # getpeername
    .long 0, 0                      # socketpair
    .long 0, 0                      # send
    .long 0, 0                      # recv
    .long socketcall_sendto, 6
    .long socketcall_recvfrom, 6
    .long 0, 0                      # shutdown
    .long socketcall_option, 5
    .long 0, 0                      # getsockopt
    .long 0, 0                      # sendmsg
    .long 0, 0                      # recvmsg
    .long 0, 0                      # accept4
    .long socketcall_recvmmsg, 5
    .long socketcall_sendmmsg, 4
