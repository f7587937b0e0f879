# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw why batching wins: what each way asks of the hypervisor, beside what it costs.

Two panels share their rows. Left: traps into the hypervisor per operation, which is what the ways
differ in. Right: the time, the batched way's being 1. Where the left bars are equal, so are the
right ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib

matplotlib.use("Agg")  # a file, no screen
from matplotlib import pyplot
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from tools.bench_guestos import Report, Result

COLOURS: Final = {"batched": "#1b7837", "nobatch": "#e08214", "assist": "#7b3294"}
LABELS: Final = {
    "batched": "batched: whole tables, and lists in one call",
    "nobatch": "nobatch: a hypercall for each change",
    "assist": "assist: a store for each, emulated",
}
GREY: Final = "#555555"
RED: Final = "#b2182b"
_BAR: Final = 0.26
_DPI: Final = 110
_UNCOUNTED: Final = 1e9


def draw(report: Report, path: Path) -> None:
    """Write the picture, a PNG."""
    results = sorted(report.results, key=_changes, reverse=True)  # what changes no tables: last
    height = 1.5 + 0.78 * len(results)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12.5, height), sharey=True, layout="constrained"
    )
    names = [result.name.replace("_", " ") for result in results]
    for panel in (left, right):
        panel.set_yticks(range(len(results)), names)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    _draw_traps(left, results)
    _draw_times(right, results)
    left.set_ylim(len(results) - 0.4, -0.6)
    figure.suptitle(
        "guestos: page-table changes made in three ways, and what each operation takes then",
        ha="left",
        x=0.01,
        fontweight="bold",
    )
    handles = [Patch(color=colour) for colour in COLOURS.values()]
    figure.legend(handles, LABELS.values(), loc="outside lower left", ncols=3, frameon=False)
    note = f"{report.host}; floor {report.floor_ns:.0f} ns"
    figure.text(0.99, 0.985, note, ha="right", va="top", color=GREY, fontsize=7)
    figure.savefig(path, format="png", dpi=_DPI)
    pyplot.close(figure)


def _changes(result: Result) -> float:
    """Return how many entries an operation changes; what is not counted comes first."""
    calls = result.costs["batched"].calls
    return _UNCOUNTED if calls is None else calls.changes


def _draw_traps(panel: Any, results: list[Result]) -> None:
    panel.set_title("traps into the hypervisor", loc="left", fontsize=11)
    panel.set_xscale("symlog", linthresh=1, linscale=0.5)
    panel.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    for row, offset, mode, result in _bars(results):
        calls = result.costs[mode].calls
        if calls is None:
            continue
        total = calls.hypercalls + 2 * calls.stores  # the fault, and the trap behind the store
        panel.barh(row + offset, total, _BAR, color=COLOURS[mode])
        text = f" {total:.0f}" if total >= 1 or total < 0.05 else f" {total:.1f}"
        if calls.changes >= 2:
            text += f"   {calls.changes:.0f} entries, one by one"
        panel.text(total, row + offset, text, va="center", fontsize=8.5, color=GREY)
    for row, result in enumerate(results):
        if all(cost.calls is None for cost in result.costs.values()):
            panel.text(0.05, row, "not counted apart", va="center", fontsize=8.5, color=GREY)
    most = max(
        (c.calls.hypercalls + 2 * c.calls.stores
         for r in results for c in r.costs.values() if c.calls is not None),
        default=1,
    )  # fmt: skip
    panel.set_xlim(0, max(10, most * 15))


def _draw_times(panel: Any, results: list[Result]) -> None:
    panel.set_title("time, batched = 1", loc="left", fontsize=11)
    for row, offset, mode, result in _bars(results):
        cost = result.costs[mode]
        times = cost.ns / result.costs["batched"].ns
        panel.barh(row + offset, times, _BAR, color=COLOURS[mode])
        text = f" {times:.1f}" if mode != "batched" else ""
        text += f"  {cost.ns / 1000:,.{0 if cost.ns > 1e5 else 1}f} us, {cost.ratio:,.0f} floors"
        panel.text(times, row + offset, text, va="center", fontsize=8.5, color=GREY)
    most = max(
        cost.ns / result.costs["batched"].ns for result in results for cost in result.costs.values()
    )
    panel.set_xlim(0, most * 1.5)
    for row, result in enumerate(results):
        if result.reach is not None:
            reach = result.reach / result.costs["batched"].ratio
            place = row - _BAR - 0.02
            panel.plot([reach] * 2, [place - 0.2, place + 0.2], color=RED, linewidth=2)
            panel.text(
                reach, place - 0.21, f"reach {result.reach:g}",
                color=RED, fontsize=7.5, ha="center", va="bottom",
            )  # fmt: skip


def _bars(results: list[Result]) -> list[tuple[int, float, str, Result]]:
    """List every bar: its row, where in the row, its mode, and what it shows."""
    return [
        (row, (place - 1) * (_BAR + 0.02), mode, result)
        for row, result in enumerate(results)
        for place, mode in enumerate(COLOURS)
    ]
