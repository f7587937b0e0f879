# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell of guestos: what a line means, what keys do, what runs in the background."""

from __future__ import annotations

import re

import pytest

from tests.support.guestos import LOOKS, NAP, PROMPT, ROOT, Machine, lines
from xenlite.devkit.assembler import assemble


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("echo a;echo b", ["a", "b"]),
        ("  echo   a  ", ["a"]),
        ("echo 'a  b' \"c  d\" e\\ f", ["a  b c  d e f"]),
        ("echo '|;&' \"|;&\" \\|", ["|;& |;& |"]),
        ("echo 'it''s' \"a\\\"b\" '$?' \\$?", ['its a"b $? $?']),
        ("echo a # b", ["a"]),
        ("# nothing", []),
        ("", []),
        ("   ", []),
        ("false; echo $?", ["1"]),
        ('false; echo "is $?"', ["is 1"]),
        ("true; echo $?$?", ["00"]),
        ("sh -c 'exit 123'; echo $?", ["123"]),
        ("echo $x $", ["$x $"]),
        ("echo a | cat", ["a"]),
        ("echo a|cat|cat|cat|cat|cat|cat|cat", ["a"]),
        ("false | true; echo $?", ["0"]),
        ("true | false; echo $?", ["1"]),
        ("/bin/echo a; bin/echo b", ["a", "b"]),
        ("jobs | cat", []),
        ("echo a | true", []),
    ],
)
def test_a_line_means(shell: Machine, line: str, shown: list[str]) -> None:
    assert lines(shell.command(line)) == shown


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("| a", "sh: a command is missing"),
        ("true | ", "sh: a command is missing"),
        ("true | | cat", "sh: a command is missing"),
        ("; true", "sh: a command is missing"),
        ("& true", "sh: a command is missing"),
        ("echo 'a", "sh: a quote is not closed"),
        ('echo "a', "sh: a quote is not closed"),
        ("a|" * 8 + "a", "sh: too many commands in a row"),
        ("echo" + " x" * 70, "sh: too many words"),
    ],
)
def test_a_line_that_means_nothing_is_refused(shell: Machine, line: str, complaint: str) -> None:
    assert lines(shell.command(line)) == [complaint]
    assert lines(shell.command("echo $?")) == ["2"]


def test_a_program_that_is_missing_is_named(shell: Machine) -> None:
    assert lines(shell.command("nothing x")) == ["sh: no command is called nothing; try help"]
    assert lines(shell.command("echo $?")) == ["127"]
    assert lines(shell.command("/bin/nothing")) == [
        "sh: no command is called /bin/nothing; try help"
    ]


def test_a_file_that_is_no_program_is_not_run(shell: Machine) -> None:
    assert lines(shell.command("/README")) == ["bin/sh: /README: not a program"]
    assert lines(shell.command("echo $?")) == ["126"]


def test_a_script_is_run_line_by_line(shell: Machine) -> None:
    assert lines(shell.command("sh nothing")) == ["sh: nothing: no such file"]
    assert lines(shell.command("cat README | wc | cat | sh")) == [
        f"sh: no command is called {shell.command('wc README').split()[0]}; try help"
    ]
    assert lines(shell.command("echo 'echo a; exit 7' | sh; echo $?")) == ["a", "7"]
    assert lines(shell.command("sh -c 'false'; echo $?")) == ["1"]


def test_exit_takes_a_status(shell: Machine) -> None:
    assert lines(shell.command("sh -c 'false; exit'; echo $?")) == ["1"]
    assert lines(shell.command("sh -c 'exit 256'; echo $?")) == ["0"]
    assert lines(shell.command("exit x")) == ["sh: usage: exit [STATUS] | wait [JOB]"]


def test_the_first_shell_comes_back(shell: Machine) -> None:
    assert lines(shell.command("exit 3")) == ["guestos: init has ended, and begins again"]
    assert shell.processes() == {1: "sh"}


def test_a_shell_in_a_shell(shell: Machine) -> None:
    shell.command("sh")
    assert sorted(shell.processes().values()) == ["sh", "sh"]
    assert lines(shell.command("exit 4")) == []
    assert lines(shell.command("echo $?")) == ["4"]


# Jobs


def test_a_job_runs_behind(shell: Machine) -> None:
    (line,) = lines(shell.command("sleep 100 | cat | cat &"))
    match = re.fullmatch(r"\[(\d+)\] ", line)
    assert match is not None
    job = match[1]
    assert lines(shell.command("jobs")) == [f"[{job}] running: sleep 100 | cat | cat"]
    shell.command(f"kill {shell.process_named('sleep')}")
    assert lines(shell.command("wait")) in ([], [f"sh: process {job} was ended by signal 15"])
    assert lines(shell.command("jobs")) == []


