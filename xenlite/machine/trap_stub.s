# SPDX-License-Identifier: GPL-2.0-or-later
#
# What runs between the engine and Python at each interrupt or fault: x86-64, System V.
#
#   in:  rdi = engine, esi = vector, rdx = the table below; NO_VECTOR only looks for an upcall, as
#        after a trap, where a run is about to begin
#   out: nothing; everything that a callback must keep is kept
#
# It does natively what would cost Python an attribute access each: an `int` of the call vector from
# ring 1 goes to Python with its registers as arguments, and its result goes back into EAX; calls
# and other traps are remembered; afterwards a pending upcall is looked for, and a flush that was asked for is done.
# Measured, with a callback that does nothing at 0.17 us: an empty hypercall takes 0.23 us this way
# and 0.47 us through register views; a page flush adds 0.12 us instead of 0.45 us.
#
# Some things it does without Python, where Python has done the same before and has left a *way*
# (ways.Way): an `int` from ring 3 into the kernel, as a processor does with the fast trap gate that
# Xen sets for a guest; the way in for a fault that can only be the guest's own; the upcall; and the
# returns from all of these by hypercall, to ring 3 and within the kernel. A way says where the frame
# is and what the segments become; Python closes it
# when any of that changes. What the guest can change alone is looked at each time: the page-table
# entry of the frame, translated code in what is written, flags, selectors. 0.1 us each way instead
# of 1.2 us or more.
#
# The assembled bytes are in trap_stub.py, made by tools/gen_stub.py. Offsets into the table are
# those of engine.TrapTable.

.equ HANDLERS, 0x000            # 256 callbacks by vector
.equ UPCALL, 0x800              # the upcall's, as if it were vector 256
.equ OLD_EXCEPTION, 0x808       # address of the word
.equ STATE, 0x810               # address of CPUX86State
.equ CALL, 0x818                # the hypercall callback
.equ DEFAULT, 0x820             # the callback of other vectors
.equ UPCALL_WORD, 0x828         # address of the pending byte; the mask byte follows it
.equ CPU, 0x830                 # first argument of the two flushes
.equ FLUSH_ALL, 0x838
.equ FLUSH_PAGE, 0x840
.equ FLUSH_KIND, 0x848          # 0 none, 1 the page at FLUSH_ADDRESS, 2 all
.equ FLUSH_ADDRESS, 0x84c
.equ TRAIL, 0x850               # address of 64 records of 32 bytes
.equ TRAIL_NEXT, 0x858          # calls recorded so far
.equ CALL_VECTOR, 0x860
.equ READ_EFLAGS, 0x868         # takes STATE
.equ CLOCK, 0x870               # address of what the block stub reads, engine.BlockClock
.equ INVALIDATE, 0x878          # takes the engine and two addresses of the machine
.equ MEMORY, 0x880              # address of the machine's memory
.equ SLOT, 0x888                # the engine's mark on frames that it may have translated
.equ HOLD, 0x890                # not 0: upcalls are Python's to judge in this trap
.equ RETURN_CALL, 0x894         # the number of the call that returns
.equ TRAPS, 0x898               # address of 64 records of 16 bytes
.equ TRAPS_NEXT, 0x8a0          # traps recorded so far, calls not counted
.equ RETURN, 0x8a8              # address of the open way back to ring 3, or 0
.equ RETURN_INSIDE, 0x8b0       # the same within ring 1
.equ GATES, 0x8b8               # addresses of open ways in by vector, or 0: from ring 3, from ring 1
.equ GATES_OF_RING_1, 257
.equ UPCALL_VECTOR, 256
.equ NO_VECTOR, 0xffffffff

.equ CLOCK_STOP, 8              # in CLOCK, after the budget: the function that ends a run
.equ CLOCK_KICKED, 16

