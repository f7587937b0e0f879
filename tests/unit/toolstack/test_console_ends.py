# SPDX-License-Identifier: GPL-2.0-or-later
"""The outer ends of a console: what is printed comes out, and who does not read harms nobody."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from xenlite.dom0.device_status import DeviceStatus
from xenlite.errors import ConfigError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.console_config import ConsoleConfig, Output
from xenlite.toolstack.console_ends import MOST_WAITING, ConsoleSocket, Pty, Waiting
from xenlite.toolstack.consoles import open_channels
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.socket_dir import listen

SECOND_NS = 10**9
TEXT = bytes(range(32, 127)) * 100


class Outside:
    """A hypervisor whose loop is run by hand, and what was typed."""

    def __init__(self) -> None:
        self._hypervisor = Hypervisor(16 << 20)
        self.poller = Poller(self._hypervisor.link(0))
        self.typed = b""
        self.most = 1 << 20

    def take(self, data: bytes) -> None:
        self.typed += data

    def wants(self) -> bool:
        return len(self.typed) < self.most

    def until(self, done: Callable[[], bool]) -> None:
        """Run the loop, turn by turn: nothing wakes it for what the test itself reads."""
        clock = self._hypervisor.machine.clock
        deadline_ns = clock.monotonic_ns() + 30 * SECOND_NS
        while not done():
            assert clock.monotonic_ns() < deadline_ns
            self._hypervisor.run(lambda: True)

    def close(self) -> None:
        self.poller.close()
        self._hypervisor.close()


@pytest.fixture
def outside() -> Iterator[Outside]:
    made = Outside()
    yield made
    made.close()


@pytest.fixture
def pty(outside: Outside) -> Iterator[Pty]:
    made = Pty(outside.poller, outside.take, outside.wants)
    yield made
    made.close()


class Reader:
    """Somebody at the PTY."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.seen = b""

    def read(self) -> bool:
        """Read what there is; True if that was something."""
        if not select.select([self.fd], [], [], 0)[0]:
            return False
        self.seen += os.read(self.fd, 1 << 16)
        return True

    def has(self, text: bytes) -> bool:
        self.read()
        return text in self.seen


def test_output_comes_out_of_the_pty_and_keys_go_in(outside: Outside, pty: Pty) -> None:
    reader = Reader(pty.path)
    for _ in range(6):
        pty.write(TEXT)
    outside.until(lambda: reader.has(TEXT * 6))
    assert reader.seen == TEXT * 6
    for keys in (b"\x03\x04\r\n\x1a", b"more"):
        os.write(reader.fd, keys)
    outside.until(lambda: len(outside.typed) == 9)
    assert outside.typed == b"\x03\x04\r\n\x1amore"
    os.close(reader.fd)
    again = Reader(pty.path)
    pty.write(b"after the first reader has gone")
    outside.until(lambda: again.has(b"gone"))
    os.close(again.fd)


def test_a_pty_that_nobody_reads_keeps_the_newest_and_no_more(outside: Outside, pty: Pty) -> None:
    lines = [b"%09d\n" % n for n in range(500_000)]
    for n in range(0, len(lines), 1000):
        pty.write(b"".join(lines[n : n + 1000]))
        assert len(pty._waiting._bytes) <= 2 * MOST_WAITING + 10000
    pty.freshen()
    reader = Reader(pty.path)
    outside.until(lambda: reader.has(lines[-1]))
    assert len(reader.seen) >= MOST_WAITING
    assert b"".join(lines).endswith(reader.seen)
    os.close(reader.fd)


def test_what_was_not_lost_is_not_forgotten(outside: Outside, pty: Pty) -> None:
    pty.write(b"the first words")
    pty.freshen()
    reader = Reader(pty.path)
    outside.until(lambda: reader.has(b"the first words"))
    os.close(reader.fd)


def test_keys_wait_where_the_guest_does_not_take_them(outside: Outside, pty: Pty) -> None:
    outside.most = 10
    reader = Reader(pty.path)
    os.write(reader.fd, b"0123456789")
    outside.until(lambda: len(outside.typed) == 10)
    os.write(reader.fd, b"abc")
    for _ in range(3):
        pty.look()
    outside.until(lambda: True)
    assert outside.typed == b"0123456789"
    outside.most = 20
    pty.look()
    outside.until(lambda: len(outside.typed) == 13)
    os.close(reader.fd)


