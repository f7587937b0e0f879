# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``core`` asks of an emulated CPU, and the computer that has none.

``machine/cpu.py`` is the real one. ``NullEngine`` serves Dom0, whose kernel is Python, and every
check of page tables that needs no running guest.
"""

from __future__ import annotations

from typing import Protocol

from xenlite.machine.engine import TrapTable
from xenlite.machine.trail import Trail
from xenlite.machine.trap import STATE_SIZE_BYTES
from xenlite.machine.ways import Ways


class Engine(Protocol):
    """The CPU state of the domain's current vCPU, and the means to change it from a trap."""

    regs: memoryview
    """CPUX86State as 32-bit words; indexes in ``machine/trap.py``."""
    regs8: memoryview
    """The same bytes."""

    def read_eflags(self) -> int:
        """Read the whole flags word, the lazily kept condition codes included."""

    def write_eflags(self, value: int) -> None:
        """Write the whole flags word."""

    slot: int
    """Where the machine's memory knows this engine (``MachineMemory.attach``); 0 for nowhere."""

    trail: Trail
    """The last calls of the guest."""

    ways: Ways
    """What enters the kernel and leaves it again without Python."""

    upcalls_held: memoryview
    """One byte: while it is set, no upcall comes without Python."""

    def flush_tlb(self) -> object:
        """Forget every cached translation of a virtual address."""

    def flush_page(self, vaddr: int, /) -> object:
        """Forget the cached translation of one page."""

    def load_cr3(self, maddr: int) -> None:
        """Switch to the page tables at ``maddr``, and flush."""

    def stop(self) -> None:
        """Leave the guest once the trap handler has returned."""

    def charge(self, blocks: int) -> None:
        """Take translated blocks off the guest's turn, for time spent in a trap."""

    def set_segment(self, number: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Load one segment register with its hidden parts."""

    def set_task_switched(self, switched: bool) -> None:
        """Set CR0.TS, so that the next FPU instruction raises #NM, or clear it."""

    def load_fpu(self, image: bytes) -> None:
        """Load the FPU's registers from a 512-byte FXSAVE image, outside a run."""

    def set_gdt(self, base: int, limit: int) -> None:
        """Load GDTR."""

    def set_ldt(self, selector: int, base: int, limit: int) -> None:
        """Load LDTR with its hidden parts."""

    def set_tss(self, selector: int, base: int) -> None:
        """Load TR with its hidden parts; the type is 9, available (ENGINES: never busy)."""

    def watch_upcalls(self, maddr: int) -> None:
        """Look for pending upcalls in the two bytes at ``maddr`` from now on."""

    def invalidate_code(self, maddr: int, size: int, /) -> object:
        """Forget what was translated from these machine bytes."""


class NullEngine:
    """A CPU that runs nothing and caches nothing."""

    def __init__(self) -> None:
        self.regs = memoryview(bytearray(STATE_SIZE_BYTES)).cast("I")
        self.slot = 0
        self.trail = Trail(TrapTable())
        self.ways = Ways(TrapTable(), None)
        self.regs8 = self.regs.cast("B")
        self.upcalls_held = memoryview(bytearray(1))

    def read_eflags(self) -> int:
        """Read the flags word as last written."""
        return 0x202

    def write_eflags(self, value: int) -> None:
        """Forget it."""

    def flush_tlb(self) -> None:
        """Do nothing: nothing is cached."""

    def flush_page(self, vaddr: int, /) -> None:
        """Do nothing: nothing is cached."""

    def load_cr3(self, maddr: int) -> None:
        """Do nothing: nothing is translated."""

    def stop(self) -> None:
        """Do nothing: nothing runs."""

    def charge(self, blocks: int) -> None:
        """Do nothing: there is no turn."""

    def set_segment(self, number: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Do nothing: no segment is used."""

    def set_task_switched(self, switched: bool) -> None:
        """Do nothing: there is no FPU."""

    def load_fpu(self, image: bytes) -> None:
        """Do nothing: there is no FPU."""

    def set_gdt(self, base: int, limit: int) -> None:
        """Do nothing: no segment is loaded."""

    def set_ldt(self, selector: int, base: int, limit: int) -> None:
        """Do nothing: no segment is loaded."""

    def set_tss(self, selector: int, base: int) -> None:
        """Do nothing: no task runs."""

    def watch_upcalls(self, maddr: int) -> None:
        """Do nothing: nobody would take them."""

    def invalidate_code(self, maddr: int, size: int, /) -> None:
        """Do nothing: nothing is translated."""
