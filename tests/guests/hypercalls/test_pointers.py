# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers that a guest hands over (A15): below the hole, whole, with the guest's own rights."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import notes_of
from xenlite.abi.x86_32p import EFAULT, EINVAL

LISTS = ["mmu_update", "mmuext_op"]


@pytest.mark.parametrize("call", LISTS)
@pytest.mark.parametrize(
    ("pointer", "count"),
    [
        ("0xF57FFFF8", "0xFFFFFFFF & ~MMU_UPDATE_PREEMPTED"),
        ("0xF57FFFF8", "1"),
        ("0xF5800000", "1"),
        ("0xFFFFFFF8", "1"),
        ("0xFFFFFFFF", "2"),
        ("FREE", "0x10000000"),
        ("FREE", "0x7FFFFFFF"),
        ("EMPTY", "1"),
        ("0", "1"),
    ],
)
def test_a_list_ends_below_the_hole(call: str, pointer: str, count: str) -> None:
    """The word for the number done is written, whatever became of the list."""
    notes = notes_of(f"""
        mov dword ptr [word], 77
        CALL {call}, {pointer}, {count}, offset word, DOMID_SELF
        NOTE
        NOTE [word]
    """)
    assert notes == [-EFAULT, 0]


@pytest.mark.parametrize("call", LISTS)
@pytest.mark.parametrize("pdone", ["0xF5800000", "0xF57FFFFD", "EMPTY", "FREE", "0xFFFFFFFF"])
def test_the_number_done_goes_where_the_guest_may_write(call: str, pdone: str) -> None:
    """FREE is mapped read-only. The list is done all the same; the call says what it could not."""
    notes = notes_of(f"""
        mov dword ptr [FREE], 5
        RIGHTS FREE, RO
        SLOT eax, FREE + PAGE
        mov [list], eax
        .if HYPERVISOR_{call} == HYPERVISOR_mmuext_op
        mov dword ptr [list], MMUEXT_INVLPG_LOCAL
        .endif
        CALL {call}, offset list, 1, {pdone}, DOMID_SELF
        NOTE
        # An error of the list itself comes first.
        mov dword ptr [list], 0xFFFFFFFF
        mov dword ptr [list + 4], 0xFFFFFFFF
        CALL {call}, offset list, 1, {pdone}, DOMID_SELF
        NOTE
        NOTE [FREE]
        ret
        .data
        list: .quad 0, 0
        .text
    """)
    assert notes[0] == -EFAULT
    assert notes[1] in (-EINVAL, -38)
    assert notes[2] == 5


@pytest.mark.parametrize("call", LISTS)
def test_a_request_may_lie_across_two_pages(call: str) -> None:
    """Unaligned and over a border: done where both pages are there, refused where one is not."""
    notes = notes_of(f"""
        .equ AT, FREE + PAGE - 5
        .if HYPERVISOR_{call} == HYPERVISOR_mmuext_op
        mov dword ptr [AT], MMUEXT_INVLPG_LOCAL
        .else
        SLOT eax, FREE + 9 * PAGE
        mov [AT], eax
        .endif
        CALL {call}, AT, 1, offset word, DOMID_SELF
        NOTE
        NOTE [word]
        MAP FREE + PAGE, 0
        CALL {call}, AT, 1, offset word, DOMID_SELF
        NOTE
        NOTE [word]
    """)
    assert notes == [0, 1, -EFAULT, 0]


@pytest.mark.parametrize("call", LISTS)
def test_a_list_that_runs_into_nothing_is_done_to_there(call: str) -> None:
    entry = "SIZEOF_MMU_UPDATE" if call == "mmu_update" else "SIZEOF_MMUEXT_OP"
    notes = notes_of(f"""
        MAP FREE + PAGE, 0
        .irp index, 1, 2, 3
        .if HYPERVISOR_{call} == HYPERVISOR_mmuext_op
        mov dword ptr [FREE + PAGE - \\index * {entry}], MMUEXT_TLB_FLUSH_LOCAL
        .else
        SLOT eax, FREE + 9 * PAGE
        mov [FREE + PAGE - \\index * {entry}], eax
        .endif
        .endr
        CALL {call}, FREE + PAGE - 3 * {entry}, 8, offset word, DOMID_SELF
        NOTE
        NOTE [word]
    """)
    assert notes == [-EFAULT, 3]


# Calls that write an answer, each to the address it is given; with that of a page table too.
OUTPUTS = {
    "xen_version": "CALL xen_version, XENVER_compile_info, {at}",
    "features": "CALL xen_version, XENVER_get_features, {at}",
    "parameters": "CALL xen_version, XENVER_platform_parameters, {at}",
    "memory_map": "CALL memory_op, XENMEM_memory_map, {at}",
    "machphys_mapping": "CALL memory_op, XENMEM_machphys_mapping, {at}",
    "alloc_unbound": "CALL event_channel_op, EVTCHNOP_alloc_unbound, {at}",
    "status": "CALL event_channel_op, EVTCHNOP_status, {at}",
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("at", ["FREE + 8", "[l1]", "0xF5800000", "0xFC000000", "EMPTY", "LAST"])
def test_answers_go_where_the_guest_may_write(name: str, at: str) -> None:
    """A read-only page, its own L1, the hole, nothing, and a page whose neighbour is missing."""
    notes = notes_of(f"""
        .equ LAST, FREE + 2 * PAGE - 2
        mov dword ptr [FREE + 8], DOMID_SELF
        mov dword ptr [FREE + 12], 4
        RIGHTS FREE, RO
        MAP FREE + 2 * PAGE, 0
        SLOT_VA eax, FREE + 4 * PAGE
        mov [l1], eax
        mov ebp, [eax]
        {OUTPUTS[name].format(at=at)}
        NOTE
        mov eax, [l1]
        sub ebp, [eax]
        NOTE ebp
        NOTE [FREE + 8]
        NOTE [LAST - 2]
        ret
        .data
        l1: .long 0
        .text
    """)
    assert notes[0] < 0
    assert notes[1:] == [0, 0x7FF0, 0]


def test_a_table_without_an_end_stops_where_the_memory_does() -> None:
    """set_trap_table: the entries before an unmapped page stay registered, and no more."""
    notes = notes_of("""
        mov edi, FREE + PAGE - 3 * SIZEOF_TRAP_INFO
        mov ecx, 3
    entry:
        mov dword ptr [edi], 0xE0190300 | 0x80
        mov dword ptr [edi + 4], offset called
        add edi, SIZEOF_TRAP_INFO
        dec ecx
        jnz entry
        MAP FREE + PAGE, 0
        CALL set_trap_table, FREE + PAGE - 3 * SIZEOF_TRAP_INFO
        NOTE
        xor eax, eax
        int 0x80
        NOTE
        ret
    called:
        mov eax, 7
        iretd
    """)
    assert notes == [-EFAULT, 7]
