# SPDX-License-Identifier: GPL-2.0-or-later
"""What a toolstack writes into XenStore for a domain, and who may read and change it.

Values and rights are those that xl writes; docs/xenstore.md lists them in one table.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import XenbusStateInitialising
from xenlite.dom0.xenstore.paths import home
from xenlite.dom0.xenstore.permissions import DOM0_ONLY, Access, Permission
from xenlite.dom0.xenstore.store import StoreNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xenlite.dom0.xenstore.permissions import Permissions
    from xenlite.toolstack.builder import BuiltDomain
    from xenlite.toolstack.domain_config import DomainConfig

CONSOLE_LIMIT_BYTES: Final = 1 << 20
# Empty, and the guest's to fill.
GUESTS_OWN: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)
_CONSOLE: Final = {"limit": str(CONSOLE_LIMIT_BYTES), "type": "xenconsoled", "output": "pty"}
KINDS: Final = ("console", "vbd", "vif")
# Empty, and only read by the guest; what lies below has rights of its own.
GUEST_READS: Final = ("cpu", "memory", "device", "control")


def host_nodes() -> list[StoreNode]:
    """Return what is there before any domain."""
    dom0 = home(0)
    return [
        StoreNode("/tool/xenstored"),
        StoreNode(f"{dom0}/domid", "0"),
        StoreNode(f"{dom0}/name", "Domain-0"),
    ]


def new_uuid() -> str:
    """Choose a domain's UUID (version 4) at random."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def domain_nodes(
    config: DomainConfig, domain: BuiltDomain, uuid: str, tty: str = ""
) -> list[StoreNode]:
    """Return the nodes of a domain, its first console, which has that ``tty``, among them."""
    domid, top, vm = domain.domid, home(domain.domid), f"/vm/{uuid}"
    reads = _reads(domid)
    values = {
        "vm": vm,
        "name": config.name,
        "domid": str(domid),
        "memory/static-max": str(config.maxmem_mib << 10),
        "memory/target": str(config.memory_mib << 10),
        "memory/videoram": "0",
        "store/port": str(domain.store_port),
        "store/ring-ref": str(domain.store_mfn),
        **{
            f"cpu/{cpu}/availability": "online" if cpu < config.vcpus else "offline"
            for cpu in range(config.maxvcpus)
        },
    }
    return [
        StoreNode(top, permissions=reads),
        StoreNode(vm, permissions=reads),
        StoreNode(f"{vm}/name", config.name, reads),
        StoreNode(f"{vm}/uuid", uuid, reads),
        StoreNode(f"/libxl/{domid}"),
        StoreNode(f"/libxl/{domid}/type", "pv"),
        *(StoreNode(f"{top}/{name}", permissions=reads) for name in GUEST_READS),
        *(StoreNode(f"{top}/{name}", permissions=_owns(domid)) for name in GUESTS_OWN),
        *(StoreNode(f"{top}/{name}", value, reads) for name, value in values.items()),
        *_first_console(domain, tty),
    ]


def domain_paths(domid: int, uuid: str) -> list[str]:
    """Return what has to go with a domain, beside what it owns itself."""
    backends = [f"{home(0)}/backend/{kind}/{domid}" for kind in KINDS]
    return [home(domid), f"/vm/{uuid}", f"/libxl/{domid}", *backends]


def vbd_nodes(
    domid: int,
    device: int,
    name: str,
    params: str,
    *,
    mode: str,
    kind: str = "disk",
    backend_domid: int = 0,
) -> list[StoreNode]:
    """Return the nodes of a disk or cdrom whose backend finds it by ``params``; ``mode`` is r or w.

    ``device`` is the number of the virtual device that ``name`` (xvda) stands for. The backend runs
    in Dom0, or in a driver domain, which then owns the backend's nodes.
    """
    return _device(
        domid,
        "vbd",
        device,
        front={"virtual-device": str(device), "device-type": kind},
        back={
            "params": params,
            "dev": name,
            "mode": mode,
            "type": "phy",
            "device-type": kind,
            "bootable": "1",
            "removable": str(int(kind == "cdrom")),
        },
        backend_domid=backend_domid,
    )


