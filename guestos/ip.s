# SPDX-License-Identifier: GPL-2.0-or-later
#
# IP, version 4: packets, and which way they go (RFC 791).
#
#   0 version and length of the header | 1 service | 2 total length
#   4 identification                   | 6 flags and place of the fragment
#   8 time to live | 9 protocol        | 10 checksum of the header
#   12 source                          | 16 destination            20 options, where it is longer
#
# No fragments: ours are small enough and say that they must not be cut, and those that come are
# dropped. Options are skipped. Nothing is forwarded.

.equ IP_HEADER, 20
.equ IP_LENGTH, 2
.equ IP_FRAGMENT, 6
.equ IP_FRAGMENT_BITS, 0xFF3F       # "more fragments", and its place; as they lie in memory
.equ IP_DONT_FRAGMENT, 0x0040
.equ IP_PROTOCOL, 9
.equ IP_CHECKSUM, 10
.equ IP_SOURCE, 12
.equ IP_DESTINATION, 16
.equ IP_TIME_TO_LIVE, 64
.equ IP_SUM_RIGHT, 0xFFFF           # of what has its own checksum in it
.equ IP_MULTICAST, 0xE0             # the first byte of an address, from here on

.section .text

# A packet has come. In and out: see ethernet.s.
ip_input:
    cmp ecx, IP_HEADER
    jb network_bad
    movzx eax, word ptr [esi + IP_LENGTH]
    xchg al, ah
    cmp eax, ecx                    # less than the frame has room for: it is padded
    ja network_bad
    mov ecx, eax
    movzx edx, byte ptr [esi]
    mov eax, edx
    shr eax, 4
    cmp eax, 4
    jne network_bad
    and edx, 15
    shl edx, 2
    cmp edx, IP_HEADER
    jb network_bad
    cmp edx, ecx
    ja network_bad
    mov edi, esi
    add esi, edx
    sub ecx, edx
    push ecx
    mov eax, edi
    xor ecx, ecx
    call network_sum
    pop ecx
    cmp eax, IP_SUM_RIGHT
    jne network_bad
    test word ptr [edi + IP_FRAGMENT], IP_FRAGMENT_BITS
    jnz network_dropped
    mov eax, [edi + IP_DESTINATION]
    call ip_is_broadcast
    je .Lip_for_us
    cmp eax, [ebp + NETWORK_ADDRESS]
    jne network_ignored
.Lip_for_us:
    mov al, [edi + IP_PROTOCOL]
    cmp al, IPPROTO_UDP
    je udp_input
    cmp al, IPPROTO_ICMP
    je icmp_input
    jmp network_ignored

# Is an address that of everybody? In: eax = address, ebp = interface. Out: ZF set if so. Changes
# edx; keeps all else.
ip_is_broadcast:
    cmp eax, -1
    je .Lbroadcast_done
    mov edx, [ebp + NETWORK_MASK]
    cmp edx, -1
    je .Lbroadcast_no               # a network of one has no such address
    not edx
    or edx, [ebp + NETWORK_ADDRESS]
    cmp eax, edx
    jne .Lbroadcast_done
    cmp dword ptr [ebp + NETWORK_ADDRESS], 0
    je .Lbroadcast_no
    cmp eax, eax
.Lbroadcast_done:
    ret
.Lbroadcast_no:
    test esp, esp                   # not zero
    ret

# Find the way to an address. In: eax = address, edx = the one interface to use, or 0. Out: ebp =
# interface, eax = address of the next station, -1 for everybody; CF set where there is no way.
ip_route:
    push ebx
    push esi
    mov ebx, eax
    mov esi, edx
    mov ebp, offset network_nics
.Lroute_near:
    call ip_may_use
    jc .Lroute_near_next
    mov eax, ebx
    call ip_is_broadcast
    je .Lroute_everybody
    mov eax, [ebp + NETWORK_ADDRESS]
    test eax, eax
    jz .Lroute_near_next
    xor eax, ebx
    and eax, [ebp + NETWORK_MASK]
    jz .Lroute_direct
.Lroute_near_next:
    add ebp, SIZEOF_NIC
    cmp ebp, offset network_nics_end
    jb .Lroute_near
    mov ebp, offset network_nics
