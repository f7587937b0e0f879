# SPDX-License-Identifier: GPL-2.0-or-later
"""Long hypercalls from ring 1 (E2): they stop for events, go on where they were, and can die there.

An update of the guest's own shared_info, which is a plain page of its own, makes the event pending
in the middle of a list.
"""

from __future__ import annotations

import pytest

from tests.support.paging_guest import lab, notes_of, outcome
from xenlite.abi.x86_32p import EBUSY, MMU_UPDATE_PREEMPTED

# 65535 updates in 256 pages which all show one frame, [FREE]: 256 that name the same entry.
UPDATES = """
    .equ upcall_pending, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_PENDING
    .equ upcall_mask, shared_info + SHARED_INFO_VCPU_INFO + VCPU_INFO_EVTCHN_UPCALL_MASK
    .macro FILL_UPDATES
    CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
    mov edi, FREE
    mov ecx, 256
    SLOT edx, FREE + 500 * PAGE
fill:
    mov [edi], edx
    add edi, SIZEOF_MMU_UPDATE
    dec ecx
    jnz fill
    mov ebp, 1
map:
    mov ecx, ebp
    shl ecx, 12
    add ecx, FREE
    ENTRY eax, FREE, RW
    MAP ecx, eax
    inc ebp
    cmp ebp, 256
    jne map
    .endm
    # The first update of the first page makes an event pending.
    .macro EVENT_IN_THE_LIST
    ENTRY eax, FREE + 300 * PAGE, RW
    MAP FREE, eax
    mov esi, FREE + PAGE
    mov edi, FREE
    mov ecx, 1024
    rep movsd
    mov eax, [shared_info_maddr]
    mov dword ptr [FREE], eax
    mov dword ptr [FREE + 8], 1             # pending, not masked
    .endm
    .macro EVENT_HANDLER
event:
    NOTE ecx
    NOTE [word]
    mov byte ptr [upcall_pending], 0
    inc dword ptr [events]
    iretd
    .data
events: .long 0
    .text
    .endm
"""


def test_65535_updates_are_done_and_counted() -> None:
    notes = notes_of(
        UPDATES
        + """
        FILL_UPDATES
        CALL mmu_update, FREE, 65535, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        NOTE [events]
        ret
        EVENT_HANDLER
    """
    )
    assert notes == [0, 65535, 0]


def test_an_event_is_taken_in_the_middle_of_a_list() -> None:
    """Its handler sees the call as it goes on: what is left, marked, and what is done."""
    notes = notes_of(
        UPDATES
        + """
        FILL_UPDATES
        EVENT_IN_THE_LIST
        CALL mmu_update, FREE, 65535, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        NOTE [events]
        ret
        EVENT_HANDLER
    """
    )
    left, done, *rest = notes
    left &= 0xFFFFFFFF
    assert left & MMU_UPDATE_PREEMPTED
    assert 0 < done < 5000
    assert (left ^ MMU_UPDATE_PREEMPTED) + done == 65535
    assert rest == [0, 65535, 1]


def test_a_handler_may_do_what_it_likes_to_the_list() -> None:
    """It unmaps the rest: the call fails there, and tells how far it came."""
    notes = notes_of(
        UPDATES
        + """
        FILL_UPDATES
        EVENT_IN_THE_LIST
        CALL mmu_update, FREE, 65535, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        ret
    event:
        pushad
        mov byte ptr [upcall_pending], 0
        MAP FREE + 100 * PAGE, 0
        popad
        iretd
    """
    )
    assert notes == [-14, 100 * 256]


@pytest.mark.parametrize("forged", [0, 5, 0xFFFFFFFF])
def test_a_forged_continuation_only_miscounts(forged: int) -> None:
    """The mark is the guest's to set: it adds what *pdone says, and changes nothing else."""
    notes = notes_of(f"""
        SLOT eax, FREE
        mov [list], eax
        mov dword ptr [word], {forged}
        CALL mmu_update, offset list, 1 | MMU_UPDATE_PREEMPTED, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        mov dword ptr [word], {forged}
        CALL mmuext_op, offset flush, 1 | MMU_UPDATE_PREEMPTED, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        CALL mmu_update, offset list, 1 | MMU_UPDATE_PREEMPTED, 0, DOMID_SELF
        NOTE
        ret
        .data
        list: .quad 0, 0
        flush: .long MMUEXT_TLB_FLUSH_LOCAL, 0, 0
        .text
    """)
    counted = (forged + 1) & 0xFFFFFFFF
    assert notes == [0, counted, 0, counted, 0]


