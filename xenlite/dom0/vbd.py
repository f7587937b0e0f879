# SPDX-License-Identifier: GPL-2.0-or-later
"""One disk of one domain, as XenStore shows it: the backend that a frontend meets.

The device lives from ``__init__`` to ``close``; in between its frontend may connect and disconnect
as often as it likes (GRUB does, then the kernel that it boots). What it may show when, and what
happens then, is ``xenbus.TRANSITIONS``. A connection takes what the frontend has written at that
moment, once; what it rewrites later changes nothing until it connects again.

Nothing here assumes that the backend runs in Dom0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import VDISK_CDROM, VDISK_READONLY
from xenlite.dom0.blkback import BlockRing, Offer
from xenlite.dom0.blkif import MAX_INDIRECT_SEGMENTS, NATIVE, SECTOR, WIRES, Disk
from xenlite.dom0.image import ImageWorker
from xenlite.dom0.xenbus import Action, State, parse_state, step
from xenlite.errors import PeerError, Refused

if TYPE_CHECKING:
    from xenlite.dom0.image import Image
    from xenlite.dom0.xenbus import DeviceStore
    from xenlite.doors import Link

MAX_RING_ORDER: Final = 4  # 16 pages, 512 slots
_MOST_STEPS: Final = 4  # the longest way through the states without news from the frontend
_MOST_COMPLAINTS: Final = 10  # lines about one frontend: it can be wrong without end
_MOST_SHOWN: Final = 32  # characters of a value that makes no sense


@dataclass(frozen=True, slots=True)
class VbdPaths:
    """Where the two ends of a disk are in XenStore."""

    backend: str
    frontend: str
    frontend_domid: int


def vbd_paths(backend_domid: int, frontend_domid: int, number: int) -> VbdPaths:
    """Return the places that every toolstack uses."""
    return VbdPaths(
        f"/local/domain/{backend_domid}/backend/vbd/{frontend_domid}/{number}",
        f"/local/domain/{frontend_domid}/device/vbd/{number}",
        frontend_domid,
    )


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
        paths: VbdPaths,
        image: Image,
        *,
        read_only: bool,
        is_cdrom: bool = False,
        broken: Callable[[PeerError], None],
        latency_ns: int = 0,
    ) -> None:
        self._link = link
        self._store = store
        self._paths = paths
        self._image = image
        self._tell_broken = broken
        self._complaints = 0
        self._latency_ns = latency_ns
        self.disk = Disk(image.size_bytes // SECTOR, read_only, image.can_discard)
        self.state = State.INITIALISING
        self.ring: BlockRing | None = None
        self._is_draining = False
        self._is_closed = False
        for name, value in features(self.disk, is_cdrom=is_cdrom).items():
            store.write(f"{paths.backend}/{name}", value)
        self._show(State.INIT_WAIT)
        self._worker = ImageWorker(link)
        self._watch = store.watch(f"{paths.frontend}/state", self._frontend_changed)

    def close(self) -> None:
        """Take the device away: I/O that is in work is finished first. The image stays open."""
        self._is_closed = True
        self._store.unwatch(self._watch)
        if self.ring is not None:
            self.ring.close(_nothing)
            self.ring = None
        self._worker.close()

    # -- states -------------------------------------------------------------------------------

    def _frontend_changed(self) -> None:
        """Go as far as what the frontend shows now leads."""
        for _ in range(_MOST_STEPS):
            if self._is_closed or self._is_draining:
                return
            seen = parse_state(self._store.read(f"{self._paths.frontend}/state"))
            action, state = step(self.state, seen)
            if state is self.state:
                return
            if action is Action.CONNECT and not self._connect():
                self._show(State.CLOSING)
                return
            if action is Action.DISCONNECT and self.ring is not None:
                self._disconnect(state)
                continue
            self._show(state)
            if action is Action.CONNECT and self.ring is not None:
                self.ring.start()

    def _show(self, state: State) -> None:
        self.state = state
        self._store.write(f"{self._paths.backend}/state", str(state.value))

    def _disconnect(self, then: State) -> None:
        """Close the ring; the state shows only when none of the guest's pages is in use."""
        ring, self.ring = self.ring, None
        assert ring is not None
        self._is_draining = True

        def drained() -> None:
            self._is_draining = False
            if not self._is_closed:
                self._show(then)
                self._frontend_changed()

        ring.close(drained)

    # -- connecting ---------------------------------------------------------------------------

    def _connect(self) -> bool:
        """Join the frontend's ring; False, and a word about it, where that can't be."""
        try:
            self.ring = BlockRing(
                self._link,
                self._read_offer(),
                self.disk,
                self._image,
                self._worker,
                broken=self._broken,
                latency_ns=self._latency_ns,
            )
        except (PeerError, Refused) as error:
            self._complain(f"cannot connect: {error}")
            return False
        return True

    def _broken(self, error: PeerError) -> None:
        self._complain(str(error))
        self._disconnect(State.CLOSING)

    def _complain(self, what: str) -> None:
        self._complaints += 1
        if self._complaints <= _MOST_COMPLAINTS:
            self._tell_broken(PeerError(f"{self._paths.frontend}: {what}"))

    def _read_offer(self) -> Offer:
        """Read what the frontend has written, once. Raises PeerError."""
        protocol = self._store.read(f"{self._paths.frontend}/protocol")
        if protocol and protocol not in WIRES:
            known = " nor ".join(WIRES)
            raise PeerError(f"protocol {protocol[:_MOST_SHOWN]!r} is neither {known}")
        order = self._number("ring-page-order", 0, MAX_RING_ORDER, default=0)
        names = ["ring-ref"] if not order else [f"ring-ref{n}" for n in range(1 << order)]
        if not order and self._store.read(f"{self._paths.frontend}/ring-ref") is None:
            names = ["ring-ref0"]
        return Offer(
            domid=self._paths.frontend_domid,
            ring_refs=tuple(self._number(name, 0, 0xFFFFFFFF) for name in names),
            port=self._number("event-channel", 0, 0xFFFFFFFF),
            persistent=self._number("feature-persistent", 0, 1, default=0) == 1,
            wire=WIRES[protocol] if protocol else NATIVE,
        )

    def _number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        text = self._store.read(f"{self._paths.frontend}/{name}")
        if text is None:
            if default is not None:
                return default
            raise PeerError(f"{name} is missing")
        if re.fullmatch(r"\d{1,10}", text, re.ASCII) is None:
            raise PeerError(f"{name} is {text[:_MOST_SHOWN]!r}, which is no number")
        number = int(text)
        if not least <= number <= most:
            raise PeerError(f"{name} is {number}, not between {least} and {most}")
        return number


def _nothing() -> None:
    """Do nothing: nobody waits for it."""