def test_a_job_that_has_ended_is_told_about(shell: Machine) -> None:
    answer = shell.command("sh -c 'sleep 0.01; exit 9' &")
    for _ in range(LOOKS):
        if "ended, status 9: sh -c sleep 0.01; exit 9\n" in answer:
            return
        answer = shell.command(NAP)
    raise AssertionError(answer)


def test_a_job_that_ends_at_once_is_told_about(shell: Machine) -> None:
    for _ in range(20):
        shell.command("true &")
    shell.wait_for_quiet()
    assert lines(shell.command("jobs")) == []


def test_wait_waits_for_one_or_all(shell: Machine) -> None:
    (line,) = lines(shell.command("sh -c 'sleep 0.05; exit 5' &"))
    job = line[1:-2]
    assert lines(shell.command(f"wait {job}; echo $?")) in (["5"], ["sh: wait: no such job", "127"])
    assert lines(shell.command("sleep 0.02 & sleep 0.01 & wait; jobs"))[2:] == []
    assert lines(shell.command("wait 99; echo $?")) == ["sh: wait: no such job", "127"]
    assert lines(shell.command("wait x; echo $?"))[-1] == "2"


def test_a_job_finds_no_keys(shell: Machine) -> None:
    shell.command("cat &")
    shell.wait_for_quiet()
    shell.command("")
    assert lines(shell.command("jobs")) == []


def test_a_shell_behind_takes_no_keys(shell: Machine) -> None:
    shell.type("sh &\r")
    shell.wait_for(PROMPT)
    shell.wait_for_quiet()
    assert lines(shell.command("sleep 0.02; echo a"))[-1:] == ["a"]
    assert lines(shell.command("sh -c 'sh & wait'; echo $?")) == ["0"]


def test_more_jobs_than_can_be_remembered(shell: Machine) -> None:
    answer = shell.command("sleep 0.05 & " * 9)
    assert "sh: no room to remember this job\n" in answer
    shell.command("wait")


def test_a_shell_that_begins_again_waits_for_a_file(shell: Machine) -> None:
    # 128 files: 63 pipes of two ends, and a console for each shell whose children are left.
    for _ in range(9):
        shell.command("sleep 4|" * 7 + "sleep 4&")
    for _ in range(2):
        shell.command("sleep 4 &")
        shell.type("\x04")
        shell.wait_for("guestos: init has ended, and begins again\n")
    assert "again" not in shell.wait_for(PROMPT)


# Keys


def test_ctrl_c_ends_what_runs_and_not_the_shell(shell: Machine) -> None:
    shell.type("cat\r")
    shell.wait_for("cat\n")
    shell.type("a\r")
    shell.wait_for("a\na\n")
    shell.type("\x03")
    assert shell.wait_for(PROMPT) == "^C\n"
    assert lines(shell.command("echo $?")) == ["130"]


def test_ctrl_c_ends_a_whole_pipeline(shell: Machine) -> None:
    shell.type("cat | cat | cat\r")
    shell.wait_for("cat | cat | cat\n")
    shell.type("a\r")
    shell.wait_for("a\na\n")
    shell.type("\x03")
    assert shell.wait_for(PROMPT) == "^C\n"


