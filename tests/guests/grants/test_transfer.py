# SPDX-License-Identifier: GPL-2.0-or-later
"""Two running guests, one of which gives pages to the other (SECURITY D5, A9, A12)."""

from __future__ import annotations

import pytest

from tests.guests.events.test_between_guests import BINDING, OFFERING, data, run, wait
from tests.support.guest import START, BootedGuest
from tests.support.guests import SMP, several
from xenlite.abi.x86_32p import (
    EFAULT,
    EINVAL,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GTF_accept_transfer,
    GTF_transfer_committed,
    GTF_transfer_completed,
)

WORD = 1 << 32
REF = 9  # the receiver writes its table's first entries from here on
DONE = GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed
# As a network frontend of Xen's first years: gives a page back, to have room for one, asks for
# another in its place, and puts what has come where the old one was.
RECEIVER = f"""
    MAP_SHARED_INFO
    mov ebx, GNTTABOP_setup_table
    mov ecx, offset setup
    mov edx, 1
    XEN grant_table_op
    mov ebx, offset table
    mov ecx, [list]
    shl ecx, 12
    or ecx, PTE_RW_DATA
    mov edx, [list]
    shr edx, 20
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov ebx, offset place
    xor ecx, ecx
    xor edx, edx
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov eax, [p2m]
    mov ecx, offset place
    sub ecx, VIRT_BASE
    shr ecx, 12
    mov eax, [eax + ecx * 4]
    mov [list], eax
    mov ebx, XENMEM_decrease_reservation
    mov ecx, offset reservation
    XEN memory_op
    mov [answer], eax
    mov word ptr [table + 8 * {REF} + 2], 2
    mov word ptr [table + 8 * {REF}], GTF_accept_transfer
    {OFFERING}
    {wait("page")}
    mov eax, [table + 8 * {REF}]
    mov [entry], eax
    mov eax, [table + 8 * {REF} + 4]
    mov [entry + 4], eax
    mov ecx, eax
    mov edx, eax
    shl ecx, 12
    or ecx, PTE_RW_DATA
    shr edx, 20
    mov ebx, offset place
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    mov [mapped], eax
    mov eax, [place + 4]
    mov [seen], eax
    EVENT_OP send, port
    {wait("later")}
    mov eax, [place + 4]
    mov [seen + 4], eax
    FINISH 1
{data()}
.data
setup: .long DOMID_SELF, 1, 99, list
list: .long 0
reservation: .long list, 1, 0, 0, DOMID_SELF
answer: .long 99
mapped: .long 99
entry: .long 0, 0
seen: .long 0, 0
.bss
.p2align 12
table: .space 4096
place: .space 4096
.text
"""
# Writes into its page, which leaves the translation in the TLB, takes the mapping away without a
# flush, and gives the page to the first guest. ``before`` may spoil that, ``then`` abuse it.
GIVER = f"""
    MAP_SHARED_INFO
    {BINDING}
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
    mov dword ptr [gift + 4], 0x77777777
    mov eax, [p2m]
    mov ecx, offset gift
    sub ecx, VIRT_BASE
    shr ecx, 12
    mov eax, [eax + ecx * 4]
    mov [gifts + GNTTAB_TRANSFER_MFN], eax
    mov [gifts + SIZEOF_GNTTAB_TRANSFER + GNTTAB_TRANSFER_MFN], eax
    mov ebx, offset gift
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    XEN update_va_mapping
    {{before}}
    mov ebx, GNTTABOP_transfer
    mov ecx, offset gifts
    mov edx, {{count}}
    XEN grant_table_op
    mov [answer], eax
    EVENT_OP send, port
    {wait("seen")}
    {{then}}
    EVENT_OP send, port
    FINISH 2
{data()}
.data
.p2align 3
gifts: .long 0, 1, {REF}, 99
    .long 0, 1, {REF}, 99
calls: .long HYPERVISOR_grant_table_op, 99, GNTTABOP_transfer, gifts, 1, 0, 0, 0
    .long HYPERVISOR_grant_table_op, 99, GNTTABOP_transfer, gifts, 1, 0, 0, 0
answer: .long 99, 99
.bss
.p2align 12
read_only: .space 4096
gift: .space 4096
.text
"""


def kernels(before: str = "", then: str = "", count: str = "1") -> list[str]:
    """Write both kernels."""
    giver = GIVER.replace("{before}", before).replace("{then}", then).replace("{count}", count)
    return [SMP + START + RECEIVER, SMP + START + giver]


def status(giver: BootedGuest, index: int = 0) -> int:
    """Return the status of one transfer."""
    low = giver.word("gifts", 4 * index + 3) & 0xFFFF
    return low - (1 << 16) if low >> 15 else low


def both_end(guests: list[BootedGuest]) -> bool:
    """Run until both guests have ended."""
    return run(guests, lambda: all(guest.reason is not None for guest in guests))


