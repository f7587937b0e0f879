# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what a user writes about one network card: xl's string, or a group of keys of these names.

    mac=00:16:3e:01:02:03,bridge=xenbr0,ip=10.0.0.2,rate=10Mb/s

Nothing is needed: the empty string is a card on DEFAULT_BRIDGE. What xl hands to scripts on the
host, or to a device model for guests that are no PV guests, is refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from xenlite.dom0.ethernet import format_address, is_station, parse_address
from xenlite.dom0.netif import DEFAULT_MTU, MAX_MTU
from xenlite.dom0.rate import Rate

if TYPE_CHECKING:
    from ipaddress import IPv4Address

DEFAULT_BRIDGE: Final = "xenbr0"
MAX_DEVID: Final = 255
MIN_MTU: Final = 68  # IPv4's (RFC 791)
_NAMES: Final = (
    *("bridge", "mac", "ip", "rate", "mtu", "devid", "vifname"),
    *("type", "script", "backend"),
)
_VIFNAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
BRIDGE_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}"
# What xl may say and we do not, with the reason; other values are refused.
_FIXED: Final = {
    "type": ("vif", "no card is emulated; a PV guest needs none"),
    "script": ("vif-bridge", "nothing is run on the host; networks: says what a bridge has"),
    "backend": ("0", "the backends are in Domain-0"),
}
_NOT_HERE: Final = {
    "model": "no card is emulated; a PV guest needs none",
    "gatewaydev": "nothing is routed on the host",
}
_XEN_PREFIX: Final = bytes.fromhex("00163e")
_OUR_HALF: Final = 0x7FFFFF  # the other half is the service hosts'
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_INTERVALS_NS: Final = {"us": 10**3, "ms": 10**6, "s": 10**9}
_DEFAULT_INTERVAL_NS: Final = 50 * 10**6
_RATE: Final = r"(\d{1,9})([KMG]?)([bB])/s(?:@(\d{1,6})(us|ms|s))?"


@dataclass(frozen=True, slots=True)
class VifConfig:
    """One network card, checked; ``devid`` and ``mac`` are None until ``complete``."""

    bridge: str = DEFAULT_BRIDGE
    mac: bytes | None = None
    devid: int | None = None
    ip: IPv4Address | None = None
    rate: Rate | None = None
    mtu: int = DEFAULT_MTU
    vifname: str | None = None


def read_vif(given: str | Mapping[str, str]) -> VifConfig:
    """Read one card; ValueError says what is wrong."""
    words = _split(given) if isinstance(given, str) else given
    for name, value in words.items():
        if name in _NOT_HERE:
            raise ValueError(f"{name} {value!r}: {_NOT_HERE[name]}; leave it out")
        if name not in _NAMES:
            raise ValueError(f"{name!r} is nothing of a vif; known: {', '.join(_NAMES)}")
    for name, (only, why) in _FIXED.items():
        if words.get(name, only) not in (only, ""):
            raise ValueError(f"{name} {words[name]!r}: {why}; leave it out")
    bridge = words.get("bridge") or DEFAULT_BRIDGE
    if re.fullmatch(BRIDGE_NAME, bridge) is None:
        raise ValueError(f"bridge {bridge!r} is no name such as 'xenbr0' (15 characters)")
    vifname = words.get("vifname") or None
    if vifname is not None and re.fullmatch(_VIFNAME, vifname) is None:
        what = "has other characters than letters, digits and _ . - (64)"
        raise ValueError(f"vifname {vifname!r} {what}")
    return VifConfig(
        bridge=bridge,
        mac=_mac(words["mac"]) if words.get("mac") else None,
        devid=_number("devid", words["devid"], 0, MAX_DEVID) if words.get("devid") else None,
        ip=_address(words["ip"]) if words.get("ip") else None,
        rate=read_rate(words["rate"]) if words.get("rate") else None,
        mtu=_number("mtu", words["mtu"], MIN_MTU, MAX_MTU) if words.get("mtu") else DEFAULT_MTU,
        vifname=vifname,
    )


def complete(
    vifs: Sequence[VifConfig], domain: str, taken: Collection[int] = ()
) -> tuple[VifConfig, ...]:
    """Give the cards of a domain the numbers and addresses that they were given none of.

    No card gets one of the numbers that are ``taken``, by cards that are about to go.
    An address is made of the domain's name and the card's number: each run has the same. Raises
    ValueError where two have one number or address.
    """
    used = {*taken, *(vif.devid for vif in vifs)}
    free = (devid for devid in range(MAX_DEVID + 1) if devid not in used)
    done: list[VifConfig] = []
    for vif in vifs:
        devid = vif.devid
        if devid is None:
            devid = next(free, None)
        if devid is None:
            raise ValueError(f"more than {MAX_DEVID + 1} network cards")
        whole = replace(vif, devid=devid, mac=vif.mac or default_mac(domain, devid))
        for other in done:
            if other.devid == devid:
                raise ValueError(f"devid {devid} is given twice")
            if other.mac == whole.mac:
                raise ValueError(f"{_shown(whole.mac)} is the address of two cards")
        done.append(whole)
    return tuple(done)


def default_mac(domain: str, devid: int) -> bytes:
    """Return the address of a card that was given none, in the range that is Xen's."""
    return _xen_mac(zlib.crc32(f"{domain}/{devid}".encode()) & _OUR_HALF)


def service_mac(bridge: str) -> bytes:
    """Return the address of a bridge's service host, which is no card's default."""
    return _xen_mac(zlib.crc32(bridge.encode()) | _OUR_HALF + 1)


def read_rate(text: str) -> Rate:
    """Read xl's rate, ``10Mb/s`` or ``1MB/s@20ms``; units are powers of ten."""
    match = re.fullmatch(_RATE, text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"rate {text!r} is none such as '10Mb/s' or '1MB/s@20ms'")
    number, unit, kind, interval, of = match.groups()
    bytes_per_s = int(number) * _UNITS[unit] // (8 if kind == "b" else 1)
    interval_ns = int(interval) * _INTERVALS_NS[of] if interval else _DEFAULT_INTERVAL_NS
    if not interval_ns or not bytes_per_s * interval_ns // 10**9:
        raise ValueError(f"rate {text!r} lets nothing pass in an interval")
    return Rate(bytes_per_s * interval_ns // 10**9, interval_ns)


def _xen_mac(number: int) -> bytes:
    return _XEN_PREFIX + (number & 0xFFFFFF).to_bytes(3, "big")


def _shown(mac: bytes | None) -> str:
    return "" if mac is None else format_address(mac)


def _split(text: str) -> dict[str, str]:
    """Take xl's string apart. Nothing, and the number 1, stand for a card that is as usual."""
    if re.fullmatch(r"\s*1?\s*", text):
        return {}
    words: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise ValueError(f"{word.strip()!r} is no key=value, as in 'bridge={DEFAULT_BRIDGE}'")
        if name in words:
            raise ValueError(f"{name!r} is given twice in {text!r}")
        words[name] = value
    return words


def _mac(text: str) -> bytes:
    mac = parse_address(text)
    if not is_station(mac):
        raise ValueError(f"mac {text} is no address of one station")
    return mac


def _number(name: str, text: str, least: int, most: int) -> int:
    if re.fullmatch(r"\d{1,6}", text, re.ASCII) is None or not least <= int(text) <= most:
        raise ValueError(f"{name} {text!r} is no number from {least} to {most}")
    return int(text)


def _address(text: str) -> IPv4Address:
    from ipaddress import AddressValueError, IPv4Address

    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError(f"ip {text!r} is no IPv4 address") from None
