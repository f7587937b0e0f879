# SPDX-License-Identifier: GPL-2.0-or-later
#
# Address spaces as a whole: copied by fork, emptied when a program ends.
#
# Both concern every page of a program, and so are where a kernel on Xen spends its time. Two ways:
#
#   collected        a table is filled as ordinary memory and made a table by one change above it;
#                    Xen validates its entries in one go. It is emptied by taking that change back.
#   nobatch, assist  entry by entry: each is a hypercall, or a store that Xen emulates (port.s)
#
# So in the first way the L1 table for programs that comes with a space is an ordinary page while
# the space is empty: closed. What it holds then counts for nothing. (A stack has a page or two: for
# it, entry by entry is quicker than having Xen look at all of a table.)

.section .text

# Call a routine for each present entry of a program. In: eax = space, edx = routine; ebp and esi
# pass through to it. The routine: in: eax = slot, edx = address; out: eax = 0 to go on. Out: eax =
# 0, or what the routine stopped with.
space_walk_program:
    push ebx
    push edi
    push edx
    push eax
    mov edx, [eax + SPACE_LOW]
    mov ecx, [eax + SPACE_HIGH]
    jmp .Lwalk_begin

# The same for its stack.
space_walk_stack:
    push ebx
    push edi
    push edx
    push eax
    mov edx, [eax + SPACE_STACK_LOW]
    mov ecx, STACK_TOP
.Lwalk_begin:
    call .Lwalk_range
    add esp, 8
    pop edi
    pop ebx
    ret

# From edx to ecx. On the stack: return address, space, routine.
.Lwalk_range:
    mov ebx, edx                    # ebx = address, edi = slot
    push ecx
.Lwalk_table:
    cmp ebx, [esp]
    jae .Lwalk_end
    mov eax, [esp + 8]
    mov edx, ebx
    call space_slot
    mov edi, eax
    test eax, eax
    jz .Lwalk_region
.Lwalk_entry:
    test dword ptr [edi], _PAGE_PRESENT
    jz .Lwalk_next
    mov eax, edi
    mov edx, ebx
    call dword ptr [esp + 12]
    test eax, eax
    jnz .Lwalk_stop
.Lwalk_next:
    add edi, 8
    add ebx, PAGE_SIZE
    cmp ebx, [esp]
    jae .Lwalk_end
    test ebx, L2_REGION - 1
    jnz .Lwalk_entry
    jmp .Lwalk_table
.Lwalk_region:
    and ebx, -L2_REGION
    add ebx, L2_REGION
    jmp .Lwalk_table
.Lwalk_end:
    xor eax, eax
.Lwalk_stop:
    pop ecx
    ret

# -- the table that comes with a space -------------------------------------------------------

# Have the L1 table for programs in place, and empty if it was not. In: eax = space. The list of
# changes is empty, before and after.
space_open_program:
    mov edx, [eax + SPACE_L1_PROGRAM]
    mov eax, [eax + SPACE_L2_PROGRAM]
    add eax, PROGRAM_L2_SLOT * 8

# Make an empty table of a page, unless it is one. In: eax = slot of the entry above it, edx = page.
space_open_table:
    test dword ptr [eax], _PAGE_PRESENT
    jnz .Lopen_table_done
    push eax
    mov eax, edx
    call page_clear
    mov edx, eax
    pop eax
    call space_hook_table
    jmp port_flush_entries
.Lopen_table_done:
    ret

# Make a filled page a table. In: eax = slot of the entry above it, edx = table.
space_hook_table:
    push edx
    push eax
    mov eax, edx
    call port_make_table
    mov eax, [esp + 4]
    call table_entry
    mov ecx, edx
    mov edx, eax
    pop eax
    call port_set_upper_entry
    pop edx
    ret

# Close it, where it is a table only while it is used. In: ebx = space.
space_close_program:
    cmp byte ptr [port_batching], BATCH_LIST
    jne .Lclose_table_done
    mov eax, [ebx + SPACE_L2_PROGRAM]
    add eax, PROGRAM_L2_SLOT * 8
    mov edx, [ebx + SPACE_L1_PROGRAM]

# Make a table an ordinary page, with the next flush of changes. In: eax = slot of the entry above
# it, edx = table.
space_close_table:
    test dword ptr [eax], _PAGE_PRESENT
    jz .Lclose_table_done
    push edx
    xor edx, edx
    xor ecx, ecx
    call port_set_upper_entry
    pop eax
    jmp port_free_table
