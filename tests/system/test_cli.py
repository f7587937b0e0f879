# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run`` as its users meet it: exit statuses, pipes, signals, terminals, refusals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.support.kernel_file import note, with_notes
from xenlite.abi.x86_32p import XEN_ELFNOTE_GUEST_OS
from xenlite.devkit.kernel_cache import build_kernel

ROOT = Path(__file__).parents[2]
XENLITE = [sys.executable, "-m", "xenlite.cli.main"]
PATIENCE = 30  # seconds until a test calls a process hung


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield build_kernel(Path(__file__).parent / "kernels" / "obedient.s")


@pytest.fixture
def domain(kernel: Path, tmp_path: Path) -> Path:
    """Return a domain's file; its kernel does what ``cmdline`` says."""
    path = tmp_path / "dom.yaml"
    path.write_text(f"name: ob\nkernel: {kernel}\nmemory: 4\non_reboot: destroy\n")
    return path


def run(
    *arguments: str | Path, typed: bytes | None = b"", verb: str = "run"
) -> subprocess.CompletedProcess[bytes]:
    command = [*XENLITE, verb, *map(str, arguments)]
    return subprocess.run(
        command, input=typed, capture_output=True, cwd=ROOT, timeout=PATIENCE, check=False
    )


def start(*arguments: str | Path, **pipes: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*XENLITE, "run", *map(str, arguments)], cwd=ROOT, **pipes)


def ours(result: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return what xenlite itself wrote beside where its sockets are; nothing is a traceback's."""
    text = result.stderr.decode()
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if not line.startswith("xenlite: sockets in ")]


# -- exit status ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "status"), [("p", 0), ("r", 17), ("s", 18), ("c", 19), ("d\x01", 17), ("d~", 123)]
)
def test_the_exit_status_is_the_guests(domain: Path, order: str, status: int) -> None:
    result = run(domain, f"cmdline={order}")
    assert result.returncode == status
    assert result.stdout == b"hello\n"


def test_create_is_run_today(domain: Path) -> None:
    result = run(domain, "cmdline=p", verb="create")
    assert (result.returncode, result.stdout) == (0, b"hello\n")


@pytest.mark.parametrize("order", ["l", "b"])
def test_a_timeout_ends_guests_that_loop_and_guests_that_wait(domain: Path, order: str) -> None:
    result = run(domain, f"cmdline={order}", "--timeout", "0.3")
    assert result.returncode == 124
    assert result.stdout == b"hello\n"


def test_a_reboot_loop_ends(domain: Path) -> None:
    result = run(domain, "cmdline=r", "on_reboot=restart")
    assert result.returncode == 17
    assert result.stdout == b"hello\n" * 6
    assert ours(result) == ["xenlite: domain 'ob' restarts too often: left as it is"]


