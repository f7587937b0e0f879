# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on grants out of ring 1: the shortest hostile steps of SECURITY D1 to D4 and D6.

The guest offers its pages to itself, so that it has both ends in hand: it rewrites entries while
they are in use, and names addresses that are none of an L1.
"""

from __future__ import annotations

import pytest

from tests.support.guest import START, BootedGuest, made
from xenlite.abi.x86_32p import (
    EFAULT,
    EINVAL,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_reading,
    GTF_writing,
)

WORD = 1 << 32
REF = 9
NO_HANDLE = WORD - 1
KERNEL = f"""
.macro GRANT op, list, count=1
    mov ebx, GNTTABOP_\\op
    mov ecx, offset \\list
    mov edx, \\count
    XEN grant_table_op
    or [failed], eax
.endm
# Take the handle of one map to one unmap.
.macro HANDLE map, unmap
    mov eax, [\\map + GNTTAB_MAP_GRANT_REF_HANDLE]
    mov [\\unmap + GNTTAB_UNMAP_GRANT_REF_HANDLE], eax
.endm
# Find the frame of a page by the list that it had at first.
.macro MFN register, label
    mov ebp, [p2m]
    mov \\register, offset \\label
    sub \\register, VIRT_BASE
    shr \\register, 12
    mov \\register, [ebp + \\register * 4]
.endm
.macro SET_PTE vaddr, low, flush=UVMF_INVLPG
    mov ebx, offset \\vaddr
    mov ecx, \\low
    xor edx, edx
    mov esi, \\flush
    XEN update_va_mapping
    or [failed], eax
.endm
# Offer a page to oneself.
.macro OFFER label, flags=GTF_permit_access
    MFN eax, \\label
    mov [table + 8 * {REF} + 4], eax
    mov word ptr [table + 8 * {REF} + 2], 1
    mov word ptr [table + 8 * {REF}], \\flags
.endm
{START}
    GRANT setup_table, setup
    mov eax, [list]
    shl eax, 12
    or eax, PTE_RW_DATA
    SET_PTE table, eax
    mov dword ptr [page], 0x11111111
    mov dword ptr [other], 0x22222222
    OFFER page
    {{attack}}
    FINISH 1
.data
.p2align 3
setup: .long DOMID_SELF, 1, 99, list
list: .long 0
failed: .long 0
seen: .long 0xAAAAAAAA, 0xAAAAAAAA
{{data}}
.bss
.p2align 12
table: .space 4096
page: .space 4096
other: .space 4096
window: .space 4096
window2: .space 4096
.text
"""


def attacker(attack: str, data: str = "") -> str:
    """Write a kernel that makes an attack."""
    return KERNEL.replace("{attack}", attack).replace("{data}", data)


def map_op(host: str | int, flags: int = GNTMAP_host_map, ref: int = REF) -> str:
    """Write one map of the guest's own grant; the status is what nobody writes."""
    return f".long {host}, 0, {flags}, {ref}\n .word 1, 99\n .long {NO_HANDLE}, 0, 0"


def unmap_op(host: str | int, handle: int = NO_HANDLE) -> str:
    """Write one unmap."""
    return f".long {host}, 0, 0, 0, {handle}\n .word 99, 0"


def entry_flags(guest: BootedGuest) -> int:
    """Read the flags of the entry."""
    table = guest.domain.grants.mfns[0]
    return guest.hypervisor.machine.memory.m16[((table << 12) + REF * 8) >> 1]


def signed(word: int) -> int:
    """Take a 16-bit status out of a word."""
    low = word & 0xFFFF
    return low - (1 << 16) if low >> 15 else low


def map_status(guest: BootedGuest, label: str, index: int = 0) -> int:
    """Return what became of a map."""
    return signed(guest.word(label, 8 * index + 4) >> 16)


def unmap_status(guest: BootedGuest, label: str, index: int = 0) -> int:
    """Return what became of an unmap."""
    return signed(guest.word(label, 6 * index + 5))


def finished(guest: BootedGuest) -> None:
    """Run to the end, which is a good one."""
    assert guest.run()
    assert guest.reason == 1, guest.crash
    assert guest.word("failed") == 0


