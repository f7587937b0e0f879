# SPDX-License-Identifier: GPL-2.0-or-later
"""Find what ``--pcap NAME=FILE`` means: a network, or one domain's card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.vifs import station_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xenlite.toolstack.domain_config import DomainConfig
    from xenlite.toolstack.networks import Networks


def begin_captures(
    networks: Networks, domains: Sequence[DomainConfig], captures: Mapping[str, Path]
) -> None:
    """Begin captures, each into the file that it stands by. Raises ConfigError."""
    bridges = {network.name for domain in domains for network in domain.networks}
    bridges |= {vif.bridge for domain in domains for vif in domain.vifs}
    cards = {
        station_name(domain.name, vif): vif.bridge for domain in domains for vif in domain.vifs
    }
    for name, path in captures.items():
        if name in bridges:
            networks.capture(name, path, wish="--pcap")
        elif name in cards:
            networks.capture(cards[name], path, wish="--pcap", of=name)
        else:
            there = ", ".join(sorted(bridges | set(cards))) or "nothing"
            raise ConfigError(Fault(f"--pcap {name}", f"not here; there is {there}"))
