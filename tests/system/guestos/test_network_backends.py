# SPDX-License-Identifier: GPL-2.0-or-later
"""Backends of a network card that come again, keep pages, or mean harm: guestos lives on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.guestos import LOOKS, NAP, PROMPT, Machine, Rack
from tests.support.guestos_network import (
    ETH_IP,
    PROTOCOL_ICMP,
    RACK_BYTES,
    address_of,
    echo,
    ethernet,
    ip,
    mac_of,
    wait_for_state,
)
from xenlite.abi.x86_32p import (
    NETIF_RSP_OKAY,
    NETIF_RX_RING_SIZE,
    SIZEOF_NETIF_RX_REQUEST,
    SIZEOF_NETIF_TX_REQUEST,
    SIZEOF_SRING,
    SRING_REQ_PROD,
    SRING_RSP_EVENT,
    SRING_RSP_PROD,
    NetifRxRequest,
    NetifRxResponse,
    NetifTxRequest,
    NetifTxResponse,
    NETRXF_extra_info,
    NETRXF_more_data,
)
from xenlite.dom0.backend_device import DevicePaths
from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.switch import Bridge
from xenlite.dom0.vif import Vif, vif_paths
from xenlite.doors import GrantMapping
from xenlite.errors import PeerError
from xenlite.toolstack.store_nodes import device_paths, vif_nodes

PAGE = 4096
LAST_INTERFACE = 3


@pytest.fixture(params=[1, 4], ids=["1 vCPU", "4 vCPUs"])
def vcpus(request: pytest.FixtureRequest) -> str:
    return f"vcpus={request.param}"


@pytest.fixture
def shell(vcpus: str) -> Iterator[Machine]:
    """One with 8 MB."""
    yield from booted(vcpus)


@pytest.fixture
def larger_shell(vcpus: str) -> Iterator[Machine]:
    """One that has memory for as many buffers as a card can use, however much else is used."""
    yield from booted(vcpus, "memory=32")


def booted(*overrides: str) -> Iterator[Machine]:
    rack = Rack(memory_bytes=RACK_BYTES)
    machine = Machine(*overrides, rack=rack)
    machine.wait_for(PROMPT)
    yield machine
    machine.close()
    rack.close()


class Card:
    """A card's nodes in XenStore, as a toolstack makes them; a backend is another matter."""

    def __init__(self, machine: Machine, undo: ExitStack, number: int = 0) -> None:
        self.machine = machine
        self.number = number
        self.link = machine.rack.link
        self.store = Dom0Store(self.link, machine.store.server)
        undo.callback(self.store.close)
        self.paths: DevicePaths = vif_paths(0, machine.domid, number)

    def make(self, mac: str = mac_of(5).hex(":")) -> None:
        nodes = vif_nodes(self.machine.domid, self.number, mac, mtu=1500, more={})
        self.machine.store.put(nodes)

    def remove(self) -> None:
        self.machine.store.remove(device_paths(self.machine.domid, "vif", self.number))

    def read(self, end: str, node: str = "state") -> str | None:
        return self.store.read(f"{getattr(self.paths, end)}/{node}")

    def number_of(self, node: str) -> int:
        text = self.read("frontend", node)
        assert text is not None, node
        return int(text)

    def tell(self, **nodes: str) -> None:
        for node, value in nodes.items():
            self.store.write(f"{self.paths.backend}/{node.replace('_', '-')}", value)

    def wait_for_states(self, frontend: str, backend: str) -> None:
        self.machine.run_until(
            lambda: (self.read("frontend"), self.read("backend")) == (frontend, backend),
            f"{frontend} and {backend}: {self.read('frontend')} and {self.read('backend')}",
        )


class Served(Card):
    """A card with the real backend, which can be killed and started again."""

    def __init__(self, machine: Machine, undo: ExitStack) -> None:
        super().__init__(machine, undo)
        self._bridge = machine.rack.networks().network("xenbr0").bridge
        self._stop = ExitStack()
        undo.callback(self._stop.close)
        self.make()
        self.start()

    @property
    def bridge(self) -> Bridge:
        return self._bridge

    def start(self) -> None:
        vif = Vif(
            self.link,
            self.store,
            self.paths,
            self._bridge,
            name="card",
            mac=mac_of(5).hex(":"),
            broken=self._broken,
        )
        self._stop.callback(vif.close)

    def kill(self) -> None:
        self._stop.close()

    @staticmethod
    def _broken(error: PeerError) -> None:
        raise error


