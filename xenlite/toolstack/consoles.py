# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's consoles: their outer ends, which stay while it restarts, and what they join.

    dom0/console.py ──> Channel ──> PTY, log, socket; the terminal for the first one
                    <──         <── what is typed there

A channel is one console's outside. Its PTY is always there, for `xenlite console`; its backend only
while the domain is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.dom0.console import Outer
from xenlite.dom0.rolling_file import RollingFile
from xenlite.toolstack import store_nodes
from xenlite.toolstack.console_config import FIRST_CONSOLE, ConsoleConfig, Output
from xenlite.toolstack.console_ends import ConsoleSocket, Pty
from xenlite.toolstack.console_log import ConsoleTail

if TYPE_CHECKING:
    from xenlite.dom0.device_status import DeviceStatus
    from xenlite.dom0.xenstore.store import XenStore
    from xenlite.doors import Link
    from xenlite.errors import PeerError
    from xenlite.toolstack.poller import Poller

MAX_WAITING_INPUT: Final = 64 << 10


class Backend(Protocol):
    """What a channel needs of the domain's end of it."""

    @property
    def waiting_bytes(self) -> int:
        """Return how much input the guest has not had room for."""

    def feed(self, data: bytes) -> None:
        """Give the guest input."""

    def status(self, number: int) -> DeviceStatus:
        """Return what it is doing, as console ``number``."""


class Channel:
    """One console's outside."""

    def __init__(
        self,
        config: ConsoleConfig,
        poller: Poller,
        *,
        terminal: Callable[[bytes], None],
        say: Callable[[str], None],
    ) -> None:
        """Open what it is made of. Raises ConfigError for a log or socket that can't be."""
        self.config = config
        self.backend: Backend | None = None
        self.pty: Pty | None = None
        self.tail = ConsoleTail()
        self.outer = Outer(self.write, rate=config.rate, has_room=self._has_room)
        self._writes: list[Callable[[bytes], None]] = []
        self._looks: list[Callable[[], None]] = []
        with ExitStack() as undo:
            if config.output is Output.TERMINAL:
                self._writes.append(terminal)
            if config.log is not None:
                log = RollingFile(config.log, "log", "console", say)
                undo.callback(log.close)
                self._writes.append(log.write)
            if config.socket is not None:
                from xenlite.toolstack.socket_dir import listen

                listener = listen(config.socket)
                undo.callback(config.socket.unlink, missing_ok=True)
                self._join(ConsoleSocket(listener, poller, self.feed, self.wants_input), undo)
            try:
                self.pty = Pty(poller, self.feed, self.wants_input)
            except OSError as error:  # a host without /dev/pts: the rest is as good
                say(f"no PTY for a console: {error.strerror}")
            else:
                self._join(self.pty, undo)
            self._undo = undo.pop_all()

    @property
    def tty(self) -> str:
        """Return the path of its PTY; empty where there is none."""
        return "" if self.pty is None else self.pty.path

    def join(self, backend: Backend, undo: ExitStack) -> None:
        """Give what is typed to a domain's end, until ``undo``."""
        self.backend = backend
        self.tail = ConsoleTail()
        undo.callback(self._part)

    def _part(self) -> None:
        self.backend = None

    def write(self, data: bytes) -> None:
        """Take output of the guest's."""
        self.tail.write(data)
        for write in self._writes:
            write(data)

    def feed(self, data: bytes) -> None:
        """Give the guest input; between two domains nobody is there to hear."""
        if self.backend is not None:
            self.backend.feed(data)

    def wants_input(self) -> bool:
        """Tell whether the guest keeps up with what is typed."""
        return self.backend is None or self.backend.waiting_bytes < MAX_WAITING_INPUT

    def close(self) -> None:
        """Hang up."""
        self._undo.close()

    def _join(self, end: Pty | ConsoleSocket, undo: ExitStack) -> None:
        undo.callback(end.close)
        self._writes.append(end.write)
        self._looks.append(end.look)

    def _has_room(self) -> None:
        for look in self._looks:
            look()


def open_channels(
    configs: Sequence[ConsoleConfig],
    poller: Poller,
    undo: ExitStack,
    *,
    terminal: Callable[[bytes], None],
    say: Callable[[str], None],
) -> list[Channel]:
    """Open a guest's consoles; ``terminal`` takes the output of the first. Raises ConfigError."""
    channels = []
    for config in configs or (FIRST_CONSOLE,):
        channel = Channel(config, poller, terminal=terminal, say=say)
        undo.callback(channel.close)
        channels.append(channel)
    return channels


def attach_devices(
    channels: Sequence[Channel],
    link: Link,
    store: XenStore,
    domid: int,
    undo: ExitStack,
    broken: Callable[[PeerError], None],
) -> None:
    """Show a domain the consoles behind the first, from number 1 on, before it runs."""
    if not channels:
        return
    from xenlite.dom0.backend_device import device_paths
    from xenlite.dom0.console_device import ConsoleDevice
    from xenlite.dom0.device_store import Dom0Store

    nodes = Dom0Store(link, store.server)
    undo.callback(nodes.close)
    for number, channel in enumerate(channels, 1):
        undo.callback(store.remove, store_nodes.device_paths(domid, "console", number))
        store.put(store_nodes.console_nodes(domid, number, channel.tty, channel.config.name))
        paths = device_paths("console", link.domid, domid, number)
        device = ConsoleDevice(link, nodes, paths, channel.outer, broken)
        undo.callback(device.close)
        channel.join(device, undo)
