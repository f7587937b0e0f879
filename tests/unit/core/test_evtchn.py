# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels: any sequence of operations keeps both ends of each pair true."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.domains import World, world
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    EPERM,
    ESRCH,
    NR_VIRQS,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_EVTCHN_PENDING_SEL,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    VIRQ_CONSOLE,
    VIRQ_DEBUG,
    VIRQ_DOM_EXC,
    VIRQ_TIMER,
    VIRQ_XENPMU,
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


def vcpu_word(domain: Domain, offset: int, vcpu: int = 0) -> int:
    """Read a word of a vCPU's information."""
    info = domain.vcpus[vcpu].info_maddr
    return int.from_bytes(domain.machine.memory.read(info + offset, 4), "little")


def upcall_pending(domain: Domain, vcpu: int = 0) -> int:
    """Read a vCPU's pending byte."""
    return vcpu_word(domain, VCPU_INFO_EVTCHN_UPCALL_PENDING, vcpu) & 0xFF


def acknowledge(domain: Domain) -> None:
    """Take all events, as the guest would."""
    memory = domain.machine.memory
    for vcpu in domain.vcpus:
        memory.write(vcpu.info_maddr, bytes(1))
        memory.write(vcpu.info_maddr + VCPU_INFO_EVTCHN_PENDING_SEL, bytes(4))
    memory.write((domain.shared_info_mfn << 12) + SHARED_INFO_EVTCHN_PENDING, bytes(128))


def errno_of(operation: Callable[[], object]) -> int:
    """Return why an operation is refused; 0 where it isn't."""
    try:
        operation()
    except Refused as refused:
        return refused.errno
    return 0


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


# -- virtual interrupts, IPIs, several vCPUs ------------------------------------------------------


def test_a_virtual_interrupt_goes_to_the_vcpu_that_bound_it() -> None:
    with world(16) as made:
        domain = made.add(1, max_vcpus=3).domain
        events = domain.events
        ports = [events.bind_virq(VIRQ_TIMER, vcpu) for vcpu in range(3)]
        assert ports == [1, 2, 3]
        events.raise_virq(1, VIRQ_TIMER)
        assert pending(domain) == {2}
        assert [upcall_pending(domain, vcpu) for vcpu in range(3)] == [0, 1, 0]
        events.raise_virq(0, VIRQ_DEBUG)  # not bound: nobody hears it
        assert pending(domain) == {2}


def test_a_vcpu_has_one_port_per_virtual_interrupt() -> None:
    with world(16) as made:
        events = made.add(1, max_vcpus=2).domain.events
        port = events.bind_virq(VIRQ_DEBUG, 1)
        assert errno_of(lambda: events.bind_virq(VIRQ_DEBUG, 1)) == EEXIST
        assert events.bind_virq(VIRQ_DEBUG, 0) == port + 1
        events.close(port)
        assert events.bind_virq(VIRQ_DEBUG, 1) == port


@pytest.mark.parametrize("virq", sorted(set(range(NR_VIRQS)) - {VIRQ_TIMER, VIRQ_DEBUG, 7, 13}))
def test_the_machines_virtual_interrupts_need_privilege(virq: int) -> None:
    with world(16) as made:
        events = made.add(1).domain.events
        assert errno_of(lambda: events.bind_virq(virq, 0)) == EPERM
        assert events.alloc_unbound(0) == 1


def test_dom0_binds_the_machines_virtual_interrupts_on_its_first_vcpu() -> None:
    with world(16) as made:
        events = made.dom0.events
        heard: list[int] = []
        events.on_pending = heard.append
        assert errno_of(lambda: events.bind_virq(VIRQ_DOM_EXC, 1)) == EINVAL
        port = events.bind_virq(VIRQ_DOM_EXC, 0)
        events.raise_virq(0, VIRQ_DOM_EXC)
        assert heard == [port]
        events.bind_vcpu(port, 0)
        events.close(port)


