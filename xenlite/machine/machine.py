# SPDX-License-Identifier: GPL-2.0-or-later
"""One computer: its memory, the frame table over it, its clock and its timers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xenlite.machine.timers import TimerQueue

if TYPE_CHECKING:
    from xenlite.machine.clock import Clock
    from xenlite.machine.frames import FrameTable
    from xenlite.machine.memory import MachineMemory


@dataclass(frozen=True, slots=True)
class Machine:
    """What every domain shares."""

    memory: MachineMemory
    frames: FrameTable
    clock: Clock
    timers: TimerQueue = field(default_factory=TimerQueue)
