# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite console``: a running domain's PTY, here. Leaving it leaves the domain as it is."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from xenlite.cli.escapes import EscapeFilter
from xenlite.cli.terminal import LEAVE_KEY, SIGNALS, raw_modes
from xenlite.errors import ConfigError, Fault

READ_BYTES: Final = 4096


def join(path: str) -> None:
    """Carry bytes between this terminal and a PTY until Ctrl-], or the domain has gone.

    Where the input is no terminal its end ends nothing: the output goes on. Raises ConfigError.
    """
    try:
        pty = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(Fault(path, error.strerror or str(error))) from None
    try:
        typed = os.open(os.devnull, os.O_RDONLY) if sys.stdin is None else sys.stdin.fileno()
        with _keys_as_typed(typed):
            _carry(pty, typed, sys.stdout.fileno())
    finally:
        os.close(pty)


def _carry(pty: int, typed: int, shown: int) -> None:
    """Keys that a guest has no room for are lost, as on any terminal; what a pipe gives waits."""
    is_person, escapes = os.isatty(typed), EscapeFilter() if os.isatty(shown) else None
    is_open, keys = True, b""
    while True:
        poll = select.poll()
        poll.register(pty, select.POLLIN | (select.POLLOUT if keys else 0))
        if is_open and (is_person or not keys):
            poll.register(typed, select.POLLIN)
        ready = dict(poll.poll())
        if ready.get(pty, 0) & ~select.POLLOUT:
            output = _read(pty)
            if not output:
                return
            _write_all(shown, output if escapes is None else escapes.feed(output))
        if keys:
            keys = keys[_write(pty, keys) :]
        if typed in ready:
            data = _read(typed)
            is_open = bool(data)
            before, leaves, _ = data.partition(LEAVE_KEY) if is_person else (data, b"", b"")
            keys = keys or before
            if leaves:
                _write(pty, keys)
                return


def _read(fd: int) -> bytes:
    """Read what there is; nothing at the end, also of a PTY that was hung up."""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:
        return b""


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextmanager
def _keys_as_typed(fd: int) -> Iterator[None]:
    """Have every key at once and unechoed, if a person types; a signal gives the terminal back."""
    if not os.isatty(fd):
        yield
        return
    saved = termios.tcgetattr(fd)
    for number in SIGNALS:
        signal.signal(number, _leave)
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, raw_modes(saved))
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, saved)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)