@pytest.mark.parametrize(
    ("virq", "vcpu", "errno"),
    [
        (NR_VIRQS, 0, EINVAL),
        (0xFFFFFFFF, 0, EINVAL),
        (VIRQ_DEBUG, 99, ENOENT),
        (VIRQ_TIMER, 2, ENOENT),
        (VIRQ_TIMER, 0xFFFFFFFF, ENOENT),
        (VIRQ_CONSOLE, 1, EPERM),
    ],
)
def test_what_is_no_virtual_interrupt_or_no_vcpu_is_refused(
    virq: int, vcpu: int, errno: int
) -> None:
    with world(16) as made:
        events = made.add(1, max_vcpus=2).domain.events
        assert errno_of(lambda: events.bind_virq(virq, vcpu)) == errno
        assert events.bind_virq(VIRQ_XENPMU, 1) == 1


def test_a_virtual_interrupt_that_finds_no_port_stays_unbound() -> None:
    with world(16) as made:
        events = made.add(1).domain.events
        for _ in range(1023):
            events.alloc_unbound(0)
        assert errno_of(lambda: events.bind_virq(VIRQ_DEBUG, 0)) == ENOSPC
        assert errno_of(lambda: events.bind_ipi(0)) == ENOSPC
        assert errno_of(lambda: events.bind_interdomain(DOMID_SELF, 1)) == EINVAL
        events.close(7)
        assert events.bind_virq(VIRQ_DEBUG, 0) == 7


def test_an_ipi_is_sent_to_its_vcpu_and_a_virtual_interrupt_to_nobody() -> None:
    with world(16) as made:
        domain = made.add(1, max_vcpus=2).domain
        events = domain.events
        assert errno_of(lambda: events.bind_ipi(2)) == ENOENT
        ipi = events.bind_ipi(1)
        events.send(ipi)
        assert (upcall_pending(domain, 0), upcall_pending(domain, 1)) == (0, 1)
        virq = events.bind_virq(VIRQ_TIMER, 0)
        assert errno_of(lambda: events.send(virq)) == EINVAL
        assert pending(domain) == {ipi}


def test_a_port_can_notify_another_vcpu_unless_it_is_that_of_one() -> None:
    with world(32) as made:
        made.add(1, max_vcpus=2)
        made.add(2)
        one, two = made.guests[1].domain, made.guests[2].domain
        offered = one.events.alloc_unbound(2)
        one.events.bind_vcpu(offered, 1)  # also before anybody has bound it
        port = two.events.bind_interdomain(1, offered)
        two.events.send(port)
        assert (upcall_pending(one, 0), upcall_pending(one, 1)) == (0, 1)
        acknowledge(one)
        one.events.bind_vcpu(offered, 0)
        two.events.send(port)
        assert (upcall_pending(one, 0), upcall_pending(one, 1)) == (1, 0)
        ipi, virq = one.events.bind_ipi(1), one.events.bind_virq(VIRQ_TIMER, 1)
        for refused in (ipi, virq, 77, 0):
            assert errno_of(partial(one.events.bind_vcpu, refused, 1)) == EINVAL
        assert errno_of(lambda: one.events.bind_vcpu(offered, 2)) == ENOENT


def test_a_port_that_is_opened_again_notifies_the_first_vcpu() -> None:
    with world(16) as made:
        events = made.add(1, max_vcpus=2).domain.events
        events.bind_vcpu(events.alloc_unbound(0), 1)
        events.close(1)
        assert events.alloc_unbound(0) == 1
        channel = events.channel(1)
        assert channel is not None
        assert channel.vcpu == 0


def test_a_vcpu_that_is_down_keeps_its_events_and_stays_down() -> None:
    with world(16) as made:
        domain = made.add(1, max_vcpus=2).domain
        domain.events.send(domain.events.bind_ipi(1))
        assert upcall_pending(domain, 1) == 1
        assert domain.vcpus[1].state is VcpuState.DOWN


# -- limits and storms ----------------------------------------------------------------------------


