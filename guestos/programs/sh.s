# SPDX-License-Identifier: GPL-2.0-or-later
#
# sh: the shell. It reads lines and runs what they say:
#
#   COMMAND WORD...     a program of bin/, or of a path with a slash in it, or a command of its own
#   A | B | C           what A writes is what B reads, and so on
#   A; B                one after the other
#   A &                 without waiting; see jobs and wait
#   'text' "text" \c    a word with blanks or signs in it
#   $?                  how the last command ended: its status, or 128 + the signal that ended it
#   # text              nothing
#
# Reading order:
#
#   sh/edit.inc         a line from the keyboard
#   sh/history.inc      lines of before
#   sh/words.inc        a line into words
#   sh/run.inc          words into processes
#   sh/jobs.inc         processes in the background
#   sh/commands.inc     the shell's own commands
#
# A shell on the console is the foreground group while it reads, and hands that to each command it
# waits for, so that Ctrl-C ends the command and not the shell.

.include "lib/program.inc"
.include "lib/kill.inc"

USAGE "usage: sh [FILE | -c LINE]\n"

.equ LINE_SIZE, 256                 # with the 0 at its end

.section .text
main:
    mov ebx, edx
    cmp eax, 1
    je .Lsh_input
    cmp eax, 2
    je .Lsh_file
    cmp eax, 3
    jne usage
    mov eax, [ebx + 4]
    mov edx, offset sh_word_line
    call text_equals
    test eax, eax
    jz usage
    mov eax, [ebx + 8]
    call text_length
    cmp eax, LINE_SIZE
    jae usage
    mov eax, offset line
    mov edx, [ebx + 8]
    call text_copy
    call run_line
    jmp .Lsh_end
.Lsh_file:
    mov esi, [ebx + 4]
    mov ebx, esi
    mov ecx, O_RDONLY
    SYSTEM_CALL open
    mov edx, esi
    test eax, eax
    js fail
    mov [input_file], eax
    jmp .Lsh_script
.Lsh_input:
    call console_take               # does nothing where the input is no console
    cmp dword ptr [is_interactive], 0
    je .Lsh_script
    call interact
    jmp .Lsh_end
.Lsh_script:
    call script_line
    test eax, eax
    jz .Lsh_end
    call run_line
    jmp .Lsh_script
.Lsh_end:
    mov eax, [last_status]
    ret

# Read lines from the keyboard and run them, until the end.
interact:
    SYSTEM_CALL getpid
    mov [own_group], eax
    xor ebx, ebx
    xor ecx, ecx
    SYSTEM_CALL setpgid
.Linteract_next:
    call console_take
    call jobs_report
    call edit_line
    test eax, eax
    jz .Linteract_end
    call history_keep
    call run_line
    jmp .Linteract_next
.Linteract_end:
    ret

# Be the one who gets the keys, as they come. Tells by is_interactive whether there are keys at all.
console_take:
    push ebx
    mov ebx, STDIN
    mov ecx, CONSOLE_FOREGROUND
    mov edx, [own_group]
    SYSTEM_CALL ioctl
    mov ecx, CONSOLE_MODE
    mov edx, CONSOLE_RAW
    SYSTEM_CALL ioctl
    not eax
    shr eax, 31                     # 1 where there was no error
    mov [is_interactive], eax
    pop ebx
    ret

# Hand the keys to a group, line by line. In: eax = group. Does nothing in a script.
console_give:
    cmp dword ptr [is_interactive], 0
    je .Lgive_done
    push ebx
    mov edx, eax
    mov ebx, STDIN
    mov ecx, CONSOLE_FOREGROUND
    SYSTEM_CALL ioctl
    mov ecx, CONSOLE_MODE
    mov edx, CONSOLE_COOKED
    SYSTEM_CALL ioctl
    pop ebx
.Lgive_done:
    ret

# Read a line of a file into line. Out: eax = 1, or 0 at the end of the file. What a line has beyond
# LINE_SIZE is lost, and the shell says so.
script_line:
    push ebx
    push esi
    xor esi, esi
.Lscript_next:
    mov ebx, [input_file]
    mov ecx, offset edit_key
    mov edx, 1
    SYSTEM_CALL read
    cmp eax, 1
    jne .Lscript_end
    mov al, [edit_key]
    cmp al, '\n'
    je .Lscript_done
    cmp esi, LINE_SIZE - 1
    jae .Lscript_next
    mov [line + esi], al
    inc esi
    jmp .Lscript_next
.Lscript_end:
    test esi, esi
    jz .Lscript_out
.Lscript_done:
    mov byte ptr [line + esi], 0
    cmp esi, LINE_SIZE - 1
    jb .Lscript_whole
    call to_stderr
    PRINT "sh: a line is too long\n"
    call to_stdout
.Lscript_whole:
    mov esi, 1
.Lscript_out:
    mov eax, esi
    pop esi
    pop ebx
    ret

.include "sh/edit.inc"
.include "sh/history.inc"
.include "sh/words.inc"
.include "sh/run.inc"
.include "sh/jobs.inc"
.include "sh/commands.inc"

.section .rodata
sh_word_line:
    .asciz "-c"

.section .bss
.p2align 2
is_interactive:
    .space 4                        # 1 or 0
own_group:
    .space 4
input_file:
    .space 4                        # of a script
last_status:
    .space 4
line:
    .space LINE_SIZE
