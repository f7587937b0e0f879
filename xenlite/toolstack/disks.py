# SPDX-License-Identifier: GPL-2.0-or-later
"""Give a domain its disks: image, XenStore nodes, backend; and take them away again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.image import RawImage
from xenlite.dom0.vbd import Vbd, vbd_paths
from xenlite.toolstack.attached import AttachedDevices
from xenlite.toolstack.store_nodes import device_paths, vbd_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.dom0.device_status import DeviceStatus
    from xenlite.dom0.xenstore.store import XenStore
    from xenlite.doors import Link
    from xenlite.errors import PeerError
    from xenlite.toolstack.disk_config import DiskConfig


def open_images(disks: Sequence[DiskConfig], undo: ExitStack) -> list[RawImage]:
    """Open the images of all disks. Raises ConfigError for the first that can't be used."""
    images = []
    for disk in disks:
        image = RawImage(disk.target, read_only=disk.read_only)
        undo.callback(image.close)
        images.append(image)
    return images


class Disks:
    """The disks of one running domain. ``broken`` hears what its frontends do wrong."""

    def __init__(
        self,
        link: Link,
        store: XenStore,
        domid: int,
        undo: ExitStack,
        broken: Callable[[PeerError], None],
    ) -> None:
        self._link = link
        self._store = store
        self._domid = domid
        self._broken = broken
        self._nodes = Dom0Store(link, store.server)
        self._attached = AttachedDevices()
        undo.callback(self._close)

    def __contains__(self, number: int) -> bool:
        """Tell whether there is a disk of that number."""
        return number in self._attached

    def status(self) -> list[DeviceStatus]:
        """Return what each disk is doing."""
        return self._attached.status()

    def open_and_attach(self, disk: DiskConfig) -> None:
        """Show one more disk to the domain. Raises ConfigError where its image can't be used."""
        with ExitStack() as undo:
            [image] = open_images([disk], undo)
            self.attach(disk, image)
            undo.pop_all()  # the image is the disk's

    def attach(self, disk: DiskConfig, image: RawImage) -> Vbd:
        """Show a disk to the domain, which may run already. The image goes with the disk."""
        paths = vbd_paths(self._link.domid, self._domid, disk.number)
        with ExitStack() as undo:
            undo.callback(image.close)
            undo.callback(self._store.remove, device_paths(self._domid, "vbd", disk.number))
            self._store.put(
                vbd_nodes(
                    self._domid,
                    disk.number,
                    disk.vdev,
                    f"aio:{disk.target}",
                    mode="r" if disk.read_only else "w",
                    kind="cdrom" if disk.is_cdrom else "disk",
                )
            )
            vbd = Vbd(
                self._link,
                self._nodes,
                paths,
                image,
                read_only=disk.read_only,
                is_cdrom=disk.is_cdrom,
                broken=self._broken,
            )
            undo.callback(vbd.close)
            self._attached.add(disk.number, vbd, undo.pop_all())
        return vbd

    def detach(self, number: int) -> None:
        """Take a disk away, whatever its frontend is doing."""
        self._attached.detach(number)

    def ask_back(self, number: int, gone: Callable[[], None]) -> None:
        """Take a disk away when its frontend has closed it, which it is asked to; then ``gone``."""
        self._attached.ask_back(number, gone)

    def _close(self) -> None:
        self._attached.close()
        self._nodes.close()
