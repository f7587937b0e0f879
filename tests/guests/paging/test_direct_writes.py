# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct stores to page tables (vm_assist type 2): every form of store, and what is refused.

A store that is let through has happened as on hardware: flags, registers and memory. One that is
not is a page fault with its address, and nothing has changed.
"""

from __future__ import annotations

import pytest

from tests.support.paging_guest import Outcome, lab, notes_of, run_guest
from xenlite.machine.cpu import Mode
from xenlite.machine.trap import EIP
from xenlite.machine.x86_32p import PF_PRESENT, PF_WRITE

# The entry that is written maps FREE; [there] is its address in the boot tables.
ASSIST = """
    .equ there, FREE
    CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
    NOTE
    mov dword ptr [FREE], 0x11
    mov dword ptr [FREE + PAGE], 0x22
    SLOT_VA edi, FREE
    ENTRY eax, FREE + PAGE, RW
    mov [word], eax
    mov dword ptr [word + 4], 0
"""
SEE = """
    EXTENDED MMUEXT_INVLPG_LOCAL, FREE
    NOTE [FREE]
"""

# What each does to the entry of FREE, at [edi]; eax and [word] are an entry for FREE + PAGE.
STORES = {
    "mov": "mov [edi], eax",
    "mov with displacement": "lea ecx, [edi - 64]\n mov [ecx + 64], eax",
    "mov immediate or": "mov dword ptr [edi], 0\n or [edi], eax",
    "upper half first": "mov dword ptr [edi + 4], 0\n mov [edi], eax",
    "lower half first": "mov [edi], eax\n mov dword ptr [edi + 4], 0",
    "xchg": "xchg [edi], eax",
    "cmpxchg": "mov ecx, eax\n mov eax, [edi]\n lock cmpxchg [edi], ecx",
    "cmpxchg8b": """
        mov ebx, eax
        xor ecx, ecx
        mov eax, [edi]
        mov edx, [edi + 4]
        lock cmpxchg8b [edi]
    """,
    "movq": "movq xmm0, qword ptr [word]\n movq qword ptr [edi], xmm0",
    "movd": "movd xmm0, eax\n movd dword ptr [edi], xmm0",
    "mmx": "movq mm0, qword ptr [word]\n movq qword ptr [edi], mm0\n emms",
    "fpu": "fild qword ptr [word]\n fistp qword ptr [edi]",
    "stosd": "push edi\n stosd\n pop edi",
    "rep stosd": "push edi\n mov ecx, 1\n rep stosd\n pop edi",
    "rep movsd": "push edi\n mov esi, offset word\n mov ecx, 2\n rep movsd\n pop edi",
    "add": "mov ecx, eax\n sub ecx, [edi]\n add [edi], ecx",
    "lock xadd": "mov ecx, eax\n sub ecx, [edi]\n lock xadd [edi], ecx",
    "pop": "push eax\n pop dword ptr [edi]",
    "push": "mov ecx, esp\n lea esp, [edi + 4]\n push eax\n mov esp, ecx",
    "bytes": """
        mov dword ptr [edi], 0
        mov ecx, eax
        and ecx, 0xFFFFFF00
        or [edi], ecx
        mov [edi], al
    """,
    "pmovmskb free": "movd xmm1, eax\n movss dword ptr [edi], xmm1",
}


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_store_in_any_form_changes_the_entry(store: str) -> None:
    notes = notes_of(f"{ASSIST} {store} \n SLOT_VA edi, FREE\n NOTE [edi + 4]\n {SEE}")
    assert notes == [0, 0, 0x22]


@pytest.mark.parametrize("mode", ["live", "copied"])
def test_stores_work_in_both_ways_to_run(mode: Mode) -> None:
    notes = notes_of(f"{ASSIST} mov [edi], eax\n {SEE}", mode=mode)
    assert notes == [0, 0x22]


@pytest.mark.parametrize(
    ("store", "flags"),
    [
        ("lock btr dword ptr [edi], 1", 1),  # RW was set: CF
        ("lock bts dword ptr [edi], 1", 1),
        ("lock btc dword ptr [edi], 1", 1),
        ("lock btr dword ptr [edi], 9", 0),
        ("lock and dword ptr [edi], 0xFFFFFFFD", 0),
        ("lock dec dword ptr [edi]\n lock inc dword ptr [edi]", 0),
        ("lock cmpxchg [edi], ecx", 1),
    ],
)
def test_an_update_in_place_gives_its_flags(store: str, flags: int) -> None:
    """The result of the instruction itself, not that of the copy it was emulated on."""
    notes = notes_of(f"""
        {ASSIST}
        xor eax, eax
        mov ecx, 0
        clc
        {store}
        setc al
        movzx eax, al
        NOTE
    """)
    assert notes == [0, flags]


def test_a_right_taken_by_a_store_is_gone_after_a_flush() -> None:
    notes = notes_of(f"""
        {ASSIST}
        lock btr dword ptr [edi], 1
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        TRY
        mov dword ptr [FREE], 1
        CAUGHT
        SLOT_VA edi, FREE
        lock bts dword ptr [edi], 1
        TRY
        mov dword ptr [FREE], 1
        CAUGHT
    """)
    assert notes == [0, 1, 0]


def test_a_block_of_entries_is_cleared_and_set() -> None:
    """rep stosd faults once for each entry, and goes on where it was."""
    notes = notes_of(f"""
        {ASSIST}
        xor eax, eax
        mov ecx, 16 * 2
        rep stosd
        NOTE ecx
        .irp page, 0, 15, 16
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE + \\page * PAGE
        TRY
        mov eax, [FREE + \\page * PAGE]
        CAUGHT
        .endr
    """)
    assert notes == [0, 0, 1, 1, 0]


def test_a_block_is_copied_from_a_plain_page() -> None:
    notes = notes_of(f"""
        {ASSIST}
        mov esi, offset image
        .irp page, 3, 2, 1
        ENTRY eax, FREE + \\page * PAGE, RW
        mov [esi], eax
        add esi, 8
        mov dword ptr [FREE + \\page * PAGE], \\page
        .endr
        mov esi, offset image
        mov ecx, 6
        rep movsd
        EXTENDED MMUEXT_TLB_FLUSH_LOCAL
        NOTE [FREE]
        NOTE [FREE + PAGE]
        NOTE [FREE + 2 * PAGE]
        ret
        .data
        image: .fill 6, 4, 0
        .text
    """)
    assert notes == [0, 3, 2, 1]


def test_the_processors_own_bits_are_not_lost() -> None:
    """A store to one entry while another, in the same table, is used and marked."""
    notes = notes_of(f"""
        {ASSIST}
        RIGHTS FREE + 2 * PAGE, _PAGE_PRESENT | _PAGE_RW
        SLOT_VA edi, FREE
        mov eax, [word]
        mov ebp, FREE + 2 * PAGE
        mov esi, ebp
        mov [edi], eax
        mov dword ptr [ebp], 1
        SLOT_VA eax, FREE + 2 * PAGE
        mov eax, [eax]
        and eax, ACCESSED | DIRTY
        NOTE
    """)
    assert notes == [0, 0x60]


def test_an_l2_is_written_directly_too() -> None:
    notes = notes_of(f"""
        {ASSIST}
        ENTRY eax, FREE + 2 * PAGE, RW
        mov [FREE + PAGE], eax
        mov dword ptr [FREE + 2 * PAGE], 0x33
        RIGHTS FREE + PAGE, RO
        mov edi, [tables]
        add edi, PAGE + (EMPTY - VIRT_BASE) / 0x200000 * 8
        ENTRY eax, FREE + PAGE, TABLE
        mov [edi], eax
        NOTE [EMPTY]
        mov dword ptr [edi], 0
        EXTENDED MMUEXT_INVLPG_LOCAL, EMPTY
        TRY
        mov eax, [EMPTY]
        CAUGHT
        RIGHTS FREE + PAGE, RW
        NOTE
    """)
    assert notes == [0, 0x33, 1, 0]


# Stores that would be wrong, each at [edi], the entry of FREE. eax is free to use.
WRONG = {
    "a table writable": "TABLE_MFN eax, 3\n shl eax, 12\n or eax, RW\n TRY\n mov [edi], eax",
    "a foreign frame": "TRY\n mov dword ptr [edi], RW",
    "a free frame": "TRY\n mov dword ptr [edi], (6143 << 12) | RW",
    "no frame": "TRY\n mov dword ptr [edi], 0xFFFFF000 | RW",
    "a forbidden bit": "ENTRY eax, FREE, RW | 0x80\n TRY\n mov [edi], eax",
    "another low half with a bad upper one": """
        TRY
        mov dword ptr [edi + 4], 0x100
        CAUGHT
        ENTRY eax, FREE + PAGE, RW
        TRY
        mov [edi], eax
    """,
    "a cmpxchg8b": """
        mov eax, [edi]
        mov edx, [edi + 4]
        mov ebx, RW
        xor ecx, ecx
        TRY
        lock cmpxchg8b [edi]
    """,
    "rep movsd": """
        mov esi, offset bad
        mov ecx, 2
        TRY
        rep movsd
        .data
        bad: .long RW, 0
        .text
    """,
    "across two entries": "TRY\n mov [edi + 6], eax",
    "across two tables": "TRY\n mov [edi - 2], eax",
    "across two tables, 64 bits": "movd xmm0, eax\n TRY\n movq qword ptr [edi - 4], xmm0",
    "an sse store of two entries": "movups xmm0, [FREE]\n TRY\n movups [edi], xmm0",
    "fxsave": "and edi, 0xFFFFFFF0\n TRY\n fxsave [edi]",
}


def refused(source: str, assist: str = ASSIST) -> Outcome:
    return run_guest(f"""
        {assist}
        {source}
        CAUGHT
        NOTE [fault_address]
        NOTE [fault_error]
        # Neither the table nor the guest's way to its page has changed.
        EXTENDED MMUEXT_TLB_FLUSH_LOCAL
        mov dword ptr [FREE], 0x55
        NOTE [FREE]
        NOTE [FREE + PAGE]
    """)


@pytest.mark.parametrize("name", [name for name in WRONG if "upper" not in name])
def test_a_store_that_is_wrong_is_a_page_fault(name: str) -> None:
    result = refused(WRONG[name])
    assert result.reason == 0, result
    slot = 0xC0000000  # within the boot tables, wherever those are
    enabled, faults, address, error, free, other = result.notes
    assert (enabled, faults, error, free, other) == (0, 1, 3, 0x55, 0x22)
    assert slot < address & 0xFFFFFFFF < slot + 0x100000


def test_a_store_across_a_table_and_a_plain_page_leaves_no_bad_entry() -> None:
    """Behind the boot tables lies the boot stack. The entry's upper bytes go bad: not present."""
    notes = notes_of(f"""
        {ASSIST}
        SLOT_VA edi, FREE + 511 * PAGE
        mov eax, 0x12341FFF
        TRY
        mov [edi + 6], eax
        CAUGHT
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE + 511 * PAGE
        SLOT_VA edi, FREE + 511 * PAGE
        mov eax, [edi]
        and eax, _PAGE_PRESENT
        NOTE
        NOTE [edi + 4]
        NOTE [edi + 8]
    """)
    assert notes == [0, 0, 0, 0x1FFF0000, 0x1234]


