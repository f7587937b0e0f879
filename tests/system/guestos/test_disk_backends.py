# SPDX-License-Identifier: GPL-2.0-or-later
"""Backends that come again, ask to close, or mean harm: guestos' data stays whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fat_disk import cksum
from tests.support.guestos import PROMPT, Machine, lines
from xenlite.abi.x86_32p import (
    BLKIF_RSP_OKAY,
    SIZEOF_SRING,
    SRING_REQ_PROD,
    SRING_RSP_PROD,
    BlkifRequest,
    BlkifResponse,
)
from xenlite.dom0.backend_device import DevicePaths
from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.image import RawImage
from xenlite.dom0.vbd import Vbd, vbd_paths
from xenlite.doors import GrantMapping
from xenlite.errors import PeerError
from xenlite.toolstack.store_nodes import device_paths, vbd_nodes

NUMBER = 51712
SIZE = 2 << 20
MS = 1_000_000
SLOT = 108
FOR_EVER_NS = 3600 * 10**9


@pytest.fixture(params=[1, 4], ids=["1 vCPU", "4 vCPUs"])
def shell(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(f"vcpus={request.param}")
    machine.wait_for(PROMPT)
    yield machine
    machine.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


class Device:
    """A disk's nodes in XenStore, as a toolstack makes them; a backend is another matter."""

    def __init__(self, machine: Machine, undo: ExitStack, number: int = NUMBER) -> None:
        self.machine = machine
        self.number = number
        self.link = machine.hypervisor.link(0)
        self.store = Dom0Store(self.link, machine.store.server)
        undo.callback(self.store.close)
        self.paths: DevicePaths = vbd_paths(0, machine.domid, number)
        self.name = f"xvd{chr(ord('a') + (number - NUMBER) // 16)}"

    def make(self) -> None:
        nodes = vbd_nodes(self.machine.domid, self.number, self.name, "", mode="w")
        self.machine.store.put(nodes)

    def remove(self) -> None:
        self.machine.store.remove(device_paths(self.machine.domid, "vbd", self.number))

    def read(self, end: str, node: str = "state") -> str | None:
        return self.store.read(f"{getattr(self.paths, end)}/{node}")

    def show(self, state: int) -> None:
        self.store.write(f"{self.paths.backend}/state", str(state))

    def wait_for_states(self, frontend: str, backend: str) -> None:
        self.machine.run_until(
            lambda: (self.read("frontend"), self.read("backend")) == (frontend, backend),
            f"{frontend} and {backend}: {self.read('frontend')} and {self.read('backend')}",
        )


class Disk(Device):
    """A disk with the real backend, which can be killed and started again."""

    def __init__(self, machine: Machine, undo: ExitStack, path: Path) -> None:
        super().__init__(machine, undo)
        self._path = path
        self._undo = undo
        self._stop = ExitStack()
        undo.callback(self._stop.close)
        self.make()
        self.start()
        self.wait_for_states("4", "4")
        machine.wait_for(f"{self.name}: {SIZE // 512} sectors\n")

    def start(self, latency_ns: int = 0) -> None:
        image = RawImage(self._path, read_only=False)
        self._stop.callback(image.close)
        self.vbd = Vbd(
            self.link,
            self.store,
            self.paths,
            image,
            read_only=False,
            broken=self._broken,
            latency_ns=latency_ns,
        )
        self._stop.callback(self.vbd.close)

    def kill(self) -> None:
        """End it; what it had taken is done, and answered to nobody."""
        self._stop.close()

    def wait_for_work(self) -> None:
        def is_working() -> bool:
            return self.vbd.ring is not None and self.vbd.ring.in_work > 0

        self.machine.run_until(is_working, "requests in work")

    @staticmethod
    def _broken(error: PeerError) -> None:
        raise error


def last(machine: Machine, line: str) -> str:
    return lines(machine.command(line))[-1]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("forgets", [False, True], ids=["joins", "waits"])
