# SPDX-License-Identifier: GPL-2.0-or-later
#
# The network: interfaces, the buffers that frames lie in, and who owns them.
#
#   program  -- socketcall.s -- socket.s -- udp.s, icmp.s -- ip.s, arp.s -- ethernet.s -- netfront.s
#
# A frame comes in by an event. The handler takes it through all layers at once, in the page that
# the backend has copied it to, and the page itself is queued at the socket: the one copy of ours is
# to the program. An answer that the kernel gives (ARP, ping, "no such port") is on its way before
# the handler ends. A frame goes out in process context: the program's bytes are copied into a page
# that the backend may read, the headers are written before them, and the page waits in the ring
# until whoever sends has sent all he has (network_push).
#
# A buffer is a place for one frame, in a page that was granted to the backend once, for good:
#
#   to receive   free -> in the ring -> being looked at -> queued at a socket -> free
#   to send      free -> being filled -> in the ring -> free
#
# Pages are shared with the backend, which may be hostile: it may change a frame while it is looked
# at. So each field of a header is read once, is checked as read, and nothing of a page is ever used
# as an address. All that must be relied on stands in the buffer, which is not in the page.
#
# Numbers stay in the byte order of the network wherever they are only compared, copied or stored:
# addresses and ports of sockets, interfaces and ARP.
#
# network_lock guards all of this: interfaces, buffers, rings, queues of sockets, ARP. It is held
# with events masked, and only for as long as a few frames take.

.equ NETWORK_MAX, 4                 # interfaces: eth0 is the device vif/0

# An interface. It begins with what programs are told of it (NETWORK_, syscalls.inc).
.equ NIC_TX_FREE, SIZEOF_NETWORK    # buffers to send, a list through PBUF_NEXT,
.equ NIC_RX_FREE, NIC_TX_FREE + 4   # and those to receive that are not in the ring,
.equ NIC_RX_SPARE, NIC_RX_FREE + 4  # so many
.equ NIC_TX_WAITERS, NIC_RX_SPARE + 4       # somebody waits for a buffer to send
.equ NIC_TX, NIC_TX_WAITERS + 4     # of netfront.s: the two rings, fronts of ring.s,
.equ NIC_RX, NIC_TX + SIZEOF_FRONT
.equ NIC_TX_SLOTS, NIC_RX + SIZEOF_FRONT    # lists: which buffer has an id,
.equ NIC_RX_SLOTS, NIC_TX_SLOTS + 4 #        and which one lies in a slot
.equ NIC_EVENT, NIC_RX_SLOTS + 4    # the port
.equ NIC_DEVICE, NIC_EVENT + 4      # of vif.s: the device,
.equ NIC_TX_GRANT, NIC_DEVICE + 4   # the grants of the rings,
.equ NIC_RX_GRANT, NIC_TX_GRANT + 4
.equ NIC_CHUNKS, NIC_RX_GRANT + 4   # the pages that buffers are kept in,
.equ NIC_ONE, NIC_CHUNKS + 4        # and a number to tell
.equ SIZEOF_NIC, NIC_ONE + 4

.equ PBUF_NEXT, 0
.equ PBUF_NIC, 4
.equ PBUF_DATA, 8                   # address of its memory
.equ PBUF_GRANT, 12                 # reference of the page
.equ PBUF_NUMBER, 16                # of a buffer to send: its id in the ring
.equ PBUF_IN_RING, 20               # 1: the backend may use it
.equ PBUF_CHECKED, 24               # 1: whoever sent it vouches for its checksums
.equ PBUF_PAYLOAD, 28               # what a socket gets: address,
.equ PBUF_BYTES, 32                 # length,
.equ PBUF_SOURCE, 36                # and who sent it
.equ PBUF_PORT, 40
.equ SIZEOF_PBUF, 44

.section .text

# Which interface has a number? In: eax = number. Out: eax = interface, or 0 where there is none.
network_of:
    cmp eax, NETWORK_MAX
    jae .Lnetwork_none
    imul eax, eax, SIZEOF_NIC
    add eax, offset network_nics
    cmp dword ptr [eax + NETWORK_STATE], NETWORK_ABSENT
    je .Lnetwork_none
    ret
.Lnetwork_none:
    xor eax, eax
    ret

# A buffer that was received is not needed any more. In: eax = buffer. network_lock is held.
network_recycle:
    mov edx, [eax + PBUF_NIC]
    mov ecx, [edx + NIC_RX_FREE]
    mov [eax + PBUF_NEXT], ecx
    mov [edx + NIC_RX_FREE], eax
    inc dword ptr [edx + NIC_RX_SPARE]
    ret

# Take a buffer to send. In: ebp = interface. Out: eax = buffer, or 0. network_lock is held.
network_take:
    mov eax, [ebp + NIC_TX_FREE]
    test eax, eax
    jz .Ltake_collect
.Ltake_first:
    mov ecx, [eax + PBUF_NEXT]
    mov [ebp + NIC_TX_FREE], ecx
    ret
.Ltake_collect:
    call netfront_collect           # what the backend has sent by now
    mov eax, [ebp + NIC_TX_FREE]
    test eax, eax
    jnz .Ltake_first
    ret

# Give a buffer to send back. In: eax = buffer. network_lock is held.
network_discard:
    mov edx, [eax + PBUF_NIC]
    mov ecx, [edx + NIC_TX_FREE]
    mov [eax + PBUF_NEXT], ecx
    mov [edx + NIC_TX_FREE], eax
    ret

