# SPDX-License-Identifier: GPL-2.0-or-later
#
# ARP: which station has an address, as answered by itself (RFC 826).
#
#   FREE --arp_resolve asks--> ASKED --it answers--> KNOWN --ARP_LIFETIME--> asked again
#     ^                          |
#     +------- no answer --------+
#
# Who wants to send waits for the answer. The cache is small, and an old entry makes way for a new
# one: strangers cannot fill memory, only make us ask again. An answer that nobody asked for changes
# what is known, as after a move, but adds nothing; a question that is for us does: its sender is
# about to talk to us.
#
# The clock is the one that Xen writes down each time it lets us run: old by a few milliseconds at
# most, and to be had without looking at the processor's counter for each packet.

.equ ARP_COUNT, 32
.equ ARP_LIFETIME_NS, 60 * NS_PER_S
.equ ARP_PATIENCE_NS, NS_PER_S      # for one answer
.equ ARP_TRIES, 3

.equ ARP_STATE, 0                   # one of
.equ ARP_FREE, 0
.equ ARP_ASKED, 1
.equ ARP_KNOWN, 2
.equ ARP_ADDRESS, 4
.equ ARP_NIC, 8
.equ ARP_STATION, 12                # six bytes
.equ ARP_AGE, 20                    # system time in ns at which it was last heard of, or asked
.equ SIZEOF_ARP, 28

# A packet. Its first 8 bytes say that Ethernet is asked for addresses of IPv4, and how.
.equ ARP_PACKET, 28
.equ ARP_KIND, 0x00080100           # as they lie in memory
.equ ARP_REQUEST, 0x01000406
.equ ARP_REPLY, 0x02000406
.equ ARP_SENDER_STATION, 8
.equ ARP_SENDER, 14
.equ ARP_TARGET_STATION, 18
.equ ARP_TARGET, 24

.section .text

# A packet has come. In and out: see ethernet.s.
arp_input:
    cmp ecx, ARP_PACKET
    jb network_bad
    cmp dword ptr [esi], ARP_KIND
    jne network_bad
    mov eax, [esi + ARP_SENDER]
    test eax, eax
    jz .Larp_answer                 # somebody asks whether the address is free
    cmp eax, [ebp + NETWORK_ADDRESS]
    je .Larp_done                   # somebody else has our address: he is not to be believed
    call arp_find
    test eax, eax
    jnz .Larp_learn
    mov eax, [esi + ARP_TARGET]
    cmp eax, [ebp + NETWORK_ADDRESS]
    jne .Larp_done
    cmp dword ptr [esi + 4], ARP_REQUEST
    jne .Larp_done
    call arp_new
    mov edx, [esi + ARP_SENDER]
    mov [eax + ARP_ADDRESS], edx
    mov [eax + ARP_NIC], ebp
.Larp_learn:
    mov edx, [esi + ARP_SENDER_STATION]
    mov [eax + ARP_STATION], edx
    mov dx, [esi + ARP_SENDER_STATION + 4]
    mov [eax + ARP_STATION + 4], dx
    push dword ptr [eax + ARP_STATE]
    mov dword ptr [eax + ARP_STATE], ARP_KNOWN
    call arp_stamp
    pop edx
    cmp edx, ARP_ASKED
    jne .Larp_answer
    mov eax, offset arp_table
    call process_wake
.Larp_answer:
    cmp dword ptr [esi + 4], ARP_REQUEST
    jne .Larp_done
    mov eax, [ebp + NETWORK_ADDRESS]
    test eax, eax
    jz .Larp_done
    cmp eax, [esi + ARP_TARGET]
    jne .Larp_done
    mov eax, ARP_REPLY
    lea edx, [esi + ARP_SENDER_STATION]
    mov ecx, [esi + ARP_SENDER]
    call arp_send
    call netfront_push
.Larp_done:
    xor eax, eax
    ret

# Find the entry of an address. In: eax = address, ebp = interface. Out: eax = entry, or 0.
arp_find:
    mov ecx, offset arp_table
.Larp_find_next:
    cmp [ecx + ARP_ADDRESS], eax
    je .Larp_find_address
.Larp_find_other:
    add ecx, SIZEOF_ARP
    cmp ecx, offset arp_table_end
    jb .Larp_find_next
    xor eax, eax
    ret
