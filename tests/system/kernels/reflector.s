# SPDX-License-Identifier: GPL-2.0-or-later
#
# A kernel with one network card that sends back what it gets, for tests of networks.
#
# Its address is 10.0.0.2. It says so when it starts, answers ARP for that, and each UDP datagram
# with the same bytes; one that begins with "q" ends it, once the answer is out. A frame is changed
# where it lies, in the page in which it came: swapping addresses and ports leaves every checksum
# right.
#
# It sets no traps, masks events throughout and polls for the one port of its card.

.include "xen_abi.inc"

.equ VIRT_BASE, 0xC0000000
.equ PTE_RW_DATA, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ BACKEND, 0
.equ BUFFERS, 32
.equ TX_REF, 8                      # the first eight are the toolstack's (grant_table.h)
.equ RX_REF, 9
.equ FIRST_BUFFER_REF, 10
.equ RING, 64                       # where the slots begin
.equ OWN_ADDRESS, 0x0200000A        # 10.0.0.2, as the frame has it

# Offsets in a frame.
.equ ETH_SOURCE, 6
.equ ETH_TYPE, 12
.equ ARP_OPERATION, 20
.equ ARP_SENDER_MAC, 22
.equ ARP_SENDER, 28
.equ ARP_TARGET_MAC, 32
.equ ARP_TARGET, 38
.equ IP_PROTOCOL, 23
.equ IP_SOURCE, 26
.equ IP_DESTINATION, 30
.equ UDP_PORTS, 34
.equ UDP_DATA, 42
.equ TYPE_IPV4, 0x0008
.equ TYPE_ARP, 0x0608
.equ PROTOCOL_UDP, 17

.xen_note GUEST_OS, "reflector"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, VIRT_BASE
.xen_note HYPERCALL_PAGE, hypercall_page

.macro CALL_XEN number
    call hypercall_page + \number * HYPERCALL_STUB_SIZE
.endm

.section .text
.p2align PAGE_SHIFT
hypercall_page:
    .space PAGE_SIZE

.global _start
_start:
    mov ebp, esi                    # start_info
    mov ecx, [ebp + START_INFO_SHARED_INFO]
    xor edx, edx
    mov ebx, offset shared_info
    call map
    call find_grants
    call fill_rings
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset offered
    CALL_XEN HYPERVISOR_event_channel_op
    mov eax, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], eax
    add [port_digit], al            # the third of its ports: one digit
    call tell_store

main:
    mov eax, [port]
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    mov dword ptr [has_work], 0
    call take_frames
    call take_back
    cmp dword ptr [has_work], 0
    je sleep
    mov eax, [tx_prod]
    mov [tx_ring + SRING_REQ_PROD], eax
    mov eax, [rx_prod]
    mov [rx_ring + SRING_REQ_PROD], eax
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    CALL_XEN HYPERVISOR_event_channel_op
    jmp main
sleep:
    cmp dword ptr [is_ending], 0
    je sleep_on
    mov eax, [tx_cons]
    cmp eax, [tx_prod]
    je power_off
sleep_on:
    mov ebx, SCHEDOP_poll
    mov ecx, offset polled
    CALL_XEN HYPERVISOR_sched_op
    jmp main

power_off:
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset reason
    CALL_XEN HYPERVISOR_sched_op
    ud2

# -- frames ---------------------------------------------------------------------------------------

# Take each frame that has come: send it back, or give its page back at once.
take_frames:
    mov eax, [rx_cons]
    cmp eax, [rx_ring + SRING_RSP_PROD]
    je no_frame
    inc dword ptr [rx_cons]
    mov dword ptr [has_work], 1
    and eax, NETIF_RX_RING_SIZE - 1
    lea eax, [rx_ring + RING + eax * SIZEOF_NETIF_RX_REQUEST]
    movzx edx, word ptr [eax + NETIF_RX_RESPONSE_ID]
    movzx ecx, word ptr [eax + NETIF_RX_RESPONSE_OFFSET]
    movsx ebx, word ptr [eax + NETIF_RX_RESPONSE_STATUS]
    mov edi, edx
    shl edi, PAGE_SHIFT
    lea edi, [buffers + edi + ecx]
    call turn_round
    jc give_back_this
    call send
    jmp take_frames
give_back_this:
    call give_back
    jmp take_frames
no_frame:
    inc eax
    mov [rx_ring + SRING_RSP_EVENT], eax
    ret

