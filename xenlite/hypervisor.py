# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor: one machine, its domains, and the loop that gives them turns.

The loop is the design: work of the backends, then one runnable domain for one slice, then again.
Nothing of a backend ever runs inside a trap, and nothing of a guest outside ``_run_slice``::

    run --> deferred work --> pick a domain --> drain, upcall --> guest --> traps ... --> leave
     ^----------------------------------------------------------------------------------------'

A domain that breaks a rule ends alone (``DomainCrash``); any other exception is ours, and stops
everything. One thread runs all of this; other threads may call ``kick`` and ``defer``.

A slice is as many blocks as lately took 2 ms, and a guest can turn to far slower ones. So a second
thread looks on and kicks who stays for 10 ms; what was too long is taken off the turns to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import DOMID_FIRST_RESERVED, SHUTDOWN_crash
from xenlite.control import ControlDoor
from xenlite.core.assembly import assemble, take_apart
from xenlite.core.hole import M2pWindow
from xenlite.core.paging import WORK_BUDGET
from xenlite.core.vcpu import VcpuState
from xenlite.doors import CrashRecord, HypercallRecord, Refusal
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls import table
from xenlite.hypercalls.restart import Arguments
from xenlite.link import LinkDoor
from xenlite.machine.clock import HostClock
from xenlite.machine.cpu import Cpu, Mode
from xenlite.machine.frames import FrameTable
from xenlite.machine.machine import Machine
from xenlite.machine.memory import DEFAULT_SIZE_BYTES, MachineMemory
from xenlite.machine.processor import NullEngine
from xenlite.machine.trap import EIP, ESP
from xenlite.registers import read_registers
from xenlite.traps import TrapParts, make_route

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.machine.clock import Clock

SLICE_NS: Final = 2_000_000
_OVERTIME_NS: Final = 10_000_000
_FIRST_SLICE_BLOCKS: Final = 100_000
_MIN_SLICE_BLOCKS: Final = 1_000
_MAX_SLICE_BLOCKS: Final = 10_000_000


class _Guest:
    """What the loop keeps of a domain that has a CPU."""

    __slots__ = ("cpu", "domain", "owed_ns", "parts", "slice_blocks")

    def __init__(self, domain: Domain, cpu: Cpu, parts: TrapParts) -> None:
        self.domain = domain
        self.cpu = cpu
        self.parts = parts
        self.slice_blocks = _FIRST_SLICE_BLOCKS
        self.owed_ns = 0  # time that it has had beyond its turns

    def is_runnable(self) -> bool:
        """Tell whether the loop may enter this domain now."""
        domain = self.domain
        return (
            not domain.paused
            and domain.shutdown_reason is None
            and domain.current.state is VcpuState.RUNNABLE
        )

    def calibrate(self, blocks: int, spent_ns: int) -> None:
        """Bring the next full slice to its length on this host: down at once, up by and by.

        A guest that turns from plain code to traps would else keep the others waiting for long.
        """
        wanted = blocks * SLICE_NS // max(spent_ns, 1)
        grown = self.slice_blocks * 5 // 4
        self.slice_blocks = max(_MIN_SLICE_BLOCKS, min(_MAX_SLICE_BLOCKS, wanted, grown))


