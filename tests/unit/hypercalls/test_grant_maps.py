# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapping, unmapping and copying what others grant (SECURITY D1 to D6), and what must not go."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack, unpack_from

import pytest

from tests.support.domains import FREE_PFN, KERNEL, L1_PFNS, PAGE, READ_ONLY, Guest, World, entry
from xenlite.abi.codec import Structure
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EBUSY,
    EFAULT,
    EINVAL,
    EOPNOTSUPP,
    EPERM,
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_device_space,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabCopy,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabSwapGrantRef,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    XENMEM_decrease_reservation,
    XenMemoryReservation,
)
from xenlite.core import maptrack
from xenlite.core.paging import WORK_BUDGET
from xenlite.hypercalls.grants import GrantCalls
from xenlite.machine.frames import FrameType
from xenlite.machine.x86_32p import PTE_NX, PTE_RW, PTE_US

GRANTER, MAPPER = 1, 2
OFFERED = FREE_PFN  # the page that the granter offers under REF
WINDOW = FREE_PFN + 3  # the mapper's page in whose place it maps what it is offered
REF = 9
NO_HANDLE = 0xFFFFFFFF
PAGES_L2 = L1_PFNS[0] - 1  # the PFN of the mapper's L2


class Pair:
    """A guest that offers a page, and one that maps it."""

    def __init__(self) -> None:
        self.world = World(32)
        self.granter, self.mapper = self.world.add(GRANTER), self.world.add(MAPPER)
        self.refused: list[str] = []
        self._calls = {
            guest.domain.domid: GrantCalls(
                guest.domain, lambda _number, _arguments, refused: self.refused.append(refused.rule)
            )
            for guest in (self.granter, self.mapper)
        }
        self.offer(self.mfn)

    @property
    def mfn(self) -> int:
        """Return the frame that is offered."""
        return self.granter.mfns[OFFERED]

    @property
    def window(self) -> int:
        """Return the address at which the mapper maps it."""
        return self.mapper.vaddr(WINDOW)

    def offer(self, mfn: int, ref: int = REF, to: int = MAPPER, flags: int = 0) -> None:
        """Write an entry of the granter's table, as it could."""
        table = self.granter.domain.grants.mfns[0]
        content = pack("<HHI", GTF_permit_access | flags, to, mfn)
        self.world.machine.memory.write(table * PAGE + ref * 8, content)

    def flags(self, ref: int = REF) -> int:
        """Read the flags of an entry."""
        table = self.granter.domain.grants.mfns[0]
        (flags,) = unpack_from("<H", self.world.machine.memory.read(table * PAGE + ref * 8, 2))
        return int(flags)

    def call(self, guest: Guest, command: int, *operations: Structure) -> int:
        """Make one call; its structures lie where the guest keeps lists."""
        at = guest.place(b"".join(operation.pack() for operation in operations))
        handler = self._calls[guest.domain.domid].grant_table_op
        return guest.call(handler, command, at, len(operations))

    def map(
        self,
        flags: int = GNTMAP_host_map,
        *,
        at: int | None = None,
        ref: int = REF,
        dom: int = GRANTER,
    ) -> tuple[int, int]:
        """Map one page for the mapper: the status and the handle."""
        host = self.window if at is None else at
        asked = GnttabMapGrantRef(host, flags, ref, dom, 99, NO_HANDLE, 0)
        assert self.call(self.mapper, GNTTABOP_map_grant_ref, asked) == 0
        answer = GnttabMapGrantRef.unpack(self._list(asked))
        return answer.status, answer.handle

    def unmap(self, handle: int, *, at: int | None = None, bus: int = 0) -> int:
        """Unmap one page: the status."""
        host = self.window if at is None else at
        asked = GnttabUnmapGrantRef(host, bus, handle, 99)
        assert self.call(self.mapper, GNTTABOP_unmap_grant_ref, asked) == 0
        return GnttabUnmapGrantRef.unpack(self._list(asked)).status

    def replace(self, handle: int, new_addr: int, *, at: int | None = None) -> int:
        """Unmap, and move the entry of another address there: the status."""
        host = self.window if at is None else at
        asked = GnttabUnmapAndReplace(host, new_addr, handle, 99)
        assert self.call(self.mapper, GNTTABOP_unmap_and_replace, asked) == 0
        return GnttabUnmapAndReplace.unpack(self._list(asked)).status

    def copy(
        self,
        source: tuple[int, int, int],
        dest: tuple[int, int, int],
        size: int,
        flags: int = GNTCOPY_source_gref,
    ) -> int:
        """Copy between (number, domid, offset) pairs, as the mapper: the status."""
        asked = GnttabCopy(*source, *dest, size, flags, 99)
        assert self.call(self.mapper, GNTTABOP_copy, asked) == 0
        return GnttabCopy.unpack(self._list(asked)).status

    def entry(self, pfn: int = WINDOW) -> int:
        """Read the mapper's entry of a page."""
        return self.mapper.read_slot(self.mapper.slot(pfn))

    def _list(self, asked: Structure) -> bytes:
        return self.mapper.domain.guest_memory.read(self.mapper.vaddr(2), len(asked.pack()))


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make two guests, audit them at the end, and again when the mapper is gone first."""
    made = Pair()
    try:
        yield made
        assert made.world.audit() == []
        if MAPPER in made.world.guests:
            made.world.remove(made.mapper)
        assert made.world.audit() == []
        assert made.flags() & (GTF_reading | GTF_writing) == 0
        assert list(made.granter.domain.grants.uses()) == []
    finally:
        made.world.close()


# -- D1: the entry --------------------------------------------------------------------------------


def test_d1_a_mapped_page_is_shared_and_marked(pair: Pair) -> None:
    status, handle = pair.map()
    assert (status, handle) == (GNTST_okay, 0)
    assert pair.mapper.engine.store(pair.window + 8, 0x12345678)
    assert pair.granter.engine.load(pair.granter.vaddr(OFFERED) + 8) == 0x12345678
    assert pair.flags() == GTF_permit_access | GTF_reading | GTF_writing
    assert pair.world.audit() == []
    assert pair.unmap(handle) == GNTST_okay
    assert pair.entry() == 0
    assert pair.flags() == GTF_permit_access
    assert not pair.mapper.engine.store(pair.window, 1)


def test_d1_three_hundred_maps_are_unmapped_in_odd_order(pair: Pair) -> None:
    handles = []
    for n in range(300):
        flags = GNTMAP_host_map | (GNTMAP_readonly if n % 3 else 0)
        status, handle = pair.map(flags, at=pair.mapper.vaddr(WINDOW + n))
        assert status == GNTST_okay
        handles.append((handle, pair.mapper.vaddr(WINDOW + n)))
    assert pair.world.audit() == []
    for n, (handle, at) in enumerate(handles[1::2] + handles[::2]):
        assert pair.unmap(handle, at=at) == GNTST_okay
        if n == 200:
            assert pair.world.audit() == []
    assert pair.flags() == GTF_permit_access


def test_d1_a_used_entry_stays_what_it_was(pair: Pair) -> None:
    _, handle = pair.map()
    pair.offer(pair.granter.mfns[OFFERED + 1])
    status, second = pair.map(at=pair.mapper.vaddr(WINDOW + 1))
    assert status == GNTST_okay
    assert pair.entry(WINDOW + 1) >> 12 & 0xFFFFF == pair.mfn
    assert pair.flags() & (GTF_reading | GTF_writing) == GTF_reading | GTF_writing
    pair.offer(pair.mfn, flags=GTF_readonly)
    assert pair.map(at=pair.mapper.vaddr(WINDOW + 2))[0] == GNTST_general_error
    assert pair.unmap(handle) == GNTST_okay
    assert pair.unmap(second, at=pair.mapper.vaddr(WINDOW + 1)) == GNTST_okay


@pytest.mark.parametrize(
    ("ref", "dom", "flags", "status"),
    [
        (REF + 1, GRANTER, GNTMAP_host_map, GNTST_general_error),
        (512, GRANTER, GNTMAP_host_map, GNTST_bad_gntref),
        (NO_HANDLE, GRANTER, GNTMAP_host_map, GNTST_bad_gntref),
        (REF, 7, GNTMAP_host_map, GNTST_bad_domain),
        (REF, DOMID_SELF, GNTMAP_host_map, GNTST_bad_domain),
        (REF, MAPPER, GNTMAP_host_map, GNTST_general_error),
        (REF, GRANTER, 0, GNTST_bad_gntref),
        (REF, GRANTER, GNTMAP_readonly | GNTMAP_contains_pte, GNTST_bad_gntref),
    ],
)
def test_d1_what_is_not_offered_is_not_mapped(
    pair: Pair, ref: int, dom: int, flags: int, status: int
) -> None:
    before = pair.entry()
    assert pair.map(flags, ref=ref, dom=dom) == (status, NO_HANDLE)
    assert pair.entry() == before
    assert pair.refused


# -- D2: the target -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unaligned", "l2", "data", "foreign", "no ram"])
def test_d2_an_entry_is_named_by_an_l1_of_ones_own(pair: Pair, kind: str) -> None:
    mapper, l1 = pair.mapper, pair.mapper.slot(WINDOW)
    at = {
        "unaligned": l1 + 4,
        "l2": mapper.mfns[PAGES_L2] * PAGE + 8 * 4,
        "data": mapper.mfns[FREE_PFN + 1] * PAGE,
        "foreign": pair.granter.slot(WINDOW),
        "no ram": 1 << 40,
    }[kind]
    before = pair.world.snapshot()[:6]
    status, _ = pair.map(GNTMAP_host_map | GNTMAP_contains_pte, at=at)
    assert status == GNTST_general_error
    assert pair.world.snapshot()[:6] == before
    status, handle = pair.map(GNTMAP_host_map | GNTMAP_contains_pte, at=l1)
    assert status == GNTST_okay
    assert pair.unmap(handle, at=pair.window) == GNTST_general_error, "it was named by its entry"
    assert pair.unmap(handle, at=l1) == GNTST_okay


@pytest.mark.parametrize("at", [0xF5800000, 0xFC000000, 0xFFFFF000, 1 << 32, 0x1000])
def test_d2_nothing_is_mapped_in_the_hole_or_without_a_table(pair: Pair, at: int) -> None:
    assert pair.map(at=at)[0] == GNTST_general_error


def test_d2_the_granters_tables_are_never_writable(pair: Pair) -> None:
    table = pair.granter.mfns[L1_PFNS[0]]
    pair.offer(table)
    assert pair.map()[0] == GNTST_general_error
    status, handle = pair.map(GNTMAP_host_map | GNTMAP_readonly)
    assert status == GNTST_okay
    assert pair.unmap(handle) == GNTST_okay
    pair.offer(pair.mapper.mfns[FREE_PFN + 5])
    assert pair.map()[0] == GNTST_bad_page


def test_d2_a_page_that_is_mapped_for_writing_cannot_become_a_table(pair: Pair) -> None:
    _, handle = pair.map()
    assert pair.granter.remap(OFFERED, READ_ONLY) == 0
    assert pair.granter.mmuext((MMUEXT_PIN_L1_TABLE, pair.mfn, 0)) == -EINVAL
    assert pair.mapper.engine.store(pair.window, 0)  # now cached
    assert pair.unmap(handle) == GNTST_okay
    assert pair.granter.mmuext((MMUEXT_PIN_L1_TABLE, pair.mfn, 0)) == 0
    assert not pair.mapper.engine.store(pair.window, 0x67), "A9"
    assert pair.granter.mmuext((MMUEXT_UNPIN_TABLE, pair.mfn, 0)) == 0


@pytest.mark.parametrize("change", [PTE_RW, PTE_NX, PTE_RW | PTE_NX])
@pytest.mark.parametrize("flags", [0, GNTMAP_readonly])
def test_d2_rights_to_a_granted_page_do_not_change(pair: Pair, change: int, flags: int) -> None:
    _, handle = pair.map(GNTMAP_host_map | flags)
    old = pair.entry()
    assert old & PTE_NX
    assert pair.mapper.update_va(pair.window, old ^ change) == -EBUSY
    assert pair.mapper.mmu_update((pair.mapper.slot(WINDOW), old ^ change)) == -EBUSY
    assert pair.mapper.update_va(pair.window, old | PTE_US) == 0, "that right is the mapper's own"
    assert pair.unmap(handle) == GNTST_okay


def test_d2_a_granted_entry_cannot_be_copied(pair: Pair) -> None:
    _, handle = pair.map()
    assert pair.mapper.update_va(pair.mapper.vaddr(WINDOW + 1), pair.entry()) == -EBUSY
    assert pair.unmap(handle) == GNTST_okay


# -- D3: unmap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", [1, 12345, NO_HANDLE])
def test_d3_only_a_live_handle_is_unmapped_and_only_once(pair: Pair, handle: int) -> None:
    _, live = pair.map()
    assert pair.unmap(handle) == GNTST_bad_handle
    assert pair.unmap(live) == GNTST_okay
    assert pair.unmap(live) == GNTST_bad_handle


def test_d3_the_address_must_still_map_the_page(pair: Pair) -> None:
    _, handle = pair.map()
    for at in (pair.mapper.vaddr(WINDOW + 1), 0xFC000000, 1 << 33):
        assert pair.unmap(handle, at=at) == GNTST_general_error
    assert pair.world.audit() == []
    assert pair.unmap(handle) == GNTST_okay


@pytest.mark.parametrize("by", ["update_va", "mmu_update", "another page", "its table goes"])
def test_d3_an_entry_that_is_overwritten_is_not_dropped_twice(pair: Pair, by: str) -> None:
    """The granter's entry stays marked until the mapper dies, and its frame is not let go."""
    frames, mapper = pair.world.machine.frames, pair.mapper
    refs = frames.refs[pair.mfn]
    _, handle = pair.map()
    assert frames.refs[pair.mfn] == refs + 2
    if by == "update_va":
        assert mapper.update_va(pair.window, 0) == 0
    elif by == "mmu_update":
        assert mapper.mmu_update((mapper.slot(WINDOW), 0)) == 0
    elif by == "another page":
        assert mapper.update_va(pair.window, entry(mapper.mfns[WINDOW], KERNEL)) == 0
    else:
        l1 = mapper.make_table(FREE_PFN + 8, {})
        l2_slot = mapper.mfns[PAGES_L2] * PAGE + 8 * 2
        at = 0xC0400000
        assert mapper.mmu_update((l2_slot, entry(l1, 0x67))) == 0
        _, second = pair.map(at=at)
        assert mapper.mmu_update((l2_slot, 0)) == 0
        assert pair.world.audit() == []
        assert pair.unmap(second, at=at) == GNTST_general_error
        l2e = mapper.mmu_update((l2_slot, entry(l1, 0x67)))
        assert l2e == -EINVAL, "the table still names a page that is not its owner's"
        assert pair.unmap(handle) == GNTST_okay
        return
    assert pair.world.audit() == []
    assert frames.refs[pair.mfn] == refs + 1
    assert pair.unmap(handle) == GNTST_general_error
    assert pair.unmap(handle) == GNTST_general_error
    assert pair.flags() & GTF_writing


