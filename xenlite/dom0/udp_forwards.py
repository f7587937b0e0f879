# SPDX-License-Identifier: GPL-2.0-or-later
"""Which port of the service host stands for which program of the real host.

A program that sends to a forward gets a port of its own there, so that each of several programs
gets the answers to what it sent. There are MAX_PROGRAMS; one more costs its port the one that has
been silent longest. A guest reaches a program only from the address and port that the forward
leads to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.dom0.ipv4 import Datagram

FIRST_PORT: Final = 50000  # no service has it (RFC 6335), and tcpdump knows none that does
MAX_PROGRAMS: Final = 1024

Program = tuple[str, int]
"""A program of the host, by its socket's address."""


@dataclass(frozen=True, slots=True)
class ForwardTarget:
    """Where a forward leads to: a guest's IPv4 address and UDP port."""

    address: bytes
    port: int


class UdpForwards:
    """The forwards of one network. ``send(forward, program, payload)`` reaches a program."""

    def __init__(
        self,
        targets: Sequence[ForwardTarget],
        send: Callable[[int, Program, bytes], None],
    ) -> None:
        self.targets = tuple(targets)
        self._send = send
        # By both; the one that has been silent longest is the first.
        self._ports: dict[tuple[int, Program], int] = {}
        self._programs: dict[int, tuple[int, Program]] = {}

    @property
    def guests(self) -> set[bytes]:
        """The addresses that forwards lead to."""
        return {target.address for target in self.targets}

    def port_of(self, forward: int, program: Program) -> int:
        """Return the port that stands for a program which has just sent to a forward."""
        pair = (forward, program)
        port = self._ports.pop(pair, None)
        if port is None:
            port = FIRST_PORT + len(self._ports)
            if len(self._ports) == MAX_PROGRAMS:
                port = self._ports.pop(next(iter(self._ports)))
            self._programs[port] = pair
        self._ports[pair] = port
        return port

    def to_program(self, sender: bytes, datagram: Datagram) -> None:
        """Hand on what a guest has sent to a port, if that stands for a program it may answer."""
        pair = self._programs.get(datagram.destination_port)
        if pair is not None:
            forward, program = pair
            if self.targets[forward] == ForwardTarget(sender, datagram.source_port):
                self._send(forward, program, datagram.payload)
