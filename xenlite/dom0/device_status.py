# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backend tells people of its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenlite.dom0.xenbus import State


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What a device is doing, for people: ``indexes`` of its rings as they stand, and counts.

    A domain's first console has no states. What has no connection has no numbers.
    """

    name: str
    backend: State | None = None
    frontend: State | None = None
    indexes: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
