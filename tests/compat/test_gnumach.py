# SPDX-License-Identifier: GPL-2.0-or-later
"""GNU Mach, unmodified from Debian's package, comes up to where it needs a grant table.

It proves what our own kernel cannot: that the ABI agrees with somebody else's reading of it. On the
way to its banner it builds and pins its page tables, leaves the builder's, gives frames back, sets
a GDT, an LDT, traps and stacks, and returns from traps with a native iret.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNEL = HERE.parents[1] / "build/kernels/gnumach-1.8-xen-486.gz"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    assert KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    command = [sys.executable, "-m", "xenlite.cli.main", "run", "--timeout", "30", "--audit"]
    return subprocess.run(
        [*command, str(HERE / "gnumach.yaml"), *words], capture_output=True, text=True, check=False
    )


def test_gnu_mach_prints_its_banner() -> None:
    ended = run()
    lines = [line for line in ended.stdout.splitlines() if line]
    assert lines[0].startswith("GNU Mach 1.8")
    assert lines[1] == "Running on xen-3.0-x86_32p."
    assert any("DIRECTMAP: pages: 12288 (48M)" in line for line in lines)
    # Grant tables are not built yet, and Mach cannot do without.
    assert any("hyp_grant_init: setup grant table error -38" in line for line in lines)


def test_gnu_mach_gives_a_reason_of_its_own_when_it_halts() -> None:
    """It passes a pointer to the old shutdown call; Xen takes its low byte."""
    assert 16 < run().returncode <= 123


def test_a_store_to_a_live_l2_is_a_page_fault_without_the_assist() -> None:
    """As on Xen, where this Mach panics before its console is up."""
    ended = run("assists=")
    assert ended.stdout == ""
    assert 16 < ended.returncode <= 123
