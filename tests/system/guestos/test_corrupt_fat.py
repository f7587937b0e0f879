# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems that are broken, by accident or by design, cost an error, never a hang."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fat_disk import KINDS, FatDisk
from tests.support.guestos import PROMPT, Machine, lines
from xenlite.toolstack.disk_config import read_disk
from xenlite.toolstack.disks import Disks, open_images

CLUSTERS = 20
SEEDS = range(12)
LONG = "a long name that takes several entries of its directory.txt"


class Volume:
    """The bytes of a FAT volume, and where its parts are."""

    def __init__(self, path: Path, bits: int) -> None:
        self.bits = bits
        self.data = bytearray(path.read_bytes())
        self.cluster_size = self.data[13] * 512
        reserved, fats = self._u16(14), self.data[16]
        size = self._u16(22) or self._u32(36)
        self.fat = reserved * 512
        self.root = (reserved + fats * size) * 512
        self.first = self.root + self._u16(17) * 32
        if bits == 32:
            self.root = self.first + (self._u32(44) - 2) * self.cluster_size

    def _u16(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 2], "little")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    def link(self, cluster: int, follower: int) -> None:
        """Have another cluster follow one."""
        if self.bits != 12:
            size = self.bits // 8
            at = self.fat + cluster * size
            mask = (1 << min(28, self.bits)) - 1
            self.data[at : at + size] = (follower & mask).to_bytes(size, "little")
            return
        at = self.fat + cluster * 3 // 2
        old = self._u16(at)
        shift = cluster % 2 * 4
        new = old & ~(0xFFF << shift) | (follower & 0xFFF) << shift
        self.data[at : at + 2] = new.to_bytes(2, "little")

    def entry(self, name: bytes) -> int:
        """Find an entry of the root directory by its short name."""
        return self.data.index(name, self.root, self.root + 16384)

    def cluster(self, entry: int) -> int:
        return self._u16(entry + 26)

    def set(self, layout: str, at: int, value: int) -> None:
        struct.pack_into(layout, self.data, at, value)


def a_chain_that_bites_its_tail(volume: Volume) -> None:
    cluster = volume.cluster(volume.entry(b"BIG     BIN"))
    volume.link(cluster + 1, cluster)


def a_chain_that_leads_out(volume: Volume) -> None:
    volume.link(
        volume.cluster(volume.entry(b"BIG     BIN")), 0xFFFFFF0 if volume.bits > 12 else 0xFF0
    )


def a_chain_that_leads_to_cluster_1(volume: Volume) -> None:
    volume.link(volume.cluster(volume.entry(b"BIG     BIN")), 1)


def a_chain_that_ends_early(volume: Volume) -> None:
    volume.link(volume.cluster(volume.entry(b"BIG     BIN")) + 2, 0xFFFFFFF)


def a_file_that_begins_nowhere(volume: Volume) -> None:
    volume.set("<H", volume.entry(b"BIG     BIN") + 26, 0)


def a_file_that_begins_outside(volume: Volume) -> None:
    volume.set("<H", volume.entry(b"BIG     BIN") + 26, 0xFFF0)
    volume.set("<H", volume.entry(b"BIG     BIN") + 20, 0xFFFF)


def a_file_larger_than_the_disk(volume: Volume) -> None:
    volume.set("<I", volume.entry(b"BIG     BIN") + 28, 0xFFFFFFFF)


