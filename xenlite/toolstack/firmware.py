# SPDX-License-Identifier: GPL-2.0-or-later
"""Find the firmware of a domain that boots from its own disk: GRUB for Xen, as Debian builds it.

It is a kernel like any other to the builder. It reads its menu from a disk, and boots what is
chosen there in its own place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

PVGRUB32: Final = "pvgrub32"
# What xl knows besides: for other architectures, and for guests that are not paravirtualized.
_NOT_HERE: Final = frozenset({"pvgrub64", "bios", "uefi", "seabios", "rombios", "ovmf"})
_FILE: Final = "grub-i386-xen.bin"
# Where Debian's package puts it, and where tools/fetch_kernels does.
_PLACES: Final = (
    Path("/usr/lib/grub-xen"),
    Path(__file__).resolve().parents[2] / "build/kernels",
)


def find_firmware(name: str) -> Path:
    """Return the file that a name or a path stands for; ValueError says how to get it."""
    if not name:
        raise ValueError("has no value")
    if name in _NOT_HERE:
        raise ValueError(f"{name!r} is not for 32-bit PV domains; known: {PVGRUB32}, or a path")
    if name != PVGRUB32:
        return Path(name)
    for place in _PLACES:
        if (place / _FILE).is_file():
            return place / _FILE
    raise ValueError(
        f"{_FILE} is not here; `apt-get install grub-xen-host`, run `tools/fetch_kernels`,"
        " or give its path"
    )
