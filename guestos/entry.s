# SPDX-License-Identifier: GPL-2.0-or-later
#
# The first instruction, and the order in which everything is brought up.
#
# In: esi = address of start_info. Flat ring 1 segments, paging on, every page of the kernel mapped
# read-write, events masked, a boot stack of one page. (Xen's layout: public/xen.h.)
# The kernel changes to its own stack at once: the boot stack's page has no room for nested traps.

.section .text
.global _start
_start:
    cld
    mov esp, offset kernel_stack + KSTACK_TOP
    mov [start_info], esi
    call cpu_open                   # from here on code can find out which processor it runs on
    call console_open
    PRINT "guestos 0.2: a kernel in ring 1, every privileged operation a hypercall\n"
    call traps_open                 # from here on a fault is reported instead of ending silently
    call report_start_info
    call report_hypervisor
    call memory_open                # needs nothing but start_info; gives shared_info an address
    call port_open_batching
    call space_open
    call process_open
    call port_hide_fpu
    call report_memory
    call events_open                # writes shared_info
    call time_open
    call smp_open
    call report_cpus
    call syscall_open
    call console_listen
    call ramdisk_open
    call kernel_enter               # the first process may begin on another processor
    call process_make_init
    call xenbus_open
    call kernel_leave
    jmp schedule_idle               # the boot goes on in process 1

# Look for a word of the kernel's command line. In: eax = the word, ending in 0. Out: eax = 1 or 0.
command_line_has:
    push ebx
    push esi
    push edi
    mov ebx, eax
    mov esi, [start_info]
    add esi, START_INFO_CMD_LINE
.Lword_start:
    mov edi, ebx
.Lword_compare:
    mov al, [esi]
    mov dl, [edi]
    test dl, dl
    jz .Lword_whole
    cmp al, dl
    jne .Lword_skip
    inc esi
    inc edi
    jmp .Lword_compare
.Lword_whole:
    test al, al
    jz .Lword_found
    cmp al, ' '
    je .Lword_found
.Lword_skip:
    mov al, [esi]
    test al, al
    jz .Lword_missing
    inc esi
    cmp al, ' '
    jne .Lword_skip
    jmp .Lword_start
.Lword_found:
    mov eax, 1
    jmp .Lword_out
.Lword_missing:
    xor eax, eax
.Lword_out:
    pop edi
    pop esi
    pop ebx
    ret

.section .rodata
word_autohalt:
    .asciz "autohalt"
word_plainfaults:
    .asciz "plainfaults"
word_nobatch:
    .asciz "nobatch"
word_assist:
    .asciz "assist"

.section .bss
.p2align PAGE_SHIFT + 2             # the alignment is KSTACK_SIZE: see cpu.s
kernel_stack:
    .space KSTACK_SIZE              # of the first idle process; its guard is not mapped
start_info:
    .space 4                        # address of the start_info page
