# SPDX-License-Identifier: GPL-2.0-or-later
"""Put together the kernels of the benchmarks' frontends, which share their beginning and a part."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.support.guests import SMP

COMMON: Final = Path(__file__).with_name("bench_front.s")
# Where the P2M list is kept is told at the first instruction, and not again.
START: Final = "start:\n    mov eax, [esi + START_INFO_MFN_LIST]\n    mov [p2m], eax\n"


def front(kernel: Path) -> str:
    """Return the whole text of a frontend, which has ``first_data`` and calls ``close_data``."""
    return SMP + START + kernel.read_text() + COMMON.read_text()
