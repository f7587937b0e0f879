# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running host and its tools say to each other: one JSON object a line, in turns.

    tool:  {"version": 1, "verb": "pause", "arguments": {"domain": "a"}}
    host:  {"answer": null}
      or:  {"error": "no domain is called 'a'"}

A tool may ask again when it has its answer. A line is ASCII, ends with LF and is bounded, both
ways; what is no request is answered with an error, a line without end ends the connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from xenlite.errors import PeerError

VERSION: Final = 1
LINE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Request:
    """A wish: what is to be done, and with what. Arguments are unchecked."""

    verb: str
    arguments: dict[str, object] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the request as a line."""
        return _line({"version": VERSION, "verb": self.verb, "arguments": self.arguments})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: an answer that JSON can hold, or an error in one line."""

    answer: object = None
    error: str | None = None

    def encode(self) -> bytes:
        """Return the outcome as a line; one that is too long becomes an error."""
        line = _line({"answer": self.answer} if self.error is None else {"error": self.error})
        return line if len(line) <= LINE_BYTES else _line({"error": "the answer is too long"})


class Lines:
    """Bytes in, lines out, none longer than LINE_BYTES."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._begun += data

    def next(self) -> bytes | None:
        """Return the next whole line, if there is one. Raises PeerError where it is too long."""
        end = self._begun.find(b"\n", 0, LINE_BYTES)
        if end < 0:
            if len(self._begun) >= LINE_BYTES:
                raise PeerError(f"sends a line of more than {LINE_BYTES} bytes")
            return None
        line = bytes(self._begun[:end])
        del self._begun[: end + 1]
        return line


def parse_request(line: bytes) -> Request:
    """Read a request; ValueError says why it is none."""
    given = _parse(line)
    version, verb = given.get("version"), given.get("verb")
    arguments = given.get("arguments", {})
    if version != VERSION:
        raise ValueError(f"this xenlite speaks version {VERSION} of the control protocol alone")
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        raise ValueError('a request is {"version": 1, "verb": "...", "arguments": {...}}')
    return Request(verb, arguments)


def parse_outcome(line: bytes) -> Outcome:
    """Read what became of a request; ValueError where it says nothing of that."""
    given = _parse(line)
    error = given.get("error")
    if not isinstance(error, str) and "answer" not in given:
        raise ValueError("neither an answer nor an error")
    return Outcome(given.get("answer"), error if isinstance(error, str) else None)


def _parse(line: bytes) -> dict[str, object]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):  # JSON may be nested deeper than Python follows
        raise ValueError("not a line of JSON") from None
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    return given


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"