def test_d3_an_entry_with_another_right_is_another_mapping(pair: Pair) -> None:
    """The second mapping, read-only, takes the place of the first one's entry."""
    _, writer = pair.map()
    _, reader = pair.map(GNTMAP_host_map | GNTMAP_readonly)
    assert pair.unmap(writer) == GNTST_general_error
    assert pair.world.audit() == []
    assert pair.unmap(reader) == GNTST_okay


def test_d3_unmap_and_replace_moves_an_entry(pair: Pair) -> None:
    _, handle = pair.map()
    other = pair.mapper.vaddr(WINDOW + 1)
    moved = pair.entry(WINDOW + 1)
    assert pair.replace(handle, pair.window) == GNTST_general_error
    assert pair.replace(handle, 0xFC000000) == GNTST_general_error
    assert pair.replace(handle, other) == GNTST_okay
    assert (pair.entry(), pair.entry(WINDOW + 1)) == (moved, 0)
    assert pair.replace(handle, other) == GNTST_bad_handle


def test_d3_a_mapping_by_its_entry_is_not_replaced(pair: Pair) -> None:
    l1, other = pair.mapper.slot(WINDOW), pair.mapper.vaddr(WINDOW + 1)
    _, handle = pair.map(GNTMAP_host_map | GNTMAP_contains_pte, at=l1)
    before = (pair.entry(), pair.entry(WINDOW + 1))
    assert pair.replace(handle, other, at=l1) == GNTST_general_error
    assert (pair.entry(), pair.entry(WINDOW + 1)) == before
    assert pair.unmap(handle, at=l1) == GNTST_okay


