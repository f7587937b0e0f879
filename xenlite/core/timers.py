# SPDX-License-Identifier: GPL-2.0-or-later
"""The timers of a vCPU (one for a single moment, one that comes again and again), and watchdogs.

Those of a vCPU raise VIRQ_TIMER; a watchdog shuts the domain down. Deadlines are nanoseconds of
system time, which is the machine's monotonic clock. Source: public/vcpu.h, public/sched.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EINVAL, ENOSPC, VIRQ_TIMER, SHUTDOWN_watchdog
from xenlite.errors import Refused
from xenlite.machine.timers import Timer

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

SHORTEST_PERIOD_NS: Final = 1_000_000
_FIRST_PERIOD_NS: Final = 10_000_000  # every vCPU of a PV guest ticks from the start
WATCHDOGS: Final = 2
_NS_PER_S: Final = 10**9


class VcpuTimers:
    """What a vCPU has set; a vCPU that is down keeps its timers, as in Xen.

    The periodic one ticks only while its vCPU runs or wants to: it wakes nobody, and a tick that
    was missed comes when the vCPU goes on. Guests have it from the start, at 100 Hz.
    """

    __slots__ = ("_last_tick_ns", "_period_ns", "_periodic", "_poll", "_single", "_vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._single = Timer(self._raise)
        self._periodic = Timer(self._tick)
        self._poll = Timer(self._end_poll)
        self._period_ns = _FIRST_PERIOD_NS
        self._last_tick_ns = 0

    def set_single(self, deadline_ns: int) -> None:
        """Raise VIRQ_TIMER once, at ``deadline_ns``; soon where that is past."""
        self._vcpu.domain.machine.timers.arm(self._single, deadline_ns)

    def stop_single(self) -> None:
        """Forget the single deadline."""
        self._vcpu.domain.machine.timers.disarm(self._single)

    def set_periodic(self, period_ns: int) -> None:
        """Raise VIRQ_TIMER every ``period_ns``, from one period from now on; 0 for never."""
        self._period_ns = period_ns
        self._vcpu.domain.machine.timers.disarm(self._periodic)
        self._last_tick_ns = self._vcpu.domain.machine.clock.monotonic_ns()
        if self._vcpu.may_run:
            self.go_on(self._last_tick_ns)

    def go_on(self, now_ns: int) -> None:
        """Tick again, after ``now_ns`` at which the vCPU begins to run."""
        if self._period_ns and not self._periodic.is_armed:
            if now_ns - self._last_tick_ns >= self._period_ns:
                self._last_tick_ns = now_ns
                self._raise()
            next_ns = self._last_tick_ns + self._period_ns
            self._vcpu.domain.machine.timers.arm(self._periodic, next_ns)

    def wake_at(self, deadline_ns: int) -> None:
        """End a poll at ``deadline_ns``, 0 for never."""
        if deadline_ns:
            self._vcpu.domain.machine.timers.arm(self._poll, deadline_ns)
        else:
            self._vcpu.domain.machine.timers.disarm(self._poll)

    def stop_all(self) -> None:
        """Forget everything: the domain is going."""
        for timer in (self._single, self._periodic, self._poll):
            self._vcpu.domain.machine.timers.disarm(timer)

    def _raise(self) -> None:
        self._vcpu.domain.events.raise_virq(self._vcpu.id, VIRQ_TIMER)

    def _tick(self) -> None:
        """Raise, unless nobody runs; periods that were missed are one late tick, not a storm."""
        if self._vcpu.may_run:
            self.go_on(self._vcpu.domain.machine.clock.monotonic_ns())

    def _end_poll(self) -> None:
        self._vcpu.domain.events.end_poll(self._vcpu.id)


class Watchdogs:
    """The watchdogs of one domain: numbered from 1, shut it down where it does not renew them."""

    __slots__ = ("_domain", "_timers")

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._timers: list[Timer | None] = [None] * WATCHDOGS

    def set(self, number: int, timeout_s: int) -> int:
        """Start one (0: the number it gets is returned), renew one, or stop it (timeout 0).

        Raises Refused: EINVAL for a number that is none, ENOSPC where all are in use.
        """
        machine = self._domain.machine
        deadline_ns = machine.clock.monotonic_ns() + timeout_s * _NS_PER_S
        if not number:
            if None not in self._timers:
                raise Refused(ENOSPC, "sched.watchdogs-in-use", WATCHDOGS)
            slot = self._timers.index(None)
            timer = self._timers[slot] = Timer(self._bite)
            machine.timers.arm(timer, deadline_ns)
            return slot + 1
        known = self._timers[number - 1] if number <= WATCHDOGS else None
        if known is None:
            raise Refused(EINVAL, "sched.no-such-watchdog", number)
        if timeout_s:
            machine.timers.arm(known, deadline_ns)
        else:
            machine.timers.disarm(known)
            self._timers[number - 1] = None
        return 0

    def stop_all(self) -> None:
        """Forget all of them: the domain is going."""
        for timer in self._timers:
            if timer is not None:
                self._domain.machine.timers.disarm(timer)

    def _bite(self) -> None:
        self._domain.shut_down(SHUTDOWN_watchdog)
