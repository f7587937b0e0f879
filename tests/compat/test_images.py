# SPDX-License-Identifier: GPL-2.0-or-later
"""The image reader on kernels that nobody here wrote, each odd in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.toolstack.image import KernelImage, parse_kernel
from xenlite.toolstack.layout import plan

KERNELS = Path(__file__).resolve().parents[2] / "build/kernels"


def read(name: str) -> KernelImage:
    path = KERNELS / name
    assert path.exists(), "run tools/fetch_kernels first (tools/check does)"
    return parse_kernel(path.read_bytes(), name)


def test_grub_says_pae_in_a_note_that_runs_past_the_end_of_its_file() -> None:
    image = read("grub-i386-xen.bin")
    assert image.guest_os == "GRUB"
    assert image.extended_cr3
    assert (image.virt_base, image.entry, image.start) == (0, 0, 0)
    assert image.hypercall_page is None
    first, second = image.segments
    # Four megabytes of stack, and the modules right behind it, in the same page.
    assert (len(first.data), first.end) == (0xBE33, 0x416858)
    assert (second.vaddr, second.size) == (0x416858, len(second.data))


def test_gnu_mach_is_packed_and_speaks_by_its_string_section() -> None:
    image = read("gnumach-1.8-xen-486.gz")
    assert (image.guest_os, image.guest_version) == ("GNU Mach", "1.3")
    assert image.extended_cr3
    assert (image.virt_base, image.entry, image.start) == (0xC0000000, 0xC0000000, 0xC0000000)
    assert image.hypercall_page == 0xC0002000
    assert image.features == {"pae_pgdir_above_4gb"}


@pytest.mark.parametrize(
    ("name", "l2_count", "end"),
    [("grub-i386-xen.bin", 4, 0x800000), ("gnumach-1.8-xen-486.gz", 1, 0xC0400000)],
)
def test_their_domains_are_laid_out_as_xen_does(name: str, l2_count: int, end: int) -> None:
    layout = plan(read(name), ramdisk_size=0, nr_pages=8192, where=name)
    assert (layout.l2_count, layout.end) == (l2_count, end)
