# SPDX-License-Identifier: GPL-2.0-or-later
"""XenStore of a running ``xenlite run``, by tools that nobody here wrote and by our own.

Debian's xenstore-utils and PyPI's pyxs are unmodified: they find the socket by XENSTORED_PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from pyxs import Client, Router
from pyxs.connection import UnixSocketConnection

from xenlite.abi.x86_32p import XS_READ
from xenlite.devkit.kernel_cache import build_kernel
from xenlite.dom0.xenstore.wire import Message

ROOT = Path(__file__).parents[2]
XENLITE = [sys.executable, "-m", "xenlite.cli.main"]
PATIENCE = 30


class Running:
    """One ``xenlite run`` whose guest waits for ever; its domid is 1."""

    def __init__(
        self, directory: Path, *words: str | Path, kernel: Path, typing: bool = False
    ) -> None:
        self.directory = directory
        config = directory.parent / "dom.yaml"
        config.write_text(f"name: waiter\nkernel: {kernel}\nmemory: 4\ncmdline: b\n")
        self.process = subprocess.Popen(
            [*XENLITE, "run", str(config), *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE if typing else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.said = self.process.stderr.readline().decode()
        assert self.process.stdout.readline().endswith(b"hello\n")
        self.socket = directory / "xenstore.sock"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what a failed test has left running."""
        self.process.kill()
        self.process.communicate()

    def theirs(self, tool: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of xenstore-utils."""
        assert shutil.which(tool), "this test needs Debian's package xenstore-utils"
        environment = {**os.environ, "XENSTORED_PATH": str(self.socket)}
        return done([tool, *words], environment)

    def ours(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of ``xenlite xenstore``."""
        where = ["--socket-dir", str(self.directory)]
        return done([*XENLITE, "xenstore", verb, *where, *words], dict(os.environ))

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 128 + signal.SIGTERM
        _, said = self.process.communicate()
        assert said == b"", said


def done(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield build_kernel(Path(__file__).parent / "kernels" / "obedient.s")


@pytest.fixture(scope="module")
def running(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("run") / "sockets"
    with Running(directory, "--audit", "--socket-dir", directory, kernel=kernel) as made:
        yield made
        assert made.theirs("xenstore", "ls").returncode == 0
        made.end()
    assert not directory.exists()


# -- the directory --------------------------------------------------------------------------------


def test_the_sockets_are_the_owners_alone_and_named(running: Running) -> None:
    assert running.said == f"xenlite: sockets in {running.directory}\n"
    assert stat.S_IMODE(running.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600


def test_a_directory_of_its_own_is_found_again_and_removed(kernel: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        none = done([*XENLITE, "xenstore", "ls"], dict(os.environ))
        assert (none.returncode, none.stdout) == (1, "")
        assert "no xenlite is running here" in none.stderr
        base = tmp_path / "xenlite"
        with Running(tmp_path / "x", kernel=kernel) as made:
            assert made.said == f"xenlite: sockets in {base}/{made.process.pid}\n"
            found = done([*XENLITE, "xenstore", "read", "/local/domain/1/name"], dict(os.environ))
            assert found.stdout == "waiter\n"
            with Running(tmp_path / "y", kernel=kernel) as other:
                both = done([*XENLITE, "xenstore", "ls"], dict(os.environ))
                assert both.returncode == 1
                assert "several are running; give --socket-dir" in both.stderr
                other.end()
            made.end()
        assert list(base.iterdir()) == []


def test_a_directory_that_others_may_enter_is_refused(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    config = tmp_path / "dom.yaml"
    config.write_text(f"name: d\nkernel: {kernel}\nmemory: 4\ncmdline: p\n")
    for name in ("open", "file", "link", "no/such", "x" * 120):
        command = [*XENLITE, "run", str(config), "--socket-dir", str(tmp_path / name)]
        result = done(command, dict(os.environ))
        assert (result.returncode, result.stdout) == (1, ""), name
        assert result.stderr.startswith(f"xenlite: {tmp_path / name}")
        assert "Traceback" not in result.stderr


def test_two_do_not_share_a_socket_and_a_dead_ones_is_taken(
    running: Running, kernel: Path, tmp_path: Path
) -> None:
    config = tmp_path / "dom.yaml"
    config.write_text(f"name: d\nkernel: {kernel}\nmemory: 4\ncmdline: p\n")
    command = [*XENLITE, "run", str(config), "--socket-dir"]
    second = done([*command, str(running.directory)], dict(os.environ))
    assert second.returncode == 1
    assert "another xenlite has its sockets there" in second.stderr
    assert running.theirs("xenstore-list", "/").returncode == 0
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(mine / "xenstore.sock"))
    assert done([*command, str(mine)], dict(os.environ)).returncode == 0
    assert list(mine.iterdir()) == []


# -- xenstore-utils beside ours -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("ls", []),
        ("ls", ["-p"]),
        ("ls", ["-f"]),
        ("ls", ["-f", "-p", "/local/domain/1"]),
        ("ls", ["/nowhere"]),
        ("list", ["/local/domain/1"]),
        ("list", ["-p", "/local/domain/1", "/vm"]),
        ("read", ["/local/domain/1/name", "/local/domain/1/domid"]),
        ("read", ["-p", "/local/domain/1/name"]),
        ("read", ["name"]),
        ("exists", ["/local/domain/1", "/vm"]),
        ("exists", ["/local/domain/2"]),
    ],
)
def test_what_ours_show_is_what_theirs_show(running: Running, tool: str, words: list[str]) -> None:
    theirs, ours = running.theirs(f"xenstore-{tool}", *words), running.ours(tool, *words)
    assert ours.stdout == theirs.stdout
    assert bool(ours.returncode) == bool(theirs.returncode)
    assert "Traceback" not in ours.stderr


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_write_chmod_and_rm_do_the_same(running: Running, whose: str) -> None:
    def do(verb: str, *words: str) -> None:
        result = running.ours(verb, *words)
        if whose == "theirs":
            result = running.theirs(f"xenstore-{verb}", *words)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    top = f"/{whose}"
    if whose == "ours":
        do("write", f"{top}/a/b", "one\ttwo", f"{top}/c", "")
    else:
        result = running.theirs("xenstore-write", f"{top}/a/b", "one\ttwo", f"{top}/c", "")
        assert result.returncode == 0
    assert running.ours("read", f"{top}/a/b").stdout == "one\\ttwo\n"
    assert running.theirs("xenstore-read", f"{top}/a/b").stdout == "one\\ttwo\n"
    verb = running.ours if whose == "ours" else lambda v, *w: running.theirs(f"xenstore-{v}", *w)
    assert verb("chmod", "-r", f"{top}/a", "n0", "r1").returncode == 0
    assert verb("chmod", "-u", f"{top}/a/b", "b0").returncode == 0
    assert running.ours("ls", "-p", top).stdout == running.theirs("xenstore-ls", "-p", top).stdout
    assert running.ours("ls", "-p", top).stdout.count("(b0)") == 2
    assert verb("rm", "-t", f"{top}/a/b").returncode == 0
    assert running.ours("list", top).stdout == "c\n"
    assert verb("rm", top).returncode == 0
    assert running.theirs("xenstore-exists", top).returncode == 1


def test_a_write_is_all_or_nothing(running: Running) -> None:
    result = running.ours("write", "/all/a", "1", "/all//b", "2")
    assert (result.returncode, result.stderr) == (1, "xenlite: /all//b: EINVAL\n")
    assert running.ours("exists", "/all/a").returncode == 1
    result = running.ours("write", "/all/a", "1", "/all/b")
    assert (result.returncode, result.stderr) == (1, "xenlite: write: '/all/b' has no value\n")


def test_words_of_any_bytes_are_the_stores_to_judge(running: Running) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    for words in (("read", f"/{odd}"), ("chmod", "/tool", odd), ("exists", odd)):
        result = running.ours(*words)
        assert result.returncode == 1
        assert result.stderr.endswith(": EINVAL\n")
    assert running.ours("write", "/odd", odd).returncode == 0
    assert running.ours("read", "/odd").stdout == "\\xff\\xfe\n"
    assert running.ours("rm", "/odd").returncode == 0


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_watches_report_what_changes(running: Running, whose: str) -> None:
    command = [*XENLITE, "xenstore", "watch", "--socket-dir", str(running.directory)]
    if whose == "theirs":
        command = ["xenstore-watch"]
    environment = {**os.environ, "XENSTORED_PATH": str(running.socket)}
    watching = subprocess.Popen(
        [*command, "-n", "3", "/watched"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "/watched\n"
    running.ours("write", "/watched/a", "1")
    assert watching.stdout.readline() == "/watched/a\n"
    running.ours("rm", "/watched")
    assert watching.stdout.readline() == "/watched\n"
    assert watching.wait(PATIENCE) == 0
    watching.communicate()


def test_a_tree_of_any_depth_is_shown(running: Running) -> None:
    assert running.ours("write", "/deep" + "/d" * 1000, "bottom").returncode == 0
    lines = running.ours("ls", "/deep").stdout.splitlines()
    assert (len(lines), lines[-1]) == (1000, " " * 999 + 'd = "bottom"')
    assert running.ours("chmod", "-r", "/deep", "r0").returncode == 0
    assert running.ours("ls", "-p", "/deep").stdout.count("(r0)") == 1000
    assert running.ours("rm", "-t", "/deep" + "/d" * 1000).returncode == 0
    assert running.ours("exists", "/deep").returncode == 1


def test_a_thousand_children_are_listed_whole(running: Running) -> None:
    names = [f"number-{n:04}" for n in range(1000)]
    pairs = [word for name in names for word in (f"/many/{name}", "x")]
    assert running.ours("write", *pairs).returncode == 0
    for listed in (running.ours("list", "/many"), running.theirs("xenstore-list", "/many")):
        assert listed.stdout.splitlines() == names
    assert running.ours("rm", "/many").returncode == 0


def test_an_output_that_nobody_reads_is_no_fault(running: Running) -> None:
    command = [*XENLITE, "xenstore", "ls", "--socket-dir", str(running.directory)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


# -- pyxs -----------------------------------------------------------------------------------------


def pyxs_client(running: Running) -> Client:
    return Client(router=Router(UnixSocketConnection(str(running.socket))))


def test_pyxs_reads_writes_and_sets_permissions(running: Running) -> None:
    with pyxs_client(running) as client:
        assert client.read(b"/local/domain/1/name") == b"waiter"
        assert client.get_domain_path(1) == b"/local/domain/1"
        assert client.is_domain_introduced(1)
        assert not client.is_domain_introduced(9)
        client[b"/py/a"] = b"\x00binary"
        assert client[b"/py/a"] == b"\x00binary"
        assert client.list(b"/py") == [b"a"]
        client.set_perms(b"/py/a", [b"n0", b"r1"])
        assert client.get_perms(b"/py/a") == [b"n0", b"r1"]
        client.mkdir(b"/py/b/c")
        assert sorted(name for name, _, _ in client.walk(b"/py")) == [
            b"/py",
            b"/py/a",
            b"/py/b",
            b"/py/b/c",
        ]
        client.delete(b"/py")
        assert not client.exists(b"/py")


def test_pyxs_has_transactions_that_conflict(running: Running) -> None:
    with pyxs_client(running) as one, pyxs_client(running) as two:
        one.transaction()
        one.write(b"/tx/a", b"1")
        assert not two.exists(b"/tx/a")
        assert one.commit()
        assert two.read(b"/tx/a") == b"1"
        one.transaction()
        one.read(b"/tx/a")
        two.write(b"/tx/a", b"2")
        one.write(b"/tx/a", b"3")
        assert one.commit() is False
        assert two.read(b"/tx/a") == b"2"
        two.delete(b"/tx")


def test_pyxs_monitors_a_path(running: Running) -> None:
    with pyxs_client(running) as client, client.monitor() as monitor:
        monitor.watch(b"/mon", b"token")
        events = monitor.wait()
        assert tuple(next(events)) == (b"/mon", b"token")
        client.write(b"/mon/x", b"1")
        assert tuple(next(events)) == (b"/mon/x", b"token")
        monitor.unwatch(b"/mon", b"token")
        client.delete(b"/mon")


# -- domains that end -----------------------------------------------------------------------------


def test_a_domain_that_ends_is_news_and_leaves_nothing(kernel: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sockets"
    words = ["name=goes", "cmdline=e", f"{tmp_path}/dom.yaml", "name=stays"]
    with Running(directory, *words, "--socket-dir", directory, kernel=kernel, typing=True) as made:
        with pyxs_client(made) as client, client.monitor() as monitor:
            monitor.watch(b"@releaseDomain", b"gone")
            events = monitor.wait()
            assert tuple(next(events)) == (b"@releaseDomain", b"gone")
            assert client.read(b"/local/domain/1/name") == b"goes"
            assert made.process.stdin is not None
            made.process.stdin.write(b"q")
            made.process.stdin.flush()
            assert tuple(next(events)) == (b"@releaseDomain", b"gone")  # it has shut down
            assert tuple(next(events)) == (b"@releaseDomain", b"gone")  # and is no more
            while client.exists(b"/local/domain/1"):
                pass
            assert client.list(b"/local/domain") == [b"0", b"2"]
            assert not client.exists(b"/libxl/1")
            assert len(client.list(b"/vm")) == 1
            assert not client.is_domain_introduced(1)
        assert made.theirs("xenstore-ls", "-p").stdout.count("r1") == 0
        made.end()


# -- clients that misbehave -----------------------------------------------------------------------


def test_clients_that_misbehave_are_cut_off_and_the_others_go_on(running: Running) -> None:
    with pyxs_client(running) as client:
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.settimeout(PATIENCE)
            hostile.connect(str(running.socket))
            hostile.sendall(b"\x02\0\0\0" + bytes(8) + b"\xff\xff\xff\xff")
            assert hostile.recv(100) == b""
        with socket.socket(socket.AF_UNIX) as half:
            half.connect(str(running.socket))
            half.sendall(b"\x02\0\0\0\0")
            assert client.read(b"/local/domain/1/name") == b"waiter"
        assert client.read(b"/local/domain/1/name") == b"waiter"


def test_a_client_that_never_reads_holds_up_nobody(running: Running) -> None:
    request = Message(XS_READ, 0, 0, b"/local\0").encode()
    with socket.socket(socket.AF_UNIX) as deaf, pyxs_client(running) as client:
        deaf.connect(str(running.socket))
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            while deaf.send(request * 1000):
                assert client.read(b"/local/domain/1/name") == b"waiter"
        assert client.read(b"/local/domain/1/name") == b"waiter"


def test_more_clients_than_are_taken_wait_for_their_turn(running: Running) -> None:
    waiting = []
    for _ in range(210):
        one = socket.socket(socket.AF_UNIX)  # blocking: connect waits while others wait
        one.connect(str(running.socket))
        waiting.append(one)
    for one in waiting:
        one.close()
    assert running.ours("read", "/local/domain/1/name").stdout == "waiter\n"
