# SPDX-License-Identifier: GPL-2.0-or-later
"""How a long hypercall goes on: as Xen's continuations do, by being called again.

The handler raises ``Restart`` with the arguments that describe what is left. The guest's registers
(or its multicall entry) get those, EIP goes back to the ``int``, and the guest takes its events
and its turn before the call goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xenlite.errors import Refused

Arguments: TypeAlias = tuple[int, int, int, int, int]
Handler: TypeAlias = Callable[[int, int, int, int, int], int]
NoteRefusal: TypeAlias = Callable[[int, Arguments, Refused], None]


class Restart(Exception):  # noqa: N818 - not an error: the call is called again
    """Call this hypercall again with ``arguments``."""

    __slots__ = ("arguments",)

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.arguments = arguments
