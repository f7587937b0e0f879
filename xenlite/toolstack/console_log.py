# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep what a domain prints: the last of it in memory always, all of it in a file if asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, BinaryIO, Final

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TAIL_BYTES: Final = 16 << 10
# A guest that prints without end fills two files of this size and no more.
FILE_BYTES: Final = 64 << 20


class ConsoleTail:
    """The last TAIL_BYTES of a console."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Append output; the oldest goes."""
        self._kept += data
        # Cut rarely, so that short writes do not each move the whole tail.
        if len(self._kept) > 2 * TAIL_BYTES:
            del self._kept[:-TAIL_BYTES]

    def lines(self, count: int) -> list[str]:
        """Return the last lines, readable whatever the guest wrote."""
        text = bytes(self._kept[-TAIL_BYTES:]).decode("utf-8", "backslashreplace")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
        return [readable(line) for line in lines[-count:]]


class LogFile:
    """A log on disk; at FILE_BYTES it moves to ``<name>.1`` and a new one begins.

    A disk that is full ends the log, not the domain: ``failed`` is told once.
    """

    def __init__(
        self, path: Path, failed: Callable[[str], None], *, asked_by: str = "--log"
    ) -> None:
        self._path = path
        self._failed = failed
        self._size = 0
        self._file: BinaryIO | None
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(Fault(str(path), f"{error.strerror} ({asked_by})")) from None

    def write(self, data: bytes) -> None:
        """Append output, at once: nothing is lost if the process is killed."""
        if self._file is None:
            return
        try:
            if self._size + len(data) > FILE_BYTES:
                self._file.close()
                _replace(self._path, self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("wb", buffering=0)
                self._size = 0
            self._file.write(data)
        except OSError as error:
            self.close()
            self._failed(f"{self._path}: {error.strerror}: the log ends here")
        self._size += len(data)

    def close(self) -> None:
        """Close the file; what is written from now on is dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _replace(path: Path, older: Path) -> None:
    """Put a log in the place of an older one, whose blocks are freed on another thread.

    To free 64 MiB, or to rename over them, takes 60 to 400 ms, in which no domain would run.
    """
    kept = older.open("rb") if older.is_file() else None
    older.unlink(missing_ok=True)
    path.rename(older)
    if kept is not None:
        threading.Thread(target=kept.close, name="log", daemon=True).start()


def readable(line: str) -> str:
    """Return a line that commands no terminal, whoever chose its characters."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)
