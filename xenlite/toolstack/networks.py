# SPDX-License-Identifier: GPL-2.0-or-later
"""The networks of a host: bridges, made when they are first asked for, and what is plugged in.

A network that nobody has described is as usual: a service host, in a subnet of its own. It is the
host's: domains come and go, and it ends with ``close``.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenlite.dom0.dgram import DgramChannel, HostAddress
from xenlite.dom0.host_port import HostPort
from xenlite.dom0.pcap import SNAPLEN, Capture
from xenlite.dom0.service_port import ServicePort
from xenlite.dom0.switch import Bridge
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.network_config import NetworkConfig, default_network
from xenlite.toolstack.vif_config import service_mac

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from xenlite.doors import Link
    from xenlite.toolstack.poller import Poller


@dataclass(frozen=True, slots=True)
class Network:
    """One network: its bridge, its service host if it has one, and what ends it."""

    config: NetworkConfig
    bridge: Bridge
    services: ServicePort | None
    undo: ExitStack


class Networks:
    """All networks of a host. ``wall_ns`` stamps captures; ``say`` tells the user of their ends."""

    def __init__(
        self,
        link: Link,
        poller: Poller,
        wall_ns: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self._link = link
        self._poller = poller
        self._wall_ns = wall_ns
        self._say = say
        self._networks: dict[str, Network] = {}

    def declare(self, config: NetworkConfig) -> None:
        """Make a network as it is described. Raises ConfigError, also where it is there and not so.

        What was made of it is then as if nothing had been asked for.
        """
        known = self._networks.get(config.name)
        if known is None:
            self._make(config)
        elif known.config != config:
            what = "is there already, and not as it is described now"
            raise ConfigError(Fault(f"network {config.name}", what))

    def network(self, name: str) -> Network:
        """Return a network, which is made if it isn't there."""
        return self._networks.get(name) or self._make(default_network(name))

    @contextmanager
    def joining(self, name: str) -> Iterator[Network]:
        """Give a network to somebody who joins it; where that fails, one made for it goes again."""
        is_new = name not in self._networks
        network = self.network(name)
        with ExitStack() as undo:
            if is_new:
                undo.callback(lambda: self._networks.pop(name).undo.close())
            yield network
            undo.pop_all()

    def capture(
        self, name: str, path: Path, *, wish: str, of: str | None = None, snaplen: int = SNAPLEN
    ) -> None:
        """Write down what is sent on a network, or what its station ``of`` sends and gets.

        Raises ConfigError; ``wish`` names the option that asked for it.
        """
        network = self.network(name)
        self._capture(network.bridge, path, network.undo, wish=wish, of=of, snaplen=snaplen)

    def statistics(self) -> list[dict[str, object]]:
        """Tell what has passed each station of each network, and what was lost there."""
        return [
            {
                "network": name,
                "station": plug.name,
                "sent_frames": plug.stats.sent_frames,
                "sent_bytes": plug.stats.sent_bytes,
                "got_frames": plug.stats.got_frames,
                "got_bytes": plug.stats.got_bytes,
                "dropped": plug.dropped(),
            }
            for name, network in sorted(self._networks.items())
            for plug in network.bridge.plugs
        ]

    def close(self) -> None:
        """End all networks; no domain has a card on them any more."""
        while self._networks:
            self._networks.popitem()[1].undo.close()

    def _make(self, config: NetworkConfig) -> Network:
        bridge = Bridge(config.name, self._link.now_ns)
        with ExitStack() as undo:
            try:
                services = self._plug_in(config, bridge, undo)
            except ConfigError as error:
                faults = (Fault(f"network {config.name}", str(one)) for one in error.faults)
                raise ConfigError(*faults) from None
            network = Network(config, bridge, services, undo.pop_all())
        self._networks[config.name] = network
        return network

    def _plug_in(
        self, config: NetworkConfig, bridge: Bridge, undo: ExitStack
    ) -> ServicePort | None:
        """Plug in all that is described. Raises ConfigError."""
        if config.capture is not None:
            self._capture(
                bridge, config.capture, undo, wish="networks: pcap", snaplen=config.snaplen
            )
        for dgram in config.dgrams:
            port = HostPort(bridge, f"dgram {dgram.local}", self._poller, DgramChannel(dgram))
            undo.callback(port.close)
        for tap in config.taps:
            from xenlite.dom0.tap import TapChannel

            undo.callback(HostPort(bridge, f"tap {tap}", self._poller, TapChannel(tap)).close)
        if config.interface is None:
            return None
        mac = service_mac(config.name)
        services = ServicePort(
            self._link, bridge, self._poller, mac, config.interface, config.forwards
        )
        undo.callback(services.close)
        for forward, address in zip(config.forwards, services.addresses, strict=True):
            if forward.host.port == 0:
                target = HostAddress(
                    ".".join(map(str, forward.target.address)), forward.target.port
                )
                self._say(f"network {config.name}: UDP port {address} of the host is {target}")
        return services

    def _capture(
        self,
        bridge: Bridge,
        path: Path,
        undo: ExitStack,
        *,
        wish: str,
        of: str | None = None,
        snaplen: int,
    ) -> None:
        capture = Capture(path, self._wall_ns, self._say, wish=wish, snaplen=snaplen)
        undo.callback(capture.close)
        undo.callback(bridge.capture(capture, of))