.Lclose_table_done:
    ret

# -- emptying --------------------------------------------------------------------------------

# Take all of a program's pages out of a space, and give them back. In: eax = space. The changes are
# collected: until they are made, nothing but changes behind them may rely on them.
space_clear:
    push ebx
    mov ebx, eax
    mov edx, offset space_clear_entry
    cmp byte ptr [port_batching], BATCH_LIST
    jne .Lclear_walk
    mov edx, offset space_free_entry
.Lclear_walk:
    call space_walk_program
    mov eax, ebx
    mov edx, offset space_clear_entry
    call space_walk_stack
    call space_drop_tables
    call space_close_program
    mov eax, ebx
    pop ebx
    jmp space_reset

# Give back the page of an entry that goes away with its table.
space_free_entry:
    mov edx, [eax + 4]
    mov eax, [eax]
    call port_page_of
    call page_free
    xor eax, eax
    ret

# Take one entry's page out and give it back. It may be taken anew before the change is made, but by
# changes that stand behind this one in the list.
space_clear_entry:
    push eax
    mov edx, [eax + 4]
    mov eax, [eax]
    call port_page_of
    call page_free
    pop eax
    xor edx, edx
    xor ecx, ecx
    call port_set_entry
    xor eax, eax
    ret

# Take a range of pages out of the space in use, and give them back. In: eax = space, edx = first
# address, ecx = where it ends.
space_clear_range:
    push ebx
    push esi
    push edi
    mov edi, eax
    mov ebx, edx
    mov esi, ecx
.Lclear_page:
    cmp ebx, esi
    jae .Lclear_done
    mov eax, edi
    mov edx, ebx
    call space_slot
    test eax, eax
    jz .Lclear_next
    test dword ptr [eax], _PAGE_PRESENT
    jz .Lclear_next
    call space_clear_entry
    dec dword ptr [edi + SPACE_PAGES]
    mov eax, ebx
    call port_forget_page
.Lclear_next:
    add ebx, PAGE_SIZE
    jmp .Lclear_page
.Lclear_done:
    pop edi
    pop esi
    pop ebx
    jmp port_flush_entries

# Take the tables away that space_make_slot has made. Their entries are gone already, or the changes
# are collected. In: ebx = space.
space_drop_tables:
    push esi
    mov esi, [ebx + SPACE_LOW]
    shr esi, L2_SHIFT
.Ldrop_table:
    mov eax, esi
    shl eax, L2_SHIFT
    cmp eax, [ebx + SPACE_HIGH]
    jae .Ldrop_done
    cmp esi, PROGRAM_L2_SLOT
    je .Ldrop_next
    mov ecx, [ebx + SPACE_L2_PROGRAM]
    lea ecx, [ecx + esi * 8]
    test dword ptr [ecx], _PAGE_PRESENT
    jz .Ldrop_next
    mov eax, [ecx]
    mov edx, [ecx + 4]
    call port_page_of
    push eax
    mov edx, eax
    mov eax, ecx
    call space_close_table
    call port_flush_entries         # only now may it be written
    pop eax
    call page_free
    dec dword ptr [tables_pages]
.Ldrop_next:
    inc esi
    jmp .Ldrop_table
.Ldrop_done:
    pop esi
    ret

# -- copying ---------------------------------------------------------------------------------

# Let another space have all that a space has, until one of them writes. In: eax = the other, from
# space_take, edx = the space in use. Out: eax = 0, or -ENOMEM with a part done.
space_copy:
    push ebx
    push esi
    push edi
    mov esi, eax
    mov edi, edx
    cmp byte ptr [port_batching], BATCH_LIST
    je .Lspace_copy_tables
    mov eax, edi
    mov edx, offset space_copy_entry
    call space_walk_program
    jmp .Lspace_copy_stack
.Lspace_copy_tables:
    call space_copy_program
.Lspace_copy_stack:
    test eax, eax
    jnz .Lspace_copy_flush
    mov eax, edi
    mov edx, offset space_copy_entry
    call space_walk_stack
.Lspace_copy_flush:
    push eax
    call port_flush_entries
    mov eax, esi
    call space_open_program         # there may have been nothing for it
    pop eax
    pop edi
    pop esi
    pop ebx
    ret