.Larp_find_address:
    cmp dword ptr [ecx + ARP_STATE], ARP_FREE
    je .Larp_find_other
    cmp [ecx + ARP_NIC], ebp
    jne .Larp_find_other
    mov eax, ecx
    ret

# Take an entry: a free one, or the one that was not heard of for the longest time. Out: eax.
arp_new:
    push ebx
    push esi
    push edi
    mov ebx, offset arp_table
    mov eax, ebx
    mov esi, -1
    mov edi, -1                     # edi:esi = the earliest so far
.Lnew_entry:
    cmp dword ptr [ebx + ARP_STATE], ARP_FREE
    je .Lnew_entry_free
    mov edx, [ebx + ARP_AGE]
    mov ecx, [ebx + ARP_AGE + 4]
    cmp edx, esi
    sbb ecx, edi
    jae .Lnew_entry_next
    mov eax, ebx
    mov esi, edx
    mov edi, [ebx + ARP_AGE + 4]
.Lnew_entry_next:
    add ebx, SIZEOF_ARP
    cmp ebx, offset arp_table_end
    jb .Lnew_entry
    jmp .Lnew_entry_out
.Lnew_entry_free:
    mov eax, ebx
.Lnew_entry_out:
    pop edi
    pop esi
    pop ebx
    ret

# Note that an entry was heard of now. In: eax = entry. Keeps eax.
arp_stamp:
    push eax
    call time_coarse
    pop ecx
    mov [ecx + ARP_AGE], eax
    mov [ecx + ARP_AGE + 4], edx
    mov eax, ecx
    ret

# How old is an entry? In: ebx = entry. Out: edx:eax = ns since it was heard of, or asked.
arp_age:
    call time_coarse
    sub eax, [ebx + ARP_AGE]
    sbb edx, [ebx + ARP_AGE + 4]
    jnc .Larp_age_done
    xor eax, eax                    # another processor's clock is a little ahead
    xor edx, edx
.Larp_age_done:
    ret

# Find out which station has an address, and wait until it has answered. In: eax = address, -1 for
# everybody; edx = where the six bytes go, ebp = interface. Out: eax = 0; or -EHOSTUNREACH, -EINTR.
# kernel_lock is held, and given back while it waits: then the interface may have gone.
arp_resolve:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov edi, edx
    push ARP_TRIES
.Lresolve_look:
    cmp esi, -1
    je .Lresolve_everybody
    cmp esi, [ebp + NETWORK_ADDRESS]
    je .Lresolve_ourselves
    mov eax, offset network_lock
    call lock_events
    push eax
    mov eax, esi
    call arp_find
    mov ebx, eax
    test eax, eax
    jz .Lresolve_ask
    call arp_age
    test edx, edx
    jnz .Lresolve_old               # more than four seconds
    cmp dword ptr [ebx + ARP_STATE], ARP_KNOWN
    je .Lresolve_known
    cmp eax, ARP_PATIENCE_NS
    jb .Lresolve_wait
    jmp .Lresolve_ask
.Lresolve_old:
    cmp dword ptr [ebx + ARP_STATE], ARP_KNOWN
    jne .Lresolve_ask
    sub eax, ARP_LIFETIME_NS & 0xFFFFFFFF
    sbb edx, ARP_LIFETIME_NS >> 32
    jae .Lresolve_ask
.Lresolve_known:
    mov eax, [ebx + ARP_STATION]
    mov [edi], eax
    mov ax, [ebx + ARP_STATION + 4]
    mov [edi + 4], ax
    pop edx
    mov eax, offset network_lock
    call unlock_events
    jmp .Lresolve_done
.Lresolve_ask:
    dec dword ptr [esp + 4]
    js .Lresolve_failed
    test ebx, ebx
    jnz .Lresolve_asked
    call arp_new
    mov ebx, eax
    mov [ebx + ARP_ADDRESS], esi
    mov [ebx + ARP_NIC], ebp
.Lresolve_asked:
    mov dword ptr [ebx + ARP_STATE], ARP_ASKED
    mov eax, ebx
    call arp_stamp
    mov eax, ARP_REQUEST
    mov edx, offset ethernet_everybody
    mov ecx, esi
    call arp_send
