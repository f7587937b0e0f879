# SPDX-License-Identifier: GPL-2.0-or-later
#
# Memory: page tables of its own, a page allocator, and pages mapped when they are first touched.
#
#   0x08000000  user        the program's pages (process.s); one L1 table
#   0xC0000000  VIRT_BASE   all of memory in order of page numbers; as many L1 tables as it takes
#   0xE0000000  demand      nothing, until it is touched; one L1 table
#   0xF5800000  Xen's
#
# A page number (pfn) counts the pages of this domain from 0; a frame number (mfn) is where such a
# page lies in the machine. Page tables hold frame numbers, because the processor walks them:
# start_info's mfn_list turns one into the other.
#
# The way to own page tables on Xen. A frame may be a page table or be mapped writable, never both,
# so that Xen can check each entry before it counts:
#   1. take free pages and fill them with the new tables, while they are ordinary memory;
#   2. let the new tables map the new and the old ones read-only;
#   3. take away the writable mappings that the new tables have in the old ones;
#   4. pin the new L3, load it, unpin the old one: one hypercall;
#   5. the old tables are ordinary pages again: map them writable and give them to the allocator.
#
# Rights: code is executable and read-only, constants are read-only, all else is writable and not
# executable, and the page below the kernel's stack is not there at all: an overflow ends the domain
# instead of changing variables. (Not only good practice: the emulated processor stores to a page
# that is executable ten times slower.)
#
# Invariants: a page on the free list or behind free_next is mapped writable at its place above
# VIRT_BASE, and nowhere else. The four L2 tables exist from the start, so the L3 never changes:
# processors read it only when CR3 is loaded.

