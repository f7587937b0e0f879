# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring the consoles of a run to one output: one as it is, several as labelled lines.

With several domains each line stands behind the name of its domain, ``name| text``, and two lines
are never mixed. The first domain, which is the one that is typed to, is *live*: its line is shown
as it grows, so that a prompt is seen. The lines of the others wait until they are complete, their
domain has ended, or they are LONGEST bytes long.

A line that comes while the live one is open interrupts it. On a terminal the live line is then
moved below; elsewhere it is ended, and goes on behind a second label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from xenlite.cli.escapes import EscapeFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONGEST: Final = 4096
# What surely stands in one row of a terminal, label included, and can be wiped and written again.
MOVABLE: Final = 70
_WIPE: Final = b"\r\x1b[K"
_PLAIN_COLOURS: Final = b"\x1b[m"


class Consoles(Protocol):
    """Where the consoles of a run go."""

    def write(self, name: str, data: bytes) -> None:
        """Take what domain ``name`` has printed."""

    def ended(self, name: str) -> None:
        """Hear that domain ``name`` prints no more, at least until it starts again."""


def join(names: Sequence[str], write: Callable[[bytes], None], *, is_terminal: bool) -> Consoles:
    """Return what brings the consoles of domains ``names`` to ``write``."""
    if len(names) == 1:
        return _OneConsole(write, is_terminal=is_terminal)
    return _LabelledConsoles(names, write, is_terminal=is_terminal)


class _OneConsole:
    def __init__(self, write: Callable[[bytes], None], *, is_terminal: bool) -> None:
        self._write = write
        self._filter = EscapeFilter() if is_terminal else None

    def write(self, _name: str, data: bytes) -> None:
        self._write(data if self._filter is None else self._filter.feed(data))

    def ended(self, _name: str) -> None:
        pass


class _LabelledConsoles:
    """``_begun`` holds each domain's unended line; the live one's is on the output already."""

    def __init__(
        self, names: Sequence[str], write: Callable[[bytes], None], *, is_terminal: bool
    ) -> None:
        self._write = write
        self._live = names[0]
        self._begun = {name: bytearray() for name in names}
        colours = _PLAIN_COLOURS if is_terminal else b""
        self._labels = {name: colours + f"{name}| ".encode() for name in names}
        self._filters = {name: EscapeFilter() for name in names} if is_terminal else {}

    def write(self, name: str, data: bytes) -> None:
        if name in self._filters:
            data = self._filters[name].feed(data)
        begun = self._begun[name]
        if name == self._live:
            shown = self._grow(begun, data)
        else:
            begun += data
            end = len(begun) if len(begun) > LONGEST else begun.rfind(b"\n") + 1
            shown = self._interrupt(name, bytes(begun[:end]))
            del begun[:end]
        if shown:
            self._write(shown)

    def ended(self, name: str) -> None:
        begun = self._begun[name]
        shown = b"\n" if name == self._live and begun else self._interrupt(name, bytes(begun))
        begun.clear()
        if shown:
            self._write(shown)

    def _grow(self, begun: bytearray, data: bytes) -> bytes:
        """Add to the live line, which begins to be one with its first byte."""
        out = bytearray()
        for piece in _lines(data):
            if not begun:
                out += self._labels[self._live]
            out += piece
            begun += piece
            if piece.endswith(b"\n"):
                begun.clear()
        return bytes(out)

    def _interrupt(self, name: str, text: bytes) -> bytes:
        """Write lines of another domain; the last one is ended where it has not ended itself."""
        if not text:
            return b""
        label, live = self._labels[name], self._begun[self._live]
        lines = b"".join(label + line for line in _lines(text))
        if not lines.endswith(b"\n"):
            lines += b"\n"
        if not live:
            return lines
        if self._filters and len(self._live) + len(live) < MOVABLE:
            return _WIPE + lines + self._labels[self._live] + live
        live.clear()
        return b"\n" + lines


def _lines(data: bytes) -> list[bytes]:
    """Cut behind each line feed, and nowhere else; no piece is empty."""
    *ended, rest = data.split(b"\n")
    lines = [line + b"\n" for line in ended]
    return [*lines, rest] if rest else lines
