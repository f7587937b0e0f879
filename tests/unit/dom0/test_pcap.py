# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures, as Debian's tcpdump reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.full_disk import files_no_larger_than
from tests.support.network import tcpdump_of, udp_frame
from xenlite.dom0.pcap import Capture
from xenlite.errors import ConfigError

A, B = b"\x00\x16\x3e\x00\x00\x01", b"\x00\x16\x3e\x00\x00\x02"


def never(message: str) -> None:
    raise AssertionError(message)


def udp(payload: bytes) -> bytes:
    hosts = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 3))
    return udp_frame(B, A, *hosts, (4000, 4001), payload)


def test_tcpdump_shows_what_was_captured_and_when(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    times = iter([1_700_000_000_123_456_789, 1_700_000_001_000_000_000])
    capture = Capture(path, lambda: next(times), never, wish="--pcap")
    capture.deliver([udp(b"hello"), udp(b"world!")])
    capture.deliver([udp(b"")])
    capture.close()
    talk = "IP 10.0.0.2.4000 > 10.0.0.3.4001: UDP, length"
    assert tcpdump_of(path, "-vv")[1::2] == [
        "    10.0.0.2.4000 > 10.0.0.3.4001: [udp sum ok] UDP, length 5",
        "    10.0.0.2.4000 > 10.0.0.3.4001: [udp sum ok] UDP, length 6",
        "    10.0.0.2.4000 > 10.0.0.3.4001: [udp sum ok] UDP, length 0",
    ]
    assert tcpdump_of(path, "-tt", "--nano") == [
        f"1700000000.123456789 {talk} 5",
        f"1700000000.123456789 {talk} 6",
        f"1700000001.000000000 {talk} 0",
    ]


def test_of_a_long_frame_the_beginning_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    capture = Capture(path, lambda: 0, never, wish="--pcap", snaplen=60)
    capture.deliver([udp(bytes(1400)), udp(b"short")])
    capture.close()
    assert path.stat().st_size == 24 + 16 + 60 + 16 + 47
    assert [line.split()[-1] for line in tcpdump_of(path)] == ["1400", "5"]


def test_a_full_disk_ends_the_capture_behind_a_whole_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    told: list[str] = []
    capture = Capture(path, lambda: 0, told.append, wish="--pcap")
    with files_no_larger_than(200):
        for _ in range(3):
            capture.deliver([udp(bytes(50))])
    capture.close()
    assert told == [f"{path}: File too large: the capture ends here"]
    assert len(tcpdump_of(path)) == 1


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("/dev/full", r"/dev/full: not a regular file \(--pcap\)"),
        ("{}", r"not a regular file \(--pcap\)"),
        (f"{{}}/{'x' * 300}", r"File name too long \(--pcap\)"),
        ("{}/none/x", r"none/x: No such file or directory \(--pcap\)"),
    ],
)
def test_a_capture_that_cannot_be_opened_is_the_users_mistake(
    tmp_path: Path, where: str, what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        Capture(Path(where.format(tmp_path)), lambda: 0, never, wish="--pcap")