def test_half_of_an_entry_at_a_time_is_never_a_bad_entry() -> None:
    """The upper half of a present entry goes bad: it is not present until the lower is written."""
    notes = notes_of(f"""
        {ASSIST}
        TRY
        mov dword ptr [edi + 4], 0x100      # beyond the machine's memory
        CAUGHT
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        SLOT_VA edi, FREE
        mov eax, [edi]
        and eax, _PAGE_PRESENT
        NOTE
        NOTE [edi + 4]
        ENTRY eax, FREE + PAGE, RW
        TRY
        mov [edi], eax                      # with that upper half
        CAUGHT
        mov dword ptr [edi + 4], 0
        ENTRY eax, FREE + PAGE, RW
        mov [edi], eax
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        NOTE [FREE]
    """)
    assert notes == [0, 0, 0, 0x100, 1, 0x22]


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        ("an L3", "mov edi, [tables]"),
        ("an L2's part of the hole", "mov edi, [tables]\n add edi, PAGE + 0x1AC * 8"),
        (
            "a descriptor table",
            """
            RIGHTS FREE + 2 * PAGE, RO
            MFN eax, FREE + 2 * PAGE
            mov [word], eax
            CALL set_gdt, offset word, 512
            mov edi, FREE + 2 * PAGE
            """,
        ),
        ("a plain read-only page", "RIGHTS FREE + 2 * PAGE, RO\n mov edi, FREE + 2 * PAGE"),
        ("the hole", "mov edi, 0xF5800000"),
    ],
)
def test_only_l1s_and_l2s_are_written_directly(name: str, prepare: str) -> None:
    notes = notes_of(f"""
        {ASSIST}
        {prepare}
        mov ebp, [edi]
        TRY
        mov dword ptr [edi], 0x1234
        CAUGHT
        sub ebp, [edi]
        NOTE ebp
        NOTE [fault_address]
        sub edi, [fault_address]
        NOTE edi
    """)
    assert (notes[0], notes[1], notes[2], notes[4]) == (0, 1, 0, 0), name


