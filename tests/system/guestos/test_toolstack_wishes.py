# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos does what control/shutdown asks for, and says that it has heard."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.support.guestos import PROMPT, Machine
from xenlite.abi.x86_32p import SHUTDOWN_poweroff, SHUTDOWN_reboot
from xenlite.dom0.device_store import Dom0Store

WISHES = {"poweroff": SHUTDOWN_poweroff, "halt": SHUTDOWN_poweroff, "reboot": SHUTDOWN_reboot}


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("word", WISHES)
def test_the_toolstack_is_obeyed(word: str, vcpus: int) -> None:
    machine = Machine(f"vcpus={vcpus}")
    machine.wait_for(PROMPT)
    with closing(Dom0Store(machine.hypervisor.link(0), machine.store.server)) as store:
        node = f"/local/domain/{machine.domid}/control/shutdown"
        store.write(node, "dance")
        assert machine.command("echo it goes on") == "it goes on\n"
        assert store.read(node) == "dance"
        store.write(node, word)
        assert machine.wait_for_end() == WISHES[word]
        assert store.read(node) == ""
    assert machine.output == f"guestos: the toolstack asks for {word}\n"
    machine.close()
