# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember the last calls of a guest, and its other traps: two preallocated rings, always written.

A call's record is eight words: number, result, EBX, ECX, EDX, ESI, EDI, and whether the call has
returned a result. That is how a multicall_entry lies in memory (public/xen.h) but for the last, so
that a list of calls is remembered by copying it. A trap's is four: the vector with bit 8 for an
``int n`` and the ring from bit 16 on, EIP, error code and CR2 as they stood, whether or not the
vector has to do with them. Where it can, the trap stub writes the records; nothing is allocated
either way.
"""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import Final, NamedTuple

from xenlite.machine.engine import TrapTable

RECORDS: Final = 64  # a power of two: the stub masks its index
_RECORD: Final = Struct("<8I")
_SIZE: Final = _RECORD.size
_WORDS: Final = 8
_RESULT: Final = 1
_HAS_RESULT: Final = 7
_TRAP: Final = Struct("<4I")
_VECTOR: Final = 0xFF
_IS_SOFTWARE: Final = 1 << 8
_RING_SHIFT: Final = 16


class CallRecord(NamedTuple):
    """One remembered call; ``result`` as the guest's 32 bits, None while it has not returned."""

    number: int
    arguments: tuple[int, int, int, int, int]
    result: int | None


class SeenTrap(NamedTuple):
    """One remembered trap; ``error_code`` and ``cr2`` mean something with some vectors only."""

    vector: int
    is_software: bool
    ring: int
    eip: int
    error_code: int
    cr2: int


class Trail:
    """The rings, and where in them the next call and the next trap go."""

    def __init__(self, table: TrapTable) -> None:
        cells = (ctypes.c_uint32 * (RECORDS * _WORDS))()
        table.trail = ctypes.addressof(cells)
        self._bytes = memoryview(cells).cast("B")
        self._words = self._bytes.cast("I")
        self._yes = memoryview(b"\1\0\0\0" * RECORDS).cast("I")
        start = TrapTable.trail_next.offset
        self._next = memoryview(table).cast("B")[start : start + 8].cast("Q")
        traps = (ctypes.c_uint32 * (RECORDS * _TRAP.size // 4))()
        table.traps = ctypes.addressof(traps)
        self._traps = memoryview(traps).cast("B")
        start = TrapTable.traps_next.offset
        self._traps_next = memoryview(table).cast("B")[start : start + 8].cast("Q")

    def begin(self, number: int, arguments: tuple[int, int, int, int, int]) -> int:
        """Record a call; return where ``end`` may add its result."""
        at = self._next[0] % RECORDS * _WORDS
        self._next[0] += 1
        _RECORD.pack_into(self._bytes, at * 4, number, 0, *arguments, 0)
        return at

    def end(self, at: int, result: int) -> None:
        """Add the result of a recorded call."""
        self._words[at + _RESULT] = result
        self._words[at + _HAS_RESULT] = 1

    def copy(self, calls: memoryview) -> None:
        """Record calls that have returned, given as the bytes of a list of multicall_entry."""
        done = 0
        while done < len(calls):
            first = self._next[0] % RECORDS
            size = min(len(calls) - done, (RECORDS - first) * _SIZE)
            count = size // _SIZE
            self._bytes[first * _SIZE : first * _SIZE + size] = calls[done : done + size]
            flags = slice(first * _WORDS + _HAS_RESULT, (first + count) * _WORDS, _WORDS)
            self._words[flags] = self._yes[:count]
            self._next[0] += count
            done += size

    def newest(self) -> list[CallRecord]:
        """Return what is remembered, oldest first."""
        count = self._next[0]
        records = []
        for n in range(max(0, count - RECORDS), count):
            words = _RECORD.unpack_from(self._bytes, n % RECORDS * _SIZE)
            number, result, ebx, ecx, edx, esi, edi, has_result = words
            arguments = (ebx, ecx, edx, esi, edi)
            records.append(CallRecord(number, arguments, result if has_result else None))
        return records

    def trap(self, seen: SeenTrap) -> None:
        """Record a trap that the stub has not."""
        at = self._traps_next[0] % RECORDS * _TRAP.size
        self._traps_next[0] += 1
        what = seen.vector | (_IS_SOFTWARE if seen.is_software else 0) | seen.ring << _RING_SHIFT
        _TRAP.pack_into(self._traps, at, what, seen.eip, seen.error_code, seen.cr2)

    def newest_traps(self) -> list[SeenTrap]:
        """Return the traps that are remembered, oldest first."""
        count = self._traps_next[0]
        seen = []
        for n in range(max(0, count - RECORDS), count):
            what, *rest = _TRAP.unpack_from(self._traps, n % RECORDS * _TRAP.size)
            is_software = bool(what & _IS_SOFTWARE)
            seen.append(SeenTrap(what & _VECTOR, is_software, what >> _RING_SHIFT, *rest))
        return seen
