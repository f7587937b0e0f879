# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares, caps and boosts, on a clock of the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xenlite.core.domain import Domain
from xenlite.core.scheduler import CAP_PERIOD_NS, SLICE_NS, Scheduler
from xenlite.core.vcpu import VcpuState
from xenlite.hypervisor import Hypervisor


class Bench:
    """Real domains that never run; time is spent by saying so."""

    def __init__(self, hypervisor: Hypervisor, domains: list[Domain]) -> None:
        self.hypervisor = hypervisor
        self.domains = domains
        self.scheduler = Scheduler()
        self.now_ns = 0
        self.spent: Counter[int] = Counter()
        self.order: list[int] = []

    def turn(self, spend_ns: int = SLICE_NS) -> None:
        vcpu = self.scheduler.pick(self.domains, self.now_ns)
        if vcpu is None:
            self.now_ns += SLICE_NS
            return
        domid = vcpu.domain.domid
        self.now_ns += spend_ns
        self.scheduler.charge(domid, spend_ns, self.now_ns)
        self.spent[domid] += spend_ns
        self.order.append(domid)


@contextmanager
def bench(count: int, vcpus: int = 1) -> Iterator[Bench]:
    hypervisor = Hypervisor(16 << 20)
    control = hypervisor.control()
    domains = []
    for n in range(count):
        domid = control.create_domain(f"d{n}", max_pages=1, max_vcpus=vcpus)
        domain = hypervisor.domains[domid]
        domain.paused = False
        for vcpu in domain.vcpus:
            vcpu.state = VcpuState.RUNNABLE
        domains.append(domain)
    yield Bench(hypervisor, domains)
    hypervisor.close()


def test_time_is_shared_by_weight() -> None:
    with bench(3) as one:
        for domain, weight in zip(one.domains, (256, 512, 1024), strict=True):
            one.scheduler.add(domain.domid, weight)
        for _ in range(700):
            one.turn()
        shares = [one.spent[domain.domid] / SLICE_NS for domain in one.domains]
        assert shares == pytest.approx([100, 200, 400], abs=2)