# In: edi = frame, ebx = its bytes. Out: carry set where it is not to be answered.
turn_round:
    cmp ebx, UDP_DATA
    jb not_ours
    cmp word ptr [edi + ETH_TYPE], TYPE_ARP
    je turn_arp
    cmp word ptr [edi + ETH_TYPE], TYPE_IPV4
    jne not_ours
    cmp dword ptr [edi + IP_DESTINATION], OWN_ADDRESS
    jne not_ours
    cmp byte ptr [edi + IP_PROTOCOL], PROTOCOL_UDP
    jne not_ours
    mov eax, [edi + IP_SOURCE]
    mov [edi + IP_DESTINATION], eax
    mov dword ptr [edi + IP_SOURCE], OWN_ADDRESS
    rol dword ptr [edi + UDP_PORTS], 16
    cmp byte ptr [edi + UDP_DATA], 'q'
    jne turn_addresses
    mov dword ptr [is_ending], 1
turn_addresses:
    mov eax, [edi + ETH_SOURCE]
    mov [edi], eax
    mov ax, [edi + ETH_SOURCE + 4]
    mov [edi + 4], ax
    mov eax, [own_mac]
    mov [edi + ETH_SOURCE], eax
    mov ax, [own_mac + 4]
    mov [edi + ETH_SOURCE + 4], ax
    clc
    ret
turn_arp:
    cmp byte ptr [edi + ARP_OPERATION + 1], 1
    jne not_ours
    cmp dword ptr [edi + ARP_TARGET], OWN_ADDRESS
    jne not_ours
    mov byte ptr [edi + ARP_OPERATION + 1], 2
    mov eax, [edi + ARP_SENDER_MAC]
    mov [edi + ARP_TARGET_MAC], eax
    mov ax, [edi + ARP_SENDER_MAC + 4]
    mov [edi + ARP_TARGET_MAC + 4], ax
    mov eax, [edi + ARP_SENDER]
    mov [edi + ARP_TARGET], eax
    mov dword ptr [edi + ARP_SENDER], OWN_ADDRESS
    mov eax, [own_mac]
    mov [edi + ARP_SENDER_MAC], eax
    mov ax, [own_mac + 4]
    mov [edi + ARP_SENDER_MAC + 4], ax
    jmp turn_addresses
not_ours:
    stc
    ret

# Send a frame out of the buffer in which it came. In: edx = buffer, ecx = offset, ebx = bytes.
send:
    mov eax, [tx_prod]
    inc dword ptr [tx_prod]
    and eax, NETIF_TX_RING_SIZE - 1
    imul eax, eax, SIZEOF_NETIF_TX_REQUEST
    add eax, offset tx_ring + RING
    lea esi, [edx + FIRST_BUFFER_REF]
    mov [eax + NETIF_TX_REQUEST_GREF], esi
    mov [eax + NETIF_TX_REQUEST_OFFSET], cx
    mov word ptr [eax + NETIF_TX_REQUEST_FLAGS], 0
    mov [eax + NETIF_TX_REQUEST_ID], dx
    mov [eax + NETIF_TX_REQUEST_SIZE], bx
    ret

# Take back the buffers of what has been sent, and offer them for frames again.
take_back:
    mov eax, [tx_cons]
    cmp eax, [tx_ring + SRING_RSP_PROD]
    je nothing_sent
    inc dword ptr [tx_cons]
    mov dword ptr [has_work], 1
    and eax, NETIF_TX_RING_SIZE - 1
    imul eax, eax, SIZEOF_NETIF_TX_REQUEST
    movzx edx, word ptr [tx_ring + RING + eax + NETIF_TX_RESPONSE_ID]
    call give_back
    jmp take_back
nothing_sent:
    inc eax
    mov [tx_ring + SRING_RSP_EVENT], eax
    ret

# Offer a buffer for a frame. In: edx = buffer.
give_back:
    mov eax, [rx_prod]
    inc dword ptr [rx_prod]
    and eax, NETIF_RX_RING_SIZE - 1
    lea eax, [rx_ring + RING + eax * SIZEOF_NETIF_RX_REQUEST]
    mov [eax + NETIF_RX_REQUEST_ID], dx
    lea esi, [edx + FIRST_BUFFER_REF]
    mov [eax + NETIF_RX_REQUEST_GREF], esi
    ret

# -- setting up -----------------------------------------------------------------------------------

# Map a frame at the page of an address. In: ebx = address, edx:ecx = the frame's address.
map:
    or ecx, PTE_RW_DATA
    mov esi, UVMF_INVLPG
    CALL_XEN HYPERVISOR_update_va_mapping
    ret

# Map the grant table, and grant the backend both rings and all buffers.
find_grants:
    mov ebx, GNTTABOP_setup_table
    mov ecx, offset setup
    mov edx, 1
    CALL_XEN HYPERVISOR_grant_table_op
    mov ecx, [grant_mfn]
    mov edx, ecx
    shl ecx, PAGE_SHIFT
    shr edx, 32 - PAGE_SHIFT
    mov ebx, offset grants
    call map
    mov esi, offset tx_ring - VIRT_BASE
    shr esi, PAGE_SHIFT             # pfn of the first page
    shl esi, 2
    add esi, [ebp + START_INFO_MFN_LIST]
    mov edi, offset grants + TX_REF * SIZEOF_GRANT_ENTRY_V1
    mov ecx, 2 + BUFFERS
