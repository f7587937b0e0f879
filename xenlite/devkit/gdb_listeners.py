# SPDX-License-Identifier: GPL-2.0-or-later
"""Debuggers for the domains of one run: a socket each, open before the first instruction.

A client gets the domain of that name which is there: after a restart that is the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.devkit.gdb_server import Client, GdbSession
from xenlite.devkit.gdb_socket import GdbSocket, address_for
from xenlite.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.debug_doors import Debugger, DebugStop
    from xenlite.doors import Control


class GdbListeners:
    """The sockets, in the order of the domains' names."""

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        control: Control,
        defer: Callable[[Callable[[], None]], None],
        exit_status: Callable[[int], int],
        *,
        waits: bool,
        devices: Callable[[int], Sequence[str]] = lambda _domid: (),
    ) -> None:
        """Listen; ``waits`` has each domain wait for a debugger. Raises ConfigError."""
        self._control = control
        self._exit_status = exit_status
        self._waits = waits
        self._devices = devices
        self._domids: dict[str, int] = {}
        self._waiting: dict[int, Debugger] = {}
        self._sessions: dict[int, GdbSession] = {}
        self._sockets: dict[str, GdbSocket] = {}
        try:
            for place, name in enumerate(names):

                def open_session(client: Client, name: str = name) -> GdbSession | None:
                    return self._open(name, client)

                where = address_for(address, place, name)
                self._sockets[name] = GdbSocket(where, defer, open_session)
        except BaseException:
            self.close()
            raise

    def addresses(self) -> dict[str, str]:
        """Return what ``target remote`` takes, by the name of the domain."""
        return {name: one.address for name, one in self._sockets.items()}

    def close(self) -> None:
        """Turn everybody away."""
        for one in self._sockets.values():
            one.close()

    def built(self, domid: int, name: str) -> None:
        """Hear of a new domain, before its first instruction."""
        self._domids[name] = domid
        if self._waits:
            self._waiting[domid] = self._attach(domid)

    def _attach(self, domid: int) -> Debugger:
        def hear(stop: DebugStop) -> None:
            session = self._sessions.get(domid)
            if session is not None:
                session.hear(stop)

        return self._control.attach_debugger(domid, hear)

    def _open(self, name: str, client: Client) -> GdbSession | None:
        domid = self._domids.get(name)
        if domid is None:
            return None
        try:
            debugger = self._waiting.pop(domid, None) or self._attach(domid)
        except Refused:  # the domain is gone
            return None
        session = GdbSession(
            self._control, domid, debugger, client, self._exit_status, self._devices
        )
        self._sessions[domid] = session
        return session
