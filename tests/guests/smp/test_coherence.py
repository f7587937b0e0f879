# SPDX-License-Identifier: GPL-2.0-or-later
"""Several vCPUs on one memory: locks hold, code that one changes is what the others run."""

from __future__ import annotations

import pytest

from tests.support.guest import START, boot
from tests.support.guests import SMP

ROUNDS = 20_000


def four(text: str) -> str:
    """Write a kernel whose four vCPUs all go to ``worker`` with their number in ebp."""
    starts = "".join(f"    START_VCPU {n}, entry{n}, stack{n}_top\n" for n in (1, 2, 3))
    entries = "".join(f"entry{n}:\n    mov ebp, {n}\n    jmp worker\n" for n in (1, 2, 3))
    return (
        SMP
        + START
        + "MAP_SHARED_INFO\n"
        + starts
        + "    xor ebp, ebp\n    jmp worker\n"
        + entries
        + text
        + """
    # Each comes here at its end; the first one waits for all.
    leave:
        lock inc dword ptr [ended]
        test ebp, ebp
        jz wait_for_all
    idle:
        SCHED_OP block
        jmp idle
    wait_for_all:
        cmp dword ptr [ended], 4
        je all_ended
        SCHED_OP yield
        jmp wait_for_all
    all_ended:
        FINISH 7
    .data
    ended: .long 0
    .p2align 12
    counter: .long 0
    lock_word: .long 0
    .fill 1022, 4, 0
    """
    )


INCREMENTS = {
    "lock xadd": """
        mov eax, 1
        lock xadd [counter], eax
    """,
    "lock inc": """
        lock inc dword ptr [counter]
    """,
    "lock cmpxchg": """
    try:
        mov eax, [counter]
        lea ecx, [eax + 1]
        lock cmpxchg [counter], ecx
        jne try
    """,
    "a spin lock that spins": """
    take:
        mov eax, 1
        xchg eax, [lock_word]
        test eax, eax
        jz taken
        pause
        jmp take
    taken:
        mov eax, [counter]
        inc eax
        jmp behind
    behind:
        mov [counter], eax
        mov dword ptr [lock_word], 0
    """,
    "a spin lock that yields": """
    take:
        mov eax, 1
        xchg eax, [lock_word]
        test eax, eax
        jz taken
        SCHED_OP yield
        jmp take
    taken:
        mov eax, [counter]
        inc eax
        jmp behind
    behind:
        mov [counter], eax
        mov dword ptr [lock_word], 0
    """,
}


@pytest.mark.parametrize("how", INCREMENTS)
def test_no_increment_is_lost(how: str) -> None:
    text = f"""
    worker:
        mov edi, {ROUNDS}
    again:
        {INCREMENTS[how]}
        dec edi
        jnz again
        jmp leave
    """
    with boot(four(text), vcpus=4, seconds=60.0) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("counter") == 4 * ROUNDS


# vCPU 1 writes a function again and again, each time with another number in it, and lets the
# others call it; they answer what they were told.
REWRITTEN = """
worker:
    test ebp, ebp
    jnz caller
    # the page is code to everybody, and stays writable
    mov edi, 1
rewrite:
    mov [function + 1], edi
    mov dword ptr [answers], 0
    mov [turn], edi
settled:
    SCHED_OP yield
    cmp dword ptr [answers], 3
    jne settled
    inc edi
    cmp edi, 40
    jne rewrite
    mov dword ptr [turn], 0xFFFFFFFF
    jmp leave
caller:
    xor edi, edi
next_turn:
    SCHED_OP yield
    mov eax, [turn]
    cmp eax, 0xFFFFFFFF
    je leave
    cmp eax, edi
    je next_turn
    mov edi, eax
    call function
    cmp eax, edi
    je right
    inc dword ptr [counter]
right:
    lock inc dword ptr [answers]
    jmp next_turn
.data
turn: .long 0
answers: .long 0
.text
.p2align 12
function:
    mov eax, 0
    ret
.p2align 12
"""


def test_code_that_one_vcpu_changes_is_what_the_others_run() -> None:
    with boot(four(REWRITTEN), vcpus=4, seconds=60.0) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("counter") == 0, "calls that ran what was there before"


