# SPDX-License-Identifier: GPL-2.0-or-later
"""The backends' door: whose time their work is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenlite.abi.x86_32p import ESRCH
from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.xenstore.permissions import Access, Permission
from xenlite.dom0.xenstore.store import StoreNode, XenStore
from xenlite.errors import Refused
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock

WORK_NS = 3_000_000


@pytest.fixture
def clock() -> ManualClock:
    """Make a clock that the work moves."""
    return ManualClock()


@pytest.fixture
def hypervisor(clock: ManualClock) -> Iterator[Hypervisor]:
    """Make a machine with one domain, which never runs."""
    made = Hypervisor(16 << 20, clock)
    yield made
    made.close()


def spent_ns(hypervisor: Hypervisor, domid: int) -> int:
    """Tell what a domain was charged."""
    return hypervisor.scheduler.account(domid).virtual_ns


@pytest.mark.parametrize("way", ["event", "defer", "call_at", "charged to nobody"])
def test_work_of_a_backend_is_charged_to_whom_it_is_done_for(
    hypervisor: Hypervisor, clock: ManualClock, way: str
) -> None:
    domid = hypervisor.control().create_domain("asks", max_pages=16, max_vcpus=1)
    link = hypervisor.link(0)
    done: list[str] = []
    payers: list[int | None] = []

    def work() -> None:
        clock.advance(WORK_NS)
        done.append(way)
        payers.append(link.payer())

    if way == "event":
        theirs = hypervisor.domains[domid].events.alloc_unbound(0)
        link.on_event(link.bind_interdomain(domid, theirs), work)
        hypervisor.domains[domid].events.send(theirs)
    elif way == "defer":
        link.defer(work, charge=domid)
    elif way == "call_at":
        link.call_at(link.now_ns(), work, charge=domid)
    else:
        link.defer(work)
    assert hypervisor.run(lambda: bool(done))
    assert done == [way]
    assert spent_ns(hypervisor, domid) == (0 if way == "charged to nobody" else WORK_NS)
    assert payers == [None if way == "charged to nobody" else domid]
    assert link.payer() is None


@pytest.mark.parametrize("where", ["Dom0", "a driver domain"])
def test_what_a_backend_does_about_a_change_is_charged_to_whoever_made_it(
    hypervisor: Hypervisor, clock: ManualClock, where: str
) -> None:
    control = hypervisor.control()
    writes = control.create_domain("writes", max_pages=16, max_vcpus=1)
    serves = control.create_domain("serves", max_pages=16, max_vcpus=1)
    link = hypervisor.link(0)
    store = XenStore(link, lambda _domid, _error: None)
    store.put([StoreNode("/node", "old", (Permission(writes, Access.READ),))])
    server = store.server
    writer = Dom0Store(link, server)
    backend = Dom0Store(hypervisor.link(0 if where == "Dom0" else serves), server)
    heard: list[str | None] = []

    def changed() -> None:
        heard.append(backend.read("/node"))
        clock.advance(WORK_NS)

    backend.watch("/node", changed)
    assert hypervisor.run(lambda: heard == ["old"])
    assert (spent_ns(hypervisor, writes), spent_ns(hypervisor, serves)) == (0, 0)
    link.defer(lambda: writer.write("/node", "new"), charge=writes)
    assert hypervisor.run(lambda: heard == ["old", "new"])
    assert (spent_ns(hypervisor, writes), spent_ns(hypervisor, serves)) == (WORK_NS, 0)


def test_work_for_a_domain_that_has_ended_is_done_all_the_same(hypervisor: Hypervisor) -> None:
    control = hypervisor.control()
    domid = control.create_domain("ends", max_pages=16, max_vcpus=1)
    done: list[int] = []
    hypervisor.link(0).defer(lambda: done.append(1), charge=domid)
    control.destroy_domain(domid)
    assert hypervisor.run(lambda: True)
    assert done == [1]


def test_nothing_is_copied_of_a_domain_that_has_ended(hypervisor: Hypervisor) -> None:
    link = hypervisor.link(0)
    for copy in (
        lambda: link.copy_from_grants(7, [0], [0], [1]),
        lambda: link.copy_to_grants(7, [0], [0], [b"x"]),
    ):
        with pytest.raises(Refused) as refused:
            copy()
        assert refused.value.errno == ESRCH


@pytest.mark.parametrize("writable", [False, True])
def test_pages_are_used_during_a_call_and_nothing_is_held(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, *, writable: bool
) -> None:
    control, link = hypervisor.control(), hypervisor.link(0)
    domid = control.create_domain("granter", max_pages=4, max_vcpus=1)
    mfns = control.populate(domid, 2)
    for ref, mfn in enumerate(mfns, start=8):
        control.seed_grant(domid, ref, mfn, 0)
        control.write_frame(domid, mfn, 0, bytes([ref]) * 4)
    memory, domain = hypervisor.machine.memory, hypervisor.domains[domid]
    forgotten: list[int] = []
    monkeypatch.setattr(
        domain.engine, "invalidate_code", lambda maddr, _: forgotten.append(maddr >> 12)
    )
    memory.mark_code(mfns[1], domain.engine)

    def use(pages: list[memoryview]) -> bytes:
        assert list(map(len, pages)) == [4096] * 3
        assert list(domain.grants.uses()) == []
        return b"".join(bytes(page[:1]) for page in pages)

    assert link.with_grants(domid, [8, 9, 8], use, writable=writable) == b"\x08\x09\x08"
    assert forgotten == ([mfns[1]] if writable else [])
    with pytest.raises(ZeroDivisionError):
        link.with_grants(domid, [9], lambda _: 1 // 0, writable=writable)
    assert forgotten == ([mfns[1]] * 2 if writable else []), "it may have been written before"
    for refs in ([8, 10], [-1], [1 << 20]):
        with pytest.raises(Refused):
            link.with_grants(domid, refs, use, writable=writable)
    with pytest.raises(Refused) as refused:
        link.with_grants(domid + 1, [8], use, writable=writable)
    assert refused.value.errno == ESRCH
    assert control.audit() == []
    memory.release(mfns[1])


def test_an_event_for_a_backend_whose_domain_has_ended_is_nobodys(hypervisor: Hypervisor) -> None:
    control = hypervisor.control()
    driver, domid = (control.create_domain(name, max_pages=16, max_vcpus=1) for name in "ab")
    link = hypervisor.link(driver)
    theirs = hypervisor.domains[domid].events.alloc_unbound(driver)
    heard: list[int] = []
    port = link.bind_interdomain(domid, theirs)
    link.on_event(port, lambda: heard.append(port))
    hypervisor.domains[domid].events.send(theirs)
    control.destroy_domain(driver)
    assert hypervisor.run(lambda: True)
    assert heard == []


def test_a_new_domain_of_an_old_number_has_a_door_of_its_own(hypervisor: Hypervisor) -> None:
    control = hypervisor.control()
    old = control.create_domain("old", max_pages=16, max_vcpus=1)
    hypervisor.link(old)
    control.destroy_domain(old)
    hypervisor.add_domain(old, "new", max_pages=16, max_vcpus=1)
    granter = control.create_domain("granter", max_pages=16, max_vcpus=1)
    [mfn] = control.populate(granter, 1)
    hypervisor.domains[granter].grants.seed(8, old, mfn)
    hypervisor.link(old).map_grant(granter, 8, writable=True)
    assert len(hypervisor.domains[old].maptrack) == 1
    assert control.audit() == []
