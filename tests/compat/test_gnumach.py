# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU Mach, unmodified from Debian's package, boots until it looks for its first program.

It proves what our own kernel cannot: that the ABI agrees with somebody else's reading of it. On the
way it builds and pins its page tables, leaves the builder's, gives frames back, sets a GDT, an LDT,
traps and stacks, returns from traps with a native iret, and takes a grant table, debug registers
and two virtual interrupts. Then it asks XenStore for disks and network cards, which it has none of,
and for its bootstrap program, which nobody has given it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from xenlite.abi.x86_32p import VIRQ_DEBUG, VIRQ_TIMER, EVTCHNSTAT_virq
from xenlite.dom0.xenstore.store import XenStore
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.config import load
from xenlite.toolstack.lifecycle import Guest

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


def test_gnu_mach_binds_its_virtual_interrupts() -> None:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    hypervisor = Hypervisor(256 << 20)
    try:
        control, link = hypervisor.control(), hypervisor.link(0)
        store = XenStore(link, lambda _domid, error: _fail(error))
        mach = Guest(load(CONFIG, []))
        domid = mach.start(control, link, store, sink=_ignore, broken=_fail).domid
        deadline_ns = hypervisor.machine.clock.monotonic_ns() + 30 * SECOND_NS
        assert hypervisor.run(lambda: bool(control.ended()), deadline_ns)
        channels = map(hypervisor.domains[domid].events.channel, range(32))
        virqs = {
            channel.virq
            for channel in channels
            if channel is not None and channel.state.value == EVTCHNSTAT_virq
        }
        assert virqs == {VIRQ_TIMER, VIRQ_DEBUG}
        assert control.audit() + store.audit() == []
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