# The function's address is given another frame each time, holding another number: by PTE.
REMAPPED = """
worker:
    test ebp, ebp
    jnz caller
    mov edi, 1
remap_next:
    push edi
    and edi, 1
    shl edi, 12
    mov eax, [p2m]
    lea ebx, [function_a + edi]
    sub ebx, VIRT_BASE
    shr ebx, 12
    mov ecx, [eax + ebx * 4]
    mov edx, ecx
    shl ecx, 12
    shr edx, 20
    or ecx, PTE_RO_DATA
    mov ebx, offset window
    {flush}
    XEN update_va_mapping
    test eax, eax
    jnz failed
    pop edi
    mov dword ptr [answers], 0
    mov [turn], edi
settled:
    SCHED_OP yield
    cmp dword ptr [answers], 3
    jne settled
    inc edi
    cmp edi, 40
    jne remap_next
    mov dword ptr [turn], 0xFFFFFFFF
    jmp leave
caller:
    xor edi, edi
next_turn:
    SCHED_OP yield
    mov eax, [turn]
    cmp eax, 0xFFFFFFFF
    je leave
    cmp eax, edi
    je next_turn
    mov edi, eax
    call window
    mov ecx, edi
    and ecx, 1
    cmp eax, ecx
    je right
    inc dword ptr [counter]
right:
    lock inc dword ptr [answers]
    jmp next_turn
.data
turn: .long 0
answers: .long 0
.text
.p2align 12
function_a:
    mov eax, 0
    ret
.p2align 12
function_b:
    mov eax, 1
    ret
.p2align 12
window:
    mov eax, 77
    ret
.p2align 12
"""


@pytest.mark.parametrize(
    "flush",
    [
        "mov esi, UVMF_INVLPG | UVMF_ALL",
        "mov esi, UVMF_TLB_FLUSH | UVMF_ALL",
        "mov esi, offset everybody\nor esi, UVMF_INVLPG",
        "mov esi, offset everybody\nor esi, UVMF_TLB_FLUSH",
    ],
)
def test_a_page_that_one_vcpu_remaps_is_remapped_for_all(flush: str) -> None:
    text = REMAPPED.replace("{flush}", flush) + "\n.data\n.p2align 2\neverybody: .long 15\n.text\n"
    with boot(four(text), vcpus=4, seconds=60.0) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("counter") == 0, "calls that ran what was mapped before"


# Each vCPU keeps numbers of its own in every register that a switch must carry over.
OWN_STATE = """
worker:
    mov edi, 300
    mov eax, ebp
    shl eax, 16
    or eax, 0x1234
    movd xmm7, eax
    push ebp
    fninit
    fild dword ptr [esp]
    add esp, 4
    test ebp, 1
    jz carry_clear
    stc
    jmp flags_set
carry_clear:
    clc
flags_set:
    pushfd
    pop dword ptr [flags + ebp * 4]
again:
    lea ebx, [ebp * 4 + 3]
    lea esi, [ebp * 4 + 5]
    lea ecx, [ebp * 4 + 7]
    mov edx, ebp
    shl edx, 12
    push edi
    mov edi, 3000
work:
    dec edi
    jnz work
    pop edi
    push dword ptr [flags + ebp * 4]
    popfd
    jmp step
step:
    pushfd
    pop eax
    xor eax, [flags + ebp * 4]
    test eax, 0x8D5
    jnz wrong
    lea eax, [ebp * 4 + 3]
    cmp ebx, eax
    jne wrong
    lea eax, [ebp * 4 + 5]
    cmp esi, eax
    jne wrong
    lea eax, [ebp * 4 + 7]
    cmp ecx, eax
    jne wrong
    mov eax, ebp
    shl eax, 12
    cmp edx, eax
    jne wrong
    movd eax, xmm7
    shr eax, 16
    cmp eax, ebp
    jne wrong
    sub esp, 4
    fist dword ptr [esp]
    pop eax
    cmp eax, ebp
    jne wrong
    dec edi
    jnz again
    jmp leave
wrong:
    inc dword ptr [counter]
    jmp leave
.data
flags: .fill 4, 4, 0
.text
"""


def test_registers_flags_and_fpu_are_each_vcpus_own() -> None:
    with boot(four(OWN_STATE), vcpus=4, seconds=60.0) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("counter") == 0


# The lazy way: TS set on every switch by the kernel would trap; here each vCPU has its own TS.
LAZY = """
worker:
    cmp ebp, 1
    ja leave
    SET_TRAPS traps
    mov edi, 20
again:
    push ebp
    fninit
    fild dword ptr [esp]
    add esp, 4
    test ebp, ebp
    jnz plain
    mov ebx, 1
    XEN fpu_taskswitch
    SCHED_OP yield
    fnop
    jmp checked
plain:
    SCHED_OP yield
    fnop
checked:
    sub esp, 4
    fist dword ptr [esp]
    pop eax
    cmp eax, ebp
    je right
    inc dword ptr [counter]
right:
    dec edi
    jnz again
    jmp leave
nm:
    inc dword ptr [trapped + ebp * 4]
    push eax
    XEN iret
.data
trapped: .fill 4, 4, 0
traps:
    GATE 7, 0, nm
    GATES_END
.text
"""


def test_task_switched_and_its_trap_belong_to_one_vcpu() -> None:
    with boot(four(LAZY), vcpus=4, seconds=60.0) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.words("trapped", 2) == [20, 0]
        assert guest.word("counter") == 0
