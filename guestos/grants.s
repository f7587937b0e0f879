# SPDX-License-Identifier: GPL-2.0-or-later
#
# Grants: pages of ours that another domain may use (public/grant_table.h, version 1).
#
# The grant table is memory that Xen shares with us: an entry names a frame, the domain that may use
# it, and whether only to read it. Its index, the reference, is what the other domain is told. So an
# IOMMU works, but Xen looks at an entry when the other domain maps or copies, not at each access:
# what is mapped stays mapped until that domain unmaps it.
#
# An entry:   flags, 16 bits | domid, 16 bits | frame, 32 bits
#
#   free        flags 0; the word of the frame is the next free reference, 0 at the end
#   given       GTF_permit_access; Xen adds GTF_reading and GTF_writing as long as it is in use
#
# An entry that is in use cannot be ended, and its page must not be used for anything else: whoever
# ends one has to look at the answer. (A backend that keeps a page after it has answered is broken,
# or hostile.)
#
# The first GNTTAB_NR_RESERVED_ENTRIES are the builder's: Dom0 has console and XenStore by them.

.equ GRANT_FRAMES, 8
.equ GRANT_COUNT, GRANT_FRAMES * PAGE_SIZE / SIZEOF_GRANT_ENTRY_V1

.section .text

# Set up the table, once; the first device needs it. Out: eax = 0 or negative.
grants_open:
    xor eax, eax
    cmp dword ptr [grants_next], 0
    jne .Lgrants_open_done
    mov eax, offset grant_table
    mov edx, GRANT_FRAMES
    call port_map_grants
    test eax, eax
    jnz .Lgrants_open_done
    mov dword ptr [grants_next], GNTTAB_NR_RESERVED_ENTRIES
.Lgrants_open_done:
    ret

# Let a domain use a page. In: eax = page, edx = domid, ecx = 0, or GTF_readonly. Out: eax = the
# reference, or 0 where there is none left. Event handlers may call it.
grant_give:
    push ebx
    push esi
    push edi
    mov esi, edx
    lea edi, [ecx + GTF_permit_access]
    call port_frame_of
    mov ebx, eax
    mov eax, offset grants_lock
    call lock_events
    mov edx, eax
    mov eax, [grants_free]
    test eax, eax
    jz .Lgive_fresh
    mov ecx, [grant_table + eax * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FRAME]
    mov [grants_free], ecx
.Lgive_found:
    mov [grant_table + eax * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FRAME], ebx
    mov [grant_table + eax * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_DOMID], si
    # The flags come last: with them the entry counts. x86 shows stores in order.
    mov [grant_table + eax * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FLAGS], di
.Lgive_given:
    mov ebx, eax
    mov eax, offset grants_lock
    call unlock_events
    mov eax, ebx
    pop edi
    pop esi
    pop ebx
    ret
.Lgive_fresh:
    mov eax, [grants_next]
    cmp eax, GRANT_COUNT
    jae .Lgive_no_more
    inc dword ptr [grants_next]
    jmp .Lgive_found
.Lgive_no_more:
    xor eax, eax
    jmp .Lgive_given

# Take the right back. In: eax = reference. Out: eax = 0, or -EBUSY while the page is in use: then
# nothing has changed. Event handlers may call it.
grant_end:
    push ebx
    mov ebx, eax
.Lend_again:
    mov ax, [grant_table + ebx * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FLAGS]
    test ax, GTF_reading | GTF_writing
    jnz .Lend_busy
    xor ecx, ecx                    # in one step with the look, for Xen may set these bits now
    lock cmpxchg [grant_table + ebx * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FLAGS], cx
    jnz .Lend_again
    mov eax, offset grants_lock
    call lock_events
    mov edx, eax
    mov eax, [grants_free]
    mov [grant_table + ebx * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FRAME], eax
    mov [grants_free], ebx
    mov eax, offset grants_lock
    call unlock_events
    xor eax, eax
    pop ebx
    ret
.Lend_busy:
    mov eax, -EBUSY
    pop ebx
    ret

# Which page does a reference stand for? In: eax = reference that is given. Out: eax = page.
grant_page:
    mov eax, [grant_table + eax * SIZEOF_GRANT_ENTRY_V1 + GRANT_ENTRY_V1_FRAME]
    mov edx, eax
    shl eax, PAGE_SHIFT
    shr edx, 32 - PAGE_SHIFT
    jmp port_page_of

.section .bss
.p2align PAGE_SHIFT
# Pages of this kernel in whose place the table is mapped. Their own frames are not used.
grant_table:
    .space GRANT_FRAMES * PAGE_SIZE
grants_lock:
    .space 4                        # event-safe: the list
grants_free:
    .space 4                        # the first free reference, or 0
grants_next:
    .space 4                        # no reference from here on was ever given; 0: no table yet
