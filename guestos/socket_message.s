# SPDX-License-Identifier: GPL-2.0-or-later
#
# Between programs and messages: the records in which programs say what is to be sent, and where
# what has come is to go; and the names in them, which are addresses with ports.
#
# In all of these: ebx = arguments of the call, esi = socket, edi = message, ebp = number of the
# record, where there are many.

.section .text

# Take address, bytes and flags from the arguments of sendto and its like. In: ebx, edi = message.
socketcall_buffer:
    mov eax, [ebx + 4]
    mov [edi + MESSAGE_DATA], eax
    mov eax, [ebx + 8]
    mov [edi + MESSAGE_BYTES], eax
    mov eax, [ebx + 12]
    mov [edi + MESSAGE_FLAGS], eax
    ret

# Take them from a mmsghdr. In: ebx = arguments, ebp = number of the record, edi = message. Out: eax
# = 0 or -errno.
socketcall_record:
    sub esp, SIZEOF_MMSGHDR
    mov eax, esp
    mov edx, ebp
    shl edx, MMSGHDR_SHIFT
    add edx, [ebx + 4]
    mov ecx, SIZEOF_MMSGHDR
    call user_copy_in
    test eax, eax
    js .Lrecord_out
    mov eax, [esp + MSGHDR_NAME]
    mov [edi + MESSAGE_NAME], eax
    mov eax, [esp + MSGHDR_NAME_BYTES]
    mov [edi + MESSAGE_NAME_BYTES], eax
    mov eax, -EINVAL
    cmp dword ptr [esp + MSGHDR_PARTS], 1
    jne .Lrecord_out
    lea eax, [edi + MESSAGE_DATA]   # address and bytes stand in the same order
    mov edx, [esp + MSGHDR_PART]
    mov ecx, 8
    call user_copy_in
.Lrecord_out:
    add esp, SIZEOF_MMSGHDR
    ret

# Write into a mmsghdr what became of it. In: as above, and eax = bytes. Out: eax = 0 or -errno.
socketcall_record_done:
    push eax
    mov edx, esp
    mov eax, ebp
    shl eax, MMSGHDR_SHIFT
    add eax, [ebx + 4]
    add eax, MMSGHDR_BYTES
    mov ecx, 4
    call user_copy_out
    pop ecx
    ret

# Send a message to the end that its name says, or that the socket is connected to. In: esi =
# socket, edi = message. Out: eax = bytes or -errno.
socketcall_send:
    mov eax, [edi + MESSAGE_NAME]
    mov edx, [edi + MESSAGE_NAME_BYTES]
    test eax, eax
    jz .Lsend_connected
    call socketcall_address
    test eax, eax
    js .Lsend_refused
    jmp .Lsend_to
.Lsend_connected:
    mov edx, [esi + SOCKET_REMOTE]
    mov ecx, [esi + SOCKET_REMOTE_PORT]
    mov eax, -EDESTADDRREQ
    test edx, edx
    jz .Lsend_refused
.Lsend_to:
    mov [edi + MESSAGE_ADDRESS], edx
    mov [edi + MESSAGE_PORT], ecx
    xor eax, eax
    xchg eax, [esi + SOCKET_ERROR]
    test eax, eax
    js .Lsend_refused
    mov eax, esi
    mov edx, edi
    jmp socket_send
.Lsend_refused:
    ret

# Read a sockaddr. In: eax = its address, edx = bytes. Out: eax = 0 or -errno, edx = address, ecx =
# port, both in the order of the network.
socketcall_address:
    cmp edx, SIZEOF_SOCKADDR
    jb .Laddress_short
    sub esp, SIZEOF_SOCKADDR
    mov edx, eax
    mov eax, esp
    mov ecx, SIZEOF_SOCKADDR
    call user_copy_in
    movzx ecx, word ptr [esp + SOCKADDR_PORT]
    mov edx, [esp + SOCKADDR_ADDRESS]
    test eax, eax
    js .Laddress_out
    cmp word ptr [esp + SOCKADDR_FAMILY], AF_INET
    je .Laddress_out
    mov eax, -EAFNOSUPPORT
.Laddress_out:
    add esp, SIZEOF_SOCKADDR
    ret
.Laddress_short:
    mov eax, -EINVAL
    ret

# Write a message's other end to the program, as far as there is room. In: edi = message, eax =
# address of the word that says how much room there is, and is told how much it takes. Out: eax = 0
# or -errno.
socketcall_name_out:
    push ebx
    push eax
    mov ebx, eax
    mov edx, eax
    mov eax, esp
    mov ecx, 4
    call user_copy_in
    test eax, eax
    js .Lname_out_done
    mov edx, [esp]
    call socketcall_put_name
    test eax, eax
    js .Lname_out_done
    mov dword ptr [esp], SIZEOF_SOCKADDR
    mov eax, ebx
    mov edx, esp
    mov ecx, 4
    call user_copy_out
.Lname_out_done:
    pop ecx
    pop ebx
    ret

# Write a message's other end to the program. In: edi = message, edx = bytes of room. Out: eax = 0
# or -errno.
socketcall_put_name:
    push 0                          # struct sockaddr_in
    push 0
    push dword ptr [edi + MESSAGE_ADDRESS]
    mov ecx, [edi + MESSAGE_PORT]
    shl ecx, 16
    or ecx, AF_INET
    push ecx
    mov ecx, edx
    cmp ecx, SIZEOF_SOCKADDR
    jbe .Lput_name_copy
    mov ecx, SIZEOF_SOCKADDR
.Lput_name_copy:
    mov eax, [edi + MESSAGE_NAME]
    mov edx, esp
    call user_copy_out
    add esp, SIZEOF_SOCKADDR
    ret
