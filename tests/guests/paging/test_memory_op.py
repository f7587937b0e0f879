# SPDX-License-Identifier: GPL-2.0-or-later
"""memory_op from ring 1: every sub-operation, and frames that are not to be had (A12, A18, E1)."""

from __future__ import annotations

import pytest

from tests.support.paging_guest import PAGE, Outcome, lab, notes_of, outcome
from xenlite.abi.x86_32p import (
    E820_RAM,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EPERM,
    MACH2PHYS_VIRT_END,
    MACH2PHYS_VIRT_START,
)

RESERVATION = """
    .macro RESERVE operation, list, count=1, order=0, flags=0, domid=DOMID_SELF
    mov dword ptr [reservation], \\list
    mov dword ptr [reservation + 4], \\count
    mov dword ptr [reservation + 8], \\order
    mov dword ptr [reservation + 12], \\flags
    mov dword ptr [reservation + 16], \\domid
    CALL memory_op, XENMEM_\\operation, offset reservation
    NOTE
    .endm
    .macro PAGES
    CALL memory_op, XENMEM_current_reservation, offset self
    NOTE
    .endm
    .data
    .p2align 2
    self: .word DOMID_SELF, 0
    reservation: .fill 5, 4, 0
    list: .fill 16, 4, 0
    .text
"""


def run(source: str, maxmem_mb: int = 5) -> Outcome:
    with lab() as made:
        guest = made.add(RESERVATION + source, maxmem_mb=maxmem_mb)
        assert guest.run()
        result = outcome(guest)
        assert result.reason == 0, result
        return result


def notes(source: str, maxmem_mb: int = 5) -> list[int]:
    return run(source, maxmem_mb).notes


def test_a_frame_is_given_back_and_another_one_populated() -> None:
    assert notes("""
        PAGES
        mov dword ptr [FREE], 0x1234
        MAP FREE, 0
        MFN eax, FREE
        mov [list], eax
        RESERVE decrease_reservation, list
        PAGES
        mov dword ptr [list], 0x200             # the PFN
        RESERVE populate_physmap, list
        PAGES
        mov eax, [list]
        NOTE [MACH2PHYS_VIRT_START + eax * 4]
        shl eax, 12
        or eax, RW
        MAP FREE, eax
        NOTE
        NOTE [FREE]                             # A18: scrubbed
    """) == [1024, 1, 1023, 1, 1024, 0x200, 0, 0]


def test_increase_adds_frames_without_names() -> None:
    assert notes("""
        RESERVE increase_reservation, list, 4
        PAGES
        mov eax, [list + 12]
        NOTE [MACH2PHYS_VIRT_START + eax * 4]
        shl eax, 12
        or eax, RW
        MAP FREE, eax
        NOTE
        NOTE [FREE]
    """) == [4, 1028, -1, 0, 0]


def test_an_extent_of_eight_neighbours() -> None:
    assert notes("""
        mov dword ptr [list], 0x400
        RESERVE populate_physmap, list, 1, 3
        PAGES
        mov eax, [list]
        and eax, 7
        NOTE
        mov eax, [list]
        NOTE [MACH2PHYS_VIRT_START + eax * 4 + 28]
    """) == [1, 1032, 0, 0x407]


def test_an_exchange_gives_one_frame_for_another() -> None:
    assert notes("""
        mov dword ptr [FREE], 0x77
        MAP FREE, 0
        MFN eax, FREE
        mov [given], eax
        mov dword ptr [gotten], 0x200
        CALL memory_op, XENMEM_exchange, offset exchange
        NOTE
        NOTE [exchanged]
        PAGES
        mov eax, [gotten]
        NOTE [MACH2PHYS_VIRT_START + eax * 4]
        shl eax, 12
        or eax, RW
        MAP FREE, eax
        NOTE
        NOTE [FREE]
        ret
        .data
        .p2align 2
        exchange:
            .long given, 1, 0, 0
            .word DOMID_SELF, 0
            .long gotten, 1, 0, 0
            .word DOMID_SELF, 0
        exchanged: .long 0
        given: .long 0
        gotten: .long 0
        .text
    """) == [0, 1, 1024, 0x200, 0, 0]


