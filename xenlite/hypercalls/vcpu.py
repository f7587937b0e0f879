# SPDX-License-Identifier: GPL-2.0-or-later
"""vcpu_op and set_timer_op: start, stop, time and ask about virtual processors.

Source: public/vcpu.h, public/xen.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSYS,
    ENXIO,
    ETIME,
    SIZEOF_VCPU_GET_PHYSID,
    SIZEOF_VCPU_GUEST_CONTEXT,
    SIZEOF_VCPU_INFO,
    SIZEOF_VCPU_REGISTER_RUNSTATE_MEMORY_AREA,
    SIZEOF_VCPU_REGISTER_TIME_MEMORY_AREA,
    SIZEOF_VCPU_REGISTER_VCPU_INFO,
    SIZEOF_VCPU_SET_PERIODIC_TIMER,
    SIZEOF_VCPU_SET_SINGLESHOT_TIMER,
    VCPU_INFO_EVTCHN_PENDING_SEL,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_vcpu_op,
    SHUTDOWN_poweroff,
    VCPU_SSHOTTMR_future,
    VcpuGetPhysid,
    VcpuGuestContext,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    VcpuRegisterVcpuInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
    VGCF_online,
)
from xenlite.core.paging import LEAST_WORK, Preempted
from xenlite.core.scheduler import SLICE_NS
from xenlite.core.timekeeping import publish_runstate, read_time
from xenlite.core.timers import SHORTEST_PERIOD_NS
from xenlite.core.vcpu import VcpuState
from xenlite.core.vcpu_start import prepare
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

_FAR_NS: Final = 1 << 50  # what Xen takes for a mistake in the guest's arithmetic
_MISTAKE_NS: Final = 100_000_000
_LONGEST_NS: Final = (1 << 63) - 1


class VcpuCalls:
    """The vCPU and timer hypercalls of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._clock = domain.machine.clock
        self._frames = domain.machine.frames
        self._memory = domain.machine.memory
        self._operations: dict[int, Callable[[Vcpu, int], int]] = {
            VCPUOP_initialise: self._initialise,
            VCPUOP_up: self._up,
            VCPUOP_down: self._down,
            VCPUOP_is_up: self._is_up,
            VCPUOP_get_runstate_info: self._get_runstate,
            VCPUOP_register_runstate_memory_area: self._register_runstate,
            VCPUOP_set_periodic_timer: self._set_periodic,
            VCPUOP_stop_periodic_timer: self._stop_periodic,
            VCPUOP_set_singleshot_timer: self._set_single,
            VCPUOP_stop_singleshot_timer: self._stop_single,
            VCPUOP_register_vcpu_info: self._register_info,
            VCPUOP_send_nmi: self._send_nmi,
            VCPUOP_get_physid: self._get_physid,
            VCPUOP_register_vcpu_time_memory_area: self._register_time,
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_set_timer_op: self.set_timer_op,
            HYPERVISOR_vcpu_op: self.vcpu_op,
        }

    def set_timer_op(self, low: int, high: int, _1: int, _2: int, _3: int) -> int:
        """Raise VIRQ_TIMER at a system time in ns; 0 for never.

        A time that is negative, or two weeks ahead, is a mistake of old kernels' arithmetic: as on
        Xen it comes in 100 ms, so that they survive it.
        """
        deadline_ns = low | high << 32
        timers = self._domain.current.timers
        now_ns = self._clock.monotonic_ns()
        if not deadline_ns:
            timers.stop_single()
        elif deadline_ns > _LONGEST_NS or deadline_ns - now_ns >= _FAR_NS:
            timers.set_single(now_ns + _MISTAKE_NS)
        else:
            self._set_own_timer(deadline_ns, now_ns)
        return 0

    def vcpu_op(self, command: int, vcpu_id: int, argument: int, _1: int, _2: int) -> int:
        """Do one operation on one vCPU of the domain."""
        if vcpu_id >= len(self._domain.vcpus):
            raise Refused(ENOENT, "vcpu.no-such-vcpu", vcpu_id)
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(ENOSYS, "vcpu.command", command)
        vcpu = self._domain.vcpus[vcpu_id]
        try:
            return operation(vcpu, argument)
        except Preempted:
            raise Restart((command, vcpu_id, argument, 0, 0)) from None

    # -- up and down --------------------------------------------------------------------------

    def _initialise(self, vcpu: Vcpu, argument: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_GUEST_CONTEXT)
        if vcpu.is_initialised or vcpu.state is not VcpuState.DOWN:
            raise Refused(EEXIST, "vcpu.is-initialised", vcpu.id)
        paging = self._domain.paging
        if paging.work_left < LEAST_WORK:
            paging.begin_work()
        context = VcpuGuestContext.unpack(copy)
        prepare(self._domain, vcpu, context)
        if context.flags & VGCF_online:
            vcpu.bring_up()
        if not paging.drain():
            self._domain.engine.stop()
        return 0

    def _up(self, vcpu: Vcpu, _argument: int) -> int:
        if not vcpu.is_initialised:
            raise Refused(EINVAL, "vcpu.not-initialised", vcpu.id)
        vcpu.bring_up()
        return 0

    def _down(self, vcpu: Vcpu, _argument: int) -> int:
        """Stop a vCPU where it is; the last one takes the domain with it."""
        others = (one for one in self._domain.vcpus if one is not vcpu)
        if all(one.state is VcpuState.DOWN for one in others):
            self._domain.shut_down(SHUTDOWN_poweroff)
            self._domain.engine.stop()
            return 0
        if vcpu.state is not VcpuState.DOWN:
            vcpu.take_down()
        if vcpu is self._domain.current:
            self._domain.engine.stop()
        return 0

    def _is_up(self, vcpu: Vcpu, _argument: int) -> int:
        return int(vcpu.state is not VcpuState.DOWN)

    def _send_nmi(self, vcpu: Vcpu, argument: int) -> int:
        """Have a vCPU enter its NMI handler, masked or asleep; lost where it has none."""
        if argument:
            raise Refused(EINVAL, "vcpu.nmi-argument", argument)
        vcpu.nmi_pending = True
        self._domain.events.end_poll(vcpu.id)
        vcpu.wake()
        if vcpu is self._domain.current:
            self._domain.engine.stop()
        return 0

    # -- what it tells ------------------------------------------------------------------------

    def _get_runstate(self, vcpu: Vcpu, argument: int) -> int:
        self._guest_memory.write(argument, vcpu.runstate.pack(self._clock.monotonic_ns()))
        return 0

    def _register_runstate(self, vcpu: Vcpu, argument: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_REGISTER_RUNSTATE_MEMORY_AREA)
        area = int.from_bytes(copy[:4], "little")
        state = vcpu.runstate.pack(self._clock.monotonic_ns())
        if area:
            self._guest_memory.check_writable(area, len(state))
        vcpu.runstate.area = area
        publish_runstate(vcpu)
        return 0

    def _register_time(self, vcpu: Vcpu, argument: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_REGISTER_TIME_MEMORY_AREA)
        area = int.from_bytes(copy[:4], "little")
        if area:
            self._guest_memory.write(area, read_time(vcpu))
        vcpu.time_area = area
        return 0

    def _get_physid(self, vcpu: Vcpu, argument: int) -> int:
        """Tell an APIC and an ACPI number, in bytes 0 and 4: a vCPU has its own of both."""
        physid = VcpuGetPhysid(vcpu.id | vcpu.id << 32).pack()
        assert len(physid) == SIZEOF_VCPU_GET_PHYSID
        self._guest_memory.write(argument, physid)
        return 0

    def _register_info(self, vcpu: Vcpu, argument: int) -> int:
        """Move vcpu_info into a page of the guest's, once; nothing that is pending gets lost."""
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_REGISTER_VCPU_INFO)
        request = VcpuRegisterVcpuInfo.unpack(copy)
        if request.offset > PAGE_SIZE - SIZEOF_VCPU_INFO or request.offset & 3:
            raise Refused(ENXIO, "vcpu.info-offset", request.offset)
        if vcpu.info_mfn is not None:
            raise Refused(EINVAL, "vcpu.info-moved", vcpu.id)
        if vcpu is not self._domain.current and vcpu.state is not VcpuState.DOWN:
            raise Refused(EINVAL, "vcpu.is-up", vcpu.id)
        self._frames.get_writable(request.mfn, self._domain.domid, EINVAL)
        new = (request.mfn << PAGE_SHIFT) + request.offset
        self._memory.write(new, self._memory.read(vcpu.info_maddr, SIZEOF_VCPU_INFO))
        vcpu.info_mfn = request.mfn
        vcpu.move_info(new)
        self._memory.m8[new + VCPU_INFO_EVTCHN_UPCALL_PENDING] = 1
        at = new + VCPU_INFO_EVTCHN_PENDING_SEL
        self._memory.write(at, b"\xff" * 4)
        if vcpu is self._domain.current:
            self._domain.engine.watch_upcalls(new)
        return 0

    # -- timers -------------------------------------------------------------------------------

    def _set_periodic(self, vcpu: Vcpu, argument: int) -> int:
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_SET_PERIODIC_TIMER)
        period_ns = VcpuSetPeriodicTimer.unpack(copy).period_ns
        if not SHORTEST_PERIOD_NS <= period_ns <= _LONGEST_NS:
            raise Refused(EINVAL, "vcpu.timer-period", period_ns)
        vcpu.timers.set_periodic(period_ns)
        return 0

    def _stop_periodic(self, vcpu: Vcpu, _argument: int) -> int:
        vcpu.timers.set_periodic(0)
        return 0

    def _set_single(self, vcpu: Vcpu, argument: int) -> int:
        """Arm the single timer; with the flag for it, a time that is past is refused."""
        self._check_own(vcpu)
        copy = self._guest_memory.read(argument, SIZEOF_VCPU_SET_SINGLESHOT_TIMER)
        request = VcpuSetSingleshotTimer.unpack(copy)
        now_ns = self._clock.monotonic_ns()
        if request.flags & VCPU_SSHOTTMR_future and request.timeout_abs_ns < now_ns:
            raise Refused(ETIME, "vcpu.timer-is-past", request.timeout_abs_ns)
        self._set_own_timer(request.timeout_abs_ns, now_ns)
        return 0

    def _stop_single(self, vcpu: Vcpu, _argument: int) -> int:
        self._check_own(vcpu)
        vcpu.timers.stop_single()
        return 0

    def _set_own_timer(self, deadline_ns: int, now_ns: int) -> None:
        """Arm the current vCPU's single timer; the loop must know of one within this slice."""
        self._domain.current.timers.set_single(deadline_ns)
        if deadline_ns - now_ns < SLICE_NS:
            self._domain.engine.stop()

    def _check_own(self, vcpu: Vcpu) -> None:
        if vcpu is not self._domain.current:
            raise Refused(EINVAL, "vcpu.not-your-own", vcpu.id)