def test_a_preserved_domain_stays_until_the_user_leaves(domain: Path) -> None:
    process = start(
        domain, "cmdline=c", "on_crash=preserve", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, b"")
    assert next(line for line in lines if b"preserved" in line)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 19
    process.communicate()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_a_guest_that_loops(domain: Path, number: int, status: int) -> None:
    process = start(domain, "cmdline=l", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello\n"
    process.send_signal(number)
    assert process.wait(PATIENCE) == status
    process.communicate()


# -- several domains ------------------------------------------------------------------------------


def both(domain: Path, first: str, second: str, *options: str | Path) -> list[str | Path]:
    """Name two domains that do what their orders say, a and b."""
    return [
        *(domain, "name=a", f"cmdline={first}", domain, "name=b", f"cmdline={second}"),
        *options,
    ]


def test_several_domains_print_labelled_lines(domain: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = run(*both(domain, "p", "p", "--log", log))
    assert (result.returncode, ours(result)) == (0, [])
    assert sorted(result.stdout.splitlines()) == [b"a| hello", b"b| hello"]
    assert log.read_bytes() == result.stdout


def test_lines_of_several_domains_are_never_mixed(domain: Path) -> None:
    result = run(*both(domain, "f", "f", "--timeout", "0.5"))
    assert result.returncode == 124
    *whole, first, second = result.stdout.splitlines()
    assert {line for line in whole if b"a|" not in line} == {b"b| hello", b"b| " + b"#" * 1000}
    a = b"".join(line.removeprefix(b"a| ") for line in whole if line.startswith(b"a| "))
    assert a.startswith(b"hello###")
    assert set(a) == set(b"helo#")
    assert {first[:3], second[:3]} <= {b"a| ", b"b| "}


@pytest.mark.parametrize(
    ("first", "second", "status"), [("p", "r", 17), ("r", "c", 17), ("s", "r", 18), ("c", "p", 19)]
)
def test_the_exit_status_is_the_first_bad_one_in_the_order_given(
    domain: Path, first: str, second: str, status: int
) -> None:
    assert run(*both(domain, first, second)).returncode == status


def test_a_later_end_counts_first_where_it_was_given_first(domain: Path) -> None:
    # The first domain ends only when it is told to, long after the second.
    process = start(*both(domain, "e", "r"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {b"a| hello\n", b"b| hello\n"}
    assert process.communicate(b"keys\nq", PATIENCE)[0] == b"a| keys\n"
    assert process.returncode == 17


def test_a_crash_leaves_the_others_running(domain: Path) -> None:
    process = start(
        *both(domain, "e", "c"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"sockets in" in process.stderr.readline()
    assert b"domain 'b' (domid 2) crashed" in process.stderr.readline()
    seen, _ = process.communicate(b"still here\nq", PATIENCE)
    assert seen.endswith(b"a| still here\n")
    assert process.returncode == 19


def test_domains_that_spin_leave_time_for_one_that_works(domain: Path) -> None:
    words = both(domain, "e", "l", domain, "name=c", "cmdline=l", "cpu_weight=4096")
    process = start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"there\nq")
    process.stdin.flush()
    lines = iter(process.stdout.readline, b"")
    assert next(line for line in lines if line == b"a| there\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    process.communicate()


def test_overrides_change_the_file_before_them(domain: Path) -> None:
    result = run(domain, "memory=8", "name=a", domain, verb="check")
    assert result.returncode == 0
    first, second = result.stdout.decode().splitlines()
    assert ": a: " in first
    assert "of 2048 pages" in first
    assert ": ob: " in second
    assert "of 1024 pages" in second


def test_two_domains_need_two_names(domain: Path) -> None:
    what = f"xenlite: {domain}: name: 'ob' is taken by {domain}; give one of them name=..."
    assert refused(domain, domain) == [what]
    assert refused(domain, domain, "memory=lots", tmp := domain.with_name("none.yaml")) == [
        "xenlite: command line: memory: 'lots' is not a size; write MiB (32) or a unit (32M, 1G)",
        f"xenlite: {tmp}: No such file or directory",
    ]


def test_overrides_need_a_file_to_change(domain: Path) -> None:
    assert refused("memory=8", domain) == [
        "xenlite: command line: 'memory=8' stands before the file it changes"
    ]


# -- pipes ----------------------------------------------------------------------------------------


def test_input_reaches_the_guest_and_comes_back_unchanged(domain: Path) -> None:
    result = run(domain, "cmdline=e", typed=b"a line\r\nbytes \x00\xff\x1d\x03 q")
    assert result.returncode == 0
    assert result.stdout == b"hello\na line\r\nbytes \x00\xff\x1d\x03 "


def test_much_input_arrives_whole(domain: Path) -> None:
    text = bytes(range(32, 64)) * 8192
    result = run(domain, "cmdline=e", typed=text + b"q")
    assert result.stdout == b"hello\n" + text


def test_a_guest_that_never_reads_still_hears_signals_and_ctrl_bracket(domain: Path) -> None:
    text = b"x" * (1 << 20)
    process = start(domain, "cmdline=l", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello\n"
    os.set_blocking(process.stdin.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            os.write(process.stdin.fileno(), text)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    process.stdout.close()
    process.stdin.close()
    child = on_a_terminal(domain, "cmdline=l")
    child.expect(b"hello")
    for _ in range(100):
        child.send(b"x" * 1000)
    child.send(b"\x1d")
    assert the_end_of(child)[0] == 130


def test_the_end_of_input_does_not_end_the_guest(domain: Path) -> None:
    assert run(domain, "cmdline=e", "--timeout", "0.3", typed=b"x").returncode == 124


def test_a_reader_that_leaves_ends_the_run(domain: Path) -> None:
    process = start(domain, "cmdline=f", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(PATIENCE) == 141


def test_a_reader_that_sleeps_does_not_stop_the_clock(domain: Path) -> None:
    process = start(
        domain, "cmdline=f", "--timeout", "0.5", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.wait(PATIENCE) == 124
    process.communicate()


def test_full_disks_are_told_and_end_what_they_must(domain: Path) -> None:
    result = run(domain, "cmdline=p", "--log", "/dev/full")
    assert (result.returncode, result.stdout) == (0, b"hello\n")
    assert ours(result) == ["xenlite: /dev/full: No space left on device: the log ends here"]
    with Path("/dev/full").open("wb") as full:
        process = start(
            domain, "cmdline=l", stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE
        )
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.endswith(b"\nxenlite: standard output: No space left on device\n")


def test_quiet_shows_nothing_and_the_log_keeps_everything(domain: Path, tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    result = run(domain, "cmdline=a", "--quiet", "--log", log)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert log.read_bytes() == b"hello\n\x1b]0;owned\x07\x1b[6n\x1b[31mred\x1b[0m\n"


def test_a_pipe_gets_the_guests_bytes_as_they_are(domain: Path) -> None:
    assert run(domain, "cmdline=a").stdout.endswith(b"\x1b[6n\x1b[31mred\x1b[0m\n")


# -- explanations ---------------------------------------------------------------------------------


def test_a_crash_is_explained_in_the_guests_words(domain: Path) -> None:
    report = run(domain, "cmdline=c").stderr.decode()
    assert "domain 'ob' (domid 1) crashed: traps.no-handler" in report
    assert "eax 12345678" in report
    assert "<crash_here>: 0f 0b   ud2" in report
    assert "<crash>" in report, "the stack word is named"
    assert "console_io(cmd=CONSOLEIO_write, count=0x6, buffer=0x" in report
    assert report.endswith("end of the console:\n  hello\n")


def test_a_crash_report_shows_the_page_tables_and_the_rule(domain: Path, tmp_path: Path) -> None:
    path = tmp_path / "crashes"
    text = run(domain, "cmdline=c", "--crash-report", path).stderr.decode()
    assert "`xenlite explain traps.no-handler` says what that rule is for" in text
    assert "page tables at eip c000" in text
    assert "of d1, l2xen, 1 uses as that, " in text
    assert "events:" not in text, "none were recorded"
    (line,) = path.read_text().splitlines()
    report = json.loads(line)
    assert (report["domain"], report["rule"]) == ("ob", "traps.no-handler")
    assert report["registers"]["eax"] == 0x12345678
    assert report["instruction"].endswith("ud2")
    walks = {walk["register"]: walk["steps"] for walk in report["walks"]}
    assert [step[:3] for step in walks["eip"]] == ["L3[", "L2[", "L1["]
    assert walks["cr2"] == ["L3[0] = 0x0, not present"]
    assert "crash" in [word["label"] for word in report["stack"]]
    assert report["console"] == ["hello"]


def test_a_recorded_crash_shows_the_last_events_in_their_order(
    domain: Path, tmp_path: Path
) -> None:
    path = tmp_path / "crashes"
    run(domain, "cmdline=c", "--crash-report", path, "--trace", tmp_path / "trace")
    events = json.loads(path.read_text())["events"]
    assert [event.split()[2].split("(")[0] for event in events] == [
        "domain",
        "console_io",
        "#UD",
        "crashed:",
    ]


@pytest.mark.parametrize("wish", ["coredump-destroy", "coredump-restart"])
def test_gdb_opens_a_core_with_the_kernels_symbols(
    domain: Path, kernel: Path, tmp_path: Path, wish: str
) -> None:
    command = [*XENLITE, "run", str(domain), "cmdline=c", f"on_crash={wish}"]
    ended = subprocess.run(
        command,
        input=b"",
        capture_output=True,
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 19
    cores = sorted(path.name for path in tmp_path.glob("ob-*.core"))
    starts = 1 if wish == "coredump-destroy" else 6
    assert cores == [f"ob-{domid}.core" for domid in range(1, starts + 1)]
    asked = ["info registers eax", "backtrace 2", "x/i $eip", "x/s &hello"]
    words = [word for one in asked for word in ("-ex", one)]
    command = ["gdb", "-batch", "-nx", *words, str(kernel), str(tmp_path / cores[0])]
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    assert "0x12345678" in said
    assert "crash_here ()" in said
    assert "#1 " in said
    assert "<crash_here>:\tud2" in said
    assert '<hello>:\t"hello\\n' in said


def test_verbose_says_why_a_hypercall_was_refused_and_who_made_it(domain: Path) -> None:
    quiet = run(domain, "cmdline=n")
    assert ours(quiet) == []
    (line,) = ours(run(domain, "cmdline=n", "-v"))
    assert line.startswith("xenlite: ob: mmu_update(ureqs=0xfffff000, count=0x1,")
    assert "= -EFAULT: memory.bad-pointer (0xfffff000), from " in line
    assert line.endswith("<be_refused+0x16>")


def test_a_broken_ring_is_told_and_the_domain_lives_on(domain: Path) -> None:
    result = run(domain, "cmdline=h")
    assert result.returncode == 0
    (line,) = ours(result)
    assert line.startswith("xenlite: domain 'ob' broke a device: console output: ")
    result = run(domain, "cmdline=t")
    assert result.returncode == 0
    (line,) = ours(result)
    assert line.startswith("xenlite: domain 'ob' broke its XenStore ring: store requests: ")


def test_an_audited_run_finds_nothing_wrong(domain: Path) -> None:
    assert run(domain, "cmdline=p", "--audit").returncode == 0


# -- refusals -------------------------------------------------------------------------------------


def refused(*arguments: str | Path, verb: str = "run") -> list[str]:
    result = run(*arguments, verb=verb)
    assert result.returncode == 1
    assert result.stdout == b""
    return ours(result)


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: a\nkernle: b\nmemory: lots\n")
    assert refused(path) == [
        f"xenlite: {path}: kernel: is missing, or firmware in its place",
        f"xenlite: {path}:2: kernle: not a key of this file; did you mean 'kernel'?",
        f"xenlite: {path}:3: memory: 'lots' is not a size; write MiB (32) or a unit (32M, 1G)",
    ]


def test_files_that_are_missing_or_no_kernels_are_named(domain: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == [
        f"xenlite: {tmp_path}/none.yaml: No such file or directory"
    ]
    assert refused(domain, f"kernel={tmp_path}/none") == [f"xenlite: {tmp_path}/none: no such file"]
    assert refused(domain, f"kernel={tmp_path}") == [f"xenlite: {tmp_path}: not a regular file"]
    assert refused(domain, f"kernel={domain}") == [f"xenlite: {domain}: not an ELF file"]
    assert refused(domain, "ramdisk=/dev/zero") == ["xenlite: /dev/zero: not a regular file"]
    long = "x" * 300
    assert refused(domain, f"ramdisk=/{long}") == [f"xenlite: /{long}: File name too long"]
    assert refused(domain, "--log", tmp_path) == [f"xenlite: {tmp_path}: Is a directory (--log)"]


def test_mistakes_of_an_assembled_kernel_name_its_line(domain: Path, tmp_path: Path) -> None:
    source = tmp_path / "k.s"
    source.write_text(".global _start\n_start:\n    nosuch eax\n")
    (line,) = refused(domain, f"kernel={source}")
    assert "k.s:3: " in line
    assert "nosuch" in line


def test_a_machine_too_small_is_told_with_its_mend(domain: Path, tmp_path: Path) -> None:
    (line,) = refused(domain, "memory=64", "--host-memory", "32M")
    assert line.endswith("--host-memory gives it more")
    ramdisk = tmp_path / "initrd"
    ramdisk.write_bytes(bytes(4 << 20))
    (line,) = refused(domain, f"ramdisk={ramdisk}", "memory=4")
    assert "memory: 4 MiB is too little" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--timeout", "-1"],
        ["--timeout", "x"],
        ["--host-memory", "x"],
        ["--host-memory", "0"],
        ["--host-memory=5G"],
        ["--nosuch"],
    ],
)
def test_wrong_options_are_refused(domain: Path, words: list[str]) -> None:
    result = run(domain, *words)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr.decode()


def test_check_reads_everything_and_runs_nothing(domain: Path) -> None:
    result = run(domain, verb="check")
    assert result.returncode == 0
    assert b"ob: obedient, entry 0xc0" in result.stdout
    assert refused(domain, "memory=lots", verb="check")


def test_names_that_a_kernel_chose_command_no_terminal(domain: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "kernel"
    name = note(XEN_ELFNOTE_GUEST_OS, "\x1b]0;owned\x07")
    hostile.write_bytes(with_notes(name).build())
    result = run(domain, f"kernel={hostile}", verb="check")
    assert b"\\x1b]0;owned\\x07" in result.stdout
    assert b"\x1b" not in result.stdout


# -- a terminal -----------------------------------------------------------------------------------


def on_a_terminal(*arguments: str | Path) -> pexpect.spawn:
    words = [*XENLITE[1:], "run", *map(str, arguments)]
    child = pexpect.spawn(XENLITE[0], words, cwd=str(ROOT), timeout=PATIENCE)
    child.delaybeforesend = None
    return child


def the_end_of(child: pexpect.spawn) -> tuple[int | None, bytes]:
    """Return the exit status and what was left to read."""
    output: bytes = child.read()
    child.wait()
    return child.exitstatus, output


def modes_of(fd: int) -> list[Any]:
    return termios.tcgetattr(fd)[:4]


@pytest.fixture
def tty() -> Iterator[tuple[int, int]]:
    """A terminal that outlives the process on it: (its keyboard and screen, the process's end)."""
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_keys_go_to_the_guest_raw_and_lines_end_as_terminals_want(domain: Path) -> None:
    child = on_a_terminal(domain, "cmdline=e")
    child.expect(b"hello\r\n")
    child.send(b"x\x03\x1a\ry\n")
    child.expect_exact(b"x^C^Z\ry\r\n")
    child.send(b"q")
    assert the_end_of(child) == (0, b"")


def test_ctrl_bracket_leaves(domain: Path) -> None:
    child = on_a_terminal(domain, "cmdline=l")
    child.expect(b"hello")
    child.send(b"\x1d")
    assert the_end_of(child)[0] == 130


def test_a_guest_does_not_command_the_terminal(domain: Path) -> None:
    child = on_a_terminal(domain, "cmdline=a")
    child.expect_exact(b"hello\r\n^[]0;owned\x07^[[6n\x1b[31mred\x1b[0m\r\n")
    assert the_end_of(child)[0] == 0


@pytest.mark.parametrize(
    ("order", "options", "key", "number", "status"),
    [
        ("p", [], b"", 0, 0),
        ("c", [], b"", 0, 19),
        ("l", ["--timeout", "0.3"], b"", 0, 124),
        ("l", [], b"\x1d", 0, 130),
        ("l", [], b"", signal.SIGTERM, 143),
        ("l", [], b"", signal.SIGHUP, 129),
    ],
)
def test_the_terminal_is_as_before_whatever_ended_the_run(
    domain: Path,
    tty: tuple[int, int],
    order: str,
    options: list[str],
    key: bytes,
    number: int,
    status: int,
) -> None:
    screen, slave = tty
    before = modes_of(slave)
    process = start(domain, f"cmdline={order}", *options, stdin=slave, stdout=slave, stderr=slave)
    seen = b""
    while b"hello" not in seen:
        assert select.select([screen], [], [], PATIENCE)[0], f"the guest said only {seen!r}"
        seen += os.read(screen, 100)
    if order == "l":
        assert modes_of(slave) != before
    if key:
        os.write(screen, key)
    if number:
        process.send_signal(number)
    assert process.wait(PATIENCE) == status
    assert modes_of(slave) == before