def a_directory_that_bites_its_tail(volume: Volume) -> None:
    cluster = volume.cluster(volume.entry(b"SUB        "))
    volume.link(cluster, cluster)
    start = volume.first + (cluster - 2) * volume.cluster_size
    entry = b"FILE    TXT" + bytes(21)
    entries = entry * (volume.cluster_size // 32)
    volume.data[start : start + volume.cluster_size] = entries


def a_directory_that_is_itself(volume: Volume) -> None:
    """The root, or what stands in its place, as a directory in itself."""
    volume.set("<H", volume.entry(b"SUB        ") + 26, 0)
    volume.set("<H", volume.entry(b"SUB        ") + 20, 0)


BROKEN: tuple[Callable[[Volume], None], ...] = (
    a_chain_that_bites_its_tail,
    a_chain_that_leads_out,
    a_chain_that_leads_to_cluster_1,
    a_chain_that_ends_early,
    a_file_that_begins_nowhere,
    a_file_that_begins_outside,
    a_file_larger_than_the_disk,
    a_directory_that_bites_its_tail,
    a_directory_that_is_itself,
)
# Of the BPB: at, layout, value. Each makes it one that cannot be.
BPBS = {
    "no signature": (510, "<H", 0),
    "sectors of 4096": (11, "<H", 4096),
    "sectors of 0": (11, "<H", 0),
    "clusters of 0": (13, "<B", 0),
    "clusters of 3": (13, "<B", 3),
    "nothing reserved": (14, "<H", 0),
    "all reserved": (14, "<H", 0xFFFF),
    "no FAT": (16, "<B", 0),
    "a FAT of 65535": (22, "<H", 0xFFFF),
    "a root of 65535": (17, "<H", 0xFFFF),
    "larger than the disk": (19, "<H", 0xFFFF),
}


def make(path: Path, bits: int) -> Volume:
    disk = FatDisk(path, bits)
    disk.put({"big.bin": bytes(512 * CLUSTERS), "sub/file": b"x", LONG: b"y", "small": b"z\n"})
    return Volume(path, bits)


class Shell:
    """A guest to which one disk after the other is shown as xvda."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.machine.wait_for(PROMPT)

    def try_everything(self, path: Path) -> list[str]:
        """List and read what there is, write one file; return all that was said."""
        machine = self.machine
        link = machine.hypervisor.link(0)
        config = read_disk(f"{path},raw,xvda,rw")
        said = []
        with ExitStack() as undo:
            disks = Disks(link, machine.store, machine.domid, undo, machine.rack.broken)
            disks.attach(config, open_images([config], undo)[0])
            machine.wait_for(" sectors\n")
            for line in (
                *("ls disk", "ls disk/sub", "sum disk/big.bin disk/sub/file disk/small"),
                *("dd if=bin/true of=disk/big.bin", "dd if=disk/big.bin bs=100 count=30 skip=80"),
                "ls disk/sub/sub/sub/nothing",
            ):
                said += lines(machine.command(line))
        machine.wait_for("xvda: gone\n")
        assert machine.command("echo it lives") == "it lives\n"
        return said


@pytest.fixture(scope="module")
def shell() -> Shell:
    return Shell()


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_file_system_is_read_as_far_as_it_makes_sense(
    tmp_path: Path, shell: Shell, bits: int, breaks: Callable[[Volume], None]
) -> None:
    path = tmp_path / "fat.img"
    volume = make(path, bits)
    breaks(volume)
    path.write_bytes(volume.data)
    said = shell.try_everything(path)
    assert f"       1 {LONG}" in said, "the rest of it is there"


@pytest.mark.parametrize("what", BPBS)
def test_a_first_sector_that_makes_no_sense_is_no_file_system(
    tmp_path: Path, shell: Shell, what: str
) -> None:
    path = tmp_path / "fat.img"
    volume = make(path, 12)
    at, layout, value = BPBS[what]
    volume.set(layout, at, value)
    path.write_bytes(volume.data)
    assert shell.try_everything(path)[0] == "ls: disk: not possible"


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_at_random_do_no_harm(tmp_path: Path, shell: Shell, bits: int, seed: int) -> None:
    chance = random.Random(seed * 64 + bits)
    path = tmp_path / "fat.img"
    volume = make(path, bits)
    for _ in range(60):
        start, end = chance.choice(
            ((11, 90), (volume.fat, volume.fat + 64), (volume.root, volume.root + 512))
        )
        volume.data[chance.randrange(start, end)] = chance.randrange(256)
    path.write_bytes(volume.data)
    shell.try_everything(path)
