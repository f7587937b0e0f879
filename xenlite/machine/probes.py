# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop a guest at an instruction, or when a word of memory is no longer what it was.

Neither can be seen by the guest: its memory, its registers and its traps stay as they are. All
calls are for outside a run; nothing costs anything while no probe is set.

*Breakpoints* are hooks on one virtual address each, in every address space, and stop before the
instruction. Only the blocks that hold one run slower.

*Cells* are words of the host's memory with what they are expected to hold. A native stub compares
them before every instruction (a guest then runs at a fifth to a tenth of its speed), so whoever
changed one is known to the instruction: the one before, or the trap that it made. It does not
matter through which address or by whom it was changed. Page-table entries may be cells as well as
the words that they lead to.

*Accesses* are hooks on physical addresses, for loads and for stores that change nothing.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.abi.x86_32p import ENOSPC
from xenlite.errors import Refused
from xenlite.machine import engine as uc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenlite.machine.cpu import Cpu

MAX_BREAKPOINTS: Final = 1000
"""The translator looks through all of them at each instruction."""
MAX_CELLS: Final = uc.MAX_CELLS - 1  # one is for accesses
_ALL: Final = (1 << 64) - 1
_WIDEST: Final = 8  # bytes that the engine loads or stores at once


class Cell(NamedTuple):
    """Eight bytes at a machine address that is a multiple of 8, as far as ``mask`` is set."""

    maddr: int
    mask: int


class Breakpoints:
    """The breakpoints of one CPU; ``hit`` is where the last run stopped at one."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._hooks: dict[int, int] = {}
        self._callback = uc.CodeCallback(self._on_code)
        self.hit: int | None = None
        self.are_quiet = False  # while a step is made, which may begin at one

    def forget_hit(self) -> None:
        """Begin a run that has not stopped at one yet."""
        self.hit = None

    def set(self, vaddr: int) -> None:
        """Stop before the instruction at ``vaddr``, once however often this is called.

        Raises Refused(ENOSPC) beyond MAX_BREAKPOINTS.
        """
        if vaddr not in self._hooks:
            if len(self._hooks) >= MAX_BREAKPOINTS:
                raise Refused(ENOSPC, "debug.too-many-breakpoints", vaddr)
            self._hooks[vaddr] = self._cpu.hook(
                uc.UC_HOOK_CODE, self._callback, addresses=(vaddr, vaddr)
            )

    def clear(self, vaddr: int) -> None:
        """Stop there no more."""
        hook = self._hooks.pop(vaddr, None)
        if hook is not None:
            self._cpu.unhook(hook)

    def clear_all(self) -> None:
        """Stop nowhere."""
        for vaddr in list(self._hooks):
            self.clear(vaddr)

    def _on_code(self, _handle: int, vaddr: int, _size: int, _user: object) -> None:
        if not self.are_quiet:
            self.hit = vaddr
            self._cpu.stop()


class Cells:
    """The words of one CPU that are watched."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._memory = cpu.memory
        self._cells: Sequence[Cell] = ()
        self._ranges: list[range] = []
        self._hooks: list[int] = []
        self._touched = ctypes.c_uint64(0)
        self._table = uc.WatchTable()
        self._table.budget_at = ctypes.addressof(cpu.block_clock)
        self._table.stop_function = cpu.block_clock.stop_function
        self._access_callback = uc.AccessCallback(self._on_access)
        stubs = uc.native_stubs() if cpu.capabilities.exact_stop else None
        self._stub = uc.CodeCallback(self._on_code) if stubs is None else stubs[2]

    def watch(self, cells: Sequence[Cell], accesses: Iterable[tuple[range, int]] = ()) -> None:
        """Watch these cells, and these machine addresses for accesses, instead of those before.

        An access is a range and the kinds of hook. Each cell is expected to stay as it is now.
        """
        assert len(cells) <= MAX_CELLS, len(cells)
        for hook in self._hooks:
            self._cpu.unhook(hook)
        self._hooks = []
        self._cells = cells
        self._ranges = []
        for place, kinds in accesses:
            self._ranges.append(place)
            around = (max(0, place.start - _WIDEST + 1), place.stop - 1)
            self._hooks.append(self._cpu.hook(kinds, self._access_callback, addresses=around))
        if cells or self._ranges:
            user = ctypes.addressof(self._table)
            self._hooks.append(self._cpu.hook(uc.UC_HOOK_CODE, self._stub, user=user))
            self._cpu.flush_tlb()  # cached entries know nothing of hooks on accesses
        self.expect()

    def expect(self) -> None:
        """Take every cell as it is now for what it ought to be."""
        host = self._memory.host_address
        m64 = self._memory.m64
        table = self._table
        for n, cell in enumerate(self._cells):
            table.cells[n] = uc.WatchCell(host + cell.maddr, cell.mask, m64[cell.maddr >> 3])
        count = len(self._cells)
        if self._ranges:
            table.cells[count] = uc.WatchCell(ctypes.addressof(self._touched), _ALL, 0)
            count += 1
        table.count = count
        table.tripped = 0
        self._touched.value = 0

    def have_changed(self) -> bool:
        """Tell whether a cell differs from what is expected, or there was an access."""
        m64 = self._memory.m64
        cells = self._table.cells
        return bool(self._touched.value) or any(
            (m64[cell.maddr >> 3] ^ cells[n].expected) & cell.mask
            for n, cell in enumerate(self._cells)
        )

    @property
    def was_accessed(self) -> bool:
        """Tell whether a watched range was accessed since ``expect``."""
        return bool(self._touched.value)

    @property
    def has_stopped(self) -> bool:
        """Tell whether the last run was stopped here."""
        return bool(self._table.tripped)

    @property
    def last_eip(self) -> int:
        """Return the last instruction that began with every cell as expected."""
        return int(self._table.last_eip)

    @property
    def entries_since(self) -> int:
        """Return how many blocks have begun and traps have come since that instruction."""
        return int(self._table.last_budget) - self._cpu.budget

    def _on_access(
        self, _handle: int, _kind: int, maddr: int, size: int, _value: int, _user: object
    ) -> None:
        for place in self._ranges:
            if maddr < place.stop and place.start < maddr + size:
                self._touched.value = 1

    def _on_code(self, _handle: int, vaddr: int, _size: int, _user: object) -> None:
        """Do in Python what the stub does."""
        table = self._table
        if self.have_changed():
            table.tripped = 1
            self._cpu.stop()
        else:
            table.last_eip, table.last_budget = vaddr, self._cpu.budget
