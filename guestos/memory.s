# SPDX-License-Identifier: GPL-2.0-or-later
#
# The kernel's own half of every address space, from the tables that it was booted on.
#
#   0x00000000  programs    space.s
#   0xBFFFF000  their stack, downwards
#   0xC0000000  VIRT_BASE   all of memory in order of page numbers; as many L1 tables as it takes
#   0xE0000000  KSTACKS     the kernel's stacks, one block for each process; one L1 table
#   0xF5800000  Xen's
#
# The L1 tables of the kernel's half are shared by all address spaces, so that a change in one of
# them is seen in all. The L2 table above them can't be: Xen wants the one of the last gigabyte to
# belong to one L3 only, because it holds Xen's own entries, too.
#
# A page number (pfn) counts the pages of this domain from 0; a frame number (mfn) is where such a
# page lies in the machine. Only port.s knows frames.
#
# The way to own page tables on Xen. A frame may be a page table or be mapped writable, never both,
# so that Xen can check each entry before it counts:
#   1. take free pages and fill them with the new tables, while they are ordinary memory;
#   2. let the new tables map the new and the old ones read-only;
#   3. take away the writable mappings that the new tables have in the old ones;
#   4. pin the new L3, load it, unpin the old one;
#   5. the old tables are ordinary pages again: map them writable and give them to the allocator.
#
# Rights: code is executable and read-only, constants are read-only, all else is writable and not
# executable, and the pages below a kernel's stack are not there at all: an overflow ends the domain
# instead of changing variables. (Not only good practice: the emulated processor stores to a page
# that is executable ten times slower.)

.equ KSTACKS_BASE, 0xE0000000
# The pages that Xen's builder leaves behind the boot stack are 128 at least. With four L2, another
# L1 table and the list of page counts, 80 L1 tables for all of memory are sure to fit: 160 MB.
.equ MAX_PAGES, 80 * PT_ENTRIES
.equ L2_TABLES, L3_ENTRIES
.equ KSTACKS_L2_SLOT, (KSTACKS_BASE >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ VIRT_BASE_L2_SLOT, (VIRT_BASE >> L2_SHIFT) & (PT_ENTRIES - 1)
.equ HOLE_L2_SLOT, (MACH2PHYS_VIRT_START >> L2_SHIFT) & (PT_ENTRIES - 1)
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
    call pages_open

    # 1 and 2: new tables. esi = the L3, edi = the first L2, then the stacks', all of memory.
    call page_alloc
    mov esi, eax
    mov [kernel_tables], eax
    lea edi, [esi + PAGE_SIZE]
    mov ebx, [memory_pages]
    add ebx, PT_ENTRIES - 1
    shr ebx, L2_SHIFT - PAGE_SHIFT  # ebx = L1 tables for all of memory
    push ebx
    add ebx, L2_TABLES + 1
.Lmemory_reserve:
    call page_alloc                 # the allocator gives them one behind the other
    dec ebx
    jnz .Lmemory_reserve
    pop ebx
    mov eax, [free_next]
    mov [kernel_tables_end], eax
    call tables_fill

    # 3
    mov esi, [kernel_tables]
.Lmemory_protect:
    mov eax, esi
    call memory_remap
    add esi, PAGE_SIZE
    cmp esi, [kernel_tables_end]
    jb .Lmemory_protect

    # 4
    mov eax, [boot_tables]
    call port_frame_of
    mov edx, eax
    mov eax, [kernel_tables]
    call port_frame_of
    call port_leave_boot_tables

    # 5
    mov esi, [boot_tables]
    mov edi, [boot_tables_end]
    mov [boot_tables_end], esi      # none is left
.Lmemory_give_back:
    mov eax, esi
    call memory_remap
    mov eax, esi
    call page_add
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
    # the last L2 table: the stacks and all of memory
    lea ebp, [edi + L2_TABLES * PAGE_SIZE]
    mov [kernel_stacks_table], ebp
    add edi, (L2_TABLES - 1) * PAGE_SIZE
    mov [kernel_upper_table], edi
    mov eax, ebp
    call table_entry
    mov [edi + KSTACKS_L2_SLOT * 8], eax
    mov [edi + KSTACKS_L2_SLOT * 8 + 4], edx
    add ebp, PAGE_SIZE
    mov [kernel_memory_tables], ebp
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

# Give a page at its place above VIRT_BASE the rights it should have now. In: eax = address. For the
# tables in use, whichever they are: only as long as port_set_mapping needs no slot.
memory_remap:
    push eax
    call memory_entry
    mov ecx, edx
    mov edx, eax
    pop eax
    jmp port_set_mapping

# Make the entry of a page at its place above VIRT_BASE. In: eax = its address. Out: edx:eax.
# The sections lie in the order code, constants, data: see the ELF file.
memory_entry:
    mov ecx, ENTRY_RO
    xor edx, edx
    cmp eax, offset __text_end
    jb port_entry_of
    mov edx, NX
    cmp eax, offset __rodata_end
    jb port_entry_of
    cmp eax, [boot_tables]
    jb .Lmemory_entry_tables
    cmp eax, [boot_tables_end]
    jb port_entry_of
.Lmemory_entry_tables:
    cmp eax, [kernel_tables]
    jb .Lmemory_entry_data
    cmp eax, [kernel_tables_end]
    jb port_entry_of
.Lmemory_entry_data:
    mov ecx, ENTRY_RW
    cmp eax, offset kernel_stack
    jb port_entry_of
    cmp eax, offset kernel_stack + KSTACK_GUARD
    jae port_entry_of
    xor ecx, ecx
    jmp port_entry_of

# Make the entry that points at a lower table. In: eax = the table's address. Out: edx:eax.
# Rights are given by the L1 entries alone; the upper ones allow everything.
table_entry:
    mov ecx, ENTRY_TABLE
    xor edx, edx
    jmp port_entry_of

# Find the slot of the entry that maps a page at its place above VIRT_BASE. In: eax = page. Out:
# eax = slot. Changes no other register.
kernel_slot_of:
    sub eax, VIRT_BASE
    shr eax, PAGE_SHIFT - 3
    add eax, [kernel_memory_tables]
    ret

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
kernel_tables:
    .space 4                        # our own; the L3 is the first page
kernel_tables_end:
    .space 4
kernel_upper_table:
    .space 4                        # among them the L2 of the last gigabyte,
kernel_stacks_table:
    .space 4                        # the L1 of the kernel's stacks,
kernel_memory_tables:
    .space 4                        # and those of all of memory
