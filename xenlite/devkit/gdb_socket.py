# SPDX-License-Identifier: GPL-2.0-or-later
"""Where debuggers come in: one listening socket per domain, on a thread that only hands over.

What a client sends is given to the session on the thread of the hypervisor, through ``defer``, one
piece at a time: the next is read when the last has been dealt with, so a client that floods waits
for itself. What the session sends is kept until the client takes it, up to a limit; then the client
is dropped. The hypervisor never waits for any of it. One client at a time: others are turned away.
"""

from __future__ import annotations

import os
import selectors
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from xenlite.devkit.gdb_server import Client
from xenlite.errors import ConfigError, Fault

_PIECE_BYTES: Final = 16 << 10
_MOST_UNSENT_BYTES: Final = 1 << 20
_HOST: Final = "127.0.0.1"
_LAST_PORT: Final = 65535


class Session(Protocol):
    """What a client talks to, on the thread of the hypervisor."""

    def receive(self, data: bytes) -> None:
        """Take bytes of the client."""

    def end(self) -> None:
        """Hear that the client is gone."""


def address_for(address: str, place: int, name: str) -> str:
    """Return the address of the domain at ``place``: the next port, or the path with its name."""
    if not address.startswith(":"):
        return address if place == 0 else f"{address}.{name}"
    port = int(address[1:])
    return address if port == 0 else f":{port + place}"


class GdbSocket:
    """Listen at ``:port`` of this machine, or at the path of a Unix socket."""

    def __init__(
        self,
        address: str,
        defer: Callable[[Callable[[], None]], None],
        open_session: Callable[[Client], Session | None],
    ) -> None:
        """Listen from now on; raises ConfigError where that can't be.

        ``open_session`` is called on the thread of the hypervisor; None turns the client away.
        """
        self._defer = defer
        self._open_session = open_session
        self._path: Path | None = None
        self._listener = self._listen(address)
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)  # one byte that waits is as good as many
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._wake)
        self._connection: _Connection | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Return what gdb's ``target remote`` takes."""
        if self._path is not None:
            return str(self._path)
        return f":{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Turn everybody away, and wait for the thread."""
        self._is_closing = True
        self.wake()
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def wake(self) -> None:
        """Have the thread look at what there is to send. From any thread."""
        with suppress(OSError):
            self._wake_in.send(b"\0")

    def _listen(self, address: str) -> socket.socket:
        try:
            if address.startswith(":"):
                port = int(address[1:])
                if port > _LAST_PORT:
                    raise OSError(f"no port is above {_LAST_PORT}")
                return socket.create_server((_HOST, port))
            return self._listen_at(Path(address))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(Fault("--gdb", f"{address}: {reason}")) from None

    def _listen_at(self, path: Path) -> socket.socket:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # of a run that could not remove it
        listener = socket.socket(socket.AF_UNIX)
        previous = os.umask(0o077)
        try:
            listener.bind(str(path))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(previous)
        listener.listen()
        self._path = path
        return listener

    # -- on the thread ------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._is_closing:
            for key, events in self._selector.select():
                key.data(events)
            connection = self._connection
            if connection is not None and not connection.watch(self._selector):
                self._connection = None
        if self._connection is not None:
            self._connection.drop(self._selector)
        self._selector.close()
        for one in (self._listener, self._wake_in, self._wake_out):
            one.close()

    def _wake(self, _events: int) -> None:
        self._wake_out.recv(_PIECE_BYTES)

    def _accept(self, _events: int) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            if self._connection is not None:
                client.close()
                return
            client.setblocking(False)
            self._connection = _Connection(client, self._defer, self._open_session, self.wake)


class _Connection:
    """One client; the session is known to the thread of the hypervisor alone."""

    def __init__(
        self,
        client: socket.socket,
        defer: Callable[[Callable[[], None]], None],
        open_session: Callable[[Client], Session | None],
        wake: Callable[[], None],
    ) -> None:
        self._socket = client
        self._defer = defer
        self._wake = wake
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._reads = False  # nothing is under way to the session
        self._is_open = True
        self._watched = 0
        self._session: Session | None = None
        defer(partial(self._open, open_session))

    # On the thread of the hypervisor

    def _open(self, open_session: Callable[[Client], Session | None]) -> None:
        self._session = open_session(Client(self._send, self._close))
        if self._session is None:
            self._close()
        self._read_on()

    def _take(self, data: bytes) -> None:
        if self._session is not None and self._is_open:
            self._session.receive(data)
        self._read_on()

    def _read_on(self) -> None:
        self._reads = True
        self._wake()

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._unsent += data
            if len(self._unsent) > _MOST_UNSENT_BYTES:
                self._is_open = False
        self._wake()

    def _close(self) -> None:
        self._is_open = False
        self._wake()

    # On the socket's thread

    def watch(self, selector: selectors.BaseSelector) -> bool:
        """Wait for what this client is ready for; False where it is gone."""
        if not self._is_open:
            self.drop(selector)
            return False
        events = (selectors.EVENT_READ if self._reads else 0) | (
            selectors.EVENT_WRITE if self._unsent else 0
        )
        if events == self._watched:
            return True
        if not self._watched:
            selector.register(self._socket, events, self._on_ready)
        elif not events:
            selector.unregister(self._socket)
        else:
            selector.modify(self._socket, events, self._on_ready)
        self._watched = events
        return True

    def drop(self, selector: selectors.BaseSelector) -> None:
        """Close the socket, with what can still be sent, and have the session end."""
        self._flush()
        if self._watched:
            selector.unregister(self._socket)
        self._socket.close()
        self._defer(self._end)

    def _on_ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._is_open = False
            return
        self._reads = False
        self._defer(partial(self._take, data))

    def _flush(self) -> None:
        with self._lock:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self._is_open = False
                return
            del self._unsent[:sent]
