# SPDX-License-Identifier: GPL-2.0-or-later
"""The nodes, who is charged for them, and changes that happen whole or not at all.

``Tree`` holds what is. Every request works in an ``Overlay`` over it, also those outside of any
transaction: the overlay remembers each node that was looked at and what it is to become, and costs
nothing to throw away. A transaction is an overlay that lives on, and its requests work in overlays
over that one::

    request's Overlay -- commit --------------------------> Tree
    request's Overlay -- absorb --> transaction's Overlay -- commit --> Tree

Nodes are never changed, only replaced. So two overlays conflict exactly where one has looked at a
node that is another object by now, and ``commit`` refuses with EAGAIN.

Invariants, which ``audit`` recomputes:

1. Every node but the roots (``/`` and the special names) is a child of its parent, once; every
   child is a node.
2. ``usage`` of a domid is the number and the size of the nodes that it owns.

The map is flat, so a path of a thousand levels costs no stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from xenlite.abi.x86_32p import EAGAIN, ENOSPC
from xenlite.dom0.xenstore import paths
from xenlite.dom0.xenstore.permissions import DOM0_ONLY, Permissions
from xenlite.errors import Refused

ROOTS: Final = ("/", *paths.SPECIAL)
# What the store itself spends on a node, roughly: it keeps a million empty ones from being free.
NODE_OVERHEAD_BYTES: Final = 24
PERMISSION_BYTES: Final = 8


class Node(NamedTuple):
    """One node as it was at one time; two nodes are the same only if they are one object."""

    value: bytes
    permissions: Permissions
    children: tuple[str, ...]
    generation: int

    @property
    def owner(self) -> int:
        """Return the domid that is charged for the node."""
        return self.permissions[0].domid

    @property
    def size(self) -> int:
        """Return the bytes that count against the quota of a node."""
        names = sum(map(len, self.children)) + len(self.children)
        lists = PERMISSION_BYTES * len(self.permissions)
        return NODE_OVERHEAD_BYTES + len(self.value) + lists + names


class Usage(NamedTuple):
    """What a domid is charged for."""

    nodes: int = 0
    size_bytes: int = 0

    def plus(self, nodes: int, size_bytes: int) -> Usage:
        """Return this with so much more."""
        return Usage(self.nodes + nodes, self.size_bytes + size_bytes)


_NOTHING: Final = Usage()


class Change(NamedTuple):
    """Something that watches are told of.

    ``is_exact`` limits it to watches of this very path: what goes with a removed parent.
    ``visible_by`` holds the permissions of the node and of its parent, before and after: whoever
    may read one of them may know.
    """

    path: str
    is_exact: bool
    visible_by: tuple[Permissions, ...]


class _Accounts:
    """Usage by domid."""

    def __init__(self) -> None:
        self._usage: dict[int, Usage] = {}

    def __getitem__(self, domid: int) -> Usage:
        return self._usage.get(domid, _NOTHING)

    def items(self) -> list[tuple[int, Usage]]:
        """List who is charged for anything."""
        return [(domid, usage) for domid, usage in self._usage.items() if usage != _NOTHING]

    def replace(self, path: str, old: Node | None, new: Node | None) -> None:
        """Charge for ``new`` in place of ``old``."""
        if old is not None:
            self._usage[old.owner] = self[old.owner].plus(-1, -len(path) - old.size)
        if new is not None:
            self._usage[new.owner] = self[new.owner].plus(1, len(path) + new.size)


class Tree:
    """The nodes that are."""

    def __init__(self) -> None:
        self.generation = 0
        self._nodes: dict[str, Node] = {}
        self._accounts = _Accounts()
        self.domains_forgotten = 0
        for root in ROOTS:
            self._set(root, Node(b"", DOM0_ONLY, (), 0))

    def get(self, path: str) -> Node | None:
        """Return a node, if it exists."""
        return self._nodes.get(path)

    def usage(self, domid: int) -> Usage:
        """Return what a domid is charged for."""
        return self._accounts[domid]

    def next_generation(self) -> int:
        """Return a number that no node had before."""
        self.generation += 1
        return self.generation

    def commit(self, overlay: Overlay) -> list[Change]:
        """Make an overlay's changes, all at once, and return them in order.

        Raises Refused(EAGAIN) where anything that the overlay has looked at is another now.
        """
        if not overlay.fits():
            raise Refused(EAGAIN, "xenstore.conflict")
        visible_before = {path: self._visible_by(path) for path in overlay.changed}
        for path, node in overlay.replaced():
            self._set(path, node)
        return [
            Change(
                path,
                is_exact=is_exact,
                visible_by=(*visible_before[path], *self._visible_by(path)),
            )
            for path, is_exact in overlay.changed.items()
        ]

    def forget_domain(self, domid: int) -> list[Change]:
        """Remove the nodes that a domid owns, with what is below them, and its permissions.

        Transactions that are open now can't be committed any more: what they hold may still name
        the domid, and the next domain of that number would inherit it.
        """
        self.domains_forgotten += 1
        overlay = Overlay(self)
        for path, node in list(self._nodes.items()):
            if overlay.get(path) is None:
                continue
            if node.owner == domid and path not in ROOTS:
                overlay.remove(path)
                continue
            kept = node.permissions[:1] + tuple(
                entry for entry in node.permissions[1:] if entry.domid != domid
            )
            if node.owner == domid:
                kept = DOM0_ONLY + kept[1:]
            if kept != node.permissions:
                current = overlay.get(path)
                assert current is not None
                overlay.put(path, current._replace(permissions=kept))
        return self.commit(overlay)

    def audit(self) -> list[str]:
        """Recompute what the module's head promises; return what differs."""
        wrong = []
        recounted = _Accounts()
        for path, node in self._nodes.items():
            recounted.replace(path, None, node)
            if len(set(node.children)) != len(node.children):
                wrong.append(f"xenstore: {path}: a child is listed twice")
            wrong += [
                f"xenstore: {path}: its child {name} is no node"
                for name in node.children
                if paths.child(path, name) not in self._nodes
            ]
            if path not in ROOTS:
                above = self._nodes.get(paths.parent(path))
                if above is None or paths.name(path) not in above.children:
                    wrong.append(f"xenstore: {path}: not a child of its parent")
        if dict(recounted.items()) != dict(self._accounts.items()):
            wrong.append(f"xenstore: charged {self._accounts.items()}, are {recounted.items()}")
        return wrong

    def _set(self, path: str, node: Node | None) -> None:
        self._accounts.replace(path, self._nodes.get(path), node)
        if node is None:
            self._nodes.pop(path, None)
        else:
            self._nodes[path] = node

    def _visible_by(self, path: str) -> tuple[Permissions, ...]:
        above = [] if path in ROOTS else [self._nodes.get(paths.parent(path))]
        nodes = [self._nodes.get(path), *above]
        return tuple(node.permissions for node in nodes if node is not None)


