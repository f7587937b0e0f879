# SPDX-License-Identifier: GPL-2.0-or-later
"""Seeing what guests do, as users meet it; Perfetto's own definitions and Debian's xenalyze read
what we write."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xenlite.cli.main import main
from xenlite.devkit.trace_file import Trace
from xenlite.trace_format import MAGIC, WORDS, Kind, Record, pack

ROOT = Path(__file__).parents[2]
GUESTOS = ROOT / "guestos" / "main.s"
XENALYZE = ROOT / "build/xenalyze/usr/bin/xenalyze"
PATIENCE = 60
EVENT = pack(Record(0, 0, 1, 0, Kind.EVENT, (), b""))


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    domain = folder / "dom.yaml"
    domain.write_text(
        f"name: seen\nkernel: {GUESTOS}\nramdisk: {GUESTOS.parent}/programs\nmemory: 16\n"
    )
    command = [sys.executable, "-m", "xenlite.cli.main", "run", str(domain), *options]
    result = subprocess.run(
        command, input=b"halt\n", capture_output=True, cwd=ROOT, timeout=PATIENCE, check=False
    )
    result.stderr = re.sub(rb"\Axenlite: sockets in .*\n", b"", result.stderr)
    return result


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    path = folder / "trace"
    result = run(folder, "--trace", str(path))
    assert (result.returncode, result.stderr) == (0, b"")
    return path


def test_strace_shows_a_guest_from_start_to_end(tmp_path: Path) -> None:
    result = run(tmp_path, "--strace")
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 0
    assert "domain 'seen' starts" in lines[0]
    assert any("set_trap_table(traps=[{vector=0x0, flags=0x0," in line for line in lines)
    assert any("#PF " in line and "<page_fault>" in line for line in lines)
    assert any("sched_op(cmd=SCHEDOP_shutdown, arg={reason=SHUTDOWN_poweroff})" in x for x in lines)
    assert lines[-1].endswith("domain is taken apart")


def test_filters_and_files_and_counts(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    result = run(tmp_path, "-e", "mmuext_op,refused", "-o", str(shown))
    assert (result.returncode, result.stderr) == (0, b"")
    lines = shown.read_text().splitlines()
    assert any(" mmuext_op(" in line for line in lines)
    assert all(" mmuext_op(" in line or " = -E" in line for line in lines)
    result = run(tmp_path, "-c")
    table = result.stderr.decode()
    assert "total ms" in table
    assert "update_va_mapping" in table


def test_a_file_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    for option in ("--trace", "-o"):
        result = run(tmp_path, option, str(tmp_path / "no" / "file"))
        assert result.returncode == 1
        assert b"No such file or directory" in result.stderr
        assert b"Traceback" not in result.stderr


def test_a_full_disk_ends_the_lines_and_not_the_domain(tmp_path: Path) -> None:
    result = run(tmp_path, "--trace", "/dev/full", "--strace", "-o", "/dev/full")
    assert result.returncode == 0
    assert sorted(line.split(": ", 2)[2] for line in result.stderr.decode().splitlines()) == [
        "No space left on device: the lines end here",
        "No space left on device: the trace ends here",
    ]


def test_the_text_of_a_trace_is_what_strace_shows(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(trace)]) == 0
    text = capsys.readouterr().out
    assert "<port_set_mapping" in text, "the file holds the kernel's labels"
    assert main(["trace", str(trace), "-e", "mmuext_op", "-c"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in rows[1:]] == ["mmuext_op", "total"]


def perfetto_packets(trace: Path) -> list[Any]:
    """Read the converted trace by Perfetto's own definitions."""
    definitions = importlib.import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    out = trace.with_suffix(".perfetto")
    assert main(["trace", str(trace), "--to", "perfetto", "-o", str(out)]) == 0
    parsed = definitions.Trace()
    parsed.ParseFromString(out.read_bytes())
    parsed.DiscardUnknownFields()
    assert parsed.ByteSize() == out.stat().st_size, "fields that Perfetto does not know"
    return list(parsed.packet)


