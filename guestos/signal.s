# SPDX-License-Identifier: GPL-2.0-or-later
#
# Signals: ending processes. There are no handlers: every signal ends whoever gets it, and only its
# number, in the status word, tells which it was. And groups, which are ended together.

.section .text

# Mark a process as killed, and end its sleep. In: eax = process, edx = signal. schedule_lock is
# held. Process 1 lives on: without it nobody would ask for the orphans.
signal_mark:
    cmp eax, [process_init]
    je .Lmark_done
    cmp dword ptr [eax + PROCESS_KILLED], 0
    jne .Lmark_done
    mov [eax + PROCESS_KILLED], edx
    cmp dword ptr [eax + PROCESS_STATE], PROCESS_SLEEPING
    je schedule_ready
.Lmark_done:
    ret

# kill(id, or -group; signal, or 0 to probe)
sys_kill:
    mov eax, [ebx + FRAME_EBX]
    mov edx, [ebx + FRAME_ECX]
    cmp edx, 64
    ja .Lkill_invalid
    test eax, eax
    jz .Lkill_invalid
    js .Lkill_group
    mov ecx, PROCESS_ID
    call signal_send
    jmp .Lkill_answer
.Lkill_group:
    neg eax
    call process_signal_group
.Lkill_answer:
    test eax, eax
    jz .Lkill_nobody
    xor eax, eax
    ret
.Lkill_nobody:
    mov eax, -ESRCH
    ret
.Lkill_invalid:
    mov eax, -EINVAL
    ret

# Send a signal to a group. In: eax = group, edx = signal. Out: eax = how many have got it. Event
# handlers may call it.
process_signal_group:
    mov ecx, PROCESS_GROUP

# Send a signal to all processes with a value in a field. In: eax = value, edx = signal, 0 to send
# none, ecx = offset of the field. Out: eax = how many there are.
signal_send:
    push ebx
    push esi
    push edi
    push ebp
    mov esi, eax
    mov edi, edx
    mov ebp, ecx
    mov eax, offset schedule_lock
    call lock_events
    push eax
    push 0
    mov ebx, offset process_first_slot
.Lsend_look:
    cmp dword ptr [ebx + PROCESS_STATE], PROCESS_NEW
    jbe .Lsend_next                 # FREE or NEW
    cmp [ebx + ebp], esi
    jne .Lsend_next
    inc dword ptr [esp]
    test edi, edi
    jz .Lsend_next
    mov eax, ebx
    mov edx, edi
    call signal_mark
.Lsend_next:
    add ebx, SIZEOF_PROCESS
    cmp ebx, [process_slots_end]
    jb .Lsend_look
    pop esi
    pop edx
    mov eax, offset schedule_lock
    call unlock_events
    mov eax, esi
    pop ebp
    pop edi
    pop esi
    pop ebx
    ret

# setpgid(process, group): of the caller or of a child of it. 0 stands for the caller, and as a
# group for the process's own id.
sys_setpgid:
    push esi
    call process_current
    mov esi, eax
    mov ecx, [ebx + FRAME_EBX]
    test ecx, ecx
    jz .Lsetpgid_found
    cmp ecx, [eax + PROCESS_ID]
    je .Lsetpgid_found
    mov eax, offset process_first_slot
.Lsetpgid_look:
    cmp dword ptr [eax + PROCESS_STATE], PROCESS_NEW
    jbe .Lsetpgid_next              # FREE or NEW
    cmp [eax + PROCESS_ID], ecx
    jne .Lsetpgid_next
    cmp [eax + PROCESS_PARENT], esi
    je .Lsetpgid_found
.Lsetpgid_next:
    add eax, SIZEOF_PROCESS
    cmp eax, [process_slots_end]
    jb .Lsetpgid_look
    mov eax, -ESRCH
    pop esi
    ret
.Lsetpgid_found:
    pop esi
    mov ecx, [ebx + FRAME_ECX]
    test ecx, ecx
    js .Lkill_invalid
    jnz .Lsetpgid_set
    mov ecx, [eax + PROCESS_ID]
.Lsetpgid_set:
    mov [eax + PROCESS_GROUP], ecx
    xor eax, eax
    ret
