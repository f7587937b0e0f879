# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite explain``: what the rules are for, by which requests are refused and domains end."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from xenlite.devkit.refusals import layout, load
from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable

LIKENESS: Final = 0.4


def explain(names: list[str]) -> int:
    """Print the rules of these names; with none, every name and what its rule demands."""
    known = load()
    if not names:
        sys.stdout.write("".join(f"{name}: {entry.rule}\n" for name, entry in known.items()))
        return 0
    unknown = [_unknown(name, known) for name in names if name not in known]
    if unknown:
        raise ConfigError(*unknown)
    sys.stdout.write("\n\n".join(layout(name, known[name]) for name in names) + "\n")
    return 0


def _unknown(name: str, known: Iterable[str]) -> Fault:
    likely = get_close_matches(name, known, cutoff=LIKENESS)
    hint = f"did you mean {' or '.join(likely)}?" if likely else "`xenlite explain` lists all"
    return Fault(name, f"no such rule; {hint}")