def test_ctrl_c_ends_a_child_that_is_being_made(
    shell: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = assemble(ROOT / "guestos/main.s")
    domid, memory = shell.domid, shell.hypervisor.machine.memory
    last_id = shell.control.translate(domid, 0, kernel.address_of("process_last_id"))
    assert last_id is not None
    made = int.from_bytes(memory.read(last_id, 4), "little")

    def is_made(count: int) -> bool:
        return int.from_bytes(memory.read(last_id, 4), "little") == made + count

    shell.type("sh -c 'sleep 999; true'\r")
    guest = shell.hypervisor._guests[domid]
    with monkeypatch.context() as patch:  # stop in the fork that begins with a new id
        patch.setattr("xenlite.hypervisor._MIN_SLICE_BLOCKS", 1)
        guest.slice_blocks = 50
        shell.run_until(lambda: is_made(1), "the inner shell")
        guest.slice_blocks = 1
        shell.run_until(lambda: is_made(2), "its child")
    shell.type("\x03")
    shell.wait_for(PROMPT)
    shell.wait_for_quiet()


def test_ctrl_c_gives_a_new_line(shell: Machine) -> None:
    shell.type("junk\x03")
    assert shell.wait_for(PROMPT) == "junk^C\n"


def test_what_is_typed_ahead_waits_for_its_turn(shell: Machine) -> None:
    shell.type("sleep 0.05\recho a\r")
    assert shell.wait_for(PROMPT) == "sleep 0.05\n"
    assert shell.wait_for(PROMPT) == "echo a\na\n"
    shell.type("cat\rx\r\x04echo b\r")
    assert shell.wait_for(PROMPT) == "cat\nx\nx\n"
    assert shell.wait_for(PROMPT) == "echo b\nb\n"


def test_more_keys_than_all_buffers_hold_arrive(shell: Machine) -> None:
    count = 300
    shell.type("# nothing\r" * count + "echo end\r")
    for _ in range(count):
        assert shell.wait_for(PROMPT) == "# nothing\n"
    assert shell.wait_for(PROMPT) == "echo end\nend\n"


def test_cr_lf_is_one_enter(shell: Machine) -> None:
    shell.type("echo a\r\necho b\n")
    assert shell.wait_for(PROMPT) == "echo a\na\n"
    assert shell.wait_for(PROMPT) == "echo b\nb\n"


EDITS = {
    "left and right": ("echo bd\x1b[Dc\x1b[D\x1b[Da\x1b[C\x1b[C\x1b[Ce", "abcde"),
    "other names of the keys": ("echo bd\x1bODc\x02\x02a\x06\x06\x06e", "abcde"),
    "no further than the ends": ("echo x\x1b[C\x1b[C" + "\x1b[D" * 9 + "\x1b[Fy", "xy"),
    "home and end": ("cho\x1b[He\x1b[F a", "a"),
    "home and end of other terminals": ("cho\x1b[1~e\x1b[4~ a\x1b[7~\x1b[8~b\x1bOH\x1bOFc", "abc"),
    "control A and E": ("cho\x01e\x05 a", "a"),
    "backspace": ("echo axx\b\x7fb", "ab"),
    "backspace within": ("echo axb\x1b[D\x7f", "ab"),
    "backspace at the start": ("\b\becho a", "a"),
    "delete": ("echo axb\x1b[D\x1b[D\x1b[3~", "ab"),
    "control D deletes": ("echo axb\x1b[D\x1b[D\x04", "ab"),
    "delete at the end": ("echo ab\x1b[3~", "ab"),
    "control K": ("echo ab cd\x1b[D\x1b[D\x1b[D\x0b", "ab"),
    "control U": ("junkecho ab" + "\x1b[D" * 7 + "\x15", "ab"),
    "control W": ("echo ab junk  \x17cd", "ab cd"),
    "control L": ("echo a\x0cb", "ab"),
    "keys with modifiers": ("echo a\x1b[1;5D\x1b[1;5Cb", "ab"),
    "keys that mean nothing": ("echo \x1b[5~\x1b[15~\x1b[Z\x1bx\x00\x1ca\tb", "ab"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_line_is_edited(shell: Machine, name: str) -> None:
    keys, result = EDITS[name]
    assert lines(shell.command(keys)) == [result]


def test_a_line_longer_than_the_screen_is_edited(shell: Machine) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(200))
    assert lines(shell.command("cho " + text + "\x01e")) == [text]
    assert lines(shell.command("echo " + text + "\x1b[D" * 200 + "X")) == ["X" + text]
    assert lines(shell.command("echo " + text + "\b" * 190)) == [text[:10]]


def test_a_line_has_an_end(shell: Machine) -> None:
    shell.type("echo " + "x" * 300)
    shell.wait_for("\a" * 50)
    assert lines(shell.command("")) == ["x" * 250]


def test_old_lines_come_back(shell: Machine) -> None:
    up, down = "\x1b[A", "\x1b[B"
    for word in ("one", "two", "two", "three"):
        shell.command(f"echo {word}")
    assert lines(shell.command(up)) == ["three"]
    assert lines(shell.command(up + up)) == ["two"]
    assert lines(shell.command(up * 4)) == ["one"]
    assert lines(shell.command("echo new" + up + up + down + down)) == ["new"]
    assert lines(shell.command(up + "er\x10\x10\x0e\x0e")) == ["new"]
    assert lines(shell.command(down + "echo x")) == ["x"]


def test_sixteen_lines_are_kept(shell: Machine) -> None:
    for number in range(20):
        shell.command(f"echo {number}")
    assert lines(shell.command("history")) == [f"echo {n}" for n in range(5, 20)] + ["history"]
    assert lines(shell.command("\x1b[A" * 40)) == ["5"]


def test_blank_lines_are_not_kept(shell: Machine) -> None:
    shell.command("echo kept")
    shell.command("")
    shell.command("   ")
    assert lines(shell.command("\x1b[A")) == ["kept"]