.Lroute_far:
    call ip_may_use
    jc .Lroute_far_next
    mov eax, [ebp + NETWORK_GATEWAY]
    test eax, eax                   # clears CF
    jnz .Lroute_out
.Lroute_far_next:
    add ebp, SIZEOF_NIC
    cmp ebp, offset network_nics_end
    jb .Lroute_far
    stc
    jmp .Lroute_out
.Lroute_everybody:
    or eax, -1                      # clears CF
    jmp .Lroute_out
.Lroute_direct:
    mov eax, ebx
    test eax, eax                   # clears CF
.Lroute_out:
    pop esi
    pop ebx
    ret

# Can a packet go by an interface? In: ebp, esi = the one to use, or 0. Out: CF set if not.
ip_may_use:
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    jne .Lmay_not
    test esi, esi                   # clears CF
    jz .Lmay_done
    cmp esi, ebp
    jne .Lmay_not
    clc
.Lmay_done:
    ret
.Lmay_not:
    stc
    ret

# Write a header. In: edi = where, eax = protocol, edx = bytes behind it, ecx = destination, ebp =
# interface. Keeps edx.
ip_header:
    push ebx
    push edx
    mov [edi + IP_DESTINATION], ecx
    mov ebx, ecx
    mov ah, al
    mov al, IP_TIME_TO_LIVE
    mov [edi + 8], eax              # no checksum yet
    add ebx, eax
    adc ebx, 0
    lea eax, [edx + IP_HEADER]
    xchg al, ah
    shl eax, 16
    or eax, 0x40 + IP_HEADER / 4    # version 4
    mov [edi], eax
    add ebx, eax
    adc ebx, 0
    inc word ptr [ip_last_packet]
    mov eax, IP_DONT_FRAGMENT << 16
    mov ax, [ip_last_packet]
    mov [edi + 4], eax
    add ebx, eax
    adc ebx, 0
    mov eax, [ebp + NETWORK_ADDRESS]
    mov [edi + IP_SOURCE], eax
    add eax, ebx
    adc eax, 0
    call network_fold
    not eax
    mov [edi + IP_CHECKSUM], ax
    pop edx
    pop ebx
    ret

# Begin the answer to a packet: back to the station that it came from, whatever ARP knows. In: eax =
# protocol, edx = bytes behind the header, edi = header of the packet, ebp. Out: eax = buffer, edx =
# address behind the header; eax = 0 for none: no room, or an address that gets no answers.
ip_answer:
    push ebx
    push esi
    push edi
    push eax
    push edx
    mov esi, edi
    mov eax, [esi + IP_DESTINATION]
    cmp eax, [ebp + NETWORK_ADDRESS]
    jne .Lip_answer_none            # to everybody
    cmp byte ptr [esi + IP_SOURCE], IP_MULTICAST
    jae .Lip_answer_none
    call network_take
    mov ebx, eax
    test eax, eax
    jz .Lip_answer_none
    mov edi, [ebx + PBUF_DATA]
    lea eax, [esi - ETHERNET_HEADER + ETHERNET_SOURCE]
    mov edx, ETHERNET_IP
    call ethernet_header
    add edi, ETHERNET_HEADER
    pop edx
    pop eax
    mov ecx, [esi + IP_SOURCE]
    call ip_header
    lea edx, [edi + IP_HEADER]
    mov eax, ebx
    jmp .Lip_answer_out
.Lip_answer_none:
    add esp, 8
    xor eax, eax
.Lip_answer_out:
    pop edi
    pop esi
    pop ebx
    ret

# The checksum that a packet of UDP begins with: addresses, protocol and length. In: edi = header of
# IP, ecx = bytes of UDP. Out: ecx. Changes eax.
ip_pseudo_sum:
    mov eax, ecx
    xchg al, ah                     # the length
    mov ecx, eax
    add ecx, IPPROTO_UDP << 8
    add ecx, [edi + IP_SOURCE]
    adc ecx, 0
    add ecx, [edi + IP_DESTINATION]
    adc ecx, 0
    ret

.section .bss
.p2align 1
ip_last_packet:
    .space 2
