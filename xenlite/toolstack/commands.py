# SPDX-License-Identifier: GPL-2.0-or-later
"""What tools may ask a running host for. COMMANDS is the table; ``control_socket.py`` asks.

Arguments have their types here. What they mean is checked before anything is done: an error names
what the user gave, and nothing has changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenlite.dom0.ethernet import format_address
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.control_protocol import Outcome
from xenlite.toolstack.control_socket import Command, Later
from xenlite.toolstack.disk_config import device_number, read_disk
from xenlite.toolstack.store_nodes import device_ends
from xenlite.toolstack.vif_config import read_vif

if TYPE_CHECKING:
    from xenlite.dom0.xenstore.view import View
    from xenlite.toolstack.host import Host
    from xenlite.toolstack.lifecycle import Guest

MOST_SECONDS: Final = 3600
_NONE: Final = -1  # what xl shows for a number that there is not


# -- domains --------------------------------------------------------------------------------------


def list_domains(host: Host) -> object:
    """Return what there is to say of each domain, Dom0 included."""
    infos = [host.control.info(domid) for domid in host.control.domains()]
    return [
        {
            "name": info.name,
            "domid": info.domid,
            "memory_kib": info.pages * 4,
            "vcpus": info.vcpus,
            "state": info.state.value if info.domid else "r",  # Dom0 is who answers
            "cpu_seconds": round(info.cpu_ns / 1e9, 1),
        }
        for info in infos
    ]


def pause(host: Host, domain: str) -> None:
    """Have a domain stand still."""
    host.control.pause(_domid(host.find(domain)))


def unpause(host: Host, domain: str) -> None:
    """Have it go on."""
    host.control.unpause(_domid(host.find(domain)))


def destroy(host: Host, domain: str) -> None:
    """Take a domain apart."""
    host.destroy(host.find(domain))


def shutdown(host: Host, domain: str) -> None:
    """Ask a guest to power off; whether it does is its own affair."""
    _ask_guest(host, domain, "poweroff")


def reboot(host: Host, domain: str) -> None:
    """Ask a guest to reboot."""
    _ask_guest(host, domain, "reboot")


def console(host: Host, domain: str, number: int) -> str:
    """Return the path of a console's PTY, which then begins with the newest output."""
    guest = host.find(domain)
    channel = host.channel(guest, number)
    if channel is None:
        raise ConfigError(Fault(guest.config.name, f"has no console {number}"))
    if channel.pty is None:
        raise ConfigError(Fault(guest.config.name, f"console {number} has no PTY on this host"))
    channel.pty.freshen()
    return channel.pty.path


def _ask_guest(host: Host, domain: str, wish: str) -> None:
    path = f"/local/domain/{_domid(host.find(domain))}/control/shutdown"
    host.store.server.act_as_tool(lambda view: view.write(path, wish.encode()))


def _domid(guest: Guest) -> int:
    assert guest.domain is not None, guest.config.name
    return guest.domain.domid


# -- disks ----------------------------------------------------------------------------------------


def block_attach(host: Host, domain: str, disk: str, directory: str) -> None:
    """Give a domain a disk, as xl writes it; its target starts at ``directory``."""
    guest = host.find(domain)
    try:
        wanted = read_disk(disk).below(Path(directory))
    except ValueError as error:
        raise ConfigError(Fault("", str(error))) from None
    guest.attach_disk(wanted)


def block_detach(host: Host, domain: str, vdev: str, *, force: bool, seconds: int) -> Later:
    """Take a disk away: when the guest has closed it, or at once with ``force``."""
    guest, number = host.find(domain), _number(vdev)
    _check_seconds(seconds)
    if not guest.has_disk(number):
        raise ConfigError(Fault(guest.config.name, f"has no disk {vdev}"))
    return _detach(host, vdev, partial(guest.detach_disk, number), force=force, seconds=seconds)


def _check_seconds(seconds: int) -> None:
    if not 0 <= seconds <= MOST_SECONDS:
        raise ConfigError(Fault("seconds", f"{seconds} is not between 0 and {MOST_SECONDS}"))


def _detach(
    host: Host,
    name: str,
    detach: Callable[[Callable[[], None] | None], None],
    *,
    force: bool,
    seconds: int,
) -> Later:
    """Take a device away, which ``detach(gone)`` does; an error where the guest keeps it."""
    done = Later()
    if force:
        detach(None)
        done.settle(Outcome())
        return done
    detach(lambda: done.settle(Outcome()))
    what = (
        f"{name}: the guest has not closed it within {seconds} s: it goes when the guest does,"
        " or at once with --force"
    )
    deadline_ns = host.link.now_ns() + seconds * 10**9
    host.link.call_at(deadline_ns, lambda: done.settle(Outcome(error=what)))
    return done