def test_d3_a_device_mapping_has_an_address_and_its_own_end(pair: Pair) -> None:
    status, handle = pair.map(GNTMAP_host_map | GNTMAP_device_map | GNTMAP_application_map)
    assert status == GNTST_okay
    assert pair.entry() & PTE_US
    assert pair.unmap(handle) == GNTST_okay
    assert pair.entry() == 0
    assert pair.flags() & GTF_writing, "the device still has it"
    assert pair.unmap(handle, bus=pair.mfn * PAGE + PAGE) == GNTST_general_error
    assert pair.unmap(handle, bus=pair.mfn * PAGE) == GNTST_okay
    assert pair.flags() == GTF_permit_access


# -- who dies first -------------------------------------------------------------------------------


def test_a17_a_dying_mapper_gives_everything_back(pair: Pair) -> None:
    for n in range(5):
        pair.map(at=pair.mapper.vaddr(WINDOW + n))
    pair.mapper.update_va(pair.window, 0)
    assert pair.mapper.engine.store(pair.mapper.vaddr(WINDOW + 1), 1)
    pair.world.remove(pair.mapper)
    assert pair.world.audit() == []
    assert pair.flags() == GTF_permit_access


def test_a17_a_page_outlives_its_granter_until_it_is_unmapped(pair: Pair) -> None:
    mfn = pair.mfn
    _, handle = pair.map()
    pair.world.remove(pair.granter)
    assert pair.world.audit() == []
    assert pair.mapper.engine.store(pair.window, 0x41414141)
    assert pair.unmap(handle) == GNTST_okay
    assert pair.world.machine.frames.refs[mfn] == 0
    assert not pair.mapper.engine.store(pair.window, 1)
    assert pair.world.machine.memory.read(mfn * PAGE, PAGE) == bytes(PAGE)
    pair.granter = pair.world.add(GRANTER)
    assert pair.world.audit() == []


