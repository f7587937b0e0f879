# SPDX-License-Identifier: GPL-2.0-or-later
#
# The console as a file: what keys become before a program reads them.
#
#   console ring --tty_input--> tty_keys --raw-----------------> the program
#   (console.s)  (an event)     a ring    \-cooked-> tty_line --> the program
#
# Keys are kept as they came, and only the reader makes lines of them: so what is typed ahead is
# shown when its turn comes, and a change between raw and cooked loses nothing. One key cannot wait
# for a reader: Ctrl-C ends the foreground group as it comes in, unless the console is raw; what was
# typed before it is forgotten. (Behind more keys than tty_keys holds it waits in the console's
# ring.)
#
# tty_lock guards tty_keys, the mode and the foreground group, which the event handler reads. The
# line belongs to process context.

.equ TTY_KEYS_SIZE, 1024
.equ TTY_LINE_SIZE, 256
.equ TTY_PIECE, 128                 # what is copied at once, by way of the stack
.equ TTY_WRITE_MAX, 4096            # what one write takes: the kernel lock is not held for longer
.equ CTRL_C, 3
.equ CTRL_D, 4
.equ CTRL_U, 0x15
.equ BELL, 7
.equ BACKSPACE, 8
.equ TAB, 9
.equ DELETE, 0x7F

.section .text

# -- keys come in ----------------------------------------------------------------------------

# Take the keys out of the console's ring. The handler of the console's event, and a reader who may
# have made room.
tty_input:
    push ebx
    mov eax, offset tty_lock
    call lock_events
    mov ebx, eax
    call tty_drain
    mov eax, offset tty_lock
    mov edx, ebx
    pop ebx
    jmp unlock_events

# The same, with tty_lock held.
tty_drain:
    mov eax, [tty_keys_in]
    sub eax, [tty_keys_out]
    cmp eax, TTY_KEYS_SIZE
    jae .Ldrain_wake
    call console_take
    test eax, eax
    js .Ldrain_wake
    cmp eax, CTRL_C
    jne .Ldrain_keep
    cmp dword ptr [tty_mode], CONSOLE_COOKED
    jne .Ldrain_keep
    cmp dword ptr [tty_foreground], 0
    je .Ldrain_keep
    mov eax, [tty_keys_in]
    mov [tty_keys_out], eax
    PRINT "^C\n"
    mov eax, [tty_foreground]
    mov edx, SIGINT
    call process_signal_group
    jmp tty_drain
.Ldrain_keep:
    mov edx, [tty_keys_in]
    and edx, TTY_KEYS_SIZE - 1
    mov [tty_keys + edx], al
    inc dword ptr [tty_keys_in]
    jmp tty_drain
.Ldrain_wake:
    mov eax, offset tty_keys
    jmp process_wake

# -- a program reads -------------------------------------------------------------------------

# Read keys, or from a line. Whoever is not in the foreground finds the end of the file.
tty_read:
    push ebx
    push esi
    push edi
    push ebp
    mov edi, edx
    mov ebp, ecx
    sub esp, TTY_PIECE
    cmp ebp, TTY_PIECE
    jbe .Ltty_read_begin
    mov ebp, TTY_PIECE
.Ltty_read_begin:
    cmp dword ptr [tty_mode], CONSOLE_COOKED
    je .Ltty_read_line
    xor esi, esi                    # keys taken
    mov ebx, 1                      # wait for the first one only
.Ltty_read_key:
    mov eax, ebx
    call tty_key
    test eax, eax
    js .Ltty_read_last
    mov [esp + esi], al
    inc esi
    xor ebx, ebx
    cmp esi, ebp
    jb .Ltty_read_key
.Ltty_read_last:
    test esi, esi
    jz .Ltty_read_none              # eax says why
    mov eax, edi
    mov edx, esp
    mov ecx, esi
    call user_copy_out
    test eax, eax
    js .Ltty_read_out
    mov eax, esi
    jmp .Ltty_read_out
