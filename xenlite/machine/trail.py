# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember the last calls of a guest: a preallocated ring, written at every call.

One record is eight words: number, result, EBX, ECX, EDX, ESI, EDI, and whether the call has
returned a result. That is how a multicall_entry lies in memory (public/xen.h) but for the last, so
that a list of calls is remembered by copying it. Where it can, the trap stub writes the records;
nothing is allocated either way.
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


class CallRecord(NamedTuple):
    """One remembered call; ``result`` as the guest's 32 bits, None while it has not returned."""

    number: int
    arguments: tuple[int, int, int, int, int]
    result: int | None


class Trail:
    """The ring, and where in it the next call goes."""

    def __init__(self, table: TrapTable) -> None:
        cells = (ctypes.c_uint32 * (RECORDS * _WORDS))()
        table.trail = ctypes.addressof(cells)
        self._bytes = memoryview(cells).cast("B")
        self._words = self._bytes.cast("I")
        self._yes = memoryview(b"\1\0\0\0" * RECORDS).cast("I")
        start = TrapTable.trail_next.offset
        self._next = memoryview(table).cast("B")[start : start + 8].cast("Q")

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
