# SPDX-License-Identifier: GPL-2.0-or-later
#
# The console: text out and keys in, over one page shared with Dom0 (public/io/console.h).
#
#   in   1024 bytes, Dom0 -> us    in_prod is Dom0's, in_cons is ours
#   out  2048 bytes, us -> Dom0    out_prod is ours, out_cons is Dom0's
#
# Indexes only grow and wrap at 2^32; a byte lies at index % size. Full and empty are told apart by
# the difference, and order is never compared, so the wrap needs no care. A byte is stored before
# the index that publishes it, and x86 shows stores in that order: no barrier is needed.
#
# Input is taken by tty.s, when the event of the console's port comes, on the first processor.
#
# Output goes through the ring from the very first line. (console_io would work without a ring, but
# then each line would have two ways out, and sooner or later appear twice or out of order.)
#
# Dom0 is told once per line, and before a processor waits; each telling is a hypercall.
#
# Invariants: whenever the ring has changed and Dom0 was not told, console_untold is 1. Writers hold
# console_lock, so nobody else writes in the middle of a text.

# Print a literal text. Keeps all registers but the flags.
.macro PRINT text
    .section .rodata
.Ltext\@:
    .ascii \text
.Ltext_end\@:
    .section .text
    push offset .Ltext_end\@ - .Ltext\@
    push offset .Ltext\@
    call console_print_literal
.endm

.section .text

# Find the ring. start_info gives its frame; the table that Xen maps into every guest turns that
# into a page number, and all pages lie in order from VIRT_BASE.
console_open:
    mov edx, [start_info]
    mov eax, [edx + START_INFO_CONSOLE_DOMU_EVTCHN]
    mov [console_port], eax
    mov eax, [edx + START_INFO_CONSOLE_DOMU_MFN]
    mov eax, [MACH2PHYS_VIRT_START + eax * 4]
    shl eax, PAGE_SHIFT
    add eax, VIRT_BASE
    mov [console_ring], eax
    ret

# Begin to take events for input: tty.s takes the keys.
console_listen:
    push ebx
    mov ebx, offset cpu_table
    mov eax, [console_port]
    mov edx, offset tty_input
    call event_open
    pop ebx
    ret

# Tell Dom0 that there is text, or room for keys, if it was not told yet.
console_tell:
    cmp byte ptr [console_untold], 0
    je .Ltell_done
    mov byte ptr [console_untold], 0
    mov eax, [console_port]
    call port_send_event
.Ltell_done:
    ret

# Write bytes, a line feed as CR LF: whoever shows them is a terminal in raw mode.
# In: eax = address, edx = length.
console_write:
    push ebx
    push esi
    push edi
    mov esi, eax
    lea edi, [eax + edx]
    mov eax, offset console_lock
    call lock_events
    push eax
    mov ebx, [console_ring]
    xor eax, eax
.Lwrite_next:
    cmp esi, edi
    jae .Lwrite_done
    mov al, [esi]
    inc esi
    cmp al, '\n'
    jne .Lwrite_byte
    mov al, '\r'
    call console_put
    mov al, '\n'
.Lwrite_byte:
    call console_put
    jmp .Lwrite_next
.Lwrite_done:
    cmp al, '\n'                    # the last byte
    jne .Lwrite_told
    call console_tell
.Lwrite_told:
    pop edx
    mov eax, offset console_lock
    call unlock_events
    pop edi
    pop esi
    pop ebx
    ret

# Put one byte into the ring, waiting for room. In: al = the byte, ebx = the ring. Keeps eax.
# console_lock is held.
console_put:
    mov ecx, [ebx + XENCONS_INTERFACE_OUT_PROD]
    mov edx, ecx
    sub edx, [ebx + XENCONS_INTERFACE_OUT_CONS]
    cmp edx, XENCONS_OUT_SIZE
    jae .Lput_wait
    mov edx, ecx
    and edx, XENCONS_OUT_SIZE - 1
    mov [ebx + edx + XENCONS_INTERFACE_OUT], al
    inc ecx
    mov [ebx + XENCONS_INTERFACE_OUT_PROD], ecx
    mov byte ptr [console_untold], 1
    ret
.Lput_wait:
    push eax
    call console_tell
    call port_yield
    pop eax
    jmp console_put

# Take a key out of the ring. Out: eax = the byte, or -1 if there is none. Events are masked.
console_take:
    push ebx
    mov ebx, [console_ring]
    or eax, -1
    mov ecx, [ebx + XENCONS_INTERFACE_IN_CONS]
    cmp ecx, [ebx + XENCONS_INTERFACE_IN_PROD]
    je .Lconsole_take_done
    mov edx, ecx
    and edx, XENCONS_IN_SIZE - 1
    movzx eax, byte ptr [ebx + edx + XENCONS_INTERFACE_IN]
    inc ecx
    mov [ebx + XENCONS_INTERFACE_IN_CONS], ecx
    mov byte ptr [console_untold], 1        # of the room for more keys
.Lconsole_take_done:
    pop ebx
    ret

# The routine behind PRINT. In: on the stack, address and length; it removes them. Keeps all
# registers.
console_print_literal:
    push eax
    push ecx
    push edx
    mov eax, [esp + 16]
    mov edx, [esp + 20]
    call console_write
    pop edx
    pop ecx
    pop eax
    ret 8

# Print a text that ends in 0. In: eax = address.
print:
    mov edx, eax
.Lprint_measure:
    cmp byte ptr [edx], 0
    je .Lprint_measured
    inc edx
    jmp .Lprint_measure
.Lprint_measured:
    sub edx, eax
    jmp console_write

# Print a number in base 16 with "0x" before it. In: eax.
print_hex:
    PRINT "0x"
    mov ecx, 16
    jmp print_number

# Print a number in base 10. In: eax, unsigned.
print_decimal:
    mov ecx, 10

# Print a number. In: eax, unsigned; ecx = base, 10 or 16.
print_number:
    push ebx
    sub esp, 12                     # ten digits at most
    lea ebx, [esp + 12]
.Lprint_digit:
    xor edx, edx
    div ecx
    mov dl, [digits + edx]
    dec ebx
    mov [ebx], dl
    test eax, eax
    jnz .Lprint_digit
    mov eax, ebx
    lea edx, [esp + 12]
    sub edx, ebx
    call console_write
    add esp, 12
    pop ebx
    ret

# Compare two texts that end in 0. In: eax and edx = addresses. Out: eax = 1 or 0.
texts_are_equal:
    push ebx
.Ltexts_next:
    mov bl, [eax]
    cmp bl, [edx]
    jne .Ltexts_differ
    inc eax
    inc edx
    test bl, bl
    jnz .Ltexts_next
    mov eax, 1
    pop ebx
    ret
.Ltexts_differ:
    xor eax, eax
    pop ebx
    ret

.section .rodata
digits:
    .ascii "0123456789abcdef"

.section .bss
.p2align 2
console_ring:
    .space 4
console_port:
    .space 4
console_lock:
    .space 4
console_untold:
    .space 1
