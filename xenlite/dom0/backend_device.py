# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of one device's backend, whatever it serves: what ``vbd.py`` and ``vif.py`` share.

A device lives from ``__init__`` to ``close``; in between its frontend may connect and disconnect as
often as it likes. What it may show when, and what happens then, is a table (``xenbus.py``). A
connection takes what the frontend has written at that moment, once; what it rewrites later changes
nothing until it connects again. A state that says that the device is closed shows only when none
of the guest's pages is in use.

Nothing here assumes that the backend runs in Dom0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from xenlite.dom0.xenbus import Action, State, parse_state, step
from xenlite.errors import PeerError, Refused

if TYPE_CHECKING:
    from xenlite.dom0.xenbus import DeviceStore, Transitions

_UNUSED: Final = (State.INIT_WAIT, State.CLOSED)  # here a frontend has nothing of ours
_CONNECTED: Final = (State.CONNECTED, State.CLOSING)  # what a backend shows that has a frontend
_MOST_STEPS: Final = 4  # the longest way through the states without news from the frontend
_MOST_COMPLAINTS: Final = 10  # lines about one frontend: it can be wrong without end
_MOST_SHOWN: Final = 32  # characters of a value that makes no sense
MAX_NUMBER: Final = 0xFFFFFFFF  # of a grant reference or a port, as XenStore can say it


@dataclass(frozen=True, slots=True)
class DevicePaths:
    """Where the two ends of a device are in XenStore; ``number`` is the device's."""

    backend: str
    frontend: str
    frontend_domid: int
    number: int


def device_paths(kind: str, backend_domid: int, frontend_domid: int, number: int) -> DevicePaths:
    """Return the places that every toolstack uses."""
    return DevicePaths(
        f"/local/domain/{backend_domid}/backend/{kind}/{frontend_domid}/{number}",
        f"/local/domain/{frontend_domid}/device/{kind}/{number}",
        frontend_domid,
        number,
    )


class FrontendNodes:
    """What a frontend has written, read once and checked."""

    def __init__(self, store: DeviceStore, frontend: str) -> None:
        self._store = store
        self._frontend = frontend

    def text(self, name: str) -> str | None:
        """Return a node's value; None where there is none."""
        return self._store.read(f"{self._frontend}/{name}")

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Return a number between two others; ``default`` where there is no node.

        Raises PeerError where it is anything else.
        """
        text = self.text(name)
        if text is None:
            if default is not None:
                return default
            raise PeerError(f"{name} is missing")
        if re.fullmatch(r"\d{1,10}", text, re.ASCII) is None:
            raise PeerError(f"{name} is {shown(text)}, which is no number")
        number = int(text)
        if not least <= number <= most:
            raise PeerError(f"{name} is {number}, not between {least} and {most}")
        return number

    def flag(self, name: str) -> bool:
        """Tell whether a feature is claimed, or asked for. Raises PeerError."""
        return self.number(name, 0, 1, default=0) == 1


def shown(text: str) -> str:
    """Return a guest's text as a message may show it."""
    return repr(text[:_MOST_SHOWN])


class Connection(Protocol):
    """What a device has with a connected frontend."""

    def start(self) -> None:
        """Serve what is there already, and from now on what comes."""

    def close(self, drained: Callable[[], None]) -> None:
        """Give everything back; call ``drained`` when no page of the guest is in use any more."""


C = TypeVar("C", bound=Connection)


