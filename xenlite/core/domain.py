# SPDX-License-Identifier: GPL-2.0-or-later
"""One domain: the parts that the hypervisor keeps for it, and who they belong to.

A domain is a plain holder: each part (``paging``, ``events``, ``grants``, ...) guards its own
invariants. Parts reach each other through the domain, never through the hypervisor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import SHARED_INFO_VCPU_INFO, SIZEOF_VCPU_INFO
from xenlite.core.timers import Watchdogs
from xenlite.core.vcpu import Vcpu

if TYPE_CHECKING:
    from xenlite.core.descriptors import Descriptors
    from xenlite.core.evtchn import EventChannels
    from xenlite.core.grant import GrantTable
    from xenlite.core.guest_memory import GuestMemory
    from xenlite.core.hole import Hole
    from xenlite.core.maptrack import Maptrack
    from xenlite.core.paging import PageTables
    from xenlite.machine.machine import Machine
    from xenlite.machine.processor import Engine
    from xenlite.machine.tlb import Tlb


class Domain:
    """A domain and its parts; ``core.assembly`` puts one together.

    ``engine`` is the emulated CPU of a guest; Dom0, whose kernel is Python, has the null engine.
    ``peers`` is the one registry of all domains by domid, shared by all.
    """

    def __init__(
        self,
        machine: Machine,
        peers: dict[int, Domain],
        domid: int,
        name: str,
        *,
        max_pages: int,
        max_vcpus: int,
        shared_info_mfn: int,
    ) -> None:
        self.machine = machine
        self.peers = peers
        self.domid = domid
        self.name = name
        self.max_pages = max_pages
        self.shared_info_mfn = shared_info_mfn
        info = (shared_info_mfn << 12) + SHARED_INFO_VCPU_INFO
        self.vcpus = [Vcpu(self, i, info + i * SIZEOF_VCPU_INFO) for i in range(max_vcpus)]
        self.current = self.vcpus[0]  # the vCPU whose registers the engine holds
        self.assists = 0  # bit n: vm_assist type n is enabled
        self.in_multicall = False
        self.console_write: Callable[[bytes], None] = _drop  # where console_io output goes
        self.paused = True
        self.held = False  # by a debugger, but for the vCPU that makes a single step
        self.stepping: Vcpu | None = None
        self.dying = False
        self.shutdown_reason: int | None = None
        self.shutdown_code: int | None = None  # fixed before: it wins over the reason given later
        self.watchdogs = Watchdogs(self)
        # Filled by core.assembly, in this order; each part may use those before it.
        self.engine: Engine
        self.tlb: Tlb
        self.hole: Hole
        self.paging: PageTables
        self.guest_memory: GuestMemory
        self.descriptors: Descriptors
        self.events: EventChannels
        self.grants: GrantTable
        self.maptrack: Maptrack

    def shut_down(self, reason: int) -> None:
        """End the domain's run for a reason (SHUTDOWN_*); the first one counts."""
        if self.shutdown_reason is None:
            code = self.shutdown_code
            self.shutdown_reason = reason if code is None else code

    @property
    def is_privileged(self) -> bool:
        """Tell whether this is Dom0."""
        return self.domid == 0


def _drop(_text: bytes) -> None:
    """Drop console_io output until somebody listens."""