def test_a_page_given_away_while_it_is_mapped_is_freed_at_the_unmap(pair: Pair) -> None:
    _, handle = pair.map()
    assert pair.granter.remap(OFFERED, 0) == 0
    at = pair.granter.vaddr(4)
    pair.granter.domain.guest_memory.write(at, pack("<I", pair.mfn))
    gone = XenMemoryReservation(at, 1, 0, 0, DOMID_SELF)
    assert pair.granter.memory_op(XENMEM_decrease_reservation, gone.pack()) == 1
    assert pair.world.audit() == []
    assert pair.mapper.engine.store(pair.window, 7)
    assert pair.unmap(handle) == GNTST_okay
    assert pair.world.machine.frames.refs[pair.mfn] == 0


# -- translated code ------------------------------------------------------------------------------


def test_what_another_guest_may_write_is_translated_anew(pair: Pair) -> None:
    """The granter may run code in the page; it must not run what stood there before."""
    memory, forgotten = pair.world.machine.memory, []
    pair.granter.remap(OFFERED, KERNEL & ~PTE_NX)
    pair.granter.engine.invalidate_code = lambda maddr, size: forgotten.append(maddr)  # type: ignore[method-assign]
    assert memory.code[pair.mfn] == pair.granter.engine.slot
    pair.granter.domain.grants.forget_code()
    assert forgotten == []
    _, handle = pair.map()
    pair.granter.domain.grants.forget_code()
    assert forgotten == [pair.mfn * PAGE]
    assert pair.unmap(handle) == GNTST_okay
    assert forgotten == [pair.mfn * PAGE] * 2
    pair.granter.domain.grants.forget_code()
    assert len(forgotten) == 2


