# SPDX-License-Identifier: GPL-2.0-or-later
#
# Address spaces: a program's pages, and the tables that map them.
#
#   0x08048000  program, then heap, upwards     one L1 table comes with the space, more as needed
#   0x40000000  USER_LIMIT
#   0xBFEFF000  STACK_LIMIT, nothing below it   the guard
#   0xBFFFF000  STACK_TOP   stack, downwards    one L1 table comes with the space
#   0xC0000000  the kernel's half (memory.s)    an L2 table of its own, with shared L1 tables
#
# Xen validates a table when it becomes one, entry by entry. So a space keeps the tables that every
# program needs: it is pinned with them once, filled, emptied, and kept for the next one. How it is
# filled and emptied: copy.s.
#
# Flags of a page: SPACE_WRITE lets the program write it, SPACE_EXEC run it; never both. An entry
# with ENTRY_COW (a bit that processor and Xen leave to us) is of a page that the program may write
# after it has got a copy of its own: fork shares all pages, and takes the right to write them.
#
# Invariants: a present entry below 0xC0000000 has one of its page's counts. Between space_low and
# space_high, and above space_stack_low, lie all of them. A space is loaded on one processor at
# most: that of its process.

.equ USER_LIMIT, 0x40000000
.equ STACK_TOP, 0xBFFFF000
.equ STACK_LIMIT, STACK_TOP - 0x100000
.equ USER_END, VIRT_BASE
.equ SPACE_WRITE, 1
.equ SPACE_EXEC, 2
.equ ENTRY_COW, 1 << 9
.equ USER_ENTRY_RO, _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
.equ USER_ENTRY_RW, USER_ENTRY_RO | _PAGE_RW | _PAGE_DIRTY

