# SPDX-License-Identifier: GPL-2.0-or-later
"""Capture frames into a file that tcpdump and Wireshark read (pcap, stamped in nanoseconds).

Stamps are the time of day that guests read: the wall clock that the hypervisor gives them. A frame
is stamped when it comes to the bridge, or, captured at one station, when it is on its way there;
frames of one batch have one stamp. The file is little-endian.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from xenlite.dom0.rolling_file import RollingFile
from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SNAPLEN: Final = 1 << 18  # tcpdump's own
_FILE_HEADER: Final = struct.Struct("<IHHiIII")
_RECORD: Final = struct.Struct("<IIII")
_MAGIC_NANOSECONDS: Final = 0xA1B23C4D
_VERSION: Final = (2, 4)
_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
_SECONDS_MASK: Final = 0xFFFFFFFF


class Capture:
    """A station that writes down all frames, ``snaplen`` bytes of each at most.

    At 64 MiB the file moves to ``<name>.1``. A full disk ends the capture, and ``failed`` hears of
    it once.
    """

    def __init__(
        self,
        path: Path,
        wall_ns: Callable[[], int],
        failed: Callable[[str], None],
        *,
        wish: str,
        snaplen: int = SNAPLEN,
    ) -> None:
        """Begin it; ``wish`` names the option that asked for it. Raises ConfigError."""
        # A pipe that nobody reads would stop the guests. What can't be looked at can't be opened.
        if os.path.exists(path) and not path.is_file():  # noqa: PTH110 - Path's would raise
            raise ConfigError(Fault(str(path), f"not a regular file ({wish})"))
        self._wall_ns = wall_ns
        self._snaplen = snaplen
        header = _FILE_HEADER.pack(_MAGIC_NANOSECONDS, *_VERSION, 0, 0, snaplen, _ETHERNET)
        self._file = RollingFile(path, "capture", wish, failed, header)

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Write frames down."""
        seconds, ns = divmod(self._wall_ns(), 10**9)
        seconds &= _SECONDS_MASK
        pieces: list[bytes] = []
        for frame in frames:
            kept = frame[: self._snaplen]
            pieces += (_RECORD.pack(seconds, ns, len(kept), len(frame)), kept)
        self._file.write(b"".join(pieces))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
