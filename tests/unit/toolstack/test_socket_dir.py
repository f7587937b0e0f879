# SPDX-License-Identifier: GPL-2.0-or-later
"""Where sockets are, and that nobody else gets there (the command's tests refuse the rest)."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from xenlite.errors import ConfigError
from xenlite.toolstack.socket_dir import SocketDirectory, base_directory, running


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_each_has_a_directory_of_its_own_and_takes_it_away(runtime: Path) -> None:
    with SocketDirectory(None) as first, SocketDirectory(None) as second:
        assert first.path == runtime / "xenlite" / str(os.getpid())
        assert second.path == runtime / "xenlite" / f"{os.getpid()}-1"
        assert running() == []
        listener = second.listen("xenstore.sock")
        assert running() == [second.path]
        for path in (runtime / "xenlite", first.path, second.path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        with pytest.raises(ConfigError, match="somebody listens there already"):
            second.listen("xenstore.sock")
        listener.close()
    assert list((runtime / "xenlite").iterdir()) == []


def test_one_that_too_many_wait_for_is_running(runtime: Path) -> None:
    with SocketDirectory(None) as directory, ExitStack() as waiting:
        waiting.enter_context(directory.listen("xenstore.sock"))
        with suppress(BlockingIOError):
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.enter_context(client).connect(str(directory.path / "xenstore.sock"))
        assert running() == [directory.path]


def test_one_that_the_user_wished_for_below_the_base_is_not_swept(runtime: Path) -> None:
    with SocketDirectory(None):
        pass
    wish = runtime / "xenlite" / "1"
    with SocketDirectory(wish) as wished:
        wished.listen("xenstore.sock").close()
        with SocketDirectory(None):
            assert (wish / "xenstore.sock").exists()


def test_what_was_there_before_stays(runtime: Path) -> None:
    mine = runtime / "mine"
    mine.mkdir(mode=0o700)
    (mine / "file").write_text("")
    with SocketDirectory(mine) as directory:
        with pytest.raises(ConfigError, match="another xenlite has its sockets there"):
            SocketDirectory(mine)
        directory.listen("xenstore.sock").close()
    assert [path.name for path in mine.iterdir()] == ["file"]


def test_without_a_runtime_directory_the_temporary_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for value in ("", str(tmp_path / "none")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert base_directory() == tmp_path / f"xenlite-{os.getuid()}"


def test_a_base_that_somebody_else_prepared_is_refused(runtime: Path) -> None:
    (runtime / "xenlite").mkdir(mode=0o700)
    (runtime / "xenlite").chmod(0o770)
    with pytest.raises(ConfigError, match="open to nobody else"):
        SocketDirectory(None)
