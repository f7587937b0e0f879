# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe one domain as its owner wants it: checked values only, whatever file they came from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EVTCHN_2L_NR_CHANNELS, XEN_PAGE_SHIFT

if TYPE_CHECKING:
    from pathlib import Path

    from xenlite.toolstack.console_config import ConsoleConfig
    from xenlite.toolstack.disk_config import DiskConfig
    from xenlite.toolstack.network_config import NetworkConfig
    from xenlite.toolstack.vif_config import VifConfig

# start_info gives a 32-bit kernel the machine address of shared_info in 32 bits.
MAX_MEMORY_MIB: Final = 4 << 10
SIZE_UNITS: Final = {"K": 1, "M": 1 << 10, "G": 1 << 20}  # in KiB
PAGES_PER_MIB: Final = 1 << (20 - XEN_PAGE_SHIFT)


class Reaction(StrEnum):
    """What happens to a domain that has shut down."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"

    @property
    def restarts(self) -> bool:
        """Tell whether the domain starts again."""
        return self in (Reaction.RESTART, Reaction.COREDUMP_RESTART)

    @property
    def dumps_core(self) -> bool:
        """Tell whether a core of it is written first."""
        return self in (Reaction.COREDUMP_DESTROY, Reaction.COREDUMP_RESTART)


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One domain, ready to be built; memory in MiB.

    ``kernel_name`` is the path as the user wrote it, for messages.
    """

    name: str
    kernel: Path
    kernel_name: str
    memory_mib: int
    maxmem_mib: int
    cmdline: str = ""
    ramdisk: Path | None = None
    vcpus: int = 1
    maxvcpus: int = 1
    on_poweroff: Reaction = Reaction.DESTROY
    on_reboot: Reaction = Reaction.RESTART
    on_crash: Reaction = Reaction.DESTROY
    assists: tuple[int, ...] = ()
    cpu_weight: int = 256
    cap: int = 0  # percent of the CPU; 0 for none
    max_event_channels: int = EVTCHN_2L_NR_CHANNELS - 1
    disks: tuple[DiskConfig, ...] = ()
    vifs: tuple[VifConfig, ...] = ()
    networks: tuple[NetworkConfig, ...] = ()
    consoles: tuple[ConsoleConfig, ...] = ()

    @property
    def pages(self) -> int:
        """Return the memory the domain starts with, in 4 KiB pages."""
        return self.memory_mib * PAGES_PER_MIB

    @property
    def max_pages(self) -> int:
        """Return the most memory the domain may have, in 4 KiB pages."""
        return self.maxmem_mib * PAGES_PER_MIB


def mebibytes(text: str) -> int:
    """Turn ``32``, ``32M``, ``1G`` or ``65536K`` into MiB; ValueError says what is wrong."""
    match = re.fullmatch(r"(\d{1,12})([KMG]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write MiB (32) or a unit (32M, 1G)")
    kib = int(match[1]) * SIZE_UNITS[match[2].upper() or "M"]
    if kib % 1024:
        raise ValueError(f"{text!r} is not a whole number of MiB")
    return kib // 1024
