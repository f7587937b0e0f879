# SPDX-License-Identifier: GPL-2.0-or-later
"""One network card of one domain, as XenStore shows it: the backend that a frontend meets.

Its place at the bridge is the device's for as long as that lives, whether a frontend is connected
or not; without one, what the bridge brings is dropped and counted. ``backend_device.py`` says how a
frontend comes and goes. The toolstack writes what it knows of the card into the frontend's
directory (``mac``, ``handle``, ``mtu``), where a backend has no right to; here is what it owns.

Only what is honoured is offered. Frames are copied, never flipped. Of the checksum offload that is
offered by saying nothing (IPv4, TCP and UDP) the backend takes its part: it completes what a
frontend leaves blank, and gives frontends whole checksums only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from xenlite.dom0.backend_device import (
    MAX_NUMBER,
    BackendDevice,
    DevicePaths,
    FrontendNodes,
    device_paths,
)
from xenlite.dom0.device_status import DeviceStatus
from xenlite.dom0.ethernet import parse_address
from xenlite.dom0.netback import NetCounters, NetRings, Offer
from xenlite.dom0.netif import DEFAULT_MTU, frame_limit
from xenlite.dom0.rate import RateLimit
from xenlite.dom0.xenbus import NET_TRANSITIONS
from xenlite.errors import PeerError

if TYPE_CHECKING:
    from xenlite.dom0.rate import Rate
    from xenlite.dom0.switch import Bridge
    from xenlite.dom0.xenbus import DeviceStore, State
    from xenlite.doors import Link

FEATURES: Final = {
    "feature-rx-copy": "1",
    "feature-sg": "1",
    "feature-multicast-control": "1",
    "feature-split-event-channels": "1",
}


def vif_paths(backend_domid: int, frontend_domid: int, handle: int) -> DevicePaths:
    """Return where a network card's two ends are in XenStore."""
    return device_paths("vif", backend_domid, frontend_domid, handle)


class Vif:
    """The backend of one network card: a station of ``bridge``, known by ``mac`` from the start.

    ``name`` is the station's, ``vif1.0`` if the user gave none; ``mac`` is written with colons.
    ``rate`` bounds what the frontend sends. ``broken`` hears what the frontend does wrong.
    """

    def __init__(
        self,
        link: Link,
        store: DeviceStore,
        paths: DevicePaths,
        bridge: Bridge,
        *,
        name: str,
        mac: str,
        mtu: int = DEFAULT_MTU,
        rate: Rate | None = None,
        broken: Callable[[PeerError], None],
    ) -> None:
        self._link = link
        self._number = paths.number
        self._frontend_domid = paths.frontend_domid
        self._frame_limit = frame_limit(mtu)
        self._limit = None if rate is None else RateLimit(rate, link.now_ns())
        self.counters = NetCounters()
        self._plug = bridge.plug(name, self, parse_address(mac))
        self._device = BackendDevice(
            store,
            paths,
            NET_TRANSITIONS,
            nodes={"handle": str(paths.number), "mac": mac, **FEATURES},
            connect=self._connect,
            broken=broken,
            rejoins=True,
        )

    @property
    def state(self) -> State:
        """Return the state that the backend shows."""
        return self._device.state

    @property
    def rings(self) -> NetRings | None:
        """Return the rings of a connected frontend."""
        return self._device.connection

    def status(self) -> DeviceStatus:
        """Return what it is doing."""
        return DeviceStatus(
            f"vif {self._number}",
            self.state,
            self._device.seen,
            {} if self.rings is None else self.rings.indexes(),
            asdict(self.counters),
        )

    def close(self) -> None:
        """Take the device away, whatever its frontend is doing, and its place at the bridge."""
        self._plug.unplug()
        self._device.close()

    def ask_to_close(self, released: Callable[[], None]) -> None:
        """Have the frontend close the card; see ``BackendDevice``."""
        self._device.ask_to_close(released, self._link.defer)

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take what the bridge brings (``switch.Station``)."""
        rings = self._device.connection
        if rings is None:
            self.counters.rx_dropped += len(frames)
        else:
            rings.deliver(frames)

    def _connect(self, nodes: FrontendNodes) -> NetRings:
        """Join the frontend's rings. Raises PeerError, Refused."""
        return NetRings(
            self._link,
            self._read_offer(nodes),
            self.counters,
            frame_limit=self._frame_limit,
            limit=self._limit,
            send=self._plug.send,
            broken=self._device.lost,
        )

    def _read_offer(self, nodes: FrontendNodes) -> Offer:
        """Read what the frontend has written, once. Raises PeerError."""
        if not nodes.flag("request-rx-copy"):
            raise PeerError("request-rx-copy is not 1, and pages are copied, never flipped")
        tx_ref, rx_ref = (nodes.number(f"{ring}-ring-ref", 0, MAX_NUMBER) for ring in ("tx", "rx"))
        if nodes.text("event-channel-tx") is None:
            tx_port = rx_port = nodes.number("event-channel", 0, MAX_NUMBER)
        else:
            tx_port = nodes.number("event-channel-tx", 0, MAX_NUMBER)
            rx_port = nodes.number("event-channel-rx", 0, MAX_NUMBER)
        return Offer(
            domid=self._frontend_domid,
            tx_ref=tx_ref,
            rx_ref=rx_ref,
            tx_port=tx_port,
            rx_port=rx_port,
            takes_chains=nodes.flag("feature-sg"),
            tells_of_room=nodes.flag("feature-rx-notify"),
            filters_groups=nodes.flag("request-multicast-control"),
        )
