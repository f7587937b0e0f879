# SPDX-License-Identifier: GPL-2.0-or-later
"""update_va_mapping from ring 1: the entry, and every form of its flags."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import notes_of
from xenlite.abi.x86_32p import EBUSY, EFAULT, EINVAL

# A write goes through an entry that the TLB still holds; whoever wants it gone says so.
STALE, GONE = 0, 1


def write_after(flags: str) -> list[int]:
    """Write a page, take the right away with ``flags``, and write again."""
    return notes_of(f"""
        mov dword ptr [FREE], 1
        RIGHTS FREE, RO, {flags}
        NOTE
        TRY
        mov dword ptr [FREE], 2
        CAUGHT
        ret
        .data
        .p2align 3
        bitmap: .quad 1
        empty_bitmap: .quad 0
        .text
    """)


def test_without_a_flush_the_old_right_may_stay() -> None:
    """The guest's own business, as on hardware; A9 tells where it stops being so."""
    assert write_after("UVMF_NONE") == [0, STALE]


@pytest.mark.parametrize("kind", ["UVMF_INVLPG", "UVMF_TLB_FLUSH"])
@pytest.mark.parametrize("where", ["UVMF_LOCAL", "UVMF_ALL", "bitmap", "empty_bitmap"])
def test_every_flush_is_seen(kind: str, where: str) -> None:
    assert write_after(f"{kind} + {where}") == [0, GONE]


@pytest.mark.parametrize("bitmap", ["0xF57FFFFC", "0xFFFFFFF0", "EMPTY"])
@pytest.mark.parametrize("kind", ["UVMF_INVLPG", "UVMF_TLB_FLUSH"])
def test_a15_a_bad_bitmap_is_refused(bitmap: str, kind: str) -> None:
    address = int(bitmap, 16) & ~7 if bitmap != "EMPTY" else bitmap
    assert write_after(f"{kind} + {address}") == [-EFAULT, STALE]


def test_the_fourth_flush_kind_does_not_exist() -> None:
    assert write_after("3")[0] == -EINVAL


def test_other_flag_bits_are_a_bitmap_too() -> None:
    assert write_after("UVMF_INVLPG + 8") == [-EFAULT, STALE]


def test_a_page_comes_and_goes() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 0x42
        MAP FREE, 0
        NOTE
        TRY
        mov eax, [FREE]
        CAUGHT
        NOTE [fault_address]
        RIGHTS FREE, RO
        NOTE
        NOTE [FREE]
        TRY
        mov dword ptr [FREE + 8], 1
        CAUGHT
        NOTE [fault_error]
        NOTE [fault_address]
        RIGHTS FREE, RW
        NOTE
        mov dword ptr [FREE], 0x43
        NOTE [FREE]
    """)
    free = 0xC0200000 - (1 << 32)
    assert notes == [
        *(0, 1, free & 0xFFFFFFFF),
        *(0, 0x42, 1, 3, free + 8 & 0xFFFFFFFF),
        *(0, 0x43),
    ]


def test_a_page_without_nx_runs_and_one_with_it_does_not() -> None:
    notes = notes_of("""
        mov byte ptr [FREE], 0xC3           # ret
        TRY
        mov eax, FREE
        call eax
        CAUGHT
        ENTRY eax, FREE, RW
        MAP FREE, eax, 0x80000000
        NOTE
        TRY
        mov eax, FREE
        call eax
        CAUGHT
        NOTE [fault_error]
        RIGHTS FREE, RW
        TRY
        mov eax, FREE
        call eax
        CAUGHT
    """)
    assert notes == [0, 0, 1, 0x11, 0]


def test_new_code_behind_the_same_address_runs() -> None:
    """Pages that change places under translated code, in both ways that entries change."""
    notes = notes_of("""
        mov dword ptr [FREE], 0xC3C03190         # nop; xor eax, eax; ret
        mov dword ptr [FREE + PAGE], 0xC340C031  # xor eax, eax; inc eax; ret
        .rept 2
        mov ecx, FREE
        call ecx
        NOTE
        ENTRY eax, FREE + PAGE, RW
        MAP FREE, eax
        mov ecx, FREE
        call ecx
        NOTE
        SLOT edi, FREE
        ENTRY eax, FREE, RW
        UPDATE edi, eax
        EXTENDED MMUEXT_INVLPG_LOCAL, FREE
        .endr
    """)
    assert notes == [0, 1, 0, 1]


@pytest.mark.parametrize("vaddr", ["EMPTY", "0", "0x7FFFF000", "0xF5000000"])
def test_an_address_without_an_l1_is_refused(vaddr: str) -> None:
    assert notes_of(f"ENTRY eax, FREE, RW\n MAP {vaddr}, eax\n NOTE") == [-EINVAL]


@pytest.mark.parametrize("vaddr", ["0xF5800000", "0xFC000000", "0xFFFFF000"])
def test_a6_the_holes_entries_are_refused(vaddr: str) -> None:
    notes = notes_of(f"""
        ENTRY eax, FREE, RW
        MAP {vaddr}, eax
        NOTE
        MAP {vaddr}, 0
        NOTE
    """)
    assert notes == [-EINVAL, -EINVAL]


def test_a1_own_tables_are_mapped_read_only_or_not_at_all() -> None:
    notes = notes_of("""
        .irp table, 0, 1, 2, 3
        .irp flags, RO, RW
        TABLE_MFN eax, \\table
        shl eax, 12
        or eax, \\flags
        MAP FREE, eax
        NOTE
        .endr
        .endr
    """)
    assert notes == [0, -EBUSY] * 4


def test_the_flush_of_a_refused_update_does_not_happen() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 1
        RIGHTS FREE, RO, UVMF_NONE
        MAP FREE, 0xFFFFF000 | RW, 0xFF, UVMF_TLB_FLUSH
        NOTE
        mov eax, [FREE]
        NOTE
    """)
    assert notes == [-EBUSY, 1]