# -- D4: copy -------------------------------------------------------------------------------------


def test_d4_bytes_are_copied_both_ways(pair: Pair) -> None:
    own = pair.mapper.mfns[WINDOW]
    pair.granter.domain.guest_memory.write(pair.granter.vaddr(OFFERED) + 4000, b"offered")
    assert pair.copy((REF, GRANTER, 4000), (own, DOMID_SELF, 5), 7) == GNTST_okay
    assert pair.mapper.domain.guest_memory.read(pair.window + 5, 7) == b"offered"
    back = ((own, DOMID_SELF, 6), (REF, GRANTER, 0), 6)
    assert pair.copy(*back, flags=GNTCOPY_dest_gref) == GNTST_okay
    assert pair.granter.domain.guest_memory.read(pair.granter.vaddr(OFFERED), 6) == b"ffered"
    assert pair.flags() == GTF_permit_access
    within = ((own, DOMID_SELF, 5), (own, DOMID_SELF, 7), 7)
    assert pair.copy(*within, flags=0) == GNTST_okay
    assert pair.mapper.domain.guest_memory.read(pair.window + 5, 9) == b"ofoffered"


@pytest.mark.parametrize(
    ("offset", "size", "status"),
    [(0, 4096, GNTST_okay), (1, 4096, GNTST_bad_copy_arg), (0xFFFF, 0xFFFF, GNTST_bad_copy_arg)],
)
@pytest.mark.parametrize("side", ["source", "dest"])
def test_d4_no_copy_leaves_its_page(
    pair: Pair, side: str, offset: int, size: int, status: int
) -> None:
    source, dest = (REF, GRANTER, 0), (pair.mapper.mfns[WINDOW], DOMID_SELF, 0)
    if side == "source":
        source = (REF, GRANTER, offset)
    else:
        dest = (pair.mapper.mfns[WINDOW], DOMID_SELF, offset)
    assert pair.copy(source, dest, size) == status


