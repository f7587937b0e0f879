# SPDX-License-Identifier: GPL-2.0-or-later
"""Give a domain its network cards: XenStore nodes, backend, a place at a bridge; and take them."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.ethernet import format_address
from xenlite.dom0.vif import Vif, vif_paths
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.attached import AttachedDevices
from xenlite.toolstack.store_nodes import device_paths, vif_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from xenlite.dom0.device_status import DeviceStatus
    from xenlite.dom0.xenstore.store import XenStore
    from xenlite.doors import Link
    from xenlite.errors import PeerError
    from xenlite.toolstack.networks import Network, Networks
    from xenlite.toolstack.vif_config import VifConfig


def station_name(domain: str, vif: VifConfig) -> str:
    """Return what a card is called at its bridge."""
    return vif.vifname or f"{domain}.{vif.devid}"


class Vifs:
    """The network cards of one running domain. ``broken`` hears what its frontends do wrong."""

    def __init__(
        self,
        link: Link,
        store: XenStore,
        domid: int,
        name: str,
        networks: Networks,
        undo: ExitStack,
        broken: Callable[[PeerError], None],
    ) -> None:
        self._link = link
        self._store = store
        self._domid = domid
        self._name = name
        self._networks = networks
        self._broken = broken
        self._nodes = Dom0Store(link, store.server)
        self._attached = AttachedDevices()
        self._macs: dict[str, int] = {}
        undo.callback(self._close)

    def find(self, name: str) -> int | None:
        """Return the number of the card of that number or address, if there is one."""
        if re.fullmatch(r"\d{1,3}", name, re.ASCII) and int(name) in self._attached:
            return int(name)
        return self._macs.get(name.lower())

    def numbers(self) -> Collection[int]:
        """Return the numbers of the cards, also of those that are asked to go."""
        return self._attached.numbers()

    def status(self) -> list[DeviceStatus]:
        """Return what each card is doing."""
        return self._attached.status()

    def attach(self, config: VifConfig) -> Vif:
        """Show a card, complete, to the domain, which may run already. Raises ConfigError."""
        assert config.devid is not None
        assert config.mac is not None
        paths = vif_paths(self._link.domid, self._domid, config.devid)
        with self._networks.joining(config.bridge) as network, ExitStack() as undo:
            self._check(network, config, config.mac)
            self._reserve(network, config, config.mac, undo)
            mac = format_address(config.mac)
            undo.callback(self._store.remove, device_paths(self._domid, "vif", config.devid))
            self._store.put(
                vif_nodes(
                    self._domid, config.devid, mac, mtu=config.mtu, more=_backend_nodes(config)
                )
            )
            vif = Vif(
                self._link,
                self._nodes,
                paths,
                network.bridge,
                name=station_name(self._name, config),
                mac=mac,
                mtu=config.mtu,
                rate=config.rate,
                broken=self._broken,
            )
            undo.callback(vif.close)
            self._macs[mac] = config.devid
            undo.callback(self._macs.pop, mac)
            self._attached.add(config.devid, vif, undo.pop_all())
        return vif

    def detach(self, devid: int) -> None:
        """Take a card away, whatever its frontend is doing."""
        self._attached.detach(devid)

    def ask_back(self, devid: int, gone: Callable[[], None]) -> None:
        """Take a card away when its frontend has closed it, which it is asked to; then ``gone``."""
        self._attached.ask_back(devid, gone)

    def _close(self) -> None:
        self._attached.close()
        self._nodes.close()

    def _check(self, network: Network, config: VifConfig, mac: bytes) -> None:
        """Refuse what would be taken for another card."""
        assert config.devid is not None
        if config.devid in self._attached:
            raise self._fault(f"card {config.devid} has not gone yet; give this one another devid")
        name, bridge = station_name(self._name, config), network.bridge
        owner = bridge.owner(mac)
        if owner is not None:
            what = f"mac {format_address(mac)} is {owner.name}'s on {bridge.name}"
            raise self._fault(f"{what}; give this card another one")
        if any(plug.name == name for plug in bridge.plugs):
            raise self._fault(f"there is a {name!r} on {bridge.name} already")

    def _reserve(self, network: Network, config: VifConfig, mac: bytes, undo: ExitStack) -> None:
        """Keep an address for the card, where its network gives addresses."""
        if network.services is None:
            return
        leases = network.services.host.leases
        if leases.reserve(mac, config.ip) is not None:
            undo.callback(leases.release, mac)
        elif config.ip is not None:
            interface = network.config.interface
            assert interface is not None
            what = f"ip {config.ip} is taken, or no guest's in {interface.network}"
            raise self._fault(f"{what} ({network.bridge.name})")

    def _fault(self, what: str) -> ConfigError:
        return ConfigError(Fault(f"domain {self._name!r}", f"vif: {what}"))


def _backend_nodes(config: VifConfig) -> dict[str, str]:
    """Return what xl writes for a backend, of what was asked for."""
    nodes = {"bridge": config.bridge}
    if config.ip is not None:
        nodes["ip"] = str(config.ip)
    if config.rate is not None:
        nodes["rate"] = f"{config.rate.bytes},{config.rate.interval_ns // 1000}"
    if config.vifname is not None:
        nodes["vifname"] = config.vifname
    return nodes