next_grant:
    lodsd
    mov [edi + GRANT_ENTRY_V1_FRAME], eax
    mov word ptr [edi + GRANT_ENTRY_V1_DOMID], BACKEND
    mov word ptr [edi + GRANT_ENTRY_V1_FLAGS], GTF_permit_access
    add edi, SIZEOF_GRANT_ENTRY_V1
    loop next_grant
    ret

# Ask for an event with each first response; put out who we are, and offer the other buffers.
fill_rings:
    mov eax, 1
    mov [tx_ring + SRING_REQ_EVENT], eax
    mov [tx_ring + SRING_RSP_EVENT], eax
    mov [rx_ring + SRING_REQ_EVENT], eax
    mov [rx_ring + SRING_RSP_EVENT], eax
    mov esi, offset announcement
    mov edi, offset buffers
    mov ecx, offset announcement_end - announcement
    mov ebx, ecx
    cld
    rep movsb
    xor edx, edx
    call send                       # from buffer 0, at offset 0
    mov eax, [tx_prod]
    mov [tx_ring + SRING_REQ_PROD], eax
    mov edx, 1
next_buffer:
    call give_back
    inc edx
    cmp edx, BUFFERS
    jb next_buffer
    mov eax, [rx_prod]
    mov [rx_ring + SRING_REQ_PROD], eax
    ret

# Send XenStore all that the backend wants to know; nobody waits for its answers.
tell_store:
    mov eax, [ebp + START_INFO_STORE_MFN]
    mov eax, [MACH2PHYS_VIRT_START + eax * 4]
    shl eax, PAGE_SHIFT
    lea edi, [eax + VIRT_BASE]
    mov edx, edi
    mov esi, offset wishes
    mov ecx, wishes_end - wishes
    cld
    rep movsb
    mov dword ptr [edx + XENSTORE_DOMAIN_INTERFACE_REQ_PROD], wishes_end - wishes
    mov eax, [ebp + START_INFO_STORE_EVTCHN]
    mov [store_port], eax
    mov ebx, EVTCHNOP_send
    mov ecx, offset store_port
    CALL_XEN HYPERVISOR_event_channel_op
    ret

.section .data
own_mac:
    .byte 0x00, 0x16, 0x3E, 0x00, 0x00, 0x02
.p2align 2
reason:
    .long SHUTDOWN_poweroff
offered:
    .word DOMID_SELF, BACKEND
    .long 0
setup:
    .word DOMID_SELF, 0
    .long 1
    .word 0, 0
    .long grant_mfn
grant_mfn:
    .long 0
polled:
    .long port, 1, 0, 0
port:
    .long 0
store_port:
    .long 0
rx_prod:
    .long 0
rx_cons:
    .long 0
tx_prod:
    .long 0
tx_cons:
    .long 0
has_work:
    .long 0
is_ending:
    .long 0

# ARP in which the sender asks for itself: who waits for its address takes it from there.
announcement:
    .byte 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x16, 0x3E, 0x00, 0x00, 0x02
    .byte 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1
    .byte 0x00, 0x16, 0x3E, 0x00, 0x00, 0x02, 10, 0, 0, 2
    .byte 0, 0, 0, 0, 0, 0, 10, 0, 0, 2
announcement_end:

# Requests to XenStore: header, path, NUL, value.
wishes:
    .long XS_WRITE, 0, 0, tx_end - tx_wish
tx_wish:
    .ascii "device/vif/0/tx-ring-ref"
    .byte 0, '8'
tx_end:
    .long XS_WRITE, 0, 0, rx_end - rx_wish
rx_wish:
    .ascii "device/vif/0/rx-ring-ref"
    .byte 0, '9'
rx_end:
    .long XS_WRITE, 0, 0, port_end - port_wish
port_wish:
    .ascii "device/vif/0/event-channel"
    .byte 0
port_digit:
    .byte '0'
port_end:
    .long XS_WRITE, 0, 0, copy_end - copy_wish
copy_wish:
    .ascii "device/vif/0/request-rx-copy"
    .byte 0, '1'
copy_end:
    .long XS_WRITE, 0, 0, state_end - state_wish
state_wish:
    .ascii "device/vif/0/state"
    .byte 0, '0' + XenbusStateConnected
state_end:
wishes_end:

.section .bss
.p2align PAGE_SHIFT
shared_info:
    .space PAGE_SIZE
grants:
    .space PAGE_SIZE
tx_ring:
    .space PAGE_SIZE
rx_ring:
    .space PAGE_SIZE
buffers:
    .space BUFFERS * PAGE_SIZE