.equ WAY_ENTRY_AT, 0            # address of the page-table entry of the frame
.equ WAY_ENTRY, 8               # what it must be
.equ WAY_FRAME, 16              # address of the frame
.equ WAY_CODE, 24               # in: address of the frame's mark, 0 where nobody has translated it
.equ WAY_TARGET, 32             # in: the handler
.equ WAY_ESP, 36                # back: what it must be; in: with the frame on it; in ring 1: its page
.equ WAY_HFLAGS, 40             # privilege and widths
.equ WAY_KIND, 44
.equ WAY_CS_AND_SS, 48          # as they lie in STATE
.equ WAY_CS, 96                 # back, what they must be: in the frame
.equ WAY_SS, 100
.equ WAY_DS, 104                # and in the registers
.equ WAY_ES, 108
.equ WAY_FS, 112
.equ WAY_GS, 116
.equ WAY_INFO_CODE, 120         # the same of the page with the mask byte
.equ WAY_CR2, 128               # address of the guest's word for the address of a page fault
.equ WAY_SIZE, 136              # bytes of the frame
.equ WAY_LIMIT, 140             # addresses of page faults from here on are Python's

.equ SIZEOF_INFO, 64            # vcpu_info, which begins with the pending and the mask byte
.equ INNER_FRAME, 16            # bytes of a return within ring 1: eax, eip, cs, eflags
.equ LAST_INNER_FRAME, 0xff0    # where the last one begins that ends in its page

.equ IS_SOFTWARE, 1             # kinds
.equ IS_PAGE_FAULT, 2
.equ IS_SAME_RING, 4
.equ HAS_ADDRESS, 8
.equ HAS_ERROR_CODE, 16
.equ MASKS_EVENTS, 32

.equ R_EAX, 0
.equ R_ECX, 8
.equ R_EDX, 16
.equ R_EBX, 24
.equ R_ESP, 32
.equ R_ESI, 48
.equ R_EDI, 56
.equ R_EIP, 128
.equ R_EFLAGS, 136
.equ R_CC_SRC, 152
.equ R_CC_OP, 168
.equ R_DF, 172
.equ R_HFLAGS, 176
.equ R_ES, 184
.equ R_CS, 208
.equ R_SS, 232
.equ R_DS, 256
.equ R_FS, 280
.equ R_GS, 304
.equ R_CR2, 440
.equ R_ERROR_CODE, 5384
.equ R_IS_INT, 5388

.equ RING_AND_ADDSEG, 0x43      # of hflags: a base in use shows in bit 6
.equ NOT_SEGMENTS, 0xffffffcc   # of hflags: all but privilege and widths
.equ CLEARED_ON_ENTRY, 0x34100  # TF, NT, RF, VM
.equ PUSHED, 0x3fcdff           # all but IF and IOPL
.equ NOT_PLAIN, 0x23400         # DF, IOPL, VM
.equ KEPT_IN_WORD, 0x254100     # TF, NT, RF, AC, ID
.equ ARITHMETIC, 0x8d5
.equ FLAG_TF, 0x100
.equ FLAG_IF, 0x200
.equ ALWAYS_SET, 0x202

    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rax                    # seven pushes and the return address: calls are aligned
    mov rbx, rdx
    mov r14, rdi
    mov ebp, esi                # the vector
    mov rax, [rbx + OLD_EXCEPTION]
    mov dword ptr [rax], -1     # the fault counts as delivered
    cmp esi, [rbx + CALL_VECTOR]
    jne other
    mov r12, [rbx + STATE]
    mov eax, [r12 + R_HFLAGS]
    and eax, 3
    cmp eax, 1
    jne other

    mov rax, [rbx + TRAIL_NEXT]
    lea rcx, [rax + 1]
    mov [rbx + TRAIL_NEXT], rcx
    and eax, 63
    shl rax, 5
    add rax, [rbx + TRAIL]
    mov r13, rax
    mov edi, [r12 + R_EAX]
    mov esi, [r12 + R_EBX]
    mov edx, [r12 + R_ECX]
    mov ecx, [r12 + R_EDX]
    mov r8d, [r12 + R_ESI]
    mov r9d, [r12 + R_EDI]
    mov [r13], edi
    mov [r13 + 8], esi
    mov [r13 + 12], edx
    mov [r13 + 16], ecx
    mov [r13 + 20], r8d
    mov [r13 + 24], r9d
    mov dword ptr [r13 + 28], 0 # no result yet
    cmp edi, [rbx + RETURN_CALL]
    je maybe_back
ask_python:
    call qword ptr [rbx + CALL]
    test rax, rax
    js after                    # the handler has set the registers itself
    mov [r12 + R_EAX], eax
    mov [r13 + 4], eax
    mov dword ptr [r13 + 28], 1

