# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve one domain's console: take what it prints, give it what is typed.

``ConsoleProtocol`` knows the shared page and no event channel; ``Console`` joins it to a ``Link``.
States of a console::

    OPEN ------ guest breaks the ring --> BROKEN    the ring is left alone, the log is kept
      |                                      |
      +-------------- close() --------------+----> CLOSED   page and port are given back

The ring is drained whenever the guest notifies, whether or not anybody looks: early kernels wait
until it is empty. Per event no more is taken than the ring holds, so a guest that prints without
end cannot hold Dom0.

Source: public/io/console.h, xencons_interface.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    GNTTAB_RESERVED_CONSOLE,
    XENCONS_INTERFACE_IN,
    XENCONS_INTERFACE_IN_CONS,
    XENCONS_INTERFACE_IN_PROD,
    XENCONS_INTERFACE_OUT,
    XENCONS_INTERFACE_OUT_CONS,
    XENCONS_INTERFACE_OUT_PROD,
)
from xenlite.dom0.ring import Consumer, Place, Producer
from xenlite.errors import PeerError

if TYPE_CHECKING:
    from xenlite.dom0.ring import Page
    from xenlite.doors import Link

IN: Final = Place(
    "console input",
    data=XENCONS_INTERFACE_IN,
    size=XENCONS_INTERFACE_OUT - XENCONS_INTERFACE_IN,
    cons=XENCONS_INTERFACE_IN_CONS,
    prod=XENCONS_INTERFACE_IN_PROD,
)
OUT: Final = Place(
    "console output",
    data=XENCONS_INTERFACE_OUT,
    size=XENCONS_INTERFACE_IN_CONS - XENCONS_INTERFACE_OUT,
    cons=XENCONS_INTERFACE_OUT_CONS,
    prod=XENCONS_INTERFACE_OUT_PROD,
)


class ConsoleState(Enum):
    """What a console is doing; the module's head draws it."""

    OPEN = "open"
    BROKEN = "broken"
    CLOSED = "closed"


class ConsoleProtocol:
    """Dom0's end of the shared page, and the input that waits for room there."""

    def __init__(self, page: Page) -> None:
        self._out = Consumer(page, OUT)
        self._in = Producer(page, IN)
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0

    def queue(self, data: bytes) -> None:
        """Keep input until the guest has room for it."""
        if data:
            self._waiting.append(data)
            self.waiting_bytes += len(data)

    def step(self) -> tuple[bytes, bool]:
        """Move what can be moved; return the output, and whether the guest must be told.

        Raises PeerError where the guest's indexes are impossible.
        """
        output = self._out.take()
        return output, self._give() or bool(output)

    def _give(self) -> bool:
        given = False
        while self._waiting:
            data = self._waiting[0]
            count = self._in.put(data)
            self.waiting_bytes -= count
            given = given or count > 0
            if count < len(data):
                self._waiting[0] = data[count:]
                break
            self._waiting.popleft()
        return given


class Console:
    """One domain's console behind a ``Link``; output goes to ``sink`` as the guest wrote it.

    ``broken`` is told once if the guest breaks the protocol; its domain lives on.
    """

    def __init__(
        self,
        link: Link,
        domid: int,
        remote_port: int,
        *,
        sink: Callable[[bytes], None],
        broken: Callable[[PeerError], None],
    ) -> None:
        self._link = link
        self._sink = sink
        self._broken = broken
        self.state = ConsoleState.OPEN
        with ExitStack() as undo:
            page = link.map_grant(domid, GNTTAB_RESERVED_CONSOLE, writable=True)
            undo.callback(link.unmap_grant, page)
            self._protocol = ConsoleProtocol(page)
            self._port = link.bind_interdomain(domid, remote_port)
            undo.callback(link.close, self._port)
            link.on_event(self._port, self.pump)
            self._undo = undo.pop_all()

    @property
    def waiting_bytes(self) -> int:
        """Return how much input the guest has not had room for."""
        return self._protocol.waiting_bytes

    def feed(self, data: bytes) -> None:
        """Give the guest input, now or as soon as it has room."""
        self._protocol.queue(data)
        self.pump()

    def pump(self) -> None:
        """Move what can be moved, and tell the guest."""
        if self.state is not ConsoleState.OPEN:
            return
        try:
            output, moved = self._protocol.step()
        except PeerError as error:
            self.state = ConsoleState.BROKEN
            self._broken(error)
            return
        if output:
            self._sink(output)
        if moved:
            self._link.notify(self._port)

    def close(self) -> None:
        """Take the last output and give page and port back."""
        self.pump()
        self.state = ConsoleState.CLOSED
        self._undo.close()
