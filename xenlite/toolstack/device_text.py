# SPDX-License-Identifier: GPL-2.0-or-later
"""Write what devices are doing, in lines to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlite.dom0.device_status import DeviceStatus


def device_lines(devices: Iterable[DeviceStatus]) -> list[str]:
    """Return a line for each device, and behind it one of its indexes and one of its counts."""
    lines: list[str] = []
    for one in devices:
        ends = [("backend", one.backend), ("frontend", one.frontend)]
        states = [f"{end} {state.value} {state.name.lower()}" for end, state in ends if state]
        indexes = [f"{name} {index:#x}" for name, index in one.indexes.items()]
        counts = [f"{name} {count}" for name, count in one.counts.items()]
        lines.append(f"{one.name}: {', '.join(states)}" if states else one.name)
        lines += [f"  {', '.join(words)}" for words in (indexes, counts) if words]
    return lines
