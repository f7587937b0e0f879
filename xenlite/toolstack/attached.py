# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices of one kind that a running domain has, by number; and how they go."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import ExitStack

    from xenlite.dom0.device_status import DeviceStatus


class Device(Protocol):
    """A backend whose frontend can be asked to let go."""

    def ask_to_close(self, released: Callable[[], None]) -> None:
        """Have the frontend close; ``released`` hears, later, that it uses nothing of ours."""

    def status(self) -> DeviceStatus:
        """Return what it is doing."""


class AttachedDevices:
    """Each device with what takes it away."""

    def __init__(self) -> None:
        self._attached: dict[int, _Attached] = {}

    def __contains__(self, number: int) -> bool:
        """Tell whether there is a device of that number."""
        return number in self._attached

    def numbers(self) -> Collection[int]:
        """Return the numbers of the devices."""
        return self._attached.keys()

    def status(self) -> list[DeviceStatus]:
        """Return what each device is doing."""
        return [attached.device.status() for attached in self._attached.values()]

    def add(self, number: int, device: Device, undo: ExitStack) -> None:
        """Keep a device of a number that no other one has, and what takes it away."""
        assert number not in self._attached, number
        self._attached[number] = _Attached(device, undo)

    def detach(self, number: int) -> None:
        """Take a device away, whatever its frontend is doing."""
        attached = self._attached.pop(number)
        attached.undo.close()
        for gone in attached.waiting:
            gone()

    def ask_back(self, number: int, gone: Callable[[], None]) -> None:
        """Take a device away when its frontend has closed it, which it is asked to; then ``gone``.

        ``gone`` is called also where the device goes in another way.
        """
        attached = self._attached[number]
        attached.waiting.append(gone)
        attached.device.ask_to_close(partial(self.detach, number))

    def close(self) -> None:
        """Take all away."""
        for number in list(self._attached):
            self.detach(number)


@dataclass(slots=True)
class _Attached:
    """One device: its backend, what takes it away, and who waits for that."""

    device: Device
    undo: ExitStack
    waiting: list[Callable[[], None]] = field(default_factory=list)
