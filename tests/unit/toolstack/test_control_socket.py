# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket without a socket: what its lines mean, and what hostile ones cost."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.abi.x86_32p import ESRCH
from xenlite.errors import ConfigError, Fault, PeerError, Refused
from xenlite.toolstack.commands import COMMANDS
from xenlite.toolstack.control_protocol import (
    LINE_BYTES,
    Lines,
    Outcome,
    Request,
    parse_outcome,
    parse_request,
)
from xenlite.toolstack.control_socket import Command, ControlSession, Later

if TYPE_CHECKING:
    from xenlite.toolstack.host import Host

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda of: st.lists(of, max_size=3)
)


class Served:
    """A session with verbs of the test's; ``said`` is what the client could read."""

    def __init__(self) -> None:
        self.later = Later()
        self.done: list[tuple[str, object]] = []
        commands = {
            "say": Command(self._say, {"text": str, "loud": bool, "times": int}),
            "wait": Command(lambda _host: self.later, {}),
            "fail": Command(self._fail, {}),
            "refuse": Command(self._refuse, {}),
            "exhaust": Command(self._exhaust, {}),
            "much": Command(lambda _host: "x" * LINE_BYTES, {}),
        }
        self.told = 0
        self.session = ControlSession(cast("Host", None), commands, self._has_output)

    def _has_output(self) -> None:
        self.told += 1

    def _say(self, _host: Host, text: str, *, loud: bool, times: int) -> str:
        self.done.append((text, loud))
        return text * times

    def _fail(self, _host: Host) -> None:
        raise ConfigError(Fault("disk", "too small"), Fault("", "too old"))

    def _refuse(self, _host: Host) -> None:
        raise Refused(ESRCH, "grants.no-such-domain", 7)

    def _exhaust(self, _host: Host) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def read(self) -> list[dict[str, object]]:
        """Read all that waits."""
        said = b""
        while data := self.session.head():
            said += data[:100]
            self.session.advance(len(data[:100]))
            self.session.go_on()
        return [json.loads(line) for line in said.splitlines()]

    def ask(self, line: bytes) -> dict[str, object]:
        """Send a line; return the one answer."""
        self.session.receive(line + b"\n")
        [answer] = self.read()
        return answer


def request(verb: str, **arguments: object) -> bytes:
    return Request(verb, arguments).encode()


def test_requests_are_answered_in_turns_however_they_are_cut() -> None:
    served = Served()
    stream = b"".join(request("say", text=f"{n}", loud=True, times=2) for n in range(5))
    for at in range(len(stream)):
        served.session.receive(stream[at : at + 1])
    assert served.done == [("0", True)], "the next is done when the answer is read"
    assert [one["answer"] for one in served.read()] == ["00", "11", "22", "33", "44"]


def test_an_answer_that_comes_later_holds_up_its_client_alone() -> None:
    served, other = Served(), Served()
    served.session.receive(request("wait") + request("say", text="a", loud=False, times=1))
    assert not served.session.hears()
    assert served.read() == []
    assert other.ask(request("say", text="b", loud=False, times=1).rstrip()) == {"answer": "b"}
    served.later.settle(Outcome("at last"))
    served.later.settle(Outcome(error="too late"))
    assert served.told == 1
    assert [one["answer"] for one in served.read()] == ["at last", "a"]


def test_an_answer_to_a_client_that_has_left_goes_nowhere() -> None:
    served = Served()
    served.session.receive(request("wait"))
    served.session.close()
    served.later.settle(Outcome("at last"))
    assert served.session.head() == b""
    assert served.told == 0


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 60000, "not a line of JSON"),
        (b"1" * 5000, "not a line of JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "speaks version 1"),
        (b'{"version": 2, "verb": "list"}', "speaks version 1"),
        (b'{"version": 1}', "a request is"),
        (b'{"version": 1, "verb": 1}', "a request is"),
        (b'{"version": 1, "verb": "list", "arguments": []}', "a request is"),
        (b'{"version": 1, "verb": "lust"}', "'lust' is no verb of this xenlite"),
        (b'{"version": 1, "verb": "say"}', "say: its arguments are: text, loud, times"),
        (request("wait", now=1).rstrip(), "wait: its arguments are: none"),
        (request("say", text=1, loud=True, times=1).rstrip(), "say: text is no text"),
        (request("say", text="", loud=1, times=1).rstrip(), "say: loud is no truth value"),
        (request("say", text="", loud=True, times=True).rstrip(), "say: times is no whole number"),
        (request("say", text="a\0", loud=True, times=1).rstrip(), "say: text has characters"),
        (request("say", text="\ud800", loud=True, times=1).rstrip(), "say: text has characters"),
        (request("exhaust").rstrip(), "Too many open files"),
        (request("fail").rstrip(), "disk: too small; too old"),
        (request("refuse").rstrip(), "grants.no-such-domain: 0x7"),
        (request("much").rstrip(), "the answer is too long"),
    ],
)
def test_what_cannot_be_done_is_one_line(line: bytes, what: str) -> None:
    served = Served()
    answer = served.ask(line)
    assert list(answer) == ["error"]
    assert what in str(answer["error"])
    assert not served.done
    assert served.ask(request("say", text="a", loud=True, times=1).rstrip()) == {"answer": "a"}


def test_a_line_without_an_end_ends_the_connection() -> None:
    served = Served()
    served.session.receive(b" " * (LINE_BYTES - 1))
    with pytest.raises(PeerError, match="a line of more than 65536 bytes"):
        served.session.receive(b" ")


@given(st.binary(max_size=200))
def test_no_bytes_upset_it(data: bytes) -> None:
    served = Served()
    served.session.receive(data + b"\n")
    assert served.read()


@given(st.text(), st.dictionaries(st.text(), JSON, max_size=3), JSON)
def test_what_is_said_is_what_is_understood(
    verb: str, arguments: dict[str, object], answer: object
) -> None:
    lines = Lines()
    lines.feed(Request(verb, arguments).encode() + Outcome(answer).encode())
    first, second = lines.next(), lines.next()
    assert first is not None
    assert second is not None
    assert parse_request(first) == Request(verb, arguments)
    assert parse_outcome(second) == Outcome(answer)
    assert lines.next() is None


def test_every_command_says_what_it_does() -> None:
    for command in COMMANDS.values():
        assert command.do.__doc__
        names = list(command.do.__annotations__)
        assert names == ["host", *command.arguments, "return"]
