# SPDX-License-Identifier: GPL-2.0-or-later
"""What frontends of all kinds need whose guest is the test: a store, and pages of a domain."""

from __future__ import annotations

from collections.abc import Callable

from xenlite.hypervisor import Hypervisor

PAGE = 4096


class PlainStore:
    """Nodes and watches, without rights or a wire; watches are told in the hypervisor's loop."""

    def __init__(self, defer: Callable[[Callable[[], None]], None]) -> None:
        self.nodes: dict[str, str] = {}
        self.history: list[tuple[str, str]] = []
        self._watches: list[tuple[str, Callable[[], None]]] = []
        self._defer = defer

    def read(self, path: str) -> str | None:
        """Return a node's value."""
        return self.nodes.get(path)

    def write(self, path: str, value: str) -> None:
        """Set a node's value."""
        self.nodes[path] = value
        self.history.append((path, value))
        self._tell(path)

    def remove(self, path: str) -> None:
        """Remove a node and what is below."""
        for node in [node for node in self.nodes if f"{node}/".startswith(f"{path}/")]:
            del self.nodes[node]
            self._tell(node)

    def watch(self, path: str, changed: Callable[[], None]) -> object:
        """Call ``changed`` after each change of a node or what is below; and once at first."""
        watch = (path, changed)
        self._watches.append(watch)
        self._defer(changed)
        return watch

    def unwatch(self, watch: object) -> None:
        """End a watch."""
        self._watches = [one for one in self._watches if one is not watch]

    def _tell(self, path: str) -> None:
        for watched, changed in self._watches:
            if f"{path}/".startswith(f"{watched}/"):
                self._defer(changed)


class GuestPage:
    """One page of the domain, as its own kernel sees it."""

    def __init__(self, hypervisor: Hypervisor, mfn: int) -> None:
        self._memory = hypervisor.machine.memory
        self._start = mfn * PAGE

    def read(self, offset: int, size: int) -> bytes:
        return self._memory.read(self._start + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._memory.write(self._start + offset, data)

    def read_u32(self, offset: int) -> int:
        return self._memory.m32[(self._start + offset) >> 2]

    def write_u32(self, offset: int, value: int) -> None:
        self._memory.m32[(self._start + offset) >> 2] = value
