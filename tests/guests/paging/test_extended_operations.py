# SPDX-License-Identifier: GPL-2.0-or-later
"""mmuext_op from ring 1: flushes that are seen to flush, pages, and descriptor tables."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import notes_of
from xenlite.abi.x86_32p import EACCES, EBUSY, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM

BITMAPS = """
    .data
    .p2align 3
    bitmap: .quad 1
    .text
"""


@pytest.mark.parametrize(
    ("operation", "neighbour_stays"),
    [
        ("MMUEXT_TLB_FLUSH_LOCAL", False),
        ("MMUEXT_TLB_FLUSH_ALL", False),
        ("MMUEXT_TLB_FLUSH_MULTI, 0, offset bitmap", False),
        ("MMUEXT_INVLPG_LOCAL, SOME", True),
        ("MMUEXT_INVLPG_LOCAL, SOME + 0xFFF", True),
        ("MMUEXT_INVLPG_ALL, SOME", True),
        ("MMUEXT_INVLPG_MULTI, SOME, offset bitmap", True),
    ],
)
def test_a_flush_is_seen(operation: str, neighbour_stays: bool) -> None:
    """Two stale rights: the one that the operation names goes, the other with a full flush."""
    notes = notes_of(
        f"""
        # Away from where the program is: the TLB has few places, chosen by the low bits.
        .equ SOME, FREE + 0x80 * PAGE
        .equ OTHER, FREE + 0x90 * PAGE
        mov dword ptr [SOME], 1
        mov dword ptr [OTHER], 1
        RIGHTS SOME, RO, UVMF_NONE
        RIGHTS OTHER, RO, UVMF_NONE
        TRY
        mov dword ptr [SOME], 2
        CAUGHT
        TRY
        mov dword ptr [OTHER], 2
        CAUGHT
        EXTENDED {operation}
        NOTE
        TRY
        mov dword ptr [SOME], 3
        CAUGHT
        TRY
        mov dword ptr [OTHER], 3
        CAUGHT
        ret
    """
        + BITMAPS
    )
    assert notes[:4] == [0, 0, 0, 1]
    assert notes[4] == (0 if neighbour_stays else 1)


@pytest.mark.parametrize("operation", ["MMUEXT_TLB_FLUSH_MULTI", "MMUEXT_INVLPG_MULTI"])
@pytest.mark.parametrize("bitmap", ["0", "EMPTY", "0xF57FFFFF + 1", "0xFFFFFFFF"])
def test_a15_a_flush_with_a_bad_bitmap_is_refused(operation: str, bitmap: str) -> None:
    assert notes_of(f"EXTENDED {operation}, FREE, {bitmap}\n NOTE") == [-EFAULT]


def test_flushing_any_address_is_harmless() -> None:
    notes = notes_of("""
        .irp address, 0, 0xF5800000, 0xFC000000, 0xFFFFFFFF, EMPTY
        EXTENDED MMUEXT_INVLPG_LOCAL, \\address
        NOTE
        .endr
    """)
    assert notes == [0] * 5


def test_caches_and_other_machines_operations_are_refused() -> None:
    notes = notes_of("""
        EXTENDED MMUEXT_FLUSH_CACHE
        NOTE
        EXTENDED MMUEXT_FLUSH_CACHE_GLOBAL
        NOTE
        EXTENDED MMUEXT_NEW_USER_BASEPTR
        NOTE
        .irp command, 99, 0x80000000, 0xFFFFFFFF
        EXTENDED \\command
        NOTE
        .endr
    """)
    assert notes == [-EACCES, -EPERM, -EOPNOTSUPP, -ENOSYS, -ENOSYS, -ENOSYS]


def test_a_page_is_cleared() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 1
        mov dword ptr [FREE + PAGE - 4], 1
        mov dword ptr [FREE + PAGE], 1
        MFN eax, FREE
        EXTENDED MMUEXT_CLEAR_PAGE, eax
        NOTE
        NOTE [FREE]
        NOTE [FREE + PAGE - 4]
        NOTE [FREE + PAGE]
    """)
    assert notes == [0, 0, 0, 1]