FULL_SPACE = """
    # FREE: an L3 whose first two entries are L2s (FREE + PAGE, FREE + 2 * PAGE), each full of L1s;
    # each L1, from FREE + 4 * PAGE on, serves in many places and maps 512 pages read-only.
    .equ L1S, 64
    .macro MAKE_FULL_SPACE
    .irp table, 2, 3
    TABLE_MFN eax, \\table
    shl eax, 12
    or eax, TABLE
    mov [FREE + 3 * PAGE + (\\table - 2) * 8], eax
    .endr
    .irp page, 1, 2, 3
    ENTRY eax, FREE + \\page * PAGE, _PAGE_PRESENT
    .if \\page < 3
    mov [FREE + (\\page - 1) * 8], eax
    .else
    mov [FREE + 3 * 8], eax
    .endif
    .endr
    mov ebp, 0
fill_l2:
    mov eax, ebp
    and eax, L1S - 1
    mov edx, [p2m]
    mov eax, [edx + eax * 4 + 0x204 * 4]
    shl eax, 12
    or eax, TABLE
    mov [FREE + PAGE + ebp * 8], eax
    mov [FREE + 2 * PAGE + ebp * 8], eax
    inc ebp
    cmp ebp, 512
    jne fill_l2
    mov ebp, 0
fill_l1:
    mov eax, ebp
    and eax, 511
    mov edx, [p2m]
    mov eax, [edx + eax * 4 + 0x200 * 4]
    shl eax, 12
    or eax, RO
    mov [FREE + 4 * PAGE + ebp * 8], eax
    inc ebp
    cmp ebp, L1S * 512
    jne fill_l1
    mov ebp, 0
close:
    mov ecx, ebp
    shl ecx, 12
    add ecx, FREE
    mov edx, [p2m]
    mov eax, [edx + ebp * 4 + 0x200 * 4]
    shl eax, 12
    or eax, RO
    MAP ecx, eax
    inc ebp
    cmp ebp, L1S + 4
    jne close
    .endm
"""


def test_a_full_address_space_is_pinned_and_unpinned() -> None:
    """1024 L2 entries over 64 full L1s: more than one stay, and events come in between."""
    notes = notes_of(
        UPDATES
        + FULL_SPACE
        + """
        CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
        MAKE_FULL_SPACE
        mov byte ptr [upcall_mask], 0
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        NOTE dword ptr [0x100]              # through the new tables
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        .irp page, 0, 1, 2, 3, 4, 67
        RIGHTS FREE + \\page * PAGE, RW
        NOTE
        .endr
        ret
        EVENT_HANDLER
    """
    )
    assert notes[:2] == [0, 0]
    assert notes[3:] == [0] * 8


@pytest.mark.parametrize(
    "load",
    [
        "EXTENDED MMUEXT_NEW_BASEPTR, eax",
        "shl eax, 12\n mov cr3, eax\n xor eax, eax",
    ],
)
def test_a_full_address_space_is_loaded_unpinned(load: str) -> None:
    """By hypercall, and by the instruction that Xen emulates: both go on where they were."""
    notes = notes_of(
        FULL_SPACE
        + f"""
        MAKE_FULL_SPACE
        .rept 2
        MFN eax, FREE
        {load}
        NOTE
        NOTE dword ptr [0x1FF000]
        TABLE_MFN eax, 0
        {load}
        NOTE
        .endr
        RIGHTS FREE, RW
        NOTE
    """
    )
    assert notes == [0, 0, 0] * 2 + [0]


def test_what_a_pin_has_validated_stays_closed_while_it_waits() -> None:
    """The first operation copies a pending event into shared_info; its handler tries the tables."""
    notes = notes_of(
        UPDATES
        + FULL_SPACE
        + """
        CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
        mov dword ptr [FREE + 100 * PAGE + SHARED_INFO_VCPU_INFO], 1
        MAKE_FULL_SPACE
        MFN eax, FREE
        mov [list + 16], eax
        mov eax, [shared_info_maddr]
        shr eax, 12
        mov [list + 4], eax
        MFN eax, FREE + 100 * PAGE
        mov [list + 8], eax
        CALL mmuext_op, offset list, 2, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        MFN eax, FREE
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        RIGHTS FREE + 4 * PAGE, RW
        NOTE
        ret
    event:
        pushad
        mov byte ptr [upcall_pending], 0
        RIGHTS FREE + 4 * PAGE, RW              # an L1 that was validated
        NOTE
        mov edi, FREE + 4 * PAGE
        TRY
        mov dword ptr [edi], 1
        CAUGHT
        # Another operation ends the promotion, and this one can then be written...
        EXTENDED MMUEXT_TLB_FLUSH_LOCAL
        RIGHTS FREE + 101 * PAGE, RO
        MFN eax, FREE + 101 * PAGE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        RIGHTS FREE + 4 * PAGE, RW
        NOTE
        RIGHTS FREE + 4 * PAGE, RO              # ... but not left so: the pin would fail.
        popad
        iretd
        .data
        list:
            .long MMUEXT_COPY_PAGE, 0, 0
            .long MMUEXT_PIN_L3_TABLE, 0, 0
        .text
    """
    )
    assert notes == [-EBUSY, 1, 0, 0, 0, 2, 0, 0]


