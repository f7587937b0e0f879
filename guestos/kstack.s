# SPDX-License-Identifier: GPL-2.0-or-later
#
# Kernel stacks: a block of cpu.s for each place in the process table, above KSTACKS_BASE.
#
# A block's pages above the guard are mapped when its place is first used. A few blocks keep theirs
# when the process is gone, for the next one; the others give them back.
#
# All address spaces see these mappings, so taking one away is for all processors.

.equ KSTACK_PAGES, (KSTACK_SIZE - KSTACK_GUARD) / PAGE_SIZE
.equ KSTACKS_SPARE_MAX, 8

.section .text

# Have the stack of a place in the process table mapped. In: eax = process. Out: eax = 0, or
# -ENOMEM.
kstack_open:
    push ebx
    push esi
    mov ebx, eax
    cmp byte ptr [ebx + PROCESS_HAS_STACK], 0
    jne .Lkstack_spare
    xor esi, esi
.Lkstack_page:
    call page_alloc
    test eax, eax
    jz .Lkstack_undo
    mov ecx, ENTRY_RW
    mov edx, NX
    call port_entry_of
    mov ecx, edx
    mov edx, eax
    mov eax, esi
    call kstack_slot_of
    call port_set_entry
    inc esi
    cmp esi, KSTACK_PAGES
    jb .Lkstack_page
    mov byte ptr [ebx + PROCESS_HAS_STACK], 1
    call port_flush_entries
    jmp .Lkstack_done
.Lkstack_spare:
    dec dword ptr [kstacks_spare_count]
.Lkstack_done:
    xor eax, eax
    pop esi
    pop ebx
    ret
.Lkstack_undo:
    call port_flush_entries
    call kstack_unmap
    mov eax, -ENOMEM
    pop esi
    pop ebx
    ret

# The process is gone: keep its stack, or not. In: eax = process.
kstack_close:
    cmp dword ptr [kstacks_spare_count], KSTACKS_SPARE_MAX
    jae kstack_drop
    inc dword ptr [kstacks_spare_count]
    ret

# Give up a stack that nobody is on. In: eax = process.
kstack_drop:
    push ebx
    push esi
    mov ebx, eax
    mov byte ptr [ebx + PROCESS_HAS_STACK], 0
    mov esi, KSTACK_PAGES
    call kstack_unmap
    pop esi
    pop ebx
    ret

# Unmap the first pages of a stack, and give them back. In: ebx = process, esi = how many.
kstack_unmap:
    test esi, esi
    jz .Lunmap_done
    dec esi
    mov eax, esi
    call kstack_slot_of
    push eax
    mov edx, [eax + 4]
    mov eax, [eax]
    call port_page_of
    xchg eax, [esp]
    xor edx, edx
    xor ecx, ecx
    call port_set_entry
    mov eax, esi
    shl eax, PAGE_SHIFT
    add eax, [ebx + PROCESS_STACK_BASE]
    add eax, KSTACK_GUARD
    call port_forget_page_everywhere
    pop eax
    call page_free
    jmp kstack_unmap
.Lunmap_done:
    jmp port_flush_entries

# Find the slot of a page of a stack. In: ebx = process, eax = which page. Out: eax = slot. Changes
# no other register.
kstack_slot_of:
    shl eax, PAGE_SHIFT
    add eax, [ebx + PROCESS_STACK_BASE]
    sub eax, KSTACKS_BASE - KSTACK_GUARD
    shr eax, PAGE_SHIFT - 3
    add eax, [kernel_stacks_table]
    ret

# Give up a spare stack, for its pages. Out: eax = 0 if there is none.
kstack_give_up_spare:
    cmp dword ptr [kstacks_spare_count], 0
    je .Lgive_up_no_stack
    mov eax, offset process_first_slot
.Lgive_up_look:
    cmp dword ptr [eax + PROCESS_STATE], PROCESS_FREE
    jne .Lgive_up_next
    cmp byte ptr [eax + PROCESS_HAS_STACK], 0
    jne .Lgive_up_stack
.Lgive_up_next:
    add eax, SIZEOF_PROCESS
    jmp .Lgive_up_look
.Lgive_up_stack:
    dec dword ptr [kstacks_spare_count]
    call kstack_drop
    mov eax, 1
    ret
.Lgive_up_no_stack:
    xor eax, eax
    ret

.section .bss
.p2align 2
kstacks_spare_count:
    .space 4
