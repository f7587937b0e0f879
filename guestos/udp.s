# SPDX-License-Identifier: GPL-2.0-or-later
#
# UDP: datagrams between ports (RFC 768).
#
#   0 source port | 2 destination port | 4 length with this header | 6 checksum, 0 for none | 8 data

.equ UDP_HEADER, 8
.equ UDP_DESTINATION, 2
.equ UDP_LENGTH, 4
.equ UDP_CHECKSUM, 6

.section .text

# A datagram has come. In and out: see ethernet.s.
udp_input:
    cmp ecx, UDP_HEADER
    jb network_bad
    movzx eax, word ptr [esi + UDP_LENGTH]
    xchg al, ah
    cmp eax, UDP_HEADER
    jb network_bad
    cmp eax, ecx
    ja network_bad
    mov ecx, eax
    mov eax, [edi + IP_SOURCE]
    mov [ebx + PBUF_SOURCE], eax
    movzx eax, word ptr [esi]
    mov [ebx + PBUF_PORT], eax
    mov eax, IPPROTO_UDP
    movzx edx, word ptr [esi + UDP_DESTINATION]
    push ecx
    call socket_find
    pop ecx
    test eax, eax
    jz .Ludp_check
    call socket_has_room            # before its bytes are added up for nothing
    jnc network_dropped
.Ludp_check:
    push eax
    push ecx
    call udp_is_whole
    pop ecx
    pop eax
    jne network_bad
    test eax, eax
    jz icmp_refuse
    add esi, UDP_HEADER
    sub ecx, UDP_HEADER
    jmp socket_queue

# Is a datagram what was sent? In: ebx = buffer, edi = header of IP, esi, ecx = bytes. Out: ZF set
# if so.
udp_is_whole:
    cmp dword ptr [ebx + PBUF_CHECKED], 0
    jne .Ludp_whole
    cmp word ptr [esi + UDP_CHECKSUM], 0
    je .Ludp_checked                # its sender gave none
    mov edx, ecx
    call ip_pseudo_sum
    mov eax, esi
    call network_sum
    cmp eax, IP_SUM_RIGHT
.Ludp_checked:
    ret
.Ludp_whole:
    cmp eax, eax
    ret

# Write the header of a datagram, whose data lie behind it. In: esi = socket, edi = header, edx =
# bytes with this header, ecx = port that it goes to; the header of IP lies before it. Keeps edx.
udp_output:
    mov eax, [esi + SOCKET_PORT]
    mov [edi], ax
    mov [edi + UDP_DESTINATION], cx
    mov eax, edx
    xchg al, ah
    mov [edi + UDP_LENGTH], eax     # no checksum yet
    push edx
    push edi
    sub edi, IP_HEADER
    mov ecx, edx
    call ip_pseudo_sum
    pop edi
    mov eax, edi
    call network_sum
    not eax
    test ax, ax
    jnz .Ludp_sum
    not eax                         # 0 would say that there is none
.Ludp_sum:
    mov [edi + UDP_CHECKSUM], ax
    pop edx
    ret
