# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember the last calls of a guest: a preallocated ring, written at every call.

One record is eight words: number, EBX, ECX, EDX, ESI, EDI, result, and 1 where the call has
returned a result. Where it can, the trap stub writes them; nothing is allocated either way.
"""

from __future__ import annotations

import ctypes
from typing import Final, NamedTuple

from xenlite.machine.engine import TrapTable

RECORDS: Final = 64  # a power of two: the stub masks its index
_WORDS: Final = 8
_RESULT: Final = 6
_HAS_RESULT: Final = 7


class CallRecord(NamedTuple):
    """One remembered call; ``result`` as the guest's 32 bits, None while it has not returned."""

    number: int
    arguments: tuple[int, int, int, int, int]
    result: int | None


class Trail:
    """The ring, and where in it the next call goes."""

    def __init__(self, table: TrapTable) -> None:
        self._cells = (ctypes.c_uint32 * (RECORDS * _WORDS))()
        table.trail = ctypes.addressof(self._cells)
        start = TrapTable.trail_next.offset
        self._next = memoryview(table).cast("B")[start : start + 8].cast("Q")

    def begin(self, number: int, arguments: tuple[int, int, int, int, int]) -> int:
        """Record a call; return where ``end`` may add its result."""
        at = self._next[0] % RECORDS * _WORDS
        self._next[0] += 1
        self._cells[at : at + _WORDS] = [number, *arguments, 0, 0]
        return at

    def end(self, at: int, result: int) -> None:
        """Add the result of a recorded call."""
        self._cells[at + _RESULT] = result
        self._cells[at + _HAS_RESULT] = 1

    def newest(self) -> list[CallRecord]:
        """Return what is remembered, oldest first."""
        count = self._next[0]
        records = []
        for n in range(max(0, count - RECORDS), count):
            at = n % RECORDS * _WORDS
            number, ebx, ecx, edx, esi, edi, result, has_result = self._cells[at : at + _WORDS]
            arguments = (ebx, ecx, edx, esi, edi)
            records.append(CallRecord(number, arguments, result if has_result else None))
        return records
