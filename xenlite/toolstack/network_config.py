# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what a user writes about one network: a group of keys, or ``name=xenbr0,key=value,...``.

What may be said several times is a list in a group, and a key that comes again in a string:

    forward=udp:127.0.0.1:5555-10.0.0.2:7       a UDP port of the host that leads to a guest's
    dgram=local=/tmp/a.sock remote=/tmp/b.sock  a datagram socket, as QEMU's -netdev dgram
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, NetmaskValueError
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from xenlite.dom0.dgram import MAX_PATH_BYTES, DgramConfig, HostAddress
from xenlite.dom0.pcap import SNAPLEN
from xenlite.dom0.service_port import Forward
from xenlite.dom0.udp_forwards import ForwardTarget
from xenlite.errors import Fault
from xenlite.toolstack.network_schema import NETWORK_LISTS
from xenlite.toolstack.vif_config import BRIDGE_NAME

if TYPE_CHECKING:
    from xenlite.toolstack.domain_config import DomainConfig

_NAMES: Final = ("name", "subnet", "services", "forward", "dgram", "tap", "pcap", "snaplen")
_YES: Final = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_TAP_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}"
_HOST: Final = r"\d{1,3}(?:\.\d{1,3}){3}"
_LOCALHOST: Final = "127.0.0.1"
_WIDEST, _NARROWEST = 8, 30  # bits of a subnet's prefix
_MIN_SNAPLEN: Final = 14
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """One network, checked. ``interface`` is the service host's address, None for no such host."""

    name: str
    interface: IPv4Interface | None
    forwards: tuple[Forward, ...] = ()
    dgrams: tuple[DgramConfig, ...] = ()
    taps: tuple[str, ...] = ()
    capture: Path | None = None
    snaplen: int = SNAPLEN

    def below(self, base: Path) -> NetworkConfig:
        """Return the same network with its paths starting at ``base``."""

        def join(address: Path | HostAddress) -> Path | HostAddress:
            return base / address if isinstance(address, Path) else address

        return replace(
            self,
            dgrams=tuple(DgramConfig(join(one.local), join(one.remote)) for one in self.dgrams),
            capture=None if self.capture is None else base / self.capture,
        )


def default_network(name: str) -> NetworkConfig:
    """Return the network of a bridge that nobody has described."""
    return NetworkConfig(name, default_interface(name))


def default_interface(name: str) -> IPv4Interface:
    """Return the service host's address in the subnet of a bridge that was given none.

    That of ``xenbr4`` is 10.0.4.0/24; a bridge of another kind of name has one that depends on the
    name alone, so that a domain with cards on two bridges can tell them apart.
    """
    match = re.fullmatch(r"xenbr(\d{1,3})", name, re.ASCII)
    if match and int(match[1]) <= 255:
        third, second = int(match[1]), 0
    else:
        third, second = divmod(zlib.crc32(name.encode()) % (255 << 8), 255)
        second += 1
    return IPv4Interface(f"10.{second}.{third}.1/24")


def read_network(given: str | Mapping[str, str]) -> NetworkConfig:
    """Read one network; ValueError says what is wrong. Values of lists are lines of one text."""
    words = _split(given) if isinstance(given, str) else given
    for name in words:
        if name not in _NAMES:
            raise ValueError(f"{name!r} is nothing of a network; known: {', '.join(_NAMES)}")
    name = words.get("name", "")
    if re.fullmatch(BRIDGE_NAME, name) is None:
        raise ValueError(f"name {name!r}: a network needs one such as 'xenbr0' (15 characters)")
    services = words.get("services") or "yes"
    if services.lower() not in _YES:
        raise ValueError(f"services {services!r} is neither 'yes' nor 'no'")
    interface = _interface(words["subnet"]) if words.get("subnet") else default_interface(name)
    forwards = _each(words, "forward", lambda text: _forward(text, interface))
    if not _YES[services.lower()]:
        for key in ("subnet", "forward"):
            if words.get(key):
                raise ValueError(f"{key}: it needs the service host; leave services=no out")
    snaplen = words.get("snaplen") or str(SNAPLEN)
    if re.fullmatch(r"\d{1,6}", snaplen, re.ASCII) is None or int(snaplen) < _MIN_SNAPLEN:
        raise ValueError(f"snaplen {snaplen!r} is no number of bytes, {_MIN_SNAPLEN} at least")
    return NetworkConfig(
        name=name,
        interface=interface if _YES[services.lower()] else None,
        forwards=forwards,
        dgrams=_each(words, "dgram", _dgram),
        taps=_each(words, "tap", _tap),
        capture=Path(words["pcap"]) if words.get("pcap") else None,
        snaplen=int(snaplen),
    )


