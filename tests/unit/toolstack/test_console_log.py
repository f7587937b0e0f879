# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.errors import ConfigError
from xenlite.toolstack import console_log
from xenlite.toolstack.console_log import TAIL_BYTES, ConsoleTail, LogFile


def never(message: str) -> None:
    raise AssertionError(message)


def test_the_tail_is_the_last_lines_made_readable() -> None:
    tail = ConsoleTail()
    tail.write(b"one\r\ntwo\n\x1b[31mred \xff \xe2\x82")
    tail.write(b"\xac\tx\n\n")
    assert tail.lines(2) == ["two", "\\x1b[31mred \\xff \u20ac\tx"]
    assert tail.lines(9)[0] == "one"


def test_the_tail_is_bounded() -> None:
    tail = ConsoleTail()
    for n in range(10_000):
        tail.write(b"%05d\n" % n)
    lines = tail.lines(1 << 20)
    assert lines[-1] == "09999"
    assert len("\n".join(lines)) <= TAIL_BYTES


def test_a_log_that_grows_too_large_begins_anew_and_keeps_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_log, "FILE_BYTES", 100)
    path = tmp_path / "log"
    log = LogFile(path, never)
    for n in range(30):
        log.write(b"%09d\n" % n)
    log.close()
    assert path.read_bytes() == b"".join(b"%09d\n" % n for n in range(20, 30))
    assert (tmp_path / "log.1").read_bytes() == b"".join(b"%09d\n" % n for n in range(10, 20))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "log.1"]


def test_a_full_disk_ends_the_log_and_is_told_once() -> None:
    told: list[str] = []
    log = LogFile(Path("/dev/full"), told.append)
    log.write(b"x")
    log.write(b"y")
    log.close()
    assert told == ["/dev/full: No space left on device: the log ends here"]


def test_a_log_that_cannot_be_opened_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Is a directory \(--log\)"):
        LogFile(tmp_path, never)
