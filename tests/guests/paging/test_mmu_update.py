# SPDX-License-Identifier: GPL-2.0-or-later
"""mmu_update from ring 1: each command, each level, and the entries that no guest may have."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import MEGABYTE, lab, notes_of, outcome
from xenlite.abi.x86_32p import DOMID_IO, DOMID_XEN, EBUSY, EINVAL, ENOSYS, EPERM

A, D = 0x20, 0x40


def test_an_update_shows_another_frame_at_once() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 0x11
        mov dword ptr [FREE + PAGE], 0x22
        MAP FREE, 0
        NOTE
        SLOT edi, FREE
        ENTRY eax, FREE + PAGE, RW
        UPDATE edi, eax
        NOTE
        NOTE [FREE]
        mov dword ptr [FREE], 0x33
        NOTE [FREE + PAGE]
    """)
    assert notes == [0, 0, 0x22, 0x33]


def test_a_list_changes_all_and_tells_how_many() -> None:
    notes = notes_of("""
        mov ecx, offset list
        SLOT eax, FREE
        mov [ecx], eax
        add eax, 8
        mov [ecx + 16], eax
        add eax, 8
        mov [ecx + 32], eax
        mov dword ptr [word], 99
        CALL mmu_update, offset list, 3, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        .irp page, 0, 1, 2, 3
        TRY
        mov eax, [FREE + \\page * PAGE]
        CAUGHT
        .endr
        ret
        .data
        list: .fill 12, 4, 0
        .text
    """)
    assert notes == [0, 3, 1, 1, 1, 0]


def test_a_list_stops_at_the_first_refusal_and_counts_to_there() -> None:
    notes = notes_of("""
        mov ecx, offset list
        SLOT eax, FREE
        mov [ecx], eax
        TABLE_MFN eax, 2
        shl eax, 12
        or eax, RW
        SLOT edx, FREE + PAGE
        mov [ecx + 16], edx
        mov [ecx + 24], eax
        SLOT edx, FREE + 2 * PAGE
        mov [ecx + 32], edx
        CALL mmu_update, offset list, 3, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        .irp page, 0, 1, 2
        TRY
        mov dword ptr [FREE + \\page * PAGE], 1
        CAUGHT
        .endr
        ret
        .data
        list: .fill 12, 4, 0
        .text
    """)
    assert notes == [-EBUSY, 1, 1, 0, 0]


def test_preserve_ad_keeps_what_the_processor_has_set() -> None:
    notes = notes_of("""
        .macro SEE
        SLOT_VA eax, FREE
        mov eax, [eax]
        and eax, ACCESSED | DIRTY
        NOTE
        .endm
        RIGHTS FREE, _PAGE_PRESENT | _PAGE_RW
        SEE
        mov eax, [FREE]
        SEE
        mov dword ptr [FREE], 1
        SEE
        SLOT edi, FREE
        or edi, MMU_PT_UPDATE_PRESERVE_AD
        ENTRY eax, FREE, _PAGE_PRESENT
        UPDATE edi, eax
        SEE
        SLOT edi, FREE
        ENTRY eax, FREE, _PAGE_PRESENT
        UPDATE edi, eax
        SEE
    """)
    assert notes == [0, A, A | D, A | D, 0]


def test_preserve_ad_adds_nothing_to_an_entry_that_was_absent() -> None:
    notes = notes_of("""
        SLOT edi, FREE
        UPDATE edi, ACCESSED | DIRTY
        SLOT edi, FREE
        or edi, MMU_PT_UPDATE_PRESERVE_AD
        ENTRY eax, FREE, _PAGE_PRESENT
        UPDATE edi, eax
        NOTE
        SLOT_VA eax, FREE
        mov eax, [eax]
        and eax, ACCESSED | DIRTY
        NOTE
    """)
    assert notes == [0, 0]