def test_a_backend_that_is_killed_and_started_again_loses_nothing(
    shell: Machine, image: Path, *, late: bool, forgets: bool
) -> None:
    """It may find our state and join the ring of before, or have begun with nodes made anew."""
    data = image.read_bytes()
    with ExitStack() as undo:
        disk = Disk(shell, undo, image)
        disk.kill()
        disk.start(latency_ns=5 * MS)
        disk.wait_for_states("4", "4")
        free = []
        for _ in range(4):
            free.append(shell.memory()["free"])
            shell.type("sum dev/xvda\r")
            disk.wait_for_work()
            disk.kill()
            if forgets:
                disk.make()
            if late:
                shell.hypervisor.run(lambda: False, shell.clock.monotonic_ns() + 20 * MS)
            disk.start(latency_ns=5 * MS)
            assert f"{cksum(data)} dev/xvda" in shell.wait_for(PROMPT)
        assert free[-2] == free[-1], "nothing is left of a connection"
        disk.remove()
        shell.wait_for("xvda: gone\n")


def test_a_backend_that_is_killed_while_it_writes_loses_nothing(
    shell: Machine, image: Path
) -> None:
    data = image.read_bytes()
    with ExitStack() as undo:
        disk = Disk(shell, undo, image)
        for size in ("4K", "44K", "300K"):
            disk.kill()
            disk.start(latency_ns=2 * MS)
            disk.wait_for_states("4", "4")
            shell.type(f"dd if=dev/xvda of=dev/xvda bs={size} count=20\r")
            disk.wait_for_work()
            disk.kill()
            disk.start()
            assert "bytes, " in shell.wait_for(PROMPT)
        assert last(shell, "sum dev/xvda") == f"{cksum(data)} dev/xvda"
        disk.remove()
        shell.wait_for("xvda: gone\n")
    assert image.read_bytes() == data


def test_a_backend_that_asks_to_close_gets_what_is_in_work_done(
    shell: Machine, image: Path
) -> None:
    with ExitStack() as undo:
        disk = Disk(shell, undo, image)
        disk.kill()
        disk.start(latency_ns=20 * MS)
        disk.wait_for_states("4", "4")
        shell.type("dd if=dev/xvda bs=128K count=1; dd if=dev/xvda bs=4K count=1\r")
        disk.wait_for_work()
        disk.show(5)
        said = lines(shell.wait_for(PROMPT))
        assert said[-2].startswith("131072 bytes") or said[-3].startswith("131072 bytes"), said
        disk.wait_for_states("6", "6")
        assert last(shell, "sum dev/xvda") == "sum: dev/xvda: the device has failed"
        disk.remove()
        shell.wait_for("xvda: gone\n")


def test_a_disk_that_goes_in_the_middle_is_an_error_for_who_reads(
    shell: Machine, image: Path
) -> None:
    with ExitStack() as undo:
        disk = Disk(shell, undo, image)
        disk.kill()
        disk.start(latency_ns=FOR_EVER_NS)
        disk.wait_for_states("4", "4")
        shell.type("sum dev/xvda\r")
        disk.wait_for_work()
        disk.remove()
        assert "sum: dev/xvda: the device has failed" in shell.wait_for(PROMPT)
    assert last(shell, "echo it lives") == "it lives"


# -- hostile ones ---------------------------------------------------------------------------------


class Hostile(Device):
    """A backend that speaks the protocol up to the first request, and then does what it likes."""

    def __init__(self, machine: Machine, undo: ExitStack) -> None:
        super().__init__(machine, undo)
        self._undo = undo
        self.make()
        for node, value in {"sectors": "4096", "feature-max-indirect-segments": "32"}.items():
            self.store.write(f"{self.paths.backend}/{node}", value)
        self.show(2)
        self.wait_for_states("3", "2")
        ring_ref = int(self.read("frontend", "ring-ref") or 0)
        self.ring = self.map(ring_ref)
        port = int(self.read("frontend", "event-channel") or 0)
        self.port = self.link.bind_interdomain(machine.domid, port)
        undo.callback(self.link.close, self.port)
        self.show(4)
        self.wait_for_states("4", "4")
        self.machine.wait_for(f"{self.name}: 4096 sectors\n")

    def map(self, ref: int, *, writable: bool = True) -> GrantMapping:
        page = self.link.map_grant(self.machine.domid, ref, writable=writable)
        self._undo.callback(self.link.unmap_grant, page)
        return page

    def wait_for_request(self, count: int = 1) -> bytes:
        self.machine.run_until(
            lambda: self.ring.read_u32(SRING_REQ_PROD) >= count, "a request in the ring"
        )
        return self.ring.read(SIZEOF_SRING + (count - 1) * SLOT, SLOT)

    def answer(self, request_id: int, at: int = 0, status: int = BLKIF_RSP_OKAY) -> None:
        response = BlkifResponse.LAYOUT.pack(request_id, 0, status)
        self.ring.write(SIZEOF_SRING + (at & 31) * SLOT, response)

    def publish(self, rsp_prod: int) -> None:
        self.ring.write_u32(SRING_RSP_PROD, rsp_prod)
        self.link.notify(self.port)