@pytest.mark.parametrize("forgets", [False, True], ids=["joins", "waits"])
def test_a_backend_that_is_killed_and_started_again_is_met_anew(
    larger_shell: Machine, *, forgets: bool
) -> None:
    """Addresses stay. The backend may find our state of before, or nodes that were made anew."""
    shell = larger_shell
    with ExitStack() as undo:
        card = Served(shell, undo)
        card.wait_for_states("4", "4")
        shell.command("ifconfig eth0 10.0.0.5/24")
        assert shell.command("ping 10.0.0.1").startswith("4 sent, 4 answered")
        free = shell.memory()["free"]
        for _ in range(3):
            card.kill()
            if forgets:
                card.make()
            card.start()
            for _ in range(LOOKS):  # states are as before at first, and again when all is done
                if works(shell) and shell.memory()["free"] == free:
                    break
                shell.command(NAP)
            else:
                raise AssertionError("it does not come back, or not whole")


def works(shell: Machine) -> bool:
    return shell.command("ping -c 1 10.0.0.1").startswith("1 sent, 1 answered")


def test_a_backend_that_asks_to_close_is_let_go(shell: Machine) -> None:
    before = shell.memory()["free"]
    with ExitStack() as undo:
        card = Served(shell, undo)
        card.wait_for_states("4", "4")
        shell.command("ifconfig eth0 10.0.0.5/24")
        card.tell(state="5")
        card.wait_for_states("6", "6")
        wait_for_state(shell, "down")
        assert shell.command("ping 10.0.0.1") == "ping: no way to that address\n"
        card.tell(state="2")
        card.wait_for_states("4", "4")
        wait_for_state(shell, "up")
        assert shell.command("ping 10.0.0.1").startswith("4 sent, 4 answered")
        card.tell(state="5")
        card.wait_for_states("6", "6")
        card.remove()
        wait_for_state(shell, "no such interface")
        assert shell.memory()["free"] == before


# -- hostile ones ---------------------------------------------------------------------------------


class Hostile(Card):
    """A backend that speaks the protocol up to the first frame, and then does what it likes."""

    def __init__(self, machine: Machine, undo: ExitStack) -> None:
        super().__init__(machine, undo)
        self._undo = undo
        self.make()
        self.tell(feature_rx_copy="1", state="2")
        self.wait_for_states("4", "2")
        self.tx = self.map(self.number_of("tx-ring-ref"))
        self.rx = self.map(self.number_of("rx-ring-ref"))
        self.port = self.link.bind_interdomain(machine.domid, self.number_of("event-channel"))
        undo.callback(self.link.close, self.port)
        self.tell(state="4")
        wait_for_state(machine, "up")
        machine.command("ifconfig eth0 10.0.0.5/24")
        self.sent = self.given = 0

    def map(self, ref: int) -> GrantMapping:
        page = self.link.map_grant(self.machine.domid, ref, writable=True)
        self._undo.callback(self.link.unmap_grant, page)
        return page

    def request(self, index: int) -> NetifTxRequest:
        at = SIZEOF_SRING + index % NETIF_RX_RING_SIZE * SIZEOF_NETIF_TX_REQUEST
        return NetifTxRequest.unpack(self.tx.read(at, SIZEOF_NETIF_TX_REQUEST))

    def place(self, index: int) -> NetifRxRequest:
        at = SIZEOF_SRING + index % NETIF_RX_RING_SIZE * SIZEOF_NETIF_RX_REQUEST
        return NetifRxRequest.unpack(self.rx.read(at, SIZEOF_NETIF_RX_REQUEST))

    def answer(self, at: int, number: int, status: int = NETIF_RSP_OKAY) -> None:
        slot = SIZEOF_SRING + at % NETIF_RX_RING_SIZE * SIZEOF_NETIF_TX_REQUEST
        self.tx.write(slot, NetifTxResponse.LAYOUT.pack(number, status))

    def give(
        self, number: int, *, at: int = 0, offset: int = 0, flags: int = 0, size: int = 60
    ) -> None:
        """Say that there is a frame in a place."""
        slot = SIZEOF_SRING + at % NETIF_RX_RING_SIZE * SIZEOF_NETIF_RX_REQUEST
        self.rx.write(slot, NetifRxResponse.LAYOUT.pack(number, offset, flags, size))

    def publish(self, ring: GrantMapping, rsp_prod: int) -> None:
        ring.write_u32(SRING_RSP_PROD, rsp_prod & 0xFFFFFFFF)
        self.link.notify(self.port)


