# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.full_disk import files_no_larger_than
from xenlite.dom0 import rolling_file
from xenlite.dom0.image import RawImage
from xenlite.dom0.rolling_file import RollingFile
from xenlite.errors import ConfigError


def never(message: str) -> None:
    raise AssertionError(message)


def test_a_log_that_grows_too_large_begins_anew_and_keeps_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling_file, "FILE_BYTES", 100)
    path = tmp_path / "log"
    log = RollingFile(path, "log", "--log", never)
    for n in range(30):
        log.write(b"%09d\n" % n)
    log.close()
    assert path.read_bytes() == b"".join(b"%09d\n" % n for n in range(20, 30))
    assert (tmp_path / "log.1").read_bytes() == b"".join(b"%09d\n" % n for n in range(10, 20))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "log.1"]


def test_a_full_disk_ends_the_log_and_is_told_once() -> None:
    told: list[str] = []
    log = RollingFile(Path("/dev/full"), "log", "--log", told.append)
    log.write(b"x")
    log.write(b"y")
    log.close()
    assert told == ["/dev/full: No space left on device: the log ends here"]


def test_a_log_that_cannot_be_opened_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Is a directory \(--log\)"):
        RollingFile(tmp_path, "log", "--log", never)


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"No such device or address \(--log\)"):
        RollingFile(tmp_path / "pipe", "log", "--log", never)


def test_a_file_that_another_writes_or_is_a_disk_stays_as_it_is(tmp_path: Path) -> None:
    path, disk = tmp_path / "log", tmp_path / "disk"
    disk.write_bytes(bytes(512))
    image = RawImage(disk, read_only=True)
    log = RollingFile(path, "log", "--log", never)
    log.write(b"first")
    for taken in (path, disk):
        with pytest.raises(ConfigError, match=r"in use by another log, capture or disk \(--log\)"):
            RollingFile(taken, "log", "--log", never)
    with pytest.raises(ConfigError, match="in use"):
        RawImage(path, read_only=False)
    log.close()
    image.close()
    assert (path.read_bytes(), disk.read_bytes()) == (b"first", bytes(512))
    RollingFile(path, "log", "--log", never).close()
    assert path.read_bytes() == b""


def test_each_file_begins_with_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling_file, "FILE_BYTES", 20)
    path = tmp_path / "file"
    file = RollingFile(path, "capture", "--pcap", never, b"HEAD")
    for piece in (b"0123456789", b"abcdefghij", b"larger than a whole file"):
        file.write(piece)
    file.close()
    assert path.read_bytes() == b"HEADlarger than a whole file"
    assert (tmp_path / "file.1").read_bytes() == b"HEADabcdefghij"


def test_no_half_piece_is_left_where_the_disk_is_full(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "file"
    file = RollingFile(path, "capture", "--pcap", told.append, b"HEAD")
    with files_no_larger_than(20):
        file.write(b"0123456789")
        file.write(b"abcdefghij")
        file.write(b"k")
    assert path.read_bytes() == b"HEAD0123456789"
    assert told == [f"{path}: File too large: the capture ends here"]
