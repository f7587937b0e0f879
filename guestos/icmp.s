# SPDX-License-Identifier: GPL-2.0-or-later
#
# ICMP: "are you there?", and what became of a packet (RFC 792).
#
#   0 type | 1 code | 2 checksum of all | 4 identifier | 6 sequence | 8 data
#
# A question is answered here. An answer goes to the socket that has its identifier. An error that
# says that nobody listens at a port is passed on to a socket that talks to that port alone.

.equ ICMP_HEADER, 8
.equ ICMP_ECHO_REPLY, 0
.equ ICMP_UNREACHABLE, 3
.equ ICMP_ECHO, 8
.equ ICMP_CODE_PORT, 3
.equ ICMP_CHECKSUM, 2
.equ ICMP_IDENTIFIER, 4
.equ ICMP_QUOTED, IP_HEADER + 8     # of the packet that an error is about, at least

.section .text

# A message has come. In and out: see ethernet.s.
icmp_input:
    cmp ecx, ICMP_HEADER
    jb network_bad
    push ecx
    mov eax, esi
    mov edx, ecx
    xor ecx, ecx
    call network_sum
    pop ecx
    cmp eax, IP_SUM_RIGHT
    jne network_bad
    mov ax, [esi]
    cmp ax, ICMP_ECHO
    je icmp_echo
    cmp ax, ICMP_ECHO_REPLY
    je icmp_reply
    cmp ax, ICMP_UNREACHABLE + (ICMP_CODE_PORT << 8)
    je icmp_refused
    jmp network_ignored

# Answer a question with what it says.
icmp_echo:
    push ebx
    mov eax, ETHERNET_MTU - IP_HEADER
    cmp ecx, eax
    ja .Lecho_none
    push ecx
    mov eax, IPPROTO_ICMP
    mov edx, ecx
    call ip_answer
    pop ecx
    test eax, eax
    jz .Lecho_none
    mov ebx, eax
    mov edi, edx
    mov edx, ecx
    push edi
    shr ecx, 2
    rep movsd
    mov ecx, edx
    and ecx, 3
    rep movsb
    pop edi
    mov dword ptr [edi], ICMP_ECHO_REPLY
    call icmp_finish
    mov eax, ebx
    add edx, ETHERNET_HEADER + IP_HEADER
    call ethernet_send
.Lecho_none:
    xor eax, eax
    pop ebx
    ret

# Write the checksum of a message, which holds 0 yet. In: edi = message, edx = bytes. Keeps edx.
icmp_finish:
    push edx
    mov eax, edi
    xor ecx, ecx
    call network_sum
    not eax
    mov [edi + ICMP_CHECKSUM], ax
    pop edx
    ret

# Pass an answer on.
icmp_reply:
    mov eax, [edi + IP_SOURCE]
    mov [ebx + PBUF_SOURCE], eax
    mov dword ptr [ebx + PBUF_PORT], 0
    mov eax, IPPROTO_ICMP
    movzx edx, word ptr [esi + ICMP_IDENTIFIER]
    push ecx
    call socket_find
    pop ecx
    test eax, eax
    jz network_ignored
    call socket_has_room
    jc socket_queue
    jmp network_dropped

# The other end says that nobody listens there: behind the header of ICMP lies the beginning of the
# packet that we sent.
icmp_refused:
    add esi, ICMP_HEADER
    sub ecx, ICMP_HEADER
    cmp ecx, ICMP_QUOTED
    jb network_bad
    cmp byte ptr [esi], 0x40 + IP_HEADER / 4        # ours have no options
    jne network_ignored
    cmp byte ptr [esi + IP_PROTOCOL], IPPROTO_UDP
    jne network_ignored
    mov eax, [esi + IP_DESTINATION] # the other end
    mov [ebx + PBUF_SOURCE], eax
    movzx eax, word ptr [esi + IP_HEADER + UDP_DESTINATION]
    mov [ebx + PBUF_PORT], eax
    mov eax, IPPROTO_UDP
    movzx edx, word ptr [esi + IP_HEADER]
    call socket_find
    test eax, eax
    jz network_ignored
    cmp dword ptr [eax + SOCKET_REMOTE], 0
    je network_ignored              # it talks to many
    mov dword ptr [eax + SOCKET_ERROR], -ECONNREFUSED
    call process_wake
    xor eax, eax
    ret

# Tell the sender of a datagram that nobody listens at its port. In: edi = header of IP, ebp. Out:
# eax = 0, as of an input.
icmp_refuse:
    push ebx
    mov eax, IPPROTO_ICMP
    mov edx, ICMP_HEADER + ICMP_QUOTED
    call ip_answer
    test eax, eax
    jz .Lrefuse_none
    mov ebx, eax
    mov esi, edi
    mov edi, edx
    mov dword ptr [edi], ICMP_UNREACHABLE + (ICMP_CODE_PORT << 8)
    mov dword ptr [edi + 4], 0
    push edi
    add edi, ICMP_HEADER
    mov ecx, ICMP_QUOTED / 4
    rep movsd
    pop edi
    mov edx, ICMP_HEADER + ICMP_QUOTED
    call icmp_finish
    mov eax, ebx
    mov edx, ETHERNET_HEADER + IP_HEADER + ICMP_HEADER + ICMP_QUOTED
    call ethernet_send
.Lrefuse_none:
    xor eax, eax
    pop ebx
    ret

# Make a program's bytes a question of its socket. In: esi = socket, edi = message, edx = bytes,
# ICMP_HEADER at least. Out: CF set where it is something else, which programs may not send.
icmp_output:
    cmp word ptr [edi], ICMP_ECHO
    stc
    jne .Licmp_output_done
    mov eax, [esi + SOCKET_PORT]
    mov [edi + ICMP_IDENTIFIER], ax
    mov word ptr [edi + ICMP_CHECKSUM], 0
    call icmp_finish
    clc
.Licmp_output_done:
    ret