def test_a_console_socket_shows_all_and_cuts_off_who_does_not_read(
    outside: Outside, tmp_path: Path
) -> None:
    served = ConsoleSocket(listen(tmp_path / "s"), outside.poller, outside.take, outside.wants)
    one, deaf = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    one.settimeout(0)
    for client in (one, deaf):
        client.connect(str(tmp_path / "s"))
        client.send(b"hi")
    outside.until(lambda: outside.typed == b"hihi")
    seen = b""

    def reads() -> bool:
        nonlocal seen
        if select.select([one], [], [], 0)[0]:
            seen += one.recv(1 << 20)
        return len(seen) == expected

    expected = 0
    while len(served._sessions) == 2:
        served.write(TEXT)
        expected += len(TEXT)
        outside.until(reads)
    assert seen == TEXT * (expected // len(TEXT))
    deaf.settimeout(10)
    got = 0
    while data := deaf.recv(1 << 20):
        got += len(data)
    assert got < expected
    served.close()
    assert one.recv(1) == b""
    one.close()
    deaf.close()


def test_waiting_keeps_the_newest() -> None:
    waiting = Waiting()
    for n in range(10_000):
        waiting.add(b"%04d" % n * 100)
    seen = b""
    while waiting:
        data = waiting.head()
        seen += data[:700]
        waiting.advance(len(data[:700]))
    assert len(seen) == MOST_WAITING
    assert seen.endswith(b"9999" * 100)
    assert waiting.has_lost


class _Guest:
    """The domain's end of a channel."""

    def __init__(self) -> None:
        self.fed = b""
        self.waiting_bytes = 0

    def feed(self, data: bytes) -> None:
        self.fed += data

    def has(self, data: bytes) -> bool:
        return self.fed == data

    def status(self, number: int) -> DeviceStatus:
        return DeviceStatus(f"console {number}")


def test_channels_carry_both_ways_and_leave_nothing_behind(
    outside: Outside, tmp_path: Path
) -> None:
    before = list(Path("/proc/self/fd").iterdir())
    terminal: list[bytes] = []
    said: list[str] = []
    configs = [
        ConsoleConfig(Output.TERMINAL, log=tmp_path / "log"),
        ConsoleConfig(Output.SOCKET, socket=tmp_path / "sock"),
    ]
    for n in range(3):
        with ExitStack() as undo:
            first, second = open_channels(
                configs, outside.poller, undo, terminal=terminal.append, say=said.append
            )
            first.feed(b"to nobody")
            guest = _Guest()
            with ExitStack() as domain:
                first.join(guest, domain)
                reader = Reader(first.tty)
                first.write(b"hello")
                outside.until(partial(reader.has, b"hello"))
                os.write(reader.fd, b"typed")
                outside.until(partial(guest.has, b"typed"))
                os.close(reader.fd)
            first.feed(b"to nobody")
            assert guest.fed == b"typed"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "sock"))
                second.write(b"seen by who is there")
            assert len(terminal) == n + 1
            for taken, what in zip(
                configs, ("in use", "somebody listens there already"), strict=True
            ):
                with pytest.raises(ConfigError, match=what):
                    open_channels(
                        [taken], outside.poller, undo, terminal=terminal.append, say=said.append
                    )
        assert list(Path("/proc/self/fd").iterdir()) == before
        assert not (tmp_path / "sock").exists()
    assert not said


def test_a_host_that_names_no_pty_keeps_none_open(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one without /dev/pts, where the kernel gives a pair and nobody can find its other end."""

    def unknown(_fd: int) -> str:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "ttyname", unknown)
    before = list(Path("/proc/self/fd").iterdir())
    said: list[str] = []
    with ExitStack() as undo:
        [channel] = open_channels(
            [], outside.poller, undo, terminal=lambda _data: None, say=said.append
        )
        assert channel.tty == ""
        assert list(Path("/proc/self/fd").iterdir()) == before
    assert said == ["no PTY for a console: No such device"]