def place_of_another_slot(backend: Hostile) -> None:
    backend.give(1)
    backend.publish(backend.rx, 1)


def no_place(backend: Hostile) -> None:
    backend.give(0xFFFF)
    backend.publish(backend.rx, 1)


def more_than_a_page(backend: Hostile) -> None:
    backend.give(0, offset=PAGE - 59, size=60)
    backend.publish(backend.rx, 1)


def far_too_much(backend: Hostile) -> None:
    backend.give(0, offset=0xFFFF, size=0x7FFF)
    backend.publish(backend.rx, 1)


def pieces(backend: Hostile) -> None:
    backend.give(0, flags=NETRXF_more_data)
    backend.publish(backend.rx, 1)


def extra(backend: Hostile) -> None:
    backend.give(0, flags=NETRXF_extra_info)
    backend.publish(backend.rx, 1)


def more_than_places(backend: Hostile) -> None:
    backend.publish(backend.rx, backend.rx.read_u32(SRING_REQ_PROD) + 1)


def far_ahead(backend: Hostile) -> None:
    backend.publish(backend.rx, 1 << 31)


def back_again(backend: Hostile) -> None:
    backend.publish(backend.rx, -1)


ATTACKS: tuple[Callable[[Hostile], None], ...] = (
    *(place_of_another_slot, no_place, more_than_a_page, far_too_much, pieces, extra),
    *(more_than_places, far_ahead, back_again),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_a_hostile_backend_gives_costs_its_own_card(
    shell: Machine, attack: Callable[[Hostile], None]
) -> None:
    before = shell.memory()["free"]
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        attack(backend)
        shell.wait_for("device/vif/0: the backend breaks the rules of a ring: given up\n")
        backend.wait_for_states("6", "4")
        assert shell.command("echo it lives") == "it lives\n"
        wait_for_state(shell, "down")
        backend.remove()
        wait_for_state(shell, "no such interface")
    kept = before - shell.memory()["free"]
    assert kept <= 2, "only the rings were mapped"


# What it answers is looked at when a program wants to send, and there is no buffer left.
def answers_an_id_of_no_buffer(backend: Hostile) -> None:
    backend.answer(0, 0xFFFF)
    backend.publish(backend.tx, 1)


def answers_a_buffer_twice(backend: Hostile) -> None:
    number = backend.request(0).id
    backend.answer(0, number)
    backend.answer(1, number)
    backend.publish(backend.tx, 2)


def answers_more_than_was_sent(backend: Hostile) -> None:
    backend.publish(backend.tx, backend.tx.read_u32(SRING_REQ_PROD) + 1)


@pytest.mark.parametrize(
    "attack",
    [answers_an_id_of_no_buffer, answers_a_buffer_twice, answers_more_than_was_sent],
    ids=lambda attack: attack.__name__,
)
def test_what_a_hostile_backend_answers_costs_its_own_card(
    shell: Machine, attack: Callable[[Hostile], None]
) -> None:
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        shell.type("pktgen 10.0.0.255 9 -n 10000\r")
        shell.wait_for("\n")
        shell.run_until(lambda: is_full(backend), "a ring that is full")
        attack(backend)
        said = shell.wait_for(PROMPT)
        assert "device/vif/0: the backend breaks the rules of a ring: given up\n" in said
        assert "pktgen: no way to that address\n" in said
        backend.remove()
        wait_for_state(shell, "no such interface")


def is_full(backend: Hostile) -> bool:
    """Tell whether a program waits for room to send: then it has asked to be told."""
    return backend.tx.read_u32(SRING_RSP_EVENT) > 1


def test_an_answer_may_find_out_that_the_backend_is_hostile(shell: Machine) -> None:
    """More pings than there are buffers to answer, and a response to what was not sent."""
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        address, mac = address_of(9), mac_of(9)
        question = ip(address, address_of(5), PROTOCOL_ICMP, echo(b"are you there?"))
        frame = ethernet(mac_of(5), mac, ETH_IP, question)
        places = backend.rx.read_u32(SRING_REQ_PROD)
        for index in range(places):
            backend.map(backend.place(index).gref).write(0, frame)
            backend.give(index, at=index, size=len(frame))
        backend.answer(0, 0xFFFF)
        backend.tx.write_u32(SRING_RSP_PROD, 1)
        backend.publish(backend.rx, places)
        shell.wait_for("device/vif/0: the backend breaks the rules of a ring: given up\n")
        assert shell.command("echo it lives") == "it lives\n"
        assert "given up" not in shell.command("sleep 0.1")
        backend.remove()
        wait_for_state(shell, "no such interface")


def test_a_backend_that_sends_nothing_makes_wait_who_sends_and_nobody_else(shell: Machine) -> None:
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        shell.command("pktgen 10.0.0.255 9 -n 10000 &")
        shell.run_until(lambda: is_full(backend), "a ring that is full")
        assert shell.command("echo well") == "well\n"
        shell.command(f"kill {shell.process_named('pktgen')}")
        shell.command("wait")
        shell.wait_for_quiet()
        shell.command("pktgen 10.0.0.255 9 -n 10000 &")
        sender = shell.process_named("pktgen")
        backend.remove()
        wait_for_state(shell, "no such interface")
        shell.command("wait")
        assert sender not in shell.processes()


def test_a_page_that_a_backend_keeps_is_never_used_for_anything_else(shell: Machine) -> None:
    """The card is gone, but its backend goes on writing to what it has mapped."""
    before = shell.memory()["free"]
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        kept = [backend.map(backend.place(index).gref) for index in range(10)]
        backend.remove()
        wait_for_state(shell, "no such interface")
        for _ in range(3):
            for page in kept:
                page.write(0, b"\xcc" * PAGE)
            assert shell.status("forktest 30") == 0
            assert shell.status("cowtest") == 0
        assert all(page.read(0, PAGE) == b"\xcc" * PAGE for page in kept)
    lost = before - shell.memory()["free"]
    assert len(kept) <= lost <= len(kept) + 2, "the pages that were mapped, and the rings"


@pytest.mark.parametrize("mac", ["", "00:16:3e:00:00", "00:16:3e:00:00:0g", "01:00:5e:00:00:01"])
def test_an_address_that_is_none_is_no_card(shell: Machine, mac: str) -> None:
    with ExitStack() as undo:
        card = Card(shell, undo)
        card.make(mac)
        card.tell(feature_rx_copy="1", state="2")
        card.wait_for_states("6", "2")
        shell.wait_for("device/vif/0: cannot be used: error 22\n")
        card.remove()


def test_a_backend_that_flips_pages_is_refused(shell: Machine) -> None:
    with ExitStack() as undo:
        card = Card(shell, undo)
        card.make()
        card.tell(state="2")
        card.wait_for_states("6", "2")
        card.remove()


def test_there_are_four_interfaces_and_no_more(shell: Machine, tmp_path: Path) -> None:
    with ExitStack() as undo:
        for number in (LAST_INTERFACE, LAST_INTERFACE + 1):
            card = Card(shell, undo, number)
            card.make(mac_of(number).hex(":"))
            card.tell(feature_rx_copy="1", state="2")
            card.wait_for_states("4" if number == LAST_INTERFACE else "6", "2")
        assert f"eth{LAST_INTERFACE}: down" in shell.command("ifconfig")
