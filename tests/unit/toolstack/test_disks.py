# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of whole domains: they come before the domain runs, and go with it, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernel_file import KernelFile
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import ConfigError, PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.disk_config import read_disk
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.lifecycle import Guest

FRONT = "/local/domain/{}/device/vbd/51712"
BACK = "/local/domain/0/backend/vbd/{}/51712"


class Host:
    """A hypervisor, its store, and what both hold."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(64 << 20)
        self.control, self.link = self.hypervisor.control(), self.hypervisor.link(0)
        self.store = XenStore(self.link, lambda _domid, _error: None)
        self.broken: list[PeerError] = []

    def start(self, guest: Guest) -> int:
        """Start a domain."""
        return guest.start(
            self.control,
            self.link,
            self.store,
            sink=lambda _domid, _data: None,
            broken=self.broken.append,
        ).domid

    def node(self, path: str) -> bytes | None:
        """Read a node."""
        return self.store.server.act_as_tool(
            lambda view: view.read(path) if view.exists(path) else None
        )

    def settle(self) -> None:
        """Let the backends work."""
        for _ in range(4):
            self.hypervisor.run(lambda: True)

    def held(self) -> tuple[object, ...]:
        """Tell what may not differ before and after a domain."""
        self.settle()
        assert self.control.audit() + self.store.audit() == []
        return (
            self.control.domains(),
            sum(self.hypervisor.machine.frames.refs),
            len(self.store.server.watches.all()),
            self.node(BACK.format(1)),
            threading.active_count(),
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
        )


@pytest.fixture
def host() -> Iterator[Host]:
    """Make a host."""
    made = Host()
    yield made
    made.hypervisor.close()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    """Configure a domain with a disk."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(KernelFile().build())
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    return Guest(config(tmp_path, "disk.img,raw,xvda,rw"))


def config(directory: Path, *disks: str) -> DomainConfig:
    """Configure a domain."""
    return DomainConfig(
        name="guest",
        kernel=directory / "kernel",
        kernel_name="kernel",
        memory_mib=4,
        maxmem_mib=4,
        disks=tuple(read_disk(disk).below(directory) for disk in disks),
    )


def test_a_disk_waits_before_its_domain_runs_and_goes_with_it(host: Host, guest: Guest) -> None:
    before = host.held()
    for _ in range(3):
        domid = host.start(guest)
        assert host.node(f"{BACK.format(domid)}/state") == b"2"
        assert host.node(f"{BACK.format(domid)}/sectors") == b"2048"
        assert host.node(f"{BACK.format(domid)}/mode") == b"w"
        assert host.node(f"{FRONT.format(domid)}/virtual-device") == b"51712"
        assert host.node(f"{FRONT.format(domid)}/backend") == BACK.format(domid).encode()
        guest.stop()
        assert host.node(BACK.format(domid)) is None
        assert host.held() == before


def test_a_disks_name_is_bytes_as_every_file_name(host: Host, guest: Guest) -> None:
    domid = host.start(guest)
    directory = guest.config.disks[0].target.parent
    name = os.fsdecode(b"\xff.img")
    (directory / name).write_bytes(bytes(1 << 20))
    guest.attach_disk(read_disk(f"{name},raw,xvdb").below(directory))
    params = host.node(f"/local/domain/0/backend/vbd/{domid}/51728/params")
    assert params == b"aio:" + os.fsencode(directory / name)
    guest.stop()