def test_a_page_is_copied() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 1
        mov dword ptr [FREE + PAGE - 4], 2
        MFN eax, FREE + PAGE
        MFN ecx, FREE
        EXTENDED MMUEXT_COPY_PAGE, eax, ecx
        NOTE
        NOTE [FREE + PAGE]
        NOTE [FREE + 2 * PAGE - 4]
        # A table may be read, and a page copied onto itself.
        MFN eax, FREE + PAGE
        TABLE_MFN ecx, 3
        EXTENDED MMUEXT_COPY_PAGE, eax, ecx
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_COPY_PAGE, eax, eax
        NOTE
        NOTE [FREE]
    """)
    assert notes == [0, 1, 2, 0, 0, 1]


def test_code_that_is_copied_over_runs_as_it_is_now() -> None:
    notes = notes_of("""
        mov dword ptr [FREE], 0xC3C03190         # nop; xor eax, eax; ret
        mov dword ptr [FREE + PAGE], 0xC340C031  # xor eax, eax; inc eax; ret
        mov ecx, FREE
        call ecx
        NOTE
        MFN eax, FREE
        MFN ecx, FREE + PAGE
        EXTENDED MMUEXT_COPY_PAGE, eax, ecx
        mov ecx, FREE
        call ecx
        NOTE
    """)
    assert notes == [0, 1]


def test_a14_no_table_is_cleared_or_copied_over() -> None:
    notes = notes_of("""
        .irp table, 0, 1, 2, 3
        TABLE_MFN eax, \\table
        EXTENDED MMUEXT_CLEAR_PAGE, eax
        NOTE
        TABLE_MFN eax, \\table
        MFN ecx, FREE
        EXTENDED MMUEXT_COPY_PAGE, eax, ecx
        NOTE
        .endr
        # A descriptor table neither, nor anybody else's page.
        RIGHTS FREE, RO
        MFN eax, FREE
        mov [word], eax
        CALL set_gdt, offset word, 512
        NOTE
        MFN eax, FREE
        EXTENDED MMUEXT_CLEAR_PAGE, eax
        NOTE
        .irp mfn, 0, 6143, 6144, 0xFFFFFFFF
        EXTENDED MMUEXT_CLEAR_PAGE, \\mfn
        NOTE
        MFN eax, FREE + PAGE
        EXTENDED MMUEXT_COPY_PAGE, eax, \\mfn
        NOTE
        .endr
        mov eax, [FREE + PAGE]
    """)
    assert notes == [-EINVAL] * 8 + [0, -EINVAL] + [-EINVAL] * 8


def test_an_ldt_is_used_and_given_back() -> None:
    """A data segment whose base is FREE + PAGE; its table is no plain page while it is used."""
    notes = notes_of("""
        mov dword ptr [FREE + 8], (FREE + PAGE) << 16 & 0xFFFF0000 | 0xFFFF
        mov dword ptr [FREE + 12], 0xC0CFB320
        mov dword ptr [FREE + PAGE], 0x99
        RIGHTS FREE, RO
        EXTENDED MMUEXT_SET_LDT, FREE, 2
        NOTE
        mov ax, 1 << 3 | 4 | 1
        mov fs, ax
        NOTE fs:[0]
        RIGHTS FREE, RW
        NOTE
        xor eax, eax
        mov fs, ax
        EXTENDED MMUEXT_SET_LDT, 0, 0
        NOTE
        RIGHTS FREE, RW
        NOTE
    """)
    assert notes == [0, 0x99, -EBUSY, 0, 0]


@pytest.mark.parametrize(
    "where", ["FREE + 8, 1", "FREE, 8193", "0xF5800000, 1", "0xF57FF000, 513", "0xFFFFF000, 8192"]
)
def test_b2_an_ldt_is_below_the_hole_and_aligned(where: str) -> None:
    assert notes_of(f"EXTENDED MMUEXT_SET_LDT, {where}\n NOTE") == [-EINVAL]


def test_a_list_of_operations_counts_and_stops() -> None:
    notes = notes_of("""
        MFN eax, FREE
        mov [list + 4], eax
        CALL mmuext_op, offset list, 3, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        ret
        .data
        list:
            .long MMUEXT_CLEAR_PAGE, 0, 0
            .long 99, 0, 0
            .long MMUEXT_TLB_FLUSH_LOCAL, 0, 0
        .text
    """)
    assert notes == [-ENOSYS, 1]


def test_the_guests_own_gdt_is_loaded_and_closed() -> None:
    notes = notes_of("""
        mov dword ptr [FREE + 8], (FREE + PAGE) << 16 & 0xFFFF0000 | 0xFFFF
        mov dword ptr [FREE + 12], 0xC0CFB320
        mov dword ptr [FREE + PAGE], 0x99
        MFN eax, FREE
        mov [word], eax
        CALL set_gdt, offset word, 2        # still writable
        NOTE
        RIGHTS FREE, RO
        MFN eax, FREE
        mov [word], eax
        CALL set_gdt, offset word, 2
        NOTE
        mov ax, 1 << 3 | 1
        mov fs, ax
        NOTE fs:[0]
        RIGHTS FREE, RW
        NOTE
        # update_descriptor changes it in place: the base is FREE now.
        MFN eax, FREE
        shl eax, 12
        add eax, 8
        mov [word], eax
        CALL update_descriptor, [word], 0, (FREE << 16 & 0xFFFF0000) | 0xFFFF, 0xC0CFB320
        NOTE
        mov ax, 1 << 3 | 1
        mov fs, ax
        NOTE fs:[PAGE]
        xor eax, eax
        mov fs, ax
        CALL set_gdt, 0, 0
        NOTE
        RIGHTS FREE, RW
        NOTE
    """)
    assert notes == [-EINVAL, 0, 0x99, -EBUSY, 0, 0x99, 0, 0]


@pytest.mark.parametrize(
    ("low", "high", "result"),
    [
        ("0x0000FFFF", "0x00CF9A00", 0),  # ring 0 code: becomes ring 1
        ("0x00000067", "0x00008900", -EINVAL),  # a TSS
        ("0x00000067", "0x00008200", -EINVAL),  # an LDT
        ("0xE0190000", "0x00008E00", -EINVAL),  # an interrupt gate
        ("0x0000FFFF", "0x00AF9A00", -EINVAL),  # 64-bit code
        ("0xE0190000", "0x0000EC00", 0),  # a call gate to the guest's ring 1
        ("0xE0210000", "0x0000EC00", -EINVAL),  # a call gate to the hypervisor's others
        ("0xFFFFFFFF", "0x000F7FFF", 0),  # not present
    ],
)
def test_b1_only_harmless_descriptors_get_in(low: str, high: str, result: int) -> None:
    """By update_descriptor into a loaded GDT, and by loading a GDT that holds it."""
    notes = notes_of(f"""
        RIGHTS FREE, RO
        MFN eax, FREE
        mov [word], eax
        CALL set_gdt, offset word, 512
        MFN eax, FREE
        shl eax, 12
        add eax, 16
        mov [word], eax
        CALL update_descriptor, [word], 0, {low}, {high}
        NOTE
        mov dword ptr [FREE + PAGE + 16], {low}
        mov dword ptr [FREE + PAGE + 20], {high}
        RIGHTS FREE + PAGE, RO
        MFN eax, FREE + PAGE
        mov [word], eax
        CALL set_gdt, offset word, 512
        NOTE
        mov eax, [FREE + 20]
        shr eax, 13
        and eax, 3
        NOTE
        RIGHTS FREE + PAGE, RW
        NOTE
    """)
    is_loaded = result == 0
    assert notes[:2] == [result, result]
    if high == "0x00CF9A00":
        assert notes[2] == 1
    assert notes[3] == (-EBUSY if is_loaded else 0)


def test_b1_update_descriptor_is_aligned_and_writes_no_page_table() -> None:
    notes = notes_of("""
        .irp offset_in_page, 4, 1
        MFN eax, FREE
        shl eax, 12
        add eax, \\offset_in_page
        mov [word], eax
        CALL update_descriptor, [word], 0, 0x0000FFFF, 0x00CFBA00
        NOTE
        .endr
        TABLE_MFN eax, 3
        shl eax, 12
        mov [word], eax
        CALL update_descriptor, [word], 0, 0x0000FFFF, 0x00CFBA00
        NOTE
        CALL update_descriptor, 0, 0, 0x0000FFFF, 0x00CFBA00
        NOTE
        CALL update_descriptor, 0, 0xFFFFFFFF, 0x0000FFFF, 0x00CFBA00
        NOTE
        MFN eax, FREE
        shl eax, 12
        mov [word], eax
        CALL update_descriptor, [word], 0, 0x0000FFFF, 0x00CFBA00   # a plain page is written
        NOTE
        NOTE [FREE]
    """)
    assert notes == [-EINVAL] * 5 + [0, 0xFFFF]


def test_b1_a_gdt_is_all_or_nothing() -> None:
    """14 frames of which the last is a table; too many entries; a list in the hole."""
    notes = notes_of("""
        mov ebp, 0
    next:
        mov ecx, ebp
        shl ecx, 12
        add ecx, FREE
        mov edx, [p2m]
        mov eax, [edx + ebp * 4 + 0x200 * 4]
        mov [list + ebp * 4], eax
        shl eax, 12
        or eax, RO
        MAP ecx, eax
        inc ebp
        cmp ebp, 13
        jne next
        TABLE_MFN eax, 3
        mov [list + 13 * 4], eax
        CALL set_gdt, offset list, 7168
        NOTE
        .irp page, 0, 12
        RIGHTS FREE + \\page * PAGE, RW
        NOTE
        .endr
        CALL set_gdt, offset list, 7169
        NOTE
        CALL set_gdt, offset list, 0xFFFFFFFF
        NOTE
        CALL set_gdt, 0xF5800000, 512
        NOTE
        CALL set_gdt, 0xF57FFFFC, 1024
        NOTE
        ret
        .data
        list: .fill 14, 4, 0
        .text
    """)
    assert notes == [-EINVAL, 0, 0, -EINVAL, -EINVAL, -EFAULT, -EFAULT]


def test_stack_switch_moves_the_stack_of_traps_from_ring_3() -> None:
    notes = notes_of("""
        CALL set_trap_table, offset user_gates
        CALL stack_switch, FLAT_RING1_SS, FREE + PAGE
        NOTE
        RIGHTS FREE + 2 * PAGE, RW | _PAGE_USER
        mov dword ptr [FREE + 2 * PAGE], 0x000080CD   # int 0x80
        mov dword ptr [FREE + 2 * PAGE + 2], 0x000081CD
        mov ecx, esp
        push FLAT_RING3_SS
        push FREE + 3 * PAGE
        push EFLAGS_IF
        push FLAT_RING3_CS
        push FREE + 2 * PAGE
        mov [try_esp], ecx
        iretd
    first:
        NOTE esp
        NOTE [esp]
        mov esp, [try_esp]
        CALL stack_switch, FLAT_RING1_SS, FREE + 0x800
        mov ecx, esp
        push FLAT_RING3_SS
        push FREE + 3 * PAGE
        push EFLAGS_IF
        push FLAT_RING3_CS
        push FREE + 2 * PAGE + 2
        iretd
    second:
        NOTE esp
        mov esp, [try_esp]
        ret
        .data
        user_gates:
            GATE 0x80, 3, first
            GATE 0x81, 3, second
            GATES_END
        .text
    """)
    assert notes == [0, 0xC0201000 - 20, 0xC0202002, 0xC0200800 - 20]