.Ltty_read_none:
    cmp eax, TTY_END
    jne .Ltty_read_out
    xor eax, eax
    jmp .Ltty_read_out
.Ltty_read_line:
    cmp byte ptr [tty_line_is_whole], 0
    jne .Ltty_read_part
    call tty_make_line
    test eax, eax
    js .Ltty_read_none
.Ltty_read_part:
    mov edx, [tty_line_taken]
    mov ecx, [tty_line_length]
    sub ecx, edx
    cmp ecx, ebp
    jbe .Ltty_read_copy
    mov ecx, ebp
.Ltty_read_copy:
    mov esi, ecx
    mov eax, edi
    add edx, offset tty_line
    call user_copy_out
    test eax, eax
    js .Ltty_read_out
    add [tty_line_taken], esi
    mov eax, [tty_line_taken]
    cmp eax, [tty_line_length]
    jb .Ltty_read_more
    mov byte ptr [tty_line_is_whole], 0
.Ltty_read_more:
    mov eax, esi
.Ltty_read_out:
    add esp, TTY_PIECE
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# Take a key. In: eax = 1 to wait for one, 0 not to. Out: eax = the key; -EINTR for a process that
# is being ended; TTY_END in the background, or where there is none and eax was 0.
.equ TTY_END, -1                    # EPERM, which no reader is told
tty_key:
    push ebx
    push esi
    mov esi, eax
.Lkey_again:
    mov eax, offset tty_lock
    call lock_events
    mov ebx, eax
    call process_current
    mov edx, [tty_foreground]
    test edx, edx
    jz .Lkey_look
    cmp edx, [eax + PROCESS_GROUP]
    jne .Lkey_none
.Lkey_look:
    mov edx, [tty_keys_out]
    cmp edx, [tty_keys_in]
    jne .Lkey_take
    call tty_drain                  # what had no room before
    mov edx, [tty_keys_out]
    cmp edx, [tty_keys_in]
    jne .Lkey_take
    test esi, esi
    jz .Lkey_none
    mov eax, offset tty_keys
    mov edx, offset tty_lock
    call process_sleep              # gives tty_lock back
    test eax, eax
    jz .Lkey_again
    mov eax, -EINTR
    jmp .Lkey_out
.Lkey_take:
    and edx, TTY_KEYS_SIZE - 1
    movzx esi, byte ptr [tty_keys + edx]
    inc dword ptr [tty_keys_out]
    jmp .Lkey_unlock
.Lkey_none:
    mov esi, TTY_END
.Lkey_unlock:
    mov eax, offset tty_lock
    mov edx, ebx
    call unlock_events
    mov eax, esi
.Lkey_out:
    pop esi
    pop ebx
    ret

# -- lines -----------------------------------------------------------------------------------

# Make a line of keys, showing them. Out: eax = 0; or negative as tty_key has it.
tty_make_line:
    push ebx
    xor ebx, ebx                    # its length
    mov dword ptr [tty_line_taken], 0
.Lline_next:
    mov eax, 1
    call tty_key
    test eax, eax
    js .Lline_out
    mov dl, [tty_last_key]
    mov [tty_last_key], al
    cmp al, '\r'
    je .Lline_end
    cmp al, '\n'
    je .Lline_feed
    cmp al, CTRL_D
    je .Lline_whole
    cmp al, CTRL_U
    je .Lline_erase
    cmp al, BACKSPACE
    je .Lline_back
    cmp al, DELETE
    je .Lline_back
    cmp al, TAB
    je .Lline_keep
    cmp al, ' '
    jb .Lline_next
.Lline_keep:
    cmp ebx, TTY_LINE_SIZE - 1
    jae .Lline_full
    mov [tty_line + ebx], al
    inc ebx
    call tty_echo
    jmp .Lline_next
.Lline_full:
    mov al, BELL
    call tty_echo
    jmp .Lline_next