class Hypervisor:
    """One machine with Dom0 in it; guests come through ``control()``."""

    def __init__(
        self,
        host_memory_bytes: int = DEFAULT_SIZE_BYTES,
        clock: Clock | None = None,
        *,
        cpu_mode: Mode = "auto",
    ) -> None:
        memory = MachineMemory(host_memory_bytes)
        self.machine = Machine(memory, FrameTable(memory), clock or HostClock())
        self.domains: dict[int, Domain] = {}
        self.crashes: dict[int, CrashRecord] = {}
        self.console_output: Callable[[int, bytes], None] = _drop_output
        self.on_refused: Callable[[Refusal], None] | None = None
        self._cpu_mode = cpu_mode
        self._last_domid = 0
        self._m2p = M2pWindow(self.machine)
        self._guests: dict[int, _Guest] = {}
        self._turns: deque[int] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._running: Cpu | None = None
        self._slices = 0  # begun so far
        self._busy = threading.Event()  # clear while there is nobody to look at
        assemble(
            self.machine,
            self._m2p,
            self.domains,
            NullEngine(),
            domid=0,
            name="Domain-0",
            max_pages=0,
            max_vcpus=1,
        )
        self._links: dict[int, LinkDoor] = {}

    def control(self) -> ControlDoor:
        """Open the toolstack's door."""
        return ControlDoor(self)

    def link(self, domid: int) -> LinkDoor:
        """Open the backends' door, with the rights of ``domid``."""
        if domid not in self._links:
            self._links[domid] = LinkDoor(self, self.domains[domid])
        return self._links[domid]

    def close(self) -> None:
        """Destroy every domain and give the machine's memory back."""
        for guest in list(self._guests.values()):
            self.remove_domain(guest.domain)
        self.machine.frames.close()
        self.machine.memory.close()

    # -- for other threads --------------------------------------------------------------------

    def kick(self) -> None:
        """Bring the loop round soon: a guest leaves at its next block."""
        self._wake.set()
        running = self._running
        if running is not None:
            running.kick()

    def defer(self, work: Callable[[], None]) -> None:
        """Run ``work`` once in the loop, outside any trap."""
        self._work.append(work)
        self.kick()

    # -- domains ------------------------------------------------------------------------------

    def next_domid(self) -> int:
        """Choose a domid for a new domain.

        Never one that was used lately: a page of a dead domain that a peer still maps keeps its
        owner's number until it is unmapped.
        """
        while True:
            self._last_domid = self._last_domid % (DOMID_FIRST_RESERVED - 1) + 1
            if self._last_domid not in self.domains:
                return self._last_domid

    def add_domain(self, domid: int, name: str, *, max_pages: int, max_vcpus: int) -> Domain:
        """Make an empty domain with an engine of its own."""

        def note(number: int, arguments: Arguments, refused: Refused) -> None:
            if self.on_refused is not None:
                self.on_refused(_refusal(domain, number, arguments, refused))

        cpu: Cpu
        route = make_route(lambda: cpu, note)
        cpu = Cpu(self.machine.memory, traps=route.handlers, mode=self._cpu_mode)
        try:
            domain = assemble(
                self.machine,
                self._m2p,
                self.domains,
                cpu,
                domid=domid,
                name=name,
                max_pages=max_pages,
                max_vcpus=max_vcpus,
            )
        except Refused:
            cpu.close()
            raise
        domain.console_write = lambda text: self.console_output(domid, text)
        parts = route.bind(domain, table.build(domain, note))
        self._guests[domid] = _Guest(domain, cpu, parts)
        self._turns.append(domid)
        return domain

    def remove_domain(self, domain: Domain) -> None:
        """Take a domain apart and free its engine."""
        guest = self._guests.pop(domain.domid)
        self._turns.remove(domain.domid)
        self.crashes.pop(domain.domid, None)
        guest.parts.page_writes.release()
        take_apart(domain)
        guest.cpu.close()

    # -- the loop -----------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], deadline_ns: int | None = None) -> bool:
        """Run guests and backends until ``until()`` holds; False where the deadline came first.

        ``deadline_ns`` is on the machine's monotonic clock.
        """
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        self._busy.set()
        watch.start()
        try:
            return self._loop(until, deadline_ns)
        finally:
            over.set()
            self._busy.set()
            watch.join()

    def _watch(self, over: threading.Event) -> None:
        """Kick whoever still has the slice that it had when we looked last."""
        seen = 0
        while self._busy.wait() and not over.wait(_OVERTIME_NS / 1e9):
            running = self._running
            if running is not None and seen == self._slices:
                running.kick()
            seen = self._slices

    def _loop(self, until: Callable[[], bool], deadline_ns: int | None) -> bool:
        clock = self.machine.clock
        while True:
            self._wake.clear()
            self._run_deferred()
            if until():
                return True
            left_ns = None if deadline_ns is None else deadline_ns - clock.monotonic_ns()
            if left_ns is not None and left_ns <= 0:
                return False
            guest = self._next_guest()
            if guest is not None:
                self._run_slice(guest)
            elif not self._work:
                self._busy.clear()
                self._wake.wait(None if left_ns is None else left_ns / 1e9)
                self._busy.set()

    def _run_deferred(self) -> None:
        for _ in range(len(self._work)):
            self._work.popleft()()

    def _next_guest(self) -> _Guest | None:
        debtor = None
        for _ in range(len(self._turns)):
            guest = self._guests[self._turns[0]]
            self._turns.rotate(-1)
            if guest.is_runnable():
                if guest.owed_ns <= 0:
                    return guest
                guest.owed_ns -= SLICE_NS
                debtor = debtor or guest
        return debtor

    def _run_slice(self, guest: _Guest) -> None:
        domain, cpu = guest.domain, guest.cpu
        paging = domain.paging
        paging.work_left = WORK_BUDGET
        if paging.deferred and not paging.drain():
            return
        clock = self.machine.clock
        try:
            guest.parts.bounce.reload_selectors()
            if 0 < self.machine.memory.m16[domain.current.upcall_index] < 0x100:
                guest.parts.bounce.upcall()
            self._slices += 1
            self._running = cpu
            started = clock.monotonic_ns()
            cpu.enter(guest.slice_blocks)
            spent_ns = clock.monotonic_ns() - started
            if not cpu.blocks_left or spent_ns >= _OVERTIME_NS:
                guest.calibrate(guest.slice_blocks - cpu.blocks_left, spent_ns)
                guest.owed_ns += max(spent_ns - _OVERTIME_NS // 2, 0)
            if domain.shutdown_reason == SHUTDOWN_crash:
                raise DomainCrash("sched.guest-crashed", "the guest says so itself")
        except DomainCrash as crash:
            self._crash(domain, crash)
        finally:
            self._running = None
            if guest.parts.page_writes.is_stepping:
                guest.parts.page_writes.abort()

    def _crash(self, domain: Domain, crash: DomainCrash) -> None:
        domain.shutdown_reason = SHUTDOWN_crash
        self.crashes[domain.domid] = CrashRecord(
            domid=domain.domid,
            vcpu=domain.current.id,
            rule=crash.rule,
            detail=crash.detail,
            registers=read_registers(domain),
            hypercalls=_trail(domain),
        )


def _trail(domain: Domain) -> tuple[HypercallRecord, ...]:
    return tuple(HypercallRecord(*record) for record in domain.engine.trail.newest())


def _refusal(domain: Domain, number: int, arguments: Arguments, refused: Refused) -> Refusal:
    regs = domain.engine.regs
    try:
        caller = domain.guest_memory.read_u32(regs[ESP])
    except Refused:
        caller = None
    return Refusal(
        domid=domain.domid,
        vcpu=domain.current.id,
        number=number,
        arguments=arguments,
        errno=refused.errno,
        rule=refused.rule,
        argument=refused.argument,
        eip=regs[EIP],
        caller=caller,
    )


def _drop_output(_domid: int, _text: bytes) -> None:
    """Drop console_io output that nobody asked for."""
