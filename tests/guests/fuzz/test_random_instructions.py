# SPDX-License-Identifier: GPL-2.0-or-later
"""Random instructions in rings 1 and 3 harm nobody; ``tools/fuzz instructions`` has more of them.

SECURITY.md B5, B6; goal R6.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.instruction_fuzz import (
    Generator,
    Runner,
    Stream,
    campaign,
    minimise,
    replay,
)

STREAMS = 5000  # twice: the 10^4 that every change must pass


@pytest.mark.parametrize("seed", range(2))
def test_random_instructions_harm_nobody(seed: int) -> None:
    ends: dict[str, int] = {}
    failure = campaign(seed, 0, STREAMS, ends=ends)
    if failure is not None:
        pytest.fail(str(minimise(failure)))
    # Streams that all end at once, or never, test little.
    assert STREAMS // 2 < ends["went on"] < STREAMS
    assert {"traps.no-frame", "traps.no-handler", "traps.iret-to-ring-0"} <= ends.keys()


@pytest.mark.parametrize("mode", ["copied", "live"])
def test_both_kinds_of_state_survive_them(mode: str) -> None:
    runner = Runner("copied" if mode == "copied" else "live")
    generator = Generator()
    for number in range(60):
        runner.run(generator.stream(99, number))
    runner.close()


def test_a_stream_is_the_same_for_the_same_numbers() -> None:
    generator = Generator()
    assert generator.stream(3, 4) == Generator().stream(3, 4)
    assert generator.stream(3, 4) != generator.stream(3, 5)
    assert Stream.from_json(generator.stream(3, 4).to_json()) == generator.stream(3, 4)


def test_the_end_of_the_process_is_a_finding_and_is_cut_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a child that kills itself at a certain byte, that byte is left."""
    (tmp_path / "sitecustomize.py").write_text(KILL_AT_HLT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    generator = Generator()
    streams = [replace(generator.stream(7, number), pieces=(b"\x90",)) for number in range(2)]
    guilty = replace(streams[0], pieces=(b"\x90", b"\x40\xf4", b"\x48"))
    failure = replay([*streams, guilty, *streams])
    assert failure is not None
    assert failure.error == f"it died with status {-signal.SIGABRT}"
    assert failure.streams == (*streams, guilty)
    cut = minimise(failure)
    assert [stream.code for stream in cut.streams] == [b"\xf4"]


KILL_AT_HLT = """
import os, sys
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tests.support.fuzz_guest":
            sys.setprofile(look)

def look(frame, event, _argument):
    if event == "call" and frame.f_code.co_name == "start":
        stream = frame.f_locals.get("stream")
        if stream is not None and b"\\xf4" in stream.code:
            os.abort()

sys.meta_path.insert(0, Watch())
"""