.equ SPACE_L3, 0                    # addresses of its tables
.equ SPACE_L2_PROGRAM, 4
.equ SPACE_L2_STACK, 8
.equ SPACE_L2_KERNEL, 12
.equ SPACE_L1_PROGRAM, 16
.equ SPACE_L1_STACK, 20
.equ SPACE_UPPER_TABLES, 4
.equ SPACE_TABLES, 6
.equ SPACE_LOW, 24                  # the program's pages lie from here
.equ SPACE_HIGH, 28                 # to here,
.equ SPACE_STACK_LOW, 32            # and those of its stack from here to STACK_TOP
.equ SPACE_PAGES, 36                # how many there are
.equ SPACE_NEXT, 40                 # in the list of free ones, or of spare ones
.equ SIZEOF_SPACE, 44
.equ SPACES_MAX, 160
.equ SPACES_SPARE_MAX, 8
.equ PROGRAM_L2_SLOT, (0x08000000 >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ STACK_L2_SLOT, ((STACK_TOP - 1) >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ L2_REGION, 1 << L2_SHIFT

.section .text

# Make the list of free structures.
space_open:
    mov eax, offset spaces
    xor edx, edx
.Lspace_link:
    mov [eax + SPACE_NEXT], edx
    mov edx, eax
    add eax, SIZEOF_SPACE
    cmp eax, offset spaces_end
    jb .Lspace_link
    mov [spaces_free], edx
    ret

# Make an address space without a page of a program in it. Out: eax, or 0 when there is no memory.
space_new:
    call space_take
    test eax, eax
    jz .Lspace_new_none
    push eax
    call space_open_program
    pop eax
.Lspace_new_none:
    ret

# The same, for space_copy to fill: the L1 table for programs may be an ordinary page still.
space_take:
    mov eax, [spaces_spare]
    test eax, eax
    jz space_build
    mov edx, [eax + SPACE_NEXT]
    mov [spaces_spare], edx
    dec dword ptr [spaces_spare_count]
space_reset:
    mov dword ptr [eax + SPACE_LOW], -1
    mov dword ptr [eax + SPACE_HIGH], 0
    mov dword ptr [eax + SPACE_STACK_LOW], STACK_TOP
    mov dword ptr [eax + SPACE_PAGES], 0
    ret

# Build one from new tables. Out: eax, or 0.
space_build:
    push ebx
    push esi
    mov ebx, [spaces_free]
    test ebx, ebx
    jz .Lbuild_none
    xor esi, esi
.Lbuild_alloc:
    call page_alloc
    test eax, eax
    jz .Lbuild_undo
    mov [ebx + esi * 4], eax
    inc esi
    cmp esi, SPACE_TABLES
    jb .Lbuild_alloc
    mov eax, [ebx + SPACE_NEXT]
    mov [spaces_free], eax
    add dword ptr [tables_pages], SPACE_TABLES
    call space_fill_tables
    xor esi, esi
.Lbuild_protect:
    mov eax, [ebx + esi * 4]
    call port_make_table
    inc esi
    cmp esi, SPACE_UPPER_TABLES
    jb .Lbuild_protect
    call port_flush_entries
    mov eax, [ebx + SPACE_L3]
    call port_pin
    mov eax, [ebx + SPACE_L2_STACK]
    add eax, STACK_L2_SLOT * 8
    mov edx, [ebx + SPACE_L1_STACK]
    call space_open_table
    cmp byte ptr [port_batching], BATCH_LIST
    je .Lbuild_done
    mov eax, ebx                    # it stays a table for ever
    call space_open_program
.Lbuild_done:
    mov eax, ebx
    pop esi
    pop ebx
    jmp space_reset
.Lbuild_undo:
    test esi, esi
    jz .Lbuild_none
    dec esi
    mov eax, [ebx + esi * 4]
    call page_free
    jmp .Lbuild_undo
.Lbuild_none:
    xor eax, eax
    pop esi
    pop ebx
    ret

# Connect the upper tables of a new space, while they are ordinary memory. In: ebx = space.
space_fill_tables:
    push esi
    push edi
    mov esi, [kernel_upper_table]
    mov edi, [ebx + SPACE_L2_KERNEL]
    mov ecx, HOLE_L2_SLOT * 2
    rep movsd
    mov esi, offset space_links
.Lfill_link:
    mov eax, [esi]
    test eax, eax
    js .Lfill_done
    mov edi, [ebx + eax]
    add edi, [esi + 4]
    mov eax, [esi + 8]
    mov eax, [ebx + eax]
    call table_entry
    mov [edi], eax
    mov [edi + 4], edx
    add esi, 12
    jmp .Lfill_link
.Lfill_done:
    pop edi
    pop esi
    ret

# Give up an address space that no processor has loaded, with all pages in it. In: eax.
space_free:
    push ebx
    mov ebx, eax
    call space_clear
    cmp dword ptr [spaces_spare_count], SPACES_SPARE_MAX
    jae .Lspace_free_whole
    mov eax, [spaces_spare]
    mov [ebx + SPACE_NEXT], eax
    mov [spaces_spare], ebx
    inc dword ptr [spaces_spare_count]
    pop ebx
    ret
.Lspace_free_whole:
    mov eax, ebx
    pop ebx

# Give up the tables of an empty space. In: eax.
space_dismantle:
    push ebx
    push esi
    mov ebx, eax
    call port_flush_entries
    mov eax, [ebx + SPACE_L3]
    call port_unpin
    xor esi, esi
.Ldismantle_table:
    mov eax, [ebx + esi * 4]
    call port_free_table
    inc esi
    cmp esi, SPACE_TABLES
    jb .Ldismantle_table
    call port_flush_entries         # only now may they be written
.Ldismantle_page:
    dec esi
    mov eax, [ebx + esi * 4]
    call page_free
    test esi, esi
    jnz .Ldismantle_page
    sub dword ptr [tables_pages], SPACE_TABLES
    mov eax, [spaces_free]
    mov [ebx + SPACE_NEXT], eax
    mov [spaces_free], ebx
    pop esi
    pop ebx
    ret

# Give up a spare space, for its pages. Out: eax = 0 if there is none.
space_give_up_spare:
    mov eax, [spaces_spare]
    test eax, eax
    jz .Lgive_up_none
    mov edx, [eax + SPACE_NEXT]
    mov [spaces_spare], edx
    dec dword ptr [spaces_spare_count]
    call space_dismantle
    mov eax, 1
.Lgive_up_none:
    ret

# -- entries ---------------------------------------------------------------------------------

# Find the entry that maps, or would map, an address of a program. In: eax = space, edx = address
# below USER_END. Out: eax = its slot, or 0 where there is no table. Changes no other register but
# edx.
space_slot:
    push ecx
    cmp edx, USER_LIMIT
    jae .Lslot_stack
    mov eax, [eax + SPACE_L2_PROGRAM]
    jmp .Lslot_table
.Lslot_stack:
    cmp edx, STACK_LIMIT
    jb .Lslot_none
    mov eax, [eax + SPACE_L2_STACK]
.Lslot_table:
    mov ecx, edx
    shr ecx, L2_SHIFT
    and ecx, PT_ENTRIES - 1
    lea ecx, [eax + ecx * 8]
    test dword ptr [ecx], _PAGE_PRESENT
    jz .Lslot_none
    push edx
    mov eax, [ecx]
    mov edx, [ecx + 4]
    call port_page_of
    pop edx
    shr edx, PAGE_SHIFT
    and edx, PT_ENTRIES - 1
    lea eax, [eax + edx * 8]
    pop ecx
    ret
.Lslot_none:
    xor eax, eax
    pop ecx
    ret

# The same, but make the table where there is none. In: eax = space, edx = address of a place where
# a program may have pages. Out: eax = slot, or 0 when there is no memory.
space_make_slot:
    push ebx
    push esi
    mov ebx, eax
    mov esi, edx
    call space_slot
    test eax, eax
    jnz .Lmake_slot_done
    call page_alloc
    test eax, eax
    jz .Lmake_slot_done
    push eax
    inc dword ptr [tables_pages]
    call port_make_table
    mov eax, [esp]
    call table_entry
    mov ecx, edx
    mov edx, eax
    mov eax, esi                    # only the program's gigabyte lacks tables
    shr eax, L2_SHIFT
    shl eax, 3
    add eax, [ebx + SPACE_L2_PROGRAM]
    call port_set_upper_entry
    call port_flush_entries         # space_slot reads it
    pop eax
    shr esi, PAGE_SHIFT
    and esi, PT_ENTRIES - 1
    lea eax, [eax + esi * 8]
.Lmake_slot_done:
    pop esi
    pop ebx
    ret

# Widen what a space says about where its pages lie. In: eax = space, edx = address of a new one.
space_note:
    inc dword ptr [eax + SPACE_PAGES]
    cmp edx, USER_LIMIT
    jae .Lnote_stack
    cmp edx, [eax + SPACE_LOW]
    jae .Lnote_high
    mov [eax + SPACE_LOW], edx
.Lnote_high:
    lea ecx, [edx + PAGE_SIZE]
    cmp ecx, [eax + SPACE_HIGH]
    jbe .Lnote_done
    mov [eax + SPACE_HIGH], ecx
.Lnote_done:
    ret
.Lnote_stack:
    cmp edx, [eax + SPACE_STACK_LOW]
    jae .Lnote_done
    mov [eax + SPACE_STACK_LOW], edx
    ret

# May a program have pages there? In: edx = address. Out: CF set if so.
space_allows:
    cmp edx, USER_LIMIT
    jb .Lallows_done                # CF is set
    cmp edx, STACK_TOP
    jae .Lallows_no
    cmp edx, STACK_LIMIT
    cmc
    ret
.Lallows_no:
    clc
.Lallows_done:
    ret

# Give a space that is not in use a page, at an address where it has none. In: eax = space, edx =
# address, ecx = page | flags. Out: eax = 0, and the page is the space's; or -ENOMEM.
space_add_page:
    push ebx
    push esi
    push edi
    mov ebx, eax
    and edx, PAGE_MASK
    mov esi, edx
    mov edi, ecx
    call space_allows
    jnc .Ladd_refuse
    call space_make_slot
    test eax, eax
    jz .Ladd_refuse
    push eax
    mov ecx, USER_ENTRY_RO
    test edi, SPACE_WRITE
    jz .Ladd_read_only
    mov ecx, USER_ENTRY_RW
.Ladd_read_only:
    xor edx, edx
    test edi, SPACE_EXEC
    jnz .Ladd_executable
    mov edx, NX
.Ladd_executable:
    mov eax, edi
    and eax, PAGE_MASK
    call port_entry_of
    mov ecx, edx
    mov edx, eax
    pop eax
    call port_set_entry
    mov eax, ebx
    mov edx, esi
    call space_note
    xor eax, eax
    jmp .Ladd_out
.Ladd_refuse:
    mov eax, -ENOMEM
.Ladd_out:
    pop edi
    pop esi
    pop ebx
    ret

# The current process goes on in another space, and gives up the one that it had. In: eax = space.
space_adopt:
    push ebx
    push esi
    mov ebx, eax
    call port_flush_entries
    call process_current
    mov esi, [eax + PROCESS_SPACE]
    mov [eax + PROCESS_SPACE], ebx
    CPU ecx
    mov [ecx + CPU_LOADED], eax
    mov edx, [eax + PROCESS_STACK_BASE]
    add edx, KSTACK_TOP
    mov eax, [ebx + SPACE_L3]
    call port_load_space
    test esi, esi
    jz .Ladopt_done                 # the first process has had none
    mov eax, esi
    call space_free
    call port_flush_entries
.Ladopt_done:
    pop esi
    pop ebx
    ret

.section .rodata
.p2align 2
# Which table's entry points at which table: table, offset of the entry, table below.
space_links:
    .long SPACE_L3, 0 * 8, SPACE_L2_PROGRAM
    .long SPACE_L3, 2 * 8, SPACE_L2_STACK
    .long SPACE_L3, 3 * 8, SPACE_L2_KERNEL
    .long -1

.section .bss
.p2align 2
spaces_free:
    .space 4
spaces_spare:
    .space 4                        # pinned, and empty
spaces_spare_count:
    .space 4
tables_pages:
    .space 4                        # pages that are tables of address spaces
spaces:
    .space SPACES_MAX * SIZEOF_SPACE
spaces_end:
