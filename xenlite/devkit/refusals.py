# SPDX-License-Identifier: GPL-2.0-or-later
"""Explain the rules by which requests are refused and domains end (refusals.yaml).

Read only when somebody asks: it takes a tenth of a second.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Final

WIDTH: Final = 80


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one rule demands, the attack that it stops, how kernels break it, and the mend."""

    rule: str
    stops: str
    causes: str
    mend: str


LABELS: Final = {
    "rule": "Rule",
    "stops": "Stops",
    "causes": "Typical causes",
    "mend": "Mend",
}


def load() -> dict[str, Explanation]:
    """Read all explanations, by the rule's name."""
    import yaml

    text = files("xenlite.devkit").joinpath("refusals.yaml").read_text("utf-8")
    return {name: Explanation(**entry) for name, entry in yaml.safe_load(text).items()}


def layout(name: str, explanation: Explanation) -> str:
    """Lay one explanation out for a terminal."""
    lines = [name]
    for field in fields(explanation):
        text = f"{LABELS[field.name]}: {getattr(explanation, field.name)}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)
