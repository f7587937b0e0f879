# SPDX-License-Identifier: GPL-2.0-or-later
"""Reach the pages that a frontend grants for its data: for each use, or once for all.

*Passing* pages are checked for every request: without a pin where the whole use is one call, and
pinned where a worker uses them meanwhile. *Lasting* ones (feature-persistent) are mapped at their
first use and stay, which the frontend has to agree to; what finds no room any more is passing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from xenlite.dom0.slot_ring import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlite.doors import GrantMapping, Link

Answer = TypeVar("Answer")

MAX_LASTING: Final = 1056  # pages that stay mapped for one ring; Linux keeps as many


class FrontendPages(Protocol):
    """The pages of one frontend, by grant reference. ``writable`` is what the backend does."""

    def use(
        self, refs: Sequence[int], do: Callable[[list[memoryview]], Answer], *, writable: bool
    ) -> Answer:
        """Call ``do`` with the pages, which are good during that call. Raises Refused."""

    def hold(
        self, refs: Sequence[int], *, writable: bool
    ) -> tuple[list[memoryview], Callable[[], None]]:
        """Return the pages, and what gives them back on the main thread. Raises Refused."""

    def close(self) -> None:
        """Give everything back that is held for good."""


class PassingPages:
    """Pages whose grants count for one use."""

    def __init__(self, link: Link, frontend: int) -> None:
        self._link = link
        self._frontend = frontend

    def use(
        self, refs: Sequence[int], do: Callable[[list[memoryview]], Answer], *, writable: bool
    ) -> Answer:
        """Have them checked, and used."""
        return self._link.with_grants(self._frontend, refs, do, writable=writable)

    def hold(
        self, refs: Sequence[int], *, writable: bool
    ) -> tuple[list[memoryview], Callable[[], None]]:
        """Pin them."""
        if not refs:
            return [], _nothing
        pinned = self._link.pin_grants(self._frontend, refs, writable=writable)
        return pinned.pages(), partial(self._link.unpin_grants, pinned)

    def close(self) -> None:
        """Do nothing: nothing is kept."""


class LastingPages:
    """Pages that stay mapped from their first use."""

    def __init__(self, link: Link, frontend: int) -> None:
        self._link = link
        self._frontend = frontend
        self._passing = PassingPages(link, frontend)
        self._mappings: dict[int, GrantMapping] = {}
        self._pages: dict[int, memoryview] = {}

    def use(
        self, refs: Sequence[int], do: Callable[[list[memoryview]], Answer], *, writable: bool
    ) -> Answer:
        """Map those that are not, and have all used."""
        if not self._has(refs):
            return self._passing.use(refs, do, writable=writable)
        try:
            return do(list(map(self._pages.__getitem__, refs)))
        finally:
            if writable:
                self._wrote(refs)

    def hold(
        self, refs: Sequence[int], *, writable: bool
    ) -> tuple[list[memoryview], Callable[[], None]]:
        """Map those that are not; they stay afterwards."""
        if not self._has(refs):
            return self._passing.hold(refs, writable=writable)
        pages = list(map(self._pages.__getitem__, refs))
        return pages, partial(self._wrote, refs) if writable else _nothing

    def close(self) -> None:
        """Unmap all of them."""
        self._pages.clear()
        for mapping in self._mappings.values():
            self._link.unmap_grant(mapping)
        self._mappings.clear()

    def _has(self, refs: Sequence[int]) -> bool:
        """Map what is new, if there is room for all of it."""
        missing = set(refs).difference(self._pages)
        if len(self._pages) + len(missing) > MAX_LASTING:
            return False
        for ref in missing:
            mapping = self._link.map_grant(self._frontend, ref, writable=True)
            self._mappings[ref] = mapping
            self._pages[ref] = mapping.view(0, PAGE_SIZE)
        return True

    def _wrote(self, refs: Sequence[int]) -> None:
        mappings = self._mappings
        for ref in refs:
            mappings[ref].wrote()


def _nothing() -> None:
    """Do nothing: there is nothing to give back."""
