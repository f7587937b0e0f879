# SPDX-License-Identifier: GPL-2.0-or-later
"""Find out, once per process, which of the engine's inner parts may be relied on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from xenlite.machine.engine import Engine, native_stubs
from xenlite.machine.memory import MachineMemory

_PROBE_SIZE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Say which fast paths hold on this host; each has a slower fallback that is as right."""

    live_state: bool
    """CPU state is read and written in place. Else: copied out and in around each trap."""

    exact_stop: bool
    """Native stubs count blocks and sort interrupts. Else: runs of a bounded instruction count."""

    quiet_memory: bool
    """Loads and stores need no stop test. Else: they are up to twice as slow."""

    page_flush: bool
    """One page can be flushed from the TLB. Else: the whole TLB is."""

    code_invalidate: bool
    """Translations of a range can be dropped. Else: all translations are."""

    notes: tuple[str, ...] = ()
    """One line per fallback in use, for the log."""


@cache
def capabilities() -> Capabilities:
    """Test the engine of this process."""
    memory = MachineMemory(_PROBE_SIZE_BYTES)
    engine = Engine(memory.host_address, memory.size_bytes)
    result = Capabilities(
        live_state=engine.find_live_state() is not None,
        exact_stop=native_stubs() is not None,
        quiet_memory=engine.find_exit_flag() is not None,
        page_flush=True,
        code_invalidate=True,
    )
    engine.close()
    memory.close()
    return result
