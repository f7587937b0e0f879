# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's side of a foreground run: terminal modes, what is typed, what is printed, signals.

On a terminal every key goes to the guest, Ctrl-C too; only Ctrl-] is ours. Output processing stays
on, so that the terminal itself turns a guest's LF into CR LF. In a pipe bytes pass as they are, and
Ctrl-C ends the run as it ends any command.

One thread waits for input and for signals, and only hands over what came. Signals reach it through
``signal.set_wakeup_fd``: a handler in Python could interrupt the loop while it holds a lock.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

LEAVE_KEY: Final = b"\x1d"  # Ctrl-]
EXIT_LEFT: Final = 130  # as after Ctrl-C: the user ended it
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What surely fits where poll says that something does: PIPE_BUF, and a terminal's threshold.
PIPE_BYTES: Final = 4096
TERMINAL_BYTES: Final = 256
READ_BYTES: Final = 4096
POLL_SECONDS: Final = 0.02


class Output:
    """One output of ours that may be slow or closed: gives up when told, and never half-hangs."""

    def __init__(
        self, fd: int, *, gives_up: Callable[[], bool], broken: Callable[[OSError], None]
    ) -> None:
        self._fd = fd
        self._gives_up = gives_up
        self._broken = broken
        self.is_terminal = os.isatty(fd)
        self._write_bytes = TERMINAL_BYTES if self.is_terminal else PIPE_BYTES
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._is_closed = False

    def write(self, data: bytes) -> None:
        """Write all of it, however slowly it is read; drop it when there is no point any more."""
        left = memoryview(data)
        while left and not self._is_closed:
            if not self._poll.poll(POLL_SECONDS * 1000):
                self._is_closed = self._gives_up()
                continue
            try:
                left = left[os.write(self._fd, left[: self._write_bytes]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._is_closed = True
                self._broken(error)


class Terminal:
    """The terminal or pipes of this process, for the time of one run."""

    def __init__(
        self,
        *,
        typed: Callable[[bytes], None],
        wants_input: Callable[[], bool],
        leave: Callable[[int], None],
    ) -> None:
        self._typed = typed
        self._wants_input = wants_input
        self._leave = leave
        self._input = sys.stdin.fileno() if sys.stdin is not None else -1
        self._is_terminal = self._input >= 0 and os.isatty(self._input)
        self._saved_modes: list[Any] | None = None
        self._saved_handlers: list[tuple[signal.Signals, Any]] = []
        self._saved_wakeup = -1
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="terminal", daemon=True)

    def __enter__(self) -> Self:
        os.set_blocking(self._wake_write, False)
        self._saved_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in SIGNALS:
            self._saved_handlers.append((number, signal.signal(number, _do_nothing)))
        if self._is_terminal:
            self._saved_modes = termios.tcgetattr(self._input)
            termios.tcsetattr(self._input, termios.TCSADRAIN, raw_modes(self._saved_modes))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        os.write(self._wake_write, b"\0")
        self._thread.join()
        if self._saved_modes is not None:
            # What was typed and not taken must not become a command of the user's shell.
            termios.tcsetattr(self._input, termios.TCSAFLUSH, self._saved_modes)
        signal.set_wakeup_fd(self._saved_wakeup)
        for number, handler in self._saved_handlers:
            signal.signal(number, handler)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _listen(self) -> None:
        """Hand over input and signals until told to stop.

        A pipe is left alone while the guest does not keep up, but signals never wait.
        """
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        is_open, is_watched = self._input >= 0, False
        while not self._stopping.is_set():
            wanted = is_open and (self._is_terminal or self._wants_input())
            if wanted and not is_watched:
                poll.register(self._input, select.POLLIN)
            elif is_watched and not wanted:
                poll.unregister(self._input)
            is_watched = wanted
            ready = dict(poll.poll(None if wanted or not is_open else POLL_SECONDS * 1000))
            if self._wake_read in ready:
                self._signals(os.read(self._wake_read, READ_BYTES))
            if self._input in ready:
                is_open = self._read()

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number:
                self._leave(EXIT_LEFT if number == signal.SIGINT else 128 + number)

    def _read(self) -> bool:
        """Read once and hand it over; False at the end of input."""
        try:
            data = os.read(self._input, READ_BYTES)
        except OSError:
            return False
        if not self._is_terminal:
            if data:
                self._typed(data)
            return bool(data)
        keys, leaves, _ = data.partition(LEAVE_KEY)
        # Keys that a guest has no room for are lost, as on any terminal; Ctrl-] must not be.
        if keys and self._wants_input():
            self._typed(keys)
        if leaves:
            self._leave(EXIT_LEFT)
        return bool(data)


def raw_modes(modes: list[Any]) -> list[Any]:
    """Every key as it is typed, nothing echoed; output processing as it was."""
    raw = list(modes)
    raw[0] &= ~(
        termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP
        | termios.IXON | termios.INPCK | termios.PARMRK
    )  # fmt: skip
    raw[1] |= termios.OPOST | termios.ONLCR
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6] = list(modes[6])
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    return raw


def _do_nothing(_number: int, _frame: object) -> None:
    """Let the signal interrupt a system call; its number went to the wake-up pipe already."""