after:
    mov rax, [rbx + UPCALL_WORD]
    movzx eax, word ptr [rax]
    test al, al                 # pending?
    je count
    test ah, ah                 # masked? any value but zero is
    jne count
    mov ebp, UPCALL_VECTOR
    cmp dword ptr [rbx + HOLD], 0
    jne by_vector
    mov r12, [rbx + STATE]
    mov eax, ebp
    mov ecx, [r12 + R_HFLAGS]
    and ecx, RING_AND_ADDSEG
    cmp ecx, 3
    je find_upcall
    cmp ecx, 1
    jne by_vector
    add eax, GATES_OF_RING_1
find_upcall:
    mov r13, [rbx + rax*8 + GATES]
    test r13, r13
    je by_vector
    mov ecx, [r13 + WAY_KIND]
    jmp find_frame
count:                          # a handler that can't be fetched traps again, and runs no block
    mov rcx, [rbx + CLOCK]
    dec qword ptr [rcx]
    js stop
    cmp byte ptr [rcx + CLOCK_KICKED], 0
    jne stop
flush:
    mov eax, [rbx + FLUSH_KIND]
    test eax, eax
    jne flush_some
out:
    pop rax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

stop:
    mov rdi, r14
    call qword ptr [rcx + CLOCK_STOP]
    jmp flush

flush_some:
    mov dword ptr [rbx + FLUSH_KIND], 0
    mov rdi, [rbx + CPU]
    cmp eax, 1
    jne flush_all
    mov esi, [rbx + FLUSH_ADDRESS]
    call qword ptr [rbx + FLUSH_PAGE]
    jmp out
flush_all:
    call qword ptr [rbx + FLUSH_ALL]
    jmp out

other:
    cmp esi, 255
    ja default
    mov r12, [rbx + STATE]
    test r12, r12               # none while the engine is being tested
    je by_vector
    mov rax, [rbx + TRAPS_NEXT] # remember: vector, software or not, ring; eip, error code, cr2
    lea rcx, [rax + 1]
    mov [rbx + TRAPS_NEXT], rcx
    and eax, 63
    shl eax, 4
    add rax, [rbx + TRAPS]
    mov ecx, [r12 + R_IS_INT]
    and ecx, 1
    shl ecx, 8
    or ecx, esi
    mov edx, [r12 + R_HFLAGS]
    and edx, 3
    shl edx, 16
    or ecx, edx
    mov [rax], ecx
    mov ecx, [r12 + R_EIP]
    mov [rax + 4], ecx
    mov ecx, [r12 + R_ERROR_CODE]
    mov [rax + 8], ecx
    mov ecx, [r12 + R_CR2]
    mov [rax + 12], ecx
    mov eax, esi
    mov ecx, [r12 + R_HFLAGS]
    and ecx, RING_AND_ADDSEG
    cmp ecx, 3
    je find_way
    cmp ecx, 1
    jne by_vector
    add eax, GATES_OF_RING_1
find_way:
    mov r13, [rbx + rax*8 + GATES]
    test r13, r13
    jne maybe_in
by_vector:
    mov eax, ebp
    mov rax, [rbx + rax*8 + HANDLERS]
handle:
    mov rdi, r14
    mov esi, ebp
    mov rdx, rbx
    call rax
    cmp ebp, UPCALL_VECTOR      # which may have been declined: once is enough
    je count
    jmp after
default:
    cmp esi, NO_VECTOR
    je after
    xor ebp, ebp                # the vector is in esi alone: no number of ours
    mov rax, [rbx + DEFAULT]
    mov rdx, rbx
    call rax
    jmp after

maybe_in:                       # r13 = the way
    mov ecx, [r13 + WAY_KIND]
    mov eax, [r12 + R_IS_INT]
    xor eax, ecx
    test eax, IS_SOFTWARE
    jne by_vector
    test ecx, IS_PAGE_FAULT
    je find_frame
    mov eax, [r12 + R_CR2]
    cmp eax, [r13 + WAY_LIMIT]
    jae by_vector
    mov eax, [r12 + R_ERROR_CODE]
    and eax, 7
    cmp eax, 3                  # the kernel wrote what it may not: a page table, perhaps
    je by_vector
