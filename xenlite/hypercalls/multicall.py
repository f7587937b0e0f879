# SPDX-License-Identifier: GPL-2.0-or-later
"""multicall: a list of hypercalls for the price of one trap (public/xen.h, multicall_entry).

Each entry is copied in once, called, and its result written into its slot. Lists do not nest; an
iret ends one; a long one restarts with what is left, as does an entry that is itself long. What an
entry did may concern the list itself, so after each the page is looked at again.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    MULTICALL_ENTRY_ARGS,
    MULTICALL_ENTRY_RESULT,
    SIZEOF_MULTICALL_ENTRY,
    HYPERVISOR_multicall,
)
from xenlite.core.paging import LEAST_WORK
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, NoteRefusal, Restart
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import REGISTERS_SET
from xenlite.machine.x86_32p import INDEX_MASK, L2_SHIFT

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRY: Final = Struct("<8I")
_ARGUMENTS: Final = Struct("<5I")
_OFFSET: Final = PAGE_SIZE - 1
_WORD: Final = 0xFFFFFFFF
assert _ENTRY.size == SIZEOF_MULTICALL_ENTRY
assert (MULTICALL_ENTRY_RESULT, MULTICALL_ENTRY_ARGS) == (4, 8)


class Multicall:
    """The multicall of one domain, over the table that it is itself part of."""

    def __init__(self, domain: Domain, table: list[Handler], note: NoteRefusal) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._table = table
        self._note = note
        self._trail = domain.engine.trail
        self._paging = domain.paging
        self._memory = memory = domain.machine.memory
        self._bound = (domain.paging, table, memory.code, memory.m8, memory.m32, memory.m64)

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {HYPERVISOR_multicall: self.multicall}

    def multicall(self, calls: int, count: int, _2: int, _3: int, _4: int) -> int:
        """Call each entry in turn."""
        domain = self._domain
        if domain.in_multicall:
            raise Refused(EINVAL, "multicall.nested")
        self._guest_memory.check_range(calls, count * SIZEOF_MULTICALL_ENTRY)
        if domain.paging.work_left < LEAST_WORK:
            domain.paging.begin_work()
        domain.in_multicall = True
        try:
            return self._run(calls, count)
        finally:
            domain.in_multicall = False

    def _run(self, calls: int, count: int) -> int:
        at, end = calls, calls + count * SIZEOF_MULTICALL_ENTRY
        while at < end:
            maddr = self._find_writable(at)
            if maddr is None:
                result, at = self._call_copied(at, end)
            else:
                room = (PAGE_SIZE - (at & _OFFSET)) // SIZEOF_MULTICALL_ENTRY
                stop = min(end, at + room * SIZEOF_MULTICALL_ENTRY)
                result, at = self._call_in_place(at, stop, end, maddr)
            if result == REGISTERS_SET:
                return REGISTERS_SET  # an iret: the guest is elsewhere now
        return 0

    def _find_writable(self, at: int) -> int | None:
        """Return where an entry lies that is aligned, and in one page that the guest may write."""
        if at & 3 or at & _OFFSET > PAGE_SIZE - SIZEOF_MULTICALL_ENTRY:
            return None
        return self._guest_memory.translate_write(at)

    def _call_in_place(self, at: int, stop: int, end: int, maddr: int) -> tuple[int, int]:
        """Make the calls up to ``stop``, all in one page, for as long as the guest may write it.

        Returns the last result, and the address of the first entry that was not called.
        """
        paging, table, code, m8, m32, m64 = self._bound
        bases, region = paging.writable_l1_bases, at >> L2_SHIFT
        base = bases[region]
        slot = base + (at >> PAGE_SHIFT & INDEX_MASK)
        entry = m64[slot]
        first = maddr
        record = None
        try:
            while at < stop:
                left = paging.work_left
                if left <= 0 or paging.deferred:
                    raise _restart(at, end)
                paging.work_left = left - 1
                number, _, a, b, c, d, e, _ = record = _ENTRY.unpack_from(m8, maddr)
                try:
                    result = table[number if number < len(table) else -1](a, b, c, d, e)
                except Refused as refused:
                    self._note(number, (a, b, c, d, e), refused)
                    result = -refused.errno & _WORD
                except Restart as restart:
                    self._put_back(at, restart)
                    raise _restart(at, end) from None
                if result == REGISTERS_SET:
                    return result, at
                # The call may have taken the page itself away.
                if m64[slot] != entry or bases.get(region) != base:
                    self._guest_memory.write_u32(at + MULTICALL_ENTRY_RESULT, result)
                    return result, at + SIZEOF_MULTICALL_ENTRY
                m32[maddr + MULTICALL_ENTRY_RESULT >> 2] = result
                if code[maddr >> PAGE_SHIFT]:
                    self._memory.wrote(maddr >> PAGE_SHIFT)
                record = None
                at += SIZEOF_MULTICALL_ENTRY
                maddr += SIZEOF_MULTICALL_ENTRY
            return 0, at
        finally:
            self._trail.copy(m8[first:maddr])
            if record is not None:
                self._trail.begin(record[0], record[2:7])

    def _call_copied(self, at: int, end: int) -> tuple[int, int]:
        """Make the call of one entry that lies anywhere."""
        paging, table = self._paging, self._table
        if paging.work_left <= 0 or paging.deferred:
            raise _restart(at, end)
        paging.work_left -= 1
        copy = self._guest_memory.read(at, SIZEOF_MULTICALL_ENTRY)
        number, _, a, b, c, d, e, _ = _ENTRY.unpack(copy)
        record = self._trail.begin(number, (a, b, c, d, e))
        try:
            result = table[number if number < len(table) else -1](a, b, c, d, e)
        except Refused as refused:
            self._note(number, (a, b, c, d, e), refused)
            result = -refused.errno & _WORD
        except Restart as restart:
            self._put_back(at, restart)
            raise _restart(at, end) from None
        if result != REGISTERS_SET:
            self._trail.end(record, result)
            self._guest_memory.write_u32(at + MULTICALL_ENTRY_RESULT, result)
        return result, at + SIZEOF_MULTICALL_ENTRY

    def _put_back(self, at: int, rest: Restart) -> None:
        """Have an entry say what is left of its call."""
        self._guest_memory.write(at + MULTICALL_ENTRY_ARGS, _ARGUMENTS.pack(*rest.arguments))


def _restart(at: int, end: int) -> Restart:
    """Go on with the list at ``at``."""
    return Restart((at, (end - at) // SIZEOF_MULTICALL_ENTRY, 0, 0, 0))
