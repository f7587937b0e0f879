# SPDX-License-Identifier: GPL-2.0-or-later
"""The store's socket in this process: clients are served in the loop, and nothing stays behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xenlite.abi.x86_32p import E2BIG, EINVAL, XS_DIRECTORY_PART
from xenlite.dom0.xenstore.store import StoreNode, XenStore
from xenlite.errors import ConfigError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.poller import Poller
from xenlite.toolstack.socket_dir import STORE_SOCKET, SocketDirectory
from xenlite.toolstack.store_client import StoreClient, StoreError
from xenlite.toolstack.store_socket import serve_store

if TYPE_CHECKING:
    from typing_extensions import override
else:
    from xenlite.abi.codec import override

SECOND_NS = 10**9


class Host:
    """A hypervisor without guests, its store, and a socket to that."""

    def __init__(self, hypervisor: Hypervisor, path: Path) -> None:
        self._hypervisor = hypervisor
        self.path = path / STORE_SOCKET
        link = hypervisor.link(0)
        self.store = XenStore(link, _unexpected)
        self._directory = SocketDirectory(path)
        self._poller = Poller(link)
        listener = self._directory.listen(STORE_SOCKET)
        self._socket = serve_store(listener, self._poller, self.store.server)

    def while_serving(self, do: Callable[[], None]) -> None:
        """Do something in a thread of its own, while the loop runs here."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                do()
            except BaseException as error:  # noqa: BLE001 - handed to the test's thread
                failed.append(error)
            finally:
                self._hypervisor.kick()

        thread = threading.Thread(target=work)
        thread.start()
        deadline_ns = self._hypervisor.machine.clock.monotonic_ns() + 30 * SECOND_NS
        assert self._hypervisor.run(lambda: not thread.is_alive() or bool(failed), deadline_ns)
        thread.join()
        if failed:
            raise failed[0]

    def close(self) -> None:
        self._socket.close()
        self._poller.close()
        self._directory.close()


@contextmanager
def host(path: Path) -> Iterator[Host]:
    hypervisor = Hypervisor(16 << 20)
    made = Host(hypervisor, path)
    try:
        yield made
        assert made.store.audit() == []
    finally:
        made.close()
        hypervisor.close()


def test_a_host_that_goes_leaves_no_descriptor_thread_or_file(tmp_path: Path) -> None:
    def look() -> None:
        with StoreClient(served.path) as client:
            client.write("/a", b"1")
            assert client.read("/a") == b"1"

    with host(tmp_path / "warm") as served:
        served.while_serving(look)
    before = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
    for _ in range(10):
        with host(tmp_path / "sockets") as served:
            served.while_serving(look)
            stays = StoreClient(served.path)  # connected until the end
            served.while_serving(look)
        with stays, pytest.raises(ConfigError, match=r"gone|Broken|reset"):
            stays.read("/a")
    after = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
    assert after == before
    assert list(tmp_path.iterdir()) == []


def test_a_client_asks_again_until_its_transaction_fits(tmp_path: Path) -> None:
    tries: list[int] = []

    def count_up() -> None:
        with StoreClient(served.path) as one, StoreClient(served.path) as two:
            one.write("/n", b"1")

            def add() -> None:
                value = int(one.read("/n"))
                tries.append(value)
                if len(tries) < 3:
                    two.write("/n", b"%d" % (value * 10))
                one.write("/n", b"%d" % (value + 1))

            one.in_transaction(add)
            assert two.read("/n") == b"101"

    with host(tmp_path / "s") as served:
        served.while_serving(count_up)
    assert tries == [1, 10, 100]


def test_a_client_gets_the_stores_errors(tmp_path: Path) -> None:
    def fail() -> None:
        with StoreClient(served.path) as client:
            for path, value, errno in [
                ("//", b"", EINVAL),
                ("/a", bytes(4096), E2BIG),
            ]:
                with pytest.raises(StoreError) as refused:
                    client.write(path, value)
                assert refused.value.errno == errno
            assert not client.exists("/no")
            with pytest.raises(StoreError, match="/no: ENOENT"):
                client.in_transaction(lambda: client.read("/no"))
            client.in_transaction(lambda: client.write("/a", b"1"))
            assert client.exists("/a")

    with host(tmp_path / "s") as served:
        served.while_serving(fail)


def test_a_directory_that_no_message_holds_is_read_in_parts(tmp_path: Path) -> None:
    with host(tmp_path / "s") as served:
        names = [f"a-rather-long-name-{n:04}" for n in range(500)]
        served.store.put([StoreNode(f"/many/{name}") for name in names])

        def read() -> None:
            with StoreClient(served.path) as client:
                assert client.directory("/many") == names
                assert client.directory("/many/" + names[0]) == []

        served.while_serving(read)


class Interrupted(StoreClient):
    """A client that is interrupted, once, between two parts of a directory."""

    def __init__(self, path: Path, interrupt: Callable[[], None]) -> None:
        super().__init__(path)
        self._interrupt: Callable[[], None] | None = interrupt

    @override
    def _ask(self, request: int, path: str, rest: bytes = b"") -> bytes:
        answer = super()._ask(request, path, rest)
        if request == XS_DIRECTORY_PART and self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            interrupt()
        return answer


def test_a_directory_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    with host(tmp_path / "s") as served:
        names = [f"a-rather-long-name-{n:04}" for n in range(500)]
        served.store.put([StoreNode(f"/many/{name}") for name in names])

        def read() -> None:
            with (
                StoreClient(served.path) as other,
                Interrupted(served.path, lambda: other.remove(f"/many/{names[0]}")) as client,
            ):
                assert client.directory("/many") == names[1:]

        served.while_serving(read)


def test_nobody_answers_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        StoreClient(tmp_path / "none")


def _unexpected(domid: int, error: Exception) -> None:
    raise AssertionError((domid, error))