class Overlay:
    """What one request or one transaction has looked at, and what it changes.

    ``max_nodes`` bounds how many nodes it may look at (ENOSPC); None is no bound.
    """

    def __init__(self, below: Tree | Overlay, max_nodes: int | None = None) -> None:
        self._below = below
        self._max_nodes = max_nodes
        self._seen: dict[str, Node | None] = {}
        self._new: dict[str, Node | None] = {}
        self._charges = _Accounts()
        self.changed: dict[str, bool] = {}
        self.size_bytes = 0
        self.tree: Tree = below if isinstance(below, Tree) else below.tree
        self._began_after = self.tree.domains_forgotten

    def get(self, path: str) -> Node | None:
        """Return a node as it is here, if it is. Raises Refused(ENOSPC) beyond ``max_nodes``."""
        if path in self._new:
            return self._new[path]
        if path not in self._seen:
            if self._max_nodes is not None and len(self._seen) >= self._max_nodes:
                raise Refused(ENOSPC, "xenstore.transaction-nodes-quota", self._max_nodes)
            self._seen[path] = self._below.get(path)
            self.size_bytes += len(path) + NODE_OVERHEAD_BYTES
        return self._seen[path]

    def put(self, path: str, node: Node) -> None:
        """Put a node in place of what was there; it gets a new generation."""
        self._set(path, node._replace(generation=self.tree.next_generation()))

    def remove(self, path: str) -> None:
        """Remove a node with all that is below it, and tell watches."""
        above = paths.parent(path)
        node = self.get(above)
        assert node is not None
        kept = tuple(name for name in node.children if name != paths.name(path))
        self.put(above, node._replace(children=kept))
        waiting = [path]
        while waiting:
            at = waiting.pop()
            gone = self.get(at)
            assert gone is not None
            self._set(at, None)
            self.note(at, is_exact=at != path)
            waiting += (paths.child(at, name) for name in gone.children)

    def note(self, path: str, *, is_exact: bool = False) -> None:
        """Remember that watches are to be told of ``path``."""
        self.changed[path] = is_exact and self.changed.get(path, True)

    def absorb(self, overlay: Overlay) -> None:
        """Take over the changes of an overlay over this one."""
        assert overlay._below is self
        for path, node in overlay.replaced():
            self._set(path, node)
        for path, is_exact in overlay.changed.items():
            self.note(path, is_exact=is_exact)

    def replaced(self) -> Iterator[tuple[str, Node | None]]:
        """Yield each path that changes, and its node to be; None is removed."""
        yield from self._new.items()

    def fits(self) -> bool:
        """Tell whether everything that was looked at is what it was, and no domain is forgotten."""
        tree = self.tree
        return self._began_after == tree.domains_forgotten and all(
            tree.get(path) is node for path, node in self._seen.items()
        )

    def usage(self, domid: int) -> Usage:
        """Return what a domid is charged for, these changes included."""
        return self._below.usage(domid).plus(*self._charges[domid])

    def charges(self) -> list[tuple[int, Usage]]:
        """List by domid what these changes add."""
        return self._charges.items()

    def _set(self, path: str, node: Node | None) -> None:
        old = self.get(path)
        self._charges.replace(path, old, node)
        overlaid = self._new.get(path)
        self.size_bytes += (0 if node is None else node.size) - (
            0 if overlaid is None else overlaid.size
        )
        self._new[path] = node
