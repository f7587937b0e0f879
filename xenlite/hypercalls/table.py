# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercall table: every entry point of the hypervisor, by number.

A handler takes the five argument registers and returns the guest's result, 32 bits and not
negative, or REGISTERS_SET where it has set the registers itself (iret). What it raises decides who
is at fault: ``Refused`` becomes ``-errno``, ``DomainCrash`` ends the domain, ``Restart`` calls it
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from xenlite.abi.x86_32p import ENOSYS
from xenlite.errors import Refused
from xenlite.hypercalls.console import ConsoleCalls
from xenlite.hypercalls.events import EventCalls
from xenlite.hypercalls.grants import GrantCalls
from xenlite.hypercalls.info import InfoCalls
from xenlite.hypercalls.memory import MemoryCalls
from xenlite.hypercalls.mmu import MmuCalls
from xenlite.hypercalls.multicall import Multicall
from xenlite.hypercalls.physdev import PhysdevCalls
from xenlite.hypercalls.restart import Handler, NoteRefusal
from xenlite.hypercalls.sched import SchedCalls
from xenlite.hypercalls.traps import TrapCalls
from xenlite.hypercalls.vcpu import VcpuCalls

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

TABLE_SIZE: Final = 64  # the last entry stands for every number beyond


def build(domain: Domain, note: NoteRefusal) -> list[Handler]:
    """Make the table of one domain; ``note`` hears what is refused inside a multicall."""
    table: list[Handler] = [_unimplemented] * TABLE_SIZE
    for family in (
        MmuCalls(domain),
        MemoryCalls(domain),
        TrapCalls(domain),
        InfoCalls(domain),
        SchedCalls(domain),
        ConsoleCalls(domain),
        EventCalls(domain),
        GrantCalls(domain, note),
        PhysdevCalls(domain),
        VcpuCalls(domain),
        Multicall(domain, table, note),
    ):
        for number, handler in family.handlers().items():
            table[number] = handler
    return table


def _unimplemented(_1: int, _2: int, _3: int, _4: int, _5: int) -> NoReturn:
    raise Refused(ENOSYS, "hypercall.unimplemented")
