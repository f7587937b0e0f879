# SPDX-License-Identifier: GPL-2.0-or-later
"""Datagram sockets that carry one Ethernet frame each, as QEMU's ``-netdev dgram`` has them.

Both ends have an address, a path (Unix) or host and port (UDP). Over UDP only what comes from the
other end is heard. Over Unix the path is ours alone to read (mode 0600 tells who may send), and
goes with the socket.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenlite.dom0.host_port import MAX_FRAME_BYTES
from xenlite.errors import ConfigError, Fault

_BUFFER_BYTES: Final = 1 << 20  # some 600 frames of 1,500 bytes, as the kernel counts them
MAX_PATH_BYTES: Final = 107


@dataclass(frozen=True, slots=True)
class HostAddress:
    """A UDP address of the host: an IPv4 address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DgramConfig:
    """The two ends of a datagram socket, both of one kind."""

    local: Path | HostAddress
    remote: Path | HostAddress


class DgramChannel:
    """One socket, bound to its local end (``host_port.Channel``)."""

    def __init__(self, config: DgramConfig) -> None:
        """Open it. Raises ConfigError."""
        self._path: Path | None = None
        if isinstance(config.local, Path):
            self._socket = _bound_to_path(config.local)
            self._path = config.local
        else:
            self._socket = bound_to_address(config.local)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._remote = str(config.remote) if isinstance(config.remote, Path) else None
        if isinstance(config.remote, HostAddress):
            try:
                self._socket.connect((config.remote.host, config.remote.port))
            except OSError as error:
                self.close()
                raise ConfigError(Fault(str(config.remote), _words(error))) from None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def receive(self) -> bytes:
        """Return the next frame."""
        return self._socket.recv(MAX_FRAME_BYTES + 1)

    def send(self, frame: bytes) -> None:
        """Send one frame; a Unix path is looked up each time, for its owner may come and go."""
        if self._remote is None:
            self._socket.send(frame)
        else:
            self._socket.sendto(frame, self._remote)

    def close(self) -> None:
        """Close the socket, and remove its path."""
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def bound_to_address(address: HostAddress) -> socket.socket:
    """Open a UDP socket that never blocks. Raises ConfigError."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    try:
        opened.bind((address.host, address.port))
    except OSError as error:
        opened.close()
        raise ConfigError(Fault(str(address), _words(error))) from None
    return opened


def _bound_to_path(path: Path) -> socket.socket:
    """Open a Unix socket; what a dead process has left at its path is removed."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket() and not _is_used(path):
            path.unlink()
        old_mask = os.umask(0o177)
        try:
            opened.bind(str(path))
        finally:
            os.umask(old_mask)
    except OSError as error:
        opened.close()
        raise ConfigError(Fault(str(path), _words(error))) from None
    return opened


def _is_used(path: Path) -> bool:
    """Tell whether a process has a socket at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        return other.connect_ex(str(path)) != errno.ECONNREFUSED


def _words(error: OSError) -> str:
    return error.strerror or str(error)
