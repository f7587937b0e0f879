# SPDX-License-Identifier: GPL-2.0-or-later
#
# Page faults, and copying to and from programs, which relies on them.
#
# A program's page fault is one of these:
#
#   demand          the first touch of a page of heap, bss or stack: it gets a page of zeros
#   copy on write   a write to a page that fork shares: it gets a page of its own, or, when nobody
#                   else is left, the right to write the one it has
#   a mistake       everything else: it ends the program
#
# The kernel touches a program's memory only in the three routines at the end. They look at nothing
# but that the address is the program's half, and then just copy: where the program itself would
# fault, they fault, and get the page by the same rules. (The processor heeds read-only entries in
# ring 1, too: CR0.WP is set.) A fault that is a mistake makes them give up with -EFAULT. So no
# pointer of a program can harm the kernel, and no check needs to know what is mapped.

.equ FAULT_REPAIRED, 0
.equ FAULT_MISTAKE, 1
.equ FAULT_NO_MEMORY, 2
.equ COPY_BLOCK, 64

.section .text

# Repair a page fault at an address of the current process's half. In: eax = address, edx = error
# code. kernel_lock is held. Out: eax = FAULT_.
fault_repair:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax                    # esi = address
    mov ebp, edx                    # ebp = error code
    cmp eax, USER_END
    jae .Lfault_mistake
    call process_current
    mov edi, [eax + PROCESS_SPACE]
    test edi, edi
    jz .Lfault_mistake
    mov eax, edi
    mov edx, esi
    call space_slot
    mov ebx, eax                    # ebx = slot, or 0
    and esi, PAGE_MASK
    test eax, eax
    jz .Lfault_absent
    test dword ptr [ebx], _PAGE_PRESENT
    jz .Lfault_absent
    test ebp, PFEC_WRITE
    jz .Lfault_mistake
    test dword ptr [ebx], ENTRY_COW
    jz .Lfault_mistake
    call fault_copy
    jmp .Lfault_out
.Lfault_absent:
    test ebp, PFEC_FETCH
    jnz .Lfault_mistake
    call fault_is_demand
    jc .Lfault_mistake
    call fault_demand
    jmp .Lfault_out
.Lfault_mistake:
    mov eax, FAULT_MISTAKE
.Lfault_out:
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Is an address one where a page may be missing? In: esi = its page. Out: CF clear if so.
fault_is_demand:
    call process_current
    cmp esi, STACK_LIMIT
    jae .Ldemand_stack
    mov ecx, [eax + PROCESS_HEAP]
    and ecx, PAGE_MASK
    cmp esi, ecx
    jb .Ldemand_done                # CF is set
    mov ecx, [eax + PROCESS_BREAK]
    dec ecx
    cmp ecx, esi
.Ldemand_done:
    ret
.Ldemand_stack:
    cmp esi, STACK_TOP
    cmc
    ret

# Map a page of zeros. In: esi = address of the page, edi = space. Out: eax = FAULT_.
fault_demand:
    call page_alloc
    test eax, eax
    jz .Ldemand_no_memory
    push eax
    mov eax, edi
    mov edx, esi
    call space_make_slot
    test eax, eax
    jz .Ldemand_no_table
    mov ebx, eax
    mov eax, edi
    mov edx, esi
    call space_note
    pop eax
    jmp fault_map
.Ldemand_no_table:
    pop eax
    call page_free
.Ldemand_no_memory:
    mov eax, FAULT_NO_MEMORY
    ret

# Map a page that the program may write. In: eax = page, esi = address, ebx = slot. Out: eax.
fault_map:
    mov ecx, USER_ENTRY_RW
    mov edx, NX
    call port_entry_of
    mov ecx, edx
    mov edx, eax
    mov eax, esi
    call port_set_mapping
    xor eax, eax                    # FAULT_REPAIRED
    ret

# Give the program a page of its own. In: esi = address of the page, ebx = slot of its entry. Out:
# eax = FAULT_.
fault_copy:
    mov eax, [ebx]
    mov edx, [ebx + 4]
    call port_page_of
    call page_count_of
    cmp dword ptr [ecx], 1
    je fault_map                    # the others have theirs, or have ended
    push eax
    call page_take
    pop ecx
    test eax, eax
    jz .Ldemand_no_memory
    mov edx, ecx
    push ecx
    call page_copy
    call fault_map
    pop eax
    call page_free                  # now that nothing of this space maps it
    xor eax, eax
    ret