def test_what_a_guest_can_ask() -> None:
    assert notes(
        """
        CALL memory_op, XENMEM_maximum_ram_page
        NOTE
        CALL memory_op, XENMEM_maximum_reservation, offset self
        NOTE
        CALL memory_op, XENMEM_memory_map, offset map
        NOTE
        NOTE [map]
        NOTE [ranges + 8]
        NOTE [ranges + 16]
        CALL memory_op, XENMEM_machphys_mapping, offset mapping
        NOTE
        NOTE [mapping]
        NOTE [mapping + 4]
        NOTE [mapping + 8]
        ret
        .data
        .p2align 2
        map: .long 4, ranges
        ranges: .fill 20, 4, 0
        mapping: .fill 3, 4, 0
        .text
    """
    ) == [
        *(24 * 256, 5 * 256, 0, 1, 5 << 20, E820_RAM),
        *(0, MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, 24 * 256 - 1),
    ]


def test_privileged_and_unknown_operations_are_refused() -> None:
    assert notes("""
        .irp name, machphys_mfn_list, machine_memory_map, set_memory_map, set_pod_target
        CALL memory_op, XENMEM_\\name, offset self
        NOTE
        .endr
        CALL memory_op, 63, offset self
        NOTE
        CALL memory_op, XENMEM_maximum_ram_page | 5 << MEMOP_EXTENT_SHIFT
        NOTE
    """) == [-EPERM] * 4 + [-ENOSYS, -EINVAL]


# -- A12: frames that something still refers to ------------------------------------------------

USES = {
    "a live L3": ("TABLE_MFN eax, 0", ""),
    "a live L2": ("TABLE_MFN eax, 1", ""),
    "a live L1": ("TABLE_MFN eax, 3", ""),
    "a pinned L1": (
        "RIGHTS FREE, RO\n MFN eax, FREE\n EXTENDED MMUEXT_PIN_L1_TABLE, eax\n MAP FREE, 0\n"
        "MFN eax, FREE",
        "MFN eax, FREE\n EXTENDED MMUEXT_UNPIN_TABLE, eax",
    ),
    "a GDT": (
        "RIGHTS FREE, RO\n MFN eax, FREE\n mov [word], eax\n CALL set_gdt, offset word, 512\n"
        "MAP FREE, 0\n MFN eax, FREE",
        "CALL set_gdt, 0, 0",
    ),
    "a page mapped read-only": ("RIGHTS FREE, RO\n MFN eax, FREE", "MAP FREE, 0"),
    "a page mapped writable": ("MFN eax, FREE", "MAP FREE, 0"),
}


@pytest.mark.parametrize("name", USES)
def test_a12_a_frame_in_use_is_freed_when_the_last_use_goes(name: str) -> None:
    """It is given back once, stays as it is while it is used, and cannot be exchanged."""
    prepare, let_go = USES[name]
    with lab() as made:
        guest = made.add(
            RESERVATION
            + f"""
            {prepare}
            mov [list], eax
            mov [given], eax
            CALL memory_op, XENMEM_exchange, offset exchange
            NOTE
            RESERVE decrease_reservation, list
            RESERVE decrease_reservation, list
            mov dword ptr [FREE + PAGE], 5      # everything goes on
            NOTE 1
            CALL set_timer_op, 1, 0      # ends this turn
            {let_go}
            NOTE 2
            ret
            .data
            .p2align 2
            exchange:
                .long given, 1, 0, 0
                .word DOMID_SELF, 0
                .long given + 4, 1, 0, 0
                .word DOMID_SELF, 0
                .long 0
            given: .long 0, 0
            .text
        """
        )
        frames = made.hypervisor.machine.frames
        assert guest.run(until=lambda: guest.word("note_count") >= 4)
        mfn = guest.word("list")
        assert frames.owner[mfn] == guest.domid
        assert not frames.allocated[mfn]
        assert made.control.audit() == []
        assert guest.run()
        assert outcome(guest).notes == [-EINVAL, 1, 0, 1, 2]
        assert (frames.refs[mfn] == 0) == bool(let_go)