def conflicts(domains: Iterable[tuple[str, DomainConfig]]) -> list[Fault]:
    """Say which networks are described otherwise in another file; each comes with its name."""
    first: dict[str, tuple[str, NetworkConfig]] = {}
    faults = []
    for where, domain in domains:
        for network in domain.networks:
            owner, known = first.setdefault(network.name, (where, network))
            if known != network:
                what = f"networks: {network.name} is not the same as in {owner}"
                faults.append(Fault(where, f"{what}; describe it once"))
    return faults


# -- parts ----------------------------------------------------------------------------------------


def _split(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        if not equals:
            raise ValueError(f"{word.strip()!r} is no key=value, as in 'name=xenbr0'")
        if name not in words:
            words[name] = value
        elif name in NETWORK_LISTS:
            words[name] += f"\n{value}"
        else:
            raise ValueError(f"{name!r} is given twice in {text!r}")
    return words


def _each(words: Mapping[str, str], name: str, read: Callable[[str], _T]) -> tuple[_T, ...]:
    return tuple(read(line.strip()) for line in words.get(name, "").split("\n") if line.strip())


def _interface(text: str) -> IPv4Interface:
    """Read a subnet; an address in it is the service host's, which otherwise is the first."""
    try:
        given = IPv4Interface(text)
    except (AddressValueError, NetmaskValueError):
        raise ValueError(f"subnet {text!r} is none such as 10.0.0.0/24") from None
    network = given.network
    if not _WIDEST <= network.prefixlen <= _NARROWEST:
        raise ValueError(f"subnet {text!r} has not between {_WIDEST} and {_NARROWEST} bits")
    if given.ip == network.broadcast_address or given.ip.is_multicast:
        raise ValueError(f"subnet {text!r} leaves the service host no address of its own")
    if given.ip == network.network_address:
        return IPv4Interface(f"{network.network_address + 1}/{network.prefixlen}")
    return given


def _forward(text: str, interface: IPv4Interface) -> Forward:
    if text.startswith("tcp:"):
        raise ValueError(f"forward {text!r}: only UDP is forwarded")
    pattern = rf"(?:udp:)?(?:({_HOST})?:)?(\d{{1,5}})-({_HOST}):(\d{{1,5}})"
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        raise ValueError(f"forward {text!r} is none such as 'udp:127.0.0.1:5555-10.0.0.2:7'")
    host, port, guest, guest_port = match.groups()
    target = _ip(guest, text)
    if target not in interface.network or target == interface.ip:
        raise ValueError(f"forward {text!r}: {target} is no guest's in {interface.network}")
    return Forward(
        HostAddress(str(_ip(host or _LOCALHOST, text)), _port(port, text, least=0)),
        ForwardTarget(target.packed, _port(guest_port, text)),
    )


def _dgram(text: str) -> DgramConfig:
    match = re.fullmatch(r"local=(\S+)\s+remote=(\S+)", text)
    if match is None:
        raise ValueError(f"dgram {text!r} is none such as 'local=/tmp/a.sock remote=/tmp/b.sock'")
    local, remote = _address(match[1], text), _address(match[2], text)
    if isinstance(local, Path) is not isinstance(remote, Path):
        raise ValueError(f"dgram {text!r}: one end is a path, and the other one is not")
    if local == remote:
        raise ValueError(f"dgram {text!r}: both ends are the same")
    return DgramConfig(local, remote)


def _address(text: str, whole: str) -> Path | HostAddress:
    match = re.fullmatch(rf"({_HOST}):(\d{{1,5}})", text, re.ASCII)
    if match is not None:
        return HostAddress(str(_ip(match[1], whole)), _port(match[2], whole))
    if len(text.encode()) > MAX_PATH_BYTES:
        raise ValueError(f"dgram {text!r}: too long for a socket, {MAX_PATH_BYTES} bytes at most")
    return Path(text)


def _tap(text: str) -> str:
    if re.fullmatch(_TAP_NAME, text, re.ASCII) is None:
        raise ValueError(f"tap {text!r} is no name of an interface (15 characters)")
    return text


def _ip(text: str, whole: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError(f"{whole!r}: {text} is no IPv4 address") from None


def _port(text: str, whole: str, least: int = 1) -> int:
    if not least <= int(text) <= 65535:
        raise ValueError(f"{whole!r}: {text} is no port from {least} to 65535")
    return int(text)
