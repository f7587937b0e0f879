# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB, unmodified from Debian's package, comes to its prompt and does what is typed there.

On the way it pins its page tables and leaves the builder's, asks XenStore for disks, polls
everything by yielding, and waits until its console is drained. It has no disks, so its script finds
nothing to boot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNEL = HERE.parents[1] / "build/kernels/grub-i386-xen.bin"


def test_grub_lists_its_devices_and_halts() -> None:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    command = [sys.executable, "-m", "xenlite.cli.main", "run", "-v", "--audit"]
    process = subprocess.Popen(
        [*command, "--timeout", "60", str(HERE / "grub.yaml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        assert process.stdout is not None
        while text not in seen:
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece, seen
            seen += piece
        seen = seen.partition(text)[2]

    wait_for(b"GNU GRUB  version 2.06")
    wait_for(b"grub> ")
    process.stdin.write(b"ls\r")
    process.stdin.flush()
    wait_for(b"(memdisk) (proc)")
    wait_for(b"grub> ")
    process.stdin.write(b"halt\r")
    process.stdin.flush()
    _, said = process.communicate()
    assert process.returncode == 0
    assert b"hypercall" not in said
    assert b"broke" not in said
