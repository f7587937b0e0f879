# SPDX-License-Identifier: GPL-2.0-or-later
#
# Event channels: what a paravirtual machine has in place of interrupts (public/event_channel.h).
#
# A port is a bit. Xen sets it in three places, from the inside out; we look from the outside in:
#
#   evtchn_pending[port / 32], bit port % 32     the port, unless evtchn_mask has it
#   evtchn_pending_sel, bit port / 32            a word that has such a bit
#   evtchn_upcall_pending                        there is something at all
#
# The outer two are cleared before the inner ones are read. In the other order an event that comes
# between the two would be forgotten; in this one it may at worst be looked for twice.
#
# A port's event goes to the one processor that the port is bound to. The pending bits of all ports
# lie together, though, so each processor looks at its own only (CPU_PORTS).
#
# Handlers run on the interrupted stack with events masked. In: eax = port, edx = what event_connect
# was given for it. They follow the kernel's convention of calls, and never take kernel_lock: it may
# be held by what they interrupt.

.section .text

# Mask every port, and take upcalls. Needs shared_info; events are still masked as a whole.
events_open:
    push edi
    mov edi, offset shared_info + SHARED_INFO_EVTCHN_MASK
    mov ecx, EVTCHN_2L_NR_CHANNELS / 32
    mov eax, -1
    rep stosd
    pop edi

# Take upcalls on this processor.
events_open_cpu:
    mov eax, offset events_upcall
    mov edx, offset trap_failsafe
    jmp port_set_callbacks

# Let one port through to its handler, on the processor that it is bound to. In: eax = port, edx =
# handler, ebx = the processor.
event_open:
    mov [event_handlers + eax * 4], edx
    # A bit number in a register reaches beyond the 32 bits at the address: all 1024 ports.
    lock bts dword ptr [ebx + CPU_PORTS], eax
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_MASK], eax
    # While the port was masked Xen set its bit and told nobody: pass that on.
    bt dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    jnc .Levent_open_done
    shr eax, 5
    mov edx, [ebx + CPU_INFO]
    lock bts dword ptr [edx + VCPU_INFO_EVTCHN_PENDING_SEL], eax
    mov byte ptr [edx + VCPU_INFO_EVTCHN_UPCALL_PENDING], 1
.Levent_open_done:
    ret

# Take a port that another domain can join, and let it through to a handler, on the first processor.
# In: eax = domid, edx = handler, ecx = what it gets in edx. Out: eax = port or -errno.
event_connect:
    push ebx
    push ecx
    push edx
    call port_alloc_event
    pop edx
    pop ecx
    test eax, eax
    js .Levent_connect_done
    mov [event_arguments + eax * 4], ecx
    mov ebx, offset cpu_table
    push eax
    call event_open
    pop eax
.Levent_connect_done:
    pop ebx
    ret

# Give such a port back. In: eax = port. Its handler may be running, but will not be called anew.
event_disconnect:
    lock bts dword ptr [shared_info + SHARED_INFO_EVTCHN_MASK], eax
    lock btr dword ptr [cpu_table + CPU_PORTS], eax
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
    jmp port_close_event

# Xen comes here when an event is pending and not masked; it has masked events for us.
# The return unmasks them in the same step, and if more came meanwhile Xen comes here again.
events_upcall:
    push 0                          # no error code and no vector: the frame of traps.s
    push 0
    TRAP_ENTER
    call events_dispatch
    mov eax, [esp + FRAME_CS]
    and eax, SELECTOR_RPL
    cmp eax, SELECTOR_RPL
    je trap_return                  # a program was interrupted: its turn may be over
    TRAP_LEAVE

# Serve every port of this processor that is pending and not masked.
events_dispatch:
    push ebx
    push esi
    push edi
    push ebp
    CPU ebp
.Ldispatch_again:
    mov edx, [ebp + CPU_INFO]
    mov byte ptr [edx + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    xor esi, esi
    xchg esi, [edx + VCPU_INFO_EVTCHN_PENDING_SEL]
.Ldispatch_word:
    bsf ebx, esi                    # ebx = word that has pending ports
    jz .Ldispatch_words_done
    btr esi, ebx
.Ldispatch_port:
    mov eax, [shared_info + SHARED_INFO_EVTCHN_MASK + ebx * 4]
    not eax
    and eax, [ebp + CPU_PORTS + ebx * 4]
    and eax, [shared_info + SHARED_INFO_EVTCHN_PENDING + ebx * 4]
    bsf edi, eax
    jz .Ldispatch_word
    # Cleared before it is served: what comes while the handler runs is served again.
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING + ebx * 4], edi
    mov eax, ebx
    shl eax, 5
    or eax, edi
    mov edx, [event_arguments + eax * 4]
    call dword ptr [event_handlers + eax * 4]
    jmp .Ldispatch_port
.Ldispatch_words_done:
    mov edx, [ebp + CPU_INFO]
    cmp byte ptr [edx + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    jne .Ldispatch_again
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

.section .bss
.p2align PAGE_SHIFT
# The page of this kernel behind which Xen's shared page is mapped. Its own frame is not used.
shared_info:
    .space PAGE_SIZE
event_handlers:
    .space EVTCHN_2L_NR_CHANNELS * 4
event_arguments:
    .space EVTCHN_2L_NR_CHANNELS * 4
