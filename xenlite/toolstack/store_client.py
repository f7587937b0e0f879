# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk to a running host's XenStore from another process, one request at a time."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Self, TypeVar

from xenlite.abi.x86_32p import (
    E2BIG,
    EAGAIN,
    EINVAL,
    ENOENT,
    ERRNO_NAMES,
    XENSTORE_PAYLOAD_MAX,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_PERMS,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlite.dom0.xenstore.wire import Decoder, Message
from xenlite.errors import ConfigError, Fault, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ERRNOS: Final = {name: errno for errno, name in ERRNO_NAMES.items()}
_READ_BYTES: Final = 4096
Answer = TypeVar("Answer")


class StoreError(ConfigError):
    """Report that the store has refused a request, in its own word: ``/no: ENOENT``."""

    def __init__(self, path: str, word: str) -> None:
        super().__init__(Fault(path, word))
        self.errno = _ERRNOS.get(word, EINVAL)


class StoreClient:
    """One connection. Requests raise StoreError; ConfigError where nobody answers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = Decoder()
        self._events: deque[bytes] = deque()
        self._tx_id = 0
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ConfigError(Fault(str(path), error.strerror or str(error))) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self, path: str) -> bytes:
        """Return a node's value."""
        return self._ask(XS_READ, path)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a node."""
        try:
            self.read(path)
        except StoreError as refused:
            if refused.errno != ENOENT:
                raise
            return False
        return True

    def write(self, path: str, value: bytes) -> None:
        """Set a value."""
        self._ask(XS_WRITE, path, value)

    def remove(self, path: str) -> None:
        """Remove a node and all below it."""
        self._ask(XS_RM, path)

    def directory(self, path: str) -> list[str]:
        """Return the names of a node's children, however many."""
        try:
            names = self._ask(XS_DIRECTORY, path)
        except StoreError as refused:
            if refused.errno != E2BIG:
                raise
            names = self._long_directory(path)
        return [name.decode() for name in names.split(b"\0")[:-1]]

    def permissions(self, path: str) -> list[str]:
        """Return who may do what with a node, as ``n0``, ``r5``."""
        return [entry.decode() for entry in self._ask(XS_GET_PERMS, path).split(b"\0")[:-1]]

    def set_permissions(self, path: str, entries: list[str]) -> None:
        """Say who may do what with a node."""
        self._ask(XS_SET_PERMS, path, b"".join(os.fsencode(entry) + b"\0" for entry in entries))

    def watch(self, path: str) -> None:
        """Ask for events of a node and what is below it; the first comes at once."""
        self._ask(XS_WATCH, path, b"watch\0")

    def next_event(self) -> str:
        """Wait for an event; return the path that has changed."""
        while not self._events:
            self._take(self._receive())
        return self._events.popleft().split(b"\0")[0].decode()

    def in_transaction(self, do: Callable[[], Answer]) -> Answer:
        """Do several requests at once, again for as long as somebody else comes between them."""
        while True:
            self._tx_id = int(self._ask(XS_TRANSACTION_START, "").rstrip(b"\0"))
            try:
                answer = do()
            except StoreError:
                self._end_transaction("F")
                raise
            try:
                self._end_transaction("T")
            except StoreError as refused:
                if refused.errno != EAGAIN:
                    raise
            else:
                return answer

    def _end_transaction(self, wish: str) -> None:
        try:
            self._ask(XS_TRANSACTION_END, wish)
        finally:
            self._tx_id = 0

    def _long_directory(self, path: str) -> bytes:
        names, first_generation = b"", None
        while True:
            part = self._ask(XS_DIRECTORY_PART, path, b"%d\0" % len(names))
            generation, _, more = part.partition(b"\0")
            if first_generation not in (None, generation):
                names, first_generation = b"", None
                continue
            first_generation = generation
            names += more
            if names.endswith(b"\0\0") or not more.strip(b"\0"):
                return names[:-1]

    def _ask(self, request: int, path: str, rest: bytes = b"") -> bytes:
        payload = os.fsencode(path) + b"\0" + rest
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise StoreError(path, ERRNO_NAMES[E2BIG])
        try:
            self._socket.sendall(Message(request, 0, self._tx_id, payload).encode())
        except OSError as error:
            raise self._gone(error) from None
        while not self._take(answer := self._receive()):
            pass
        if answer.type == XS_ERROR:
            raise StoreError(path, answer.payload.rstrip(b"\0").decode(errors="replace"))
        return answer.payload

    def _take(self, message: Message) -> bool:
        """Keep an event for later; tell whether the message is an answer."""
        if message.type == XS_WATCH_EVENT:
            self._events.append(message.payload)
        return message.type != XS_WATCH_EVENT

    def _receive(self) -> Message:
        try:
            while (message := self._decoder.next()) is None:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    raise self._gone(None)
                self._decoder.feed(data)
        except (OSError, PeerError) as error:
            raise self._gone(error) from None
        return message

    def _gone(self, error: Exception | None) -> ConfigError:
        what = "the host has gone" if error is None else str(error)
        return ConfigError(Fault(str(self._path), what))
