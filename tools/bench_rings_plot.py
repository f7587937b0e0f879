# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw what block rings reach: requests a second of 4 KiB, and 44 KiB beside the floor.

Rows are what is asked for; the bars of a row are the ways to ask. A red line is the reach, a grey
one the floor of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib

matplotlib.use("Agg")  # a file, no screen
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tools.bench_blocks import DEEP, LARGE, REACH_OF_FLOOR, REACH_PER_S, SMALL, Case, Result
from xenlite.abi.x86_32p import BLKIF_OP_READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS: Final = {
    (False, False): "#1b7837",
    (False, True): "#a6dba0",
    (True, False): "#762a83",
    (True, True): "#c2a5cf",
}
LABELS: Final = (
    "each grant checked for each request",
    "the same, indirect segments",
    "persistent grants",
    "persistent, indirect",
)
GREY: Final = "#555555"
RED: Final = "#b2182b"
_BAR: Final = 0.2
_DPI: Final = 110


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the picture, a PNG."""
    figure, (small, large) = pyplot.subplots(1, 2, figsize=(12.5, 7), layout="constrained")
    _draw_panel(
        small,
        [one for one in results if one.case.segments == SMALL],
        "4 KiB: thousand requests a second",
        lambda one: one.requests_per_s / 1000,
        lambda one: REACH_PER_S[one.case.depth] / 1000,
    )
    _draw_panel(
        large,
        [one for one in results if one.case.segments == LARGE],
        "44 KiB: MB a second",
        lambda one: one.mb_per_s,
        lambda one: one.floor_mb_per_s * REACH_OF_FLOOR if _has_floor_reach(one.case) else None,
        lambda one: one.floor_mb_per_s,
    )
    figure.suptitle("Block requests of a guest", ha="left", x=0.01, fontweight="bold")
    handles: list[Any] = [Patch(color=colour) for colour in COLOURS.values()]
    handles += [Line2D([], [], color=RED), Line2D([], [], color=GREY)]
    labels = [*LABELS, "reach", "floor: preadv or pwritev alone"]
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
    figure.savefig(path, format="png", dpi=_DPI)
    pyplot.close(figure)


def _draw_panel(
    panel: Any,
    results: Sequence[Result],
    title: str,
    value: Callable[[Result], float],
    reach: Callable[[Result], float | None],
    floor: Callable[[Result], float] | None = None,
) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    rows = list(dict.fromkeys(_row(one.case) for one in results))
    panel.set_yticks(range(len(rows)), rows)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(axis="x", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
    for place, one in _places(results, rows):
        colour = COLOURS[one.case.persistent, one.case.indirect]
        panel.barh(place, value(one), _BAR, color=colour)
        panel.text(value(one), place, f" {value(one):,.0f}", va="center", fontsize=7, color=GREY)
        _mark(panel, place, reach(one), RED)
        _mark(panel, place, floor(one) if floor is not None else None, GREY)


def _mark(panel: Any, place: float, at: float | None, colour: str) -> None:
    if at is not None:
        panel.plot([at, at], [place - _BAR / 2, place + _BAR / 2], color=colour, linewidth=2)


def _places(results: Sequence[Result], rows: list[str]) -> Iterator[tuple[float, Result]]:
    ways = list(COLOURS)
    for one in results:
        way = ways.index((one.case.persistent, one.case.indirect))
        yield rows.index(_row(one.case)) + (way - 1.5) * _BAR, one


def _row(case: Case) -> str:
    what = "read" if case.operation == BLKIF_OP_READ else "write"
    order = "random" if case.random else "sequential"
    return f"{what}, {order}, {case.depth} at a time"


def _has_floor_reach(case: Case) -> bool:
    return case.operation == BLKIF_OP_READ and case.depth == DEEP