def test_d5_a_page_changes_hands_and_its_new_owner_uses_it() -> None:
    with several(kernels(count="2")) as guests:
        receiver, giver = guests
        assert both_end(guests)
        assert [guest.reason for guest in guests] == [1, 2], [guest.crash for guest in guests]
        assert (receiver.word("answer"), receiver.word("mapped")) == (1, 0)
        assert giver.word("answer") == 0
        assert [status(giver), status(giver, 1)] == [GNTST_okay, GNTST_bad_page]
        mfn = giver.word("gifts")
        assert receiver.words("entry", 2) == [2 << 16 | DONE, mfn]
        assert receiver.words("seen", 2) == [0x77777777] * 2
        assert mfn in giver.hypervisor.machine.frames.pages_of(receiver.domid)
        assert giver.control.audit() == []


@pytest.mark.parametrize("store", ["mov dword ptr [gift + 4], 9", "mov eax, [gift + 4]"])
def test_a9_who_gave_it_reaches_it_no_more(store: str) -> None:
    """Its translation was cached when the entry went, and nobody asked for a flush."""
    with several(kernels(then=store)) as guests:
        receiver, giver = guests
        assert run(guests, lambda: giver.crash is not None)
        assert run(guests, lambda: receiver.word("seen") != 0)
        mfn = giver.word("gifts")
        assert giver.hypervisor.machine.memory.m32[(mfn * 4096 + 4) >> 2] == 0x77777777
        assert giver.control.audit() == []


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        ("REMAP offset gift, PTE_RW_DATA", GNTST_bad_page),
        ("REMAP offset gift, PTE_RO_DATA", GNTST_bad_page),
        ("mov dword ptr [gifts], -1", GNTST_bad_page),
        ("mov eax, [p2m]\n mov eax, [eax + 64]\n mov [gifts], eax", GNTST_bad_page),
        ("mov word ptr [gifts + GNTTAB_TRANSFER_DOMID], 3", GNTST_bad_domain),
        ("mov word ptr [gifts + GNTTAB_TRANSFER_DOMID], DOMID_SELF", GNTST_bad_domain),
        ("mov word ptr [gifts + GNTTAB_TRANSFER_DOMID], 0", GNTST_general_error),
        ("mov word ptr [gifts + GNTTAB_TRANSFER_DOMID], 2", GNTST_general_error),
        ("mov dword ptr [gifts + GNTTAB_TRANSFER_REF], 8", GNTST_general_error),
        ("mov dword ptr [gifts + GNTTAB_TRANSFER_REF], 512", GNTST_bad_gntref),
        ("mov dword ptr [gifts + GNTTAB_TRANSFER_REF], -1", GNTST_bad_gntref),
    ],
)
def test_d5_a_transfer_that_cannot_be_reaches_nobody(spoil: str, found: int) -> None:
    with several(kernels(before=spoil)) as guests:
        receiver, giver = guests
        assert run(guests, lambda: receiver.word("mapped") != 99)
        assert giver.word("answer") == 0
        assert status(giver) == found
        assert receiver.words("entry", 2) == [2 << 16 | GTF_accept_transfer, 0]
        assert giver.control.audit() == []


def test_d5_a_full_domain_is_given_nothing() -> None:
    with several(kernels()) as guests:
        receiver, giver = guests
        receiver.domain.max_pages -= 1
        assert run(guests, lambda: receiver.word("mapped") != 99)
        assert status(giver) == GNTST_general_error
        assert receiver.words("entry", 2) == [2 << 16 | GTF_accept_transfer, 0]
        assert giver.control.audit() == []


@pytest.mark.parametrize(
    ("lists", "count", "errno"),
    [
        ("mov dword ptr [calls + 12], 0xF57FFFF8", "1", EFAULT),
        ("mov dword ptr [calls + 12], offset read_only", "1", EFAULT),
        ("mov dword ptr [calls + 12], 8", "1", EFAULT),
        ("", "0x7FFFFFFF", EFAULT),
        ("", "0x80000000", EINVAL),
        ("", "-1", EINVAL),
    ],
)
def test_a15_a_list_that_is_not_there_gives_nothing(lists: str, count: str, errno: int) -> None:
    """Directly, and within a multicall, whose next entry then gives the page."""
    direct = f"""
        REMAP offset read_only, PTE_RO_DATA
        {lists}
        mov ebx, GNTTABOP_transfer
        mov ecx, [calls + 12]
        mov edx, {count}
        mov [calls + 16], edx
        XEN grant_table_op
        mov [answer + 4], eax
        mov ebx, offset calls
        mov ecx, 2
        XEN multicall
    """
    with several(kernels(before=direct)) as guests:
        receiver, giver = guests
        assert both_end(guests)
        assert giver.word("answer", 1) == WORD - errno
        assert [giver.word("calls", 1), giver.word("calls", 9)] == [WORD - errno, 0]
        assert status(giver) == GNTST_bad_page  # of the call behind it: the page has gone
        assert receiver.words("entry", 2) == [2 << 16 | DONE, giver.word("gifts")]
        assert giver.control.audit() == []


def test_a17_a_gift_survives_its_giver() -> None:
    with several(kernels()) as guests:
        receiver, giver = guests
        assert run(guests, lambda: receiver.word("seen") != 0)
        mfn = giver.word("gifts")
        giver.destroy()
        assert receiver.control.audit() == []
        assert mfn in receiver.hypervisor.machine.frames.pages_of(receiver.domid)
        assert receiver.word("place", 1) == 0x77777777
