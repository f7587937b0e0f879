# SPDX-License-Identifier: GPL-2.0-or-later
"""Remember ways into a guest's kernel and back that the trap stub may repeat by itself.

A way is opened by whoever has just gone it with every check, and holds what was found then. The
stub goes it again only while the page-table entry of the frame is the same, no other engine has
translated what is written, and flags and selectors are as plain as they were. The rest of what was
found is kept by a rule: whoever changes it calls ``close`` (a table above the L1, CR3, a
descriptor, the kernel's stack, a handler, an assist, the virtual IOPL, the vCPU).
"""

from __future__ import annotations

import ctypes
from enum import IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.machine.engine import TrapTable
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from xenlite.machine.memory import MachineMemory

UPCALL: Final = 256
"""The upcall's number among the vectors."""
_WAY: Final = Struct("<4Q4I48s6I2Q2I")
WAY_SIZE_BYTES: Final = _WAY.size
# Indexes: the two ways back, then those in by vector, from ring 3 and from ring 1.
_BACK_TO_RING_3: Final = 0
_BACK_INSIDE: Final = 1
_FROM_RING_3: Final = 2
_FROM_RING_1: Final = _FROM_RING_3 + UPCALL + 1
_MOST_WAYS: Final = _FROM_RING_1 + UPCALL + 1


class WayKind(IntFlag):
    """What a way in is for, and what is in its frame."""

    SOFTWARE = 1
    PAGE_FAULT = 2
    SAME_RING = 4
    ADDRESS = 8
    ERROR_CODE = 16
    MASKS_EVENTS = 32


# An enum's own `&` takes half as long as all else that opens a way.
_SAME_RING: Final = int(WayKind.SAME_RING)


class Way(NamedTuple):
    """One way, in or back; addresses are the machine's.

    Within ring 1, ``frame_maddr`` is that of the stack's page and ``esp`` the page's number.
    ``selectors`` are CS and SS of the frame and DS, ES, FS, GS in the registers, of a way back.
    """

    entry_maddr: int
    entry: int
    frame_maddr: int
    target: int  # the handler, or the number of the call
    esp: int  # after the frame is pushed, or before it is popped
    hflags: int
    cs_and_ss: bytes
    selectors: tuple[int, int, int, int, int, int]
    cr2_maddr: int  # of the guest's word for the address of a page fault, by the mask byte
    kind: int = 0
    # Of a way in:
    size: int = 0  # of the frame, in bytes
    limit: int = 0  # addresses of page faults from here on are not for this way


class Ways:
    """The ways of one engine's current vCPU."""

    def __init__(self, table: TrapTable, memory: MachineMemory | None) -> None:
        """Write them into ``table``; without memory there is no stub, and none is ever open."""
        self._memory = memory
        self._table = table
        self._open: list[int] = []
        self._are_forbidden = False
        if memory is None:
            return
        start = TrapTable.ways.offset
        self._addresses = memoryview(table).cast("B")[start : start + 8 * _MOST_WAYS].cast("Q")
        self._cells = (ctypes.c_uint8 * (WAY_SIZE_BYTES * _MOST_WAYS))()
        self._first = ctypes.addressof(self._cells)
        self._code = ctypes.addressof(ctypes.c_char.from_buffer(memory.code))

    def open_in(self, vector: int, way: Way) -> None:
        """Let a trap, or the upcall, go ``way``; its kind says which and from where."""
        ring = _FROM_RING_1 if way.kind & _SAME_RING else _FROM_RING_3
        self._open_at(ring + vector, way)

    def open_back(self, way: Way) -> None:
        """Let the call that returns go ``way``; its kind says whether within ring 1."""
        self._table.return_call = way.target
        self._open_at(_BACK_INSIDE if way.kind & _SAME_RING else _BACK_TO_RING_3, way)

    def forbid(self, *, forbidden: bool) -> None:
        """Have Python see every trap from now on, or open ways again."""
        self._are_forbidden = forbidden
        self.close()

    def close(self) -> None:
        """Have Python look at everything again."""
        if self._open:
            for index in self._open:
                self._addresses[index] = 0
            self._open.clear()

    def _open_at(self, index: int, way: Way) -> None:
        memory = self._memory
        if memory is None or self._are_forbidden:
            return
        at = index * WAY_SIZE_BYTES
        host = memory.host_address
        _WAY.pack_into(
            self._cells,
            at,
            host + way.entry_maddr,
            way.entry,
            host + way.frame_maddr,
            self._code + (way.frame_maddr >> PAGE_SHIFT),
            way.target,
            way.esp,
            way.hflags,
            way.kind,
            way.cs_and_ss,
            *way.selectors,
            self._code + (way.cr2_maddr >> PAGE_SHIFT),
            host + way.cr2_maddr,
            way.size,
            way.limit,
        )
        if not self._addresses[index]:
            self._addresses[index] = self._first + at
            self._open.append(index)