# -- programs' memory ------------------------------------------------------------------------

# Copy from a program. In: eax = where to, edx = where from, in the program, ecx = bytes. Out:
# eax = 0 or -EFAULT. kernel_lock is held.
user_copy_in:
    push ebx
    push esi
    push edi
    mov edi, eax
    mov esi, edx
    jmp .Lcopy_check

# Copy to a program. In: eax = where to, in the program, edx = where from, ecx = bytes. Out: as
# above.
user_copy_out:
    push ebx
    push esi
    push edi
    mov edi, eax
    mov esi, edx
    mov edx, eax
.Lcopy_check:
    add edx, ecx                    # edx = where the program's part ends
    jc user_copy_failed
    cmp edx, USER_END
    ja user_copy_failed
    mov edx, ecx
user_copy_start:
    # Not all by rep movsd: an emulated processor begins it anew for each word.
    sub ecx, COPY_BLOCK
    jb .Lcopy_rest
.Lcopy_block:
    .irp offset, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60
    mov ebx, [esi + \offset]
    mov [edi + \offset], ebx
    .endr
    add esi, COPY_BLOCK
    add edi, COPY_BLOCK
    sub ecx, COPY_BLOCK
    jae .Lcopy_block
.Lcopy_rest:
    add ecx, COPY_BLOCK
    shr ecx, 2
    rep movsd
    mov ecx, edx
    and ecx, 3
    rep movsb
user_copy_end:
    xor eax, eax
    pop edi
    pop esi
    pop ebx
    ret
# page_fault comes here when a fault between the two labels above, or those below, is a mistake.
user_copy_failed:
    mov eax, -EFAULT
    pop edi
    pop esi
    pop ebx
    ret

# Find the page behind an address of the current process, for a device to use it directly. It stays
# where it is as long as the process does not go back to ring 3. In: eax = address, edx = PFEC_WRITE
# where the device is to change it, else 0. kernel_lock is held. Out: eax = page, or 0 where the
# program could not do the same.
user_page:
    push ebx
    push esi
    push edi
    mov ebx, eax
    mov esi, edx
    cmp eax, USER_END
    jae .Luser_page_none
.Luser_page_look:
    call process_current
    mov eax, [eax + PROCESS_SPACE]
    mov edx, ebx
    call space_slot
    test eax, eax
    jz .Luser_page_fault
    test dword ptr [eax], _PAGE_PRESENT
    jz .Luser_page_fault
    test esi, esi
    jz .Luser_page_found
    test dword ptr [eax], _PAGE_RW
    jnz .Luser_page_found
.Luser_page_fault:
    mov eax, ebx
    mov edx, esi
    call fault_repair
    cmp eax, FAULT_REPAIRED
    je .Luser_page_look
.Luser_page_none:
    xor eax, eax
    jmp .Luser_page_out
.Luser_page_found:
    mov edx, [eax + 4]
    mov eax, [eax]
    call port_page_of
.Luser_page_out:
    pop edi
    pop esi
    pop ebx
    ret

# Copy a text that ends in 0 from a program. In: eax = where to, edx = where from, ecx = room in
# bytes. Out: eax = its length without the 0, -EFAULT, or -ENAMETOOLONG where there is no 0.
user_copy_text:
    push ebx
    push esi
    push edi
    mov edi, eax
    mov esi, edx
    xor eax, eax
.Ltext_next:
    cmp eax, ecx
    jae .Ltext_long
    cmp esi, USER_END
    jae user_copy_failed
user_text_start:
    mov dl, [esi]
user_text_end:
    mov [edi + eax], dl
    inc esi
    inc eax
    test dl, dl
    jnz .Ltext_next
    dec eax
    jmp .Ltext_out
.Ltext_long:
    mov eax, -ENAMETOOLONG
.Ltext_out:
    pop edi
    pop esi
    pop ebx
    ret

# May the kernel fault at an instruction? In: eax = its address. Out: CF set if so. Keeps all else.
fault_is_expected:
    cmp eax, offset user_copy_start
    jb .Lexpected_no
    cmp eax, offset user_copy_end
    jb .Lexpected_done              # CF is set
    cmp eax, offset user_text_start
    jb .Lexpected_no
    cmp eax, offset user_text_end
    ret
.Lexpected_no:
    clc
.Lexpected_done:
    ret