class BackendDevice(Generic[C]):
    """One device's backend: its state, and its connection while there is one."""

    def __init__(
        self,
        store: DeviceStore,
        paths: DevicePaths,
        transitions: Transitions,
        *,
        nodes: Mapping[str, str],
        connect: Callable[[FrontendNodes], C],
        broken: Callable[[PeerError], None],
        rejoins: bool,
    ) -> None:
        """Show ``nodes``, then wait for a frontend.

        One that was connected to another backend, which has died, begins anew unless this one
        ``rejoins``: where nobody else can know which requests of a ring were taken, it can't.
        ``connect`` may raise PeerError or Refused. ``broken`` hears what the frontend does wrong.
        """
        self._store = store
        self._paths = paths
        self._transitions = transitions
        self._connect_to = connect
        self._tell_broken = broken
        self._complaints = 0
        self._is_draining = False
        self._is_closed = False
        self._released: Callable[[], None] | None = None
        self.connection: C | None = None
        self.state = State.INITIALISING
        for name, value in nodes.items():
            store.write(f"{paths.backend}/{name}", value)
        before = parse_state(store.read(f"{paths.backend}/state"))
        is_left_over = before in _CONNECTED and not rejoins
        self._show(State.CLOSED if is_left_over else State.INIT_WAIT)
        self._watch = store.watch(f"{paths.frontend}/state", self._frontend_changed)

    @property
    def seen(self) -> State:
        """Return the state that the frontend shows."""
        return parse_state(self._store.read(f"{self._paths.frontend}/state"))

    def close(self) -> None:
        """Take the device away, whatever its frontend is doing."""
        self._is_closed = True
        self._store.unwatch(self._watch)
        if self.connection is not None:
            self.connection.close(_nothing)
            self.connection = None

    def ask_to_close(
        self, released: Callable[[], None], defer: Callable[[Callable[[], None]], None]
    ) -> None:
        """Have the frontend close; ``released`` is deferred until it has nothing of ours any more.

        It is served meanwhile: a kernel may have much to do before it lets go. Where the device is
        closed before that, ``released`` is not called.
        """

        def tell() -> None:
            if not self._is_closed:
                released()

        self._released = partial(defer, tell)
        self._store.write(f"{self._paths.backend}/online", "0")
        if not self._tell_released():
            self._store.write(f"{self._paths.backend}/state", str(State.CLOSING.value))

    def _tell_released(self) -> bool:
        """Say that nothing is in use, where that is so and somebody waits for it."""
        released = self._released
        if released is None or self._is_draining or self.state not in _UNUSED:
            return False
        self._released = None
        released()
        return True

    def abandon(self) -> None:
        """Forget the frontend without a word; whoever calls this gives back what it had."""
        self._is_closed = True
        self.connection = None

    def lost(self, error: PeerError) -> None:
        """Disconnect a frontend that broke the protocol; it may come back."""
        self._complain(str(error))
        self._disconnect(State.CLOSING)

    def _frontend_changed(self) -> None:
        """Go as far as what the frontend shows now leads."""
        self._follow()
        self._tell_released()

    def _follow(self) -> None:
        for _ in range(_MOST_STEPS):
            if self._is_closed or self._is_draining:
                return
            action, state = step(self._transitions, self.state, self.seen)
            if state is self.state:
                return
            if action is Action.CONNECT and not self._connect():
                self._show(State.CLOSING)
                return
            if action is Action.DISCONNECT and self.connection is not None:
                self._disconnect(state)
                continue
            self._show(state)
            if action is Action.CONNECT and self.connection is not None:
                self.connection.start()

    def _show(self, state: State) -> None:
        self.state = state
        self._store.write(f"{self._paths.backend}/state", str(state.value))

    def _connect(self) -> bool:
        """Join what the frontend offers; False, and a word about it, where that can't be."""
        try:
            nodes = FrontendNodes(self._store, self._paths.frontend)
            self.connection = self._connect_to(nodes)
        except (PeerError, Refused) as error:
            self._complain(f"cannot connect: {error}")
            return False
        return True

    def _disconnect(self, then: State) -> None:
        """Close the connection; the state shows only when none of the guest's pages is in use."""
        connection, self.connection = self.connection, None
        assert connection is not None
        self._is_draining = True

        def drained() -> None:
            self._is_draining = False
            if not self._is_closed:
                self._show(then)
                self._frontend_changed()

        connection.close(drained)

    def _complain(self, what: str) -> None:
        self._complaints += 1
        if self._complaints <= _MOST_COMPLAINTS:
            self._tell_broken(PeerError(f"{self._paths.frontend}: {what}"))


def _nothing() -> None:
    """Do nothing: nobody waits for it."""
