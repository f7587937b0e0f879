# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors: which may stand in a table, and what is kept of the tables (SECURITY B1, B2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.domains import FREE_PFN, READ_ONLY, Guest, World, world
from xenlite.abi.x86_32p import (
    EINVAL,
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS,
    FLAT_RING3_DS,
    SELECTOR_TI_LDT,
)
from xenlite.core.descriptors import (
    TSS_ESP1,
    TSS_SS1,
    BadSelector,
    checked,
    guest_selector,
)
from xenlite.errors import Refused
from xenlite.machine.frames import FrameType
from xenlite.machine.trap import HF_ADDSEG, HF_CPL, HF_CS32, HF_SS32

CODE1 = 0x00CFBB000000FFFF
DATA1 = 0x00CFB3000000FFFF
TSS = 0x0000890000000067
PRESENT = 1 << 47


@given(st.integers(0, (1 << 64) - 1))
@example(TSS)
@example(0x0000EC00E0190000)
@example(0x00AF9A000000FFFF)
def test_no_descriptor_that_is_let_through_has_power(descriptor: int) -> None:
    good = checked(descriptor)
    if good is None or not good & PRESENT:
        return
    assert good >> 45 & 3, "privilege 0"
    if good & 1 << 44:
        assert good & 1 << 40, "accessed, or the processor would have to write"
        assert not good & 1 << 53, "64-bit code"
        assert (good ^ descriptor) & ~(1 << 40 | 3 << 45) == 0
    else:
        kind = good >> 40 & 0xF
        assert kind in (0, 0xC)
        target = good >> 16 & 0xFFFF
        if kind:
            assert target >> 3 < 0x1C00 or target & SELECTOR_TI_LDT or target == FLAT_RING1_CS


@given(st.integers(0, 0xFFFF))
def test_a_registered_selector_is_never_of_ring_0(selector: int) -> None:
    assert guest_selector(selector) & 3
    assert guest_selector(selector) | 1 == selector | 1


def guest_with_frames(made: World, *pages: list[int]) -> tuple[Guest, tuple[int, ...]]:
    """Make a guest with read-only pages of descriptors."""
    guest = made.add(1)
    mfns = tuple(guest.make_table(FREE_PFN + n, page) for n, page in enumerate(pages))
    guest.domain.paging.work_left = 1000
    return guest, mfns


def test_a_gdt_holds_references_until_it_is_replaced() -> None:
    with world() as made:
        guest, (one, two) = guest_with_frames(made, [0, CODE1], [0, DATA1])
        frames, descriptors = made.machine.frames, guest.domain.descriptors
        descriptors.set_gdt((one, two, one), 1500)
        assert frames.kind[one] == frames.kind[two] == FrameType.SEGDESC
        assert (frames.type_count[one], frames.type_count[two]) == (2, 1)
        assert made.audit() == []
        descriptors.set_gdt((two,), 1)
        assert (frames.type_count[one], frames.type_count[two]) == (0, 1)
        descriptors.set_gdt((), 0)
        assert frames.kind[two] == FrameType.NONE


def test_a_refused_gdt_changes_nothing() -> None:
    with world() as made:
        guest, (one, bad) = guest_with_frames(made, [0, CODE1], [CODE1, TSS])
        descriptors = guest.domain.descriptors
        descriptors.set_gdt((one,), 2)
        before = made.snapshot()
        for mfns, entries in (((one, bad), 1000), ((one,) * 13 + (bad,), 7168)):
            with pytest.raises(Refused) as refused:
                descriptors.set_gdt(mfns, entries)
            assert refused.value.errno == EINVAL
            assert made.snapshot() == before
        assert guest.domain.current.gdt_frames == (one,)


def test_the_processor_sees_the_frames_in_the_window() -> None:
    with world() as made:
        guest, (one,) = guest_with_frames(made, [0, CODE1])
        descriptors, memory = guest.domain.descriptors, made.machine.memory
        window = guest.domain.hole.gdt_vaddr(0)

        def shown(page: int) -> int:
            slot = guest.domain.paging.slot_of(window + page * 4096)
            assert slot is not None
            entry = memory.m64[slot]
            assert entry & 3 == 1, "present and read-only"
            return entry >> 12 & 0xFFFFFFFF

        empty, flat = shown(0), shown(14)
        descriptors.set_gdt((one,), 2)
        assert shown(0) == one
        assert [shown(page) for page in range(1, 15)] == [empty] * 13 + [flat]
        descriptors.set_gdt((), 0)
        assert shown(0) == empty
        assert memory.read(empty << 12, 4096) == bytes(4096)
        used = memory.read(flat << 12, 4096)
        assert sum(used[i : i + 8] != bytes(8) for i in range(0, 4096, 8)) == 4


