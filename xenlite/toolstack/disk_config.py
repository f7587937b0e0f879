# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what a user writes about one disk: xl's string, or a group of keys with the same names.

    disk.img,raw,xvda,rw        target, format, vdev, access, in this order
    vdev=xvda,target=disk.img   or by name; target comes last, for it may contain commas

A virtual device's number is the one that every Linux and BSD frontend knows by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_IN_ORDER: Final = ("target", "format", "vdev", "access")
_NAMES: Final = (*_IN_ORDER, "devtype")
_FLAGS: Final = {"cdrom": ("devtype", "cdrom")}
_WRITABLE: Final = {"rw": True, "w": True, "ro": False, "r": False}
_XVD, _SD = 202 << 8, 8 << 8
_IDE: Final = (3 << 8, 3 << 8 | 64, 22 << 8, 22 << 8 | 64)  # hda to hdd
_EXTENDED: Final = 1 << 28
_LAST_SHORT_PARTITION: Final = 15


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk, checked; ``number`` is the virtual device's."""

    target: Path
    vdev: str
    number: int
    read_only: bool = False
    is_cdrom: bool = False

    def below(self, base: Path) -> DiskConfig:
        """Return the same disk with its target's path starting at ``base``."""
        return replace(self, target=base / self.target)


def read_disk(given: str | Mapping[str, str]) -> DiskConfig:
    """Read one disk; ValueError says what is wrong."""
    words = _split(given) if isinstance(given, str) else given
    for name in words:
        if name not in _NAMES:
            raise ValueError(f"{name!r} is nothing of a disk; known: {', '.join(_NAMES)}")
    for name in ("target", "vdev"):
        if not words.get(name):
            raise ValueError(f"a disk needs a {name}, as in 'disk.img,raw,xvda,rw'")
    kind = words.get("format") or "raw"
    if kind != "raw":
        raise ValueError(f"format {kind!r}: only raw images can be used; convert it first")
    devtype = words.get("devtype") or "disk"
    if devtype not in ("disk", "cdrom"):
        raise ValueError(f"devtype {devtype!r} is neither 'disk' nor 'cdrom'")
    access = words.get("access") or ("ro" if devtype == "cdrom" else "rw")
    if access not in _WRITABLE:
        raise ValueError(f"access {access!r} is none of {', '.join(_WRITABLE)}")
    if devtype == "cdrom" and _WRITABLE[access]:
        raise ValueError("a cdrom can only be read; write access as 'ro'")
    vdev = words["vdev"]
    return DiskConfig(
        target=Path(words["target"]),
        vdev=vdev,
        number=device_number(vdev),
        read_only=not _WRITABLE[access],
        is_cdrom=devtype == "cdrom",
    )


def device_number(vdev: str) -> int:
    """Return the number of a virtual device by its name (``xvda``, ``sdb1``, ``hdc``)."""
    match = re.fullmatch(r"(xvd|sd|hd)([a-z]{1,2})(\d{0,2})", vdev, re.ASCII)
    if match is None:
        raise ValueError(f"vdev {vdev!r} is no device's name such as 'xvda'")
    kind, letters, digits = match.groups()
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk, partition = disk - 1, int(digits or 0)
    if kind == "xvd":
        if disk <= _LAST_SHORT_PARTITION and partition <= _LAST_SHORT_PARTITION:
            return _XVD | disk << 4 | partition
        return _EXTENDED | disk << 8 | partition
    if kind == "sd" and disk <= _LAST_SHORT_PARTITION and partition <= _LAST_SHORT_PARTITION:
        return _SD | disk << 4 | partition
    if kind == "hd" and disk < len(_IDE) and partition < 64:
        return _IDE[disk] | partition
    raise ValueError(f"vdev {vdev!r} has no number; name it as 'xvda' and on")


def _split(text: str) -> dict[str, str]:
    """Take xl's string apart."""
    words: dict[str, str] = {}
    order = list(_IN_ORDER)
    rest = text.strip()
    if rest.startswith("file:"):
        rest = rest.removeprefix("file:")
        order.remove("format")  # the older form has none
    while rest:
        if rest.startswith("target="):
            name, value, rest = "target", rest.removeprefix("target="), ""
        else:
            word, _, rest = (part.strip() for part in rest.partition(","))
            name, equals, value = word.partition("=")
            if word in _FLAGS:
                name, value = _FLAGS[word]
            elif not equals:
                if not order:
                    raise ValueError(f"{word!r} is one word too many in {text!r}")
                name, value = order[0], word
        if name in order:
            order.remove(name)
        if name in words:
            raise ValueError(f"{name} is given twice in {text!r}")
        words[name] = value
    return words