def test_a_disk_is_attached_and_detached_while_its_domain_runs(
    host: Host, guest: Guest, tmp_path: Path
) -> None:
    domid = host.start(guest)
    assert guest.disks is not None
    (tmp_path / "second.img").write_bytes(bytes(4096))
    second = read_disk("second.img,raw,xvdb,ro").below(tmp_path)
    before = host.held()
    path = f"/local/domain/0/backend/vbd/{domid}/51728"
    told: list[str] = []
    for is_asked in (False, True, False):
        told.clear()
        guest.attach_disk(second)
        host.settle()
        assert guest.config.disks[1:] == (second,)
        assert host.node(f"{path}/state") == b"2"
        assert host.node(f"{path}/mode") == b"r"
        with pytest.raises(ConfigError, match="has such a disk already"):
            guest.attach_disk(second)
        # No frontend has it: there is nobody to wait for.
        guest.detach_disk(second.number, (lambda: told.append("gone")) if is_asked else None)
        host.settle()
        assert told == ["gone"] * is_asked
        assert host.node(path) is None
        assert host.node(f"/local/domain/{domid}/device/vbd/51728") is None
        assert host.held() == before
    assert len(guest.config.disks) == 1
    assert host.node(f"{BACK.format(domid)}/state") == b"2"
    guest.stop()


def test_a_disk_that_has_taken_the_place_of_one_asked_back_stays(host: Host, guest: Guest) -> None:
    domid = host.start(guest)
    [disk] = guest.config.disks
    told: list[str] = []
    guest.detach_disk(disk.number, lambda: told.append("gone"))
    guest.detach_disk(disk.number, None)
    assert told == ["gone"]
    guest.attach_disk(disk)
    host.settle()
    assert host.node(f"{BACK.format(domid)}/state") == b"2"
    assert guest.has_disk(disk.number)
    assert not guest.has_disk(51728)
    guest.detach_disk(disk.number, lambda: told.append("gone"))
    guest.stop()
    assert told == ["gone", "gone"]


def test_a_disk_that_cannot_be_shown_leaves_nothing_behind(
    host: Host, tmp_path: Path, guest: Guest
) -> None:
    before = host.held()
    for disks in (
        ("missing.img,raw,xvda,rw",),
        ("disk.img,raw,xvda,rw", ".,raw,xvdb,rw"),
        ("disk.img,raw,xvda,rw", "disk.img,raw,xvdb,rw"),
        ("disk.img,raw,xvda,ro", "disk.img,raw,xvdb,rw"),
    ):
        other = Guest(config(tmp_path, *disks))
        with pytest.raises(ConfigError) as error:
            host.start(other)
        assert len(error.value.faults) == 1
        assert host.held() == before
    host.start(guest)
    guest.stop()
    assert host.held() == before


def test_a_frontend_that_is_wrong_is_named(host: Host, guest: Guest) -> None:
    domid = host.start(guest)
    host.control.pause(domid)
    path = FRONT.format(domid)
    host.store.server.act_as_tool(lambda view: view.write(f"{path}/ring-ref", b"x\0"))
    host.store.server.act_as_tool(lambda view: view.write(f"{path}/state", b"3"))
    host.settle()
    assert host.node(f"{BACK.format(domid)}/state") == b"5"
    assert [str(error) for error in host.broken] == [
        f"{path}: cannot connect: ring-ref is 'x', which is no number"
    ]
    host.store.server.act_as_tool(lambda view: view.write(f"{path}/state", b"6"))
    host.store.server.act_as_tool(lambda view: view.write(f"{path}/state", b"1"))
    host.settle()
    assert host.node(f"{BACK.format(domid)}/state") == b"2"
    guest.stop()


def test_a_mistake_in_a_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(KernelFile().build())
    file = tmp_path / "dom.yaml"
    for disk, what in (
        ("d.img,raw,xvda,rw", f"xenlite: {tmp_path}/d.img: No such file or directory"),
        ("d.img,qcow2,xvda,rw", "xenlite: {}:4: disk: format 'qcow2': only raw images"),
    ):
        file.write_text(f"name: a\nkernel: kernel\nmemory: 4\ndisk: {disk}\n")
        ended = subprocess.run(
            [sys.executable, "-m", "xenlite.cli.main", "run", "-q", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        [line] = [line for line in ended.stderr.splitlines() if "sockets in" not in line]
        assert line.startswith(what.format(file))
