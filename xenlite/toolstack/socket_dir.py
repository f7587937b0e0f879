# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a running host's sockets: made for its owner alone, found again by tools.

Without a wish of the user's it is ``BASE/<process id>``, where BASE is ``$XDG_RUNTIME_DIR/xenlite``
or, without that, ``xenlite-<user id>`` in the temporary directory. Whoever may enter it may do
anything with the domains, so directories that are somebody else's, or open to others, are refused.

A process that is killed leaves its directory; the next one that starts sweeps it away. Who lives
holds a lock (flock) on its directory, which ends with the process however that ends; looking for
dead ones, and making a directory and locking it, happen under a lock of the base, so that none is
taken for dead before it has its lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    import socket

STORE_SOCKET: Final = "xenstore.sock"
CONTROL_SOCKET: Final = "control.sock"
# What sockaddr_un holds on Linux, its NUL included.
MAX_SOCKET_PATH: Final = 108


class SocketDirectory:
    """One directory; what was made goes again at ``close``."""

    def __init__(self, wish: Path | None) -> None:
        self._sockets: list[Path] = []
        if wish is None:
            self._is_ours = True
            self.path, self._lock = _make_fresh(base_directory())
        else:
            self._is_ours = _make_private(wish)
            self.path, self._lock = wish, _lock_alone(wish)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self, name: str) -> socket.socket:
        """Open a socket of that name, which nobody but the owner may connect to.

        Raises ConfigError, also where another process listens there already.
        """
        path = self.path / name
        listener = listen(path)
        self._sockets.append(path)
        return listener

    def close(self) -> None:
        """Remove the sockets, and the directory if it was made here."""
        for path in self._sockets:
            path.unlink(missing_ok=True)
        if self._is_ours:
            with suppress(OSError):  # somebody put something else there: it is theirs
                self.path.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def listen(path: Path) -> socket.socket:
    """Open a socket which nobody but the owner may connect to; what a dead process left goes.

    Raises ConfigError, also where another process listens there already.
    """
    import socket

    if len(os.fsencode(path)) >= MAX_SOCKET_PATH:
        raise ConfigError(Fault(str(path), "too long for a socket"))
    if is_alive(path):
        raise ConfigError(Fault(str(path), "somebody listens there already"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(Fault(str(path), error.strerror or str(error))) from None
    return listener


def base_directory() -> Path:
    """Return where directories are made that the user has no wish for."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):  # noqa: PTH112 - Path's raises where it may not look
        return Path(runtime) / "xenlite"
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"xenlite-{os.getuid()}"


def running() -> list[Path]:
    """List the directories below the base in which a store answers."""
    base = base_directory()
    try:
        found = sorted(base.iterdir())
    except OSError:  # there is none, or it is somebody else's
        return []
    return [path for path in found if is_alive(path / STORE_SOCKET)]


def is_alive(path: Path) -> bool:
    """Tell whether somebody listens at a socket, also one at which too many wait already."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _make_fresh(base: Path) -> tuple[Path, int]:
    """Make a directory named after this process, and lock it; after a namesake, with a number."""
    _make_private(base)
    try:
        with _locked(base):
            _sweep(base)
            path, tries = base / str(os.getpid()), 1
            while not _make_private(path):
                path, tries = base / f"{os.getpid()}-{tries}", tries + 1
            return path, _lock(path)
    except OSError as error:
        raise ConfigError(Fault(str(base), error.strerror or str(error))) from None


def _sweep(base: Path) -> None:
    """Remove the directories of dead processes, if nothing but sockets is there."""
    for path in base.iterdir():
        if re.fullmatch(r"\d+(-\d+)?", path.name) is None or not path.is_dir():
            continue
        with suppress(OSError):  # a living process has locked it, or there is something else
            lock = _lock(path)
            try:
                for socket in filter(Path.is_socket, path.iterdir()):
                    socket.unlink()
                path.rmdir()
            finally:
                os.close(lock)


def _lock_alone(path: Path) -> int:
    """Lock the directory that the user wished for. Raises ConfigError where another run has it."""
    try:
        return _lock(path)
    except BlockingIOError:
        raise ConfigError(Fault(str(path), "another xenlite has its sockets there")) from None
    except OSError as error:
        raise ConfigError(Fault(str(path), error.strerror or str(error))) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a directory; nobody holds it for long."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _lock(path: Path) -> int:
    """Lock a directory at once or raise OSError; the descriptor that is returned is the lock."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(directory)
        raise
    return directory


def _make_private(path: Path) -> bool:
    """Make a directory for its owner alone, or take one that is; tell whether it was made here."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(Fault(str(path), "not a directory")) from None
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            what = "must be yours and open to nobody else (mode 0700)"
            raise ConfigError(Fault(str(path), what)) from None
        return False
    except OSError as error:
        what = f"{error.strerror}; --socket-dir names another place"
        raise ConfigError(Fault(str(path), what)) from None
    return True
