# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a running host to do something, from another process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final, Self

from xenlite.errors import ConfigError, Fault, PeerError
from xenlite.toolstack.control_protocol import LINE_BYTES, Lines, Request, parse_outcome

if TYPE_CHECKING:
    from pathlib import Path

_READ_BYTES: Final = 4096


class ControlClient:
    """One connection. Raises ConfigError where nobody answers, or it can't be done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = Lines()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ConfigError(Fault(str(path), error.strerror or str(error))) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, verb: str, **arguments: object) -> Any:
        """Have something done; return the answer, which is JSON's."""
        request = Request(verb, arguments).encode()
        if len(request) > LINE_BYTES:
            raise ConfigError(Fault(verb, "its arguments are too long"))
        try:
            self._socket.sendall(request)
            outcome = parse_outcome(self._line())
        except OSError as error:
            raise ConfigError(Fault(str(self._path), error.strerror or str(error))) from None
        except (PeerError, ValueError) as error:
            raise ConfigError(Fault(str(self._path), f"no xenlite: {error}")) from None
        if outcome.error is not None:
            raise ConfigError(Fault("", outcome.error))
        return outcome.answer

    def _line(self) -> bytes:
        while (line := self._lines.next()) is None:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConfigError(Fault(str(self._path), "the host has gone"))
            self._lines.feed(data)
        return line
