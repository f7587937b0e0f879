# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU, unmodified from Debian, joins a network through its ``-netdev dgram``.

Its machine has nothing to boot from, so that the firmware of its network card (iPXE) asks by DHCP:
somebody else's client for our service host, behind somebody else's socket.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.networked import Networked, free_port
from xenlite.dom0 import arp, ethernet

MAC = bytes.fromhex("020000000042")


class Announcement:
    """Hears the guest say, by ARP, which address it has taken."""

    def __init__(self) -> None:
        self.addresses: list[bytes] = []

    def deliver(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            if frame[6:14] == MAC + ethernet.ETHERTYPE_ARP.to_bytes(2, "big"):
                self.addresses.append(arp.parse(frame[14:]).sender)


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_qemus_firmware_gets_an_address_by_dhcp(tmp_path: Path, kind: str) -> None:
    assert shutil.which("qemu-system-i386"), "apt-get install qemu-system-x86"
    if kind == "unix":
        ours, theirs = f"{tmp_path}/xenlite.sock", f"{tmp_path}/qemu.sock"
        ends = f"local.path={theirs},remote.path={ours}"
    else:
        here, there = free_port(), free_port()
        ours, theirs = f"127.0.0.1:{here}", f"127.0.0.1:{there}"
        ends = f"local.host=127.0.0.1,local.port={there},remote.host=127.0.0.1,remote.port={here}"
    host = Networked()
    network = host.make(f"name=xenbr0,dgram=local={ours} remote={theirs}")
    heard = Announcement()
    network.bridge.capture(heard)
    command = [
        *("qemu-system-i386", "-nodefaults", "-display", "none", "-m", "32", "-boot", "n"),
        *("-netdev", f"dgram,id=n,local.type={kind},remote.type={kind},{ends}"),
        *("-device", f"virtio-net-pci,netdev=n,mac={ethernet.format_address(MAC)}"),
    ]
    qemu = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        host.run(lambda: bool(heard.addresses) or qemu.poll() is not None)
    finally:
        qemu.kill()
        said = qemu.communicate()[1].decode()
    assert heard.addresses, said
    assert network.services is not None
    address = network.services.host.leases.address(MAC)
    assert address is not None
    assert heard.addresses[0] == address.packed
    host.close()
