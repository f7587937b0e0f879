# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB rule, in one place: no stale right outlives the frame's role.

A guest may keep stale entries for its own pages as long as it likes: that is its business, as on
hardware. But before a frame becomes a page or descriptor table, or changes hands, no engine may
still hold an entry that lets somebody write it (SECURITY.md A9). So:

- whoever takes a right away from an entry that may be cached calls ``revoke`` on the TLB of the
  domain (a present entry with its accessed bit clear was never cached: the engine sets the bit
  when it fills);
- whoever gives a frame such a role calls ``StaleTlbs.flush`` first; it costs one test of a set
  where nothing was revoked.

Not-present to present needs neither: the engine caches no absence (ENGINES.md 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenlite.machine.processor import Engine


class StaleTlbs:
    """The TLBs of the whole machine that may hold a right no page table grants any more."""

    __slots__ = ("_stale",)

    def __init__(self) -> None:
        self._stale: set[Tlb] = set()

    def add(self, tlb: Tlb) -> None:
        """Note one TLB as stale."""
        self._stale.add(tlb)

    def discard(self, tlb: Tlb) -> None:
        """Note one TLB as flushed."""
        self._stale.discard(tlb)

    def flush(self) -> None:
        """Make sure that no engine holds a revoked right."""
        while self._stale:
            self._stale.pop().flush()


class Tlb:
    """The translation cache of one engine."""

    __slots__ = ("_engine", "_machine", "stale")

    def __init__(self, engine: Engine, machine: StaleTlbs) -> None:
        self._engine = engine
        self._machine = machine
        self.stale = False

    def revoke(self) -> None:
        """Note that a right was taken from an entry that may be cached here."""
        if not self.stale:
            self.stale = True
            self._machine.add(self)

    def flush(self) -> None:
        """Flush everything; nothing is stale afterwards."""
        self._engine.flush_tlb()
        if self.stale:
            self.stale = False
            self._machine.discard(self)

    def flushed_by_cr3(self) -> None:
        """Note that a CR3 load has just flushed everything."""
        if self.stale:
            self.stale = False
            self._machine.discard(self)