def test_an_l2_entry_brings_a_table_and_takes_it_away() -> None:
    notes = notes_of("""
        # A table that shows one page.
        ENTRY eax, FREE + PAGE, RW
        mov [FREE], eax
        mov dword ptr [FREE + PAGE], 0x77
        RIGHTS FREE, RO
        TABLE_MFN edi, 1
        shl edi, 12
        add edi, (EMPTY - VIRT_BASE) / 0x200000 * 8
        mov [word], edi
        ENTRY eax, FREE, TABLE
        UPDATE edi, eax
        NOTE
        NOTE [EMPTY]
        UPDATE [word], 0
        NOTE
        EXTENDED MMUEXT_INVLPG_LOCAL, EMPTY
        TRY
        mov eax, [EMPTY]
        CAUGHT
        RIGHTS FREE, RW
        NOTE
    """)
    assert notes == [0, 0x77, 0, 1, 0]


def test_an_l3_entry_brings_an_l2() -> None:
    notes = notes_of("""
        ENTRY eax, FREE + PAGE, TABLE
        mov [FREE], eax
        ENTRY eax, FREE + 2 * PAGE, RW
        mov [FREE + PAGE], eax
        mov dword ptr [FREE + 2 * PAGE], 0x55
        RIGHTS FREE, RO
        RIGHTS FREE + PAGE, RO
        TABLE_MFN edi, 0
        shl edi, 12
        ENTRY eax, FREE, _PAGE_PRESENT
        UPDATE edi, eax
        NOTE
        # The processor reads the four entries when CR3 is loaded.
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        NOTE dword ptr [0]
    """)
    assert notes == [0, 0, 0x55]


def test_machphys_names_a_frame() -> None:
    notes = notes_of("""
        MFN edi, FREE
        NOTE [MACH2PHYS_VIRT_START + edi * 4]
        shl edi, 12
        or edi, MMU_MACHPHYS_UPDATE
        UPDATE edi, 0x12345
        NOTE
        MFN edi, FREE
        NOTE [MACH2PHYS_VIRT_START + edi * 4]
    """)
    assert notes == [0x200, 0, 0x12345]


def test_a13_machphys_is_for_own_frames() -> None:
    """The frames: one of the hypervisor's, a free one, none at all, shared_info."""
    notes = notes_of("""
        mov edi, 0 | MMU_MACHPHYS_UPDATE
        UPDATE edi, 5
        NOTE
        mov edi, (24 * 256 - 1) << 12 | MMU_MACHPHYS_UPDATE
        UPDATE edi, 5
        NOTE
        mov edi, 0xFFFFF000 | MMU_MACHPHYS_UPDATE
        UPDATE edi, 5
        NOTE
        MFN edi, FREE
        shl edi, 12
        or edi, MMU_MACHPHYS_UPDATE
        UPDATE edi, 0xFFFFFFFF
        NOTE
    """)
    assert notes == [-EINVAL, -EINVAL, -EINVAL, 0]


def test_a13_two_frames_with_one_name_confuse_nobody() -> None:
    notes = notes_of("""
        MFN edi, FREE
        shl edi, 12
        or edi, MMU_MACHPHYS_UPDATE
        UPDATE edi, 0x201
        NOTE
        RIGHTS FREE + PAGE, RO
        NOTE
        RIGHTS FREE + PAGE, RW
        NOTE
    """)
    assert notes == [0, 0, 0]


def test_a3_a_thousand_names_cost_no_reference() -> None:
    with lab() as made:
        guest = made.add("""
            mov dword ptr [word], 1000
        again:
            MFN edi, FREE
            shl edi, 12
            or edi, MMU_MACHPHYS_UPDATE
            UPDATE edi, [word]
            dec dword ptr [word]
            jnz again
            MAP FREE, 0
            MFN eax, FREE
            mov [word], eax
            mov [given], eax
            CALL memory_op, XENMEM_decrease_reservation, offset reservation
            NOTE
            ret
            .data
            reservation: .long word, 1, 0, 0
            .word DOMID_SELF
            given: .long 0
            .text
        """)
        assert guest.run()
        assert outcome(guest).notes == [1]
        frames = made.hypervisor.machine.frames
        assert frames.refs[guest.word("given")] == 0


