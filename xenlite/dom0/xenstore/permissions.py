# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what with a node.

A node carries a list of (domid, access). The first entry names its **owner**, who may do anything,
and the access of everybody whom no later entry names. Dom0's clients may do anything everywhere.
On the wire an entry is a letter and a domid: ``n0``, ``r5``, ``w5``, ``b5``.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final, NamedTuple

from xenlite.abi.x86_32p import EINVAL
from xenlite.dom0.xenstore.paths import parse_domid
from xenlite.errors import Refused


class Access(IntFlag):
    """What one entry allows."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


_LETTERS: Final = {b"n": Access.NONE, b"r": Access.READ, b"w": Access.WRITE, b"b": Access.BOTH}
_LETTER_OF: Final = {access: letter.decode() for letter, access in _LETTERS.items()}


class Permission(NamedTuple):
    """One entry of a node's list."""

    domid: int
    access: Access

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.access]}{self.domid}"


Permissions = tuple[Permission, ...]
DOM0_ONLY: Final[Permissions] = (Permission(0, Access.NONE),)


def parse(texts: list[bytes]) -> Permissions:
    """Read a list as clients write it. Raises Refused(EINVAL)."""
    return tuple(_parse_one(text) for text in texts)


def _parse_one(text: bytes) -> Permission:
    access = _LETTERS.get(text[:1])
    if access is None:
        raise Refused(EINVAL, "xenstore.bad-permission")
    return Permission(parse_domid(text[1:]), access)


class Actor:
    """Whoever asks: a domain, with the rights of its target too, or a tool of Dom0."""

    def __init__(self, domid: int, *, is_privileged: bool) -> None:
        self.domid = domid
        self.is_privileged = is_privileged
        self.target: int | None = None

    def owns(self, permissions: Permissions) -> bool:
        """Tell whether the actor may do anything with such a node."""
        return self.is_privileged or permissions[0].domid in (self.domid, self.target)

    def access(self, permissions: Permissions) -> Access:
        """Return what the actor may do with such a node."""
        if self.owns(permissions):
            return Access.BOTH
        for entry in permissions[1:]:
            if entry.domid == self.domid:
                return entry.access
        return permissions[0].access

    def may_read(self, permissions: Permissions) -> bool:
        """Tell whether the actor may read such a node."""
        return Access.READ in self.access(permissions)