def test_d4_a_copy_honours_rights_on_both_sides(pair: Pair) -> None:
    own = (pair.mapper.mfns[WINDOW], DOMID_SELF, 0)
    table = (pair.mapper.mfns[L1_PFNS[0]], DOMID_SELF, 0)
    granted = (REF, GRANTER, 0)
    before = pair.world.snapshot()[:6]
    assert pair.copy(granted, table, 8) == GNTST_general_error
    assert pair.copy(granted, (pair.mfn, DOMID_SELF, 0), 8) == GNTST_bad_page
    assert pair.copy(granted, (own[0], GRANTER, 0), 8) == GNTST_permission_denied
    assert pair.copy((pair.mfn, GRANTER, 0), own, 8, flags=0) == GNTST_permission_denied
    assert pair.copy((0, DOMID_SELF, 0), own, 8, flags=0) == GNTST_bad_page
    assert pair.copy((REF, 9, 0), own, 8) == GNTST_bad_domain
    assert pair.copy((512, GRANTER, 0), own, 8) == GNTST_bad_gntref
    pair.offer(pair.mfn, flags=GTF_readonly)
    assert pair.copy(own, granted, 8, flags=GNTCOPY_dest_gref) == GNTST_general_error
    assert pair.copy(granted, own, 8) == GNTST_okay
    assert pair.world.snapshot()[:6] == before


def test_d4_each_operation_of_a_long_list_has_its_own_status(pair: Pair) -> None:
    """512 copies, every third of them refused; the budget runs out on the way."""
    own = pair.mapper.mfns[WINDOW]
    operations = [
        GnttabCopy(REF, GRANTER if n % 3 else 9, 0, own, DOMID_SELF, 8 * n, 8, 1, 99)
        for n in range(512)
    ]
    assert pair.call(pair.mapper, GNTTABOP_copy, *operations) == 0
    size = len(operations[0].pack())
    raw = pair.mapper.domain.guest_memory.read(pair.mapper.vaddr(2), size * 512)
    found = [GnttabCopy.unpack(raw, n * size).status for n in range(512)]
    assert found == [GNTST_okay if n % 3 else GNTST_bad_domain for n in range(512)]


# -- D6 and the rest ------------------------------------------------------------------------------


def test_d6_handles_run_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maptrack, "MAX_HANDLES", 2)
    _, first = pair.map()
    pair.map(at=pair.mapper.vaddr(WINDOW + 1))
    assert pair.map(at=pair.mapper.vaddr(WINDOW + 2)) == (GNTST_no_device_space, NO_HANDLE)
    assert pair.unmap(first) == GNTST_okay
    assert pair.map() == (GNTST_okay, first)


def test_d6_entries_are_swapped_unless_one_is_in_use(pair: Pair) -> None:
    pair.offer(pair.granter.mfns[OFFERED + 1], ref=REF + 1, flags=GTF_readonly)

    def swap(ref_a: int, ref_b: int) -> int:
        asked = GnttabSwapGrantRef(ref_a, ref_b, 99)
        assert pair.call(pair.granter, GNTTABOP_swap_grant_ref, asked) == 0
        raw = pair.granter.domain.guest_memory.read(pair.granter.vaddr(2), len(asked.pack()))
        return GnttabSwapGrantRef.unpack(raw).status

    assert swap(REF, REF + 1) == GNTST_okay
    assert (pair.flags(REF), pair.flags(REF + 1)) == (5, 1)
    assert swap(REF, NO_HANDLE) == GNTST_bad_gntref
    assert swap(512, REF) == GNTST_bad_gntref
    assert swap(REF, REF) == GNTST_okay
    _, handle = pair.map(ref=REF + 1)
    assert swap(REF, REF + 1) == GNTST_eagain
    assert swap(REF + 1, REF) == GNTST_eagain
    assert pair.unmap(handle) == GNTST_okay
    assert swap(REF, REF + 1) == GNTST_okay


