# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that grows with what guests do, and has an end: two of FILE_BYTES at most."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE_BYTES: Final = 64 << 20


class RollingFile:
    """A log or capture on disk; at FILE_BYTES it moves to ``<name>.1`` and a new one begins.

    Each begins with ``header``. A disk that is full ends the file, behind the last piece that was
    whole, and not the domain: ``failed`` is told once.
    """

    def __init__(
        self, path: Path, what: str, wish: str, failed: Callable[[str], None], header: bytes = b""
    ) -> None:
        """Open it anew. ``what`` it is and whose ``wish`` stand in messages. Raises ConfigError."""
        self._path = path
        self._what = what
        self._failed = failed
        self._header = header
        self._fd = -1
        self._size = 0
        try:
            self._begin()
        except OSError as error:
            self.close()
            raise ConfigError(Fault(str(path), f"{error.strerror} ({wish})")) from None

    def write(self, piece: bytes) -> None:
        """Append a piece, at once: nothing is lost if the process is killed."""
        if self._fd < 0:
            return
        try:
            if self._size + len(piece) > FILE_BYTES and self._size > len(self._header):
                self.close()
                _put_in_place_of(self._path.with_name(self._path.name + ".1"), self._path)
                self._begin()
            self._append(piece)
        except OSError as error:
            self.close()
            self._failed(f"{self._path}: {error.strerror}: the {self._what} ends here")

    def close(self) -> None:
        """Close the file; what is written from now on is dropped."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _begin(self) -> None:
        # Not to wait, for ever maybe, for somebody who reads a pipe: that is refused (ENXIO).
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o666)
        os.set_blocking(self._fd, True)
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._lock()
            os.ftruncate(self._fd, 0)
        self._size = 0
        self._append(self._header)

    def _lock(self) -> None:
        """Write to a file alone, and to none that is a disk's: each would destroy the other."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "in use by another log, capture or disk") from None
        except OSError:  # a file system that has no locks
            pass

    def _append(self, piece: bytes) -> None:
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            # Half a piece may be there. A pipe's can't be taken back.
            with suppress(OSError):
                if stat.S_ISREG(os.fstat(self._fd).st_mode):
                    os.ftruncate(self._fd, self._size)
            raise
        self._size += len(piece)


def _put_in_place_of(older: Path, path: Path) -> None:
    """Rename a file that is full; the blocks of the older one are freed on another thread.

    To free 64 MiB, or to rename over them, takes 60 to 400 ms, in which no domain would run.
    """
    kept = os.open(older, os.O_RDONLY | os.O_CLOEXEC) if older.is_file() else None
    older.unlink(missing_ok=True)
    path.rename(older)
    if kept is not None:
        threading.Thread(target=os.close, args=(kept,), name="old log", daemon=True).start()
