# SPDX-License-Identifier: GPL-2.0-or-later
"""The service host's place at a bridge, and the host's UDP sockets that are forwarded to guests.

Its answers wait until the bridge has finished with what they answer; of those that wait there are
MAX_WAITING at most. They are sent at the expense of whoever asked.
"""

from __future__ import annotations

import select
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from xenlite.dom0.dgram import HostAddress, bound_to_address
from xenlite.dom0.host_port import BATCH, MAX_FRAME_BYTES
from xenlite.dom0.service_host import ServiceHost
from xenlite.dom0.udp_forwards import ForwardTarget, UdpForwards

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from ipaddress import IPv4Interface

    from xenlite.dom0.host_port import Poller
    from xenlite.dom0.switch import Bridge
    from xenlite.dom0.udp_forwards import Program
    from xenlite.doors import Link

MAX_WAITING: Final = 4096


@dataclass(frozen=True, slots=True)
class Forward:
    """A UDP address of the host, and the guest's that it leads to."""

    host: HostAddress
    target: ForwardTarget


class ServicePort:
    """A service host with its sockets, plugged into a bridge until ``close``."""

    def __init__(
        self,
        link: Link,
        bridge: Bridge,
        poller: Poller,
        mac: bytes,
        interface: IPv4Interface,
        forwards: Sequence[Forward],
    ) -> None:
        """Open the sockets. Raises ConfigError."""
        self.dropped = 0
        self._link = link
        self._poller = poller
        self._waiting = 0  # answers
        with ExitStack() as undo:
            self._sockets: list[socket.socket] = []
            for forward in forwards:
                self._sockets.append(undo.enter_context(bound_to_address(forward.host)))
            targets = UdpForwards([forward.target for forward in forwards], self._to_program)
            self.host = ServiceHost(mac, interface, targets, link.now_ns)
            self._plug = bridge.plug("services", self, mac, self._lost)
            undo.callback(self._plug.unplug)
            for number, opened in enumerate(self._sockets):
                poller.watch(opened.fileno(), select.EPOLLIN, partial(self._from_programs, number))
                undo.callback(poller.forget, opened.fileno())
            self._undo = undo.pop_all()

    @property
    def addresses(self) -> list[HostAddress]:
        """Where the forwards' sockets are, in the forwards' order."""
        return [HostAddress(*opened.getsockname()) for opened in self._sockets]

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take frames from the bridge; what answers them is sent later."""
        answers = self.host.answer(frames)
        sent = answers[: MAX_WAITING - self._waiting]
        self.dropped += len(answers) - len(sent)
        if sent:
            self._waiting += len(sent)
            self._link.defer(partial(self._send, sent), charge=self._link.payer())

    def _lost(self) -> dict[str, int]:
        return {**self.host.dropped, "no room": self.dropped}

    def close(self) -> None:
        """Leave the bridge and close the sockets."""
        self._undo.close()

    def _send(self, answers: Sequence[bytes]) -> None:
        self._waiting -= len(answers)
        self._plug.send(answers)

    def _from_programs(self, forward: int) -> None:
        """Bring guests what programs have sent to a forward, a batch of it."""
        opened = self._sockets[forward]
        frames: list[bytes] = []
        for _ in range(BATCH):
            try:
                payload, program = opened.recvfrom(MAX_FRAME_BYTES)
            except OSError:  # nothing more; or a program that we sent to is not there
                break
            frames += self.host.from_program(forward, program, payload)
        self._plug.send(frames)
        self._poller.want(opened.fileno(), select.EPOLLIN)

    def _to_program(self, forward: int, program: Program, payload: bytes) -> None:
        try:
            self._sockets[forward].sendto(payload, program)
        except OSError:  # it has gone, or does not read
            self.dropped += 1
