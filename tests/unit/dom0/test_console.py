# SPDX-License-Identifier: GPL-2.0-or-later
"""Consoles behind a link, with a real domain's pages and ports and no kernel (SECURITY H1)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.front_domain import GuestPage, PlainStore
from xenlite.abi.x86_32p import XENCONS_INTERFACE_OUT_CONS, GTF_permit_access
from xenlite.dom0.backend_device import device_paths
from xenlite.dom0.console import IN, OUT, Console, Outer
from xenlite.dom0.console_device import ConsoleDevice
from xenlite.dom0.rate import Rate
from xenlite.dom0.ring import Consumer, Producer
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock

PAGE = 4096
REF = 9
SECOND_NS = 10**9


class Front:
    """A domain with a page for a console, and the backend's outside."""

    def __init__(self, rate: Rate | None = None) -> None:
        self.clock = ManualClock()
        self.hypervisor = Hypervisor(16 << 20, self.clock)
        self.control = self.hypervisor.control()
        self.link = self.hypervisor.link(0)
        self.domid = self.control.create_domain("front", max_pages=4, max_vcpus=1)
        self.domain = self.hypervisor.domains[self.domid]
        [mfn] = self.control.populate(self.domid, 1)
        self.domain.grants.grow(1)
        entry = self.domain.grants.mfns[0] * PAGE + REF * 8
        self.hypervisor.machine.memory.write(entry, pack("<HHI", GTF_permit_access, 0, mfn))
        self.page = GuestPage(self.hypervisor, mfn)
        self.out, self.typed = Producer(self.page, OUT), Consumer(self.page, IN)
        self.port = self.domain.events.alloc_unbound(0)
        self.printed = b""
        self.said: list[str] = []
        self.room = 0
        self.outer = Outer(self._print, rate=rate, has_room=self._has_room)

    def _print(self, data: bytes) -> None:
        self.printed += data

    def _has_room(self) -> None:
        self.room += 1

    def broken(self, error: Exception) -> None:
        self.said.append(str(error))

    def console(self) -> Console:
        return Console(self.link, self.domid, REF, self.port, self.outer, self.broken)

    def prints(self, data: bytes) -> int:
        """Print as much as fits; return how much that was."""
        count = self.out.put(data)
        self.domain.events.send(self.port)
        self.settle()
        return count

    def settle(self) -> None:
        for _ in range(4):
            self.hypervisor.run(lambda: True)

    def close(self) -> None:
        """Demand that nothing of the backend is left."""
        assert self.control.audit() == []
        assert list(self.domain.grants.uses()) == []
        assert list(self.hypervisor.domains[0].maptrack.pins()) == []
        self.hypervisor.close()


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.close()


def test_an_impossible_index_costs_the_console_alone(front: Front) -> None:
    console = front.console()
    front.prints(b"before")
    front.page.write_u32(OUT.prod, (front.page.read_u32(OUT.cons) + 0xFFFFFFFF) & 0xFFFFFFFF)
    front.domain.events.send(front.port)
    front.settle()
    assert front.printed == b"before"
    assert len(front.said) == 1
    assert "claim 4294967295 bytes of 2048" in front.said[0]
    console.feed(b"typed")
    assert front.typed.take() == b""
    console.close()
    assert len(front.said) == 1


