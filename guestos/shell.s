# SPDX-License-Identifier: GPL-2.0-or-later
#
# The shell: a line typed on the console is a command.
#
# Line editing: Backspace takes the last character away, Ctrl-U the whole line, Ctrl-C leaves it for
# a new one. Other control characters and the sequences of cursor keys are ignored. Enter is CR from
# a terminal, LF from a pipe; a LF behind a CR is the same Enter.
#
# The first blank ends the command's name; a number may follow it.
#
# Registers throughout: esi = length of the line so far. The line is echoed here, by the kernel: a
# console has no eyes of its own.

.equ LINE_SIZE, 72
.equ CTRL_C, 3
.equ BELL, 7
.equ BACKSPACE, 8
.equ CTRL_U, 21
.equ ESCAPE, 27
.equ SEQUENCE, '['
.equ DELETE, 127

.section .text

# Read commands for ever.
shell:
    PRINT "Type help for the commands.\n"
.Lshell_prompt:
    PRINT "guestos> "
    call shell_read_line
    cmp byte ptr [shell_line], 0
    je .Lshell_prompt
    call shell_split_line
    mov ebx, offset shell_commands
.Lshell_search:
    mov eax, [ebx]
    test eax, eax
    jz .Lshell_unknown
    mov edx, offset shell_line
    call texts_are_equal
    test eax, eax
    jnz .Lshell_found
    add ebx, 12
    jmp .Lshell_search
.Lshell_found:
    call dword ptr [ebx + 4]
    jmp .Lshell_prompt
.Lshell_unknown:
    PRINT "no command is called "
    mov eax, offset shell_line
    call print
    PRINT "; try help\n"
    jmp .Lshell_prompt

# Read a line into shell_line, ending in 0. Blanks around it are dropped.
shell_read_line:
    push ebx
    push esi
    xor esi, esi
.Lline_key:
    call console_read
    mov bl, [shell_last_key]
    mov [shell_last_key], al
    cmp al, '\n'
    je .Lline_feed
    cmp al, '\r'
    je .Lline_done
    cmp al, BACKSPACE
    je .Lline_backspace
    cmp al, DELETE
    je .Lline_backspace
    cmp al, CTRL_U
    je .Lline_erase
    cmp al, CTRL_C
    je .Lline_leave
    cmp al, ESCAPE
    je .Lline_escape
    cmp al, ' '
    jb .Lline_key
    ja .Lline_keep
    test esi, esi                   # a blank before the first word
    jz .Lline_key
.Lline_keep:
    cmp esi, LINE_SIZE - 1
    jae .Lline_full
    mov [shell_line + esi], al
    inc esi
    call shell_echo
    jmp .Lline_key
.Lline_full:
    mov al, BELL
    call shell_echo
    jmp .Lline_key
.Lline_backspace:
    call shell_rub_out
    jmp .Lline_key
.Lline_erase:
    test esi, esi
    jz .Lline_key
    call shell_rub_out
    jmp .Lline_erase
.Lline_leave:
    xor esi, esi
    PRINT "^C"
    jmp .Lline_done
.Lline_escape:
    # ESC [ ... letter: skip to the letter. ESC and another key: skip that key.
    call console_read
    cmp al, SEQUENCE
    jne .Lline_key
.Lline_escape_next:
    call console_read
    cmp al, '@'
    jb .Lline_escape_next
    jmp .Lline_key
.Lline_feed:
    cmp bl, '\r'
    je .Lline_key
.Lline_done:
    PRINT "\n"
.Lline_trim:
    test esi, esi
    jz .Lline_end
    cmp byte ptr [shell_line + esi - 1], ' '
    jne .Lline_end
    dec esi
    jmp .Lline_trim
.Lline_end:
    mov byte ptr [shell_line + esi], 0
    pop esi
    pop ebx
    ret

# End the command's name where it ends, and keep where its argument begins. A line has no blanks at
# its ends.
shell_split_line:
    mov eax, offset shell_line
.Lsplit_name:
    mov dl, [eax]
    test dl, dl
    jz .Lsplit_done
    inc eax
    cmp dl, ' '
    jne .Lsplit_name
    mov byte ptr [eax - 1], 0
.Lsplit_blank:
    cmp byte ptr [eax], ' '
    jne .Lsplit_done
    inc eax
    jmp .Lsplit_blank
.Lsplit_done:
    mov [shell_argument], eax
    ret

# Read the argument as a number. Out: eax, and CF set where it is none or has more than 7 digits.
shell_number:
    push ebx
    push esi
    mov esi, [shell_argument]
    xor eax, eax
    xor edx, edx
    lea ebx, [esi + 7]
.Lnumber_next:
    mov dl, [esi]
    test dl, dl
    jz .Lnumber_end
    sub dl, '0'
    cmp dl, 9
    ja .Lnumber_bad
    cmp esi, ebx
    jae .Lnumber_bad
    imul eax, eax, 10
    add eax, edx
    inc esi
    jmp .Lnumber_next
