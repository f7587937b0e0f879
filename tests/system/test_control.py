# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs for a running xenlite, between real processes."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pexpect
import pytest
import yaml

from tests.support.console_flood import flood, resident_kib
from xenlite.devkit.kernel_cache import build_kernel
from xenlite.toolstack.control_protocol import LINE_BYTES, Request

ROOT = Path(__file__).parents[2]
XENLITE = [sys.executable, "-m", "xenlite.cli.main"]
PATIENCE = 30


class Running:
    """One ``xenlite run`` of two domains: ``a`` echoes what is typed, ``b`` sleeps for good."""

    def __init__(self, directory: Path, kernel: Path, *words: str, first: str = "name=a") -> None:
        self.directory = directory
        config = directory.parent / "dom.yaml"
        config.write_text(f"name: a\nkernel: {kernel}\nmemory: 4\ncmdline: e\n")
        command = [*XENLITE, "run", str(config), first, str(config), "name=b", "cmdline=b", *words]
        self.process = subprocess.Popen(
            [*command, "--audit", "--socket-dir", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        lines = {self.process.stdout.readline() for _ in range(2)}
        assert lines == {b"a| hello\n", b"b| hello\n"}
        self.socket = directory / "control.sock"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what a failed test has left running."""
        self.process.kill()
        self.process.communicate()

    def do(self, verb: str, *words: str | Path, status: int = 0) -> str:
        """Run a verb; return what it says: its output, or its one line of error."""
        command = [*XENLITE, verb, *map(str, words), "--socket-dir", str(self.directory)]
        ended = subprocess.run(
            command,
            cwd=self.directory.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == status, ended.stderr
        if not status:
            assert ended.stderr == ""
            return ended.stdout
        [line] = ended.stderr.splitlines()
        return line.removeprefix("xenlite: ")

    def states(self) -> dict[str, str]:
        """Return the state of each domain."""
        return {one["name"]: one["state"] for one in json.loads(self.do("list", "--format=json"))}

    def types(self, text: bytes) -> None:
        """Type on the console of a, and wait for what it echoes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"a| " + text + b"\n"

    def end(self, status: int) -> str:
        """Wait for its end; return what it said."""
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == status, said
        return said.decode()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield build_kernel(Path(__file__).parent / "kernels" / "obedient.s")


@pytest.fixture
def running(kernel: Path, tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "sockets", kernel) as made:
        yield made


# -- domains --------------------------------------------------------------------------------------


def test_the_socket_is_its_owners_alone(running: Running) -> None:
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600


def test_list_shows_xls_table_and_the_same_for_programs(running: Running) -> None:
    head, dom0, a, b = running.do("list").splitlines()
    assert head.split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
    assert dom0.split()[:2] == ["Domain-0", "0"]
    name, domid, memory, vcpus, state, seconds = a.split()
    assert (name, domid, memory, vcpus, state) == ("a", "1", "4", "1", "r-----")
    assert float(seconds) >= 0
    assert b.split()[4] == "-b----"
    assert len({len(line) for line in (head, dom0, a, b)}) == 1
    found = json.loads(running.do("list", "b", "--format=json"))
    assert [(one["name"], one["domid"], one["memory_kib"]) for one in found] == [("b", 2, 4096)]
    assert yaml.safe_load(running.do("list", "2", "--format=yaml")) == found


def test_a_paused_domain_stands_still_until_it_is_unpaused(running: Running) -> None:
    assert running.do("pause", "a") == ""
    assert running.states()["a"] == "p"
    assert running.process.stdin is not None
    running.process.stdin.write(b"later\n")
    running.process.stdin.flush()
    assert running.states()["a"] == "p"
    assert running.process.stdout is not None
    assert select.select([running.process.stdout], [], [], 0)[0] == []
    assert running.do("unpause", "1") == ""
    assert running.process.stdout.readline() == b"a| later\n"
    assert running.states() == {"Domain-0": "r", "a": "r", "b": "b"}


def test_what_is_destroyed_is_gone_at_once_and_the_others_go_on(running: Running) -> None:
    running.do("pause", "b")
    running.do("destroy", "b")
    assert list(running.states()) == ["Domain-0", "a"]
    running.types(b"still here")
    running.do("destroy", "a")
    running.end(130)


def test_shutdown_and_reboot_are_wishes_in_xenstore(running: Running) -> None:
    for verb, word in (("shutdown", "poweroff\n"), ("reboot", "reboot\n")):
        running.do(verb, "a")
        assert running.do("xenstore", "read", "/local/domain/1/control/shutdown") == word


# -- disks ----------------------------------------------------------------------------------------


def test_disks_come_and_go_while_the_domain_runs(running: Running) -> None:
    (running.directory.parent / "d.img").write_bytes(bytes(1 << 20))
    columns = ["Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"]
    [head] = running.do("block-list", "b").splitlines()
    assert head.split() == columns
    ways = (("d.img,raw,xvdb,w",), ("d.img", "raw", "xvdb", "w"), ("vdev=xvdb,target=d.img",))
    for words in ways:
        running.do("block-attach", "b", *words)
        [_, disk] = running.do("block-list", "b").splitlines()
        path = "/local/domain/0/backend/vbd/2/51728"
        assert disk.split() == ["51728", "0", "2", "1", "-1", "-1", path]
        assert running.do("xenstore", "read", f"{path}/state", f"{path}/sectors") == "2\n2048\n"
        running.do("xenstore", "write", "/local/domain/0/backend/vbd/2/note", "not a disk")
        assert len(running.do("block-list", "b").splitlines()) == 2
        running.do("block-detach", "b", "xvdb" if words[0] == "d.img" else "51728")
        assert running.do("block-list", "b").splitlines() == [head]
    running.do("destroy", "b")
    running.do("destroy", "a")
    running.end(130)


def test_a_frontend_that_does_not_answer_keeps_its_disk_until_forced(running: Running) -> None:
    (running.directory.parent / "d.img").write_bytes(bytes(1 << 20))
    running.do("block-attach", "b", "d.img,raw,xvdb,w")
    front = "/local/domain/2/device/vbd/51728"
    running.do("xenstore", "write", f"{front}/state", "5")
    back = "/local/domain/0/backend/vbd/2/51728"
    assert running.do("xenstore", "read", f"{back}/state") == "5\n"
    said = running.do("block-detach", "b", "xvdb", "--timeout", "0", status=1)
    assert said == (
        "xvdb: the guest has not closed it within 0 s: it goes when the guest does,"
        " or at once with --force"
    )
    assert running.do("xenstore", "read", f"{back}/state", f"{back}/online") == "5\n0\n"
    assert "has such a disk" in running.do("block-attach", "b", "d.img,raw,xvdb,w", status=1)
    running.do("block-detach", "b", "xvdb", "--force")
    assert running.do("xenstore", "list", "/local/domain/2/device/vbd") == ""
    running.do("block-attach", "b", "d.img,raw,xvdb,w")
    running.do("xenstore", "write", f"{front}/state", "5")
    waiting = subprocess.Popen(
        [*XENLITE, "block-detach", "b", "xvdb", "--socket-dir", str(running.directory)], cwd=ROOT
    )
    while running.do("xenstore", "read", f"{back}/online") != "0\n":
        pass
    running.do("xenstore", "write", f"{front}/state", "6")
    assert waiting.wait(PATIENCE) == 0
    assert running.do("xenstore", "list", "/local/domain/2/device/vbd") == ""


def test_a_domain_whose_disk_is_gone_does_not_start_again_and_others_go_on(
    kernel: Path, tmp_path: Path
) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(bytes(4096))
    with Running(tmp_path / "sockets", kernel, first="on_poweroff=restart") as running:
        running.do("block-attach", "a", str(image), "raw", "xvda", "w")
        image.unlink()
        assert running.process.stdin is not None
        running.process.stdin.write(b"q")
        running.process.stdin.flush()
        assert running.process.stderr is not None
        lines = iter(running.process.stderr.readline, b"")
        said = next(line.decode() for line in lines if b"cannot" in line)
        assert f"domain 'a' cannot start again: {image}: No such file or directory" in said
        assert list(running.states()) == ["Domain-0", "b"]
        running.do("destroy", "b")
        assert running.process.wait(PATIENCE) == 1


def test_an_output_that_nobody_reads_is_no_fault(running: Running) -> None:
    command = [*XENLITE, "list", "--socket-dir", str(running.directory)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


def test_what_cannot_be_done_is_one_line(running: Running) -> None:
    for words, what in (
        (("pause", "c"), "no domain is called 'c' here"),
        (("pause", "0"), "no domain is called '0' here"),
        (("list", "c"), "no domain is called 'c' here"),
        (("destroy", ""), "no domain is called '' here"),
        (("block-list", "c"), "no domain is called 'c' here"),
        (("block-attach", "b", "none.img,raw,xvdb,w"), "none.img: No such file or directory"),
        (("block-attach", "b", ".,raw,xvdb,r"), "neither a file nor a block device"),
        (("block-attach", "b", "x,raw"), "a disk needs a vdev"),
        (("block-attach", "b", "x,qcow2,xvdb,w"), "only raw images can be used"),
        (("block-attach", "b", "x", "raw", "xvdb", "w", "more"), "'more' is one word too many"),
        (("block-detach", "b", "xvdq"), "b: has no disk xvdq"),
        (("block-detach", "b", "disk"), "vdev 'disk' is no device's name"),
        (("block-detach", "b", "xvda", "--timeout", "-1"), "-1 is not between 0 and 3600"),
    ):
        assert what in running.do(*words, status=1)
    assert running.states() == {"Domain-0": "r", "a": "r", "b": "b"}


# -- clients that misbehave, and hosts that die ---------------------------------------------------


def connect(running: Running) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(running.socket))
    return client


def test_hostile_clients_harm_nobody_else(running: Running) -> None:
    with connect(running) as endless, connect(running) as deaf, connect(running) as half:
        half.sendall(b'{"version": 1')
        with suppress(ConnectionResetError, BrokenPipeError):
            endless.sendall(b"x" * LINE_BYTES)
            assert endless.recv(10) == b""
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            while deaf.send(Request("list").encode() * 1000):
                assert running.states()["b"] == "b"
        running.types(b"fine")
        assert list(running.states()) == ["Domain-0", "a", "b"]
        with connect(running) as garbage:
            garbage.sendall(os.urandom(100).replace(b"\n", b"") + b"\n")
            assert b"error" in garbage.recv(1000)
            garbage.sendall(Request("list").encode())
            assert b"Domain-0" in garbage.recv(1000)
    running.types(b"fine")
    running.process.send_signal(signal.SIGTERM)
    assert "Traceback" not in running.end(143)


def test_a_detach_whose_client_leaves_goes_on(running: Running) -> None:
    (running.directory.parent / "d.img").write_bytes(bytes(1 << 20))
    running.do("block-attach", "b", "d.img,raw,xvdb,w")
    front = "/local/domain/2/device/vbd/51728"
    running.do("xenstore", "write", f"{front}/state", "5")
    with connect(running) as client:
        wish = {"domain": "b", "vdev": "xvdb", "force": False, "seconds": 3600}
        client.sendall(Request("block-detach", dict(wish)).encode())
        while running.do("xenstore", "read", "/local/domain/0/backend/vbd/2/51728/online") != "0\n":
            pass
    running.do("xenstore", "write", f"{front}/state", "6")
    assert running.do("xenstore", "list", "/local/domain/2/device/vbd") == ""


def test_a_host_that_is_killed_is_swept_away_by_the_next(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = tmp_path / "dom.yaml"
    config.write_text(f"name: b\nkernel: {kernel}\nmemory: 4\ncmdline: b\n")
    base = tmp_path / "xenlite"

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*XENLITE, "run", str(config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"hello\n"
        return process

    def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)

    first, lives = start(), start()
    end(first, signal.SIGKILL)
    (base / "999999").mkdir(mode=0o700)
    (base / "999999" / "notes").write_text("mine")
    (base / "mine").mkdir(mode=0o700)
    second = start()
    names = {path.name for path in base.iterdir()}
    assert names == {str(lives.pid), str(second.pid), "999999", "mine"}
    for process in (lives, second):
        end(process, signal.SIGTERM)
    assert {path.name for path in base.iterdir()} == {"999999", "mine"}


# -- consoles -------------------------------------------------------------------------------------


def consoled(tmp_path: Path, kernel: Path, cmdline: str, console: str) -> Path:
    config = tmp_path / "c.yaml"
    text = f"name: c\nkernel: {kernel}\nmemory: 4\ncmdline: {cmdline}\nconsole: {console}\n"
    config.write_text(text)
    return config


@contextmanager
def host_of(config: Path, sockets: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a domain whose console is not on the terminal."""
    process = subprocess.Popen(
        [*XENLITE, "run", str(config), "--socket-dir", str(sockets), *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"xenlite: sockets in")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def joined(sockets: Path) -> pexpect.spawn[bytes]:
    """Be a person who joins console c."""
    words = [*XENLITE[1:], "console", "c", "--socket-dir", str(sockets)]
    return pexpect.spawn(XENLITE[0], words, timeout=PATIENCE)


def test_a_console_is_joined_and_left(kernel: Path, tmp_path: Path) -> None:
    config, sockets = consoled(tmp_path, kernel, "e", "{output: pty, log: c.log}"), tmp_path / "s"
    with host_of(config, sockets) as host:
        for n in range(2):
            person = joined(sockets)
            if not n:
                person.expect(b"hello\r\n")  # from before anybody looked
            person.send(b"round %d\n" % n)
            person.expect(b"round %d\r\n" % n)
            person.send(b"\x1d")
            person.expect(pexpect.EOF)
            person.wait()
            assert person.exitstatus == 0
        last = subprocess.run(
            [*XENLITE, "console", "1", "--socket-dir", str(sockets)],
            cwd=ROOT,
            input=b"piped\x1d\nq",
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        assert last.stdout.endswith(b"piped\x1d\n"), "behind what the last one left unread"
        shown, _ = host.communicate(timeout=PATIENCE)
        assert host.returncode == 0
        assert shown == b"", "the console is not on the terminal"
    log = (tmp_path / "c.log").read_bytes()
    assert log == b"hello\nround 0\nround 1\npiped\x1d\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(kernel: Path, tmp_path: Path, number: int) -> None:
    sockets = tmp_path / "s"
    with host_of(consoled(tmp_path, kernel, "e", "pty"), sockets):
        person = joined(sockets)
        person.expect(b"hello\r\n")
        assert not termios.tcgetattr(person.child_fd)[3] & termios.ECHO
        person.kill(number)
        person.expect(pexpect.EOF)
        person.wait()
        assert person.exitstatus == 128 + number
        assert termios.tcgetattr(person.child_fd)[3] & termios.ECHO


def test_a_guest_commands_no_terminal_by_its_pty(kernel: Path, tmp_path: Path) -> None:
    config, sockets = consoled(tmp_path, kernel, "a", "pty"), tmp_path / "s"
    with host_of(config, sockets, "on_poweroff=preserve") as host:
        assert host.stderr is not None
        assert b"preserved" in host.stderr.readline()
        person = joined(sockets)
        person.expect_exact(b"^[]0;")
        person.send(b"\x1d")
        person.expect(pexpect.EOF)
        person.wait()


def test_a_flood_grows_nothing_and_starves_nobody(tmp_path: Path) -> None:
    """As ``tools/soak console`` does with more."""
    flooded = flood(tmp_path, 16 << 20)
    assert flooded.size_bytes >= 16 << 20
    assert flooded.growth_kib < 8 << 10
    assert (tmp_path / "flood.log").stat().st_size >= 16 << 20


def test_consoles_that_are_flooded_and_unread_hold_up_nobody(kernel: Path, tmp_path: Path) -> None:
    flood = consoled(tmp_path, kernel, "f", "[pty, {output: file, path: f.log}]")
    with Running(tmp_path / "sockets", kernel, str(flood)) as running:
        running.types(b"before")
        before = resident_kib(running.process.pid)
        while float(json.loads(running.do("list", "c", "--format=json"))[0]["cpu_seconds"]) < 2:
            running.types(b"no delay")
        assert resident_kib(running.process.pid) - before < 8 << 10
        tty = running.do("xenstore", "read", "/local/domain/3/console/tty").strip()
        fd = os.open(tty, os.O_RDONLY | os.O_NOCTTY)
        assert set(os.read(fd, 4096)) <= set(b"hello\n#")
        os.close(fd)
        running.do("destroy", "c")
        assert not Path(tty).exists()
        running.types(b"after")


def test_a_console_that_is_not_there_is_said(running: Running) -> None:
    assert running.do("console", "a", "-n", "1", status=1) == "a: has no console 1"
    assert running.do("console", "a", "-n", "-1", status=1) == "a: has no console -1"
    assert running.do("console", "z", status=1) == "no domain is called 'z' here"


def test_a_console_that_cannot_be_opened_starts_nothing(kernel: Path, tmp_path: Path) -> None:
    for console, what in (
        ("file:no/such/log", "No such file or directory (console)"),
        ("socket:no/such/socket", "No such file or directory"),
    ):
        config = consoled(tmp_path, kernel, "p", console)
        command = [*XENLITE, "run", "-q", str(config), "--socket-dir", str(tmp_path / "s")]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        [line] = ended.stderr.splitlines()
        assert line.endswith(what)
