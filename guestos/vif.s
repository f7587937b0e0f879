# SPDX-License-Identifier: GPL-2.0-or-later
#
# vif: how a network interface meets its backend, and parts from it. The rules of meeting are those
# of xenbus.s; what is told in XenStore is netif.h's.
#
#   device/vif/0/mac                        ours, or else the backend has it
#   device/vif/0/tx-ring-ref, rx-ring-ref   grants of the two rings
#   device/vif/0/event-channel              one port for both
#   device/vif/0/request-rx-copy            1: it copies packets to our pages
#
# The pages that the two share are vif_pages.s's business.
#
# Addresses outlive a backend: they belong to the interface, as long as the device exists.

.equ MAC_BYTES, 6

.section .text

# -- as a driver: in: eax = device -----------------------------------------------------------

vif_connect:
    push ebx
    push ebp
    mov ebx, eax
    mov eax, -ENODEV
    mov ecx, [ebx + DEVICE_NUMBER]
    cmp ecx, NETWORK_MAX
    jae .Lvif_connect_out
    imul ebp, ecx, SIZEOF_NIC
    add ebp, offset network_nics
    mov [ebx + DEVICE_DATA], ebp
    mov [ebp + NIC_DEVICE], ebx
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_ABSENT
    jne .Lvif_connect_known
    mov dword ptr [ebp + NETWORK_STATE], NETWORK_DOWN
    mov dword ptr [ebp + NIC_ONE], 1
.Lvif_connect_known:
    call vif_release                # of an earlier connection
    mov eax, ebx
    mov edx, offset vif_rx_copy
    call xenbus_backend_number
    jc .Lvif_connect_refused
    cmp eax, 1
    jne .Lvif_connect_refused
    call vif_read_mac
    test eax, eax
    js .Lvif_connect_out
    call grants_open
    test eax, eax
    js .Lvif_connect_failed
    call vif_make
    test eax, eax
    js .Lvif_connect_failed
    call vif_tell
    test eax, eax
    jns .Lvif_connect_out
.Lvif_connect_failed:
    push eax
    call vif_leave
    call vif_release
    pop eax
.Lvif_connect_out:
    pop ebp
    pop ebx
    ret
.Lvif_connect_refused:
    mov eax, -EINVAL                # it would want pages for pages: nobody does that any more
    jmp .Lvif_connect_out

vif_live:
    push ebx
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    mov dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    call arp_announce
    mov eax, offset network_lock
    mov edx, ebx
    call unlock_events
    xor eax, eax
    pop ebp
    pop ebx
    ret

# Packets in work may be lost at any time: nothing has to be waited for.
vif_idle:
    mov eax, 1
    ret

vif_stop:
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    test ebp, ebp
    jz .Lvif_stop_out               # it was never connected
    call vif_leave
.Lvif_stop_out:
    pop ebp
    ret

vif_remove:
    push edi
    push ebp
    mov ebp, [eax + DEVICE_DATA]
    test ebp, ebp
    jz .Lvif_remove_out
    call vif_release
    mov edi, ebp
    xor eax, eax
    mov ecx, SIZEOF_NIC / 4
    rep stosd                       # NETWORK_ABSENT, and no address
.Lvif_remove_out:
    pop ebp
    pop edi
    ret

# -- making ----------------------------------------------------------------------------------

# Read the address of the interface. In: ebx = device, ebp = interface. Out: eax = 0 or -errno.
vif_read_mac:
    push esi
    push edi
    lea eax, [ebx + DEVICE_PATH]
    mov edx, offset vif_mac
    call store_read
    test eax, eax
    jns .Lmac_read
    lea eax, [ebx + DEVICE_BACKEND]
    mov edx, offset vif_mac
    call store_read
    test eax, eax
    js .Lmac_out
.Lmac_read:
    mov esi, offset store_answer
    xor edi, edi
.Lmac_byte:
    call vif_hex_digit
    jc .Lmac_bad
    mov ecx, eax
    call vif_hex_digit
    jc .Lmac_bad
    shl ecx, 4
    or eax, ecx
    mov [ebp + NETWORK_MAC + edi], al
    inc edi
    lodsb
    cmp edi, MAC_BYTES
    je .Lmac_end
    cmp al, ':'
    je .Lmac_byte
.Lmac_bad:
    mov eax, -EINVAL
.Lmac_out:
    pop edi
    pop esi
    ret
.Lmac_end:
    test al, al
    jnz .Lmac_bad
    test byte ptr [ebp + NETWORK_MAC], 1
    jnz .Lmac_bad                   # that of a group
    xor eax, eax
    jmp .Lmac_out

# Read a digit. In: esi. Out: eax, esi behind it; CF set where it is none. Keeps ecx.
vif_hex_digit:
    movzx eax, byte ptr [esi]
    inc esi
    sub eax, '0'
    cmp eax, 10
    jb .Ldigit_done
    add eax, '0'
    or eax, 0x20                    # a lower-case letter
    sub eax, 'a'
    cmp eax, 6
    jae .Ldigit_none
    add eax, 10
    clc
    ret
.Ldigit_none:
    stc
    ret
.Ldigit_done:
    clc
    ret

# -- parting ---------------------------------------------------------------------------------

# Use the backend no more, and forget what came by it. In: ebp = interface.
vif_leave:
    push ebx
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    call netfront_leave
    call socket_forget
    call arp_forget
    xor eax, eax
    mov [ebp + NIC_TX_FREE], eax
    mov [ebp + NIC_RX_FREE], eax
    mov [ebp + NIC_RX_SPARE], eax
    mov eax, offset network_lock
    mov edx, ebx
    pop ebx
    call unlock_events
    xor eax, eax
    xchg eax, [ebp + NIC_EVENT]
    test eax, eax
    jnz event_disconnect
    ret

.section .rodata
.p2align 2
# What the backend is told: a name, and where in the interface the number stands.
vif_nodes:
    .long .Lvif_tx_ref, NIC_TX_GRANT, .Lvif_rx_ref, NIC_RX_GRANT, .Lvif_event, NIC_EVENT
    .long .Lvif_request_copy, NIC_ONE, .Lvif_notify, NIC_ONE, 0
.Lvif_tx_ref: .asciz "tx-ring-ref"
.Lvif_rx_ref: .asciz "rx-ring-ref"
.Lvif_event: .asciz "event-channel"
.Lvif_request_copy: .asciz "request-rx-copy"
.Lvif_notify: .asciz "feature-rx-notify"
vif_rx_copy:
    .asciz "feature-rx-copy"
vif_mac:
    .asciz "mac"
vif_path:
    .asciz "device/vif"
