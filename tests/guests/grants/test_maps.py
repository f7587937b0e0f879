# SPDX-License-Identifier: GPL-2.0-or-later
"""Two running guests, one of which maps a page of the other (SECURITY A9, D1, D3)."""

from __future__ import annotations

import pytest

from tests.guests.events.test_between_guests import BINDING, OFFERING, data, run, wait
from tests.support.guest import START, BootedGuest
from tests.support.guests import SMP, several
from xenlite.abi.x86_32p import GTF_permit_access, GTF_reading, GTF_writing

REF = 9
MAP = """
    mov ebx, GNTTABOP_map_grant_ref
    mov ecx, offset map_op
    mov edx, 1
    XEN grant_table_op
    mov [result], eax
"""
UNMAP = """
    mov eax, [map_op + GNTTAB_MAP_GRANT_REF_HANDLE]
    mov [unmap_op + GNTTAB_UNMAP_GRANT_REF_HANDLE], eax
    mov ebx, GNTTABOP_unmap_grant_ref
    mov ecx, offset unmap_op
    mov edx, 1
    XEN grant_table_op
"""
OPERATIONS = f"""
.data
.p2align 3
map_op: .long window, 0, GNTMAP_host_map, {REF}
    .word 1, 99
    .long 0, 0, 0
unmap_op: .long window, 0, 0, 0, 0
    .word 99, 0
.bss
.p2align 12
window: .space 4096
.text
"""
# Calls a function in its page before and after its peer has had a turn.
CALLER = f"""
    MAP_SHARED_INFO
    {OFFERING}
    {wait("start")}
    call function
    mov [first], eax
    EVENT_OP send, port
    {wait("change")}
    call function
    mov [second], eax
    EVENT_OP send, port
    {wait("unmap")}
    call function
    mov [third], eax
    FINISH 1
.text
.p2align 12
function:
    mov eax, 1
    ret
.p2align 12
{data()}
.data
first: .long 0
second: .long 0
third: .long 0
.text
"""
# Rewrites the number that the function returns: while it maps the page, and just before it leaves.
REWRITER = f"""
    MAP_SHARED_INFO
    {BINDING}
    lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
    {MAP}
    EVENT_OP send, port
    {wait("first")}
    mov dword ptr [window + 1], 2
    EVENT_OP send, port
    {wait("second")}
    mov dword ptr [window + 1], 3
    {UNMAP}
    EVENT_OP send, port
    {{then}}
    FINISH 2
{data()}
{OPERATIONS}
"""


def kernels(then: str = "") -> list[str]:
    """Write both kernels; ``then`` is what the mapper does after the unmap."""
    return [
        SMP + START + CALLER,
        SMP + START + REWRITER.replace("{then}", then),
    ]


def offer(granter: BootedGuest, label: str) -> int:
    """Offer a page of the first guest to the second; return its frame."""
    maddr = granter.control.translate(granter.domid, 0, granter.symbols[label])
    assert maddr is not None
    granter.control.seed_grant(granter.domid, REF, maddr >> 12, 2)
    return maddr >> 12


def flags(granter: BootedGuest) -> int:
    """Read the flags of the entry."""
    table = granter.domain.grants.mfns[0]
    return granter.hypervisor.machine.memory.m16[((table << 12) + REF * 8) >> 1]


def test_code_that_another_guest_rewrites_runs_as_it_stands() -> None:
    """Each engine keeps its own translations, and hears nothing of the other's stores."""
    with several(kernels()) as guests:
        granter, mapper = guests
        offer(granter, "function")
        assert run(guests, lambda: all(guest.reason is not None for guest in guests))
        assert [guest.reason for guest in guests] == [1, 2], [guest.crash for guest in guests]
        assert mapper.word("result") == 0
        assert [granter.word(label) for label in ("first", "second", "third")] == [1, 2, 3]
        assert flags(granter) == GTF_permit_access


@pytest.mark.parametrize("store", ["mov dword ptr [window + 64], 9", "mov eax, [window]"])
def test_an_unmapped_page_cannot_be_reached_through_the_tlb(store: str) -> None:
    """The page was written a moment before, so its translation is cached."""
    with several(kernels(store)) as guests:
        granter, mapper = guests
        mfn = offer(granter, "function")
        assert run(guests, lambda: all(guest.reason is not None for guest in guests))
        assert mapper.crash is not None
        assert granter.reason == 1
        assert granter.hypervisor.machine.memory.m32[(mfn * 4096 + 64) >> 2] != 9


def test_a_mapper_that_is_destroyed_leaves_the_page_to_its_owner() -> None:
    with several(kernels()) as guests:
        granter, mapper = guests
        offer(granter, "function")
        marked = GTF_permit_access | GTF_reading | GTF_writing
        assert run(guests, lambda: flags(granter) == marked)
        mapper.destroy()
        assert flags(granter) == GTF_permit_access
        assert granter.control.audit() == []


def test_a_granter_that_is_destroyed_leaves_the_page_to_its_mapper() -> None:
    with several(kernels()) as guests:
        granter, mapper = guests
        mfn = offer(granter, "function")
        marked = GTF_permit_access | GTF_reading | GTF_writing
        assert run(guests, lambda: flags(granter) == marked)
        granter.destroy()
        assert mapper.control.audit() == []
        frames = mapper.hypervisor.machine.frames
        assert frames.refs[mfn] == 2
        mapper.destroy()
        assert frames.refs[mfn] == 0


def test_a_number_whose_page_is_still_mapped_goes_to_no_new_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers come round after 32751 domains; here there are three."""
    monkeypatch.setattr("xenlite.hypervisor.DOMID_FIRST_RESERVED", 4)
    with several(kernels()) as guests:
        granter, mapper = guests
        offer(granter, "function")
        marked = GTF_permit_access | GTF_reading | GTF_writing
        assert run(guests, lambda: flags(granter) == marked)
        number, control = granter.domid, mapper.control
        granter.destroy()
        for _ in range(2):
            other = control.create_domain("other", max_pages=4, max_vcpus=1)
            assert other not in (number, mapper.domid)
            control.destroy_domain(other)
        mapper.destroy()
        last = control.create_domain("last", max_pages=4, max_vcpus=1)
        assert last == number
        control.destroy_domain(last)