.Lnumber_end:
    cmp esi, [shell_argument]
    je .Lnumber_bad
    clc
    jmp .Lnumber_out
.Lnumber_bad:
    stc
.Lnumber_out:
    pop esi
    pop ebx
    ret

# Take the last character away, if there is one. In and out: esi = length of the line.
shell_rub_out:
    test esi, esi
    jz .Lrub_out_done
    dec esi
    PRINT "\b \b"
.Lrub_out_done:
    ret

# Show one character. In: al.
shell_echo:
    push eax
    mov eax, esp
    mov edx, 1
    call console_write
    pop eax
    ret

# Compare two texts that end in 0. In: eax and edx = addresses. Out: eax = 1 or 0.
texts_are_equal:
    push ebx
.Ltexts_next:
    mov bl, [eax]
    cmp bl, [edx]
    jne .Ltexts_differ
    inc eax
    inc edx
    test bl, bl
    jnz .Ltexts_next
    mov eax, 1
    pop ebx
    ret
.Ltexts_differ:
    xor eax, eax
    pop ebx
    ret

# -- commands --------------------------------------------------------------------------------

command_help:
    push ebx
    mov ebx, offset shell_commands
.Lhelp_next:
    cmp dword ptr [ebx], 0
    je .Lhelp_done
    mov eax, [ebx + 8]
    call print
    add ebx, 12
    jmp .Lhelp_next
.Lhelp_done:
    pop ebx
    ret

command_info:
    call report_start_info
    jmp report_hypervisor

command_sleep:
    call shell_number
    jc .Lsleep_how
    cmp eax, LONGEST_SLEEP
    jbe time_sleep
.Lsleep_how:
    PRINT "sleep how long? a number of seconds up to 1000000\n"
    ret

# A jump to nowhere, and so no return. The report of the page fault shows eip 0.
command_crash:
    PRINT "jumping to address 0\n"
    xor eax, eax
    call eax

command_halt:
    PRINT "guestos: powering off\n"
    mov eax, SHUTDOWN_poweroff
    jmp port_shutdown

command_reboot:
    PRINT "guestos: rebooting\n"
    mov eax, SHUTDOWN_reboot
    jmp port_shutdown

.section .rodata
.p2align 2
# Name, routine, line of help.
shell_commands:
    .long .Lname_help, command_help, .Lhelp_help
    .long .Lname_mem, report_memory, .Lhelp_mem
    .long .Lname_info, command_info, .Lhelp_info
    .long .Lname_uptime, time_print, .Lhelp_uptime
    .long .Lname_sleep, command_sleep, .Lhelp_sleep
    .long .Lname_run, process_run, .Lhelp_run
    .long .Lname_trespass, process_trespass, .Lhelp_trespass
    .long .Lname_race, process_race, .Lhelp_race
    .long .Lname_fault, memory_touch_new_page, .Lhelp_fault
    .long .Lname_crash, command_crash, .Lhelp_crash
    .long .Lname_halt, command_halt, .Lhelp_halt
    .long .Lname_reboot, command_reboot, .Lhelp_reboot
    .long 0
.Lname_help: .asciz "help"
.Lhelp_help: .asciz "  help      this list\n"
.Lname_mem: .asciz "mem"
.Lhelp_mem: .asciz "  mem       how memory is used\n"
.Lname_info: .asciz "info"
.Lhelp_info: .asciz "  info      start_info and the hypervisor\n"
.Lname_uptime: .asciz "uptime"
.Lhelp_uptime: .asciz "  uptime    time and ticks since boot\n"
.Lname_sleep: .asciz "sleep"
.Lhelp_sleep: .asciz "  sleep N   sleep N seconds\n"
.Lname_run: .asciz "run"
.Lhelp_run: .asciz "  run       the program in ring 3\n"
.Lname_trespass: .asciz "trespass"
.Lhelp_trespass: .asciz "  trespass  a program that reads the kernel's memory\n"
.Lname_race: .asciz "race"
.Lhelp_race: .asciz "  race      two programs in ring 3, preempted by the tick\n"
.Lname_fault: .asciz "fault"
.Lhelp_fault: .asciz "  fault     touch a page that is not there\n"
.Lname_crash: .asciz "crash"
.Lhelp_crash: .asciz "  crash     jump to address 0\n"
.Lname_halt: .asciz "halt"
.Lhelp_halt: .asciz "  halt      power off\n"
.Lname_reboot: .asciz "reboot"
.Lhelp_reboot: .asciz "  reboot    shut down for a reboot\n"

.section .bss
.p2align 2
shell_argument:
    .space 4
shell_line:
    .space LINE_SIZE
shell_last_key:
    .space 1