# -- D1 -------------------------------------------------------------------------------------------


def test_d1_an_entry_that_flips_under_a_map_stays_what_it_was() -> None:
    """Another frame is not looked at; another domain, or fewer rights, are refused."""
    attack = f"""
        GRANT map_grant_ref, first
        MFN eax, other
        mov [table + 8 * {REF} + 4], eax
        GRANT map_grant_ref, second
        mov eax, [window2]
        mov [seen], eax
        mov word ptr [table + 8 * {REF} + 2], 7
        GRANT map_grant_ref, third
        mov word ptr [table + 8 * {REF} + 2], 1
        mov word ptr [table + 8 * {REF}], GTF_permit_access | GTF_readonly
        GRANT map_grant_ref, fourth
        mov word ptr [table + 8 * {REF}], 0
        GRANT map_grant_ref, fifth
        HANDLE first, undo
        HANDLE second, undo + SIZEOF_GNTTAB_UNMAP_GRANT_REF
        GRANT unmap_grant_ref, undo, 2
    """
    window, device = map_op("window"), GNTMAP_device_map
    data = f"""
        first: {window}
        second: {map_op("window2")}
        third: {map_op(0, device)}
        fourth: {map_op(0, device)}
        fifth: {map_op(0, device | GNTMAP_readonly)}
        undo: {unmap_op("window")}
        {unmap_op("window2")}
    """
    with made(attacker(attack, data)) as guest:
        finished(guest)
        assert guest.word("seen") == 0x11111111
        found = [map_status(guest, one) for one in ("first", "second", "third", "fourth", "fifth")]
        assert found == [GNTST_okay] * 2 + [GNTST_general_error] * 3
        assert [unmap_status(guest, "undo", n) for n in range(2)] == [GNTST_okay] * 2
        assert entry_flags(guest) & (GTF_reading | GTF_writing) == 0


def test_d1_three_hundred_maps_are_undone_in_odd_order() -> None:
    """Every second one may only read; those that may write go first, then the others, backwards."""
    maps = "\n".join(
        map_op(0, GNTMAP_device_map | (GNTMAP_readonly if n % 2 else 0)) for n in range(300)
    )
    undone = [*range(0, 300, 2), *range(299, 0, -2)]
    moves = "\n".join(
        f"mov eax, [maps + {32 * n + 20}]\n mov [undo + {24 * k + 16}], eax\n"
        f"mov eax, [maps + {32 * n + 24}]\n mov [undo + {24 * k + 8}], eax"
        for k, n in enumerate(undone)
    )
    attack = f"""
        GRANT map_grant_ref, maps, 300
        {moves}
        GRANT unmap_grant_ref, undo, 150
        mov eax, [table + 8 * {REF}]
        mov [seen], eax
        GRANT unmap_grant_ref, undo + 150 * SIZEOF_GNTTAB_UNMAP_GRANT_REF, 150
    """
    undo = "\n".join(unmap_op(0) for _ in undone)
    with made(attacker(attack, f"maps: {maps}\nundo: {undo}")) as guest:
        finished(guest)
        assert {map_status(guest, "maps", n) for n in range(300)} == {GNTST_okay}
        assert {unmap_status(guest, "undo", n) for n in range(300)} == {GNTST_okay}
        assert guest.word("seen") & 0xFFFF == GTF_permit_access | GTF_reading
        assert entry_flags(guest) == GTF_permit_access
        assert list(guest.domain.grants.uses()) == []


