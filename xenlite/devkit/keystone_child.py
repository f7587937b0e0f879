# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep one child process that runs Keystone, and ask it.

It is started when first asked and lives until this process ends; a request that it does not
survive, or that takes longer than `TIME_LIMIT_S`, costs the child, and the next one starts another.
A forked process starts its own.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import IO, Any

from xenlite.errors import ConfigError, Fault

START_LIMIT_S = 30.0
"""What the start of the child may take: Python and one library, perhaps from a slow disk."""

TIME_LIMIT_S = 10.0
"""What one request may take; a kernel of 15,000 statements takes 0.03."""


def ask(request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer; None when Keystone dies of the request or passes the time limit.

    Source of requests and answers: assembler_worker.py. Raise `ConfigError` where Keystone cannot
    be loaded.
    """
    return _keystone.ask(request)


def last_index() -> int:
    """Return the line at which Keystone was in a request that brought None."""
    return _keystone.last_index


class _Keystone:
    """The child that runs Keystone: started when first asked, and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._pending = b""
        self.last_index = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            deadline = time.monotonic() + TIME_LIMIT_S
            self.last_index = 0
            try:
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            except BrokenPipeError:
                self.stop()
                return None
            while True:
                line = self._line(child.stdout, deadline)
                if line is None:
                    self.stop()
                    return None
                answer: dict[str, Any] = json.loads(line)
                if "at" not in answer:
                    return answer
                self.last_index = answer["at"]

    def stop(self) -> None:
        """End the child, if it runs and is ours and not a forked parent's."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid():
            self._pending = b""
            self._owner = os.getpid()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "xenlite.devkit.assembler_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            assert self._child.stdout is not None
            line = self._line(self._child.stdout, time.monotonic() + START_LIMIT_S)
            reason = json.loads(line)["ready"] if line else "its process does not start"
            if reason:
                self.stop()
                raise ConfigError(Fault("assembler", reason))
        return self._child

    def _line(self, answers: IO[bytes], deadline: float) -> bytes | None:
        """Return the next line; None at the end of the stream or past the deadline."""
        descriptor = answers.fileno()
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return None
            self._pending += piece
        line, self._pending = self._pending.split(b"\n", 1)
        return line


_keystone = _Keystone()
atexit.register(_keystone.stop)
