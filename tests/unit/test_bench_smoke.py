# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/bench runs every operation, its kernel's own checks included. No time is asserted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tools import bench_blocks, bench_main, bench_packets
from tools.bench_main import (
    IDLE_DOMAINS,
    NAMES,
    OPERATIONS,
    PROCESSOR,
    SHARING,
    START,
    TRACING,
    run,
    table,
)
from tools.bench_measure import KERNEL, PARTNERS, bench, times_of_round
from tools.bench_packets_run import SMALL, STEP, Case, Station, Way
from xenlite.abi.x86_32p import BLKIF_OP_READ

A_FEW_NS = 5_000
A_WHILE_NS = 50_000_000


def test_every_operation_runs_and_is_shown() -> None:
    names = [name for name in NAMES if name not in (*SHARING, TRACING, START)]
    report = run(names, rounds=1, round_ns=A_FEW_NS)
    assert [result.name for result in report.results] == [one.name for one in OPERATIONS]
    assert [speed.name for speed in report.speeds] == list(PROCESSOR)
    shown = table(report)
    assert all(name in shown for name in names)


def test_the_kernel_knows_no_operation_that_is_not_listed() -> None:
    lines = KERNEL.read_text().splitlines()
    known = [line.split()[1].rstrip(",") for line in lines if line.startswith("    OPERATION ")]
    timed = [name for name in NAMES if name not in (*SHARING, TRACING, START)]
    assert known == [*timed, *PARTNERS.values()]


def test_domains_that_share_the_machine_are_measured_and_shown() -> None:
    report = run(SHARING, rounds=1, sharing_ns=A_WHILE_NS)
    assert len(report.wake_ups) == 2
    assert [idle.domains for idle in report.idle] == list(IDLE_DOMAINS)
    assert report.fairness is not None
    shown = table(report)
    assert all(woken.about in shown for woken in [*report.wake_ups, report.fairness.sleeper])


def test_recording_is_measured_and_shown() -> None:
    report = run([TRACING], rounds=1, round_ns=500_000)
    events = {one.name: round(one.events) for one in report.tracing}
    assert events["null_hypercall"] == events["mmu_update"] == 1
    assert events["event_self"] == events["page_table_write"] == 2
    assert all(one.name in table(report) for one in report.tracing)


def test_a_guest_that_fails_is_no_result() -> None:
    with bench() as made, pytest.raises(RuntimeError, match=r"nothing: sched\.guest-crashed"):
        made.add("nothing", 1).measure()


def test_what_surrounds_a_stretch_does_not_count() -> None:
    overhead, each, count = 7_000, 450, 10
    stamps = [0, overhead + each * count, 2 * overhead + 3 * each * count]
    assert times_of_round(stamps, count) == each


def test_the_start_of_a_process_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main.main(["--json", "--rounds", "1", START]) == 0
    start = json.loads(capsys.readouterr().out)["start"]
    assert start["first_line_ms"] > 0
    assert start["resident_mb"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ["read", "4 KiB", "sequential", "depth 1"],
        ["write", "44 KiB", "random", "depth 32", "indirect"],
    ],
)
def test_rings_are_measured_their_sums_agree_and_they_are_shown(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    quickly = ["--scale", "0", "--rounds", "1", "--json", "--plot", str(plot)]
    assert bench_main.main(["rings", *quickly, *words]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(capsys.readouterr().out)
    assert len(found) >= 2
    assert all(one["requests_per_s"] > 0 < one["floor_mb_per_s"] for one in found)


def test_words_of_no_case_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_main.main(["rings", "read", "ping"])
    assert "no case has all of these words: read ping" in capsys.readouterr().err


def test_sums_that_differ_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(Random(3).randbytes(bench_blocks.IMAGE_BYTES))
    case = bench_blocks.Case(BLKIF_OP_READ, 1, 1)
    bench_blocks.check(case, image, 8)
    monkeypatch.setattr(bench_blocks, "places", lambda *_: [7] * 8)
    with pytest.raises(AssertionError, match="in the guest"):
        bench_blocks.check(case, image, 8)


@pytest.mark.parametrize(
    "words",
    [
        ["guest to guest", "64 bytes", "2 pairs"],
        ["guest to host and back", "1514 bytes"],
        ["ping", "64 bytes"],
    ],
)
def test_packets_are_measured_and_shown(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    quickly = ["--scale", "0", "--rounds", "1", "--plot", str(plot)]
    assert bench_main.main(["rings", *quickly, *words]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("packets")
    assert rows
    assert all(row.startswith(words[0]) for row in rows)


@pytest.mark.parametrize("at", [44, -3], ids=["number", "content"])
def test_a_frame_that_is_changed_on_its_way_is_no_result(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(Way.STREAM, SMALL)
    bench_packets.check(case, STEP)

    def deliver(self: Station, frames: Sequence[bytes]) -> None:
        first = bytearray(frames[0])
        first[at] ^= 1
        self.rings.deliver([bytes(first), *frames[1:]])

    monkeypatch.setattr(Station, "deliver", deliver)
    with pytest.raises(AssertionError):
        bench_packets.check(case, STEP)