.Lresolve_wait:
    call netfront_push              # also what waits in the ring: nobody else does it meanwhile
    call time_now
    add eax, ARP_PATIENCE_NS
    adc edx, 0
    push eax
    call process_current
    mov [eax + PROCESS_DEADLINE + 4], edx
    pop dword ptr [eax + PROCESS_DEADLINE]
    pop eax                         # process_sleep lets events in
    mov eax, offset arp_table
    mov edx, offset network_lock
    call process_sleep
    test eax, eax
    jz .Lresolve_again
    mov eax, -EINTR
    jmp .Lresolve_out
.Lresolve_again:
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    je .Lresolve_look
    mov eax, -ENETUNREACH
    jmp .Lresolve_out
.Lresolve_failed:
    test ebx, ebx
    jz .Lresolve_forgotten
    mov dword ptr [ebx + ARP_STATE], ARP_FREE
.Lresolve_forgotten:
    pop edx
    mov eax, offset network_lock
    call unlock_events
    mov eax, -EHOSTUNREACH
    jmp .Lresolve_out
.Lresolve_ourselves:
    mov eax, [ebp + NETWORK_MAC]
    mov [edi], eax
    mov ax, [ebp + NETWORK_MAC + 4]
    mov [edi + 4], ax
    jmp .Lresolve_done
.Lresolve_everybody:
    mov dword ptr [edi], -1
    mov word ptr [edi + 4], -1
.Lresolve_done:
    xor eax, eax
.Lresolve_out:
    lea esp, [esp + 4]
    pop edi
    pop esi
    pop ebx
    ret

# Put a packet into the ring; where there is no room the other one asks again. In: eax = ARP_REQUEST
# or ARP_REPLY, edx = address of the station that it goes to, ecx = the address that is asked for,
# or that of who asked; ebp = interface. network_lock is held.
arp_send:
    push ebx
    push esi
    push edi
    push eax
    push ecx
    mov esi, edx
    call network_take
    mov ebx, eax
    test eax, eax
    jz .Larp_send_none
    mov edi, [ebx + PBUF_DATA]
    mov eax, esi
    mov edx, ETHERNET_ARP
    call ethernet_header
    add edi, ETHERNET_HEADER
    mov dword ptr [edi], ARP_KIND
    mov eax, [esp + 4]
    mov [edi + 4], eax
    mov eax, [ebp + NETWORK_MAC]
    mov [edi + ARP_SENDER_STATION], eax
    mov ax, [ebp + NETWORK_MAC + 4]
    mov [edi + ARP_SENDER_STATION + 4], ax
    mov eax, [ebp + NETWORK_ADDRESS]
    mov [edi + ARP_SENDER], eax
    mov eax, [esi]
    mov [edi + ARP_TARGET_STATION], eax
    mov ax, [esi + 4]
    mov [edi + ARP_TARGET_STATION + 4], ax
    mov eax, [esp]
    mov [edi + ARP_TARGET], eax
    mov eax, ebx
    mov edx, ETHERNET_HEADER + ARP_PACKET
    call ethernet_send
.Larp_send_none:
    pop ecx
    pop eax
    pop edi
    pop esi
    pop ebx
    ret

# Tell everybody the address of an interface, by asking for it. In: ebp = interface. network_lock is
# held.
arp_announce:
    mov ecx, [ebp + NETWORK_ADDRESS]
    test ecx, ecx
    jz .Larp_announce_none
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    jne .Larp_announce_none
    mov eax, ARP_REQUEST
    mov edx, offset ethernet_everybody
    call arp_send
    jmp netfront_push
.Larp_announce_none:
    ret

# Forget the stations behind an interface. In: ebp. network_lock is held.
arp_forget:
    mov ecx, offset arp_table
.Larp_forget_station:
    cmp [ecx + ARP_NIC], ebp
    jne .Larp_forget_next
    mov dword ptr [ecx + ARP_STATE], ARP_FREE
.Larp_forget_next:
    add ecx, SIZEOF_ARP
    cmp ecx, offset arp_table_end
    jb .Larp_forget_station
    mov eax, offset arp_table       # who waits for an answer looks again
    jmp process_wake

.section .bss
.p2align 2
arp_table:
    .space ARP_COUNT * SIZEOF_ARP
arp_table_end:
