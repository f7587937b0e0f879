# SPDX-License-Identifier: GPL-2.0-or-later
"""sched_op: give up the processor for a turn, until an event, or for ever (public/sched.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    SIZEOF_SCHED_POLL,
    SIZEOF_SCHED_REMOTE_SHUTDOWN,
    SIZEOF_SCHED_SHUTDOWN,
    SIZEOF_SCHED_WATCHDOG,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    HYPERVISOR_sched_op,
    HYPERVISOR_sched_op_compat,
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SchedPoll,
    SchedRemoteShutdown,
    SchedShutdown,
    SchedWatchdog,
)
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.core.domain import Domain

_REASON: Final = 0xFF  # Xen keeps a byte
_MAX_POLL_PORTS: Final = 128
_PORT_SIZE: Final = 4
_RUNNABLE: Final = VcpuState.RUNNABLE


class SchedCalls:
    """The scheduling hypercalls of one domain, for its current vCPU."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._memory = domain.machine.memory
        self._operations: dict[int, Callable[[int], int]] = {
            SCHEDOP_yield: self._yield,
            SCHEDOP_block: self._block,
            SCHEDOP_shutdown: self._shutdown,
            SCHEDOP_poll: self._poll,
            SCHEDOP_remote_shutdown: self._remote_shutdown,
            SCHEDOP_shutdown_code: self._shutdown_code,
            SCHEDOP_watchdog: self._watchdog,
            SCHEDOP_pin_override: self._pin_override,
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_sched_op_compat: self.sched_op_compat,
            HYPERVISOR_sched_op: self.sched_op,
        }

    def sched_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Do one operation; ``argument`` points at its structure, where it has one."""
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(ENOSYS, "sched.command", command)
        return operation(argument)

    def sched_op_compat(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Yield, block or shut down by the old number: ``argument`` is the reason itself."""
        if command == SCHEDOP_shutdown:
            self._domain.shut_down(argument & _REASON)
            self._leave()
            return 0
        if command not in (SCHEDOP_yield, SCHEDOP_block):
            raise Refused(ENOSYS, "sched.command", command)
        return self._operations[command](argument)

    # -- waiting ------------------------------------------------------------------------------

    def _yield(self, _argument: int) -> int:
        if self._is_alone():
            return 0
        self._domain.current.has_yielded = True
        self._leave()
        return 0

    def _is_alone(self) -> bool:
        """Tell whether the loop would only come back here; what is deferred kicks the engine."""
        domain = self._domain
        current = domain.current
        if domain.in_multicall or domain.paging.deferred or current.selectors_stale:
            return False  # the way through the loop has work to do
        machine = domain.machine
        if machine.timers.earliest_ns <= machine.clock.monotonic_ns():
            return False
        for peer in domain.peers.values():
            for vcpu in peer.vcpus:
                if vcpu.state is _RUNNABLE and vcpu is not current and vcpu.may_run:
                    return False
        return True

    def _block(self, _argument: int) -> int:
        """Let events in, and sleep unless one is pending already."""
        vcpu = self._domain.current
        memory = self._memory
        memory.m8[vcpu.mask_at] = 0
        if memory.code[vcpu.mask_at >> PAGE_SHIFT]:
            memory.wrote(vcpu.mask_at >> PAGE_SHIFT)
        if not memory.m8[vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_PENDING]:
            vcpu.block()
            self._leave()
        return 0

    def _poll(self, argument: int) -> int:
        """Sleep until one of some ports is pending, masked or not, or until a system time."""
        poll = SchedPoll.unpack(self._guest_memory.read(argument, SIZEOF_SCHED_POLL))
        if poll.nr_ports > _MAX_POLL_PORTS:
            raise Refused(EINVAL, "sched.poll-ports", poll.nr_ports)
        copy = self._guest_memory.read(poll.ports, poll.nr_ports * _PORT_SIZE)
        vcpu = self._domain.current
        self._leave()
        if 0 < self._memory.m16[vcpu.upcall_index] < 0x100:
            return 0  # an event is about to be delivered
        if self._domain.events.poll(vcpu.id, memoryview(copy).cast("I")):
            return 0
        vcpu.timers.wake_at(poll.timeout)
        vcpu.block()
        return 0

    # -- shutting down ------------------------------------------------------------------------

    def _shutdown(self, argument: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_SCHED_SHUTDOWN)
        self._domain.shut_down(SchedShutdown.unpack(copy).reason & _REASON)
        self._leave()
        return 0

    def _shutdown_code(self, argument: int) -> int:
        """Fix the reason of a shutdown that is to come."""
        copy = self._guest_memory.read(argument, SIZEOF_SCHED_SHUTDOWN)
        if self._domain.shutdown_code is None:
            self._domain.shutdown_code = SchedShutdown.unpack(copy).reason & _REASON
        return 0

    def _remote_shutdown(self, argument: int) -> int:
        """Refuse it: another domain's end is the toolstack's to decide."""
        copy = self._guest_memory.read(argument, SIZEOF_SCHED_REMOTE_SHUTDOWN)
        domid = SchedRemoteShutdown.unpack(copy).domain_id
        if domid not in self._domain.peers:
            raise Refused(ESRCH, "sched.no-such-domain", domid)
        raise Refused(EPERM, "sched.remote-needs-privilege", domid)

    def _watchdog(self, argument: int) -> int:
        """Start a watchdog (id 0: its number comes back), renew it, or stop it (timeout 0)."""
        copy = self._guest_memory.read(argument, SIZEOF_SCHED_WATCHDOG)
        watchdog = SchedWatchdog.unpack(copy)
        return self._domain.watchdogs.set(watchdog.id, watchdog.timeout)

    def _pin_override(self, _argument: int) -> int:
        raise Refused(EPERM, "sched.pinning-needs-privilege")

    def _leave(self) -> None:
        """End the turn after this call; the rest of a multicall waits for the next one."""
        self._domain.paging.work_left = 0
        self._domain.engine.stop()