def test_without_the_assist_a_store_is_a_page_fault() -> None:
    notes = notes_of("""
        SLOT_VA edi, FREE
        TRY
        mov dword ptr [edi], 0
        CAUGHT
        CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
        SLOT_VA edi, FREE
        mov dword ptr [edi], 0
        CALL vm_assist, VMASST_CMD_disable, VMASST_TYPE_writable_pagetables
        SLOT_VA edi, FREE
        TRY
        mov dword ptr [edi], 0
        CAUGHT
    """)
    assert notes == [1, 1]


def test_ring_3_writes_no_page_table() -> None:
    """Its store is a fault with the user bit, even where the entry lets ring 3 read the table."""
    notes = notes_of(f"""
        {ASSIST}
        TABLE_MFN eax, 3
        shl eax, 12
        or eax, RO | _PAGE_USER
        MAP FREE + 2 * PAGE, eax
        NOTE
        RIGHTS FREE + 3 * PAGE, RW | _PAGE_USER
        mov dword ptr [FREE + 3 * PAGE], 0x00000DC7  # mov dword ptr [FREE + 2 * PAGE], 0
        mov byte ptr [FREE + 3 * PAGE + 1], 0x05
        mov dword ptr [FREE + 3 * PAGE + 2], FREE + 2 * PAGE
        mov dword ptr [FREE + 3 * PAGE + 6], 0
        CALL stack_switch, FLAT_RING1_SS, kernel_stack_top
        TRY
        push FLAT_RING3_SS
        push user_stack_top
        push EFLAGS_IF
        push FLAT_RING3_CS
        push FREE + 3 * PAGE
        iretd
        CAUGHT
        NOTE [fault_error]
        NOTE [FREE]
    """)
    assert notes == [0, 0, 1, 7, 0x11]


