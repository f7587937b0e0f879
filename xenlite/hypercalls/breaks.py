# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop before hypercalls: wrap their entries of the table, for as long as somebody asks for it.

The first time a call comes it is told of and restarted, as Xen's continuations are: EIP back on the
``int``, arguments as they were, or a multicall as far as it has come. The second time it is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import ENOENT
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Arguments, Handler, Restart
from xenlite.hypercalls.table import TABLE_SIZE
from xenlite.machine.trap import EIP, ESP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from xenlite.core.domain import Domain


class CallBreaks:
    """The wrapped hypercalls of one domain; ``on_call(number, arguments)`` hears of each."""

    def __init__(
        self, domain: Domain, table: list[Handler], on_call: Callable[[int, Arguments], None]
    ) -> None:
        self._domain = domain
        self._table = table
        self._on_call = on_call
        self._regs = domain.engine.regs
        self._originals: dict[int, Handler] = {}
        # The call that is made when it comes again. Known by vCPU, place and stack, so that what
        # the handler of an event calls in between is not taken for it.
        self._told: tuple[int, int, int, int] | None = None

    def set(self, numbers: Collection[int]) -> None:
        """Stop before these, instead of those before. Raises Refused(ENOENT)."""
        for number in numbers:
            if not 0 <= number < TABLE_SIZE:
                raise Refused(ENOENT, "debug.no-such-hypercall", number)
        for number, handler in self._originals.items():
            self._table[number] = handler
        self._originals = {number: self._table[number] for number in numbers}
        for number, handler in self._originals.items():
            self._table[number] = self._wrapped(number, handler)

    def _wrapped(self, number: int, handler: Handler) -> Handler:
        regs = self._regs

        def call(ebx: int, ecx: int, edx: int, esi: int, edi: int) -> int:
            key = (self._domain.current.id, regs[EIP], regs[ESP], number)
            if self._told != key:
                self._told = key
                self._on_call(number, (ebx, ecx, edx, esi, edi))
                raise Restart((ebx, ecx, edx, esi, edi))
            self._told = None
            try:
                return handler(ebx, ecx, edx, esi, edi)
            except Restart:
                self._told = key
                raise

        return call
