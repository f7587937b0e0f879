# SPDX-License-Identifier: GPL-2.0-or-later
"""A console behind the first, as XenStore shows it; ``console.py`` serves its ring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xenlite.dom0.backend_device import MAX_NUMBER, BackendDevice
from xenlite.dom0.console import Console
from xenlite.dom0.device_status import DeviceStatus
from xenlite.dom0.xenbus import BLOCK_TRANSITIONS

if TYPE_CHECKING:
    from xenlite.dom0.backend_device import DevicePaths, FrontendNodes
    from xenlite.dom0.console import Outer
    from xenlite.dom0.xenbus import DeviceStore, State
    from xenlite.doors import Link
    from xenlite.errors import PeerError


class ConsoleDevice:
    """One more console of a domain, as XenStore shows it. ``broken`` hears what is done wrong."""

    def __init__(
        self,
        link: Link,
        store: DeviceStore,
        paths: DevicePaths,
        outer: Outer,
        broken: Callable[[PeerError], None],
    ) -> None:
        self._connect = partial(Console, link, paths.frontend_domid)
        self._outer = outer
        self._device = BackendDevice(
            store,
            paths,
            BLOCK_TRANSITIONS,
            nodes={},
            connect=self._join,
            broken=broken,
            rejoins=True,
        )

    @property
    def state(self) -> State:
        """Return the state that the backend shows."""
        return self._device.state

    @property
    def waiting_bytes(self) -> int:
        """Return how much input the guest has not had room for."""
        console = self._device.connection
        return 0 if console is None else console.waiting_bytes

    def status(self, number: int) -> DeviceStatus:
        """Return what it is doing."""
        console = self._device.connection
        return DeviceStatus(
            f"console {number}",
            self.state,
            self._device.seen,
            {} if console is None else console.indexes(),
            {} if console is None else console.counts(),
        )

    def feed(self, data: bytes) -> None:
        """Give the guest input; while its frontend is away there is nobody to keep it for."""
        if self._device.connection is not None:
            self._device.connection.feed(data)

    def close(self) -> None:
        """Take the console away, with its last output."""
        self._device.close()

    def _join(self, nodes: FrontendNodes) -> Console:
        """Join the frontend's page. Raises PeerError, Refused."""
        ref = nodes.number("ring-ref", 0, MAX_NUMBER)
        port = nodes.number("port", 0, MAX_NUMBER)
        return self._connect(ref, port, self._outer, self._device.lost)
