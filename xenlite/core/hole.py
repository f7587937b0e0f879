# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's hole at the top of every address space.

The hypervisor itself needs no virtual address: it is Python. What must be there is what the guest
and the processor read::

    0xF5800000  the machine-to-phys table, read-only, shared by all domains
    0xFC000000  per vCPU 128 KiB: 14 GDT pages of the guest's, 1 of Xen's flat selectors,
                the TSS page, 16 LDT pages

The engine does not enforce segment limits, so a guest kernel can read all of it; nothing here is
secret, nothing is writable, and nothing is executable. Every L2 that serves the top gigabyte
carries the same ``pdes`` from slot ``HOLE_SLOT`` on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import FIRST_RESERVED_GDT_PAGE, HYPERVISOR_VIRT_START_PAE
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L1_SHIFT,
    L2_SHIFT,
    PTE_A,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_RW,
)

if TYPE_CHECKING:
    from xenlite.machine.machine import Machine
    from xenlite.machine.tlb import Tlb

HOLE_START: Final = HYPERVISOR_VIRT_START_PAE
HOLE_SLOT: Final = (HOLE_START >> L2_SHIFT) & INDEX_MASK
DESCRIPTOR_BASE: Final = 0xFC000000
VCPU_WINDOW: Final = 32 * PAGE_SIZE
GDT_PAGES: Final = 16
TSS_PAGE: Final = FIRST_RESERVED_GDT_PAGE + 1  # behind the GDT's limit: no selector reaches it
TSS_STRIDE: Final = 128
_VCPUS_PER_TABLE: Final = ENTRIES * PAGE_SIZE // VCPU_WINDOW
_TABLE: Final = PTE_P | PTE_RW | PTE_A | PTE_D
_READ_ONLY: Final = PTE_P | PTE_A | PTE_D | PTE_NX


class M2pWindow:
    """The L1 tables that map the M2P; built once per machine, carried by every domain."""

    def __init__(self, machine: Machine) -> None:
        memory, frames = machine.memory, machine.frames
        self.pdes = []
        for first in range(0, len(frames.m2p_frames), ENTRIES):
            table = frames.allocate_xen()
            for i, mfn in enumerate(frames.m2p_frames[first : first + ENTRIES]):
                memory.m64[table * ENTRIES + i] = (mfn << PAGE_SHIFT) | _READ_ONLY
            self.pdes.append((table << PAGE_SHIFT) | _TABLE)


class Hole:
    """One domain's part of the hole, and the L2 entries that lead to all of it."""

    def __init__(self, machine: Machine, m2p: M2pWindow, tlb: Tlb, max_vcpus: int) -> None:
        self._memory = machine.memory
        self._frames = machine.frames
        self._tlb = tlb
        tables = -(-max_vcpus // _VCPUS_PER_TABLE)
        self._tables = [machine.frames.allocate_xen() for _ in range(tables)]
        self._tss_mfn = machine.frames.allocate_xen()
        self._scratch_mfn = machine.frames.allocate_xen()
        pdes = [0] * (ENTRIES - HOLE_SLOT)
        pdes[: len(m2p.pdes)] = m2p.pdes
        at = ((DESCRIPTOR_BASE >> L2_SHIFT) & INDEX_MASK) - HOLE_SLOT
        pdes[at : at + tables] = [(table << PAGE_SHIFT) | _TABLE for table in self._tables]
        self.pdes = tuple(pdes)
        for vcpu in range(max_vcpus):
            self.map(self.gdt_vaddr(vcpu) + TSS_PAGE * PAGE_SIZE, self._tss_mfn)

    def gdt_vaddr(self, vcpu: int) -> int:
        """Return where the GDT of a vCPU is mapped."""
        return DESCRIPTOR_BASE + vcpu * VCPU_WINDOW

    def ldt_vaddr(self, vcpu: int) -> int:
        """Return where the LDT of a vCPU is mapped."""
        return self.gdt_vaddr(vcpu) + GDT_PAGES * PAGE_SIZE

    def tss_vaddr(self, vcpu: int) -> int:
        """Return where the TSS of a vCPU is mapped."""
        return self.gdt_vaddr(vcpu) + TSS_PAGE * PAGE_SIZE + vcpu * TSS_STRIDE

    def tss_maddr(self, vcpu: int) -> int:
        """Return the machine address of the TSS of a vCPU."""
        return (self._tss_mfn << PAGE_SHIFT) + vcpu * TSS_STRIDE

    @property
    def scratch_maddr(self) -> int:
        """Return a page of the hypervisor's own, mapped nowhere, to gather a request in."""
        return self._scratch_mfn << PAGE_SHIFT

    def map(self, vaddr: int, mfn: int) -> None:
        """Map a frame read-only into the descriptor area."""
        self._set(vaddr, (mfn << PAGE_SHIFT) | _READ_ONLY)

    def unmap(self, vaddr: int) -> None:
        """Remove a page of the descriptor area."""
        self._set(vaddr, 0)

    def release(self) -> None:
        """Give the hole's own frames back; the domain must not run again."""
        for mfn in (*self._tables, self._tss_mfn, self._scratch_mfn):
            self._frames.drop_allocation(mfn)

    def _set(self, vaddr: int, entry: int) -> None:
        page = (vaddr - DESCRIPTOR_BASE) >> L1_SHIFT
        slot = self._tables[page // ENTRIES] * ENTRIES + page % ENTRIES
        if self._memory.m64[slot] & PTE_P:
            self._memory.m64[slot] = entry
            self._tlb.flush()
        else:
            self._memory.m64[slot] = entry