find_frame:                     # r8d = esp with the frame, r9 = address of the frame
    mov r8d, [r13 + WAY_ESP]
    mov r9, [r13 + WAY_FRAME]
    test ecx, IS_SAME_RING
    je check_frame
    mov eax, [r12 + R_CS]
    cmp eax, [r13 + WAY_CS]
    jne by_vector
    mov edx, [r12 + R_ESP]
    sub edx, [r13 + WAY_SIZE]
    mov eax, edx
    shr eax, 12
    cmp eax, r8d
    jne by_vector
    mov r8d, edx
    and edx, 0xfff
    add r9, rdx
    add edx, [r13 + WAY_SIZE]
    cmp edx, 0x1000
    ja by_vector
check_frame:
    mov rcx, [r13 + WAY_ENTRY_AT]
    mov rax, [rcx]
    cmp rax, [r13 + WAY_ENTRY]
    jne by_vector
    mov edx, [rbx + SLOT]       # what others may have translated is Python's
    mov rcx, [r13 + WAY_CODE]
    movzx eax, byte ptr [rcx]
    test eax, eax
    je check_info
    cmp eax, edx
    jne by_vector
check_info:
    mov rcx, [r13 + WAY_INFO_CODE]
    movzx eax, byte ptr [rcx]
    test eax, eax
    je check_flags
    cmp eax, edx
    jne by_vector
check_flags:
    push r8
    push r9
    mov rdi, r12
    call qword ptr [rbx + READ_EFLAGS]
    pop r9
    pop r8
    test eax, CLEARED_ON_ENTRY
    jne by_vector

    mov r15, r9
    mov r10d, [r13 + WAY_KIND]
    and eax, PUSHED
    mov rdx, [rbx + UPCALL_WORD]
    movzx ecx, byte ptr [rdx + 1]
    test ecx, ecx
    jne masked
    or eax, FLAG_IF             # says that the mask byte was 0
masked:
    shl ecx, 16
    or ecx, [r12 + R_CS]
    test r10d, MASKS_EVENTS
    je push_prefix
    or byte ptr [rdx + 1], 1
push_prefix:
    test r10d, IS_PAGE_FAULT
    je push_error_code
    mov esi, [r12 + R_CR2]
    mov rdx, [r13 + WAY_CR2]
    mov [rdx], esi
    test r10d, HAS_ADDRESS
    je push_error_code
    mov [r9], esi
    add r9, 4
push_error_code:
    test r10d, HAS_ERROR_CODE
    je push_frame
    mov esi, [r12 + R_ERROR_CODE]
    mov [r9], esi
    add r9, 4
push_frame:
    mov [r9 + 4], ecx
    mov [r9 + 8], eax
    mov eax, [r12 + R_EIP]
    mov [r9], eax
    mov ecx, [r12 + R_ESP]
    mov [r12 + R_ESP], r8d
    mov eax, [r13 + WAY_TARGET]
    mov [r12 + R_EIP], eax
    test r10d, IS_SAME_RING
    jne forget_frame
    mov [r9 + 12], ecx
    mov eax, [r12 + R_SS]
    mov [r9 + 16], eax
    call load_segments_of_way
forget_frame:                   # what was translated of what has been written
    mov rcx, [r13 + WAY_CODE]
    cmp byte ptr [rcx], 0
    je forget_info
    mov rdi, r14
    mov rsi, r15
    sub rsi, [rbx + MEMORY]
    mov edx, [r13 + WAY_SIZE]
    add rdx, rsi
    call qword ptr [rbx + INVALIDATE]
forget_info:
    mov rcx, [r13 + WAY_INFO_CODE]
    cmp byte ptr [rcx], 0
    je after
    mov rdi, r14
    mov rsi, [rbx + UPCALL_WORD]
    sub rsi, [rbx + MEMORY]
    lea rdx, [rsi + SIZEOF_INFO]
    call qword ptr [rbx + INVALIDATE]
    jmp after

load_segments_of_way:
    mov eax, [r12 + R_HFLAGS]
    and eax, NOT_SEGMENTS
    or eax, [r13 + WAY_HFLAGS]
    mov [r12 + R_HFLAGS], eax
    movups xmm0, [r13 + WAY_CS_AND_SS]
    movups xmm1, [r13 + WAY_CS_AND_SS + 16]
    movups xmm2, [r13 + WAY_CS_AND_SS + 32]
    movups [r12 + R_CS], xmm0
    movups [r12 + R_CS + 16], xmm1
    movups [r12 + R_CS + 32], xmm2
    ret

