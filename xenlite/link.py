# SPDX-License-Identifier: GPL-2.0-or-later
"""The backends' door: grants and event ports with the rights of one domain (``doors.Link``).

An event for a port with a handler queues that handler; it runs in the hypervisor's loop, after the
guest has been left, and once however many events came before it ran. Its time is charged to the
domain at the port's other end: asking a backend for work gives nobody more than its share. What a
backend puts off is charged to whom it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from xenlite.abi.x86_32p import EINVAL, ESRCH
from xenlite.core.maptrack import MappedGrant, PinnedPages
from xenlite.errors import Refused
from xenlite.machine.timers import Timer

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.doors import GrantedPages, GrantMapping
    from xenlite.hypervisor import Hypervisor

Answer = TypeVar("Answer")


class LinkDoor:
    """Implement ``doors.Link`` for one domain whose kernel is Python."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        self.domid = domain.domid
        self._hypervisor = hypervisor
        self._domain = domain
        self._handlers: dict[int, Callable[[], None]] = {}
        self._queued: set[int] = set()
        self._at_end: list[Callable[[], None]] = []
        domain.events.on_pending = self._pending

    def map_grant(self, granter: int, ref: int, *, writable: bool) -> MappedGrant:
        """Map the page that ``granter`` offers to this domain under ``ref``."""
        return self._domain.maptrack.map(self._peer(granter).grants, ref, writable=writable)

    def unmap_grant(self, mapping: GrantMapping) -> None:
        """Give the page back; the mapping may not be used again."""
        if not isinstance(mapping, MappedGrant):
            raise Refused(EINVAL, "grants.not-mapped")
        self._domain.maptrack.unmap(mapping)

    def with_grants(
        self,
        granter: int,
        refs: Sequence[int],
        use: Callable[[list[memoryview]], Answer],
        *,
        writable: bool,
    ) -> Answer:
        """Check the pages that ``granter`` offers under ``refs``, and call ``use`` with them."""
        memory = self._hypervisor.machine.memory
        mfns = self._peer(granter).grants.check(refs, self.domid, writable=writable)
        try:
            return use(memory.pages(mfns))
        finally:
            if writable:
                memory.wrote_all(mfns)

    def pin_grants(self, granter: int, refs: Sequence[int], *, writable: bool) -> PinnedPages:
        """Pin the pages that ``granter`` offers under ``refs`` for one transfer, all or none."""
        return self._domain.maptrack.pin(self._peer(granter).grants, refs, writable=writable)

    def unpin_grants(self, pages: GrantedPages) -> None:
        """Give them back; they may not be used again."""
        if not isinstance(pages, PinnedPages):
            raise Refused(EINVAL, "grants.not-mapped")
        self._domain.maptrack.unpin(pages)

    def copy_from_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Copy pieces out of the pages that ``granter`` offers; empty where one is refused."""
        return self._peer(granter).grants.copy_from(self.domid, refs, offsets, sizes)

    def copy_to_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], contents: Sequence[bytes]
    ) -> list[int]:
        """Copy into pages that ``granter`` offers; return the indexes of what was refused."""
        return self._peer(granter).grants.copy_to(self.domid, refs, offsets, contents)

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Join ``remote``'s unbound port; return the local port."""
        return self._domain.events.bind_interdomain(remote, remote_port)

    def close(self, port: int) -> None:
        """Close a local port; its handler is forgotten."""
        self._handlers.pop(port, None)
        self._queued.discard(port)
        self._domain.events.close(port)

    def notify(self, port: int) -> None:
        """Send an event through a local port."""
        self._domain.events.send(port)

    def on_event(self, port: int, handler: Callable[[], None]) -> None:
        """Run ``handler`` outside any trap each time ``port`` has become pending."""
        self._handlers[port] = handler

    def defer(self, work: Callable[[], None], *, charge: int | None = None) -> None:
        """Run ``work`` once, soon, outside any trap, at a domain's expense. From any thread."""
        self._hypervisor.defer(work if charge is None else partial(self._run_for, charge, work))

    def on_end(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Run ``handler`` before this domain is taken apart; return what takes the wish back."""
        self._at_end.append(handler)
        return partial(self._at_end.remove, handler)

    def end(self) -> None:
        """Have everybody let go: the domain is about to be taken apart."""
        for handler in list(self._at_end):
            handler()

    def payer(self) -> int | None:
        """Tell at whose expense the work is that is being done; None where it is nobody's."""
        return self._hypervisor.payer

    def now_ns(self) -> int:
        """Read the machine's monotonic clock."""
        return self._hypervisor.machine.clock.monotonic_ns()

    def call_at(
        self, deadline_ns: int, work: Callable[[], None], *, charge: int | None = None
    ) -> None:
        """Run ``work`` once, outside any trap, when the machine's clock has come so far."""
        fire = work if charge is None else partial(self._run_for, charge, work)
        self._hypervisor.machine.timers.arm(Timer(fire), deadline_ns)

    def _pending(self, port: int) -> None:
        if port in self._handlers and port not in self._queued:
            self._queued.add(port)
            self._hypervisor.defer(lambda: self._serve(port))

    def _serve(self, port: int) -> None:
        """Handle an event; the time is its sender's, so that asking for work is no way to more."""
        if port not in self._queued:
            return
        self._queued.discard(port)
        channel = self._domain.events.channel(port)
        if channel is not None:  # else this door's own domain has ended
            self._run_for(channel.remote, self._handlers[port])

    def _run_for(self, domid: int, work: Callable[[], None]) -> None:
        """Do what a domain has asked for; its time is that domain's, if it is still there."""
        clock = self._hypervisor.machine.clock
        started_ns = clock.monotonic_ns()
        self._hypervisor.payer = domid
        work()
        self._hypervisor.payer = None
        now_ns = clock.monotonic_ns()
        self._hypervisor.scheduler.charge(domid, now_ns - started_ns, now_ns)

    def _peer(self, domid: int) -> Domain:
        domain = self._hypervisor.domains.get(domid)
        if domain is None:
            raise Refused(ESRCH, "grants.no-such-domain", domid)
        return domain
