# SPDX-License-Identifier: GPL-2.0-or-later
"""sched_op: give up the processor for a turn, until an event, or for ever (public/sched.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    ENOSYS,
    SIZEOF_SCHED_SHUTDOWN,
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    HYPERVISOR_sched_op,
    HYPERVISOR_sched_op_compat,
    SCHEDOP_block,
    SCHEDOP_shutdown,
    SCHEDOP_yield,
    SchedShutdown,
)
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_REASON: Final = 0xFF  # Xen keeps a byte


class SchedCalls:
    """The scheduling hypercalls of one domain, for its current vCPU."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._memory = domain.machine.memory

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_sched_op_compat: self.sched_op_compat,
            HYPERVISOR_sched_op: self.sched_op,
        }

    def sched_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Yield, block, or shut the domain down; ``argument`` points at the reason."""
        if command == SCHEDOP_shutdown:
            copy = self._guest_memory.read(argument, SIZEOF_SCHED_SHUTDOWN)
            self._shut_down(SchedShutdown.unpack(copy).reason)
        else:
            self._wait(command)
        return 0

    def sched_op_compat(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Do the same by the old number: ``argument`` is the reason itself."""
        if command == SCHEDOP_shutdown:
            self._shut_down(argument)
        else:
            self._wait(command)
        return 0

    def _wait(self, command: int) -> None:
        if command == SCHEDOP_block:
            self._block()
        elif command != SCHEDOP_yield:
            raise Refused(ENOSYS, "sched.command", command)
        self._leave()

    def _block(self) -> None:
        """Let events in, and sleep unless one is pending already."""
        vcpu = self._domain.current
        mask_at = vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_MASK
        self._memory.write(mask_at, b"\0")
        if not self._memory.m8[vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_PENDING]:
            vcpu.state = VcpuState.BLOCKED

    def _shut_down(self, reason: int) -> None:
        if self._domain.shutdown_reason is None:
            self._domain.shutdown_reason = reason & _REASON
        self._leave()

    def _leave(self) -> None:
        """End the turn after this call; the rest of a multicall waits for the next one."""
        self._domain.paging.work_left = 0
        self._domain.engine.stop()
