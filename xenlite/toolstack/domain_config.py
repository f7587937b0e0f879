# SPDX-License-Identifier: GPL-2.0-or-later
"""Describe one domain as its owner wants it: checked values only, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import XEN_PAGE_SHIFT

if TYPE_CHECKING:
    from pathlib import Path

PAGES_PER_MIB = 1 << (20 - XEN_PAGE_SHIFT)


class Reaction(StrEnum):
    """What happens to a domain that has shut down."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """One domain, ready to be built; memory in MiB.

    ``kernel_name`` and ``ramdisk_name`` are the paths as the user wrote them, for messages.
    """

    name: str
    kernel: Path
    kernel_name: str
    memory_mib: int
    maxmem_mib: int
    cmdline: str = ""
    ramdisk: Path | None = None
    ramdisk_name: str = ""
    vcpus: int = 1
    maxvcpus: int = 1
    on_poweroff: Reaction = Reaction.DESTROY
    on_reboot: Reaction = Reaction.RESTART
    on_crash: Reaction = Reaction.DESTROY

    @property
    def pages(self) -> int:
        """Return the memory the domain starts with, in 4 KiB pages."""
        return self.memory_mib * PAGES_PER_MIB

    @property
    def max_pages(self) -> int:
        """Return the most memory the domain may have, in 4 KiB pages."""
        return self.maxmem_mib * PAGES_PER_MIB