# Copy the tables of a program. In: esi = the other space, edi = the space in use. Out: eax = 0 or
# -ENOMEM. Changes ebx.
space_copy_program:
    mov ebx, [edi + SPACE_LOW]      # noted first, so that a part can be taken back
    mov [esi + SPACE_LOW], ebx
    mov ecx, [edi + SPACE_HIGH]
    mov [esi + SPACE_HIGH], ecx
    push ecx
.Lspace_copy_region:
    cmp ebx, [esp]
    jae .Lspace_copy_range_done
    mov eax, edi
    mov edx, ebx
    call space_slot
    test eax, eax
    jz .Lspace_copy_next_region
    push eax
    call space_copy_table_page
    pop edx
    test eax, eax
    jz .Lspace_copy_range_none
    mov ecx, [esp]
    call space_copy_table
.Lspace_copy_next_region:
    and ebx, -L2_REGION
    add ebx, L2_REGION
    jmp .Lspace_copy_region
.Lspace_copy_range_none:
    pop ecx
    mov eax, -ENOMEM
    ret
.Lspace_copy_range_done:
    pop ecx
    xor eax, eax
    ret

# Which page becomes the table for an address? In: esi = space, ebx = address. Out: eax, or 0 when
# there is none.
space_copy_table_page:
    mov eax, ebx
    shr eax, L2_SHIFT
    cmp eax, PROGRAM_L2_SLOT
    jne .Lspace_copy_page_new
    mov eax, [esi + SPACE_L1_PROGRAM]
    ret
.Lspace_copy_page_new:
    call page_take
    test eax, eax
    jz .Lspace_copy_page_done
    inc dword ptr [tables_pages]
.Lspace_copy_page_done:
    ret

# Copy one table. In: esi = the other space, ebx = first address, ecx = where the range ends, edx =
# slot of the first address, eax = page for the new table.
space_copy_table:
    push edi
    push ebp
    push ebx
    push eax
    mov ebp, edx                    # ebp = slot in the table of the space in use
    push ecx
    and edx, PAGE_MASK
    call page_copy
    mov edi, ebp
    and edi, PAGE_SIZE - 1
    add edi, eax                    # edi = slot in the new one
.Lspace_copy_slot:
    test dword ptr [edi], _PAGE_PRESENT
    jz .Lspace_copy_next_slot
    inc dword ptr [esi + SPACE_PAGES]
    mov eax, [edi]
    mov edx, [edi + 4]
    call port_page_of
    call page_share
    test dword ptr [edi], _PAGE_RW
    jz .Lspace_copy_next_slot
    and dword ptr [edi], ~_PAGE_RW
    or dword ptr [edi], ENTRY_COW
    mov eax, ebp
    mov edx, [edi]
    mov ecx, [edi + 4]
    call port_set_entry
    mov eax, ebx
    call port_forget_page
.Lspace_copy_next_slot:
    add edi, 8
    add ebp, 8
    add ebx, PAGE_SIZE
    cmp ebx, [esp]
    jae .Lspace_copy_table_full
    test ebx, L2_REGION - 1
    jnz .Lspace_copy_slot
.Lspace_copy_table_full:
    pop ecx
    pop edx                         # the new table
    pop ebx
    mov eax, ebx
    shr eax, L2_SHIFT
    shl eax, 3
    add eax, [esi + SPACE_L2_PROGRAM]
    call space_hook_table
    pop ebp
    pop edi
    ret

# Copy one entry by itself. In: esi = the other space, eax = slot, edx = address. Out: eax = 0 or
# -ENOMEM.
space_copy_entry:
    push ebx
    push edi
    push edx
    mov ebx, eax
    mov eax, esi
    call space_make_slot
    test eax, eax
    jz .Lspace_copy_no_memory
    mov edi, eax
    mov eax, [ebx]
    mov edx, [ebx + 4]
    call port_page_of
    call page_share
    mov edx, [ebx]
    mov ecx, [ebx + 4]
    test edx, _PAGE_RW
    jz .Lspace_copy_entry
    and edx, ~_PAGE_RW
    or edx, ENTRY_COW
    mov eax, ebx
    push edx
    push ecx
    call port_set_entry
    mov eax, [esp + 8]
    call port_forget_page
    pop ecx
    pop edx
.Lspace_copy_entry:
    mov eax, edi
    call port_set_entry
    mov eax, esi
    pop edx
    call space_note
    xor eax, eax
    jmp .Lspace_copy_out
.Lspace_copy_no_memory:
    pop edx
    mov eax, -ENOMEM
.Lspace_copy_out:
    pop edi
    pop ebx
    ret