# -- D2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["odd", "l2", "l3", "data", "beyond", "hole", "no table"])
def test_d2_what_is_no_l1_entry_maps_nothing(place: str) -> None:
    by_pte = place not in ("hole", "no table")
    flags = GNTMAP_host_map | (GNTMAP_contains_pte if by_pte else 0)
    data = f".p2align 3\nasked: {map_op(0, flags)}"
    with made(attacker("GRANT map_grant_ref, asked", data)) as guest:
        walk = guest.control.page_walk(guest.domid, 0, guest.symbols["window"])
        slots = [step.maddr for step in walk]
        address = {
            "odd": slots[2] + 4,
            "l2": slots[1],
            "l3": slots[0],
            "data": guest.control.translate(guest.domid, 0, guest.symbols["window"]),
            "beyond": 1 << 40,
            "hole": 0xF5800000,
            "no table": 0xE0000000,
        }[place]
        assert address is not None
        at = guest.control.translate(guest.domid, 0, guest.symbols["asked"])
        assert at is not None
        guest.hypervisor.machine.memory.write(at, address.to_bytes(8, "little"))
        finished(guest)
        assert map_status(guest, "asked") == GNTST_general_error
        assert entry_flags(guest) == GTF_permit_access
        assert list(guest.domain.grants.uses()) == []


def test_d2_a_table_is_never_mapped_writable() -> None:
    """The granter offers the L1 that maps it: to read is all that can be had."""
    attack = f"""
        mov eax, [l1_mfn]
        mov [table + 8 * {REF} + 4], eax
        GRANT map_grant_ref, writing
        GRANT map_grant_ref, reading
        HANDLE reading, undo
        GRANT unmap_grant_ref, undo
    """
    data = f"""
        writing: {map_op("window")}
        reading: {map_op("window", GNTMAP_host_map | GNTMAP_readonly)}
        undo: {unmap_op("window")}
        l1_mfn: .long 0
    """
    with made(attacker(attack, data)) as guest:
        walk = guest.control.page_walk(guest.domid, 0, guest.symbols["window"])
        at = guest.control.translate(guest.domid, 0, guest.symbols["l1_mfn"])
        assert at is not None
        l1_mfn = walk[2].maddr >> 12
        guest.hypervisor.machine.memory.write(at, l1_mfn.to_bytes(4, "little"))
        finished(guest)
        assert map_status(guest, "writing") == GNTST_general_error
        assert map_status(guest, "reading") == GNTST_okay
        assert unmap_status(guest, "undo") == GNTST_okay


# -- D3 -------------------------------------------------------------------------------------------


def test_d3_a_mapping_is_undone_once_whatever_became_of_its_entry() -> None:
    attack = """
        GRANT map_grant_ref, asked
        HANDLE asked, elsewhere
        HANDLE asked, undo
        HANDLE asked, again
        GRANT unmap_grant_ref, elsewhere
        SET_PTE window, 0
        GRANT unmap_grant_ref, undo
        GRANT unmap_grant_ref, again
        GRANT unmap_grant_ref, none
    """
    data = f"""
        asked: {map_op("window")}
        elsewhere: {unmap_op("other")}
        undo: {unmap_op("window")}
        again: {unmap_op("window")}
        none: {unmap_op("window")}
        {unmap_op("window", 1 << 31)}
    """
    with made(attacker(attack, data)) as guest:
        finished(guest)
        assert unmap_status(guest, "elsewhere") == GNTST_general_error
        assert unmap_status(guest, "undo") == GNTST_general_error  # nothing maps it there
        assert unmap_status(guest, "again") != GNTST_okay
        assert unmap_status(guest, "none") == GNTST_bad_handle
        assert guest.control.audit() == []