def wrong_id(backend: Hostile) -> None:
    backend.answer(31)
    backend.publish(1)


def large_id(backend: Hostile) -> None:
    backend.answer(0xFFFF)
    backend.publish(1)


def larger_id(backend: Hostile) -> None:
    backend.answer(1 << 32)
    backend.publish(1)


def same_id_twice(backend: Hostile) -> None:
    backend.answer(0)
    backend.publish(1)
    backend.wait_for_request(2)
    backend.answer(0, 1)
    backend.answer(0, 2)
    backend.publish(3)


def far_ahead(backend: Hostile) -> None:
    backend.publish(1 << 31)


def one_too_many(backend: Hostile) -> None:
    backend.answer(0)
    backend.publish(2)


def back_again(backend: Hostile) -> None:
    backend.publish(0xFFFFFFFF)


ATTACKS: tuple[Callable[[Hostile], None], ...] = (
    *(wrong_id, large_id, larger_id, same_id_twice, far_ahead, one_too_many, back_again),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_a_hostile_backend_does_costs_its_own_device(
    shell: Machine, attack: Callable[[Hostile], None]
) -> None:
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        shell.type("dd if=dev/xvda bs=8K count=2\r")
        backend.wait_for_request()
        attack(backend)
        said = shell.wait_for(PROMPT)
        assert "answers " in said, said
        assert "given up" in said, said
        assert "dd: dev/xvda: the device has failed" in said, said
        assert last(shell, "sum dev/xvda") == "sum: dev/xvda: the device has failed"
        backend.wait_for_states("6", "4")
        backend.remove()
        shell.wait_for("xvda: gone\n")
    assert last(shell, "echo it lives") == "it lives"


def test_an_error_of_the_backend_is_one_of_the_reader_and_the_disk_goes_on(shell: Machine) -> None:
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        shell.type("dd if=dev/xvda bs=8K count=1\r")
        backend.wait_for_request()
        backend.answer(0, 0, -1)
        backend.publish(1)
        assert "dd: dev/xvda: the device has failed" in shell.wait_for(PROMPT)
        shell.type("dd if=dev/xvda bs=8K count=1\r")
        backend.wait_for_request(2)
        backend.answer(0, 1)
        backend.publish(2)
        assert "8192 bytes" in shell.wait_for(PROMPT)
        backend.remove()
        shell.wait_for("xvda: gone\n")


def test_a_page_that_a_backend_keeps_is_never_used_for_anything_else(shell: Machine) -> None:
    """It answers, and goes on writing to the pages that it has still mapped."""
    with ExitStack() as undo:
        backend = Hostile(shell, undo)
        shell.type("dd if=dev/xvda bs=16K count=1\r")
        request = BlkifRequest.unpack(backend.wait_for_request())
        pages = [backend.map(segment.gref) for segment in request.seg[: request.nr_segments]]
        backend.answer(0)
        backend.publish(1)
        assert "16384 bytes" in shell.wait_for(PROMPT)
        for _ in range(3):
            for page in pages:
                page.write(0, b"\xcc" * 4096)
            assert shell.status("forktest 30") == 0
            assert shell.status("cowtest") == 0
        assert all(page.read(0, 4096) == b"\xcc" * 4096 for page in pages)
        backend.remove()
        shell.wait_for("xvda: gone\n")


def test_nodes_that_make_no_sense_are_no_disk(shell: Machine) -> None:
    with ExitStack() as undo:
        for number, (node, value) in enumerate(
            [("sectors", "many"), ("sectors", "0"), ("sectors", "99999999999"), ("sectors", "-1")]
        ):
            device = Device(shell, undo, NUMBER + 16 * number)
            device.make()
            device.store.write(f"{device.paths.backend}/{node}", value)
            device.show(2)
            device.wait_for_states("3", "2")
            device.show(4)
            device.wait_for_states("6", "4")
            device.remove()
            shell.wait_for(f"{device.name}: gone\n")
        far = Device(shell, undo, NUMBER + 16 * 40)  # no number of ours
        far.make()
        far.show(2)
        far.wait_for_states("6", "2")
        far.remove()
    assert last(shell, "echo it lives") == "it lives"
