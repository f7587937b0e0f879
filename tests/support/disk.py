# SPDX-License-Identifier: GPL-2.0-or-later
"""Make a disk image, and look at it with tools of others: is it sound, and what is in it?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

_MAKE_DISK = Path(__file__).resolve().parents[2] / "tools/make_disk"
_ENVIRONMENT = {**os.environ, "PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin"}
_CHECKS = {"ext2": ("e2fsck", "-f", "-n"), "fat": ("fsck.vfat", "-n")}


def make_disk(image: Path, kind: str, size: str, files: Path) -> None:
    """Make an image of a directory's files, which must work."""
    subprocess.run([_MAKE_DISK, "--type", kind, image, size, files], check=True)


def checked(image: Path, kind: str) -> list[str]:
    """Check the file system; return what its checker complains about: nothing when it is sound."""
    result = subprocess.run(
        [*_CHECKS[kind], image], capture_output=True, text=True, check=False, env=_ENVIRONMENT
    )
    return result.stdout.splitlines() if result.returncode else []


def contents(image: Path, kind: str, names: Iterable[str]) -> dict[str, bytes]:
    """Read files of the disk by their paths."""
    return {name: _content(image, kind, name) for name in names}


def _content(image: Path, kind: str, name: str) -> bytes:
    command = {
        "ext2": ["debugfs", "-R", f'cat "/{name}"', str(image)],
        "fat": ["mtype", "-i", str(image), f"::/{name}"],
    }[kind]
    return subprocess.run(command, capture_output=True, check=True, env=_ENVIRONMENT).stdout
