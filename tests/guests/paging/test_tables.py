# SPDX-License-Identifier: GPL-2.0-or-later
"""Pins, address spaces and types from ring 1, and the attacks on each (SECURITY.md A1 to A11)."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import lab, notes_of, outcome
from xenlite.abi.x86_32p import EBUSY, EINVAL
from xenlite.core.paging import WORK_BUDGET

# A second address space beside the boot tables: an L3 at FREE, an L2 at FREE + PAGE that shows
# the same L1s. Both are read-only afterwards.
SECOND_SPACE = """
    .macro MAKE_SECOND_SPACE
    .irp table, 2, 3
    TABLE_MFN eax, \\table
    shl eax, 12
    or eax, TABLE
    mov [FREE + PAGE + (\\table - 2) * 8], eax
    .endr
    ENTRY eax, FREE + PAGE, _PAGE_PRESENT
    mov [FREE + 3 * 8], eax
    RIGHTS FREE, RO
    RIGHTS FREE + PAGE, RO
    .endm
"""


def test_pins_of_every_level() -> None:
    notes = notes_of(
        SECOND_SPACE
        + """
        MAKE_SECOND_SPACE
        RIGHTS FREE + 3 * PAGE, RO
        MFN eax, FREE + 3 * PAGE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        RIGHTS FREE + 4 * PAGE, RO
        MFN eax, FREE + 4 * PAGE
        EXTENDED MMUEXT_PIN_L2_TABLE, eax
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
        .irp page, 3, 4, 0
        MFN eax, FREE + \\page * PAGE
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        RIGHTS FREE + \\page * PAGE, RW
        NOTE
        .endr
    """
    )
    assert notes == [0, 0, 0] + [0, 0] * 3


def test_a_new_address_space_is_validated_in_place() -> None:
    """NEW_BASEPTR of an L3 that nobody pinned; the old one can then be taken apart."""
    notes = notes_of(
        SECOND_SPACE
        + """
        MAKE_SECOND_SPACE
        # The new tables show one page more than the old ones.
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        # The old L3 and L2 are plain pages now; the L1s serve on.
        .irp table, 0, 1, 2
        TABLE_MFN eax, \\table
        shl eax, 12
        or eax, RW
        MAP FREE + 2 * PAGE, eax
        NOTE
        .endr
        mov dword ptr [FREE + 2 * PAGE], 5
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
    """
    )
    assert notes == [0, 0, 0, 0, -EBUSY, 0]


def test_a11_the_live_address_space_survives_its_unpin() -> None:
    notes = notes_of("""
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        mov dword ptr [FREE], 7
        RIGHTS FREE, RO
        NOTE [FREE]
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        TABLE_MFN eax, 0
        shl eax, 12
        or eax, RW
        MAP FREE, eax
        NOTE
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
    """)
    assert notes == [0, 7, -EINVAL, -EBUSY, 0]


def test_a11_a_frame_is_pinned_once_and_unpinned_once() -> None:
    notes = notes_of("""
        RIGHTS FREE, RO
        .irp operation, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE
        MFN eax, FREE
        EXTENDED \\operation, eax
        NOTE
        .endr
        MFN eax, FREE
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
        RIGHTS FREE, RW
        NOTE
    """)
    assert notes == [0, -EINVAL, 0, -EINVAL, 0]


def test_a11_a_pin_names_the_level() -> None:
    """An L1 as L2 and as L3, an L2 as L1; PIN_L4 means nothing here, as in Xen."""
    notes = notes_of("""
        TABLE_MFN eax, 3
        EXTENDED MMUEXT_PIN_L2_TABLE, eax
        NOTE
        TABLE_MFN eax, 3
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
        TABLE_MFN eax, 1
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        TABLE_MFN eax, 3
        EXTENDED MMUEXT_PIN_L4_TABLE, eax
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_UNPIN_TABLE, eax
        NOTE
    """)
    assert notes == [-EINVAL] * 3 + [0, -EINVAL]


def test_a1_a_frame_has_one_type() -> None:
    notes = notes_of("""
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax   # it is mapped RW
        NOTE
        MAP FREE, 0
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        RIGHTS FREE, RW
        NOTE
        RIGHTS FREE, RO
        NOTE
        ENTRY eax, FREE, RW
        MAP FREE + PAGE, eax
        NOTE
        TRY
        mov dword ptr [FREE], 1
        CAUGHT
    """)
    assert notes == [-EINVAL, 0, -EBUSY, 0, -EBUSY, 1]


def test_a9_a_stale_right_ends_before_the_frame_is_a_table() -> None:
    """Write a page, make it read-only without a flush, pin it as an L1, write again."""
    notes = notes_of("""
        mov dword ptr [FREE], 0
        RIGHTS FREE, RO, UVMF_NONE
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        TRY
        mov dword ptr [FREE], 0x1234
        CAUGHT
        NOTE [FREE]
    """)
    assert notes == [0, 0, 1, 0]


@pytest.mark.parametrize("how", ["l2-entry", "l1-gone", "alias", "by-store"])
def test_a9_every_way_to_lose_a_right_counts(how: str) -> None:
    """The writable translation of a page that becomes a table comes from elsewhere each time."""
    l2_entry = "(EMPTY - VIRT_BASE) / 0x200000 * 8"
    lose = {
        # The L2 entry above it turns read-only.
        "l2-entry": f"""
            TABLE_MFN edi, 1
            shl edi, 12
            add edi, {l2_entry}
            ENTRY eax, FREE + PAGE, TABLE & ~_PAGE_RW
            UPDATE edi, eax
            NOTE
            SLOT edi, FREE + PAGE
            MFN edi, FREE + PAGE
            shl edi, 12
            ENTRY eax, FREE, RO
            UPDATE edi, eax
            NOTE
        """,
        # The L1 that shows it goes as a whole.
        "l1-gone": f"""
            TABLE_MFN edi, 1
            shl edi, 12
            add edi, {l2_entry}
            UPDATE edi, 0
            NOTE
            MFN edi, FREE + PAGE
            NOTE 0
        """,
        # Only the entry goes.
        "alias": """
            MFN edi, FREE + PAGE
            shl edi, 12
            UPDATE edi, 0
            NOTE
            NOTE 0
        """,
        # Only the entry goes, by a store of the guest's own.
        "by-store": """
            CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables
            NOTE
            mov dword ptr [FREE + PAGE], 0
            NOTE [FREE + PAGE]
        """,
    }[how]
    notes = notes_of(f"""
        MAP FREE, 0
        ENTRY eax, FREE, RW
        mov [FREE + PAGE], eax
        RIGHTS FREE + PAGE, RO
        TABLE_MFN edi, 1
        shl edi, 12
        add edi, {l2_entry}
        ENTRY eax, FREE + PAGE, TABLE
        UPDATE edi, eax
        NOTE
        mov dword ptr [EMPTY], 0
        {lose}
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        TRY
        mov dword ptr [EMPTY], 0x1234
        CAUGHT
        RIGHTS FREE, RO
        NOTE [FREE]
    """)
    assert notes == [0, 0, 0, 0, 1, 0]


def test_a9_a_page_given_back_is_out_of_reach() -> None:
    """Its next owner may have it at once."""
    notes = notes_of("""
        mov dword ptr [FREE], 1
        MAP FREE, 0, 0, UVMF_NONE
        MFN eax, FREE
        mov [word], eax
        CALL memory_op, XENMEM_decrease_reservation, offset reservation
        NOTE
        TRY
        mov dword ptr [FREE], 2
        CAUGHT
        ret
        .data
        reservation: .long word, 1, 0, 0
        .word DOMID_SELF, 0
        .text
    """)
    assert notes == [1, 1]


def test_a10_one_bad_table_undoes_511_good_ones() -> None:
    """An L2 of 511 empty L1s and one that maps the L2 writable: all are plain pages afterwards."""
    notes = notes_of(f"""
        # 511 pages behind FREE: the L2's children; FREE itself is the L2.
        mov ebp, 1
    next_child:
        mov eax, ebp
        shl eax, 12
        lea ecx, [eax + FREE]
        mov edx, [p2m]
        mov eax, [edx + ebp * 4 + 0x200 * 4]
        shl eax, 12
        or eax, TABLE
        mov [FREE + ebp * 8 - 8], eax
        and eax, 0xFFFFF000
        or eax, RO
        MAP ecx, eax
        inc ebp
        cmp ebp, 512
        jne next_child
        # The last child is the L1 that maps FREE, which is no table yet, writable.
        TABLE_MFN eax, 2
        shl eax, 12
        or eax, TABLE | _PAGE_PSE
        mov [FREE + 511 * 8], eax
        RIGHTS FREE, RO
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L2_TABLE, eax
        NOTE
        # Everything is as before, and writable again.
        mov ebp, 0
    next_page:
        mov ecx, ebp
        shl ecx, 12
        add ecx, FREE
        mov edx, [p2m]
        mov eax, [edx + ebp * 4 + 0x200 * 4]
        shl eax, 12
        or eax, RW
        MAP ecx, eax
        or [word], eax
        inc ebp
        cmp ebp, 512
        jne next_page
        NOTE [word]
        # Mended, it can be pinned.
        mov dword ptr [FREE + 511 * 8], 0
        mov ebp, 0
    close_page:
        mov ecx, ebp
        shl ecx, 12
        add ecx, FREE
        mov edx, [p2m]
        mov eax, [edx + ebp * 4 + 0x200 * 4]
        shl eax, 12
        or eax, RO
        MAP ecx, eax
        inc ebp
        cmp ebp, 512
        jne close_page
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L2_TABLE, eax
        NOTE
        .equ WORK, {WORK_BUDGET}
    """)
    assert notes == [0, -EINVAL, 0, 0]


def test_a6_the_top_l2_serves_one_l3() -> None:
    notes = notes_of("""
        TABLE_MFN eax, 1
        shl eax, 12
        or eax, _PAGE_PRESENT
        mov [FREE + 3 * 8], eax
        RIGHTS FREE, RO
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        RIGHTS FREE, RW
        NOTE
        mov dword ptr [FREE + 3 * 8], 0
        RIGHTS FREE, RO
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L3_TABLE, eax   # an L3 without entry 3
        NOTE
        TABLE_MFN eax, 1
        EXTENDED MMUEXT_PIN_L2_TABLE, eax
        NOTE
    """)
    assert notes == [-EINVAL, -EINVAL, 0, -EINVAL, -EINVAL]


def test_a6_a_guests_entries_for_the_hole_do_not_survive() -> None:
    """Whatever stands from slot 0x1AC of a new top L2 is the hypervisor's before it counts."""
    notes = notes_of(
        SECOND_SPACE
        + """
        ENTRY eax, FREE + 2 * PAGE, TABLE
        mov [FREE + PAGE + 0x1AC * 8], eax
        mov [FREE + PAGE + 0x1FF * 8], eax
        MAKE_SECOND_SPACE
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        MFN eax, FREE
        mov ecx, [MACH2PHYS_VIRT_START + eax * 4]
        NOTE ecx
        TRY
        mov eax, [0xFFE00000]
        CAUGHT
    """
    )
    assert notes == [0, 0x200, 1]


