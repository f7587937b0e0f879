# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU Mach, unmodified from Debian's package, boots until it looks for its first program.

It proves what our own kernel cannot: that the ABI agrees with somebody else's reading of it. On the
way it builds and pins its page tables, leaves the builder's, gives frames back, sets a GDT, an LDT,
traps and stacks, returns from traps with a native iret, and takes a grant table, debug registers
and two virtual interrupts. Then it asks XenStore for disks and network cards, connects to a card if
it has one, and asks for its bootstrap program, which nobody has given it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from xenlite.abi.x86_32p import VIRQ_DEBUG, VIRQ_TIMER, EVTCHNSTAT_virq
from xenlite.dom0 import ethernet
from xenlite.dom0.vif import Vif
from xenlite.dom0.xenstore.store import XenStore
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.config import load
from xenlite.toolstack.lifecycle import Guest
from xenlite.toolstack.networks import Networks
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.vif_config import service_mac

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "gnumach.yaml"
KERNEL = HERE.parents[1] / "build/kernels/gnumach-1.8-xen-486.gz"
SECOND_NS = 10**9


def run(*words: str) -> subprocess.CompletedProcess[str]:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    command = [sys.executable, "-m", "xenlite.cli.main", "run", "-v", "--audit"]
    return subprocess.run(
        [*command, "--timeout", "30", str(CONFIG), *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_gnu_mach_prints_its_banner_and_nothing_it_asks_is_refused() -> None:
    ended = run()
    lines = [line for line in ended.stdout.splitlines() if line]
    assert lines[0].startswith("GNU Mach 1.8")
    assert lines[1] == "Running on xen-3.0-x86_32p."
    assert any("DIRECTMAP: pages: 12288 (48M)" in line for line in lines)
    assert 16 < ended.returncode <= 123
    assert "hypercall" not in ended.stderr
    assert " = -E" not in ended.stderr


def test_gnu_mach_hears_from_the_store_that_it_has_no_disks() -> None:
    ended = run()
    lines = [line for line in ended.stdout.splitlines() if line]
    assert "hd: No block device (ENOENT). Hoping you don't need any" in lines
    assert "eth: No net device (ENOENT). Hoping you don't need any" in lines
    assert lines[-1].startswith("panic ")
    assert "No bootstrap code loaded with the kernel" in lines[-1]


@dataclass
class Mach:
    """GNU Mach in this process, when it has panicked for want of programs."""

    hypervisor: Hypervisor
    store: XenStore
    networks: Networks
    domid: int
    console: bytes

    def node(self, path: str) -> bytes:
        return self.store.server.act_as_tool(lambda view: view.read(path))


@contextmanager
def panicked(*words: str) -> Iterator[Mach]:
    """Boot Mach here; what it broke is an error, and so is what an audit finds at the end."""
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    with ExitStack() as undo:
        hypervisor = Hypervisor(256 << 20)
        undo.callback(hypervisor.close)
        control, link = hypervisor.control(), hypervisor.link(0)
        store = XenStore(link, lambda _domid, error: _fail(error))
        poller = Poller(link)
        undo.callback(poller.close)
        networks = Networks(link, poller, hypervisor.machine.clock.wall_ns, _never)
        undo.callback(networks.close)
        lines: list[bytes] = []
        guest = Guest(load(CONFIG, words))
        domid = guest.start(
            control,
            link,
            store,
            sink=lambda _domid, text: lines.append(text),
            broken=_fail,
            networks=lambda: networks,
        ).domid
        undo.callback(guest.stop)
        deadline_ns = hypervisor.machine.clock.monotonic_ns() + 30 * SECOND_NS
        assert hypervisor.run(lambda: bool(control.ended()), deadline_ns)
        assert guest.console is not None
        guest.console.pump()
        yield Mach(hypervisor, store, networks, domid, b"".join(lines))
        assert control.audit() + store.audit() == []


def test_gnu_mach_binds_its_virtual_interrupts() -> None:
    with panicked() as mach:
        channels = map(mach.hypervisor.domains[mach.domid].events.channel, range(32))
        virqs = {
            channel.virq
            for channel in channels
            if channel is not None and channel.state.value == EVTCHNSTAT_virq
        }
        assert virqs == {VIRQ_TIMER, VIRQ_DEBUG}


def test_gnu_machs_network_frontend_connects_and_takes_frames() -> None:
    """That is as far as it goes without programs: it sends nothing by itself."""
    mac = "00:16:3e:01:02:03"
    with panicked(f"vif=mac={mac}") as mach:
        assert f"eth0: dom0's VIF 0 {mac}".encode() in mach.console
        for path in (f"{mach.domid}/device/vif/0", f"0/backend/vif/{mach.domid}/0"):
            assert mach.node(f"/local/domain/{path}/state") == b"4"
        bridge = mach.networks.network("xenbr0").bridge
        [vif] = [plug._station for plug in bridge.plugs if plug.name == "gnumach.0"]
        assert isinstance(vif, Vif)
        services = bridge.plugs[0]
        frames = [
            ethernet.BROADCAST + service_mac("xenbr0") + b"\x08\x00" + bytes([n]) for n in range(8)
        ]
        services.send(frames)
        assert (vif.counters.rx_packets, vif.counters.rx_dropped) == (8, 0)


def test_a_store_to_a_live_l2_is_a_page_fault_without_the_assist() -> None:
    """As on Xen, where this Mach panics before its console is up.

    It passes a pointer to the old shutdown call, and Xen takes its low byte: any reason is right.
    """
    ended = run("assists=")
    assert ended.stdout == ""
    assert 16 < ended.returncode <= 123


def _never(line: str) -> None:
    raise AssertionError(line)


def _fail(error: Exception) -> None:
    raise error
