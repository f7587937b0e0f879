# SPDX-License-Identifier: GPL-2.0-or-later
"""Let tools of the host tell it what to do, over a Unix socket (``control_protocol.py``).

COMMANDS of ``commands.py`` is the table of what there is; here is who asks, and in what order. A
command runs in the hypervisor's loop, between two slices. One that has to wait for a guest answers
``Later``; its client is not heard meanwhile, and everybody else is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xenlite.errors import ConfigError, Fault, Refused
from xenlite.toolstack.control_protocol import Lines, Outcome, Request, parse_request

if TYPE_CHECKING:
    from xenlite.toolstack.host import Host


class Later:
    """An answer that comes later; what comes after the first outcome changes nothing."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._tell: Callable[[Outcome], None] | None = None

    def settle(self, outcome: Outcome) -> None:
        """Say what became of it."""
        if self._outcome is None:
            self._outcome = outcome
            if self._tell is not None:
                self._tell(outcome)

    def then(self, tell: Callable[[Outcome], None]) -> None:
        """Have the outcome told, now if it is known."""
        self._tell = tell
        if self._outcome is not None:
            tell(self._outcome)


@dataclass(frozen=True, slots=True)
class Command:
    """What a verb does, as ``do(host, **arguments)``; and its arguments, all of them needed.

    ``do`` returns what JSON can hold, or ``Later``. It raises ConfigError or Refused where it can't
    be done, and has changed nothing then.
    """

    do: Callable[..., object]
    arguments: Mapping[str, type]

    def check(self, request: Request) -> dict[str, Any]:
        """Return the arguments. Raises ConfigError where they are others."""
        given = request.arguments
        if given.keys() != self.arguments.keys():
            names = ", ".join(self.arguments) or "none"
            raise ConfigError(Fault(request.verb, f"its arguments are: {names}"))
        for name, kind in self.arguments.items():
            value = given[name]
            if type(value) is not kind:
                raise ConfigError(Fault(request.verb, f"{name} is no {_KIND_NAMES[kind]}"))
            if isinstance(value, str) and not _is_word(value):
                what = f"{name} has characters that no name or path can have"
                raise ConfigError(Fault(request.verb, what))
        return given


_KIND_NAMES = {str: "text", bool: "truth value", int: "whole number"}


class ControlSession:
    """One connected tool. It is heard while nothing that it has asked for is on its way."""

    def __init__(
        self, host: Host, commands: Mapping[str, Command], has_output: Callable[[], None]
    ) -> None:
        self._host = host
        self._commands = commands
        self._has_output = has_output
        self._lines = Lines()
        self._out = b""
        self._is_waiting = False
        self._is_closed = False

    def hears(self) -> bool:
        """Tell whether it may ask for something now."""
        return not self._is_waiting and not self._out and not self._is_closed

    def receive(self, data: bytes) -> None:
        """Take what it has sent. Raises PeerError."""
        self._lines.feed(data)
        self.go_on()

    def go_on(self) -> None:
        """Do what it has asked for, in turns. Raises PeerError."""
        while self.hears() and (line := self._lines.next()) is not None:
            self._is_waiting = True
            self._do(line).then(self._answer)

    def head(self) -> bytes:
        """Return what of the answer is still to be sent."""
        return self._out

    def advance(self, count: int) -> None:
        """Note that so much of it is sent."""
        self._out = self._out[count:]

    def check_unread(self) -> None:
        """Nothing more comes before an answer is read."""

    def close(self) -> None:
        """Hear that it is gone: nobody waits for an answer."""
        self._is_closed = True

    def _answer(self, outcome: Outcome) -> None:
        if not self._is_closed:
            self._is_waiting = False
            self._out = outcome.encode()
            self._has_output()

    def _do(self, line: bytes) -> Later:
        """Do what a line asks for."""
        done = Later()
        try:
            command, arguments = self._read(line)
            answer = command.do(self._host, **arguments)
        except Refused as error:
            done.settle(Outcome(error=str(error)))
        except ConfigError as error:
            done.settle(Outcome(error="; ".join(map(str, error.faults))))
        except OSError as error:  # no descriptor left, not even for code that is read when needed
            done.settle(Outcome(error=error.strerror or str(error)))
        else:
            if isinstance(answer, Later):
                return answer
            done.settle(Outcome(answer))
        return done

    def _read(self, line: bytes) -> tuple[Command, dict[str, Any]]:
        """Find a line's command, and check its arguments. Raises ConfigError."""
        try:
            request = parse_request(line)
        except ValueError as error:
            raise ConfigError(Fault("", str(error))) from None
        command = self._commands.get(request.verb)
        if command is None:
            raise ConfigError(Fault("", f"{request.verb[:40]!r} is no verb of this xenlite"))
        return command, command.check(request)


def _is_word(text: str) -> bool:
    """Tell whether the system can take a text for a name: no NUL, no half character."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
