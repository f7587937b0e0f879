# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/bench guestos: arithmetic, table and picture, and guestos asked. No time decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools import bench_main
from tools.bench_guestos import (
    CONFIG,
    MODES,
    NAMES,
    OPERATIONS,
    Boot,
    Calls,
    Cost,
    ProcessorClock,
    Report,
    Result,
    TimedSystem,
    cost_of,
    count_calls,
    speedup,
    table,
)
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock

PNG = b"\x89PNG\r\n\x1a\n"


def report_of(*, fork_ratio: float = 1400, times: float = 3.5, prompt_ms: float = 250) -> Report:
    costs = {
        "batched": Cost(200_000, 190_000, fork_ratio, Calls(9, 0, 8)),
        "nobatch": Cost(700_000, 690_000, 3.5 * fork_ratio, Calls(139, 0, 132)),
        "assist": Cost(1_400_000, 1_390_000, 7 * fork_ratio, Calls(8, 132, 132)),
    }
    uncounted = dict.fromkeys(MODES, Cost(90_000, 80_000, 600, None))
    results = [
        Result("fork", "alone", None, uncounted),
        Result("fork_exit_wait", "its child ends", 1500, costs),
    ]
    boots = [Boot(mode, prompt_ms, prompt_ms, 200) for mode in MODES]
    return Report("a host", 150, results, {"fork": times}, boots)


def test_each_time_is_divided_by_its_own_floor() -> None:
    cost = cost_of([300, 800, 600], [100, 400, 150], None)
    assert (cost.ns, cost.min_ns, cost.ratio) == (600, 300, 3)


def test_a_speedup_is_the_median_of_the_rounds() -> None:
    assert speedup([100, 200, 300], [400, 600, 300]) == 3


def test_bars_that_are_met_have_no_star() -> None:
    assert "*" not in table(report_of()).replace("; * marks", "")


@pytest.mark.parametrize(
    ("missed", "shown"),
    [
        (report_of(fork_ratio=1501), "1500*"),
        (report_of(times=2.9), "reach 3*"),
        (report_of(prompt_ms=301), "reach 300*"),
    ],
)
def test_a_missed_bar_has_one(missed: Report, shown: str) -> None:
    assert table(missed).count("*") == 1
    assert shown in table(missed)


def test_the_table_shows_calls_and_stores() -> None:
    shown = table(report_of())
    assert "9+0 (8)" in shown
    assert "139+0 (132)" in shown
    assert "8+132 (132)" in shown


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    from tools.bench_guestos_plot import draw

    draw(report_of(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_the_clock_is_at_once_where_it_waits_for() -> None:
    clock = ProcessorClock()
    until_ns = clock.monotonic_ns() + 3600 * 10**9
    clock.wait(threading.Event(), until_ns)
    assert clock.monotonic_ns() >= until_ns


def test_the_clock_stands_while_something_wakes_it() -> None:
    clock = ProcessorClock()
    wake = threading.Event()
    wake.set()
    clock.wait(wake, clock.monotonic_ns() + 3600 * 10**9)
    assert clock.monotonic_ns() < 3600 * 10**9


@contextmanager
def guestos(mode: str) -> Iterator[TimedSystem]:
    hypervisor = Hypervisor(clock=ManualClock())
    system = TimedSystem(hypervisor, mode)
    try:
        yield system
    finally:
        system.close()
        hypervisor.close()


@pytest.mark.parametrize("mode", MODES)
def test_guestos_does_all_operations_and_each_way_shows_in_the_calls(mode: str) -> None:
    with guestos(mode) as system:
        for operation in OPERATIONS:
            system.measure(operation.name, 2)
        calls = count_calls(system, "fork_exit_wait", 2)
    pages = 64
    assert (calls.hypercalls > pages) == (mode == "nobatch")
    assert (calls.stores > pages) == (mode == "assist")
    assert calls.changes > pages or mode == "batched"


def test_the_guest_measures_what_the_tool_asks_for() -> None:
    source = (CONFIG.parent / "programs/bench.s").read_text()
    rows = [line.split()[1].rstrip(",") for line in source.splitlines() if "    BENCH " in line]
    assert rows == list(NAMES)


def test_what_the_guest_refuses_is_no_result() -> None:
    with guestos("batched") as system, pytest.raises(RuntimeError, match="usage: bench"):
        system.measure("nothing", 1)


def test_a_whole_run_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main.main(["guestos", "--json", "--rounds", "1", "getpid"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["name"] for result in report["results"]] == ["getpid"]
    assert list(report["results"][0]["costs"]) == list(MODES)
    assert [boot["mode"] for boot in report["boots"]] == list(MODES)
    assert all(boot["prompt_ms"] > 0 for boot in report["boots"])


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_main.main(["guestos", "nothing"])
    assert "no such operation: nothing" in capsys.readouterr().err
