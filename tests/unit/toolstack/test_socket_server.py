# SPDX-License-Identifier: GPL-2.0-or-later
"""A listening socket and its clients: what they do to the loop, and what the host runs out of."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.control_protocol import Outcome, Request
from xenlite.toolstack.control_socket import Command, ControlSession, Later
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.socket_dir import listen
from xenlite.toolstack.socket_server import SocketServer

if TYPE_CHECKING:
    from xenlite.toolstack.host import Host

SECOND_NS = 10**9
ENOUGH_TURNS = 50  # of the loop, for what a client does once


class Served:
    """A control socket whose one verb is answered when the test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.later = Later()
        self.asked = 0
        self.fails = 0
        self._hypervisor = Hypervisor(16 << 20)
        self._poller = Poller(self._hypervisor.link(0))
        self._server = SocketServer(listen(path), self._poller, self._greet)

    def _greet(self, has_output: Callable[[], None]) -> ControlSession:
        if self.fails:
            self.fails -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ControlSession(cast("Host", None), {"wait": Command(self._wait, {})}, has_output)

    def _wait(self, _host: Host) -> Later:
        self.asked += 1
        return self.later

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(self.path))
        return client

    def until(self, done: Callable[[], bool]) -> None:
        clock = self._hypervisor.machine.clock
        assert self._hypervisor.run(done, clock.monotonic_ns() + 30 * SECOND_NS)

    def turns(self, limit_ns: int) -> int:
        """Count the loop's turns in a time, or up to ENOUGH_TURNS."""
        turns = 0

        def count() -> bool:
            nonlocal turns
            turns += 1
            return turns >= ENOUGH_TURNS

        clock = self._hypervisor.machine.clock
        self._hypervisor.run(count, clock.monotonic_ns() + limit_ns)
        return turns

    def close(self) -> None:
        self._server.close()
        self._poller.close()
        self._hypervisor.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "socket")
    yield made
    made.close()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no file, whatever it closes."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_client_that_leaves_before_its_answer_does_not_keep_the_loop_busy(
    served: Served,
) -> None:
    with served.connect() as client:
        client.sendall(Request("wait").encode())
        served.until(lambda: served.asked == 1)
    assert served.turns(SECOND_NS // 5) < ENOUGH_TURNS
    served.later.settle(Outcome("done"))


def test_a_client_that_there_is_no_descriptor_for_waits_for_one(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        with no_descriptor_left():
            client.connect(str(served.path))
            client.sendall(Request("wait").encode())
            assert served.turns(SECOND_NS // 5) < ENOUGH_TURNS
            assert served.asked == 0
        served.until(lambda: served.asked == 1)


def test_a_client_whose_session_cannot_be_made_is_hung_up_on_and_the_next_one_is_not(
    served: Served,
) -> None:
    served.fails = 1
    with served.connect() as client:
        served.until(lambda: not served.fails)
        assert client.recv(1) == b""
    with served.connect() as client:
        client.sendall(Request("wait").encode())
        served.until(lambda: served.asked == 1)
