# SPDX-License-Identifier: GPL-2.0-or-later
#
# The balloon: giving memory back to the hypervisor, and taking it again.
#
# A page that is given back keeps its number and its place above VIRT_BASE, but has no frame: it is
# neither free nor in use, and nothing is mapped there. Its count says so: PAGE_BALLOONED.
#
# BALLOON_RESERVE pages are never given: without them no program could start that takes some back.

.equ BALLOON_RESERVE, 64

.section .text

# balloon(pages): give so many pages to the hypervisor, or for a negative number take so many. The
# answer is how many it was: there may be fewer to give, or to be had. -ENOMEM for none at all.
sys_balloon:
    push esi
    push edi
    xor esi, esi
    mov edi, [ebx + FRAME_EBX]
    test edi, edi
    js .Lballoon_take
.Lballoon_give_next:
    cmp esi, edi
    jae .Lballoon_out
    call balloon_give
    test eax, eax
    jz .Lballoon_out
    inc esi
    jmp .Lballoon_give_next
.Lballoon_take:
    neg edi
.Lballoon_take_next:
    cmp esi, edi
    jae .Lballoon_out
    call balloon_take
    test eax, eax
    jz .Lballoon_out
    inc esi
    jmp .Lballoon_take_next
.Lballoon_out:
    mov eax, esi
    test esi, esi
    jnz .Lballoon_answer
    test edi, edi
    jz .Lballoon_answer
    mov eax, -ENOMEM
.Lballoon_answer:
    pop edi
    pop esi
    ret

# Give one page to the hypervisor. Out: eax = 0 when there is none to spare.
balloon_give:
    push ebx
    call page_count_free
    cmp eax, BALLOON_RESERVE
    mov eax, 0
    jbe .Lgive_none
    call page_take
    test eax, eax
    jz .Lgive_none
    mov ebx, eax
    call page_count_of
    mov dword ptr [ecx], PAGE_BALLOONED
    mov eax, ebx
    call kernel_slot_of
    xor edx, edx
    xor ecx, ecx
    call port_set_entry
    mov eax, ebx
    call port_forget_page_everywhere
    call port_flush_entries
    mov eax, ebx
    call port_give_page
    inc dword ptr [balloon_pages]
    mov eax, 1
.Lgive_none:
    pop ebx
    ret

# Take one back. Out: eax = 0 when all are here, or the hypervisor has none.
balloon_take:
    push ebx
    cmp dword ptr [balloon_pages], 0
    je .Ltake_none
    mov ebx, VIRT_BASE
.Ltake_look:
    mov eax, ebx
    call page_count_of
    cmp dword ptr [ecx], PAGE_BALLOONED
    je .Ltake_found
    add ebx, PAGE_SIZE
    jmp .Ltake_look
.Ltake_found:
    mov eax, ebx
    call port_take_page
    test eax, eax
    jnz .Ltake_none
    mov eax, ebx
    call port_free_table            # map it as an ordinary page
    call port_flush_entries
    mov eax, ebx
    call page_count_of
    mov dword ptr [ecx], 0
    call page_add
    dec dword ptr [balloon_pages]
    mov eax, 1
    pop ebx
    ret
.Ltake_none:
    xor eax, eax
    pop ebx
    ret

.section .bss
.p2align 2
balloon_pages:
    .space 4
