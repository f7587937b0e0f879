# SPDX-License-Identifier: GPL-2.0-or-later
"""Watch what lies at virtual addresses of a guest, whoever changes it.

A watchpoint belongs to the address space in which it was set. It is for the bytes that its address
leads to there, so a store through another address of the same frame counts, as does one by another
vCPU, by the hypervisor, a backend or another domain. The page-table entries on the way are watched
as well: where they lead elsewhere the watchpoint goes along, and while they lead nowhere it rests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EINVAL, ENOENT, ENOSPC
from xenlite.errors import Refused
from xenlite.machine.engine import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE
from xenlite.machine.frames import FrameType
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.probes import MAX_CELLS, Cell, Cells
from xenlite.machine.x86_32p import (
    INDEX_MASK,
    L1_SHIFT,
    L2_SHIFT,
    L3_SHIFT,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_P,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.core.domain import Domain
    from xenlite.machine.cpu import Cpu

MAX_SIZE: Final = 64
_WORD: Final = 8
_ENTRY: Final = ((1 << 64) - 1) & ~(PTE_A | PTE_D)  # the processor sets these by itself


@dataclass(slots=True)
class Watchpoint:
    """``size`` bytes at ``vaddr`` under one top-level table, and what was last seen there."""

    l3_mfn: int
    vaddr: int
    size: int
    reads: bool  # stop at loads too, and at stores that change nothing if ``writes``
    writes: bool
    content: bytes = b""


class Watchpoints:
    """The watchpoints of one domain."""

    def __init__(self, domain: Domain, cpu: Cpu) -> None:
        self._domain = domain
        self._memory = domain.machine.memory
        self._frames = domain.machine.frames
        self._cells = Cells(cpu)
        self._points: list[Watchpoint] = []

    def __bool__(self) -> bool:
        """Tell whether anything is watched."""
        return bool(self._points)

    @property
    def cells(self) -> Cells:
        """Return what the CPU looks at."""
        return self._cells

    def add(self, point: Watchpoint) -> None:
        """Watch one more. Raises Refused: EINVAL for a bad size, ENOSPC for too many."""
        if not 0 < point.size <= MAX_SIZE or point.vaddr + point.size > 1 << 32:
            raise Refused(EINVAL, "debug.watchpoint-size", point.size)
        point.content = self._read(point) or b""
        self._points.append(point)
        if len(self._wanted(self._points)) > MAX_CELLS:
            self._points.pop()
            raise Refused(ENOSPC, "debug.too-many-watchpoints", len(self._points))
        self.settle()

    def remove(self, vaddr: int, size: int, *, reads: bool, writes: bool) -> None:
        """Watch one less. Raises Refused(ENOENT)."""
        wanted = (vaddr, size, reads, writes)
        for point in self._points:
            if (point.vaddr, point.size, point.reads, point.writes) == wanted:
                self._points.remove(point)
                self.settle()
                return
        raise Refused(ENOENT, "debug.no-such-watchpoint", vaddr)

    def clear(self) -> None:
        """Watch nothing."""
        self._points.clear()
        self.settle()

    def settle(self) -> None:
        """Follow the page tables as they are now; what lies there is as it ought to be."""
        wanted = self._wanted(self._points)
        kinds = {
            (True, False): UC_HOOK_MEM_READ,
            (True, True): UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE,
        }
        accesses = [
            (range(maddr, maddr + size), kinds[point.reads, point.writes])
            for point in self._points
            if point.reads
            for maddr, size in self._pieces(point)
        ]
        self._cells.watch(wanted, accesses)

    def settle_tables_only(self) -> None:
        """Follow the page tables, one of which leads to a scratch page for one instruction."""
        tables = {cell.maddr: cell for point in self._points for cell in self._walk(point)}
        self._cells.watch(list(tables.values()))

    def changed(self) -> tuple[Watchpoint, bytes, bytes] | None:
        """Return a watchpoint whose bytes are others now, with the old ones and the new.

        Or one that was accessed: both are the same then. What was seen is what is expected from
        now on, and the page tables are followed as they are now.
        """
        found = None
        was_accessed = self._cells.was_accessed
        for point in self._points:
            content = self._read(point)
            if content is None:
                continue
            old, point.content = point.content, content
            is_change = old != content and (point.writes or not point.reads) and old != b""
            if found is None and (is_change or (was_accessed and point.reads)):
                found = (point, old, content)
        self.settle()
        return found

    # -- where things are ---------------------------------------------------------------------

    def _wanted(self, points: list[Watchpoint]) -> list[Cell]:
        masks: dict[int, int] = {}
        for point in points:
            for cell in self._walk(point):
                masks[cell.maddr] = cell.mask
            if point.writes or not point.reads:
                for maddr, size in self._pieces(point):
                    for cell in _cells_of(maddr, size):
                        masks[cell.maddr] = masks.get(cell.maddr, 0) | cell.mask
        return [Cell(maddr, mask) for maddr, mask in masks.items()]

    def _walk(self, point: Watchpoint) -> Iterator[Cell]:
        """Yield the page-table entries on the way, as far as they lead."""
        for vaddr, _ in _split(point.vaddr, point.size):
            for maddr in self._entries(point.l3_mfn, vaddr):
                yield Cell(maddr, _ENTRY)

    def _entries(self, l3_mfn: int, vaddr: int) -> Iterator[int]:
        if self._frames.kind[l3_mfn] != FrameType.L3:
            return  # the address space is gone
        at = l3_mfn << PAGE_SHIFT
        for shift in (L3_SHIFT, L2_SHIFT, L1_SHIFT):
            maddr = at + (vaddr >> shift & INDEX_MASK) * _WORD
            yield maddr
            entry = self._memory.m64[maddr >> 3]
            at = entry & PTE_ADDRESS
            if not entry & PTE_P or at >= self._memory.size_bytes:
                return

    def _pieces(self, point: Watchpoint) -> list[tuple[int, int]]:
        """Return (machine address, size) of each page's part; none where any is not mapped."""
        pieces = []
        for vaddr, size in _split(point.vaddr, point.size):
            entries = list(self._entries(point.l3_mfn, vaddr))
            entry = self._memory.m64[entries[-1] >> 3] if len(entries) == 3 else 0
            maddr = (entry & PTE_ADDRESS) | (vaddr & (PAGE_SIZE - 1))
            if not entry & PTE_P or maddr >= self._memory.size_bytes:
                return []
            pieces.append((maddr, size))
        return pieces

    def _read(self, point: Watchpoint) -> bytes | None:
        pieces = self._pieces(point)
        return b"".join(self._memory.read(*piece) for piece in pieces) if pieces else None


def _split(vaddr: int, size: int) -> Iterator[tuple[int, int]]:
    end = vaddr + size
    while vaddr < end:
        length = min(PAGE_SIZE - (vaddr & (PAGE_SIZE - 1)), end - vaddr)
        yield vaddr, length
        vaddr += length


def _cells_of(maddr: int, size: int) -> Iterator[Cell]:
    """Yield the aligned words that ``size`` bytes lie in, with a mask of just these bytes."""
    end = maddr + size
    word = maddr & ~(_WORD - 1)
    while word < end:
        first, last = max(maddr - word, 0), min(end - word, _WORD)
        yield Cell(word, (1 << 8 * last) - (1 << 8 * first))
        word += _WORD
