# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw what rings reach: block requests of 4 KiB and 44 KiB, packets that flow, and round trips.

Rows are what is done; the bars of a row are the ways to do it. A red line is the reach, a grey one
the floor of the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib

matplotlib.use("Agg")  # a file, no screen
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tools import bench_blocks, bench_packets, bench_packets_run
from xenlite.abi.x86_32p import BLKIF_OP_READ

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_WAYS: Final = {
    (False, False): ("each grant checked for each request", "#1b7837"),
    (False, True): ("the same, indirect segments", "#a6dba0"),
    (True, False): ("persistent grants", "#762a83"),
    (True, True): ("persistent, indirect", "#c2a5cf"),
}
PACKET_WAYS: Final = {
    bench_packets_run.SMALL: (f"{bench_packets_run.SMALL} bytes", "#1b7837"),
    bench_packets_run.LARGE: (f"{bench_packets_run.LARGE} bytes", "#762a83"),
}
GREY: Final = "#555555"
RED: Final = "#b2182b"
_ROW: Final = 0.8  # of the room between two rows
_DPI: Final = 110
_BLOCKS_INCHES, _PACKETS_INCHES = 7, 4.5


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its row, which way of the row's it is, and what it comes to."""

    row: str
    way: int
    value: float
    reach: float | None
    floor: float | None


def draw(
    blocks: Sequence[bench_blocks.Result], packets: Sequence[bench_packets.Result], path: Path
) -> None:
    """Write the picture, a PNG."""
    heights = [_BLOCKS_INCHES] * bool(blocks) + [_PACKETS_INCHES] * bool(packets)
    figure = pyplot.figure(figsize=(12.5, sum(heights)), layout="constrained")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    if blocks:
        _draw_blocks(next(parts), blocks)
    if packets:
        _draw_packets(next(parts), packets)
    figure.savefig(path, format="png", dpi=_DPI)
    pyplot.close(figure)


# -- blocks ---------------------------------------------------------------------------------------


def _draw_blocks(part: Any, results: Sequence[bench_blocks.Result]) -> None:
    requests, megabytes = part.subplots(1, 2)
    colours = [colour for _, colour in BLOCK_WAYS.values()]
    small = [_request_bar(one) for one in results if one.case.segments == bench_blocks.SMALL]
    large = [_megabyte_bar(one) for one in results if one.case.segments == bench_blocks.LARGE]
    _draw_panel(requests, "4 KiB: thousand requests a second", small, colours)
    _draw_panel(megabytes, "44 KiB: MB a second", large, colours)
    _explain(part, "Block requests of a guest", "floor: preadv or pwritev alone", BLOCK_WAYS)


def _request_bar(one: bench_blocks.Result) -> Bar:
    reach = bench_blocks.REACH_PER_S[one.case.depth] / 1000
    return Bar(_block_row(one.case), _block_way(one.case), one.requests_per_s / 1000, reach, None)


def _megabyte_bar(one: bench_blocks.Result) -> Bar:
    case, floor = one.case, one.floor_mb_per_s
    has_reach = case.operation == BLKIF_OP_READ and case.depth == bench_blocks.DEEP
    reach = floor * bench_blocks.REACH_OF_FLOOR if has_reach else None
    return Bar(_block_row(case), _block_way(case), one.mb_per_s, reach, floor)


def _block_row(case: bench_blocks.Case) -> str:
    what = "read" if case.operation == BLKIF_OP_READ else "write"
    order = "random" if case.random else "sequential"
    return f"{what}, {order}, {case.depth} at a time"


def _block_way(case: bench_blocks.Case) -> int:
    return list(BLOCK_WAYS).index((case.persistent, case.indirect))


# -- packets --------------------------------------------------------------------------------------


def _draw_packets(part: Any, results: Sequence[bench_packets.Result]) -> None:
    flow, trips = part.subplots(1, 2)
    colours = [colour for _, colour in PACKET_WAYS.values()]
    flowing = [_flow_bar(one) for one in results if one.round_trip_us is None]
    waiting = [_trip_bar(one, one.round_trip_us) for one in results if one.round_trip_us]
    _draw_panel(flow, "thousand packets a second", flowing, colours)
    _draw_panel(trips, "round trip, us", waiting, colours)
    _explain(part, "Packets of guests", "floor: a copy, and idle rings", PACKET_WAYS)


def _flow_bar(one: bench_packets.Result) -> Bar:
    case, reach = one.case, bench_packets.reach_per_s(one.case)
    return Bar(
        case.way.value + (f", {case.pairs} pairs" if case.pairs > 1 else ""),
        list(PACKET_WAYS).index(case.size),
        one.packets_per_s / 1000,
        None if reach is None else reach / 1000,
        one.floor_per_s / 1000,
    )


def _trip_bar(one: bench_packets.Result, us: float) -> Bar:
    way = list(PACKET_WAYS).index(one.case.size)
    reach = bench_packets.reach_us(one.case)
    return Bar(one.case.way.value, way, us, reach, 1e6 / one.floor_per_s)


# -- both -----------------------------------------------------------------------------------------


def _draw_panel(panel: Any, title: str, bars: Sequence[Bar], colours: Sequence[str]) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    rows = list(dict.fromkeys(bar.row for bar in bars))
    panel.set_yticks(range(len(rows)), rows)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(axis="x", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
    height = _ROW / len(colours)
    for bar in bars:
        place = rows.index(bar.row) + (bar.way - (len(colours) - 1) / 2) * height
        panel.barh(place, bar.value, height, color=colours[bar.way])
        panel.text(bar.value, place, f" {bar.value:,.0f}", va="center", fontsize=7, color=GREY)
        for at, colour in ((bar.reach, RED), (bar.floor, GREY)):
            if at is not None:
                ends = [place - height / 2, place + height / 2]
                panel.plot([at, at], ends, color=colour, linewidth=2)


def _explain(part: Any, title: str, floor: str, ways: dict[Any, tuple[str, str]]) -> None:
    part.suptitle(title, ha="left", x=0.01, fontweight="bold")
    handles: list[Any] = [Patch(color=colour) for _, colour in ways.values()]
    handles += [Line2D([], [], color=RED), Line2D([], [], color=GREY)]
    labels = [*(label for label, _ in ways.values()), "reach", floor]
    part.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
