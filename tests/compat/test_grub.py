# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB, unmodified from Debian's package, comes to its prompt and does what is typed there.

On the way it pins its page tables and leaves the builder's, asks XenStore for disks, polls
everything by yielding, and waits until its console is drained. It has no disks, so its script finds
nothing to boot.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.terminal import Terminal

HERE = Path(__file__).resolve().parent
KERNEL = HERE.parents[1] / "build/kernels/grub-i386-xen.bin"


def test_grub_lists_its_devices_and_halts() -> None:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    with Terminal(HERE / "grub.yaml", "-v") as terminal:
        terminal.wait_for("GNU GRUB  version 2.06")
        terminal.wait_for("grub> ")
        terminal.type("ls\r")
        terminal.wait_for("(memdisk) (proc)")
        terminal.wait_for("grub> ")
        terminal.type("halt\r")
        status, _, said = terminal.end()
        assert status == 0
        assert "hypercall" not in said
        assert "broke" not in said