def test_perfetto_reads_tracks_slices_and_flows(trace: Path) -> None:
    packets = perfetto_packets(trace)
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in packets
        if packet.HasField("track_descriptor")
    }
    named = {
        track.thread.thread_name or track.name or track.process.process_name
        for track in tracks.values()
    }
    # The ports of the store and of the console, on either side.
    assert {"d0 Domain-0", "d1 seen", "vcpu 0", "d0:1 - d1:1", "d0:2 - d1:2"} <= named
    events = [packet for packet in packets if packet.HasField("track_event")]
    assert {event.track_event.track_uuid for event in events} <= tracks.keys()
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    open_slices: Counter[int] = Counter()
    for event in (packet.track_event for packet in events):
        if event.type == event.TYPE_SLICE_BEGIN:
            open_slices[event.track_uuid] += 1
        elif event.type == event.TYPE_SLICE_END:
            open_slices[event.track_uuid] -= 1
            assert open_slices[event.track_uuid] >= 0
    assert not any(open_slices.values())
    begun = [flow for packet in events for flow in packet.track_event.flow_ids]
    ended = [flow for packet in events for flow in packet.track_event.terminating_flow_ids]
    assert len(set(begun)) == len(begun)
    assert set(ended) <= set(begun)
    upcalls = [p.track_event for p in events if p.track_event.name == "upcall"]
    assert any(upcall.terminating_flow_ids for upcall in upcalls)


def test_no_slice_ends_within_another_that_began_before_it(trace: Path) -> None:
    """Perfetto closes the innermost: names of begin and end must nest."""
    records = [one for one in Trace(trace).records if one.kind in (Kind.HYPERCALL, Kind.TRAP)]
    around: list[int] = []  # ends of the spans that the present one lies in
    for start, end in sorted((one.time_ns, -one.end_ns) for one in records):
        while around and around[-1] <= start:
            around.pop()
        assert not around or -end <= around[-1], "it ends behind the call that it is made in"
        around.append(-end)
    assert records


@pytest.mark.skipif(not XENALYZE.exists(), reason="tools/fetch_xenalyze has not fetched it")
def test_xenalyze_counts_what_we_counted(trace: Path) -> None:
    out = trace.with_suffix(".xentrace")
    assert main(["trace", str(trace), "--to", "xentrace", "-o", str(out)]) == 0
    command = [str(XENALYZE), "--cpu-hz", "1G", "-s", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    records = Trace(trace).records
    numbers = Counter(one.words[1] for one in records if one.kind is Kind.HYPERCALL)
    said = result.stdout
    for number, count in numbers.items():
        assert any(f"[{number:2}]:" in x and x.split()[-1] == str(count) for x in said.splitlines())
    assert "|-- Domain 1 --|" in said


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ELF",
        MAGIC + b"x",
        MAGIC + bytes(64),
        MAGIC + EVENT[:-8],
    ],
    ids=["empty", "another", "short", "zeros", "cut"],
)
def test_a_broken_file_is_the_users_fault(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken"
    path.write_bytes(data)
    assert main(["trace", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"xenlite: {path}: ")


def test_hostile_words_in_a_file_are_shown_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile"
    words = (0xFFFFFFFF,) * WORDS
    extra = b"\xff" * 64
    kinds = [kind for kind in Kind if kind is not Kind.SYMBOLS]
    path.write_bytes(
        MAGIC + b"".join(pack(Record(1, 1, 65535, 255, k, words, extra)) for k in kinds)
    )
    for form in ("text", "perfetto", "xentrace"):
        out = tmp_path / form
        assert main(["trace", str(path), "--to", form, "-e", "all", "-o", str(out)]) == 0
        assert out.stat().st_size
    assert capsys.readouterr().err == ""