def test_a7_cr3_is_a_whole_l3() -> None:
    """A plain page, an L1, an L2, a frame of nobody's, and one that does not exist."""
    notes = notes_of("""
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        .irp table, 1, 2
        TABLE_MFN eax, \\table
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        .endr
        EXTENDED MMUEXT_NEW_BASEPTR, 0
        NOTE
        EXTENDED MMUEXT_NEW_BASEPTR, 0xFFFFFFFF
        NOTE
        mov eax, [FREE]
        NOTE
    """)
    assert notes == [-EINVAL] * 5 + [0]


def test_a7_what_stands_behind_four_entries_is_wiped() -> None:
    notes = notes_of(
        SECOND_SPACE
        + """
        mov dword ptr [FREE + 4 * 8], 0x1001
        mov dword ptr [FREE + PAGE - 8], 0x1001
        MAKE_SECOND_SPACE
        MFN eax, FREE
        EXTENDED MMUEXT_PIN_L3_TABLE, eax
        NOTE
        NOTE [FREE + 4 * 8]
        NOTE [FREE + PAGE - 8]
    """
    )
    assert notes == [0, 0, 0]


def test_a5_two_l2s_do_not_list_each_other() -> None:
    notes = notes_of("""
        ENTRY eax, FREE + PAGE, TABLE
        mov [FREE], eax
        ENTRY eax, FREE, TABLE
        mov [FREE + PAGE], eax
        RIGHTS FREE, RO
        RIGHTS FREE + PAGE, RO
        .irp operation, MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE
        .irp page, 0, 1
        MFN eax, FREE + \\page * PAGE
        EXTENDED \\operation, eax
        NOTE
        .endr
        .endr
        RIGHTS FREE, RW
        NOTE
        RIGHTS FREE + PAGE, RW
        NOTE
    """)
    # As a child each would be an L1, which maps its parent writable.
    assert notes == [-EBUSY] * 2 + [-EINVAL] * 2 + [0, 0]


