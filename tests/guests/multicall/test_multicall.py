# SPDX-License-Identifier: GPL-2.0-or-later
"""multicall from ring 1: results in their slots, no nesting, an end by iret, and restarts (E4)."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import lab, notes_of, outcome, run_guest
from xenlite.abi.x86_32p import EBUSY, EFAULT, EINVAL, ENOSYS
from xenlite.machine.cpuid import XEN_MAJOR, XEN_MINOR

VERSION = XEN_MAJOR << 16 | XEN_MINOR
UNTOUCHED = 0x5A5A

ENTRY = f"""
    .macro ENTRY_OF number, a=0, b=0, c=0, d=0, e=0
    .long \\number, {UNTOUCHED}, \\a, \\b, \\c, \\d, \\e, 0
    .endm
    .macro RESULT index
    NOTE [calls + \\index * SIZEOF_MULTICALL_ENTRY + MULTICALL_ENTRY_RESULT]
    .endm
"""


def test_results_stand_in_their_slots() -> None:
    notes = notes_of(f"""
        {ENTRY}
        mov dword ptr [FREE], 1
        CALL multicall, offset calls, 5
        NOTE
        .irp index, 0, 1, 2, 3, 4
        RESULT \\index
        .endr
        TRY
        mov eax, [FREE]
        CAUGHT
        ret
        .data
        .p2align 3
        calls:
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
            ENTRY_OF HYPERVISOR_update_va_mapping, FREE, 0, 0, UVMF_INVLPG
            ENTRY_OF HYPERVISOR_update_va_mapping, EMPTY, 0, 0, UVMF_INVLPG
            ENTRY_OF 63
            ENTRY_OF HYPERVISOR_xen_version, XENVER_pagesize
        .text
    """)
    assert notes == [0, VERSION, 0, -EINVAL, -ENOSYS, 4096, 1]


@pytest.mark.parametrize("number", ["64", "0x80000000", "0xFFFFFFFF"])
def test_a_number_beyond_the_table_is_unknown(number: str) -> None:
    notes = notes_of(f"""
        {ENTRY}
        CALL multicall, offset calls, 1
        NOTE
        RESULT 0
        mov eax, {number}
        int HYPERCALL_VECTOR
        NOTE
        ret
        .data
        calls: ENTRY_OF {number}
        .text
    """)
    assert notes == [0, -ENOSYS, -ENOSYS]


def test_lists_do_not_nest() -> None:
    notes = notes_of(f"""
        {ENTRY}
        CALL multicall, offset calls, 2
        NOTE
        RESULT 0
        RESULT 1
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_multicall, inner, 1
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
        inner:
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
        .text
    """)
    assert notes == [0, -EINVAL, VERSION]


def test_an_iret_ends_the_list() -> None:
    """[iret, xen_version]: the guest goes on where the frame says, and nothing more is called."""
    notes = notes_of(f"""
        {ENTRY}
        mov ebp, esp
        push EFLAGS_IF
        push FLAT_RING1_CS
        push offset here
        push 0x1234                         # eax
        CALL multicall, offset calls, 3
        NOTE 1
    here:
        NOTE
        cmp esp, ebp
        sete al
        movzx eax, al
        NOTE
        RESULT 0
        RESULT 1
        RESULT 2
        # A list can be begun again.
        CALL multicall, offset calls, 1
        NOTE
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
            ENTRY_OF HYPERVISOR_iret
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
        .text
    """)
    assert notes == [0x1234, 1, VERSION, UNTOUCHED, UNTOUCHED, 0]


@pytest.mark.parametrize(
    ("pointer", "count", "result"),
    [
        ("offset calls", "0x80000000", -EFAULT),
        ("offset calls", "0xFFFFFFFF", -EFAULT),
        ("0xF5800000", "1", -EFAULT),
        ("0xF57FFFF0", "1", -EFAULT),
        ("0xFFFFFFF0", "1", -EFAULT),
        ("EMPTY", "1", -EFAULT),
        ("0", "1", -EFAULT),
        ("EMPTY", "0", 0),
        ("0xFFFFFFFF", "0", -EFAULT),
    ],
)
def test_a15_a_bad_list_is_refused(pointer: str, count: str, result: int) -> None:
    notes = notes_of(f"""
        CALL multicall, {pointer}, {count}
        NOTE
        ret
        .data
        calls: .fill 8, 4, 0
        .text
    """)
    assert notes == [result]


def test_e4_a_list_in_a_page_table_is_not_written() -> None:
    """The call is made and its result cannot be stored: the list ends with an error."""
    notes = notes_of(f"""
        .equ LIST, FREE + PAGE
        {ENTRY}
        mov dword ptr [LIST], 16            # as an entry of a table: not present
        mov dword ptr [LIST + MULTICALL_ENTRY_RESULT], 0
        RIGHTS LIST, RO
        MFN eax, LIST
        EXTENDED MMUEXT_PIN_L1_TABLE, eax
        NOTE
        CALL multicall, LIST, 2
        NOTE
        NOTE [LIST + MULTICALL_ENTRY_RESULT]
    """)
    assert notes == [0, -EFAULT, 0]


def test_e4_each_entry_is_read_once() -> None:
    """An entry that changes its own slot and the one behind it, through a page it may write."""
    notes = notes_of(f"""
        {ENTRY}
        # The first call copies a page over the list: what it says is read afterwards.
        mov esi, offset image
        mov edi, FREE
        mov ecx, 2 * SIZEOF_MULTICALL_ENTRY / 4
        rep movsd
        mov esi, offset other
        mov edi, FREE + PAGE
        mov ecx, 2 * SIZEOF_MULTICALL_ENTRY / 4
        rep movsd
        MFN eax, FREE
        mov [copy + 4], eax
        MFN eax, FREE + PAGE
        mov [copy + 8], eax
        CALL multicall, FREE, 2
        NOTE
        NOTE [FREE]
        NOTE [FREE + MULTICALL_ENTRY_RESULT]
        NOTE [FREE + SIZEOF_MULTICALL_ENTRY + MULTICALL_ENTRY_RESULT]
        ret
        .data
        image:
            ENTRY_OF HYPERVISOR_mmuext_op, copy, 1, 0, DOMID_SELF
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
        other:
            ENTRY_OF 63
            ENTRY_OF HYPERVISOR_xen_version, XENVER_pagesize
        copy: .long MMUEXT_COPY_PAGE, 0, 0
        .text
    """)
    assert notes == [0, 63, 0, 4096]


def test_a_list_goes_on_after_its_own_page_was_unmapped() -> None:
    notes = notes_of(f"""
        {ENTRY}
        mov esi, offset image
        mov edi, FREE
        mov ecx, 2 * SIZEOF_MULTICALL_ENTRY / 4
        rep movsd
        CALL multicall, FREE, 2
        NOTE
        RIGHTS FREE, RW
        NOTE [FREE + MULTICALL_ENTRY_RESULT]
        NOTE [FREE + SIZEOF_MULTICALL_ENTRY + MULTICALL_ENTRY_RESULT]
        ret
        .data
        image:
            ENTRY_OF HYPERVISOR_update_va_mapping, FREE, 0, 0, UVMF_INVLPG
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
        .text
    """)
    assert notes == [-EFAULT, UNTOUCHED, UNTOUCHED]


def test_a_long_list_is_done_to_its_end() -> None:
    """5000 entries are more than one stay in the hypervisor; every one has its result."""
    notes = notes_of(f"""
        .equ COUNT, 5000
        .equ LIST, FREE
        mov edi, LIST
        mov ecx, COUNT
    fill:
        mov dword ptr [edi], HYPERVISOR_xen_version
        mov dword ptr [edi + MULTICALL_ENTRY_ARGS], XENVER_version
        add edi, SIZEOF_MULTICALL_ENTRY
        dec ecx
        jnz fill
        CALL multicall, LIST, COUNT
        NOTE
        mov edi, LIST
        mov ecx, COUNT
        xor eax, eax
    look:
        cmp dword ptr [edi + MULTICALL_ENTRY_RESULT], {VERSION}
        setne dl
        movzx edx, dl
        add eax, edx
        add edi, SIZEOF_MULTICALL_ENTRY
        dec ecx
        jnz look
        NOTE
    """)
    assert notes == [0, 0]


def test_a_long_call_within_a_list_is_done_to_its_end() -> None:
    """65535 updates in one entry: the list restarts inside it, and goes on behind it."""
    notes = notes_of(f"""
        {ENTRY}
        # One page of updates, mapped again and again: 65535 of them lie in 256 pages.
        mov edi, FREE
        mov ecx, 256
        SLOT edx, FREE + 500 * PAGE
    fill:
        mov [edi], edx
        mov dword ptr [edi + 4], 0
        mov dword ptr [edi + 8], 0
        mov dword ptr [edi + 12], 0
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
        CALL multicall, offset calls, 3
        NOTE
        RESULT 0
        RESULT 1
        RESULT 2
        NOTE [word]
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
            ENTRY_OF HYPERVISOR_mmu_update, FREE, 65535, word, DOMID_SELF
            ENTRY_OF HYPERVISOR_xen_version, XENVER_pagesize
        .text
    """)
    assert notes == [0, VERSION, 0, 4096, 65535]


def test_a_list_stops_for_a_block_and_goes_on_after_it() -> None:
    """sched_op in a list: what follows is done when the guest runs again."""
    notes = notes_of(f"""
        {ENTRY}
        CALL multicall, offset calls, 3
        NOTE
        RESULT 0
        RESULT 1
        RESULT 2
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_xen_version, XENVER_version
            ENTRY_OF HYPERVISOR_sched_op, SCHEDOP_yield
            ENTRY_OF HYPERVISOR_xen_version, XENVER_pagesize
        .text
    """)
    assert notes == [0, VERSION, 0, 4096]


def test_a_shutdown_in_a_list_is_the_end() -> None:
    result = run_guest(f"""
        {ENTRY}
        CALL multicall, offset calls, 2
        NOTE
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_sched_op_compat, SCHEDOP_shutdown, 7
            ENTRY_OF HYPERVISOR_console_io, CONSOLEIO_write, 5, text
        text: .ascii "after"
        .text
    """)
    assert (result.reason, result.console) == (7, b"")


def test_a_crash_in_a_list_ends_that_domain_alone() -> None:
    with lab() as made:
        guest = made.add(f"""
            {ENTRY}
            push EFLAGS_IF
            push 0xE008                     # a ring 0 selector
            push 0
            push 0
            CALL multicall, offset calls, 1
            ret
            .data
            calls: ENTRY_OF HYPERVISOR_iret
            .text
        """)
        other = made.add("NOTE 1")
        assert guest.run()
        assert other.run()
        assert guest.crash_rule is not None
        assert outcome(other).notes == [1]
        assert guest.domain.in_multicall is False


def test_a1_what_a_list_refuses_leaves_the_rest_right() -> None:
    notes = notes_of(f"""
        {ENTRY}
        TABLE_MFN eax, 3
        shl eax, 12
        or eax, RW
        mov [calls + MULTICALL_ENTRY_ARGS + 4], eax
        CALL multicall, offset calls, 2
        NOTE
        RESULT 0
        RESULT 1
        ret
        .data
        calls:
            ENTRY_OF HYPERVISOR_update_va_mapping, FREE, 0, 0, UVMF_INVLPG
            ENTRY_OF HYPERVISOR_update_va_mapping, FREE, 0, 0, UVMF_INVLPG
        .text
    """)
    assert notes == [0, -EBUSY, 0]