def test_a_domain_that_spends_little_of_its_slices_is_not_robbed() -> None:
    with bench(2) as one:
        for domain in one.domains:
            one.scheduler.add(domain.domid)
        first, second = (domain.domid for domain in one.domains)
        for _ in range(2000):
            one.turn(SLICE_NS // 10 if one.order and one.order[-1] == second else SLICE_NS)
        assert abs(one.spent[first] - one.spent[second]) <= 2 * SLICE_NS


def test_sleeping_earns_no_more_than_a_slice() -> None:
    with bench(2) as one:
        for domain in one.domains:
            one.scheduler.add(domain.domid)
        sleeper = one.domains[1]
        sleeper.vcpus[0].state = VcpuState.BLOCKED
        for _ in range(500):
            one.turn()
        sleeper.vcpus[0].wake()
        one.order.clear()
        for _ in range(20):
            one.turn()
        assert one.order[0] == sleeper.domid
        assert one.order.count(sleeper.domid) <= 12


def test_a_woken_domain_goes_first_but_cannot_live_on_it() -> None:
    with bench(2) as one:
        for domain in one.domains:
            one.scheduler.add(domain.domid)
        storm = one.domains[1].vcpus[0]
        for _ in range(400):
            if storm.state is VcpuState.RUNNABLE:
                storm.was_woken = True
            one.turn()
        first, second = (domain.domid for domain in one.domains)
        assert abs(one.spent[first] - one.spent[second]) <= 3 * SLICE_NS


def test_a_vcpu_that_yields_goes_after_everybody_once() -> None:
    with bench(2) as one:
        for domain in one.domains:
            one.scheduler.add(domain.domid)
        one.turn()
        other = next(domain for domain in one.domains if domain.domid != one.order[0])
        other.vcpus[0].has_yielded = True
        one.turn()
        assert one.order[1] == one.order[0]
        one.turn()
        assert one.order[2] == other.domid


def test_a_cap_holds_and_the_domain_comes_back() -> None:
    with bench(1) as one:
        domid = one.domains[0].domid
        one.scheduler.add(domid, cap=25)
        while one.now_ns < 20 * CAP_PERIOD_NS:
            one.turn()
            if one.scheduler.pick(one.domains, one.now_ns) is None:
                unpark_ns = one.scheduler.next_unpark_ns(one.domains, one.now_ns)
                assert unpark_ns is not None
                assert unpark_ns > one.now_ns
        assert one.spent[domid] / one.now_ns == pytest.approx(0.25, abs=0.05)


def test_the_vcpus_of_a_domain_take_turns() -> None:
    with bench(1, vcpus=3) as one:
        one.scheduler.add(one.domains[0].domid)
        seen = []
        for _ in range(6):
            vcpu = one.scheduler.pick(one.domains, one.now_ns)
            assert vcpu is not None
            seen.append(vcpu.id)
        assert seen == [1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("how", ["paused", "shut down", "down", "blocked"])
def test_nobody_is_picked_who_may_not_run(how: str) -> None:
    with bench(1) as one:
        domain = one.domains[0]
        one.scheduler.add(domain.domid)
        if how == "paused":
            domain.paused = True
        elif how == "shut down":
            domain.shut_down(0)
        else:
            domain.vcpus[0].state = VcpuState(how)
        assert one.scheduler.pick(one.domains, 0) is None


def test_a_small_cap_is_kept_although_a_slice_exceeds_it() -> None:
    with bench(1) as one:
        domid = one.domains[0].domid
        one.scheduler.add(domid, cap=1)
        while one.now_ns < 100 * CAP_PERIOD_NS:
            one.turn()
        assert one.spent[domid] / one.now_ns == pytest.approx(0.01, abs=0.002)


def test_nobody_waits_for_a_parked_domain_that_sleeps() -> None:
    with bench(1) as one:
        domain = one.domains[0]
        one.scheduler.add(domain.domid, cap=1)
        one.turn()
        assert one.scheduler.next_unpark_ns(one.domains, one.now_ns) is not None
        domain.vcpus[0].block()
        assert one.scheduler.next_unpark_ns(one.domains, one.now_ns) is None


def test_one_that_always_yields_saves_nothing_up_for_a_newcomer() -> None:
    with bench(3) as one:
        spinner, yielder, newcomer = one.domains
        newcomer.paused = True
        for domain in (spinner, yielder):
            one.scheduler.add(domain.domid)
        one.scheduler.add(newcomer.domid)
        for _ in range(400):
            yielder.vcpus[0].has_yielded = True
            one.turn(SLICE_NS if not one.order or one.order[-1] == yielder.domid else 1000)
        newcomer.paused = False
        one.spent.clear()
        for _ in range(40):
            yielder.vcpus[0].has_yielded = True
            one.turn()
        assert one.spent[spinner.domid] >= 15 * SLICE_NS


def test_a_vcpu_that_yielded_to_its_sibling_runs_again() -> None:
    with bench(1, vcpus=2) as one:
        one.scheduler.add(one.domains[0].domid)
        first = one.domains[0].vcpus[0]
        first.has_yielded = True
        picked = [one.scheduler.pick(one.domains, 0) for _ in range(3)]
        assert [vcpu.id for vcpu in picked if vcpu is not None] == [1, 0, 1]


def test_two_vcpus_that_wake_each_other_do_not_starve_a_third() -> None:
    with bench(1, vcpus=3) as one:
        one.scheduler.add(one.domains[0].domid)
        ping, pong, spinner = one.domains[0].vcpus
        pong.block()
        seen = []
        for _ in range(30):
            vcpu = one.scheduler.pick(one.domains, 0)
            assert vcpu is not None
            seen.append(vcpu.id)
            if vcpu is not spinner:
                vcpu.block()
                (pong if vcpu is ping else ping).wake()
        assert seen.count(spinner.id) >= 8
        assert seen.count(ping.id) >= 8


def test_what_goes_down_asleep_comes_up_asleep_unless_something_woke_it() -> None:
    with bench(1) as one:
        vcpu = one.domains[0].vcpus[0]
        for is_woken in (False, True):
            vcpu.block()
            vcpu.take_down()
            if is_woken:
                vcpu.wake()
            assert vcpu.state.value == "down"
            vcpu.bring_up()
            assert vcpu.state.value == ("runnable" if is_woken else "blocked")