def test_a_list_of_operations_with_a_pin_in_it_goes_on_after_it() -> None:
    notes = notes_of(
        FULL_SPACE
        + """
        MAKE_FULL_SPACE
        MFN eax, FREE
        mov [list + 4], eax
        mov [list + 16], eax
        mov [list + 28], eax
        mov [list + 40], eax
        mov [list + 52], eax
        CALL mmuext_op, offset list, 5, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        RIGHTS FREE, RW
        NOTE
        ret
        .data
        list:
            .long MMUEXT_PIN_L3_TABLE, 0, 0, MMUEXT_UNPIN_TABLE, 0, 0
            .long MMUEXT_PIN_L3_TABLE, 0, 0, MMUEXT_UNPIN_TABLE, 0, 0
            .long MMUEXT_INVLPG_LOCAL, 0, 0
        .text
    """
    )
    assert notes == [0, 5, 0]


@pytest.mark.parametrize("what", ["list", "pin", "multicall"])
def test_a_domain_may_be_destroyed_in_the_middle(what: str) -> None:
    call = {
        "list": "CALL mmu_update, FREE, 65535, offset word, DOMID_SELF",
        "pin": """
            MFN eax, FREE
            EXTENDED MMUEXT_PIN_L3_TABLE, eax
            MFN eax, FREE
            EXTENDED MMUEXT_UNPIN_TABLE, eax
        """,
        "multicall": "CALL multicall, offset calls, 1",
    }[what]
    prepare = "MAKE_FULL_SPACE" if what == "pin" else "FILL_UPDATES"
    with lab() as made:
        guest = made.add(
            UPDATES
            + FULL_SPACE
            + f"""
            {prepare}
            NOTE 1
        again:
            {call}
            jmp again
            EVENT_HANDLER
            .data
            calls:
                .long HYPERVISOR_mmu_update, 0, FREE, 65535, word, DOMID_SELF, 0, 0
            .text
        """
        )
        hypervisor = made.hypervisor
        assert guest.run(until=lambda: guest.word("note_count") > 0)
        for _ in range(20):
            turns = iter(range(2))
            hypervisor.run(lambda: next(turns, None) is None)  # noqa: B023
            assert made.control.audit() == []


def test_others_have_their_turns_beside_endless_lists() -> None:
    with lab() as made:
        greedy = made.add(
            UPDATES
            + """
            FILL_UPDATES
        again:
            CALL mmu_update, FREE, 65535, offset word, DOMID_SELF
            jmp again
            EVENT_HANDLER
        """
        )
        meek = made.add("""
            mov ebp, 200
        again:
            CALL sched_op, SCHEDOP_yield
            dec ebp
            jnz again
            NOTE 1
        """)
        assert meek.run(5.0)
        assert outcome(meek).notes == [1]
        assert greedy.reason is None


def test_costly_calls_end_a_multicall_soon() -> None:
    """2000 trap tables of 255 entries, or 2000 GDTs of 14 pages, are not one stay: events come."""
    notes = notes_of(
        UPDATES
        + """
        CALL set_callbacks, FLAT_RING1_CS, offset event, FLAT_RING1_CS, offset event
        mov edi, offset table
        mov ecx, 255
    gate:
        mov dword ptr [edi], 0xE0190000
        mov dword ptr [edi + 4], offset claim
        mov byte ptr [edi], 200
        add edi, SIZEOF_TRAP_INFO
        dec ecx
        jnz gate
        mov eax, [shared_info_maddr]
        mov [update], eax
        mov edi, offset calls + SIZEOF_MULTICALL_ENTRY
        mov ecx, 19
    entry:
        mov dword ptr [edi], HYPERVISOR_set_trap_table
        mov dword ptr [edi + MULTICALL_ENTRY_ARGS], offset table
        add edi, SIZEOF_MULTICALL_ENTRY
        dec ecx
        jnz entry
        CALL multicall, offset calls, 20
        NOTE
        NOTE [events]
        ret
        EVENT_HANDLER
        .data
        calls:
            .long HYPERVISOR_mmu_update, 0, update, 1, 0, DOMID_SELF, 0, 0
            .fill 19 * 8, 4, 0
        update: .long 0, 0, 1, 0
        .bss
        table: .space 2048
        .text
    """
    )
    left, _word, *rest = notes
    assert 10 < left < 20
    assert rest == [0, 1]
