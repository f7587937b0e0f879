# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos reads and writes disks that a tool of the host made, and that are checked there after."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fat_disk import KINDS, FatDisk, cksum
from tests.support.guestos import PROMPT, Machine, lines
from xenlite.toolstack.disk_config import read_disk
from xenlite.toolstack.disks import Disks
from xenlite.toolstack.disks import open_images as open_disks

SIZES = (0, 1, 511, 512, 513, 1023, 4096, 4097, 45056, 100_003, 300_000)
NAMES = ("A.TXT", "lower.txt", "no_extension", "A long name of a file, with a comma.text")
VCPUS = (1, 4)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def boot(*disks: str, vcpus: int = 1) -> Machine:
    machine = Machine(f"vcpus={vcpus}", disks=disks)
    machine.wait_for(PROMPT)
    machine.command("ls disk")  # by then the news of disks is out
    return machine


def answer(machine: Machine, line: str) -> list[str]:
    return lines(machine.command(line))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk without a file system, whose size is no multiple of a page."""
    path = tmp_path / "raw.img"
    path.write_bytes(content((3 << 20) + 512 * 3))
    return path


@pytest.mark.parametrize("vcpus", VCPUS)
@pytest.mark.parametrize("is_partition", [False, True], ids=["all of it", "a partition"])
@pytest.mark.parametrize("bits", KINDS)
def test_what_the_host_put_on_a_disk_is_read_there(
    tmp_path: Path, bits: int, is_partition: bool, vcpus: int
) -> None:
    disk = FatDisk(tmp_path / "fat.img", bits, is_partition=is_partition)
    files = {f"{size}.bin": content(size) for size in SIZES}
    files |= {f"sub/deep/{name}": content(len(name)) for name in NAMES}
    files |= {f"many/file {number}": b"%d" % number for number in range(50)}
    disk.put(files)
    machine = boot(f"{disk.path},raw,xvda,ro", vcpus=vcpus)
    for name, data in files.items():
        if " " not in name:
            found = answer(machine, f"sum disk/{name}")
            assert found == [f"{cksum(data)} disk/{name}"]
    assert answer(machine, "ls disk")[-2:] == ["       0 sub/", "       0 many/"]
    listed = answer(machine, "ls disk/sub/deep")
    assert listed == [f"{len(name):8} {name}" for name in NAMES]
    assert len(answer(machine, "ls /disk/many/")) == 50
    assert answer(machine, "cat disk/SUB/Deep/../deep/./a.txt | wc")[0].endswith("5 bytes")
    machine.close()


def test_paths_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    disk = FatDisk(tmp_path / "fat.img", 12)
    disk.put({"file": b"x", "sub/file": b"y"})
    machine = boot(f"{disk.path},raw,xvda,rw")
    for path, why in {
        "disk/nothing": "no such file",
        "disk/file/x": "not a directory",
        "disk/sub": "a directory",
        "disk": "a directory",
        "disks": "no such file",
        "dev/xvdb": "no such file",
        "dev/xvdq": "no such file",
        "dev/xvd": "no such file",
        "dev/xvda1": "no such file",
    }.items():
        assert answer(machine, f"cat {path}") == [f"cat: {path}: {why}"]
    assert answer(machine, "ls disk/file") == ["ls: disk/file: not a directory"]
    assert answer(machine, "ls disk/nothing") == ["ls: disk/nothing: no such file"]
    machine.close()


def test_without_a_disk_there_is_no_file_system(image: Path) -> None:
    machine = boot()
    assert answer(machine, "ls disk") == ["ls: disk: no such file"]
    machine.close()
    machine = boot(f"{image},raw,xvda,rw")
    assert answer(machine, "ls disk") == ["ls: disk: not possible"]
    machine.close()


@pytest.mark.parametrize("vcpus", VCPUS)
@pytest.mark.parametrize("size", ["512", "1000", "4K", "44K", "45K", "1M", "2M"])
def test_blocks_of_every_size_are_read_right(image: Path, size: str, vcpus: int) -> None:
    data = image.read_bytes()
    machine = boot(f"{image},raw,xvda,ro", vcpus=vcpus)
    count = "count=60" if size in ("512", "1000") else ""
    said = answer(machine, f"dd if=dev/xvda bs={size} {count}")
    wanted = 60 * int(size) if count else len(data)
    assert said[0].startswith(f"{wanted} bytes, "), said
    assert answer(machine, "sum dev/xvda") == [f"{cksum(data)} dev/xvda"]
    machine.close()


@pytest.mark.parametrize("vcpus", VCPUS)
def test_what_dd_writes_is_on_the_disk(tmp_path: Path, image: Path, vcpus: int) -> None:
    source = tmp_path / "source.img"
    source.write_bytes(content(1 << 20))
    machine = boot(f"{source},raw,xvda,ro", f"{image},raw,xvdb,rw", vcpus=vcpus)
    expected = bytearray(image.read_bytes())
    new = source.read_bytes()
    copies = {  # size of a block, blocks, skipped, sought
        "512": (3, 5, 7),
        "700": (9, 3, 11),
        "4096": (2, 1, 100),
        "4099": (20, 2, 50),
        "44K": (8, 3, 40),
        "400K": (2, 0, 5),
    }
    for size, (count, skip, seek) in copies.items():
        number = int(size.removesuffix("K")) << (10 if size.endswith("K") else 0)
        words = f"bs={size} count={count} skip={skip} seek={seek}"
        said = answer(machine, f"dd if=dev/xvda of=dev/xvdb {words}")
        assert said[0].startswith(f"{count * number} bytes, "), said
        at = seek * number
        expected[at : at + count * number] = new[skip * number : (skip + count) * number]
    found = answer(machine, "sum dev/xvdb")
    assert found == [f"{cksum(bytes(expected))} dev/xvdb"]
    assert machine.status("sync") == 0
    machine.close()
    assert image.read_bytes() == expected


def test_a_disk_is_not_written_beyond_its_end(image: Path) -> None:
    size = image.stat().st_size
    machine = boot(f"{image},raw,xvda,rw")
    sectors = size // 512
    said = answer(machine, f"dd if=bin/sh of=dev/xvda bs=512 count=2 seek={sectors - 1}")
    assert said[0] == "dd: dev/xvda: no space left"
    assert said[1].startswith("512 bytes")
    said = answer(machine, f"dd if=dev/xvda bs=512 skip={sectors - 1}")
    assert said[0].startswith("512 bytes")
    assert answer(machine, f"dd if=dev/xvda skip={sectors} bs=512")[0].startswith("0 bytes")
    machine.close()
    assert image.stat().st_size == size


@pytest.mark.parametrize("bits", KINDS)
def test_files_are_written_in_place_and_the_file_system_stays_whole(
    tmp_path: Path, bits: int
) -> None:
    disk = FatDisk(tmp_path / "fat.img", bits)
    disk.put({"before": content(20_000), "hole": content(3000)})
    disk.put({"sub/file.bin": content(100_000)})
    disk.remove("hole")  # what follows lies in two pieces
    disk.put({"pieces.bin": content(50_000), "protected": b"keep"})
    disk.protect("protected")
    source = tmp_path / "source.img"
    new = content(120_000 - 120_000 % 512)
    source.write_bytes(new)
    machine = boot(f"{disk.path},raw,xvda,rw", f"{source},raw,xvdb,ro")
    assert "50000 bytes" in answer(machine, "dd if=dev/xvdb of=disk/pieces.bin bs=5000 count=10")[0]
    said = answer(machine, "dd if=dev/xvdb of=disk/sub/file.bin bs=44K")
    assert said[0] == "dd: disk/sub/file.bin: no space left"
    assert (
        answer(machine, "dd if=README of=disk/protected")[0] == "dd: disk/protected: not permitted"
    )
    assert answer(machine, "dd if=README of=disk/nothing")[0] == "dd: disk/nothing: no such file"
    assert answer(machine, "sum disk/pieces.bin") == [f"{cksum(new[:50_000])} disk/pieces.bin"]
    machine.close()
    disk.check()
    assert disk.get("pieces.bin") == new[:50_000]
    assert disk.get("sub/file.bin") == new[:100_000]
    assert disk.get("before") == content(20_000)
    assert disk.get("protected") == b"keep"


def test_a_disk_that_is_only_to_be_read_is_not_written(tmp_path: Path) -> None:
    disk = FatDisk(tmp_path / "fat.img", 12)
    disk.put({"file": b"x" * 1000})
    before = disk.path.read_bytes()
    machine = boot(f"{disk.path},raw,xvda,ro")
    for path in ("dev/xvda", "disk/file"):
        assert answer(machine, f"dd if=README of={path}") == [f"dd: {path}: read-only"]
    machine.close()
    assert disk.path.read_bytes() == before


def test_an_image_that_has_become_too_short_is_an_error_of_the_disk(image: Path) -> None:
    machine = boot(f"{image},raw,xvda,rw")
    os.truncate(image, 1 << 20)
    said = answer(machine, "dd if=dev/xvda bs=64K")
    assert said[0] == "dd: dev/xvda: the device has failed"
    assert said[1].startswith(f"{1 << 20} bytes")
    assert answer(machine, "dd if=dev/xvda bs=1K skip=2000")[0].endswith("the device has failed")
    assert answer(machine, "dd if=dev/xvda bs=64K count=2")[0].startswith("131072 bytes")
    machine.close()


@pytest.mark.parametrize("vcpus", VCPUS)
def test_many_processes_use_a_disk_at_once(image: Path, vcpus: int) -> None:
    size = image.stat().st_size
    machine = boot(f"{image},raw,xvda,ro", vcpus=vcpus)
    free = machine.memory()["free"]
    sizes = ("1K", "4K", "12K", "44K", "256K", "2M")
    counts = {"1K": "count=200", "4K": "count=300"}
    machine.command(
        " ".join(f"dd if=dev/xvda bs={each} {counts.get(each, '')} &" for each in sizes)
    )
    said = machine.command("wait; sum dev/xvda dev/xvda")
    assert said.count(cksum(image.read_bytes())) == 2
    machine.wait_for_quiet()
    # Pages of the cache and of requests stay with the disk.
    assert free - machine.memory()["free"] < 60, size
    machine.close()


# -- coming and going -----------------------------------------------------------------------------


@pytest.fixture(params=VCPUS, ids=["1 vCPU", "4 vCPUs"])
def shell(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = boot(vcpus=request.param)
    yield machine
    machine.close()


class Attached:
    """Disks that come while the guest runs."""

    def __init__(self, machine: Machine, undo: ExitStack) -> None:
        link = machine.hypervisor.link(0)
        self.machine = machine
        self._undo = undo
        self.disks = Disks(link, machine.store, machine.domid, undo, machine.rack.broken)

    def attach(self, path: Path, vdev: str) -> None:
        config = read_disk(f"{path},raw,{vdev},rw")
        self.disks.attach(config, open_disks([config], self._undo)[0])
        self.machine.wait_for(f"{vdev}: {path.stat().st_size // 512} sectors\n")


def test_a_disk_comes_and_goes_while_the_guest_runs(
    shell: Machine, image: Path, tmp_path: Path
) -> None:
    with ExitStack() as undo:
        attached = Attached(shell, undo)
        data = image.read_bytes()
        free = None
        for round_ in range(4):
            attached.attach(image, "xvdc")
            assert answer(shell, "sum dev/xvdc") == [f"{cksum(data)} dev/xvdc"]
            attached.disks.detach(51712 + 32)
            shell.wait_for("xvdc: gone\n")
            assert answer(shell, "sum dev/xvdc") == ["sum: dev/xvdc: no such file"]
            free = free or shell.memory()["free"]
            assert shell.memory()["free"] == free, f"round {round_}"
            undo.close()
            attached = Attached(shell, undo)


def test_another_disk_in_the_same_place_is_another_disk(shell: Machine, tmp_path: Path) -> None:
    for number in range(3):
        disk = FatDisk(tmp_path / f"{number}.img", 12)
        disk.put({f"file{number}": b"%d\n" % number})
        with ExitStack() as undo:
            attached = Attached(shell, undo)
            attached.attach(disk.path, "xvda")
            assert answer(shell, "ls disk") == [f"       2 file{number}"]
            assert answer(shell, f"cat disk/file{number}") == [str(number)]
        shell.wait_for("xvda: gone\n")
