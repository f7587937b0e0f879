# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run`` as a process of its own, with its console on pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Final, Self

XENLITE: Final = [sys.executable, "-m", "xenlite.cli.main"]
ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 60


class RunProcess:
    """A running ``xenlite run``; it ends with the ``with`` block, whatever happens there."""

    def __init__(self, *words: str | Path) -> None:
        self._seen = b""
        self._process = subprocess.Popen(
            [*XENLITE, "run", *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def type(self, keys: str) -> None:
        """Type at the guest's console."""
        assert self._process.stdin is not None
        self._process.stdin.write(keys.encode())
        self._process.stdin.flush()

    def wait_for(self, text: str) -> str:
        """Read until ``text`` is shown; return what came before it, and forget both."""
        assert self._process.stdout is not None
        wanted, deadline = text.encode(), monotonic() + PATIENCE_S
        with DefaultSelector() as selector:
            selector.register(self._process.stdout, EVENT_READ)
            while wanted not in self._seen:
                left = deadline - monotonic()
                assert left > 0, f"waited in vain for {text!r}: {self._seen!r}"
                if selector.select(left):
                    piece = os.read(self._process.stdout.fileno(), 65536)
                    assert piece, f"it has ended: {self._seen!r}"
                    self._seen += piece
        before, _, self._seen = self._seen.partition(wanted)
        return before.decode(errors="replace")

    def end(self) -> int:
        """Return the exit status of a process that is about to end."""
        self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode
