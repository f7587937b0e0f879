# SPDX-License-Identifier: GPL-2.0-or-later
"""console_io: text without a ring, for a guest's first and last words (public/xen.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSYS,
    CONSOLEIO_read,
    CONSOLEIO_write,
    HYPERVISOR_console_io,
)
from xenlite.core.paging import LEAST_WORK
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_BYTES_PER_CALL: Final = 4096  # then the call restarts with the rest
_BYTES_PER_UNIT: Final = 64  # of work, against the budget of a multicall
_SIGN: Final = 1 << 31


class ConsoleCalls:
    """The console hypercall of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {HYPERVISOR_console_io: self.console_io}

    def console_io(self, command: int, count: int, buffer: int, _1: int, _2: int) -> int:
        """Write ``count`` bytes; reading gives none, since input goes through the ring."""
        if command == CONSOLEIO_read:
            return 0
        if command != CONSOLEIO_write:
            raise Refused(ENOSYS, "console.command", command)
        if count & _SIGN:
            raise Refused(EINVAL, "console.count", count)
        here = min(count, _BYTES_PER_CALL)
        if self._domain.paging.work_left < LEAST_WORK:
            self._domain.paging.begin_work()
        self._domain.paging.work_left -= here // _BYTES_PER_UNIT
        self._domain.console_write(self._guest_memory.read(buffer, here))
        if here < count:
            raise Restart((command, count - here, buffer + here, 0, 0))
        return 0
