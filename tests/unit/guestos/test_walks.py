# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/guestos.md leads to places that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLACES = sorted(set(re.findall(r"`(\w+\.s):(\w+)`", (ROOT / "docs/guestos.md").read_text())))


def test_there_are_walks() -> None:
    assert len(PLACES) > 50


@pytest.mark.parametrize(("file", "label"), PLACES)
def test_a_place_of_a_walk_exists(file: str, label: str) -> None:
    source = (ROOT / "guestos" / file).read_text()
    assert re.search(rf"^(?:{label}:|\.macro {label}\b)", source, re.MULTILINE)
