# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels: any sequence of operations keeps both ends of each pair true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.domains import World, world
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EINVAL,
    ENOSPC,
    ESRCH,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_EVTCHN_PENDING_SEL,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
)
from xenlite.core.domain import Domain
from xenlite.core.evtchn import EventChannels, PortState
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused


def bits(domain: Domain, offset: int) -> set[int]:
    """Return the ports whose bits are set in a bitmap of shared_info."""
    start = (domain.shared_info_mfn << 12) + offset
    data = int.from_bytes(domain.machine.memory.read(start, 128), "little")
    return {port for port in range(1024) if data >> port & 1}


def pending(domain: Domain) -> set[int]:
    """Return the pending ports."""
    return bits(domain, SHARED_INFO_EVTCHN_PENDING)


def vcpu_word(domain: Domain, offset: int) -> int:
    """Read a word of the first vCPU's information."""
    return int.from_bytes(
        domain.machine.memory.read(domain.current.info_maddr + offset, 4), "little"
    )


def mask(domain: Domain, port: int) -> None:
    """Set a port's mask bit, as the guest would."""
    at = (domain.shared_info_mfn << 12) + SHARED_INFO_EVTCHN_MASK + port // 8
    domain.machine.memory.m8[at] |= 1 << port % 8


def pair(made: World) -> tuple[Domain, int, Domain, int]:
    """Join two guests."""
    one, two = made.add(1).domain, made.add(2).domain
    offered = one.events.alloc_unbound(2)
    return one, offered, two, two.events.bind_interdomain(1, offered)


def test_a_bound_port_is_pending_at_once() -> None:
    with world(32) as made:
        _, _, two, port = pair(made)
        assert pending(two) == {port}
        assert vcpu_word(two, VCPU_INFO_EVTCHN_PENDING_SEL) == 1
        assert vcpu_word(two, VCPU_INFO_EVTCHN_UPCALL_PENDING) & 0xFF == 1


def test_an_event_sets_port_selector_and_vcpu_and_wakes() -> None:
    with world(32) as made:
        one, _, two, port = pair(made)
        for _ in range(40):
            one.events.alloc_unbound(DOMID_SELF)
        high = one.events.alloc_unbound(2)
        theirs = two.events.bind_interdomain(1, high)
        one.current.state = VcpuState.BLOCKED
        two.events.send(theirs)
        assert pending(one) == {high}
        assert vcpu_word(one, VCPU_INFO_EVTCHN_PENDING_SEL) == 1 << high // 32
        assert one.current.state is VcpuState.RUNNABLE
        assert port == 1


def test_a_masked_port_wakes_nobody_until_it_is_unmasked() -> None:
    with world(32) as made:
        one, offered, two, port = pair(made)
        mask(one, offered)
        one.current.state = VcpuState.BLOCKED
        two.events.send(port)
        assert pending(one) == {offered}
        assert vcpu_word(one, VCPU_INFO_EVTCHN_UPCALL_PENDING) & 0xFF == 0
        assert one.current.state.value == "blocked"
        one.events.unmask(offered)
        assert vcpu_word(one, VCPU_INFO_EVTCHN_UPCALL_PENDING) & 0xFF == 1
        assert one.current.state.value == "runnable"


def test_closing_clears_pending_and_mask_and_unbinds_the_peer() -> None:
    with world(32) as made:
        one, offered, two, port = pair(made)
        mask(two, port)
        two.events.close(port)
        assert pending(two) == set()
        assert bits(two, SHARED_INFO_EVTCHN_MASK) == set()
        channel = one.events.channel(offered)
        assert channel is not None
        assert (channel.state, channel.remote) == (PortState.UNBOUND, 2)
        one.events.send(offered)  # nobody there, and no error
        assert two.events.bind_interdomain(1, offered) == port


def test_a_dying_domain_leaves_only_unbound_ports() -> None:
    with world(32) as made:
        one, offered, _, _ = pair(made)
        made.remove(made.guests[2])
        channel = one.events.channel(offered)
        assert channel is not None
        assert channel.state is PortState.UNBOUND
        assert one.events.audit() == []


def test_a_python_kernel_is_called_instead() -> None:
    with world(16) as made:
        guest = made.add(1).domain
        heard: list[int] = []
        made.dom0.events.on_pending = heard.append
        offered = guest.events.alloc_unbound(0)
        port = made.dom0.events.bind_interdomain(1, offered)
        guest.events.send(offered)
        assert heard == [port, port]
        assert pending(made.dom0) == set()
        made.dom0.events.close(port)


def test_the_audit_sees_a_pair_that_does_not_agree() -> None:
    with world(32) as made:
        one, offered, _, _ = pair(made)
        channel = one.events.channel(offered)
        assert channel is not None
        channel.remote_port += 1
        assert len(one.events.audit()) == 1
        channel.remote_port -= 1


def test_ports_run_out_and_come_back() -> None:
    with world(16) as made:
        events = made.add(1).domain.events
        assert [events.alloc_unbound(0) for _ in range(1023)] == list(range(1, 1024))
        with pytest.raises(Refused) as refused:
            events.alloc_unbound(0)
        assert refused.value.errno == ENOSPC
        events.close(500)
        assert events.alloc_unbound(0) == 500


DOMIDS = st.integers(0, 3)
PORTS = st.integers(-1, 8) | st.sampled_from([1023, 1024, 0xFFFFFFFF])


class Ports(RuleBasedStateMachine):
    """Three domains that allocate, bind, close, send and unmask at random; one may die."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(24)
        for domid in (1, 2):
            self.world.add(domid)

    def domain(self, domid: int) -> Domain | None:
        return self.world.peers.get(domid)

    def attempt(self, domid: int, operation: Callable[[EventChannels], object]) -> None:
        domain = self.domain(domid)
        if domain is None:
            return
        try:
            operation(domain.events)
        except Refused as refused:
            if refused.errno not in (EINVAL, ESRCH):
                raise

    @rule(domid=DOMIDS, remote=DOMIDS | st.just(DOMID_SELF))
    def alloc(self, domid: int, remote: int) -> None:
        self.attempt(domid, lambda events: events.alloc_unbound(remote))

    @rule(domid=DOMIDS, remote=DOMIDS | st.just(DOMID_SELF), port=PORTS)
    def bind(self, domid: int, remote: int, port: int) -> None:
        self.attempt(domid, lambda events: events.bind_interdomain(remote, port))

    @rule(domid=DOMIDS, port=PORTS)
    def close(self, domid: int, port: int) -> None:
        self.attempt(domid, lambda events: events.close(port))

    @rule(domid=DOMIDS, port=PORTS)
    def send(self, domid: int, port: int) -> None:
        self.attempt(domid, lambda events: events.send(port))

    @rule(domid=DOMIDS, port=PORTS)
    def unmask(self, domid: int, port: int) -> None:
        self.attempt(domid, lambda events: events.unmask(port))

    @precondition(lambda self: 2 in self.world.guests)
    @rule()
    def die(self) -> None:
        self.world.remove(self.world.guests[2])

    @invariant()
    def pairs_agree(self) -> None:
        for domain in self.world.peers.values():
            assert domain.events.audit() == []
            for port in pending(domain):
                assert domain.events.channel(port) is not None

    def teardown(self) -> None:
        self.world.close()


TestPorts = Ports.TestCase
TestPorts.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
