# SPDX-License-Identifier: GPL-2.0-or-later
"""A way from a bridge to the host: what one descriptor carries, frame by frame.

What the host has no room for, or nobody there takes, is dropped and counted; so is what comes and
is no frame. At most BATCH frames come in at once, so that a host program that sends without end
leaves the guests their time.
"""

from __future__ import annotations

import errno
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.dom0.switch import Bridge

BATCH: Final = 64
MAX_FRAME_BYTES: Final = 1 << 16  # as of a card that splits what it is given


class Poller(Protocol):
    """Who waits for descriptors on a thread of its own, and calls in the loop."""

    def watch(self, fd: int, wanted: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` in the loop, once, when ``wanted`` (EPOLLIN) can be done."""

    def want(self, fd: int, wanted: int) -> None:
        """Call it again then."""

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more."""


class Channel(Protocol):
    """A descriptor that carries frames and never blocks. ``receive`` and ``send`` raise OSError."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def receive(self) -> bytes:
        """Return the next frame; BlockingIOError where there is none."""

    def send(self, frame: bytes) -> None:
        """Send one frame; BlockingIOError where there is no room for it."""

    def close(self) -> None:
        """Give the descriptor back, and what was made for it."""


@dataclass(slots=True)
class PortStats:
    """What was lost on the way to the host, and on the way from there."""

    no_room: int = 0
    nobody_there: int = 0
    too_long: int = 0


class HostPort:
    """One channel, plugged into a bridge until ``close``, which closes the channel too.

    A TAP that somebody has removed from the host ``is_gone``: its descriptor would be ready for
    ever, and is watched no more.
    """

    def __init__(self, bridge: Bridge, name: str, poller: Poller, channel: Channel) -> None:
        self.stats = PortStats()
        self.is_gone = False
        self._poller = poller
        self._channel = channel
        self._fd = channel.fileno()
        self._plug = bridge.plug(name, self)
        poller.watch(self._fd, select.EPOLLIN, self._ready)

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Send frames to the host."""
        for sent, frame in enumerate(frames):
            try:
                self._channel.send(frame)
            except BlockingIOError:
                self.stats.no_room += len(frames) - sent
                return
            except OSError:
                self.stats.nobody_there += 1

    def close(self) -> None:
        """Leave the bridge."""
        self._poller.forget(self._fd)
        self._plug.unplug()
        self._channel.close()

    def _ready(self) -> None:
        """Bring what has come to the bridge, a batch of it."""
        frames = []
        for _ in range(BATCH):
            try:
                frame = self._channel.receive()
            except OSError as error:  # nothing more; or a word about what was sent
                self.is_gone = error.errno == errno.EBADFD
                break
            if len(frame) > MAX_FRAME_BYTES:
                self.stats.too_long += 1
            else:
                frames.append(frame)
        self._plug.send(frames)
        if not self.is_gone:
            self._poller.want(self._fd, select.EPOLLIN)
