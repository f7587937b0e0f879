# SPDX-License-Identifier: GPL-2.0-or-later
"""The sources of guestos are made for reading: each is in the tour, and says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUESTOS = Path(__file__).resolve().parents[3] / "guestos"
FILES = sorted(GUESTOS.glob("*.s"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_opens_by_saying_what_it_is_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# SPDX-License-Identifier: GPL-2.0-or-later"
    assert lines[1] == "#"
    assert re.match(r"# \w.{20,}", lines[2])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_line_is_longer_than_100_columns(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if len(line) > 100] == []


def test_main_includes_every_file_once() -> None:
    included = re.findall(r'^\.include "(.+)"', (GUESTOS / "main.s").read_text(), re.MULTILINE)
    rooms = [path.name for path in FILES if path.name != "main.s"]
    assert sorted(included) == sorted(["xen_abi.inc", "syscalls.inc", *rooms])


def test_the_reading_order_names_every_file() -> None:
    head = (GUESTOS / "main.s").read_text().partition(".include")[0]
    named = re.findall(r"^#   (\w+\.s)  ", head, re.MULTILINE)
    assert sorted(named) == [path.name for path in FILES if path.name != "main.s"]