# -- D4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copy", "status"),
    [
        (".word 1, 1\n .long {other}\n .word DOMID_SELF, 0, 4096, 1", GNTST_bad_copy_arg),
        (".word 1, 0\n .long {other}\n .word DOMID_SELF, 1, 4096, 1", GNTST_bad_copy_arg),
        (".word 1, 0xFFFF\n .long {other}\n .word DOMID_SELF, 0, 1, 1", GNTST_bad_copy_arg),
        (".word 1, 0\n .long {table}\n .word DOMID_SELF, 0, 64, 1", GNTST_general_error),
        (".word 1, 0\n .long {other}\n .word 0, 0, 64, 1", GNTST_permission_denied),
        (".word 1, 0\n .long 0xFFFFFFFF\n .word DOMID_SELF, 0, 64, 1", GNTST_bad_page),
        (".word 1, 0\n .long {m2p}\n .word DOMID_SELF, 0, 64, 1", GNTST_bad_page),
        (".word 1, 0\n .long 77\n .word 1, 0, 64, 3", GNTST_general_error),
        (".word 1, 0\n .long 0xFFFFFFFF\n .word 1, 0, 64, 3", GNTST_bad_gntref),
        (".word 1, 0\n .long {other}\n .word DOMID_SELF, 4032, 64, 1", GNTST_okay),
    ],
)
def test_d4_a_copy_writes_ones_own_pages_alone(copy: str, status: int) -> None:
    assert (GNTCOPY_source_gref, GNTCOPY_source_gref | GNTCOPY_dest_gref) == (1, 3)
    names = {"other": "0x7FFFFF01", "table": "0x7FFFFF02", "m2p": "0x7FFFFF03"}
    data = f"asked: .long {REF}\n {copy.format(**names)}\n .word 99, 0"
    with made(attacker("GRANT copy, asked", data)) as guest:
        walk = guest.control.page_walk(guest.domid, 0, guest.symbols["other"])
        own, frames = walk[2].mfn, guest.hypervisor.machine.frames
        assert own is not None
        mfns = {"other": own, "table": walk[2].maddr >> 12, "m2p": frames.m2p_frames[0]}
        at = guest.control.translate(guest.domid, 0, guest.symbols["asked"])
        assert at is not None
        memory = guest.hypervisor.machine.memory
        for name, stands_for in names.items():
            if memory.read(at + 8, 4) == int(stands_for, 16).to_bytes(4, "little"):
                memory.write(at + 8, mfns[name].to_bytes(4, "little"))
        finished(guest)
        assert signed(guest.word("asked", 5)) == status
        copied = guest.bytes_at("other", 4096)[4032:4036]
        assert (copied == b"\x11" * 4) is (status == GNTST_okay)
        assert entry_flags(guest) == GTF_permit_access


# -- D6, and what every list must stand ------------------------------------------------------------


def test_d6_entries_outside_the_table_or_in_use_are_not_swapped() -> None:
    attack = """
        GRANT swap_grant_ref, outside
        GRANT map_grant_ref, asked
        GRANT swap_grant_ref, used
        HANDLE asked, undo
        GRANT unmap_grant_ref, undo
    """
    data = f"""
        outside: .long {REF}, 0xFFFFFFFF, 99
        used: .long {REF}, {REF + 1}, 99
        asked: {map_op("window")}
        undo: {unmap_op("window")}
    """
    with made(attacker(attack, data)) as guest:
        finished(guest)
        assert signed(guest.word("outside", 2)) == GNTST_bad_gntref
        assert signed(guest.word("used", 2)) == GNTST_eagain
        assert unmap_status(guest, "undo") == GNTST_okay


@pytest.mark.parametrize(
    "command",
    [
        "map_grant_ref",
        "unmap_grant_ref",
        "unmap_and_replace",
        "copy",
        "swap_grant_ref",
        "cache_flush",
        "transfer",
    ],
)
def test_a15_no_list_reaches_beyond_what_the_guest_may_write(command: str) -> None:
    """The hole, the end of all addresses, an unmapped page, a page to read, and odd lengths."""
    asked = [
        ("0xF57FFFFC", "1", EFAULT),
        ("0xFFFFFFF8", "1", EFAULT),
        ("0xE0000000", "1", EFAULT),
        ("offset other", "1", EFAULT),
        ("offset page", "0x7FFFFFFF", EFAULT),
        ("offset page", "0x80000000", EINVAL),
        ("offset page", "-1", EINVAL),
        ("0", "0", 0),
    ]
    calls = "\n".join(
        f"mov ebx, GNTTABOP_{command}\n mov ecx, {at}\n mov edx, {count}\n XEN grant_table_op\n"
        f"mov [results + {4 * n}], eax"
        for n, (at, count, _) in enumerate(asked)
    )
    data = f"results: .fill {len(asked)}, 4, 99"
    with made(attacker(f"REMAP offset other, PTE_RO_DATA\n{calls}", data)) as guest:
        finished(guest)
        found = guest.words("results", len(asked))
        assert found == [(WORD - errno) % WORD for _, _, errno in asked]
        assert list(guest.domain.grants.uses()) == []