def test_the_flags_of_a_guest_that_steps_itself_survive() -> None:
    """Its own trap flag still traps after the store, and stays clear where it was clear."""
    notes = notes_of(f"""
        {ASSIST}
        CALL set_trap_table, offset debug_gates
        SLOT_VA edi, FREE
        mov eax, [word]
        pushfd
        or dword ptr [esp], 0x100
        popfd
        mov [edi], eax
        nop
        pushfd
        and dword ptr [esp], ~0x100 & 0xFFFFFFFF
        popfd
        NOTE [steps]
        mov dword ptr [steps], 0
        SLOT_VA edi, FREE
        xor eax, eax
        mov [edi], eax
        pushfd
        pop eax
        and eax, 0x100
        NOTE
        NOTE [steps]
        ret
    stepped:
        inc dword ptr [steps]
        iretd
        .data
        steps: .long 0
        debug_gates:
            GATE 1, 0, stepped
            GATES_END
        .text
    """)
    # Behind mov, nop, pushfd, and, popfd: the flag traps once more after it was cleared.
    assert notes == [0, 5, 0, 0]


@pytest.mark.parametrize("code", ["int3", "ud2", "hlt", "cpuid", "int 0x80", "int 0x82"])
def test_what_follows_a_store_traps_as_ever(code: str) -> None:
    """An instruction of another kind right behind the store: the step ends before it."""
    notes = notes_of(f"""
        {ASSIST}
        CALL set_trap_table, offset more_gates
        SLOT_VA edi, FREE
        mov eax, [word]
        TRY
        mov [edi], eax
        mov eax, HYPERVISOR_xen_version
        mov ebx, XENVER_version
        {code}
        CAUGHT
        {SEE}
        ret
    caught_bare:
        inc dword ptr [faults]
        jmp dword ptr [on_fault]
        .data
        more_gates:
            GATE 3, 3, caught_bare
            GATE 6, 0, caught_bare
            GATE 0x80, 3, caught_bare
            GATES_END
        .text
    """)
    assert notes[-1] == 0x22


