# SPDX-License-Identifier: GPL-2.0-or-later
"""A process of a driver domain that serves disks, which may be killed at any moment.

The domain's kernel is Python, so this file is also what such a kernel has to know of its process:
what it has open (``TaskLink``), to take it back when it ends, however it ends::

    kill --> no event, watch, timer or finished I/O reaches it any more
         --> the I/O that is in guests' pages just now ends; what waits is dropped
         --> ports close, grants are given back, files close, XenStore forgets its watches

Frontends are told nothing. Their nodes stay, and so does the backend's state: one that is started
afterwards finds it, and has the frontend begin anew (``backend_device.py``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from xenlite.dom0.device_store import Dom0Store
from xenlite.dom0.vbd import Vbd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.dom0.backend_device import DevicePaths
    from xenlite.dom0.image import Image
    from xenlite.dom0.xenstore.server import Server
    from xenlite.doors import GrantedPages, GrantMapping, Link
    from xenlite.errors import PeerError

Answer = TypeVar("Answer")


class TaskLink:
    """A ``Link`` that knows what was opened through it, and can be cut."""

    def __init__(self, link: Link) -> None:
        self.domid = link.domid
        self._link = link
        self._is_cut = False
        self._mappings: set[GrantMapping] = set()
        self._pinned: set[GrantedPages] = set()
        self._ports: set[int] = set()

    def cut(self) -> None:
        """Let nothing that comes later through. From now on nobody may call anything here."""
        self._is_cut = True

    def give_back(self) -> None:
        """Close and unmap what is open."""
        for port in self._ports:
            self._link.close(port)
        for mapping in self._mappings:
            self._link.unmap_grant(mapping)
        for pages in self._pinned:
            self._link.unpin_grants(pages)

    def map_grant(self, granter: int, ref: int, *, writable: bool) -> GrantMapping:
        """Map the page that ``granter`` offers to this domain under ``ref``."""
        mapping = self._link.map_grant(granter, ref, writable=writable)
        self._mappings.add(mapping)
        return mapping

    def unmap_grant(self, mapping: GrantMapping) -> None:
        """Give the page back."""
        self._link.unmap_grant(mapping)
        self._mappings.discard(mapping)

    def with_grants(
        self,
        granter: int,
        refs: Sequence[int],
        use: Callable[[list[memoryview]], Answer],
        *,
        writable: bool,
    ) -> Answer:
        """Have ``use`` read, or write, the pages that ``granter`` offers under ``refs``."""
        return self._link.with_grants(granter, refs, use, writable=writable)

    def pin_grants(self, granter: int, refs: Sequence[int], *, writable: bool) -> GrantedPages:
        """Pin the pages that ``granter`` offers under ``refs`` for one transfer, all or none."""
        pages = self._link.pin_grants(granter, refs, writable=writable)
        self._pinned.add(pages)
        return pages

    def unpin_grants(self, pages: GrantedPages) -> None:
        """Give them back."""
        self._link.unpin_grants(pages)
        self._pinned.discard(pages)

    def copy_from_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Copy pieces out of the pages that ``granter`` offers; empty where one is refused."""
        return self._link.copy_from_grants(granter, refs, offsets, sizes)

    def copy_to_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], contents: Sequence[bytes]
    ) -> list[int]:
        """Copy into pages that ``granter`` offers; return the indexes of what was refused."""
        return self._link.copy_to_grants(granter, refs, offsets, contents)

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Join ``remote``'s unbound port; return the local port."""
        port = self._link.bind_interdomain(remote, remote_port)
        self._ports.add(port)
        return port

    def close(self, port: int) -> None:
        """Close a local port."""
        self._link.close(port)
        self._ports.discard(port)

    def notify(self, port: int) -> None:
        """Send an event through a local port."""
        self._link.notify(port)

    def on_event(self, port: int, handler: Callable[[], None]) -> None:
        """Run ``handler`` each time ``port`` has become pending."""
        self._link.on_event(port, partial(self._run, handler))

    def defer(self, work: Callable[[], None], *, charge: int | None = None) -> None:
        """Run ``work`` once, soon. From any thread."""
        self._link.defer(partial(self._run, work), charge=charge)

    def on_end(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Run ``handler`` before this domain is taken apart; return what takes the wish back."""
        return self._link.on_end(handler)

    def payer(self) -> int | None:
        """Tell at whose expense the work is that is being done."""
        return self._link.payer()

    def now_ns(self) -> int:
        """Read the machine's monotonic clock."""
        return self._link.now_ns()

    def call_at(
        self, deadline_ns: int, work: Callable[[], None], *, charge: int | None = None
    ) -> None:
        """Run ``work`` once, when the machine's clock has come so far."""
        self._link.call_at(deadline_ns, partial(self._run, work), charge=charge)

    def _run(self, work: Callable[[], None]) -> None:
        if not self._is_cut:
            work()


class DriverTask:
    """The process: disks of any number of frontends, with the rights of its domain.

    It is killed with its domain, so that no worker writes into pages that are pinned no more.
    """

    def __init__(self, link: Link, server: Server, broken: Callable[[PeerError], None]) -> None:
        self._link = TaskLink(link)
        self._store = Dom0Store(self._link, server)
        self._broken = broken
        self._disks: list[tuple[Vbd, Image]] = []
        self._forget_end = self._link.on_end(self.kill)

    def serve(
        self, paths: DevicePaths, image: Image, *, read_only: bool = False, latency_ns: int = 0
    ) -> Vbd:
        """Be the backend of a disk whose nodes are there; the image is closed with the process."""
        vbd = Vbd(
            self._link,
            self._store,
            paths,
            image,
            read_only=read_only,
            broken=self._broken,
            latency_ns=latency_ns,
        )
        self._disks.append((vbd, image))
        return vbd

    def kill(self) -> None:
        """End at once; returns when none of anybody's pages is in use."""
        self._forget_end()
        self._link.cut()
        self._store.close()
        for vbd, _ in self._disks:
            vbd.abandon()
        self._link.give_back()
        for _, image in self._disks:
            image.close()
