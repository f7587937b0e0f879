# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be written about a console."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.dom0.rate import Rate
from xenlite.errors import ConfigError
from xenlite.toolstack.config import parse
from xenlite.toolstack.console_config import ConsoleConfig, Output, read_console


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("terminal", ConsoleConfig(Output.TERMINAL)),
        ("pty", ConsoleConfig()),
        ({}, ConsoleConfig()),
        ("file:a.log", ConsoleConfig(Output.FILE, log=Path("a.log"))),
        ("socket:/run/a:b", ConsoleConfig(Output.SOCKET, socket=Path("/run/a:b"))),
        (
            {"output": "pty", "log": "l", "name": "org.x", "rate": "1M"},
            ConsoleConfig(log=Path("l"), name="org.x", rate=Rate((1 << 20) // 20, 50_000_000)),
        ),
        ({"output": "socket", "path": "s", "rate": "64KiB/s"}, None),
        ({"rate": "20"}, ConsoleConfig(rate=Rate(1, 50_000_000))),
    ],
)
def test_what_is_written_is_understood(
    given: str | dict[str, str], meant: ConsoleConfig | None
) -> None:
    assert meant is None or read_console(given) == meant
    below = read_console(given).below(Path("/etc"))
    for path in (below.socket, below.log):
        assert path is None or path.is_absolute()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("vga", "output 'vga' is none of terminal, pty, file, socket"),
        ("file", "output 'file' needs a path"),
        ("socket:", "output 'socket' needs a path"),
        ("pty:/dev/pts/1", "output 'pty' has no path"),
        ({"output": "file", "path": "a", "log": "b"}, "is a log already"),
        ({"tty": "1"}, "'tty' is nothing of a console"),
        ({"rate": "fast"}, "rate 'fast' is not so many bytes a second"),
        ({"rate": "19"}, "rate '19' is not"),
        ({"rate": "-1"}, "rate '-1' is not"),
        ({"name": "a b"}, "name 'a b' has other characters"),
        ({"name": "a" * 65}, "has other characters"),
    ],
)
def test_a_mistake_is_said(given: str | dict[str, str], what: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read_console(given)
    assert what in str(error.value)


def test_only_the_first_console_can_be_on_the_terminal() -> None:
    text = b"name: a\nkernel: k\nconsole: [pty, {output: file, path: x}]\n"
    config = parse(text, "d", Path("/etc"))
    assert [one.output for one in config.consoles] == [Output.PTY, Output.FILE]
    assert config.consoles[1].log == Path("/etc/x")
    with pytest.raises(ConfigError, match="d:3: console: only the first can be on the terminal"):
        parse(b"name: a\nkernel: k\nconsole: [pty, terminal]\n", "d", Path("/etc"))
