# SPDX-License-Identifier: GPL-2.0-or-later
"""Run Keystone in a process of its own: `python -m xenlite.devkit.assembler_worker`.

Bad input makes Keystone loop for ever, exit or die, so `assembler.py` starts this module as a
child, gives each request a time limit and kills it when that passes. Nothing else imports Keystone.

The first line on standard output is {"ready": text}, the text empty or the reason why not. Then
comes one answer for each request, a line on standard input, both JSON:

=======================================  ======================================================
{"text": lines, "origin": n}             {"code": hex, "count": statements, "error": text or ""}
{"each": [line, ...], "symbols": [..]}   {"at": i} before each line, then {"faults": [[i, text]]}
=======================================  ======================================================

An error is what Keystone returns or what it prints: some failures are only printed. The second
request encodes every line alone, for finding the culprits; `symbols` are then known at an
address that fits any use.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from types import ModuleType
from typing import Any, TextIO

_ANYWHERE = 0x1000


class Worker:
    """Keystone, and the file that collects what it prints."""

    def __init__(self, keystone: ModuleType) -> None:
        self._refused = keystone.KsError
        self._keystone = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32)
        self._keystone.syntax = keystone.KS_OPT_SYNTAX_INTEL
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        os.dup2(self._printed.fileno(), 1)
        os.dup2(self._printed.fileno(), 2)

    def encode(self, text: str, origin: int) -> dict[str, Any]:
        """Answer the first kind of request."""
        code, count, error = b"", 0, ""
        try:
            encoded, count = self._keystone.asm(text.encode(), origin)
            code = bytes(encoded or ())
        except self._refused as problem:
            error = str(problem)
        printed = self._take_printed()
        return {"code": code.hex(), "count": count or 0, "error": printed or error}

    def find_faults(self, lines: list[str], symbols: list[str], answers: TextIO) -> dict[str, Any]:
        """Answer the second kind of request."""
        defined = "".join(f".equ {symbol}, {_ANYWHERE:#x}\n" for symbol in symbols)
        faults = []
        for index, line in enumerate(lines):
            _send(answers, {"at": index})
            before = defined if any(symbol in line for symbol in symbols) else ""
            error = self.encode(before + line, _ANYWHERE)["error"]
            if error:
                faults.append([index, error])
        return {"faults": faults}

    def _take_printed(self) -> str:
        ctypes.CDLL(None).fflush(None)
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace")
        self._printed.seek(0)
        self._printed.truncate()
        return _first_error(printed)


def _first_error(printed: str) -> str:
    for line in printed.splitlines():
        _, marker, message = line.partition("error: ")
        if marker:
            return message.strip()
    return printed.strip().partition("\n")[0]


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    try:
        import keystone
    except ImportError as error:
        _send(answers, {"ready": f"Keystone does not load: {error}"})
        return
    worker = Worker(keystone)
    _send(answers, {"ready": ""})
    for line in sys.stdin:
        request = json.loads(line)
        if "each" in request:
            _send(answers, worker.find_faults(request["each"], request["symbols"], answers))
        else:
            _send(answers, worker.encode(request["text"], request["origin"]))


if __name__ == "__main__":
    main()
