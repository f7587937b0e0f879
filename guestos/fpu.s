# SPDX-License-Identifier: GPL-2.0-or-later
#
# The FPU: registers that most programs never touch, so that they are not saved for those.
#
# A bit of CR0 (TS) makes the first instruction that uses the FPU trap. It is set while the FPU
# holds nothing of the current process. The trap loads the process's state and makes it the owner;
# from then on its instructions run freely, until another process gets the processor: then the state
# is saved and the bit set again. A process that uses no FPU costs nothing.
#
# (One could leave the state in the FPU until another process wants it. But this one might go on on
# another processor meanwhile, which would have to ask the first one for it.)
#
# Invariant: TS is clear on a processor where CPU_FPU_OWNER is its current process, and set where it
# is 0. It is nothing else.

.equ MXCSR_DEFAULT, 0x1F80
.equ FPU_STATE_MXCSR, 24

.section .text

# The exception of the first use. It may come from a program only. In: ebx = frame. Events may be
# let in.
fpu_trap:
    call port_save_and_mask
    push eax
    CPU edx
    mov eax, [edx + CPU_CURRENT]
    mov [edx + CPU_FPU_OWNER], eax
    mov ecx, [eax + PROCESS_STACK_BASE]
    add ecx, KSTACK_FPU
    cmp byte ptr [eax + PROCESS_HAS_FPU], 0
    je .Lfpu_first
    fxrstor [ecx]
    jmp .Lfpu_loaded
.Lfpu_first:
    mov byte ptr [eax + PROCESS_HAS_FPU], 1
    fninit
    mov dword ptr [ecx + FPU_STATE_MXCSR], MXCSR_DEFAULT
    ldmxcsr [ecx + FPU_STATE_MXCSR]
    xorps xmm0, xmm0                # nothing of another process may be left in them
    xorps xmm1, xmm1
    xorps xmm2, xmm2
    xorps xmm3, xmm3
    xorps xmm4, xmm4
    xorps xmm5, xmm5
    xorps xmm6, xmm6
    xorps xmm7, xmm7
.Lfpu_loaded:
    pop eax
    jmp port_restore_events

# Put the state of a process away if the FPU holds it, and hide the FPU. In: eax = process, which is
# the current one. Events are masked. Keeps eax.
fpu_save:
    CPU edx
    cmp [edx + CPU_FPU_OWNER], eax
    jne .Lfpu_save_done
    mov dword ptr [edx + CPU_FPU_OWNER], 0
    mov ecx, [eax + PROCESS_STACK_BASE]
    fxsave [ecx + KSTACK_FPU]
    push eax
    call port_hide_fpu
    pop eax
.Lfpu_save_done:
    ret

# Give a child what its parent has. In: eax = child, edx = parent, the current process.
fpu_copy:
    push ebx
    push esi
    push edi
    mov ebx, eax
    mov esi, edx
    mov cl, [esi + PROCESS_HAS_FPU]
    mov [ebx + PROCESS_HAS_FPU], cl
    test cl, cl
    jz .Lfpu_copy_done
    call port_save_and_mask
    push eax
    mov eax, esi
    call fpu_save
    pop eax
    call port_restore_events
    mov esi, [esi + PROCESS_STACK_BASE]
    mov edi, [ebx + PROCESS_STACK_BASE]
    add esi, KSTACK_FPU
    add edi, KSTACK_FPU
    mov ecx, FPU_STATE_SIZE / 4
    rep movsd
.Lfpu_copy_done:
    pop edi
    pop esi
    pop ebx
    ret

# Forget what a process has in the FPU: another program begins in it, or it ends. In: eax = process,
# the current one.
fpu_forget:
    mov byte ptr [eax + PROCESS_HAS_FPU], 0
    CPU edx
    cmp [edx + CPU_FPU_OWNER], eax
    jne .Lfpu_forget_done
    mov dword ptr [edx + CPU_FPU_OWNER], 0
    jmp port_hide_fpu
.Lfpu_forget_done:
    ret
