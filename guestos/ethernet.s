# SPDX-License-Identifier: GPL-2.0-or-later
#
# Ethernet: frames, and who is meant by them.
#
#   0 destination, 6 bytes | 6 source, 6 bytes | 12 type | 14 what it carries, up to ETHERNET_MTU
#
# A frame that came in goes up by jumps from layer to layer. All these routines (ethernet_input,
# arp_input, ip_input, icmp_input, udp_input) have, and may change all but ebx and ebp:
#
#   ebx = buffer   ebp = interface   edi = header of the layer below
#   esi = where this layer's part begins   ecx = bytes from there on
#
# and give eax = 1 where the buffer was kept, by a socket; 0 where it can be used anew. network_lock
# is held.

.equ ETHERNET_HEADER, 14
.equ ETHERNET_SOURCE, 6
.equ ETHERNET_TYPE, 12
.equ ETHERNET_MTU, 1500
.equ ETHERNET_IP, 0x0008            # types, as they lie in memory: 0x0800
.equ ETHERNET_ARP, 0x0608           # 0x0806

.section .text

# A frame has come. In and out: see above; the part is the frame.
ethernet_input:
    cmp ecx, ETHERNET_HEADER
    jb network_bad
    mov edi, esi
    mov eax, [edi]
    mov dx, [edi + 4]
    cmp eax, [ebp + NETWORK_MAC]
    jne .Lethernet_other
    cmp dx, [ebp + NETWORK_MAC + 4]
    jne network_ignored
.Lethernet_ours:
    mov ax, [edi + ETHERNET_TYPE]
    add esi, ETHERNET_HEADER
    sub ecx, ETHERNET_HEADER
    cmp ax, ETHERNET_IP
    je ip_input
    cmp ax, ETHERNET_ARP
    je arp_input
# It is nothing for us: a bridge sends everybody what it does not know the way of.
network_ignored:
    xor eax, eax
    ret
.Lethernet_other:
    inc eax                         # six bytes of ones: for everybody
    jnz network_ignored
    cmp dx, 0xFFFF
    je .Lethernet_ours
    jmp network_ignored

# It is not as it should be.
network_bad:
    inc dword ptr [ebp + NETWORK_RX_BAD]
    xor eax, eax
    ret

# It was for us, but there is no room for it.
network_dropped:
    inc dword ptr [ebp + NETWORK_RX_DROPPED]
    xor eax, eax
    ret

# Send a frame; one to ourselves comes in at once. In: eax = buffer, edx = bytes, ebp = interface.
# network_lock is held.
ethernet_send:
    mov ecx, [eax + PBUF_DATA]
    push edx
    mov edx, [ecx]
    cmp edx, [ebp + NETWORK_MAC]
    jne .Lethernet_send_out
    mov dx, [ecx + 4]
    cmp dx, [ebp + NETWORK_MAC + 4]
    je .Lethernet_send_back
.Lethernet_send_out:
    pop edx
    jmp netfront_send
.Lethernet_send_back:
    pop edx
    push ebx
    push esi
    push edi
    mov ebx, [ebp + NIC_RX_FREE]
    test ebx, ebx
    jz .Lethernet_no_room
    mov ecx, [ebx + PBUF_NEXT]
    mov [ebp + NIC_RX_FREE], ecx
    dec dword ptr [ebp + NIC_RX_SPARE]
    mov dword ptr [ebx + PBUF_CHECKED], 0
    mov esi, [eax + PBUF_DATA]
    mov edi, [ebx + PBUF_DATA]
    lea ecx, [edx + 3]
    shr ecx, 2
    rep movsd
    push edx
    call network_discard
    pop ecx
    mov esi, [ebx + PBUF_DATA]
    call ethernet_input
    test eax, eax
    jnz .Lethernet_send_done
    mov eax, ebx
    call network_recycle
    jmp .Lethernet_send_done
.Lethernet_no_room:
    inc dword ptr [ebp + NETWORK_RX_DROPPED]
    call network_discard
.Lethernet_send_done:
    pop edi
    pop esi
    pop ebx
    ret

# Write the header of a frame. In: eax = address of the six bytes of the destination, edx = type as
# it lies in memory, edi = frame, ebp = interface. Keeps edx.
ethernet_header:
    mov ecx, [eax]
    mov [edi], ecx
    mov cx, [eax + 4]
    mov [edi + 4], cx
    mov ecx, [ebp + NETWORK_MAC]
    mov [edi + ETHERNET_SOURCE], ecx
    mov cx, [ebp + NETWORK_MAC + 4]
    mov [edi + ETHERNET_SOURCE + 4], cx
    mov [edi + ETHERNET_TYPE], dx
    ret

.section .rodata
.p2align 2
ethernet_everybody:
    .long -1, -1
