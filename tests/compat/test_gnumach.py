# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU Mach, unmodified from Debian's package, comes up to where it asks the store for its disks.

It proves what our own kernel cannot: that the ABI agrees with somebody else's reading of it. On the
way it builds and pins its page tables, leaves the builder's, gives frames back, sets a GDT, an LDT,
traps and stacks, returns from traps with a native iret, and takes a grant table, debug registers
and two virtual interrupts. Then it yields until the store answers, and no store is built yet.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from xenlite.abi.x86_32p import (
    SIZEOF_XSD_SOCKMSG,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    XENSTORE_DOMAIN_INTERFACE_REQ,
    XENSTORE_DOMAIN_INTERFACE_REQ_PROD,
    XS_DIRECTORY,
    EVTCHNSTAT_virq,
    XsdSockmsg,
)
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.config import load
from xenlite.toolstack.lifecycle import Guest

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "gnumach.yaml"
KERNEL = HERE.parents[1] / "build/kernels/gnumach-1.8-xen-486.gz"
STORE_GRANT = 1
SECOND_NS = 10**9


def run(*words: str, seconds: int = 30) -> subprocess.CompletedProcess[str]:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    command = [sys.executable, "-m", "xenlite.cli.main", "run", "-v", "--audit"]
    return subprocess.run(
        [*command, "--timeout", str(seconds), str(CONFIG), *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_gnu_mach_prints_its_banner_and_nothing_it_asks_is_refused() -> None:
    ended = run(seconds=5)
    lines = [line for line in ended.stdout.splitlines() if line]
    assert lines[0].startswith("GNU Mach 1.8")
    assert lines[1] == "Running on xen-3.0-x86_32p."
    assert any("DIRECTMAP: pages: 12288 (48M)" in line for line in lines)
    assert ended.returncode == 124
    assert "hypercall" not in ended.stderr
    assert " = -E" not in ended.stderr


def test_gnu_mach_asks_the_store_for_its_disks() -> None:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    hypervisor = Hypervisor(256 << 20)
    try:
        control, link = hypervisor.control(), hypervisor.link(0)
        mach = Guest(load(CONFIG, []))
        domid = mach.start(control, link, sink=_ignore, broken=_fail).domid
        store = link.map_grant(domid, STORE_GRANT, writable=False)
        deadline_ns = hypervisor.machine.clock.monotonic_ns() + 30 * SECOND_NS
        asked = lambda: bool(store.read_u32(XENSTORE_DOMAIN_INTERFACE_REQ_PROD))  # noqa: E731
        assert hypervisor.run(asked, deadline_ns)
        header = store.read(XENSTORE_DOMAIN_INTERFACE_REQ, SIZEOF_XSD_SOCKMSG)
        request = XsdSockmsg.unpack(header)
        path = store.read(XENSTORE_DOMAIN_INTERFACE_REQ + SIZEOF_XSD_SOCKMSG, request.len)
        assert (request.type, path) == (XS_DIRECTORY, b"device/vbd\0")
        channels = map(hypervisor.domains[domid].events.channel, range(32))
        virqs = {
            channel.virq
            for channel in channels
            if channel is not None and channel.state.value == EVTCHNSTAT_virq
        }
        assert virqs == {VIRQ_TIMER, VIRQ_DEBUG}
        link.unmap_grant(store)
        assert control.audit() == []
        mach.stop()
    finally:
        hypervisor.close()


def test_a_store_to_a_live_l2_is_a_page_fault_without_the_assist() -> None:
    """As on Xen, where this Mach panics before its console is up.

    It passes a pointer to the old shutdown call, and Xen takes its low byte: any reason is right.
    """
    ended = run("assists=")
    assert ended.stdout == ""
    assert 16 < ended.returncode <= 123


def _ignore(_domid: int, _text: bytes) -> None:
    """Take what the console prints."""


def _fail(error: Exception) -> None:
    raise error
