# SPDX-License-Identifier: GPL-2.0-or-later
"""How a backend and a frontend find together: their states, and what a backend does about them.

Each end shows its state in XenStore and watches the other's. A frontend is a guest: it may show any
state at any time, in any order, and skip what it likes. So all that a backend does is in one table,
over its own state and the one it sees; the pair alone decides. For a disk it is::

    what the frontend shows ->   1 Initialising   3, 4 ready       5 Closing        else
    InitWait                     -                CONNECT, 4       -> 5             -> 6
    Connected                    DISCONNECT, 2    -                DISCONNECT, 5    DISCONNECT, 6
    Closing                      -> 2             -                -                -> 6
    Closed                       -> 2             -                -                -

GRUB leaves by 6 and waits for ours, then shows 1 for the kernel that it boots; other kernels go to
3 or 4, and leave by 5, 6 and 1. A network card differs in one pair: a frontend at 3 is not ready,
because GNU Mach's still reads there what the backend can do, and says at 4 what it wants of it.
Source: public/io/xenbus.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Protocol

from xenlite.abi.x86_32p import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateReconfigured,
    XenbusStateReconfiguring,
    XenbusStateUnknown,
)


class State(Enum):
    """The states that XenStore knows; a node that says anything else says UNKNOWN."""

    UNKNOWN = XenbusStateUnknown
    INITIALISING = XenbusStateInitialising
    INIT_WAIT = XenbusStateInitWait
    INITIALISED = XenbusStateInitialised
    CONNECTED = XenbusStateConnected
    CLOSING = XenbusStateClosing
    CLOSED = XenbusStateClosed
    RECONFIGURING = XenbusStateReconfiguring
    RECONFIGURED = XenbusStateReconfigured


class Action(Enum):
    """What a backend does before it shows its next state."""

    NOTHING = "nothing"
    CONNECT = "connect"
    DISCONNECT = "disconnect"


_AWAY: Final = (State.CLOSED, State.UNKNOWN)
_CONNECT: Final = (Action.CONNECT, State.CONNECTED)

# By the backend's state, then the frontend's; a pair that is not there changes nothing.
Transitions = Mapping[State, Mapping[State, tuple[Action, State]]]
NET_TRANSITIONS: Final[Transitions] = {
    State.INIT_WAIT: {
        State.CONNECTED: _CONNECT,
        **dict.fromkeys(_AWAY, (Action.NOTHING, State.CLOSED)),
        State.CLOSING: (Action.NOTHING, State.CLOSING),
    },
    State.CONNECTED: {
        State.INITIALISING: (Action.DISCONNECT, State.INIT_WAIT),
        State.CLOSING: (Action.DISCONNECT, State.CLOSING),
        **dict.fromkeys(_AWAY, (Action.DISCONNECT, State.CLOSED)),
    },
    State.CLOSING: {
        State.INITIALISING: (Action.NOTHING, State.INIT_WAIT),
        **dict.fromkeys(_AWAY, (Action.NOTHING, State.CLOSED)),
    },
    State.CLOSED: {
        State.INITIALISING: (Action.NOTHING, State.INIT_WAIT),
    },
}
BLOCK_TRANSITIONS: Final[Transitions] = {
    **NET_TRANSITIONS,
    State.INIT_WAIT: {**NET_TRANSITIONS[State.INIT_WAIT], State.INITIALISED: _CONNECT},
}


class DeviceStore(Protocol):
    """What a backend needs of XenStore, with the rights of the domain it runs in.

    Values are text. A node that is not there, or may not be read, is None.
    """

    def read(self, path: str) -> str | None:
        """Return a node's value."""

    def write(self, path: str, value: str) -> None:
        """Set a node's value; watches hear of it later, outside this call."""

    def watch(self, path: str, changed: Callable[[], None]) -> Any:
        """Call ``changed`` after each change of a node or what is below; and once at first."""

    def unwatch(self, watch: Any) -> None:
        """End what ``watch`` returned."""


def parse_state(value: str | None) -> State:
    """Read a state from a node; whatever is none is UNKNOWN."""
    if value is None or len(value) != 1 or not value.isdecimal() or not value.isascii():
        return State.UNKNOWN
    number = int(value)
    return State(number) if number in {state.value for state in State} else State.UNKNOWN


def step(transitions: Transitions, own: State, seen: State) -> tuple[Action, State]:
    """Say what to do, and which state to show after it."""
    return transitions.get(own, {}).get(seen, (Action.NOTHING, own))
