# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver domain's process: the rights of its domain, and nothing left of it when it is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.front_domain import PAGE, GuestPage
from xenlite.abi.x86_32p import BLKIF_OP_READ, BlkifRequest, BlkifRequestSegment
from xenlite.dom0.blkif import ring_shape
from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.driver_task import DriverTask
from xenlite.dom0.image import RawImage
from xenlite.dom0.slot_ring import FrontRing
from xenlite.dom0.vbd import Vbd, vbd_paths
from xenlite.dom0.xenbus import State
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import Refused
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.store_nodes import vbd_nodes

NUMBER = 51712
RING_REF, DATA_REF = 8, 16
REQUESTS = 8


class HeldImage(RawImage):
    """An image that has nothing in the cache, and whose reads wait until they are let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.has_begun = threading.Event()
        self.may_go = threading.Event()
        self.reads = 0

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Have nothing."""
        return False

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Wait, then read."""
        self.has_begun.set()
        assert self.may_go.wait(20)
        self.reads += 1
        super().read_into(views, offset)


class Host:
    """A store, a frontend's domain without a kernel, and a driver domain with its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hypervisor = Hypervisor(32 << 20)
        self.control = self.hypervisor.control()
        self.store = XenStore(self.hypervisor.link(0), lambda _domid, _error: None)
        self.front = self.control.create_domain("front", max_pages=64, max_vcpus=1)
        self.mfns = self.control.populate(self.front, 64)
        self.driver = self.control.create_domain("driver", max_pages=0, max_vcpus=1)
        self.link = self.hypervisor.link(self.driver)
        self.paths = vbd_paths(self.driver, self.front, NUMBER)
        self.store.put(
            vbd_nodes(self.front, NUMBER, "xvda", "disk.img", mode="w", backend_domid=self.driver)
        )
        self.said: list[str] = []
        self.image: HeldImage

    def start(self) -> tuple[DriverTask, Vbd]:
        """Start the process."""
        task = DriverTask(self.link, self.store.server, lambda error: self.said.append(str(error)))
        self.image = HeldImage(self.path)
        return task, task.serve(self.paths, self.image)

    def settle(self) -> None:
        """Do what is to be done at once."""
        for _ in range(6):
            self.hypervisor.run(lambda: True)

    def write(self, name: str, value: object) -> None:
        """Write one of the frontend's nodes."""
        path, raw = f"{self.paths.frontend}/{name}", str(value).encode()
        self.store.server.act_as_tool(lambda view: view.write(path, raw))
        self.settle()

    def seen(self) -> State:
        """Return the state that the backend shows."""
        path = f"{self.paths.backend}/state"
        return State(int(self.store.server.act_as_tool(lambda view: view.read(path))))

    def connect(self) -> None:
        """Offer a ring, and pages for data, as a frontend does each time."""
        domain = self.hypervisor.domains[self.front]
        for n in range(REQUESTS):
            domain.grants.seed(DATA_REF + n, self.driver, self.mfns[n])
        domain.grants.seed(RING_REF, self.driver, self.mfns[REQUESTS])
        FrontRing(GuestPage(self.hypervisor, self.mfns[REQUESTS]), ring_shape(1))
        self.write("ring-ref", RING_REF)
        self.write("event-channel", domain.events.alloc_unbound(self.driver))
        self.write("state", 3)

    def ask(self, vbd: Vbd) -> None:
        """Put in requests that do not follow each other, and have a worker begin with them."""
        memory = self.hypervisor.machine.memory
        start = self.mfns[REQUESTS] * PAGE
        for n in range(REQUESTS):
            segment = BlkifRequestSegment(DATA_REF + n, 0, 7)
            empty = BlkifRequestSegment(0, 0, 0)
            request = BlkifRequest(BLKIF_OP_READ, 1, 0, n, 16 * n, (segment, *[empty] * 10))
            memory.write(start + 64 + n * 108, request.pack())
        memory.write(start, REQUESTS.to_bytes(4, "little"))
        domain = self.hypervisor.domains[self.front]
        [port] = [port for port in range(1, 64) if domain.events.channel(port)]
        domain.events.send(port)
        self.settle()
        assert vbd.ring is not None
        assert vbd.ring.in_work == REQUESTS
        assert self.image.has_begun.wait(20)

    def audit(self) -> list[str]:
        """Recompute everything."""
        return self.control.audit() + self.store.audit()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Make both domains."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 1024)
    made = Host(path)
    yield made
    made.hypervisor.close()


