# SPDX-License-Identifier: GPL-2.0-or-later
"""Refusals of scheduling, event and vCPU calls that no other test takes; nothing changes then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.domains import FREE_PFN, Guest, world
from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSPC,
    EPERM,
    ESRCH,
    MAX_WATCHDOGS,
    SIZEOF_VCPU_INFO,
    EVTCHNOP_reset,
    EvtchnReset,
    SCHEDOP_remote_shutdown,
    SCHEDOP_watchdog,
    SchedRemoteShutdown,
    SchedWatchdog,
    SHUTDOWN_poweroff,
    VCPUOP_register_vcpu_info,
    VcpuRegisterVcpuInfo,
)
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.hypercalls.events import EventCalls
from xenlite.hypercalls.sched import SchedCalls
from xenlite.hypercalls.vcpu import VcpuCalls


@pytest.fixture
def guest() -> Iterator[Guest]:
    with world() as machine:
        yield machine.add()


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.errno, caught.value.rule


def test_a_domain_has_so_many_watchdogs_and_renews_its_own(guest: Guest) -> None:
    sched = SchedCalls(guest.domain).sched_op

    def watchdog(number: int) -> int:
        at = guest.place(SchedWatchdog(number, 100).pack())
        return sched(SCHEDOP_watchdog, at, 0, 0, 0)

    assert refusal(lambda: watchdog(MAX_WATCHDOGS)) == (EINVAL, "sched.no-such-watchdog")
    assert [watchdog(0) for _ in range(MAX_WATCHDOGS)] == [1, 2]
    assert refusal(lambda: watchdog(0)) == (ENOSPC, "sched.watchdogs-in-use")
    assert watchdog(MAX_WATCHDOGS) == 0


def test_no_guest_ends_another_domain(guest: Guest) -> None:
    sched = SchedCalls(guest.domain).sched_op
    other = guest.world.add().domain

    def shut_down(domid: int) -> int:
        at = guest.place(SchedRemoteShutdown(domid, SHUTDOWN_poweroff).pack())
        return sched(SCHEDOP_remote_shutdown, at, 0, 0, 0)

    assert refusal(lambda: shut_down(other.domid)) == (EPERM, "sched.remote-needs-privilege")
    assert refusal(lambda: shut_down(99)) == (ESRCH, "sched.no-such-domain")
    assert other.shutdown_reason is None


def test_ports_of_another_domain_are_reset_while_it_is_paused(guest: Guest) -> None:
    """Only Dom0 gets that far, so this one is taken for it."""
    domain, other = guest.domain, guest.world.add().domain
    port = other.events.alloc_unbound(domain.domid)
    domain.domid, number = 0, domain.domid
    try:
        calls = EventCalls(domain).event_channel_op
        at = guest.place(EvtchnReset(other.domid).pack())
        rule = (EINVAL, "events.reset-of-a-running-domain")
        assert refusal(lambda: calls(EVTCHNOP_reset, at, 0, 0, 0)) == rule
        assert other.events.channel(port) is not None
    finally:
        domain.domid = number


def test_the_info_of_another_vcpu_moves_only_while_it_is_down() -> None:
    with world() as machine:
        guest = machine.add(max_vcpus=2)
        second = guest.domain.vcpus[1]
        second.state = VcpuState.RUNNABLE
        before = second.info_maddr
        at = guest.place(VcpuRegisterVcpuInfo(guest.mfns[FREE_PFN], SIZEOF_VCPU_INFO).pack())
        calls = VcpuCalls(guest.domain).vcpu_op
        wanted = (EINVAL, "vcpu.is-up")
        assert refusal(lambda: calls(VCPUOP_register_vcpu_info, 1, at, 0, 0)) == wanted
        assert second.info_maddr == before
        second.state = VcpuState.DOWN
