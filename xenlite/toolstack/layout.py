# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide which page of a new domain holds what. Arithmetic only: no domain is touched.

The order is the one that Xen's own builder has always used, because kernels rely on it (some free
all that lies behind the page tables, some put their heap there)::

    virt_base ->  [gap below the kernel]
                  kernel
                  initial RAM disk
                  P2M list               nr_pages words
                  start_info             1 page
                  store page             1 page
                  console page           1 page
                  page tables            L3, then L2s, then L1s: pt_base, nr_pt_frames
                  boot stack             1 page
                  spare                  512 KiB at least, up to a 4 MiB boundary
                  -> end of the initial mapping
                  pages that the kernel maps for itself

PFN n is mapped at virt_base + n * 4096, read-write; only the page tables are mapped read-only.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_PRESENT,
    _PAGE_RW,
    _PAGE_USER,
    HYPERVISOR_VIRT_START,
    PAGE_SIZE,
    XEN_PAGE_SHIFT,
)
from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenlite.toolstack.image import KernelImage

SPARE_PAGES: Final = (512 << 10) >> XEN_PAGE_SHIFT
END_ALIGNMENT: Final = 4 << 20
P2M_ENTRY_SIZE: Final = 4
ENTRIES: Final = 512  # of one PAE table; an L3 has 4
L1_SHIFT: Final = XEN_PAGE_SHIFT
L2_SHIFT: Final = 21
L3_SHIFT: Final = 30
TOP_GIGABYTE: Final = 3 << L3_SHIFT

# A kernel's own pages carry no US bit in their L1 entries; the levels above allow both rings.
L1_FLAGS: Final = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED
UPPER_FLAGS: Final = _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is, in page frame numbers of the domain.

    ``end`` is the first address behind the initial mapping. The first L2 and the first L1 table
    are those whose range holds ``virt_base``. Sizes in bytes.
    """

    nr_pages: int
    virt_base: int
    end: int
    ramdisk: int
    ramdisk_size: int
    p2m: int
    p2m_pages: int
    start_info: int
    store: int
    console: int
    l3: int
    l2_count: int
    l1_count: int
    boot_stack: int

    @property
    def mapped_pages(self) -> int:
        """Return how many pages the initial mapping covers, from PFN 0."""
        return (self.end - self.virt_base) >> XEN_PAGE_SHIFT

    @property
    def page_tables(self) -> range:
        """Return the pages that are page tables."""
        return range(self.l3, self.l3 + 1 + self.l2_count + self.l1_count)

    def vaddr(self, pfn: int) -> int:
        """Return the address at which the initial mapping shows a page."""
        return self.virt_base + (pfn << XEN_PAGE_SHIFT)


def plan(image: KernelImage, *, ramdisk_size: int, nr_pages: int, where: str) -> Layout:
    """Lay out a domain of ``nr_pages``; ConfigError about ``where`` if it cannot hold it all."""
    next_pfn = _pages(image.end - image.virt_base)
    ramdisk = next_pfn
    next_pfn += _pages(ramdisk_size)
    p2m = next_pfn
    p2m_pages = _pages(nr_pages * P2M_ENTRY_SIZE)
    start_info = p2m + p2m_pages
    store = start_info + 1
    console = store + 1
    l3 = console + 1
    end, l2_count, l1_count = _fit_tables(image.virt_base, l3)
    needed = (end - image.virt_base) >> XEN_PAGE_SHIFT
    if needed > nr_pages:
        raise ConfigError(
            Fault(
                where,
                f"memory: {_mib(nr_pages)} MiB is too little; the kernel, its RAM disk and their"
                f" tables need {_mib(needed)} MiB",
            )
        )
    if end > HYPERVISOR_VIRT_START:
        raise ConfigError(
            Fault(
                where,
                f"the kernel, its RAM disk and their tables reach up to {end:#x}; the hypervisor"
                f" begins at {HYPERVISOR_VIRT_START:#x}",
            )
        )
    return Layout(
        nr_pages=nr_pages,
        virt_base=image.virt_base,
        end=end,
        ramdisk=ramdisk,
        ramdisk_size=ramdisk_size,
        p2m=p2m,
        p2m_pages=p2m_pages,
        start_info=start_info,
        store=store,
        console=console,
        l3=l3,
        l2_count=l2_count,
        l1_count=l1_count,
        boot_stack=l3 + 1 + l2_count + l1_count,
    )


def tables(layout: Layout, mfns: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (pfn, contents) of every page table; ``mfns[pfn]`` is the frame of each page.

    An L3 table is four entries long, and the rest of its frame is zero.
    """
    first_l2 = layout.l3 + 1
    first_l1 = first_l2 + layout.l2_count
    low_l2 = layout.virt_base >> L3_SHIFT
    low_l1 = layout.virt_base >> L2_SHIFT

    l3 = array("Q", bytes(32))
    for n in range(layout.l2_count):
        l3[low_l2 + n] = _entry(mfns[first_l2 + n], UPPER_FLAGS)
    yield layout.l3, l3.tobytes()

    l2s = array("Q", bytes(layout.l2_count * PAGE_SIZE))
    for n in range(layout.l1_count):
        l2s[low_l1 - low_l2 * ENTRIES + n] = _entry(mfns[first_l1 + n], UPPER_FLAGS)
    yield from _cut(first_l2, l2s)

    l1s = array("Q", bytes(layout.l1_count * PAGE_SIZE))
    gap = (layout.virt_base >> L1_SHIFT) - low_l1 * ENTRIES
    for pfn in range(layout.mapped_pages):
        l1s[gap + pfn] = _entry(mfns[pfn], L1_FLAGS)
    for pfn in layout.page_tables:
        l1s[gap + pfn] &= ~_PAGE_RW
    yield from _cut(first_l1, l1s)


def _fit_tables(virt_base: int, first_pfn: int) -> tuple[int, int, int]:
    """Find the end of the initial mapping, and how many L2 and L1 tables map all up to there.

    The tables lie inside what they map, so their number is found by trying.
    """
    first = virt_base + (first_pfn << XEN_PAGE_SHIFT)
    behind = 1 + SPARE_PAGES  # the boot stack is one page
    pages = behind
    while True:
        end = _behind(first + pages * PAGE_SIZE, END_ALIGNMENT)
        l1_count = (end >> L2_SHIFT) - (virt_base >> L2_SHIFT)
        # A kernel below the top gigabyte gets L2 tables for every slot up to the hypervisor's.
        top = end - 1 if end > TOP_GIGABYTE else TOP_GIGABYTE
        l2_count = (top >> L3_SHIFT) - (virt_base >> L3_SHIFT) + 1
        pages = 1 + l2_count + l1_count + behind
        if first + pages * PAGE_SIZE <= end:
            return end, l2_count, l1_count


def _behind(address: int, alignment: int) -> int:
    """Return the next boundary above ``address``, also when it lies on one, as Xen does."""
    return (address // alignment + 1) * alignment


def _entry(mfn: int, flags: int) -> int:
    return mfn << XEN_PAGE_SHIFT | flags


def _cut(pfn: int, entries: array[int]) -> Iterator[tuple[int, bytes]]:
    view = memoryview(entries).cast("B")
    for start in range(0, len(view), PAGE_SIZE):
        yield pfn + start // PAGE_SIZE, bytes(view[start : start + PAGE_SIZE])


def _pages(size: int) -> int:
    return -(-size // PAGE_SIZE)


def _mib(pages: int) -> int:
    return -(-pages * PAGE_SIZE >> 20)
