# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from struct import iter_unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlite.errors import ConfigError
from xenlite.toolstack.image import KernelImage, Segment
from xenlite.toolstack.layout import SPARE_PAGES, Layout, plan, tables

PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
ADDRESS = 0x000FFFFFFFFFF000
SIZES = st.integers(0, 24 << 20)
BASES = st.sampled_from([0, 0x400000, 0x40000000, 0xBFC00000, 0xC0000000, 0xC0100000, 0x12345000])


def kernel(virt_base: int, size: int) -> KernelImage:
    return KernelImage(
        segments=(Segment(virt_base, memoryview(b""), size),),
        entry=virt_base,
        virt_base=virt_base,
        start=virt_base,
        end=virt_base + size,
        hypercall_page=None,
        extended_cr3=True,
        guest_os="",
        guest_version="",
        features=frozenset(),
    )


def laid_out(virt_base: int, size: int, ramdisk: int = 0, nr_pages: int = 16384) -> Layout:
    return plan(kernel(virt_base, size), ramdisk_size=ramdisk, nr_pages=nr_pages, where="d")


def test_the_order_is_xens() -> None:
    layout = laid_out(0xC0000000, 0x3001, ramdisk=0x1001, nr_pages=8192)
    assert layout.ramdisk == 4
    assert layout.p2m == 6
    assert layout.p2m_pages == 8
    assert layout.start_info == 14
    assert layout.store == 15
    assert layout.console == 16
    assert layout.l3 == 17
    assert layout.page_tables == range(17, 21)  # one L3, one L2, two L1
    assert layout.boot_stack == 21
    assert layout.end == 0xC0400000


def test_a_kernel_below_the_top_gigabyte_gets_an_l2_for_every_slot() -> None:
    assert laid_out(0, 0x1000).l2_count == 4
    assert laid_out(0x40000000, 0x1000).l2_count == 3
    assert laid_out(0xBFC00000, 0x1000).l2_count == 2
    assert laid_out(0xC0000000, 0x1000).l2_count == 1


def test_a_mapping_that_would_end_full_grows_by_four_megabytes() -> None:
    # 1 L3, 1 L2, 2 L1, stack and spare behind the console page: 133 pages and 4 more tables.
    overhead = 16 + 3 + 4 + 1 + SPARE_PAGES
    fits = (1024 - overhead) * 4096
    assert laid_out(0xC0000000, fits).end == 0xC0400000
    assert laid_out(0xC0000000, fits + 1).end == 0xC0800000


def test_a_domain_too_small_for_its_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"d: memory: 4 MiB is too little; .* need 8 MiB"):
        laid_out(0xC0000000, 5 << 20, nr_pages=1024)
    with pytest.raises(ConfigError, match="need 104 MiB"):
        laid_out(0xC0000000, 0x1000, ramdisk=100 << 20, nr_pages=8192)


def test_a_kernel_that_would_reach_the_hypervisor_is_refused() -> None:
    with pytest.raises(ConfigError, match="the hypervisor begins at 0xf5800000"):
        laid_out(0xF5000000, 0x7FFFFF)
    assert laid_out(0xF5000000, 0x1000).end == 0xF5400000


def walk(layout: Layout, mfns: list[int]) -> dict[int, tuple[int, int, int, int]]:
    """Walk the tables as the MMU would: page address -> (L3, L2, L1 flags, mfn)."""
    contents = {mfns[pfn]: table for pfn, table in tables(layout, mfns)}

    def entries(mfn: int) -> list[tuple[int, int, int]]:
        words = [word for (word,) in iter_unpack("<Q", contents[mfn])]
        return [(n, w & ~ADDRESS, (w & ADDRESS) >> 12) for n, w in enumerate(words) if w & PRESENT]

    found = {}
    for i3, f3, l2 in entries(mfns[layout.l3]):
        for i2, f2, l1 in entries(l2):
            for i1, f1, mfn in entries(l1):
                found[i3 << 30 | i2 << 21 | i1 << 12] = (f3, f2, f1, mfn)
    return found


@settings(max_examples=40, deadline=None)
@given(BASES, st.integers(1, 8 << 20), st.integers(0, 8 << 20))
def test_the_tables_map_exactly_the_initial_mapping(base: int, size: int, ramdisk: int) -> None:
    layout = laid_out(base, size, ramdisk)
    mfns = [3 * pfn + 7 for pfn in range(layout.nr_pages)]
    found = walk(layout, mfns)
    assert sorted(found) == [layout.vaddr(pfn) for pfn in range(layout.mapped_pages)]
    upper = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
    for pfn in range(layout.mapped_pages):
        l3, l2, l1, mfn = found[layout.vaddr(pfn)]
        assert mfn == mfns[pfn]
        assert (l3, l2) == (upper, upper)
        is_table = pfn in layout.page_tables
        assert l1 == (PRESENT | ACCESSED if is_table else PRESENT | ACCESSED | WRITABLE)


@settings(max_examples=100, deadline=None)
@given(BASES, st.integers(1, 24 << 20), SIZES)
def test_every_layout_keeps_what_kernels_rely_on(base: int, size: int, ramdisk: int) -> None:
    layout = laid_out(base, size, ramdisk)
    assert layout.end % (4 << 20) == 0
    assert layout.mapped_pages - layout.boot_stack - 1 >= SPARE_PAGES
    assert layout.boot_stack == layout.l3 + len(layout.page_tables)
    assert len(list(tables(layout, range(layout.nr_pages)))) == len(layout.page_tables)
    assert layout.mapped_pages <= layout.nr_pages
    # Xen's rule: no smaller number of 4 MiB steps would have held everything.
    smaller = layout.end - (4 << 20)
    needed = layout.vaddr(layout.boot_stack + 1 + SPARE_PAGES)
    assert smaller < needed or smaller <= base