maybe_back:                     # the arguments of CALL are in their registers: they are kept
    test dword ptr [r12 + R_HFLAGS], 0x40 # a base in use
    jne ask_python
    test dword ptr [r12 + R_EFLAGS], FLAG_TF # the instruction may be under observation
    jne ask_python
    mov rax, [rbx + RETURN_INSIDE]
    test rax, rax
    je maybe_back_to_ring_3
    mov r10d, [r12 + R_ESP]
    mov r11d, r10d
    shr r10d, 12
    cmp r10d, [rax + WAY_ESP]
    jne maybe_back_to_ring_3
    and r11d, 0xfff
    cmp r11d, LAST_INNER_FRAME
    ja ask_python
    add r11, [rax + WAY_FRAME]  # eax, eip, cs, eflags
    movzx r10d, word ptr [r11 + 8]
    cmp r10d, [rax + WAY_CS]
    jne maybe_back_to_ring_3
    cmp r10d, [r12 + R_CS]      # then nothing is loaded
    jne ask_python
    test dword ptr [r11 + 12], NOT_PLAIN
    jne ask_python
    mov r10, [rax + WAY_ENTRY_AT]
    mov r10, [r10]
    cmp r10, [rax + WAY_ENTRY]
    jne ask_python
    mov r10, [rax + WAY_INFO_CODE]
    movzx r10d, byte ptr [r10]
    test r10d, r10d
    je back_inside
    cmp r10d, [rbx + SLOT]
    jne ask_python
back_inside:
    mov r13, rax
    add dword ptr [r12 + R_ESP], INNER_FRAME
    call restore_of_frame
    jmp forget_info

maybe_back_to_ring_3:
    mov rax, [rbx + RETURN]
    test rax, rax
    je ask_python
    mov r10d, [r12 + R_ESP]
    cmp r10d, [rax + WAY_ESP]
    jne ask_python
    mov r10, [rax + WAY_ENTRY_AT]
    mov r10, [r10]
    cmp r10, [rax + WAY_ENTRY]
    jne ask_python
    mov r10, [rax + WAY_INFO_CODE]
    movzx r10d, byte ptr [r10]
    test r10d, r10d
    je check_frame_back
    cmp r10d, [rbx + SLOT]
    jne ask_python
check_frame_back:
    mov r11, [rax + WAY_FRAME]  # eax, eip, cs, eflags, esp, ss
    movzx r10d, word ptr [r11 + 8]
    cmp r10d, [rax + WAY_CS]
    jne ask_python
    movzx r10d, word ptr [r11 + 20]
    cmp r10d, [rax + WAY_SS]
    jne ask_python
    test dword ptr [r11 + 12], NOT_PLAIN
    jne ask_python
    mov r10d, [r12 + R_DS]
    cmp r10d, [rax + WAY_DS]
    jne ask_python
    mov r10d, [r12 + R_ES]
    cmp r10d, [rax + WAY_ES]
    jne ask_python
    mov r10d, [r12 + R_FS]
    cmp r10d, [rax + WAY_FS]
    jne ask_python
    mov r10d, [r12 + R_GS]
    cmp r10d, [rax + WAY_GS]
    jne ask_python

    mov r13, rax
    mov eax, [r11 + 16]
    mov [r12 + R_ESP], eax
    call restore_of_frame
    call load_segments_of_way
    jmp forget_info

restore_of_frame:               # r11 = the frame
    mov eax, [r11]
    mov [r12 + R_EAX], eax
    mov eax, [r11 + 4]
    mov [r12 + R_EIP], eax
    mov eax, [r11 + 12]
    mov rcx, [rbx + UPCALL_WORD]
    test eax, FLAG_IF
    sete byte ptr [rcx + 1]
    mov ecx, eax
    and ecx, ARITHMETIC
    mov [r12 + R_CC_SRC], ecx
    mov dword ptr [r12 + R_CC_OP], 1 # the flags stand in CC_SRC
    mov dword ptr [r12 + R_DF], 1
    and eax, KEPT_IN_WORD
    or eax, ALWAYS_SET
    mov [r12 + R_EFLAGS], eax
    ret
