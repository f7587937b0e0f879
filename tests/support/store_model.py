# SPDX-License-Identifier: GPL-2.0-or-later
"""XenStore in its simplest form: a dictionary, no transactions, no counting. For comparison.

``Model.do`` answers one operation as the store must. A transaction is right if it could have
happened in one moment: the operations that it did, done on the model at its commit, give the same
answers. So the model needs to know nothing of them.
"""

from __future__ import annotations

from typing import NamedTuple

Permissions = tuple[tuple[str, int], ...]


class Operation(NamedTuple):
    """One request about nodes; ``value`` and ``permissions`` where its kind has such."""

    kind: str
    domid: int
    path: str
    value: bytes = b""
    permissions: Permissions = ()


class Model:
    """The nodes by path: (value, permissions)."""

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[bytes, Permissions]] = {"/": (b"", (("n", 0),))}

    def do(self, operation: Operation) -> object:
        """Return the answer: bytes, a set of names, permissions, None; or an error's name."""
        kind, domid, path, value, permissions = operation
        letters = self._letters(path, domid)
        is_there = path in self.nodes
        if kind in ("read", "list", "perms"):
            if "r" not in letters:
                return "EACCES"
            if not is_there:
                return "ENOENT"
            found, rights = self.nodes[path]
            return {"read": found, "list": self._children(path), "perms": rights}[kind]
        if kind == "chmod":
            return self._chmod(domid, path, permissions)
        if kind == "rm" and path == "/":
            return "EINVAL"
        if "w" not in letters:
            return "EACCES"
        if kind == "rm":
            if not is_there:
                return None if _parent(path) in self.nodes else "ENOENT"
            self.nodes = {at: node for at, node in self.nodes.items() if not _is_below(at, path)}
            return None
        if not is_there:
            self._make(domid, path)
        if kind == "write":
            self.nodes[path] = (value, self.nodes[path][1])
        return None

    def _chmod(self, domid: int, path: str, permissions: Permissions) -> object:
        rights = self.nodes[self._nearest(path)][1]
        if domid not in (0, rights[0][1]):
            return "EACCES"
        if path not in self.nodes:
            return "ENOENT"
        if domid and permissions[0][1] != rights[0][1]:
            return "EPERM"
        self.nodes[path] = (self.nodes[path][0], permissions)
        return None

    def _make(self, domid: int, path: str) -> None:
        if path in self.nodes:
            return
        self._make(domid, _parent(path))
        rights = self.nodes[_parent(path)][1]
        if domid:
            rights = ((rights[0][0], domid), *rights[1:])
        self.nodes[path] = (b"", rights)

    def _letters(self, path: str, domid: int) -> str:
        rights = self.nodes[self._nearest(path)][1]
        if domid in (0, rights[0][1]):
            return "rw"
        letter = next((letter for letter, named in rights[1:] if named == domid), rights[0][0])
        return {"n": "", "b": "rw"}.get(letter, letter)

    def _nearest(self, path: str) -> str:
        while path not in self.nodes:
            path = _parent(path)
        return path

    def _children(self, path: str) -> frozenset[str]:
        return frozenset(
            at.rpartition("/")[2] for at in self.nodes if at != "/" and _parent(at) == path
        )


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")