def test_the_flat_selectors_load_in_their_rings() -> None:
    with world() as made:
        domain = made.add(1).domain
        load = domain.descriptors.segments
        vcpu = domain.current
        widths = HF_CS32 | HF_SS32
        inner = load(vcpu, FLAT_RING1_CS, FLAT_RING1_DS)
        outer = load(vcpu, FLAT_RING3_CS, FLAT_RING3_DS)
        assert (inner.hflags, inner.ss_base) == (widths | 1, 0)
        assert (outer.hflags, outer.ss_base) == (widths | 3, 0)
        for cs, ss in (
            (FLAT_RING1_CS, FLAT_RING3_DS),
            (FLAT_RING3_CS, FLAT_RING1_DS),
            (FLAT_RING1_DS, FLAT_RING1_DS),
            (FLAT_RING1_CS, FLAT_RING1_CS),
            (0, FLAT_RING1_DS),
            (FLAT_RING1_CS, 1),
        ):
            with pytest.raises(BadSelector):
                load(vcpu, cs, ss)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    """Make one world for many examples."""
    with world() as made:
        made.add(1)
        yield made


@given(
    cs=st.integers(0, 0xFFFF),
    ss=st.integers(0, 0xFFFF),
    descriptors=st.lists(st.integers(0, (1 << 64) - 1) | st.sampled_from([CODE1, DATA1]),
                         min_size=8, max_size=8),
)  # fmt: skip
def test_what_is_loaded_agrees_with_its_privilege(
    shared: World, cs: int, ss: int, descriptors: list[int]
) -> None:
    """Over any table that was let through, and selectors in it."""
    good = [found for found in map(checked, descriptors) if found is not None]
    memory, domain = shared.machine.memory, shared.peers[1]
    mfn = shared.guests[1].mfns[FREE_PFN]
    memory.write(mfn << 12, b"".join(one.to_bytes(8, "little") for one in good).ljust(4096, b"\0"))
    vcpu = domain.current
    vcpu.gdt_frames = (mfn,)
    try:
        loaded = domain.descriptors.segments(vcpu, cs & 0x3B | 1, ss & 0x3B | 1)
    except BadSelector as bad:
        assert not bad.error_code & 3  # noqa: PT017 - both ways are right
        return
    finally:
        vcpu.gdt_frames = ()
        vcpu.segments.clear()
        memory.scrub(mfn)
    assert loaded.hflags & HF_CPL == cs & 3 | 1
    assert bool(loaded.ss_base) <= bool(loaded.hflags & HF_ADDSEG)


def test_an_ldt_page_is_promoted_on_use_and_dropped_with_the_address_space() -> None:
    with world() as made:
        guest, (mfn,) = guest_with_frames(made, [0, DATA1])
        frames, descriptors = made.machine.frames, guest.domain.descriptors
        descriptors.set_ldt(guest.vaddr(FREE_PFN), 512)
        assert frames.type_count[mfn] == 0
        window = guest.domain.hole.ldt_vaddr(0)
        assert descriptors.fix_fault(window + 8) is None
        assert frames.kind[mfn] == FrameType.SEGDESC
        assert made.audit() == []
        descriptors.drop_ldt()
        assert frames.type_count[mfn] == 0
        assert descriptors.fix_fault(window + 8) is None, "the address still means an LDT"
        descriptors.set_ldt(0, 0)
        assert frames.type_count[mfn] == 0
        assert descriptors.fix_fault(window + 8) == 8


def test_the_ldt_limit_holds_for_the_hypervisor_too() -> None:
    with world() as made:
        guest, _ = guest_with_frames(made, [0, DATA1, DATA1])
        descriptors, vcpu = guest.domain.descriptors, guest.domain.current
        descriptors.set_ldt(guest.vaddr(FREE_PFN), 2)
        assert descriptors.data_segment(vcpu, 0x0D, 1)[5] == DATA1 >> 32
        with pytest.raises(BadSelector):
            descriptors.data_segment(vcpu, 0x15, 1)


def test_an_ldt_page_that_is_writable_or_bad_is_not_promoted() -> None:
    with world() as made:
        guest, _ = guest_with_frames(made, [0, TSS])
        descriptors = guest.domain.descriptors
        window = guest.domain.hole.ldt_vaddr(0)
        for pfn in (FREE_PFN, FREE_PFN + 1):
            descriptors.set_ldt(guest.vaddr(pfn), 512)
            before = made.snapshot()
            assert descriptors.fix_fault(window + 16) == guest.vaddr(pfn) + 16
            assert made.snapshot() == before
        assert guest.remap(FREE_PFN + 1, READ_ONLY) == 0
        assert descriptors.fix_fault(window + 16) is None
        descriptors.set_ldt(0, 0)


def test_the_tss_follows_stack_switch() -> None:
    with world() as made:
        domain = made.add(1).domain
        domain.descriptors.set_kernel_stack(0x11, 0xC0123450)
        tss = domain.hole.tss_maddr(0)
        assert made.machine.memory.m32[(tss + TSS_ESP1) >> 2] == 0xC0123450
        assert made.machine.memory.m32[(tss + TSS_SS1) >> 2] == 0x11
