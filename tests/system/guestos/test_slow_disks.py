# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that does not answer holds up who waits for it: not the guest, its shell, other disks."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.guestos import PROMPT, Machine
from xenlite.dom0.image import RawImage
from xenlite.toolstack.disk_config import read_disk
from xenlite.toolstack.disks import Disks

SIZE = 1 << 18


class StuckImage(RawImage):
    """An image on a disk that does not come back from a read or a write until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.is_stuck = threading.Event()
        self.may_go = threading.Event()

    def read_cached(self, views: Sequence[memoryview], offset: int) -> bool:
        """Have nothing."""
        return False

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Wait, then read."""
        self.is_stuck.set()
        assert self.may_go.wait(60)
        super().read_into(views, offset)

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Wait, then write."""
        self.is_stuck.set()
        assert self.may_go.wait(60)
        super().write_from(views, offset)


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("sum dev/xvda", f" {SIZE} dev/xvda"),
        ("dd if=dev/xvdb of=dev/xvda bs=16K", f"{SIZE} bytes, "),
    ],
)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_disk_that_does_not_answer_stops_nothing_else(
    tmp_path: Path, command: str, end: str, vcpus: int
) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(SIZE))
    machine = Machine(f"vcpus={vcpus}", disks=[f"{tmp_path}/b.img,raw,xvdb,ro"])
    machine.wait_for(PROMPT)
    image = StuckImage(tmp_path / "a.img")
    disks = machine.guest.disks
    assert isinstance(disks, Disks)
    vbd = disks.attach(read_disk(f"{tmp_path}/a.img,raw,xvda,rw"), image)
    machine.wait_for("xvda: 512 sectors\n")
    expected = machine.command("cat dev/xvdb | sum")

    machine.command(f"{command} &")
    machine.run_until(image.is_stuck.is_set, "a stuck disk")
    for _ in range(10):
        assert machine.command("cat dev/xvdb | sum").endswith(expected)
    assert vbd.ring is not None
    assert vbd.ring.in_work
    assert machine.control.audit() == []

    image.may_go.set()
    machine.wait_for(end)
    if command.startswith("dd"):
        assert machine.status("sync") == 0
        assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()
    machine.close()
    image.close()
