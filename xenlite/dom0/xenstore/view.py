# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree as one actor may see and change it: what the requests on nodes mean.

A ``View`` works in an overlay that its maker commits or throws away, so a request that is refused
half-way changes nothing. A node that doesn't exist is judged by the nearest one above it that does:
who may not look there is told EACCES, not ENOENT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import E2BIG, EACCES, EINVAL, ENOENT, ENOSPC, EPERM, XENSTORE_PAYLOAD_MAX
from xenlite.dom0.xenstore import paths
from xenlite.dom0.xenstore.permissions import Access, Permission
from xenlite.dom0.xenstore.tree import ROOTS, Node
from xenlite.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Container

    from xenlite.dom0.xenstore.permissions import Actor, Permissions
    from xenlite.dom0.xenstore.quota import Quotas
    from xenlite.dom0.xenstore.tree import Overlay

_END_OF_PART: Final = b"\0"


class View:
    """One actor's requests on nodes; every method raises ``Refused``."""

    def __init__(self, overlay: Overlay, actor: Actor, quotas: Quotas) -> None:
        self._overlay = overlay
        self._actor = actor
        self._quotas = quotas

    # -- looking ------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Return a node's value."""
        return self._existing(path, Access.READ).value

    def exists(self, path: str) -> bool:
        """Tell whether there is such a node."""
        return self._overlay.get(path) is not None

    def directory(self, path: str) -> bytes:
        """Return the names of a node's children, each with a NUL; E2BIG where they are too many."""
        names = _names(self._existing(path, Access.READ))
        if len(names) > XENSTORE_PAYLOAD_MAX:
            raise Refused(E2BIG, "xenstore.directory-too-long", path)
        return names

    def directory_part(self, path: str, offset: int) -> bytes:
        """Return the generation and the names from byte ``offset`` on that fit into one message.

        The last part ends with an empty name.
        """
        node = self._existing(path, Access.READ)
        generation = b"%d\0" % node.generation
        names = _names(node)
        room = XENSTORE_PAYLOAD_MAX - len(generation) - len(_END_OF_PART)
        part = names[offset : offset + room]
        if offset + len(part) >= len(names):
            return generation + part + _END_OF_PART
        return generation + part[: part.rindex(b"\0") + 1]

    def permissions(self, path: str) -> Permissions:
        """Return who may do what with a node."""
        return self._existing(path, Access.READ).permissions

    # -- changing -----------------------------------------------------------------------------

    def write(self, path: str, value: bytes) -> None:
        """Set a value; the node, and those above it, are made where they do not exist."""
        node = self._find(path, Access.WRITE)
        if node is None:
            self._create(path, value)
        else:
            self._put(path, node._replace(value=value))
        self._overlay.note(path)

    def mkdir(self, path: str) -> None:
        """Make an empty node where none is."""
        if self._find(path, Access.WRITE) is None:
            self._create(path, b"")
            self._overlay.note(path)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; no harm where it does not exist but its parent does."""
        if path in ROOTS:
            raise Refused(EINVAL, "xenstore.removes-the-root")
        if self._find(path, Access.WRITE) is not None:
            self._overlay.remove(path)
        elif self._overlay.get(paths.parent(path)) is None:
            raise Refused(ENOENT, "xenstore.no-such-node", path)

    def set_permissions(
        self, path: str, permissions: Permissions, known_domids: Container[int]
    ) -> None:
        """Say who may do what with a node. Only Dom0 may give it to another owner.

        A guest may name domains that exist only, lest it opens its nodes to one that comes later.
        """
        node = self._overlay.get(path)
        if not self._actor.owns((self._nearest(path) if node is None else node).permissions):
            raise Refused(EACCES, "xenstore.not-the-owner", path)
        if node is None:
            raise Refused(ENOENT, "xenstore.no-such-node", path)
        if not self._actor.is_privileged:
            if len(permissions) > self._quotas.permissions:
                raise Refused(ENOSPC, "xenstore.permissions-quota", path)
            if permissions[0].domid != node.owner:
                raise Refused(EPERM, "xenstore.gives-away", path)
            if any(entry.domid not in known_domids for entry in permissions):
                raise Refused(EINVAL, "xenstore.no-such-domain", path)
        self._put(path, node._replace(permissions=permissions))
        if path not in paths.SPECIAL:
            self._overlay.note(path)

    # -- one node -----------------------------------------------------------------------------

    def _existing(self, path: str, wanted: Access) -> Node:
        node = self._find(path, wanted)
        if node is None:
            raise Refused(ENOENT, "xenstore.no-such-node", path)
        return node

    def _find(self, path: str, wanted: Access) -> Node | None:
        """Return a node that the actor may use so, or None where it may know that there is none."""
        node = self._overlay.get(path)
        judged = self._nearest(path) if node is None else node
        if wanted not in self._actor.access(judged.permissions):
            raise Refused(EACCES, "xenstore.no-access", path)
        return node

    def _nearest(self, path: str) -> Node:
        """Return the nearest node above ``path`` that exists; the root always does."""
        while (node := self._overlay.get(path)) is None:
            path = paths.parent(path)
        return node

    def _create(self, path: str, value: bytes) -> None:
        """Make a node, and those above it that are missing, with the rights of what is above.

        A guest owns what it makes.
        """
        missing = []
        above = path
        while (node := self._overlay.get(above)) is None:
            missing.append(above)
            above = paths.parent(above)
        permissions = node.permissions
        if not self._actor.is_privileged:
            owner = Permission(self._actor.domid, permissions[0].access)
            permissions = (owner, *permissions[1:])
        self._put(above, node._replace(children=(*node.children, paths.name(missing[-1]))))
        for at, below in zip(missing, [None, *missing], strict=False):
            children = () if below is None else (paths.name(below),)
            self._put(at, Node(value if below is None else b"", permissions, children, 0))

    def _put(self, path: str, node: Node) -> None:
        if not self._actor.is_privileged and node.size > self._quotas.node_size:
            raise Refused(ENOSPC, "xenstore.node-size-quota", path)
        self._overlay.put(path, node)


def _names(node: Node) -> bytes:
    return b"".join(name.encode() + b"\0" for name in node.children)
