# SPDX-License-Identifier: GPL-2.0-or-later
"""One disk of one domain, as XenStore shows it: the backend that a frontend meets.

Its frontend may connect and disconnect as often as it likes (GRUB does, then the kernel that it
boots); ``backend_device.py`` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import VDISK_CDROM, VDISK_READONLY
from xenlite.dom0.backend_device import (
    MAX_NUMBER,
    BackendDevice,
    DevicePaths,
    FrontendNodes,
    device_paths,
    shown,
)
from xenlite.dom0.blkback import BlockRing, Offer
from xenlite.dom0.blkif import MAX_INDIRECT_SEGMENTS, NATIVE, SECTOR, WIRES, Disk
from xenlite.dom0.device_status import DeviceStatus
from xenlite.dom0.image import ImageWorker
from xenlite.dom0.xenbus import BLOCK_TRANSITIONS
from xenlite.errors import PeerError

if TYPE_CHECKING:
    from xenlite.dom0.image import Image
    from xenlite.dom0.xenbus import DeviceStore, State
    from xenlite.doors import Link

MAX_RING_ORDER: Final = 4  # 16 pages, 512 slots


def vbd_paths(backend_domid: int, frontend_domid: int, number: int) -> DevicePaths:
    """Return where a disk's two ends are in XenStore."""
    return device_paths("vbd", backend_domid, frontend_domid, number)


def features(disk: Disk, *, is_cdrom: bool = False) -> Mapping[str, str]:
    """Return the nodes by which a backend describes its disk; they stand before it waits."""
    info = (VDISK_CDROM if is_cdrom else 0) | (VDISK_READONLY if disk.read_only else 0)
    return {
        "sectors": str(disk.sectors),
        "sector-size": str(SECTOR),
        "physical-sector-size": str(SECTOR),
        "info": str(info),
        "feature-barrier": "1",
        "feature-flush-cache": "1",
        "feature-discard": str(int(disk.can_discard)),
        "feature-persistent": "1",
        "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
        "max-ring-page-order": str(MAX_RING_ORDER),
    }


class Vbd:
    """The backend of one disk. ``broken`` hears what its frontend does wrong."""

    def __init__(
        self,
        link: Link,
        store: DeviceStore,
        paths: DevicePaths,
        image: Image,
        *,
        read_only: bool,
        is_cdrom: bool = False,
        broken: Callable[[PeerError], None],
        latency_ns: int = 0,
    ) -> None:
        self._link = link
        self._frontend_domid = paths.frontend_domid
        self._number = paths.number
        self._image = image
        self._latency_ns = latency_ns
        self._worker = ImageWorker(link, charge=paths.frontend_domid)
        self.disk = Disk(image.size_bytes // SECTOR, read_only, image.can_discard)
        self._device = BackendDevice(
            store,
            paths,
            BLOCK_TRANSITIONS,
            nodes=features(self.disk, is_cdrom=is_cdrom),
            connect=self._connect,
            broken=broken,
            rejoins=False,
        )

    @property
    def state(self) -> State:
        """Return the state that the backend shows."""
        return self._device.state

    @property
    def ring(self) -> BlockRing | None:
        """Return the ring of a connected frontend."""
        return self._device.connection

    def status(self) -> DeviceStatus:
        """Return what it is doing."""
        ring = self.ring
        return DeviceStatus(
            f"vbd {self._number}",
            self.state,
            self._device.seen,
            {} if ring is None else ring.indexes(),
            {} if ring is None else ring.counts(),
        )

    def close(self) -> None:
        """Take the device away: I/O that is in work is finished first. The image stays open."""
        self._device.close()
        self._worker.close()

    def ask_to_close(self, released: Callable[[], None]) -> None:
        """Have the frontend close the disk; see ``BackendDevice``."""
        self._device.ask_to_close(released, self._link.defer)

    def abandon(self) -> None:
        """Stop without a word to the frontend, as a process that is killed; call nothing else then.

        I/O that is at this moment in the guest's pages ends first; what waits is not done.
        """
        self._worker.abandon()
        self._device.abandon()

    def _connect(self, nodes: FrontendNodes) -> BlockRing:
        """Join the frontend's ring. Raises PeerError, Refused."""
        return BlockRing(
            self._link,
            self._read_offer(nodes),
            self.disk,
            self._image,
            self._worker,
            broken=self._device.lost,
            latency_ns=self._latency_ns,
        )

    def _read_offer(self, nodes: FrontendNodes) -> Offer:
        """Read what the frontend has written, once. Raises PeerError."""
        protocol = nodes.text("protocol")
        if protocol and protocol not in WIRES:
            raise PeerError(f"protocol {shown(protocol)} is neither {' nor '.join(WIRES)}")
        order = nodes.number("ring-page-order", 0, MAX_RING_ORDER, default=0)
        names = ["ring-ref"] if not order else [f"ring-ref{n}" for n in range(1 << order)]
        if not order and nodes.text("ring-ref") is None:
            names = ["ring-ref0"]
        return Offer(
            domid=self._frontend_domid,
            ring_refs=tuple(nodes.number(name, 0, MAX_NUMBER) for name in names),
            port=nodes.number("event-channel", 0, MAX_NUMBER),
            persistent=nodes.flag("feature-persistent"),
            wire=WIRES[protocol] if protocol else NATIVE,
        )