def test_cache_flush_is_checked_and_needs_nothing(pair: Pair) -> None:
    def flush(mfn: int, offset: int = 0, length: int = 64, op: int = GNTTAB_CACHE_CLEAN) -> int:
        asked = GnttabCacheFlush((mfn * PAGE).to_bytes(8, "little"), offset, length, op)
        return pair.call(pair.mapper, GNTTABOP_cache_flush, asked)

    own = pair.mapper.mfns[WINDOW]
    assert flush(own) == 0
    assert flush(own, op=GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL) == 0
    assert flush(own, op=GNTTAB_CACHE_INVAL) == -EOPNOTSUPP
    assert flush(own, op=4) == -EOPNOTSUPP
    assert flush(own, offset=4000, length=97) == -EINVAL
    assert flush(pair.mfn, length=0) == 0
    assert flush(pair.mfn) == -EPERM
    _, handle = pair.map()
    assert flush(pair.mfn) == 0
    assert pair.unmap(handle) == GNTST_okay


def test_looking_through_many_mappings_is_work(pair: Pair) -> None:
    for _ in range(160):
        pair.map(GNTMAP_device_map)
    paging = pair.mapper.domain.paging
    asked = GnttabCacheFlush((pair.mfn * PAGE).to_bytes(8, "little"), 0, 64, GNTTAB_CACHE_CLEAN)
    paging.begin_work()
    assert pair.call(pair.mapper, GNTTABOP_cache_flush, asked) == 0
    assert WORK_BUDGET - paging.work_left >= 160 // 16


@pytest.mark.parametrize("command", [GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref])
def test_a_list_that_cannot_be_answered_is_refused_before_anything_happens(
    pair: Pair, command: int
) -> None:
    mapper = pair.mapper
    handler = GrantCalls(mapper.domain, lambda *_: None).grant_table_op
    asked = GnttabMapGrantRef(pair.window, GNTMAP_host_map, REF, GRANTER, 0, 0, 0).pack()
    at = mapper.vaddr(FREE_PFN + 30)
    mapper.domain.guest_memory.write(at, asked)
    assert mapper.remap(FREE_PFN + 30, READ_ONLY) == 0
    before = pair.world.snapshot()[:6]
    assert mapper.call(handler, command, at, 1) == -EFAULT
    assert mapper.call(handler, command, 0xF57FFFF8, 1) == -EFAULT
    assert mapper.call(handler, command, at, 0x7FFFFFFF) == -EFAULT
    assert mapper.call(handler, command, at, 0xFFFFFFFF) == -EINVAL
    assert pair.world.snapshot()[:6] == before


def test_pins_are_all_or_none(pair: Pair) -> None:
    """What a backend takes for one transfer."""
    dom0, grants = pair.world.dom0, pair.granter.domain.grants
    for ref in (20, 21):
        pair.offer(pair.granter.mfns[OFFERED + ref], ref=ref, to=0)
    before = pair.world.snapshot()
    for bad in (22, REF, 512):
        with pytest.raises(Exception, match="grants"):
            dom0.maptrack.pin(grants, (20, 21, bad), writable=True)
        assert pair.world.snapshot() == before
    pages = dom0.maptrack.pin(grants, (20, 21, 20), writable=True)
    assert pair.world.audit() == []
    pages.pages()[1][8:12] = b"seen"
    assert pair.granter.domain.guest_memory.read(pair.granter.vaddr(OFFERED + 21) + 8, 4) == b"seen"
    dom0.maptrack.unpin(pages)
    with pytest.raises(Exception, match="not-mapped"):
        dom0.maptrack.unpin(pages)
    assert pair.world.audit() == []


def test_the_offered_page_keeps_its_type_while_mapped(pair: Pair) -> None:
    _, handle = pair.map()
    assert pair.granter.remap(OFFERED, 0) == 0
    assert pair.world.machine.frames.kind[pair.mfn] == FrameType.WRITABLE
    assert pair.unmap(handle) == GNTST_okay
    assert pair.world.machine.frames.kind[pair.mfn] == FrameType.NONE