def test_a_domain_can_have_a_lower_limit() -> None:
    with world(16) as made:
        events = made.add(1).domain.events
        events.max_port = 3
        assert [events.alloc_unbound(0) for _ in range(3)] == [1, 2, 3]
        assert errno_of(lambda: events.alloc_unbound(0)) == ENOSPC
        assert errno_of(lambda: events.channel_or_closed(4)) == EINVAL
        assert errno_of(lambda: events.unmask(4)) == EINVAL


def test_a_storm_leaves_one_event() -> None:
    with world(32) as made:
        one, _, two, port = pair(made)
        one.current.state = VcpuState.BLOCKED
        for _ in range(100_000):
            two.events.send(port)
        assert len(pending(one)) == 1
        assert upcall_pending(one) == 1


# -- reset ----------------------------------------------------------------------------------------


def test_a_reset_closes_everything_in_stretches() -> None:
    with world(32) as made:
        one, offered, two, port = pair(made)
        for _ in range(150):
            one.events.alloc_unbound(0)
        one.events.bind_virq(VIRQ_TIMER, 0)
        assert not one.events.reset(goes_on=False)
        two.events.send(port)  # to a port that waits for somebody else now
        assert errno_of(lambda: one.events.reset(goes_on=False)) == EBUSY
        assert not one.events.reset(goes_on=True)
        assert one.events.reset(goes_on=True)
        assert errno_of(lambda: one.events.reset(goes_on=True)) == EBUSY
        assert all(one.events.channel(number) is None for number in range(1024))
        assert pending(one) == set()
        theirs = two.events.channel(port)
        assert theirs is not None
        assert (theirs.state, theirs.remote) == (PortState.UNBOUND, 1)
        assert one.events.bind_virq(VIRQ_TIMER, 0) == offered
        assert one.events.reset(goes_on=False) is False


def test_a_reset_says_so_where_a_port_was_opened_behind_it() -> None:
    with world(16) as made:
        events = made.add(1).domain.events
        for _ in range(100):
            events.alloc_unbound(0)
        assert not events.reset(goes_on=False)
        opened = events.alloc_unbound(0)
        assert errno_of(lambda: events.reset(goes_on=True)) == EAGAIN
        assert events.channel(opened) is not None
        assert not events.reset(goes_on=False)
        assert events.reset(goes_on=True)


# -- polling --------------------------------------------------------------------------------------


def polls(domain: Domain, *ports: int) -> bool:
    """Poll as the hypercall does: block unless something is pending already."""
    if domain.events.poll(0, ports):
        return False
    domain.vcpus[0].block()
    return True


def test_a_poll_ends_with_the_event_even_where_the_port_is_masked() -> None:
    with world(32) as made:
        one, offered, two, port = pair(made)
        other = one.events.bind_ipi(0)
        mask(one, offered)
        assert polls(one, other, offered)
        two.events.send(port)
        assert one.vcpus[0].state is VcpuState.RUNNABLE
        assert upcall_pending(one) == 0
        assert one.events.pollers == {}
        assert one.events.poll(0, [other, offered])


def test_a_poll_does_not_end_with_another_masked_ports_event() -> None:
    with world(32) as made:
        one, offered, two, port = pair(made)
        mask(one, offered)
        assert polls(one, one.events.bind_ipi(0))
        two.events.send(port)
        assert one.vcpus[0].state.value == "blocked"
        one.events.end_poll(0)
        assert one.vcpus[0].state.value == "runnable"


def test_an_upcall_ends_any_poll() -> None:
    with world(32) as made:
        one, _, two, port = pair(made)
        assert polls(one)
        two.events.send(port)
        assert one.vcpus[0].state is VcpuState.RUNNABLE
        assert one.events.pollers == {}


def test_the_end_of_a_poll_wakes_nobody_who_only_blocks() -> None:
    with world(16) as made:
        domain = made.add(1).domain
        domain.current.block()
        domain.events.end_poll(0)
        assert domain.current.state is VcpuState.BLOCKED
        domain.current.wake()


