# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring one domain to life, and decide what becomes of it when it shuts down."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    GNTTAB_RESERVED_CONSOLE,
    SHUTDOWN_NAMES,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
)
from xenlite.dom0.console import Console, Outer
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.builder import BuiltDomain, build
from xenlite.toolstack.consoles import attach_devices
from xenlite.toolstack.domain_config import Reaction
from xenlite.toolstack.image import parse_kernel
from xenlite.toolstack.packed import MAX_IMAGE_BYTES, unpack
from xenlite.toolstack.store_nodes import domain_nodes, domain_paths, new_uuid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from xenlite.dom0.image import RawImage
    from xenlite.dom0.xenstore.store import XenStore
    from xenlite.doors import Control, Link
    from xenlite.errors import PeerError
    from xenlite.toolstack.consoles import Channel
    from xenlite.toolstack.disk_config import DiskConfig
    from xenlite.toolstack.disks import Disks
    from xenlite.toolstack.domain_config import DomainConfig
    from xenlite.toolstack.networks import Networks
    from xenlite.toolstack.symbols import Symbols
    from xenlite.toolstack.vif_config import VifConfig
    from xenlite.toolstack.vifs import Vifs

# A domain that restarts more often than this within the window is in a loop.
RESTARTS: Final = 5
RESTART_WINDOW_NS: Final = 60 * 10**9

EXIT_POWEROFF: Final = 0
EXIT_SHUTDOWN_BASE: Final = 16
EXIT_SHUTDOWN_LAST: Final = 123  # 124 is a timeout's, and shells use what follows


def exit_status(reason: int) -> int:
    """Return the exit status for a shutdown reason, which a guest may choose from 0 to 255."""
    if reason == SHUTDOWN_poweroff:
        return EXIT_POWEROFF
    return min(EXIT_SHUTDOWN_BASE + reason, EXIT_SHUTDOWN_LAST)


def reason_name(reason: int) -> str:
    """Name a shutdown reason; guests of the older call may give any number."""
    name = SHUTDOWN_NAMES.get(reason)
    return f"reason {reason}" if name is None else name.removeprefix("SHUTDOWN_")


def reaction(config: DomainConfig, reason: int) -> Reaction:
    """Say what the owner wants done: a reason that is no poweroff and no reboot is a crash."""
    if reason == SHUTDOWN_poweroff:
        return config.on_poweroff
    if reason in (SHUTDOWN_reboot, SHUTDOWN_soft_reset):
        return config.on_reboot
    return config.on_crash


class RestartLimit:
    """Allow RESTARTS restarts in any RESTART_WINDOW_NS, so that a boot loop ends."""

    def __init__(self) -> None:
        self._at: deque[int] = deque()

    def allows(self, now_ns: int) -> bool:
        """Tell whether one more restart is allowed now, and count it if so."""
        while self._at and now_ns - self._at[0] >= RESTART_WINDOW_NS:
            self._at.popleft()
        if len(self._at) >= RESTARTS:
            return False
        self._at.append(now_ns)
        return True


