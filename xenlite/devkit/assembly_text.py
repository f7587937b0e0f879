# SPDX-License-Identifier: GPL-2.0-or-later
"""Read assembler sources as statements that know where they were written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlite.errors import ConfigError, Fault

_LEXEME = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'|(/\*.*?\*/)|((?://|\#)[^\n]*)|(;)', re.DOTALL
)


class AssemblyError(ConfigError):
    """Report what is wrong with an assembler source, each fault with its file and line."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; `via` is where the macro was used that it comes from."""

    file: str
    line: int
    via: Place | None = None

    @property
    def outermost(self) -> Place:
        """Return where the outermost macro was used, or this place."""
        place = self
        while place.via is not None:
            place = place.via
        return place

    def __str__(self) -> str:
        here = f"{self.file}:{self.line}"
        outermost = self.outermost
        if outermost is self:
            return here
        return f"{outermost.file}:{outermost.line}: in the macro at {here}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as it was written, without comments."""

    place: Place
    text: str


def find_include(name: str, beside: Path, include_dirs: Sequence[Path]) -> Path | None:
    """Return the file that `.include "name"` means in a file of the directory `beside`."""
    for directory in (beside, *include_dirs):
        if (directory / name).is_file():
            return directory / name
    return None


def text_of(path: Path, place: Place | None) -> str:
    """Return what the file says, for the `.include` at `place` if any. Raise `AssemblyError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        where = str(place) if place else str(path)
        raise AssemblyError(Fault(where, f"{path.name}: {reason}")) from None


def statements_of(text: str, name: str) -> list[Statement]:
    """Divide `text` into statements, without comments; `name` is what faults call it."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return " " + "\n" * match[1].count("\n")
        return "" if match[2] else "\0" if match[3] else match[0]

    statements = []
    for number, line in enumerate(_LEXEME.sub(replace, text).split("\n"), 1):
        for piece in line.split("\0"):
            stripped = " ".join(piece.split(None, 1)) if '"' in piece else " ".join(piece.split())
            if stripped:
                statements.append(Statement(Place(name, number), stripped))
    return statements