def test_a_poll_refuses_what_is_no_open_port_unless_one_before_is_pending() -> None:
    """No event could end it."""
    with world(16) as made:
        domain = made.add(1).domain
        port = domain.events.bind_ipi(0)
        for bad in (0, port + 1, 1023, 1024, 0xFFFFFFFF):
            assert errno_of(partial(domain.events.poll, 0, [port, bad])) == EINVAL
        assert domain.events.pollers == {}
        domain.events.send(port)
        assert domain.events.poll(0, [port, 1024])


def test_unmasking_a_closed_port_changes_nothing() -> None:
    with world(16) as made:
        domain = made.add(1).domain
        mask(domain, 5)
        domain.events.unmask(5)
        assert bits(domain, SHARED_INFO_EVTCHN_MASK) == {5}


def test_the_audit_sees_a_poller_that_runs_and_a_virtual_interrupt_without_a_port() -> None:
    with world(16) as made:
        domain = made.add(1).domain
        domain.events.poll(0, [])
        port = domain.events.bind_virq(VIRQ_DEBUG, 0)
        channel = domain.events.channel(port)
        assert channel is not None
        channel.virq = VIRQ_TIMER
        assert len(domain.events.audit()) == 2
        channel.virq = VIRQ_DEBUG
        domain.events.end_poll(0)


DOMIDS = st.integers(0, 3)
PORTS = st.integers(-1, 8) | st.sampled_from([1023, 1024, 0xFFFFFFFF])


class Ports(RuleBasedStateMachine):
    """Three domains that allocate, bind, close, send and unmask at random; one may die."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(24)
        for domid in (1, 2):
            self.world.add(domid, max_vcpus=2)

    def domain(self, domid: int) -> Domain | None:
        return self.world.peers.get(domid)

    def attempt(self, domid: int, operation: Callable[[EventChannels], object]) -> None:
        domain = self.domain(domid)
        if domain is None:
            return
        try:
            operation(domain.events)
        except Refused as refused:
            if refused.errno not in (EINVAL, ESRCH, ENOENT, EPERM, EEXIST):
                raise

    @rule(domid=DOMIDS, remote=DOMIDS | st.just(DOMID_SELF))
    def alloc(self, domid: int, remote: int) -> None:
        self.attempt(domid, lambda events: events.alloc_unbound(remote))

    @rule(domid=DOMIDS, remote=DOMIDS | st.just(DOMID_SELF), port=PORTS)
    def bind(self, domid: int, remote: int, port: int) -> None:
        self.attempt(domid, lambda events: events.bind_interdomain(remote, port))

    @rule(domid=DOMIDS, virq=st.integers(0, 2), vcpu=st.integers(0, 2))
    def bind_virq(self, domid: int, virq: int, vcpu: int) -> None:
        self.attempt(domid, lambda events: events.bind_virq(virq, vcpu))

    @rule(domid=DOMIDS, virq=st.integers(0, 2), vcpu=st.integers(0, 2))
    def raise_virq(self, domid: int, virq: int, vcpu: int) -> None:
        self.attempt(domid, lambda events: events.raise_virq(vcpu, virq))

    @rule(domid=DOMIDS, vcpu=st.integers(0, 2))
    def bind_ipi(self, domid: int, vcpu: int) -> None:
        self.attempt(domid, lambda events: events.bind_ipi(vcpu))

    @rule(domid=DOMIDS, port=PORTS, vcpu=st.integers(0, 2))
    def bind_vcpu(self, domid: int, port: int, vcpu: int) -> None:
        self.attempt(domid, lambda events: events.bind_vcpu(port, vcpu))

    @rule(domid=DOMIDS, ports=st.lists(PORTS, max_size=3))
    def poll(self, domid: int, ports: list[int]) -> None:
        def block_unless_pending(events: EventChannels) -> None:
            if not events.poll(0, ports):
                self.world.peers[domid].vcpus[0].block()

        self.attempt(domid, block_unless_pending)

    @rule(domid=DOMIDS)
    def reset(self, domid: int) -> None:
        self.attempt(domid, lambda events: events.reset(goes_on=False))

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
