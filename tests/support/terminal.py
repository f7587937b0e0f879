# SPDX-License-Identifier: GPL-2.0-or-later
"""Run ``xenlite run`` as a process and sit at its terminal: read what it shows, type at it.

Nothing here waits for a time: what never comes ends with the run's own ``--timeout``, and the test
fails with all that was shown until then.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

PATIENCE_S = "90"


class Terminal:
    """One ``xenlite run --audit`` of a dom.yaml, with ``words`` behind it."""

    def __init__(self, config: Path, *words: str | Path) -> None:
        command = [sys.executable, "-m", "xenlite.cli.main", "run", "--audit"]
        self._process = subprocess.Popen(
            [*command, "--timeout", PATIENCE_S, str(config), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what a failed test has left running."""
        self._process.kill()
        self._process.communicate()

    def wait_for(self, text: str) -> str:
        """Read until ``text`` is shown; return what came before it."""
        assert self._process.stdout is not None
        while text.encode() not in self._unread:
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            assert piece, f"{text!r} never came; shown was {self._unread!r}"
            self._unread += piece
        before, _, self._unread = self._unread.partition(text.encode())
        return before.decode()

    def type(self, keys: str) -> None:
        """Type keys, as a terminal sends them."""
        assert self._process.stdin is not None
        self._process.stdin.write(keys.encode())
        self._process.stdin.flush()

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit status, what was shown, and what xenlite said."""
        shown, said = self._process.communicate()
        return self._process.returncode, (self._unread + shown).decode(), said.decode()
