# SPDX-License-Identifier: GPL-2.0-or-later
"""TAP interfaces, where this host lets a process have a network namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xenlite.dom0.tap import TapChannel
from xenlite.errors import ConfigError

ROOT = Path(__file__).parents[3]
OWN_NETWORK = ["unshare", "--map-root-user", "--net"]
USE_TAP = "import os; os.open('/dev/net/tun', os.O_RDWR)"


def test_a_program_of_the_host_reaches_a_network_through_its_kernel() -> None:
    may = subprocess.run(
        [*OWN_NETWORK, sys.executable, "-c", USE_TAP], capture_output=True, check=False, timeout=60
    )
    if may.returncode:
        pytest.skip(f"no TAP in a namespace of our own: {may.stderr.decode().splitlines()[-1]}")
    command = [*OWN_NETWORK, sys.executable, "-m", "tests.support.tap_host"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.stdout, ended.returncode) == ("answered\n", 0), ended.stderr


def test_a_tap_that_may_not_be_had_is_the_users_mistake() -> None:
    """The loopback's name is an interface's that is no TAP: nobody may have it."""
    fds = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(ConfigError) as caught:
        TapChannel("lo")
    line = str(caught.value)
    assert line.startswith("tap lo: "), line
    assert ("ip tuntap add lo mode tap user $USER" in line) or ("/dev/net/tun: " in line)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == fds
