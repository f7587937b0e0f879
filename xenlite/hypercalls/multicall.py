# SPDX-License-Identifier: GPL-2.0-or-later
"""multicall: a list of hypercalls for the price of one trap (public/xen.h, multicall_entry).

Each entry is copied in once, called, and its result written into its slot. Lists do not nest; an
iret ends one; a long one restarts with what is left, as does an entry that is itself long.
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
from xenlite.machine.trap import REGISTERS_SET

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRY: Final = Struct("<8I")
_ARGUMENTS: Final = Struct("<5I")
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
        domain, table, memory = self._domain, self._table, self._guest_memory
        paging = domain.paging
        trail = self._trail
        translate_write = memory.translate_write
        m32 = domain.machine.memory.m32
        for at in range(calls, calls + count * SIZEOF_MULTICALL_ENTRY, SIZEOF_MULTICALL_ENTRY):
            if paging.work_left <= 0 or paging.deferred:
                raise Restart((at, count - (at - calls) // SIZEOF_MULTICALL_ENTRY, 0, 0, 0))
            paging.work_left -= 1
            number, _, a, b, c, d, e, _ = _ENTRY.unpack(memory.read(at, SIZEOF_MULTICALL_ENTRY))
            record = trail.begin(number, (a, b, c, d, e))
            try:
                result = table[number if number < len(table) else -1](a, b, c, d, e)
            except Refused as refused:
                self._note(number, (a, b, c, d, e), refused)
                result = -refused.errno & _WORD
            except Restart as restart:
                memory.write(at + MULTICALL_ENTRY_ARGS, _ARGUMENTS.pack(*restart.arguments))
                left = count - (at - calls) // SIZEOF_MULTICALL_ENTRY
                raise Restart((at, left, 0, 0, 0)) from None
            if result == REGISTERS_SET:
                return REGISTERS_SET  # an iret: the guest is elsewhere now
            trail.end(record, result)
            maddr = translate_write(at + MULTICALL_ENTRY_RESULT)
            if maddr is not None and not maddr & 3 and not domain.machine.memory.code[maddr >> 12]:
                m32[maddr >> 2] = result
            else:
                memory.write_u32(at + MULTICALL_ENTRY_RESULT, result)
        return 0
