# SPDX-License-Identifier: GPL-2.0-or-later
"""Read what a user writes about one console: a word, or a group of keys.

pty                     its PTY alone (every console has one)
terminal                and the terminal of `xenlite run`: the first console only
file:x.log              and a file, which moves to x.log.1 when it is large
socket:x.sock           and whoever connects to that Unix socket
{output: pty, rate: 1M, log: x.log, name: org.example.agent}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenlite.dom0.rate import Rate

_NAMES: Final = ("output", "path", "log", "rate", "name")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TICKS: Final = 20  # of a rate's second: what is printed comes in so many pieces
_LONGEST_NAME: Final = 64


class Output(StrEnum):
    """Where a console's output goes, beside its PTY."""

    TERMINAL = "terminal"
    PTY = "pty"
    FILE = "file"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """One console, checked. ``log`` is a file that takes its output too."""

    output: Output = Output.PTY
    socket: Path | None = None
    log: Path | None = None
    rate: Rate | None = None
    name: str = ""

    def below(self, base: Path) -> ConsoleConfig:
        """Return the same console with its paths starting at ``base``."""
        socket = None if self.socket is None else base / self.socket
        return replace(self, socket=socket, log=None if self.log is None else base / self.log)


FIRST_CONSOLE: Final = ConsoleConfig(Output.TERMINAL)


def read_console(given: str | Mapping[str, str]) -> ConsoleConfig:
    """Read one console; ValueError says what is wrong."""
    words = _split(given) if isinstance(given, str) else given
    for name in words:
        if name not in _NAMES:
            raise ValueError(f"{name!r} is nothing of a console; known: {', '.join(_NAMES)}")
    try:
        output = Output(words.get("output") or Output.PTY)
    except ValueError:
        kinds = ", ".join(Output)
        raise ValueError(f"output {words['output']!r} is none of {kinds}") from None
    path, log = words.get("path"), words.get("log")
    if bool(path) != (output in (Output.FILE, Output.SOCKET)):
        what = "has no path" if path else "needs a path"
        raise ValueError(f"output {str(output)!r} {what}")
    if output is Output.FILE and log:
        raise ValueError("output 'file' is a log already")
    name = words.get("name") or ""
    if not re.fullmatch(r"[\w.+-]*", name, re.ASCII) or len(name) > _LONGEST_NAME:
        raise ValueError(f"name {name!r} has other characters than letters, digits and _ . + -")
    log = path if output is Output.FILE else log
    return ConsoleConfig(
        output=output,
        socket=Path(path) if path and output is Output.SOCKET else None,
        log=Path(log) if log else None,
        rate=_rate(words["rate"]) if "rate" in words else None,
        name=name,
    )


def _split(text: str) -> dict[str, str]:
    output, colon, path = text.strip().partition(":")
    return {"output": output, "path": path} if colon else {"output": output}


def _rate(text: str) -> Rate:
    """Read bytes a second."""
    from xenlite.dom0.rate import Rate

    match = re.fullmatch(
        r"(\d{1,9})([KMG]?)(?:i?B)?(?:/s)?", text.strip(), re.ASCII | re.IGNORECASE
    )
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size < _TICKS:
        raise ValueError(f"rate {text!r} is not so many bytes a second, as in 64K or 1M")
    return Rate(size // _TICKS, 10**9 // _TICKS)
