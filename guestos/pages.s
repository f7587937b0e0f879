# SPDX-License-Identifier: GPL-2.0-or-later
#
# Pages: taking them, sharing them, giving them back.
#
# A page is named by its address above VIRT_BASE, where the kernel always sees it. page_counts says
# for each how many users it has: 1 for one that was just taken; a page that fork shares has one for
# each address space. The last user's page_free makes it free.
#
# Out of memory is an answer: page_alloc gives 0, after what is only kept for speed (spare address
# spaces, spare stacks) has been given up. Whoever asks passes that on: a system call is refused, a
# program that touches a new page is killed.
#
# Invariants: a page on the free list or behind free_next is mapped writable at its place above
# VIRT_BASE, and nowhere else. All here happens under kernel_lock.

.equ PAGE_BALLOONED, -1             # in page_counts: the page has no frame, see balloon.s

.section .text

# Take over all pages from an address on. In: eax. Their counts come first.
pages_open:
    push edi
    mov [page_counts], eax
    mov edi, eax
    mov ecx, [memory_pages]
    lea edx, [eax + ecx * 4 + PAGE_SIZE - 1]
    and edx, PAGE_MASK
    mov [free_next], edx
    xor eax, eax
    rep stosd
    pop edi
    ret

# Take a page. Out: eax = its address; it holds zeros. 0 when there is none.
page_alloc:
    call page_take
    test eax, eax
    jz .Lalloc_done
    call page_clear
.Lalloc_done:
    ret

# Fill a page with zeros. In: eax = page. Keeps eax. (Not by rep stosd: an emulated processor begins
# it anew for each word.)
page_clear:
    xor edx, edx
    lea ecx, [eax + PAGE_SIZE]
.Lclear_words:
    .irp offset, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60
    mov [eax + \offset], edx
    .endr
    add eax, 64
    cmp eax, ecx
    jb .Lclear_words
    sub eax, PAGE_SIZE
    ret

# Copy a page. In: eax = where to, edx = where from. Keeps both.
page_copy:
    push ebx
    lea ecx, [eax + PAGE_SIZE]
.Lcopy_words:
    .irp offset, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60
    mov ebx, [edx + \offset]
    mov [eax + \offset], ebx
    .endr
    add eax, 64
    add edx, 64
    cmp eax, ecx
    jb .Lcopy_words
    sub eax, PAGE_SIZE
    sub edx, PAGE_SIZE
    pop ebx
    ret

# Take a page that will be overwritten as a whole. Out: eax as above.
# Pages given back come first. Those never used are only counted: a list through them would touch,
# and so make the host allocate, all of memory.
page_take:
    mov eax, [free_list]
    test eax, eax
    jz .Ltake_new
    mov ecx, [eax]
    mov [free_list], ecx
    dec dword ptr [free_listed]
.Ltake_taken:
    call page_count_of
    mov dword ptr [ecx], 1
    ret
.Ltake_new:
    mov eax, [free_next]
    cmp eax, [memory_end]
    jae .Ltake_reclaim
    add dword ptr [free_next], PAGE_SIZE
    jmp .Ltake_taken
.Ltake_reclaim:
    call space_give_up_spare
    test eax, eax
    jnz page_take
    call kstack_give_up_spare
    test eax, eax
    jnz page_take
    ret

# Where is a page's count? In: eax = page. Out: ecx = address of the count. Changes no other
# register.
page_count_of:
    mov ecx, eax
    sub ecx, VIRT_BASE
    shr ecx, PAGE_SHIFT - 2
    add ecx, [page_counts]
    ret

# One more user has a page. In: eax.
page_share:
    call page_count_of
    cmp dword ptr [ecx], 1
    jne .Lshare_counted
    inc dword ptr [pages_shared]
.Lshare_counted:
    inc dword ptr [ecx]
    ret

# Give a page back. In: eax. The last user's gives it to the allocator: nothing maps it any more, or
# the change that ends it stands in the list of port.s before any that may use it anew.
page_free:
    call page_count_of
    dec dword ptr [ecx]
    jz page_add
    cmp dword ptr [ecx], 1
    jne .Lfree_done
    dec dword ptr [pages_shared]
.Lfree_done:
    ret

# Put a page that has no user on the free list. In: eax.
page_add:
    mov ecx, [free_list]
    mov [eax], ecx
    mov [free_list], eax
    inc dword ptr [free_listed]
    ret

# Count the free pages, with those that page_take would give up for whoever asks. Out: eax.
page_count_free:
    mov eax, [memory_end]
    sub eax, [free_next]
    shr eax, PAGE_SHIFT
    add eax, [free_listed]
    imul ecx, [spaces_spare_count], SPACE_TABLES
    add eax, ecx
    imul ecx, [kstacks_spare_count], KSTACK_PAGES
    add eax, ecx
    ret

.section .bss
.p2align 2
page_counts:
    .space 4
pages_shared:
    .space 4                        # pages that have several users
free_next:
    .space 4                        # all pages from here on were never used
free_list:
    .space 4                        # pages given back: each holds the address of the next, or 0
free_listed:
    .space 4
