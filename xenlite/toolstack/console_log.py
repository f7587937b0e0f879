# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep the last of what a domain prints, and make it readable."""

from __future__ import annotations

from typing import Final

TAIL_BYTES: Final = 16 << 10


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


def readable(line: str) -> str:
    """Return a line that commands no terminal, whoever chose its characters."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)