.equ USER_BASE, 0x08000000
.equ DEMAND_BASE, 0xE0000000
.equ DEMAND_END, DEMAND_BASE + (PT_ENTRIES << PAGE_SHIFT)
# The pages that Xen's builder leaves behind the boot stack are 128 at least. With four L2 and two
# other L1 tables, 100 L1 tables for all of memory are sure to fit: 200 MB. More is not used.
.equ MAX_PAGES, 100 * PT_ENTRIES
.equ L2_TABLES, L3_ENTRIES
.equ USER_L2_SLOT, (USER_BASE >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ DEMAND_L2_SLOT, (DEMAND_BASE >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ VIRT_BASE_L2_SLOT, (VIRT_BASE >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ NX, _PAGE_NX >> 32              # in the upper word of an entry
.equ ENTRY_RW, _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY
.equ ENTRY_RO, _PAGE_PRESENT | _PAGE_ACCESSED
.equ ENTRY_TABLE, _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY

.section .text

# Do all that the head describes, and map shared_info. Keeps no register.
memory_open:
    mov ebp, [start_info]
    mov eax, [ebp + START_INFO_NR_PAGES]
    cmp eax, MAX_PAGES
    jbe .Lmemory_size
    mov eax, MAX_PAGES
.Lmemory_size:
    mov [memory_pages], eax
    shl eax, PAGE_SHIFT
    add eax, VIRT_BASE
    mov [memory_end], eax
    mov eax, [ebp + START_INFO_PT_BASE]
    mov [boot_tables], eax
    mov ecx, [ebp + START_INFO_NR_PT_FRAMES]
    shl ecx, PAGE_SHIFT
    add eax, ecx
    mov [boot_tables_end], eax
    add eax, PAGE_SIZE              # the boot stack
    mov [free_next], eax

    # 1 and 2: new tables. esi = the L3, edi = the first L2, then user, demand, all of memory.
    call page_alloc
    mov esi, eax
    mov [tables], eax
    lea edi, [esi + PAGE_SIZE]
    mov ebx, [memory_pages]
    add ebx, PT_ENTRIES - 1
    shr ebx, L2_SHIFT - PAGE_SHIFT  # ebx = L1 tables for all of memory
    push ebx
    add ebx, L2_TABLES + 2
.Lmemory_reserve:
    call page_alloc                 # the allocator gives them one behind the other
    dec ebx
    jnz .Lmemory_reserve
    pop ebx
    mov eax, [free_next]
    mov [tables_end], eax
    call tables_fill

    # 3
    mov esi, [tables]
.Lmemory_protect:
    mov eax, esi
    call memory_remap
    add esi, PAGE_SIZE
    cmp esi, [tables_end]
    jb .Lmemory_protect

    # 4
    mov eax, [boot_tables]
    call frame_of
    mov edx, eax
    mov eax, [tables]
    call frame_of
    call port_switch_page_tables

    # 5
    mov esi, [boot_tables]
    mov edi, [boot_tables_end]
    mov [boot_tables_end], esi      # none is left
.Lmemory_give_back:
    mov eax, esi
    call memory_remap
    mov eax, esi
    call page_free
    add esi, PAGE_SIZE
    cmp esi, edi
    jb .Lmemory_give_back

    # shared_info is a machine address outside our memory: it has no page number, only a mapping.
    mov eax, offset shared_info
    mov edx, [ebp + START_INFO_SHARED_INFO]
    or edx, ENTRY_RW
    mov ecx, NX
    jmp port_set_mapping

# Write the entries of the new tables. In: esi = the L3, edi = the first L2, ebx = number of L1
# tables for all of memory. They lie behind each other in the order of the head of this file.
tables_fill:
    push ebp
    # the L3: four L2 tables
    xor ebp, ebp
.Lfill_l3:
    mov eax, ebp
    shl eax, PAGE_SHIFT
    add eax, edi
    call table_entry
    mov [esi + ebp * 8], eax
    mov [esi + ebp * 8 + 4], edx
    inc ebp
    cmp ebp, L2_TABLES
    jb .Lfill_l3
    # the L2 tables: user in the first, demand and all of memory in the last
    lea ebp, [edi + L2_TABLES * PAGE_SIZE]
    mov eax, ebp
    call table_entry
    mov [edi + USER_L2_SLOT * 8], eax
    mov [edi + USER_L2_SLOT * 8 + 4], edx
    add ebp, PAGE_SIZE
    add edi, (L2_TABLES - 1) * PAGE_SIZE
    mov eax, ebp
    call table_entry
    mov [edi + DEMAND_L2_SLOT * 8], eax
    mov [edi + DEMAND_L2_SLOT * 8 + 4], edx
    add ebp, PAGE_SIZE
    push ebp                        # the first L1 table of all of memory
.Lfill_l2:
    mov eax, ebp
    call table_entry
    mov [edi + VIRT_BASE_L2_SLOT * 8], eax
    mov [edi + VIRT_BASE_L2_SLOT * 8 + 4], edx
    add edi, 8
    add ebp, PAGE_SIZE
    dec ebx
    jnz .Lfill_l2
    # their entries: one for each page
    pop edi
    mov ebp, VIRT_BASE
.Lfill_l1:
    mov eax, ebp
    call memory_entry
    mov [edi], eax
    mov [edi + 4], edx
    add edi, 8
    add ebp, PAGE_SIZE
    cmp ebp, [memory_end]
    jb .Lfill_l1
    pop ebp
    ret

# Give a page at its place above VIRT_BASE the rights it should have now. In: eax = address.
memory_remap:
    push eax
    call memory_entry
    mov ecx, edx
    mov edx, eax
    pop eax
    jmp port_set_mapping

# Make the entry of a page at its place above VIRT_BASE. In: eax = its address. Out: edx:eax.
# The sections lie in the order code, the program, constants, data: see the ELF file.
memory_entry:
    mov ecx, ENTRY_RO
    xor edx, edx
    cmp eax, offset __text_end
    jb entry_of
    mov edx, NX
    cmp eax, offset __data_start
    jb entry_of
    cmp eax, [boot_tables]
    jb .Lmemory_entry_tables
    cmp eax, [boot_tables_end]
    jb entry_of
.Lmemory_entry_tables:
    cmp eax, [tables]
    jb .Lmemory_entry_data
    cmp eax, [tables_end]
    jb entry_of
.Lmemory_entry_data:
    mov ecx, ENTRY_RW
    cmp eax, offset kernel_stack_guard
    jne entry_of
    xor ecx, ecx
    jmp entry_of

# Make the entry that points at a lower table. In: eax = the table's address. Out: edx:eax.
# Rights are given by the L1 entries alone; the upper ones allow everything.
table_entry:
    mov ecx, ENTRY_TABLE
    xor edx, edx

# Make an entry for a page. In: eax = its address above VIRT_BASE, ecx = flags of the lower word,
# edx = of the upper word. Out: edx:eax.
entry_of:
    push ebx
    call frame_of
    mov ebx, eax
    shl eax, PAGE_SHIFT
    or eax, ecx
    shr ebx, 32 - PAGE_SHIFT        # what a frame above 4 GB has in the upper word
    or edx, ebx
    pop ebx
    ret

# Look up the frame of a page. In: eax = address above VIRT_BASE. Out: eax = mfn. Changes no other
# register.
frame_of:
    push ecx
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT
    mov ecx, [start_info]
    mov ecx, [ecx + START_INFO_MFN_LIST]
    mov eax, [ecx + eax * 4]
    pop ecx
    ret

# -- pages -----------------------------------------------------------------------------------

# Take a page. Out: eax = its address; it holds zeros. Panics when there is none.
# Pages given back come first. Those never used are only counted: a list through them would touch,
# and so make the host allocate, all of memory.
page_alloc:
    push edi
    mov edi, [free_list]
    test edi, edi
    jz .Lpage_new
    mov eax, [edi]
    mov [free_list], eax
    dec dword ptr [free_listed]
    jmp .Lpage_clear
.Lpage_new:
    mov edi, [free_next]
    cmp edi, [memory_end]
    jae .Lpage_none
    add dword ptr [free_next], PAGE_SIZE
.Lpage_clear:
    push edi
    xor eax, eax
    mov ecx, PAGE_SIZE / 4
    rep stosd
    pop eax
    pop edi
    ret
.Lpage_none:
    PRINT "guestos: panic: out of memory\n"
    mov eax, SHUTDOWN_crash
    jmp port_shutdown

# Give a page back. In: eax = its address. Nothing else may map it.
page_free:
    mov ecx, [free_list]
    mov [eax], ecx
    mov [free_list], eax
    inc dword ptr [free_listed]
    ret

# Count the free pages. Out: eax.
page_count_free:
    mov eax, [memory_end]
    sub eax, [free_next]
    shr eax, PAGE_SHIFT
    add eax, [free_listed]
    ret

# -- page faults -----------------------------------------------------------------------------

# Repair a page fault if it is one that was meant to happen: the kernel's first touch of a page
# between DEMAND_BASE and DEMAND_END. In: eax = address, edx = error code. Out: eax = 0 if the
# instruction can be tried again.
memory_page_fault:
    test edx, PFEC_PRESENT | PFEC_USER | PFEC_FETCH
    jnz .Lfault_refuse
    cmp eax, DEMAND_BASE
    jb .Lfault_refuse
    cmp eax, DEMAND_END
    jae .Lfault_refuse
    push ebx
    mov ebx, eax
    PRINT "page fault at "
    mov eax, ebx
    call print_hex
    cmp byte ptr [traps_has_fault_address], 0
    je .Lfault_elsewhere
    PRINT " (address on the stack)"
.Lfault_elsewhere:
    PRINT ": mapping a zero page\n"
    call page_alloc
    mov ecx, ENTRY_RW
    mov edx, NX
    call entry_of
    mov ecx, edx
    mov edx, eax
    mov eax, ebx
    and eax, PAGE_MASK
    call port_set_mapping
    pop ebx
    xor eax, eax
    ret
.Lfault_refuse:
    mov eax, 1
    ret

# Touch the next page between DEMAND_BASE and DEMAND_END that was not touched before, and say what
# was found there.
memory_touch_new_page:
    push ebx
    mov ebx, [demand_next]
    cmp ebx, DEMAND_END
    jae .Ltouch_none
    add dword ptr [demand_next], PAGE_SIZE
    add ebx, 0x123 * 4              # an address within the page, to see that all of it arrives
    add dword ptr [ebx], 42         # the fault; tried again, it finds the page
    PRINT "after the fault the word there is "
    mov eax, [ebx]
    call print_decimal
    PRINT "\n"
    pop ebx
    ret
.Ltouch_none:
    PRINT "all pages of the demand area are mapped\n"
    pop ebx
    ret

.section .data
.p2align 2
demand_next:
    .long DEMAND_BASE

.section .bss
.p2align 2
memory_pages:
    .space 4                        # pages in use: all of the domain's, or MAX_PAGES
memory_end:
    .space 4                        # address behind the last of them
boot_tables:
    .space 4                        # the builder's page tables, as long as they are in use
boot_tables_end:
    .space 4
tables:
    .space 4                        # our own; the L3 is the first page
tables_end:
    .space 4
free_next:
    .space 4                        # all pages from here on were never used
free_list:
    .space 4                        # pages given back: each holds the address of the next, or 0
free_listed:
    .space 4