def block_list(host: Host, domain: str) -> object:
    """Return what XenStore says of each disk; what a guest wrote there only where it's a number."""
    return _devices(host, domain, "vbd", _disk)


def _devices(
    host: Host, domain: str, kind: str, show: Callable[[View, int, int], dict[str, object]]
) -> object:
    """Return what ``show(view, domid, number)`` has to say of each device of a kind."""
    domid = _domid(host.find(domain))
    above = f"/local/domain/0/backend/{kind}/{domid}"

    def look(view: View) -> list[dict[str, object]]:
        if not view.exists(above):
            return []
        names = view.directory(above).decode().split("\0")[:-1]
        numbers = sorted(int(name) for name in names if name.isdigit())  # tools may write others
        return [show(view, domid, number) for number in numbers]

    return host.store.server.act_as_tool(look)


def _disk(view: View, domid: int, number: int) -> dict[str, object]:
    front, back = device_ends(domid, "vbd", number)
    return {
        "vdev": number,
        "backend_domid": 0,
        "handle": domid,
        "state": _read_number(view, f"{front}/state"),
        "event_channel": _read_number(view, f"{front}/event-channel"),
        "ring_ref": _read_number(view, f"{front}/ring-ref"),
        "backend": back,
    }


def _read_number(view: View, path: str) -> int:
    value = view.read(path) if view.exists(path) else b""
    return int(value) if re.fullmatch(rb"\d{1,10}", value) else _NONE


def _number(vdev: str) -> int:
    """Read a virtual device's name or number."""
    if re.fullmatch(r"\d{1,10}", vdev, re.ASCII):
        return int(vdev)
    try:
        return device_number(vdev)
    except ValueError as error:
        raise ConfigError(Fault("", str(error))) from None


# -- network cards --------------------------------------------------------------------------------


def network_attach(host: Host, domain: str, vif: str) -> object:
    """Give a domain a network card, as xl writes it; return its number and address."""
    guest = host.find(domain)
    try:
        wanted = read_vif(vif)
    except ValueError as error:
        raise ConfigError(Fault("", str(error))) from None
    made = guest.attach_vif(wanted)
    assert made.mac is not None
    return {"devid": made.devid, "mac": format_address(made.mac)}


def network_detach(host: Host, domain: str, vif: str, *, force: bool, seconds: int) -> Later:
    """Take a card away, by number or address: when the guest has closed it, or with ``force``."""
    guest = host.find(domain)
    _check_seconds(seconds)
    devid = guest.find_vif(vif)
    if devid is None:
        raise ConfigError(Fault(guest.config.name, f"has no network card {vif}"))
    return _detach(host, vif, partial(guest.detach_vif, devid), force=force, seconds=seconds)


def network_list(host: Host, domain: str) -> object:
    """Return what XenStore says of each card; what a guest wrote there only where it's a number."""
    return _devices(host, domain, "vif", _card)


def network_stats(host: Host) -> object:
    """Return what has passed the stations of all networks."""
    return host.networks().statistics()


def _card(view: View, domid: int, number: int) -> dict[str, object]:
    front, back = device_ends(domid, "vif", number)
    return {
        "devid": number,
        "backend_domid": 0,
        "mac": view.read(f"{back}/mac").decode(errors="replace"),
        "handle": number,
        "state": _read_number(view, f"{front}/state"),
        "event_channel": _read_number(view, f"{front}/event-channel"),
        "tx_ring_ref": _read_number(view, f"{front}/tx-ring-ref"),
        "rx_ring_ref": _read_number(view, f"{front}/rx-ring-ref"),
        "backend": back,
    }


COMMANDS: Final = {
    "list": Command(list_domains, {}),
    "pause": Command(pause, {"domain": str}),
    "unpause": Command(unpause, {"domain": str}),
    "destroy": Command(destroy, {"domain": str}),
    "shutdown": Command(shutdown, {"domain": str}),
    "reboot": Command(reboot, {"domain": str}),
    "console": Command(console, {"domain": str, "number": int}),
    "block-attach": Command(block_attach, {"domain": str, "disk": str, "directory": str}),
    "block-detach": Command(
        block_detach, {"domain": str, "vdev": str, "force": bool, "seconds": int}
    ),
    "block-list": Command(block_list, {"domain": str}),
    "network-attach": Command(network_attach, {"domain": str, "vif": str}),
    "network-detach": Command(
        network_detach, {"domain": str, "vif": str, "force": bool, "seconds": int}
    ),
    "network-list": Command(network_list, {"domain": str}),
    "network-stats": Command(network_stats, {}),
}