def test_what_a_rate_allows_is_printed_and_the_rest_waits() -> None:
    front = Front(Rate(1000, SECOND_NS // 10))
    console = front.console()
    assert front.prints(b"x" * 1500) == 1500
    assert front.prints(b"y" * 5000) == 2048
    assert front.printed == b"x" * 1500, "the guest's ring is full, and stays so"
    console.feed(b"keys")
    assert front.typed.take() == b"keys"
    front.clock.advance(SECOND_NS // 20)
    front.settle()
    assert front.printed == b"x" * 1500
    front.clock.advance(SECOND_NS // 20)
    front.settle()
    assert front.printed == b"x" * 1500 + b"y" * 2048
    front.prints(b"the last words")
    front.prints(b"of all")
    console.close()
    assert front.printed.endswith(b"the last wordsof all")
    front.close()


# -- behind the first -----------------------------------------------------------------------------


class Device:
    """A console that XenStore shows, and its frontend's nodes."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.store = PlainStore(front.link.defer)
        self.paths = device_paths("console", 0, front.domid, 1)
        self.backend = ConsoleDevice(front.link, self.store, self.paths, front.outer, front.broken)

    def write(self, name: str, value: object) -> None:
        self.store.write(f"{self.paths.frontend}/{name}", str(value))

    def connect(self, state: int = 3) -> None:
        self.write("ring-ref", REF)
        self.write("port", self.front.port)
        self.show(state)

    def show(self, state: int) -> None:
        self.write("state", state)
        self.front.settle()

    @property
    def seen(self) -> str | None:
        return self.store.read(f"{self.paths.backend}/state")


@pytest.mark.parametrize("state", [3, 4])
def test_a_console_connects_leaves_and_comes_back(front: Front, state: int) -> None:
    device = Device(front)
    assert device.seen == "2"
    device.backend.feed(b"to nobody")
    for n in range(3):
        front.page.write(IN.data, bytes(PAGE))
        front.out, front.typed = Producer(front.page, OUT), Consumer(front.page, IN)
        front.out.put(b"early %d " % n)  # printed before anybody has joined
        device.connect(state)
        assert device.seen == "4"
        front.prints(b"hello %d " % n)
        device.backend.feed(b"keys")
        assert front.typed.take() == b"keys"
        device.show(5)
        assert device.seen == "5"
        device.show(6)
        assert device.seen == "6"
        device.show(1)
        assert device.seen == "2"
        front.domain.events.close(front.port)
        front.port = front.domain.events.alloc_unbound(0)
    assert front.printed == b"".join(b"early %d hello %d " % (n, n) for n in range(3))
    assert not front.said
    device.backend.close()


def test_a_ring_that_is_broken_when_it_is_closed_is_closed(front: Front) -> None:
    device = Device(front)
    for leave in (5, 6):
        device.connect()
        front.page.write_u32(OUT.prod, front.page.read_u32(OUT.cons) + 5000)
        device.show(leave)
        assert device.seen == str(leave)
        front.page.write_u32(OUT.prod, front.page.read_u32(OUT.cons))
        device.show(6)
        device.show(1)
        front.domain.events.close(front.port)
        front.port = front.domain.events.alloc_unbound(0)
    device.connect()
    front.page.write_u32(OUT.prod, front.page.read_u32(OUT.cons) + 5000)
    front.domain.events.send(front.port)
    front.settle()
    assert device.seen == "5"
    assert len(front.said) == 1
    device.backend.close()


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["state", "ring-ref", "port"]), st.integers(-1, 11)),
        max_size=12,
    ),
    st.integers(0, 0xFFFFFFFF),
)
def test_states_in_any_order_survive(changes: list[tuple[str, int]], index: int) -> None:
    front = Front()
    device = Device(front)
    for name, value in changes:
        device.write(name, value)
        front.settle()
    front.page.write_u32(XENCONS_INTERFACE_OUT_CONS, index)
    device.connect()
    for state in (5, 6, 1):
        device.show(state)
    assert device.seen == "2"
    device.connect()
    assert device.seen in ("4", "5")
    device.backend.close()
    front.close()


def test_a_rate_goes_on_when_the_frontend_connects_again() -> None:
    front = Front(Rate(1000, SECOND_NS // 10))
    console = front.console()
    front.prints(b"x" * 1500)
    console.close()
    console = front.console()
    front.prints(b"y")
    assert front.printed == b"x" * 1500
    front.clock.advance(SECOND_NS // 10)
    front.settle()
    assert front.printed == b"x" * 1500 + b"y"
    console.close()
    front.close()
