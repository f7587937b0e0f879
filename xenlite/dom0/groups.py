# SPDX-License-Identifier: GPL-2.0-or-later
"""Which multicasts a frontend wants: what it has asked for (``request-multicast-control``).

The groups may be changed whether or not the filter is on; it applies only where it is. A broadcast
always passes. Source: public/io/netif.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from xenlite.dom0.ethernet import BROADCAST

MAX_GROUPS: Final = 64  # as many as Linux keeps
_GROUP_BIT: Final = 1
_DESTINATION: Final = slice(6)


class GroupFilter:
    """The groups of one frontend."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._groups: set[bytes] = set()

    def change(self, changes: Iterable[tuple[bool, bytes]]) -> bool:
        """Join and leave groups, all or none: False where one is no group, or they are too many."""
        groups = set(self._groups)
        for joins, address in changes:
            if not address[0] & _GROUP_BIT:
                return False
            if joins:
                groups.add(address)
            else:
                groups.discard(address)
        if len(groups) > MAX_GROUPS:
            return False
        self._groups = groups
        return True

    def wanted(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Return the frames that are for the frontend."""
        groups = self._groups
        return [
            frame
            for frame in frames
            if not frame[0] & _GROUP_BIT or (to := frame[_DESTINATION]) in groups or to == BROADCAST
        ]
