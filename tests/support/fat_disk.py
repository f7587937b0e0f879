# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images that the host's own tools make, and check afterwards: mkfs.vfat, mtools, cksum."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

KIB = 1 << 10
PARTITION_AT = 63 * 512
# Bits of an entry: what mkfs.vfat is told, and a size that it accepts with it.
KINDS = {12: ("-F", "12"), 16: ("-F", "16", "-s", "1"), 32: ("-F", "32", "-s", "1")}
SIZES = {12: 1440 * KIB, 16: 5 << 20, 32: 36 << 20}


def host(*words: str | Path, check: bool = True) -> str:
    """Run a tool of the host; return what it prints."""
    assert shutil.which(str(words[0])), "this test needs Debian's mtools and dosfstools"
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def cksum(data: bytes) -> str:
    """Let the host work out the checksum and the length, as `sum` prints them."""
    done = subprocess.run(["cksum"], input=data, capture_output=True, check=True)
    return done.stdout.decode().strip()


class FatDisk:
    """An image with a FAT file system; with a table of partitions it is the first of them."""

    def __init__(self, path: Path, bits: int, *, is_partition: bool = False) -> None:
        self.path = path
        self._offset = PARTITION_AT if is_partition else 0
        volume = path.with_suffix(".volume")
        volume.touch()
        with volume.open("r+b") as file:
            file.truncate(SIZES[bits])
        host("mkfs.vfat", *KINDS[bits], volume)
        path.write_bytes(_partition_table(SIZES[bits]) if is_partition else b"")
        with path.open("ab") as file:
            file.write(volume.read_bytes())
        volume.unlink()

    @property
    def _image(self) -> str:
        return f"{self.path}@@{self._offset}"

    def put(self, files: Mapping[str, bytes]) -> None:
        """Copy files in; their directories are made."""
        made: set[str] = set()
        for name, data in files.items():
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                directory = "/".join(parts[:depth])
                if directory not in made:
                    made.add(directory)
                    host("mmd", "-i", self._image, f"::/{directory}")
            source = self.path.with_suffix(".file")
            source.write_bytes(data)
            host("mcopy", "-i", self._image, source, f"::/{name}")
            source.unlink()

    def get(self, name: str) -> bytes:
        """Copy a file out."""
        copy = self.path.with_suffix(".copy")
        host("mcopy", "-n", "-i", self._image, f"::/{name}", copy)
        data = copy.read_bytes()
        copy.unlink()
        return data

    def remove(self, name: str) -> None:
        """Remove a file."""
        host("mdel", "-i", self._image, f"::/{name}")

    def protect(self, name: str) -> None:
        """Say that a file is only to be read."""
        host("mattrib", "-i", self._image, "+r", f"::/{name}")

    def check(self) -> None:
        """Have the host's tool find nothing wrong; it gets the volume alone."""
        volume = self.path.with_suffix(".volume")
        volume.write_bytes(self.path.read_bytes()[self._offset :])
        host("fsck.vfat", "-n", volume)
        volume.unlink()


def _partition_table(size: int) -> bytes:
    """Return the sectors before the partition: an empty entry, and then that of the volume."""
    entry = bytes(4) + b"\x0e" + bytes(3) + (PARTITION_AT // 512).to_bytes(4, "little")
    table = bytes(446 + 16) + entry + (size // 512).to_bytes(4, "little")
    return (table.ljust(510, b"\0") + b"\x55\xaa").ljust(PARTITION_AT, b"\0")
