# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk served by a driver domain, whose process is killed in the middle of I/O and started again.

guestos goes on where it was: what it has asked for and heard no answer to, it asks the new one.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.guestos import PROMPT, Machine
from xenlite.dom0.driver_task import DriverTask
from xenlite.dom0.image import RawImage
from xenlite.dom0.vbd import Vbd, vbd_paths
from xenlite.toolstack.store_nodes import vbd_nodes

XVDA = 51712
SIZE = 1 << 20
LATENCY_NS = 500_000
DEATHS = 4


class DriverDomain:
    """A domain whose kernel is Python, with one process that serves one disk to one guest."""

    def __init__(self, machine: Machine, image: Path) -> None:
        self._machine = machine
        self._image = image
        self.domid = machine.control.create_domain("driver", max_pages=0, max_vcpus=1)
        self._paths = vbd_paths(self.domid, machine.domid, XVDA)
        machine.store.put(
            vbd_nodes(machine.domid, XVDA, "xvda", "disk", mode="w", backend_domid=self.domid)
        )
        self.task: DriverTask
        self.vbd: Vbd
        self.start()

    def start(self) -> None:
        """Start the process."""
        link = self._machine.hypervisor.link(self.domid)
        self.task = DriverTask(link, self._machine.store.server, self._broken)
        image = RawImage(self._image, read_only=False)
        self.vbd = self.task.serve(self._paths, image, latency_ns=LATENCY_NS)

    def die_at(self, requests: int) -> None:
        """Kill the process when it has taken so many requests, and some are in work."""

        def is_in_the_middle() -> bool:
            ring = self.vbd.ring
            return ring is not None and ring.requests >= requests and ring.in_work > 0

        self._machine.run_until(is_in_the_middle, "I/O")
        self.task.kill()
        domain = self._machine.hypervisor.domains[self.domid]
        assert list(domain.maptrack.pins()) == []
        assert not any(map(domain.events.channel, range(1, 1024)))
        assert self._machine.control.audit() + self._machine.store.audit() == []

    def _broken(self, error: Exception) -> None:
        raise error


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make a disk."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


def cksum(machine: Machine, device: str) -> str:
    """Have the guest sum a disk up; news of jobs and disks may come before the answer."""
    answer = machine.command(f"sum {device}").splitlines()
    return next(line for line in answer if line[0].isdigit()).removesuffix(f" {device}")


@pytest.mark.parametrize("vcpus", [1, 2])
def test_what_is_written_while_the_driver_dies_is_on_the_disk(
    tmp_path: Path, image: Path, vcpus: int
) -> None:
    source = tmp_path / "source.img"
    source.write_bytes(random.Random(4).randbytes(SIZE))
    machine = Machine(f"vcpus={vcpus}", disks=[f"{source},raw,xvdb,ro"])
    machine.wait_for(PROMPT)
    driver = DriverDomain(machine, image)
    machine.wait_for("xvda: 2048 sectors\n")
    machine.type("dd if=dev/xvdb of=dev/xvda bs=44K\r")
    for death in range(DEATHS):
        driver.die_at(1 + 2 * death)
        driver.start()
    machine.wait_for(f"{SIZE} bytes")
    machine.wait_for(PROMPT)
    assert machine.status("sync") == 0
    assert image.read_bytes() == source.read_bytes()
    assert cksum(machine, "dev/xvda") == cksum(machine, "dev/xvdb")
    driver.task.kill()
    machine.close()


@pytest.mark.parametrize("vcpus", [1, 2])
def test_what_is_read_while_the_driver_dies_is_what_is_on_the_disk(
    tmp_path: Path, image: Path, vcpus: int
) -> None:
    """Meanwhile everything else of the guest goes on: its shell, and its other disk."""
    copy = tmp_path / "copy.img"
    copy.write_bytes(image.read_bytes())
    machine = Machine(f"vcpus={vcpus}", disks=[f"{copy},raw,xvdb,ro"])
    machine.wait_for(PROMPT)
    driver = DriverDomain(machine, image)
    machine.wait_for("xvda: 2048 sectors\n")
    expected = cksum(machine, "dev/xvdb")
    machine.command("sum dev/xvda &")
    for death in range(DEATHS):
        driver.die_at(1 + 3 * death)
        assert cksum(machine, "dev/xvdb") == expected
        driver.start()
    machine.wait_for(f"{expected} dev/xvda")
    driver.task.kill()
    machine.close()