def test_a_store_through_the_entry_that_it_changes() -> None:
    """The table is mapped at FREE by an entry of its own, and the store unmaps it there."""
    notes = notes_of(f"""
        {ASSIST}
        TABLE_MFN eax, 3
        shl eax, 12
        or eax, RO
        MAP FREE, eax
        NOTE
        mov dword ptr [FREE], 0
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        TRY
        mov eax, [FREE]
        CAUGHT
        RIGHTS FREE, RW
        NOTE
        NOTE [FREE]
    """)
    assert notes == [0, 0, 1, 0, 0x11]


@pytest.mark.parametrize("call", ["int HYPERCALL_VECTOR", "int 0x80", "mov dword ptr [edi], 0"])
def test_an_event_waits_until_the_store_is_done(call: str) -> None:
    """The guest makes an event pending, unmasks it, and stores: the callback must not run inside.

    There it could reach the entry that leads to the hypervisor's copy of the table, and change it.
    """
    notes = notes_of(f"""
        {ASSIST}
        CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
        CALL set_trap_table, offset call_gates
        SLOT_VA ebx, FREE
        mov edi, ebx
        xor ecx, ecx
        xor edx, edx
        xor esi, esi
        mov eax, HYPERVISOR_update_va_mapping
        mov byte ptr [upcall_pending], 1
        mov byte ptr [upcall_mask], 0
        mov dword ptr [edi], 0
        NOTE [events]
        # What the callback did at the table's own address was refused or done, but not inside.
        EXTENDED MMUEXT_TLB_FLUSH_LOCAL
        TRY
        mov eax, [FREE]
        CAUGHT
        NOTE [flags]
        ret
    event:
        {call}
        inc dword ptr [events]
        mov byte ptr [upcall_pending], 0
        mov eax, [esp + 8]
        and eax, 0x100
        mov [flags], eax
        iretd
    called:
        iretd
        .equ upcall_pending, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_PENDING
        .equ upcall_mask, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
        .data
        events: .long 0
        flags: .long 1
        call_gates:
            GATE 0x80, 3, called
            GATES_END
        .text
    """)
    assert notes == [0, 1, 1, 0]


WARM = """
    # The same fault often enough for any short way to the handler to be found.
    mov edi, 8
warm:
    mov dword ptr [on_fault], offset warmed
    mov dword ptr [EMPTY], 1
warmed:
    mov esp, [try_esp]
    dec edi
    jnz warm
    mov dword ptr [on_fault], offset stray_fault
    SLOT_VA edi, FREE
    mov eax, [word]
"""


