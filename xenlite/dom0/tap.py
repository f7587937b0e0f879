# SPDX-License-Identifier: GPL-2.0-or-later
"""A TAP interface of the host (Linux, Documentation/networking/tuntap.rst), where it is permitted.

Making one takes CAP_NET_ADMIN; one that root has made for the user (``ip tuntap add NAME mode tap
user ME``) can be joined without. It is the host's to bring up and to give an address.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from xenlite.dom0.host_port import MAX_FRAME_BYTES
from xenlite.errors import ConfigError, Fault

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFREQ: Final = struct.Struct("16sH22x")


class TapChannel:
    """One TAP interface (``host_port.Channel``)."""

    def __init__(self, name: str) -> None:
        """Join or make it. Raises ConfigError."""
        try:
            self._fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(Fault(f"tap {name}", f"{_DEVICE}: {error.strerror}")) from None
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            self.close()
            what = f"{error.strerror}; root can make it: ip tuntap add {name} mode tap user $USER"
            raise ConfigError(Fault(f"tap {name}", what)) from None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def receive(self) -> bytes:
        """Return the next frame."""
        return os.read(self._fd, MAX_FRAME_BYTES + 1)

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        os.write(self._fd, frame)

    def close(self) -> None:
        """Leave the interface."""
        os.close(self._fd)
