# SPDX-License-Identifier: GPL-2.0-or-later
"""A learning Ethernet bridge: whole frames in at one station, out at others.

    station --Plug.send--> Bridge --Station.deliver--> other stations

Pure: no sockets and no clock of its own. What holds at every moment:

- A frame never goes back to the station that sent it, and never to another bridge.
- An address is known at one station at most. It is forgotten AGEING_NS after the station last
  used it, when the station is unplugged, or when it is used at another station.
- A station's own address, which whoever plugged it in gave, is known for as long as it is plugged
  in, and nobody else's use of it changes that: one guest can't draw another's frames to itself.
- A station is known by at most MAX_ADDRESSES others; one more costs it the one learnt first. So
  the table is bounded, and no station can push the addresses of another out of it.
- What goes to all (broadcast, multicast, an address that nobody is known by) is bounded for each
  sender: FLOOD_BURST frames at once, FLOODS_PER_S for long. The rest is dropped and counted.

A batch stays a batch: each station gets at most one call for it, its frames in their order. Nobody
sends from within ``deliver``, so that no chain of answers grows on the stack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from xenlite.dom0.ethernet import HEADER_BYTES, is_station

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AGEING_NS: Final = 300 * 10**9
MAX_ADDRESSES: Final = 256
FLOODS_PER_S: Final = 20_000
FLOOD_BURST: Final = 4096

_HEADER: Final = itemgetter(slice(HEADER_BYTES))
_DESTINATION: Final = slice(6)
_SOURCE: Final = slice(6, 12)
_GROUP_BIT: Final = 1
# 802.1D: what these 16 addresses name ends at the first bridge (spanning tree, pause).
_LINK_LOCAL: Final = bytes.fromhex("0180c20000")
_LAST_LINK_LOCAL: Final = 0x0F
_FLOOD_NS: Final = 10**9 // FLOODS_PER_S


class Station(Protocol):
    """Whoever is plugged in: a vif's backend, the service host, a socket, a TAP, a capture."""

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take frames, now; what finds no room is dropped and counted by the station.

        Never re-enters the bridge.
        """


@dataclass(slots=True)
class PlugStats:
    """What one station has sent into its bridge and got from it, and what the bridge dropped."""

    sent_frames: int = 0
    sent_bytes: int = 0
    got_frames: int = 0
    got_bytes: int = 0
    malformed: int = 0  # too short, or from an address that is no station's
    for_nobody: int = 0  # to an address at the sender itself, or one that no bridge passes on
    over_flood_limit: int = 0


class Plug:
    """One station's place at a bridge; ``Bridge.plug`` makes it."""

    def __init__(self, bridge: Bridge, name: str, station: Station, own: bytes | None) -> None:
        self.name = name
        self.own = own
        self.stats = PlugStats()
        self.is_plugged = True
        self._bridge = bridge
        self._station = station
        self._floods_until_ns = -FLOOD_BURST * _FLOOD_NS
        # Captures of what it sends, and of what it gets.
        self.sent_to: tuple[Station, ...] = ()
        self.got_to: tuple[Station, ...] = ()

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a batch into the bridge, in order."""
        if frames and self.is_plugged:
            self.stats.sent_frames += len(frames)
            self.stats.sent_bytes += sum(map(len, frames))
            for capture in self.sent_to:
                capture.deliver(frames)
            self._bridge.forward(self, frames)

    def unplug(self) -> None:
        """Leave the bridge, if that has not been done."""
        if self.is_plugged:
            self.is_plugged = False
            self._bridge.unplug(self)

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Hand frames to the station, unless it has left while a batch was on its way."""
        if self.is_plugged:
            self.stats.got_frames += len(frames)
            self.stats.got_bytes += sum(map(len, frames))
            for capture in self.got_to:
                capture.deliver(frames)
            self._station.deliver(frames)

    def may_flood(self, frames: int, now_ns: int) -> int:
        """Tell how many of so many frames may go to all, and count those."""
        # What has been flooded takes the time up to here, which lags by no more than a burst.
        until_ns = max(self._floods_until_ns, now_ns - FLOOD_BURST * _FLOOD_NS)
        allowed = min(frames, (now_ns - until_ns) // _FLOOD_NS)
        self._floods_until_ns = until_ns + allowed * _FLOOD_NS
        return allowed


@dataclass(slots=True)
class _Address:
    plug: Plug
    is_own: bool
    used_ns: int


@dataclass(slots=True)
class _AddressTable:
    """Who is known by which address. ``learnt`` is the same by station, in order of learning."""

    at: dict[bytes, _Address] = field(default_factory=dict)
    learnt: dict[Plug, dict[bytes, None]] = field(default_factory=dict)

    def add(self, plug: Plug) -> None:
        """Know a station by its own address, if it has one."""
        self.learnt[plug] = {}
        if plug.own is not None:
            self._forget(plug.own)
            self.at[plug.own] = _Address(plug, is_own=True, used_ns=0)

    def drop(self, plug: Plug) -> None:
        """Forget all that a station is known by."""
        for address in self.learnt.pop(plug):
            del self.at[address]
        if plug.own is not None:
            del self.at[plug.own]

    def learn(self, plug: Plug, address: bytes, now_ns: int) -> None:
        """Know a station by the address that it has just used."""
        known = self.at.get(address)
        if known is not None:
            if known.plug is plug:
                known.used_ns = now_ns
                return
            if known.is_own:
                return
            self._forget(address)
        learnt = self.learnt[plug]
        if len(learnt) == MAX_ADDRESSES:
            self._forget(next(iter(learnt)))
        learnt[address] = None
        self.at[address] = _Address(plug, is_own=False, used_ns=now_ns)

    def find(self, address: bytes, now_ns: int) -> Plug | None:
        """Return the station that is known by an address."""
        known = self.at.get(address)
        if known is None:
            return None
        if not known.is_own and now_ns - known.used_ns >= AGEING_NS:
            self._forget(address)
            return None
        return known.plug

    def _forget(self, address: bytes) -> None:
        """Forget an address that was learnt, if it is known."""
        known = self.at.pop(address, None)
        if known is not None:
            del self.learnt[known.plug][address]


class Bridge:
    """One network: what its stations send reaches each other and nobody else."""

    def __init__(self, name: str, now_ns: Callable[[], int]) -> None:
        self.name = name
        self._now_ns = now_ns
        self._addresses = _AddressTable()
        self._plugs: tuple[Plug, ...] = ()
        self._captures: list[tuple[Station, str | None]] = []

    @property
    def plugs(self) -> tuple[Plug, ...]:
        """The stations' places, in the order in which they were plugged in."""
        return self._plugs

    def plug(self, name: str, station: Station, own: bytes | None = None) -> Plug:
        """Give a station a place; ``own`` is the address that it is known by from the start.

        That address must not be another station's own (``owner``).
        """
        assert own is None or self.owner(own) is None, f"{name}: {own!r} is another station's"
        plug = Plug(self, name, station, own)
        self._addresses.add(plug)
        self._plugs = (*self._plugs, plug)
        self._connect_captures()
        return plug

    def owner(self, address: bytes) -> Plug | None:
        """Return the station whose own an address is."""
        return next((plug for plug in self._plugs if plug.own == address), None)

    def capture(self, station: Station, of: str | None = None) -> Callable[[], None]:
        """Show a station all frames that are sent, or all of the station named ``of``, both ways.

        Such a station may come and go. Return what ends the capture.
        """
        capture = (station, of)
        self._captures.append(capture)
        self._connect_captures()

        def end() -> None:
            self._captures.remove(capture)
            self._connect_captures()

        return end

    def unplug(self, plug: Plug) -> None:
        """Take a station's place away (for ``Plug.unplug``)."""
        self._addresses.drop(plug)
        self._plugs = tuple(one for one in self._plugs if one is not plug)

    def forward(self, sender: Plug, frames: Sequence[bytes]) -> None:
        """Bring a batch to where it belongs (for ``Plug.send``)."""
        now_ns = self._now_ns()
        queues: dict[Plug, list[bytes]] = {}
        for header, run in groupby(frames, _HEADER):
            alike = list(run)
            if len(header) < HEADER_BYTES or not is_station(header[_SOURCE]):
                sender.stats.malformed += len(alike)
                continue
            self._addresses.learn(sender, header[_SOURCE], now_ns)
            for plug in self._receivers(sender, header[_DESTINATION], alike, now_ns):
                queues.setdefault(plug, []).extend(alike)
        for plug, queue in queues.items():
            plug.deliver(queue)

    def _receivers(
        self, sender: Plug, destination: bytes, alike: list[bytes], now_ns: int
    ) -> Sequence[Plug]:
        """Return who gets frames to one address; those that nobody may get leave the list."""
        if not destination[0] & _GROUP_BIT:
            known = self._addresses.find(destination, now_ns)
            if known is sender:
                sender.stats.for_nobody += len(alike)
                return ()
            if known is not None:
                return (known,)
        elif destination[:5] == _LINK_LOCAL and destination[5] <= _LAST_LINK_LOCAL:
            sender.stats.for_nobody += len(alike)
            return ()
        allowed = sender.may_flood(len(alike), now_ns)
        sender.stats.over_flood_limit += len(alike) - allowed
        del alike[allowed:]
        return [plug for plug in self._plugs if plug is not sender] if allowed else ()

    def _connect_captures(self) -> None:
        for plug in self._plugs:
            plug.sent_to = tuple(
                station for station, of in self._captures if of in (None, plug.name)
            )
            plug.got_to = tuple(station for station, of in self._captures if of == plug.name)