def test_extended_cr3_is_granted_and_changes_nothing_below_4_gib() -> None:
    notes = notes_of(
        SECOND_SPACE
        + """
        CALL vm_assist, VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3
        NOTE
        MAKE_SECOND_SPACE
        MFN eax, FREE
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
        CALL vm_assist, VMASST_CMD_disable, VMASST_TYPE_pae_extended_cr3
        NOTE
        TABLE_MFN eax, 0
        EXTENDED MMUEXT_NEW_BASEPTR, eax
        NOTE
    """
    )
    assert notes == [0] * 4


def test_a17_a_domain_dies_with_half_of_its_tables_changed() -> None:
    """Cycles that were refused, pins, a second space in CR3, direct maps of its own tables."""
    with lab() as made:
        for _ in range(3):
            guest = made.add(
                SECOND_SPACE
                + """
                MAKE_SECOND_SPACE
                MFN eax, FREE
                EXTENDED MMUEXT_PIN_L3_TABLE, eax
                MFN eax, FREE
                EXTENDED MMUEXT_NEW_BASEPTR, eax
                NOTE
                RIGHTS FREE + 8 * PAGE, RO
                MFN eax, FREE + 8 * PAGE
                EXTENDED MMUEXT_PIN_L1_TABLE, eax
                TABLE_MFN eax, 2
                shl eax, 12
                or eax, RO
                MAP FREE + 9 * PAGE, eax
                NOTE
                mov esp, 0
                ud2
            """
            )
            assert guest.run()
            assert guest.crash_rule is not None
            assert outcome(guest).notes == [0, 0]