# Take a buffer to send, and wait for one. In: ebp = interface, eax = 1 not to wait. Out: eax =
# buffer; 0 where it was waited, and things may have changed; or -errno. kernel_lock is held.
network_take_waiting:
    push ebx
    push esi
    mov esi, eax
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    call network_take
    test eax, eax
    jnz .Lwaiting_unlock
    mov eax, -EAGAIN
    test esi, esi
    jnz .Lwaiting_unlock
    mov dword ptr [ebp + NIC_TX_WAITERS], 1
    call netfront_want_room
    test eax, eax
    mov eax, 0
    jnz .Lwaiting_unlock            # there is some already
    lea eax, [ebp + NIC_TX_FREE]
    mov edx, offset network_lock
    call process_sleep              # gives the lock back
    test eax, eax
    jz .Lwaiting_out
    mov eax, -EINTR
    jmp .Lwaiting_out
.Lwaiting_unlock:
    mov esi, eax
    mov eax, offset network_lock
    mov edx, ebx
    call unlock_events
    mov eax, esi
.Lwaiting_out:
    pop esi
    pop ebx
    ret

# Have the backends send what stands in their rings. kernel_lock is held.
network_push:
    push ebx
    push ebp
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    mov ebp, offset network_nics
.Lpush_next:
    cmp dword ptr [ebp + NETWORK_STATE], NETWORK_UP
    jne .Lpush_none
    call netfront_push
.Lpush_none:
    add ebp, SIZEOF_NIC
    cmp ebp, offset network_nics_end
    jb .Lpush_next
    mov eax, offset network_lock
    mov edx, ebx
    pop ebp
    pop ebx
    jmp unlock_events

# Add bytes up as the checksum of IP wants it: as 16-bit numbers, with each carry added in again.
# The sum of numbers in the wrong byte order is the sum in the wrong byte order: nothing is swapped.
# In: eax = address, edx = bytes, ecx = what is to be added to. Out: eax = the sum, of 16 bits.
#
# (32 bits at a time, and the carries apart: a chain of adc is several times slower on a processor
# that is emulated, which finds out the carry flag anew for each.)
network_sum:
    push ebx
    push esi
    mov esi, eax
    mov eax, ecx
    xor ecx, ecx                    # carries
    mov ebx, edx
    and ebx, ~63
    jz .Lsum_words
    add ebx, esi
.Lsum_block:
    .irp offset, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60
    add eax, [esi + \offset]
    adc ecx, 0
    .endr
    add esi, 64
    cmp esi, ebx
    jb .Lsum_block
.Lsum_words:
    mov ebx, edx
    and ebx, 60
    jz .Lsum_half
    add ebx, esi
.Lsum_word:
    add eax, [esi]
    adc ecx, 0
    add esi, 4
    cmp esi, ebx
    jb .Lsum_word
.Lsum_half:
    test edx, 2
    jz .Lsum_byte
    movzx ebx, word ptr [esi]
    add esi, 2
    add eax, ebx
    adc ecx, 0
.Lsum_byte:
    test edx, 1
    jz .Lsum_fold
    movzx ebx, byte ptr [esi]
    add eax, ebx
    adc ecx, 0
.Lsum_fold:
    add eax, ecx
    adc eax, 0
    pop esi
    pop ebx

# Fold a sum of 32 bits to 16. In and out: eax. Changes ecx.
network_fold:
    mov ecx, eax
    shr ecx, 16
    movzx eax, ax
    add eax, ecx
    mov ecx, eax
    shr ecx, 16
    movzx eax, ax
    add eax, ecx
    ret

# -- for programs ----------------------------------------------------------------------------

# network(NETWORK_GET or NETWORK_SET, number, address of a NETWORK_ record)
sys_network:
    push esi
    push ebp
    sub esp, SIZEOF_NETWORK
    mov eax, [ebx + FRAME_ECX]
    call network_of
    mov ebp, eax
    mov eax, -ENODEV
    test ebp, ebp
    jz .Lnetwork_out
    mov eax, -EINVAL
    cmp dword ptr [ebx + FRAME_EBX], NETWORK_GET
    je .Lnetwork_get
    cmp dword ptr [ebx + FRAME_EBX], NETWORK_SET
    jne .Lnetwork_out
    mov eax, esp
    mov edx, [ebx + FRAME_EDX]
    mov ecx, SIZEOF_NETWORK
    call user_copy_in
    test eax, eax
    js .Lnetwork_out
    mov esi, esp
    call network_set
    jmp .Lnetwork_out
.Lnetwork_get:
    mov eax, [ebx + FRAME_EDX]
    mov edx, ebp
    mov ecx, SIZEOF_NETWORK
    call user_copy_out
.Lnetwork_out:
    add esp, SIZEOF_NETWORK
    pop ebp
    pop esi
    ret

# Give an interface an address, a mask and a gateway. In: ebp = interface, esi = record. Out: eax =
# 0, or -EINVAL for a mask with holes.
network_set:
    push ebx
    mov eax, [esi + NETWORK_MASK]
    bswap eax
    not eax                         # of the form 0..01..1: with the next number it has no bit
    lea edx, [eax + 1]
    test eax, edx
    mov eax, -EINVAL
    jnz .Lset_out
    mov eax, offset network_lock
    call lock_events
    mov ebx, eax
    mov eax, [esi + NETWORK_ADDRESS]
    mov [ebp + NETWORK_ADDRESS], eax
    mov eax, [esi + NETWORK_MASK]
    mov [ebp + NETWORK_MASK], eax
    mov eax, [esi + NETWORK_GATEWAY]
    mov [ebp + NETWORK_GATEWAY], eax
    call arp_announce
    mov eax, offset network_lock
    mov edx, ebx
    call unlock_events
    xor eax, eax
.Lset_out:
    pop ebx
    ret

.section .bss
.p2align 2
network_lock:
    .space 4
network_nics:
    .space NETWORK_MAX * SIZEOF_NIC
network_nics_end:
network_unread:
    .space 4                        # buffers that wait at sockets