@pytest.mark.parametrize("mfn", ["0", "6143", "6144", "0x100000", "0xFFFFFFFF"])
def test_a12_only_own_frames_are_given_back(mfn: str) -> None:
    assert notes(f"""
        mov dword ptr [list], {mfn}
        RESERVE decrease_reservation, list
        RESERVE decrease_reservation, list, 1, 9
        PAGES
    """) == [0, 0, 1024]


def test_a12_shared_info_and_grants_are_not_the_guests_to_give() -> None:
    assert notes("""
        mov eax, [shared_info_maddr]
        shr eax, 12
        mov [list], eax
        RESERVE decrease_reservation, list
        mov byte ptr [shared_info], 1
    """) == [0]


def test_a12_one_frame_named_twice_goes_once() -> None:
    assert notes("""
        MAP FREE, 0
        MFN eax, FREE
        mov [list], eax
        mov [list + 4], eax
        RESERVE decrease_reservation, list, 2
        PAGES
    """) == [1, 1023]


# -- E1: what is asked for too much ------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        ("populate_physmap, list, 0x80000000", -EINVAL),
        ("populate_physmap, list, 0xFFFFFFFF", -EINVAL),
        ("populate_physmap, list, 1, 20", -EPERM),
        ("populate_physmap, list, 1, 10", -EPERM),
        ("populate_physmap, list, 1, 0xFFFFFFFF", -EPERM),
        ("populate_physmap, 0xF57FFFFC, 2", -EFAULT),
        ("populate_physmap, 0xFFFFFFFC, 1", -EFAULT),
        ("populate_physmap, EMPTY, 1", -EFAULT),
        ("decrease_reservation, 0xF57FFFFC, 2", -EFAULT),
        ("decrease_reservation, EMPTY, 1", -EFAULT),
        ("increase_reservation, 0xF57FFFFC, 2", -EFAULT),
        ("increase_reservation, EMPTY, 1", -EFAULT),
        ("increase_reservation, 0, 1, 9", -ENOMEM),
        ("populate_physmap, list, 1, 0, 0, 0", -EPERM),
        ("populate_physmap, list, 1, 0, 0, DOMID_XEN", -EPERM),
        ("increase_reservation, 0, 1, 0, 12", 0),
        ("populate_physmap, list, 0", 0),
    ],
)
def test_e1_a_request_that_is_too_large_takes_nothing(request_: str, result: int) -> None:
    assert notes(f"RESERVE {request_}\n PAGES") == [result, 1024]


def test_e1_no_more_than_the_maximum() -> None:
    assert notes("""
        RESERVE increase_reservation, 0, 300
        PAGES
        RESERVE increase_reservation, 0, 1
    """) == [256, 1280, -ENOMEM]


def test_e1_a_list_that_ends_in_the_middle_is_done_so_far() -> None:
    """The second half of the list is on a page that cannot be written."""
    assert notes("""
        RIGHTS FREE + PAGE, RO
        mov ecx, 4
        mov edi, FREE + PAGE - 16
        mov eax, 0x400
    name:
        stosd
        inc eax
        dec ecx
        jnz name
        RESERVE populate_physmap, FREE + PAGE - 16, 6
        PAGES
    """) == [4, 1028]


@pytest.mark.parametrize(
    "pointer", ["0", "EMPTY", "0xF57FFFF8", "0xF5800000", "0xFFFFFFF8", "FREE + 2 * PAGE - 4"]
)
def test_a15_structures_are_read_and_written_whole_or_not_at_all(pointer: str) -> None:
    """The last one ends on a page that is not there."""
    results = notes(f"""
        MAP FREE + 2 * PAGE, 0
        mov dword ptr [FREE + 2 * PAGE - 4], 1
        .irp name, populate_physmap, exchange, memory_map, machphys_mapping, decrease_reservation
        CALL memory_op, XENMEM_\\name, {pointer}
        NOTE
        .endr
        NOTE [FREE + 2 * PAGE - 4]
    """)
    assert results == [-EFAULT] * 5 + [1]


