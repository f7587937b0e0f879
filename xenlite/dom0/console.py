# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve a domain's consoles: take what it prints, give it what is typed.

``ConsoleProtocol`` knows the shared page and no event channel; ``Console`` joins it to a ``Link``.
The initial console is such a page, which the builder made; others are devices
(``console_device.py``), whose frontends connect and leave as every device's do.

States of a console::

    OPEN ------ guest breaks the ring --> BROKEN    the ring is left alone, the log is kept
      |                                      |
      +-------------- close() --------------+----> CLOSED   page and port are given back

The ring is drained whenever the guest notifies, whether or not anybody looks: early kernels wait
until it is empty. Per event no more is taken than the ring holds, so a guest that prints without
end cannot hold Dom0. With a rate, what is over it stays in the ring, and the guest waits.

Source: public/io/console.h, xencons_interface.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
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
    from xenlite.dom0.device_status import DeviceStatus
    from xenlite.dom0.rate import Rate, RateLimit
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

    def indexes(self) -> dict[str, int]:
        """Return where everybody stands."""
        (in_cons, in_prod), (out_cons, out_prod) = self._in.indexes(), self._out.indexes()
        return {
            "in_cons": in_cons,
            "in_prod": in_prod,
            "out_cons": out_cons,
            "out_prod": out_prod,
        }

    def step(self, *, takes_output: bool = True) -> tuple[bytes, bool]:
        """Move what can be moved; return the output, and whether the guest must be told.

        Raises PeerError where the guest's indexes are impossible.
        """
        output = self._out.take() if takes_output else b""
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


class Outer:
    """What a console has outside its domain: where output goes, and news for who gives input."""

    def __init__(
        self,
        sink: Callable[[bytes], None],
        *,
        rate: Rate | None = None,
        has_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Have output go to ``sink``; ``has_room`` is called whenever no input waits any more."""
        self.sink = sink
        self.has_room = has_room
        self._rate = rate
        self._limit: RateLimit | None = None

    def limit(self, now_ns: int) -> RateLimit | None:
        """Return what limits the output; it goes on when a frontend connects again."""
        if self._limit is None and self._rate is not None:
            from xenlite.dom0.rate import RateLimit  # most consoles have no rate

            self._limit = RateLimit(self._rate, now_ns)
        return self._limit


class Console:
    """One console behind a ``Link``, while its domain has one; output goes out as it is written.

    ``broken`` is told once if the guest breaks the protocol; its domain lives on.
    """

    def __init__(
        self,
        link: Link,
        domid: int,
        ref: int,
        remote_port: int,
        outer: Outer,
        broken: Callable[[PeerError], None],
    ) -> None:
        """Join page and port. Raises Refused where they are not offered, PeerError."""
        self._link = link
        self._domid = domid
        self._outer = outer
        self._broken = broken
        self._limit = outer.limit(link.now_ns())
        self._is_resting = False
        self._printed_bytes = 0
        self.state = ConsoleState.OPEN
        with ExitStack() as undo:
            page = link.map_grant(domid, ref, writable=True)
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

    def status(self, number: int) -> DeviceStatus:
        """Return what it is doing, as the initial console, whose number is 0."""
        from xenlite.dom0.device_status import DeviceStatus

        return DeviceStatus(f"console {number}", None, None, self.indexes(), self.counts())

    def indexes(self) -> dict[str, int]:
        """Return the rings' indexes as they stand; none where the page is given back."""
        return {} if self.state is ConsoleState.CLOSED else self._protocol.indexes()

    def counts(self) -> dict[str, int]:
        """Return what is going on, and what has been."""
        return {
            "port": self._port,
            "input waiting": self.waiting_bytes,
            "printed": self._printed_bytes,
        }

    def start(self) -> None:
        """Take what was printed before anybody listened."""
        self.pump()

    def feed(self, data: bytes) -> None:
        """Give the guest input, now or as soon as it has room."""
        self._protocol.queue(data)
        self.pump()

    def pump(self) -> None:
        """Move what can be moved and the rate allows, and tell the guest."""
        self._move_or_break(takes_output=self._may_print())

    def drain(self) -> None:
        """Take what is printed, whatever the rate: it is the last."""
        self._move_or_break(takes_output=True)

    def close(self, drained: Callable[[], None] = lambda: None) -> None:
        """Take the last output and give page and port back."""
        with suppress(PeerError):  # too late to matter to anybody
            self._move(takes_output=True)
        self.state = ConsoleState.CLOSED
        self._undo.close()
        drained()

    def _move_or_break(self, *, takes_output: bool) -> None:
        try:
            self._move(takes_output=takes_output)
        except PeerError as error:
            self.state = ConsoleState.BROKEN
            self._broken(error)

    def _move(self, *, takes_output: bool) -> None:
        """Move what can be moved. Raises PeerError."""
        if self.state is not ConsoleState.OPEN:
            return
        output, moved = self._protocol.step(takes_output=takes_output)
        if output:
            self._printed_bytes += len(output)
            if self._limit is not None:
                self._limit.spend(len(output))
            self._outer.sink(output)
        if moved:
            self._link.notify(self._port)
        if not self._protocol.waiting_bytes:
            self._outer.has_room()

    def _may_print(self) -> bool:
        """Tell whether the rate allows more; where not, look again when it does."""
        if self._limit is None or self._limit.credit(self._link.now_ns()) > 0:
            return True
        if not self._is_resting:
            self._is_resting = True
            self._link.call_at(self._limit.next_ns(), self._rested, charge=self._domid)
        return False

    def _rested(self) -> None:
        self._is_resting = False
        self.pump()
