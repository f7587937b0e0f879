# SPDX-License-Identifier: GPL-2.0-or-later
#
# A kernel that does what the first letter of its command line says, for tests of the toolstack:
#
#   p  power off        r  reboot          s  suspend         d  the older call, with a digit behind
#   c  crash (ud2)      l  loop            b  block for good  n  a hypercall that is refused, then p
#   e  echo what is typed, as CR LF ended lines, until q
#   f  print without end            g  the same, as fast as the ring is emptied
#   h  an impossible index in the console's ring, then p; t  the same in XenStore's
#   a  print an escape sequence that commands the terminal, then p
#
# It sets no traps, masks events throughout and waits by yielding.

.include "xen_abi.inc"

.equ VIRT_BASE, 0xC0000000

.xen_note GUEST_OS, "obedient"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, VIRT_BASE
.xen_note HYPERCALL_PAGE, hypercall_page

.macro CALL_XEN number
    call hypercall_page + \number * HYPERCALL_STUB_SIZE
.endm

.section .text
.p2align PAGE_SHIFT
hypercall_page:
    .space PAGE_SIZE

.global _start
_start:
    mov ebp, esi                    # start_info
    mov eax, [ebp + START_INFO_CONSOLE_DOMU_MFN]
    mov eax, [MACH2PHYS_VIRT_START + eax * 4]
    shl eax, PAGE_SHIFT
    lea edi, [eax + VIRT_BASE]      # the console's ring
    mov ebx, CONSOLEIO_write
    mov ecx, offset hello_end - hello
    mov edx, offset hello
    CALL_XEN HYPERVISOR_console_io
    mov al, [ebp + START_INFO_CMD_LINE]
    cmp al, 'p'
    je power_off
    cmp al, 'r'
    je reboot
    cmp al, 's'
    je suspend
    cmp al, 'd'
    je old_shutdown
    cmp al, 'c'
    je crash
    cmp al, 'b'
    je block
    cmp al, 'n'
    je be_refused
    cmp al, 'e'
    je echo
    cmp al, 'f'
    je flood
    cmp al, 'g'
    je flood_fast
    cmp al, 'h'
    je break_ring
    cmp al, 't'
    je break_store_ring
    cmp al, 'a'
    je command_terminal
.global loop_for_good
loop_for_good:
    jmp loop_for_good

power_off:
    mov eax, SHUTDOWN_poweroff
shut_down:
    mov [argument], eax
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset argument
    CALL_XEN HYPERVISOR_sched_op
    jmp loop_for_good

reboot:
    mov eax, SHUTDOWN_reboot
    jmp shut_down

suspend:
    mov eax, SHUTDOWN_suspend
    jmp shut_down

old_shutdown:
    movzx ecx, byte ptr [ebp + START_INFO_CMD_LINE + 1]
    mov ebx, SCHEDOP_shutdown
    CALL_XEN HYPERVISOR_sched_op_compat
    jmp loop_for_good

.global crash
crash:
    mov eax, 0x12345678
    push offset crash
    call crash_here
crash_here:
    ud2

block:
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    CALL_XEN HYPERVISOR_sched_op
    jmp block

.global be_refused
be_refused:
    mov ebx, 0xFFFFF000
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    CALL_XEN HYPERVISOR_mmu_update
    jmp power_off

echo:
    mov ecx, [edi + XENCONS_INTERFACE_IN_CONS]
    cmp ecx, [edi + XENCONS_INTERFACE_IN_PROD]
    je echo_wait
    mov edx, ecx
    and edx, 1023
    mov al, [edi + XENCONS_INTERFACE_IN + edx]
    inc ecx
    mov [edi + XENCONS_INTERFACE_IN_CONS], ecx
    cmp al, 'q'
    je echo_end
    call put
    jmp echo
echo_end:
    call notify
    call drain
    jmp power_off
echo_wait:
    call notify
    call yield
    jmp echo

flood:
    mov esi, 1000
flood_more:
    mov al, '#'
    call put
    dec esi
    jnz flood_more
    mov al, 10
    call put
    jmp flood

flood_fast:                             # lines of 63 '#', a whole ring at a time
    call drain
    push edi
    lea edi, [edi + XENCONS_INTERFACE_OUT]
    mov ecx, 2048
    mov al, '#'
    rep stosb
    pop edi
    mov ecx, 63
flood_line:
    mov byte ptr [edi + XENCONS_INTERFACE_OUT + ecx], 10
    add ecx, 64
    cmp ecx, 2048
    jb flood_line
flood_ring:
    call drain
    mov eax, [edi + XENCONS_INTERFACE_OUT_CONS]
    add eax, 2048
    mov [edi + XENCONS_INTERFACE_OUT_PROD], eax
    call notify
    jmp flood_ring

break_ring:
    mov dword ptr [edi + XENCONS_INTERFACE_OUT_PROD], 0xFFFFFFFF
    call notify
    call yield
    call yield
    jmp power_off

break_store_ring:
    mov eax, [ebp + START_INFO_STORE_MFN]
    mov eax, [MACH2PHYS_VIRT_START + eax * 4]
    shl eax, PAGE_SHIFT
    mov dword ptr [eax + VIRT_BASE + XENSTORE_DOMAIN_INTERFACE_REQ_PROD], 0xFFFFFFFF
    mov eax, [ebp + START_INFO_STORE_EVTCHN]
    mov [argument], eax
    mov ebx, EVTCHNOP_send
    mov ecx, offset argument
    CALL_XEN HYPERVISOR_event_channel_op
    call yield
    call yield
    jmp power_off

command_terminal:
    mov esi, offset command
command_next:
    lodsb
    test al, al
    jz command_done
    call put
    jmp command_next
command_done:
    call notify
    call drain
    jmp power_off

# Put al into the console's ring, when there is room.
put:
    mov ecx, [edi + XENCONS_INTERFACE_OUT_PROD]
    mov edx, ecx
    sub edx, [edi + XENCONS_INTERFACE_OUT_CONS]
    cmp edx, 2048
    jae put_wait
    mov edx, ecx
    and edx, 2047
    mov [edi + XENCONS_INTERFACE_OUT + edx], al
    inc ecx
    mov [edi + XENCONS_INTERFACE_OUT_PROD], ecx
    ret
put_wait:
    push eax
    call notify
    call yield
    pop eax
    jmp put

drain:
    mov ecx, [edi + XENCONS_INTERFACE_OUT_PROD]
    cmp ecx, [edi + XENCONS_INTERFACE_OUT_CONS]
    je drained
    call yield
    jmp drain
drained:
    ret

notify:
    mov eax, [ebp + START_INFO_CONSOLE_DOMU_EVTCHN]
    mov [argument], eax
    mov ebx, EVTCHNOP_send
    mov ecx, offset argument
    CALL_XEN HYPERVISOR_event_channel_op
    ret

yield:
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    CALL_XEN HYPERVISOR_sched_op
    ret

.section .data
argument:
    .long 0
hello:
    .ascii "hello\n"
hello_end:
command:
    .ascii "\x1b]0;owned\x07\x1b[6n\x1b[31mred\x1b[0m\n"
    .byte 0
