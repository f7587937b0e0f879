# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos on a real terminal, as `xenlite run` puts it there: keys of a keyboard, and statuses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pexpect
import pytest

from tests.support.guestos import DOM, LIMIT_S, PROMPT, ROOT
from xenlite.abi.x86_32p import SHUTDOWN_reboot

UP, DOWN, RIGHT, LEFT = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"
HOME, END, DELETE = "\x1b[H", "\x1b[F", "\x1b[3~"


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "xenlite.cli.main", "run", DOM, "memory=8", *arguments]


def start(*arguments: str) -> pexpect.spawn:
    program, *rest = command_line(*arguments, "--timeout", str(LIMIT_S))
    child = pexpect.spawn(program, rest, cwd=str(ROOT), timeout=LIMIT_S, encoding="ascii")
    child.delaybeforesend = None
    child.expect_exact(PROMPT)
    return child


@pytest.fixture(scope="module")
def terminal() -> Iterator[pexpect.spawn]:
    child = start()
    yield child
    child.close(force=True)


def answer(terminal: pexpect.spawn, keys: str) -> str:
    """Type keys and Enter; return what the command printed."""
    terminal.send(keys + "\r")
    terminal.expect_exact("\n")
    terminal.expect_exact(PROMPT)
    assert isinstance(terminal.before, str)
    return terminal.before.replace("\r", "")


def test_the_cursor_keys_move(terminal: pexpect.spawn) -> None:
    assert answer(terminal, f"echo ad{LEFT}{LEFT}{RIGHT}bc") == "abcd\n"


def test_home_end_and_delete(terminal: pexpect.spawn) -> None:
    assert answer(terminal, f"xcho ab{HOME}{DELETE}e{END}c") == "abc\n"


def test_history_comes_back_and_is_edited(terminal: pexpect.spawn) -> None:
    answer(terminal, "echo first")
    answer(terminal, "echo second")
    assert answer(terminal, f"{UP}{UP}ly") == "firstly\n"
    assert answer(terminal, f"{UP}{UP}{DOWN}{UP}") == "second\n"


def test_ctrl_c_reaches_the_guest(terminal: pexpect.spawn) -> None:
    terminal.send("cat\r")
    terminal.expect(r"cat\r*\n")
    terminal.send("x\r")
    terminal.expect(r"x\r*\nx\r*\n")
    terminal.send("\x03")
    terminal.expect(rf"\^C\r*\n{PROMPT}")
    assert answer(terminal, "echo $?") == "130\n"


def test_ctrl_l_clears_the_screen(terminal: pexpect.spawn) -> None:
    terminal.send("echo a\x0c")
    terminal.expect_exact("\x1b[H\x1b[2J\rguestos> echo a\x1b[K")
    assert answer(terminal, "b") == "ab\n"


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize(
    ("command", "status"), [("halt", 0), ("reboot", 16 + SHUTDOWN_reboot), ("crash", 19)]
)
def test_the_commands_status_is_the_guests(command: str, status: int, vcpus: int) -> None:
    child = start("on_reboot=destroy", f"vcpus={vcpus}")
    child.send(f"{command}\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == status


def test_the_command_runs_it_without_input() -> None:
    done = subprocess.run(
        command_line("cmdline=autohalt", "--timeout", str(LIMIT_S)),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    assert done.returncode == 0
    assert re.fullmatch(rb"xenlite: sockets in \S+\n", done.stderr)
    assert b"20 children forked and waited for\r\n" in done.stdout
    assert b"WRONG" not in done.stdout