class Guest:
    """One configured domain: its files, read once; and the domain that runs them, if one does."""

    def __init__(self, config: DomainConfig) -> None:
        self.config = config
        self._kernel_file = read_file(config.kernel)
        self.image = parse_kernel(self._kernel_file, str(config.kernel))
        self._symbols: Symbols | None = None
        self.ramdisk = b"" if config.ramdisk is None else read_file(config.ramdisk)
        self.uuid = new_uuid()
        self.restarts = RestartLimit()
        self.domain: BuiltDomain | None = None
        self.console: Console | None = None
        self.disks: Disks | None = None
        self.vifs: Vifs | None = None
        self._make_disks: Callable[[ExitStack], Disks]
        self._make_vifs: Callable[[ExitStack], Vifs]
        self._undo = ExitStack()

    def start(
        self,
        control: Control,
        link: Link,
        store: XenStore,
        *,
        broken: Callable[[PeerError], None],
        networks: Callable[[], Networks] | None = None,
        channels: Sequence[Channel] = (),
        sink: Callable[[int, bytes], None] = lambda _domid, _data: None,
        built: Callable[[int], None] | None = None,
    ) -> BuiltDomain:
        """Build the domain, tell the store, join its consoles to ``channels``, let it run.

        Where there are none, ``sink(domid, bytes)`` takes the first console's output instead.
        ``broken`` hears where the guest breaks a device; both have to live with it. ``networks()``
        are the host's, which a domain without network cards needs none of.

        The store's undo comes before the domain's: it gives back the page and port that it uses.
        ``built`` is called before its first instruction.
        """
        assert self.domain is None, f"{self.config.name} runs already"
        with ExitStack() as undo:
            images = self._open_images(undo)
            domain = build(control, self.config, self.image, self.ramdisk, undo)
            undo.callback(store.remove, domain_paths(domain.domid, self.uuid))
            tty = channels[0].tty if channels else ""
            store.put(domain_nodes(self.config, domain, self.uuid, tty))
            undo.callback(store.release, domain.domid)
            store.introduce(domain.domid, domain.store_port)
            outer = channels[0].outer if channels else Outer(partial(sink, domain.domid))
            ref, port = GNTTAB_RESERVED_CONSOLE, domain.console_port
            console = Console(link, domain.domid, ref, port, outer, broken)
            undo.callback(console.close)
            if channels:
                channels[0].join(console, undo)
                attach_devices(channels[1:], link, store, domain.domid, undo, broken)
            self._make_disks = partial(_make_disks, link, store, domain.domid, broken)
            self._make_vifs = partial(
                _make_vifs, link, store, domain.domid, self.config.name, networks, broken
            )
            disks, vifs = self._attach(images, undo)
            if built is not None:
                built(domain.domid)
            control.unpause(domain.domid)
            self._undo = undo.pop_all()
        self.domain, self.console, self.disks, self.vifs = domain, console, disks, vifs
        return domain

    def _open_images(self, undo: ExitStack) -> list[RawImage]:
        """Open the disks' images: a mistake there is found before anything else is made."""
        if not self.config.disks:
            return []
        from xenlite.toolstack.disks import open_images

        return open_images(self.config.disks, undo)

    def _attach(self, images: list[RawImage], undo: ExitStack) -> tuple[Disks | None, Vifs | None]:
        """Attach what is configured; None where that is nothing."""
        disks = self._make_disks(undo) if images else None
        if disks is not None:
            for disk, image in zip(self.config.disks, images, strict=True):
                disks.attach(disk, image)
        vifs = self._make_vifs(undo) if self.config.vifs else None
        if vifs is not None:
            for vif in self.config.vifs:
                vifs.attach(vif)
        return disks, vifs

    def has_disk(self, number: int) -> bool:
        """Tell whether the running domain has a disk of that number."""
        return self.disks is not None and number in self.disks

    def attach_disk(self, disk: DiskConfig) -> None:
        """Give the running domain one more disk, and again when it restarts.

        Raises ConfigError where its image can't be used or it has a disk of that name.
        """
        if self.has_disk(disk.number):
            raise ConfigError(Fault(disk.vdev, f"{self.config.name!r} has such a disk already"))
        if self.disks is None:
            self.disks = self._make_disks(self._undo)
        self.disks.open_and_attach(disk)
        self.config = replace(self.config, disks=(*self.config.disks, disk))

    def detach_disk(self, number: int, gone: Callable[[], None] | None) -> None:
        """Take a disk away, and leave it out when the domain restarts.

        With ``gone`` its frontend is asked to close it first; ``gone`` hears of the end.
        """
        assert self.disks is not None
        if gone is None:
            self.disks.detach(number)
        else:
            self.disks.ask_back(number, gone)
        left = tuple(disk for disk in self.config.disks if disk.number != number)
        self.config = replace(self.config, disks=left)

    def find_vif(self, name: str) -> int | None:
        """Return the number of the running domain's card of that number or address."""
        return None if self.vifs is None else self.vifs.find(name)

    def attach_vif(self, vif: VifConfig) -> VifConfig:
        """Give the running domain one more network card, and again when it restarts.

        Return it with its number and address. Raises ConfigError where it can't have it.
        """
        from xenlite.toolstack.vif_config import complete

        there = () if self.vifs is None else self.vifs.numbers()
        try:
            vifs = complete((*self.config.vifs, vif), self.config.name, there)
        except ValueError as error:
            raise ConfigError(Fault(self.config.name, f"vif: {error}")) from None
        if self.vifs is None:
            self.vifs = self._make_vifs(self._undo)
        self.vifs.attach(vifs[-1])
        self.config = replace(self.config, vifs=vifs)
        return vifs[-1]

    def detach_vif(self, devid: int, gone: Callable[[], None] | None) -> None:
        """Take a network card away, and leave it out when the domain restarts.

        With ``gone`` its frontend is asked to close it first; ``gone`` hears of the end.
        """
        assert self.vifs is not None
        if gone is None:
            self.vifs.detach(devid)
        else:
            self.vifs.ask_back(devid, gone)
        left = tuple(vif for vif in self.config.vifs if vif.devid != devid)
        self.config = replace(self.config, vifs=left)

    def symbols(self) -> Symbols:
        """Return the labels of the kernel, read when they are first asked for."""
        if self._symbols is None:
            from xenlite.toolstack.symbols import read_symbols

            self._symbols = read_symbols(unpack(self._kernel_file, self.config.kernel_name))
        return self._symbols

    def stop(self) -> None:
        """Take the domain apart, if there is one; its last output reaches the console first."""
        self.domain = self.console = self.disks = self.vifs = None
        self._undo.close()


def _make_disks(
    link: Link,
    store: XenStore,
    domid: int,
    broken: Callable[[PeerError], None],
    undo: ExitStack,
) -> Disks:
    from xenlite.toolstack.disks import Disks

    return Disks(link, store, domid, undo, broken)


def _make_vifs(
    link: Link,
    store: XenStore,
    domid: int,
    name: str,
    networks: Callable[[], Networks] | None,
    broken: Callable[[PeerError], None],
    undo: ExitStack,
) -> Vifs:
    from xenlite.toolstack.vifs import Vifs

    assert networks is not None, f"{name} needs the host's networks"
    return Vifs(link, store, domid, name, networks(), undo, broken)


def read_file(path: Path) -> bytes:
    """Read a whole file of the user's; ConfigError where it cannot be read or is too large."""
    try:
        if not path.is_file():
            what = "not a regular file" if path.exists() else "no such file"
            raise ConfigError(Fault(str(path), what))
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ConfigError(Fault(str(path), error.strerror or str(error))) from None
    if len(data) > MAX_IMAGE_BYTES:
        raise ConfigError(Fault(str(path), f"larger than {MAX_IMAGE_BYTES >> 20} MiB"))
    return data