def vif_nodes(
    domid: int, handle: int, mac: str, *, mtu: int, more: Mapping[str, str]
) -> list[StoreNode]:
    """Return the nodes of a network card; both ends can read its address.

    ``more`` is what its backend's directory says beside: its bridge, and what was asked for.
    """
    common = {"handle": str(handle), "mac": mac}
    front = {**common, "mtu": str(mtu)}
    return _device(domid, "vif", handle, front=front, back={**common, "type": "vif", **more})


def console_nodes(domid: int, number: int, tty: str, name: str) -> list[StoreNode]:
    """Return the nodes of a console behind the first; only we say where its output goes."""
    told = {**_CONSOLE, "tty": tty, **({"name": name} if name else {})}
    back = {"protocol": "vt100"}
    return _device(domid, "console", number, front={}, back=back, told=told)


def device_paths(domid: int, kind: str, device: int, backend_domid: int = 0) -> list[str]:
    """Return what has to go with a device."""
    ends = device_ends(domid, kind, device, backend_domid)
    return [*ends, f"/libxl/{domid}/device/{kind}/{device}"]


def device_ends(domid: int, kind: str, device: int, backend_domid: int = 0) -> tuple[str, str]:
    """Return where the guest's end of a device is, and where the backend's."""
    front = f"{home(domid)}/device/{kind}/{device}"
    return front, f"{home(backend_domid)}/backend/{kind}/{domid}/{device}"


def _device(
    domid: int,
    kind: str,
    device: int,
    *,
    front: dict[str, str],
    back: dict[str, str],
    told: Mapping[str, str] | None = None,
    backend_domid: int = 0,
) -> list[StoreNode]:
    """Return the nodes of a device: each end owns its own and reads the other's.

    What the guest is ``told`` is in its end, and only read there.
    """
    state = {"state": str(XenbusStateInitialising)}
    front_path, back_path = device_ends(domid, kind, device, backend_domid)
    links = {"frontend": front_path, "backend": back_path}
    front = {"backend": back_path, "backend-id": str(backend_domid), **state, **front}
    back = {"frontend": front_path, "frontend-id": str(domid), "online": "1", **state, **back}
    owns = (*_owns(domid), Permission(backend_domid, Access.READ))
    reads = (*_owns(backend_domid), Permission(domid, Access.READ))
    return [
        *_directory(f"/libxl/{domid}/device/{kind}/{device}", DOM0_ONLY, links),
        *_directory(front_path, owns, front),
        *(
            StoreNode(f"{front_path}/{name}", value, _reads(domid))
            for name, value in (told or {}).items()
        ),
        *_directory(back_path, reads, back),
    ]


def _first_console(domain: BuiltDomain, tty: str) -> Iterable[StoreNode]:
    """Return the console's nodes: unlike with other devices, the guest may only read its end."""
    domid = domain.domid
    front, back = f"{home(domid)}/console", f"{home(0)}/backend/console/{domid}/0"
    reads = _reads(domid)
    yield from _directory(
        front,
        reads,
        {
            "backend": back,
            "backend-id": "0",
            **_CONSOLE,
            "tty": tty,
            "port": str(domain.console_port),
            "ring-ref": str(domain.console_mfn),
        },
    )
    yield from _directory(
        back,
        reads,
        {
            "frontend": front,
            "frontend-id": str(domid),
            "online": "1",
            "state": str(XenbusStateInitialising),
            "protocol": "vt100",
        },
    )


def _directory(
    path: str, permissions: Permissions, values: Mapping[str, str]
) -> Iterable[StoreNode]:
    yield StoreNode(path, permissions=permissions)
    for name, value in values.items():
        yield StoreNode(f"{path}/{name}", value, permissions)


def _reads(domid: int) -> Permissions:
    return (*DOM0_ONLY, Permission(domid, Access.READ))


def _owns(domid: int) -> Permissions:
    return (Permission(domid, Access.NONE),)
