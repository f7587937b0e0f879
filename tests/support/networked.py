# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with networks and no guests, in the test's own process."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Sequence

from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.network_config import read_network
from xenlite.toolstack.networks import Network, Networks
from xenlite.toolstack.poller import Poller

PATIENCE_NS = 60 * 10**9


def free_port() -> int:
    """Return a UDP port that is nobody's now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Networked:
    """A hypervisor and its networks; ``said`` are the lines for the user."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(16 << 20)
        self.link = self.hypervisor.link(0)
        self.said: list[str] = []
        self._poller = Poller(self.link)
        clock = self.hypervisor.machine.clock
        self.networks = Networks(self.link, self._poller, clock.wall_ns, self.said.append)

    def make(self, text: str) -> Network:
        """Make a network as it is described."""
        config = read_network(text)
        self.networks.declare(config)
        return self.networks.network(config.name)

    def run(self, until: Callable[[], bool]) -> None:
        """Let the loop run until something is so."""
        deadline_ns = self.link.now_ns() + PATIENCE_NS
        assert self.hypervisor.run(until, deadline_ns), "it was never so"

    def settle(self) -> None:
        """Do what has been put off."""
        for _ in range(3):
            self.hypervisor.run(lambda: True)

    def while_running(self, command: Sequence[str]) -> str:
        """Serve while a program runs; return its output."""
        program = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output: list[str] = []

        def collect() -> None:
            output.append(program.communicate()[0])
            self.hypervisor.kick()

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            self.run(lambda: bool(output))
        finally:
            program.kill()
            thread.join()
        assert program.returncode == 0, output[0]
        return output[0]

    def close(self) -> None:
        """End all of it."""
        self.networks.close()
        self._poller.close()
        self.hypervisor.close()