def test_a_store_is_emulated_however_often_the_guest_has_faulted() -> None:
    notes = notes_of(f"""
        {ASSIST}
        mov [try_esp], esp
        {WARM}
        mov [edi], eax
        {SEE}
        # In the middle of a store, a fault of its other operand is still the guest's.
        ENTRY eax, FREE, RW
        SLOT_VA edi, FREE
        mov [edi], eax
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        SLOT_VA edi, FREE
        TRY
        mov [edi - 2], eax
        CAUGHT
        TRY
        push esp
        pop dword ptr [EMPTY]
        CAUGHT
        mov dword ptr [FREE], 0x44
        NOTE [FREE]
        NOTE [FREE + PAGE]
    """)
    assert notes == [0, 0x22, 1, 1, 0x44, 0x22]


def test_repeated_stores_to_refused_and_granted_entries_alternate() -> None:
    notes = notes_of(f"""
        {ASSIST}
        mov ebp, 20
    again:
        SLOT_VA edi, FREE
        mov eax, [word]
        mov [edi], eax
        TRY
        mov dword ptr [edi], RW             # a frame of the hypervisor's
        CAUGHT
        dec ebp
        jnz again
        {SEE}
    """)
    assert notes == [0, *[1] * 20, 0x22]


def test_a_fault_in_the_middle_of_a_store_is_the_guests() -> None:
    """fxsave over the end of a table: its first stores are emulated, the next page is not there."""
    notes = notes_of(f"""
        {ASSIST}
        mov [try_esp], esp
        {WARM}
        .equ NEW, FREE + 10 * PAGE
        RIGHTS NEW, RO
        MFN eax, NEW
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        MAP NEW + PAGE, 0
        .rept 3
        TRY
        fxsave [NEW + PAGE - 256]
        CAUGHT
        NOTE [fault_error]
        .endr
        # Nothing of it has happened, and the table is written as ever.
        mov esi, NEW
        mov ecx, PAGE / 4
        xor ebp, ebp
    look:
        lodsd
        or ebp, eax
        dec ecx
        jnz look
        NOTE ebp
        mov dword ptr [NEW + 8], 0x1234000
        NOTE [NEW + 8]
        MFN eax, NEW
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        RIGHTS NEW, RW
        NOTE
    """)
    assert notes == [0, 0, *[1, 2] * 3, 0, 0x1234000, 0]


@pytest.mark.parametrize("code", ["int HYPERCALL_VECTOR", "int 0x80", "ud2", "hlt", "in al, 0x80"])
def test_no_other_instruction_runs_in_a_store_s_place(code: str) -> None:
    """Code can change under a stale translation between the fault of a store and its step.

    Then the step meets whatever there is now: it is given up first, and that runs on its own.
    """
    with lab() as made:
        guest = made.add(f"""
            CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
            CALL set_trap_table, offset other_gates
        ready:
            inc dword ptr [rounds]
            CALL sched_op, SCHEDOP_yield
            jmp ready
        other:
            {code}
            jmp ready
        passed:
            add esp, 12
            jmp ready
        passed_code:
            add esp, 16
            jmp ready
            .data
            .p2align 2
            rounds: .long 0
            other_gates:
                GATE 6, 0, passed
                GATE 13, 0, passed_code
                GATE 0x80, 1, passed
                GATES_END
            .text
        """)
        assert guest.run(until=lambda: guest.word("rounds") > 0)
        engine, memory = guest.domain.engine, made.hypervisor.machine.memory
        page_writes = made.hypervisor._guests[guest.domid].parts.page_writes
        l1 = guest.built.layout.vaddr(guest.built.layout.l3 + 3)
        slot = guest.domain.paging.slot_of(l1)
        assert slot is not None
        before = memory.m64[slot]
        engine.regs[EIP] = guest.symbols["other"]
        assert page_writes.begin(l1, PF_PRESENT | PF_WRITE)
        assert memory.m64[slot] != before
        rounds = guest.word("rounds")
        assert guest.run(until=lambda: guest.word("rounds") > rounds + 2)
        assert not page_writes.is_stepping
        assert memory.m64[slot] == before
