# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/bench grub_menu measures what it says, on kernels that nobody here wrote."""

from __future__ import annotations

import json

import pytest

from tools import bench_grub, bench_main


def test_the_start_of_grub_is_measured_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main.main(["grub_menu", "--rounds", "1", "--json"]) == 0
    words, menu = (bench_grub.Moment(**one) for one in json.loads(capsys.readouterr().out))
    assert 0 < words.seen_ms < menu.seen_ms
    assert 0 < words.processor_ms < menu.processor_ms
    shown = bench_grub.table([words, menu])
    assert "reach of the menu: 800 ms" in shown