def test_an_update_of_a_plain_page_writes_it() -> None:
    notes = notes_of("""
        MFN edi, FREE
        shl edi, 12
        add edi, 0x10
        UPDATE edi, 0x1234, 0x5678
        NOTE
        NOTE [FREE + 0x10]
        NOTE [FREE + 0x14]
    """)
    assert notes == [0, 0x1234, 0x5678]


def test_unknown_commands_are_refused() -> None:
    notes = notes_of("""
        .irp command, 3, 4, 5, 6, 7
        SLOT edi, FREE
        or edi, \\command
        UPDATE edi, 0
        NOTE
        .endr
        NOTE [FREE]
    """)
    assert notes == [-ENOSYS] * 5 + [0]


def test_a2_an_own_table_never_becomes_writable() -> None:
    """Map the L1 read-only where a plain page was, then the same entry with RW."""
    notes = notes_of("""
        TABLE_MFN eax, 3
        shl eax, 12
        or eax, RO
        mov [word], eax
        SLOT edi, FREE
        UPDATE edi, [word]
        NOTE
        or dword ptr [word], _PAGE_RW
        SLOT edi, FREE
        UPDATE edi, [word]
        NOTE
        CALL update_va_mapping, FREE, [word], 0, UVMF_INVLPG
        NOTE
        TRY
        mov dword ptr [FREE], 0
        CAUGHT
    """)
    assert notes == [0, -EBUSY, -EBUSY, 1]


def test_a4_large_pages_are_refused() -> None:
    """The emulated MMU would honour them: a new one, and the bit alone on a present entry."""
    notes = notes_of("""
        .macro L2_SLOT register, vaddr
        TABLE_MFN \\register, 1
        shl \\register, 12
        add \\register, ((\\vaddr) - VIRT_BASE) / 0x200000 * 8
        .endm
        ENTRY eax, FREE, TABLE | _PAGE_PSE
        and eax, 0xFFE00FFF
        mov [word], eax
        L2_SLOT edi, EMPTY
        UPDATE edi, [word]
        NOTE
        TABLE_MFN eax, 3
        shl eax, 12
        or eax, TABLE | _PAGE_PSE
        mov [word], eax
        L2_SLOT edi, FREE
        UPDATE edi, [word]
        NOTE
        TABLE_MFN edi, 0
        shl edi, 12
        ENTRY eax, FREE, _PAGE_PRESENT | _PAGE_PSE
        UPDATE edi, eax
        NOTE
        mov dword ptr [FREE], 1
    """)
    assert notes == [-EINVAL, -EINVAL, -EINVAL]


@pytest.mark.parametrize(("bit", "result"), [(3, -EINVAL), (4, -EINVAL), (7, -EINVAL), (63, 0)])
def test_a7_forbidden_bits_of_an_l1_entry(bit: int, result: int) -> None:
    low, high = 1 << bit & 0xFFFFFFFF, 1 << bit >> 32
    notes = notes_of(f"""
        SLOT edi, FREE
        ENTRY eax, FREE, RW | {low}
        UPDATE edi, eax, {high}
        NOTE
        SLOT edi, FREE + PAGE
        UPDATE edi, 0
        SLOT edi, FREE + PAGE
        ENTRY eax, FREE + PAGE, RW | {low}
        UPDATE edi, eax, {high}
        NOTE
        mov dword ptr [FREE], 1
    """)
    assert notes == [result, result]


def test_a7_an_address_beyond_memory_is_nobodys() -> None:
    """Bits 51 and 40 of an address, and the first frame behind the last."""
    notes = notes_of("""
        .irp entry, 0, 1
        SLOT edi, FREE
        ENTRY eax, FREE, RW
        UPDATE edi, eax, 1 << (8 + 11 * \\entry)
        NOTE
        .endr
        SLOT edi, FREE
        UPDATE edi, (24 << 20) | RW
        NOTE
    """)
    assert notes == [-EBUSY] * 3