def test_a_process_that_is_killed_leaves_nothing_and_the_next_begins_anew(host: Host) -> None:
    threads = threading.active_count()
    for _ in range(5):
        task, vbd = host.start()
        host.settle()
        if host.seen() is State.CLOSED:
            host.write("state", 6)
            host.write("state", 1)
        assert host.seen() is State.INIT_WAIT
        host.connect()
        assert host.seen() is State.CONNECTED
        host.ask(vbd)
        watches = len(host.store.server.watches.all())

        killer = threading.Thread(target=task.kill)
        killer.start()
        while not vbd._worker._is_ending:
            pass
        assert list(host.hypervisor.domains[host.driver].maptrack.pins()), "a read is going on"
        host.image.may_go.set()
        killer.join()

        assert host.image.reads == 1, "what waited is not done"
        driver = host.hypervisor.domains[host.driver]
        assert list(driver.maptrack.pins()) == []
        assert not any(map(driver.events.channel, range(1, 1024)))
        assert list(host.hypervisor.domains[host.front].grants.uses()) == []
        assert len(host.store.server.watches.all()) == watches - 1
        assert threading.active_count() == threads
        assert host.audit() == []
        host.settle()
        assert host.seen() is State.CONNECTED, "the dead say nothing"
        assert host.said == []
        domain = host.hypervisor.domains[host.front]
        for port in range(1, 64):
            if domain.events.channel(port):
                domain.events.close(port)


def test_a_process_ends_with_its_domain_and_before_its_pages_are_given_back(host: Host) -> None:
    threads = threading.active_count()
    _, vbd = host.start()
    host.settle()
    host.connect()
    host.ask(vbd)
    driver, front = (host.hypervisor.domains[domid] for domid in (host.driver, host.front))
    ender = threading.Thread(target=host.control.destroy_domain, args=(host.driver,))
    ender.start()
    while not vbd._worker._is_ending:
        pass
    assert list(driver.maptrack.pins()), "a read is going on"
    host.image.may_go.set()
    ender.join()
    assert list(front.grants.uses()) == []
    assert threading.active_count() == threads
    assert host.audit() == []


def test_the_next_process_does_not_join_a_ring_of_before(host: Host) -> None:
    """It cannot know which of the requests were taken; the frontend, still at 3, begins anew."""
    task, vbd = host.start()
    host.settle()
    host.connect()
    host.ask(vbd)
    host.image.may_go.set()
    task.kill()
    task, vbd = host.start()
    host.settle()
    assert host.seen() is State.CLOSED
    assert vbd.ring is None
    assert list(host.hypervisor.domains[host.front].grants.uses()) == []
    task.kill()


def test_a_backend_may_do_in_xenstore_what_its_domain_may(host: Host) -> None:
    task, _ = host.start()
    host.settle()
    store = Dom0Store(host.link, host.store.server)
    host.write("ring-ref", 8)
    assert store.read(f"{host.paths.frontend}/ring-ref") == "8"
    secret = "/local/domain/0/name"
    host.store.server.act_as_tool(lambda view: view.write(secret, b"Domain-0"))
    assert store.read(secret) is None
    for path in (secret, f"{host.paths.frontend}/state", "/libxl/1"):
        with pytest.raises(Refused):
            store.write(path, "5")
    heard: list[str] = []
    store.watch("/local/domain/0", lambda: heard.append("a change that it may not see"))
    host.settle()
    heard.clear()
    host.store.server.act_as_tool(lambda view: view.write(secret, b"other"))
    host.settle()
    assert heard == []
    store.close()
    task.kill()
    assert host.audit() == []


def test_the_frontend_of_a_driver_domain_need_not_trust_dom0s_numbers(host: Host) -> None:
    """Grants and ports for another domain than the backend's are refused to it."""
    task, vbd = host.start()
    host.settle()
    domain = host.hypervisor.domains[host.front]
    domain.grants.seed(RING_REF, 0, host.mfns[0])
    host.write("ring-ref", RING_REF)
    host.write("event-channel", domain.events.alloc_unbound(host.driver))
    host.write("state", 3)
    assert host.seen() is State.CLOSING
    assert vbd.ring is None
    assert len(host.said) == 1
    domain.grants.seed(RING_REF, host.driver, host.mfns[0])
    host.write("event-channel", domain.events.alloc_unbound(0))
    host.write("state", 6)
    host.write("state", 1)
    host.write("state", 3)
    assert host.seen() is State.CLOSING
    assert len(host.said) == 2
    assert list(domain.grants.uses()) == []
    task.kill()


def test_a_disk_that_can_not_be_shown_leaves_no_thread(host: Host) -> None:
    task, _ = host.start()
    threads = threading.active_count()
    with pytest.raises(Refused):
        task.serve(vbd_paths(0, host.front, NUMBER), host.image)
    assert threading.active_count() == threads
    task.kill()
    assert host.audit() == []