def test_a15_an_answer_goes_to_no_read_only_page() -> None:
    assert notes("""
        mov dword ptr [FREE], 4
        mov dword ptr [FREE + 4], FREE + PAGE
        RIGHTS FREE, RO
        CALL memory_op, XENMEM_memory_map, FREE
        NOTE
        CALL memory_op, XENMEM_machphys_mapping, FREE
        NOTE
        NOTE [FREE]
        NOTE [FREE + PAGE]
    """) == [-EFAULT, -EFAULT, 4, 0]


def test_a_long_list_is_done_to_its_end() -> None:
    """2500 extents: more than one stay, each populated once."""
    assert notes(
        """
        mov edi, FREE
        mov ecx, 2500
        mov eax, 0x400
    name:
        stosd
        inc eax
        dec ecx
        jnz name
        RESERVE populate_physmap, FREE, 2500
        PAGES
        mov esi, FREE
        mov ecx, 2500
        mov edx, 0x400
        xor ebp, ebp
    look:
        lodsd
        cmp [MACH2PHYS_VIRT_START + eax * 4], edx
        je named
        inc ebp
    named:
        inc edx
        dec ecx
        jnz look
        NOTE ebp
    """,
        maxmem_mb=16,
    ) == [2500, 3524, 0]


# -- A18 -----------------------------------------------------------------------------------------


def test_a18_what_a_dead_domain_wrote_is_gone() -> None:
    """One domain fills its memory and dies; the next one gets its frames and looks."""
    with lab(host_mb=12) as made:
        first = made.add("""
            mov edi, FREE
            mov ecx, 256 * PAGE / 4
            mov eax, 0x5EC2E700
            rep stosd
        """)
        assert first.run()
        memory, frames = made.hypervisor.machine.memory, made.hypervisor.machine.frames
        secret = (0x5EC2E700).to_bytes(4, "little") * (PAGE // 4)
        held = [
            mfn for mfn in frames.pages_of(first.domid) if memory.read(mfn * PAGE, PAGE) == secret
        ]
        assert len(held) >= 250
        made.remove(first)
        second = made.add(
            RESERVATION
            + """
            RESERVE increase_reservation, FREE, 400
            mov ebp, 400
            mov esi, FREE
            xor ebx, ebx
        next:
            lodsd
            push esi
            push ebp
            shl eax, 12
            or eax, RW
            MAP FREE + 100 * PAGE, eax
            pop ebp
            pop esi
            mov edi, FREE + 100 * PAGE
            mov ecx, PAGE / 4
            xor eax, eax
            repe scasd
            je clean
            inc dword ptr [word]
        clean:
            dec ebp
            jnz next
            NOTE [word]
            MAP FREE + 100 * PAGE, 0
        """,
            maxmem_mb=6,
        )
        assert second.run()
        assert outcome(second).notes == [400, 0]
        assert set(held) & frames.pages_of(second.domid)


def test_a18_strings_are_filled_to_their_end() -> None:
    """The tails of XENVER structures: zero, whatever lay there before."""
    results = notes_of("""
        .irp name, extraversion, compile_info, capabilities, changeset, commandline, guest_handle
        mov edi, FREE
        mov ecx, PAGE / 4
        mov eax, 0xA5A5A5A5
        rep stosd
        CALL xen_version, XENVER_\\name, FREE
        mov edi, FREE
        mov ecx, PAGE
        mov al, 0xA5
        repne scasb
        mov eax, edi
        sub eax, FREE + 1
        NOTE
        .endr
    """)
    assert results == [16, 144, 1024, 64, 1024, 16]