.Lline_back:
    test ebx, ebx
    jz .Lline_next
    dec ebx
    call tty_rub_out
    jmp .Lline_next
.Lline_erase:
    test ebx, ebx
    jz .Lline_next
    dec ebx
    call tty_rub_out
    jmp .Lline_erase
.Lline_feed:
    cmp dl, '\r'
    je .Lline_next                  # CR LF is one key
.Lline_end:
    mov al, '\n'
    mov [tty_line + ebx], al
    inc ebx
    call tty_echo
.Lline_whole:
    mov [tty_line_length], ebx
    mov byte ptr [tty_line_is_whole], 1
    xor eax, eax
.Lline_out:
    pop ebx
    ret

# Show a key. In: al.
tty_echo:
    push eax
    mov eax, esp
    mov edx, 1
    call console_write
    call console_tell
    pop eax
    ret

tty_rub_out:
    PRINT "\b \b"
    jmp console_tell

# -- a program writes ------------------------------------------------------------------------

tty_write:
    push ebx
    push esi
    push edi
    mov esi, edx
    mov ebx, ecx
    xor edi, edi                    # bytes written
    sub esp, TTY_PIECE
    cmp ebx, TTY_WRITE_MAX
    jbe .Ltty_write_next
    mov ebx, TTY_WRITE_MAX
.Ltty_write_next:
    mov ecx, ebx
    sub ecx, edi
    jz .Ltty_write_done
    cmp ecx, TTY_PIECE
    jbe .Ltty_write_piece
    mov ecx, TTY_PIECE
.Ltty_write_piece:
    push ecx
    lea eax, [esp + 4]
    lea edx, [esi + edi]
    call user_copy_in
    pop edx
    test eax, eax
    js .Ltty_write_bad
    add edi, edx
    mov eax, esp
    call console_write
    jmp .Ltty_write_next
.Ltty_write_bad:
    test edi, edi
    jnz .Ltty_write_done
    mov edi, eax
.Ltty_write_done:
    call console_tell
    mov eax, edi
    add esp, TTY_PIECE
    pop edi
    pop esi
    pop ebx
    ret

# -- a program commands ----------------------------------------------------------------------

tty_ioctl:
    cmp edx, CONSOLE_FOREGROUND
    je .Lioctl_foreground
    cmp edx, CONSOLE_MODE
    jne .Lioctl_invalid
    cmp ecx, CONSOLE_RAW
    ja .Lioctl_invalid
    mov edx, offset tty_mode
    jmp .Lioctl_set
.Lioctl_foreground:
    test ecx, ecx
    js .Lioctl_invalid
    mov edx, offset tty_foreground
.Lioctl_set:
    push ebx
    push esi
    mov ebx, edx
    mov esi, ecx
    mov eax, offset tty_lock
    call lock_events
    mov [ebx], esi
    push eax
    mov eax, offset tty_keys        # readers look again whether they are in the foreground
    call process_wake
    pop edx
    mov eax, offset tty_lock
    call unlock_events
    xor eax, eax
    pop esi
    pop ebx
    ret
.Lioctl_invalid:
    mov eax, -EINVAL
    ret

.section .rodata
.p2align 2
console_kind:
    .long tty_read, tty_write, file_close_nothing, tty_ioctl, file_no_size, file_no_sync

.section .bss
.p2align 2
tty_lock:
    .space 4
tty_mode:
    .space 4
tty_foreground:
    .space 4                        # a group; 0: everybody
tty_keys_in:
    .space 4                        # counts that only grow, as in console.s
tty_keys_out:
    .space 4
tty_line_length:
    .space 4
tty_line_taken:
    .space 4                        # what was read of it
tty_keys:
    .space TTY_KEYS_SIZE
tty_line:
    .space TTY_LINE_SIZE
tty_line_is_whole:
    .space 1                        # 1: it may be read
tty_last_key:
    .space 1