def test_a7_slots_behind_an_l3s_four_are_closed() -> None:
    notes = notes_of("""
        .irp slot, 4, 7, 511
        TABLE_MFN edi, 0
        shl edi, 12
        add edi, \\slot * 8
        UPDATE edi, 0x1234
        NOTE
        .endr
    """)
    assert notes == [-EINVAL] * 3


def test_a5_no_table_lists_a_table_of_its_level() -> None:
    notes = notes_of("""
        TABLE_MFN edi, 0
        shl edi, 12
        mov eax, edi
        or eax, _PAGE_PRESENT
        add edi, 2 * 8
        UPDATE edi, eax                     # L3[2] = own L3
        NOTE
        .irp flags, RO, RW
        TABLE_MFN edi, 1
        shl edi, 12
        mov eax, edi
        or eax, \\flags
        add edi, 5 * 8
        UPDATE edi, eax                     # L2[5] = own L2
        NOTE
        .endr
    """)
    assert notes == [-EINVAL] * 3


def test_a6_the_holes_entries_are_not_the_guests() -> None:
    notes = notes_of("""
        .irp slot, 0x1AC, 0x1E0, 0x1FF
        TABLE_MFN edi, 1
        shl edi, 12
        add edi, \\slot * 8
        UPDATE edi, 0
        NOTE
        .endr
        TABLE_MFN edi, 0
        shl edi, 12
        add edi, 3 * 8
        UPDATE edi, 0                       # L3[3] of a live L3
        NOTE
        mov eax, [MACH2PHYS_VIRT_START]
    """)
    assert notes == [-EPERM] * 3 + [-EINVAL]


@pytest.mark.parametrize("flags", ["RO", "RW"])
def test_a8_a_sweep_over_all_of_memory_reaches_nothing_foreign(flags: str) -> None:
    """Map every frame of the machine and 16 beyond; note those that were let through."""
    with lab(host_mb=16) as made:
        other = made.add("claim_2: jmp claim_2")
        made.control.pause(other.domid)
        guest = made.add(f"""
            xor ebp, ebp
        next:
            mov eax, ebp
            shl eax, 12
            or eax, {flags}
            MAP FREE, eax
            test eax, eax
            jnz refused
            # Own pages stand in the list of frames under the name that the M2P gives.
            mov eax, [MACH2PHYS_VIRT_START + ebp * 4]
            cmp eax, 1024
            jae unknown
            mov ecx, [p2m]
            cmp [ecx + eax * 4], ebp
            je refused
        unknown:
            NOTE ebp
        refused:
            inc ebp
            cmp ebp, {16 * MEGABYTE // 4096 + 16}
            jne next
            MAP FREE, 0
        """)
        assert guest.run()
        result = outcome(guest)
        assert result.reason == 0
        owner = made.hypervisor.machine.frames.owner
        assert {owner[mfn] for mfn in result.notes} <= {guest.domid}
        assert guest.domain.shared_info_mfn in result.notes
        assert result.rules.count("frames.not-owned") > 1024


@pytest.mark.parametrize("foreign", [0, 2, 9, DOMID_IO, DOMID_XEN, 0x7FF3, 0x7FFF])
def test_a8_no_other_domain_can_be_named(foreign: int) -> None:
    """As the owner of tables (low half) and as the owner of frames (high half, plus one)."""
    with lab() as made:
        guest = made.add(f"""
            SLOT eax, FREE
            mov [list], eax
            CALL mmu_update, offset list, 1, 0, {foreign}
            NOTE
            CALL mmu_update, offset list, 1, 0, {(foreign + 1) << 16 | 0x7FF0}
            NOTE
            CALL mmuext_op, offset flush, 1, 0, {foreign}
            NOTE
            mov eax, [FREE]
            ret
            .data
            list: .quad 0, 0
            flush: .long MMUEXT_TLB_FLUSH_LOCAL, 0, 0
            .text
        """)
        other = made.add("other: jmp other")
        made.control.pause(other.domid)
        assert guest.run()
        assert outcome(guest).notes == [-EPERM] * 3
