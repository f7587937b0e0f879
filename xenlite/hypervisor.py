# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor: one machine, its domains, and the loop that gives them turns.

The loop is the design: work of the backends, then one runnable domain for one slice, then again.
Nothing of a backend ever runs inside a trap, and nothing of a guest outside ``_run_slice``::

    run --> deferred work --> pick a domain --> drain --> upcall, guest, traps ... --> leave
     ^----------------------------------------------------------------------------------------'

A domain that breaks a rule ends alone (``DomainCrash``); any other exception is ours, and stops
everything. One thread runs all of this; other threads may call ``kick`` and ``defer``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_FIRST_RESERVED,
    EBUSY,
    RUNSTATE_running,
    SHUTDOWN_crash,
)
from xenlite.control import ControlDoor
from xenlite.core.assembly import assemble, take_apart
from xenlite.core.hole import M2pWindow
from xenlite.core.paging import WORK_BUDGET
from xenlite.core.scheduler import SLICE_NS, Scheduler
from xenlite.core.timekeeping import publish_runstate, publish_time, publish_wall_clock
from xenlite.core.vcpu import RUNSTATES
from xenlite.core.vcpu_start import load
from xenlite.doors import CrashRecord, HypercallRecord, Refusal, TrapRecord
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
from xenlite.machine.selftest import capabilities
from xenlite.machine.slice_timer import SliceTimer
from xenlite.machine.trap import EIP, ESP, VECTOR_NMI
from xenlite.machine.tsc import time_source
from xenlite.registers import read_registers
from xenlite.traps import TrapParts, make_route

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu
    from xenlite.debug_doors import DebugStop
    from xenlite.debugger import DomainDebugger
    from xenlite.hypercalls.restart import Handler
    from xenlite.machine.clock import Clock
    from xenlite.recorder import Recorder

_FIRST_SLICE_BLOCKS: Final = 100_000
_MIN_SLICE_BLOCKS: Final = 1_000
_MAX_SLICE_BLOCKS: Final = 10_000_000


class _Guest:
    """What the loop keeps of a domain that has a CPU."""

    __slots__ = ("cpu", "debugger", "domain", "parts", "slice_blocks", "table")

    def __init__(self, domain: Domain, cpu: Cpu, parts: TrapParts, table: list[Handler]) -> None:
        self.domain = domain
        self.cpu = cpu
        self.parts = parts
        self.table = table
        self.debugger: DomainDebugger | None = None
        self.slice_blocks = _FIRST_SLICE_BLOCKS

    def calibrate(self, blocks: int, spent_ns: int) -> None:
        """Bring the next full slice to its length on this host: down at once, up by and by.

        A guest that turns from plain code to traps would else keep the others waiting for long. A
        clock that stands still tells nothing.
        """
        if not spent_ns:
            return
        wanted = blocks * SLICE_NS // spent_ns
        grown = self.slice_blocks * 5 // 4
        self.slice_blocks = max(_MIN_SLICE_BLOCKS, min(_MAX_SLICE_BLOCKS, wanted, grown))

    def make_current(self, vcpu: Vcpu) -> None:
        """Give the engine to ``vcpu``, outside a run."""
        domain, cpu = self.domain, self.cpu
        old = domain.current
        if old.context is None:
            old.context = cpu.new_context()
        cpu.save_context(old.context)
        if vcpu.context is None:
            vcpu.context = cpu.new_context()
        domain.current = vcpu
        domain.paging.forget_walks()
        cpu.restore_context(vcpu.context)
        cpu.watch_upcalls(vcpu.info_maddr)
        domain.tlb.flush()
        if vcpu.start is not None:
            load(domain, vcpu)


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
        self.recorder: Recorder | None = None
        self._cpu_mode = cpu_mode
        self._last_domid = 0
        self._m2p = M2pWindow(self.machine)
        self._guests: dict[int, _Guest] = {}
        self._guest_domains: list[Domain] = []
        self.scheduler = Scheduler()
        self._time = time_source(self.machine.clock)
        self._work: deque[Callable[[], None]] = deque()
        self.payer: int | None = None  # at whose expense deferred work is being done
        self._wake = threading.Event()
        self._is_waiting = False  # or about to: it looks for work once more before
        self._running: Cpu | None = None
        # A clock that is moved by hand is for runs that repeat: nothing ends their slices early.
        is_host = isinstance(self.machine.clock, HostClock)
        self._slice_timer = SliceTimer(self.machine.clock, SLICE_NS) if is_host else None
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

    @property
    def notes(self) -> tuple[str, ...]:
        """Say which fast or safe parts of the engine are missing on this host, a line each."""
        return capabilities().notes

    def control(self) -> ControlDoor:
        """Open the toolstack's door."""
        return ControlDoor(self)

    def link(self, domid: int) -> LinkDoor:
        """Open the backends' door, with the rights of ``domid``."""
        if domid not in self._links:
            self._links[domid] = LinkDoor(self, self.domains[domid])
        return self._links[domid]

    def record(self, size_bytes: int) -> None:
        """Record what domains made from now on do, and every event; see ``recorder.py``."""
        from xenlite.recorder import Recorder

        assert self.recorder is None, "it records already"
        self.recorder = Recorder(self.machine.clock, size_bytes)
        for domain in self.domains.values():
            self.recorder.watch_events(domain)

    def close(self) -> None:
        """Destroy every domain and give the machine's memory back."""
        for guest in list(self._guests.values()):
            self.remove_domain(guest.domain)
        if self._slice_timer is not None:
            self._slice_timer.close()
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
        if self._is_waiting:  # set each time, it costs 500 opcodes of the 9,150 of a ping
            self._wake.set()
        running = self._running
        if running is not None:
            running.kick()

    # -- domains ------------------------------------------------------------------------------

    def next_domid(self) -> int:
        """Choose a domid for a new domain, one not used lately, of which nothing is left.

        A page of a dead domain that a peer still maps keeps its owner's number until it is
        unmapped; a new domain of that number would own it.
        """
        frames = self.machine.frames
        while True:
            domid = self._last_domid = self._last_domid % (DOMID_FIRST_RESERVED - 1) + 1
            if domid not in self.domains and not frames.is_owner(domid):
                return domid

    def add_domain(self, domid: int, name: str, *, max_pages: int, max_vcpus: int) -> Domain:
        """Make an empty domain with an engine of its own."""
        recorder = self.recorder

        def note(number: int, arguments: Arguments, refused: Refused) -> None:
            if recorder is not None:
                recorder.refused(domain, number, refused)
            debugger = self._guests[domid].debugger
            if self.on_refused is None and debugger is None:
                return
            refusal = _refusal(domain, number, arguments, refused)
            if self.on_refused is not None:
                self.on_refused(refusal)
            if debugger is not None:
                debugger.refused(refusal)

        cpu: Cpu
        route = make_route(lambda: cpu, note, self._time.rdtsc)
        recorded = None if recorder is None else recorder.wrap(route.handlers)
        handlers = route.handlers if recorded is None else recorded.handlers
        cpu = Cpu(self.machine.memory, traps=handlers, mode=self._cpu_mode)
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
        if recorder is not None:
            recorder.watch_events(domain)
        calls = table.build(domain, note)
        if recorded is not None:
            recorded.bind(domain, calls)
        parts = route.bind(domain, calls)
        if recorded is not None:
            recorded.join(parts)
        self._guests[domid] = _Guest(domain, cpu, parts, calls)
        self._guest_domains = [guest.domain for guest in self._guests.values()]
        self.scheduler.add(domid)
        publish_wall_clock(domain)
        return domain

    def remove_domain(self, domain: Domain) -> None:
        """Take a domain apart and free its engine."""
        link = self._links.pop(domain.domid, None)
        if link is not None:
            link.end()
        guest = self._guests.pop(domain.domid)
        if guest.debugger is not None:
            guest.debugger.gone()
        self._guest_domains = [guest.domain for guest in self._guests.values()]
        self.scheduler.remove(domain.domid)
        self.crashes.pop(domain.domid, None)
        if self.recorder is not None:
            self.recorder.ended(domain)
        guest.parts.page_writes.release()
        take_apart(domain)
        guest.cpu.close()

    def attach_debugger(
        self, domain: Domain, on_stop: Callable[[DebugStop], None]
    ) -> DomainDebugger:
        """Hold a domain for a debugger; Refused(EBUSY) where it has one."""
        from xenlite.debugger import DomainDebugger, RunParts  # no start of a domain waits for it

        guest = self._guests[domain.domid]
        if guest.debugger is not None:
            raise Refused(EBUSY, "debug.has-a-debugger", domain.domid)

        def forget() -> None:
            guest.debugger = None

        parts = RunParts(
            cpu=guest.cpu,
            page_writes=guest.parts.page_writes,
            table=guest.table,
            make_current=guest.make_current,
            crash=lambda crash: self._crash(domain, crash),
            forget=forget,
        )
        guest.debugger = DomainDebugger(domain, parts, on_stop)
        return guest.debugger

    def wrote_for_debugger(self, domid: int) -> None:
        """Have no watchpoint stop for what was just written into a domain's memory."""
        debugger = self._guests[domid].debugger
        if debugger is not None:
            debugger.accept_changes()

    # -- the loop -----------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], deadline_ns: int | None = None) -> bool:
        """Run guests and backends until ``until()`` holds; False where the deadline came first.

        ``deadline_ns`` is on the machine's monotonic clock.
        """
        clock, timers = self.machine.clock, self.machine.timers
        run_slice = self._run_slice if self.recorder is None else self._run_recorded_slice
        now_ns = clock.monotonic_ns()
        while True:
            if self._wake.is_set():
                self._wake.clear()
            if self._work:
                self._run_deferred()
                now_ns = clock.monotonic_ns()
            if now_ns >= timers.earliest_ns:
                timers.fire_due(now_ns)
                now_ns = clock.monotonic_ns()  # a vCPU that was woken has waited since
            if until():
                return True
            if deadline_ns is not None and now_ns >= deadline_ns:
                return False
            domains = self._guest_domains
            vcpu = self.scheduler.pick(domains, now_ns)
            if vcpu is not None:
                now_ns = run_slice(self._guests[vcpu.domain.domid], vcpu, now_ns)
                continue
            self._is_waiting = True
            if not self._work:
                ends = (
                    deadline_ns,
                    timers.next_deadline_ns(),
                    self.scheduler.next_unpark_ns(domains, now_ns),
                )
                first_ns = min((end for end in ends if end is not None), default=None)
                clock.wait(self._wake, first_ns)
            self._is_waiting = False
            now_ns = clock.monotonic_ns()

    def _run_deferred(self) -> None:
        for _ in range(len(self._work)):
            self._work.popleft()()

    def _run_slice(self, guest: _Guest, vcpu: Vcpu, started_ns: int) -> int:
        """Let a vCPU run from now, ``started_ns``; return when it left.

        Two domains that wake each other come through here for every event: the clock is read once.
        """
        domain, cpu, parts = guest.domain, guest.cpu, guest.parts
        paging = domain.paging
        clock, slice_timer = self.machine.clock, self._slice_timer
        blocks = 0
        try:
            paging.work_left = WORK_BUDGET
            if paging.deferred and not paging.drain():
                return clock.monotonic_ns()
            if domain.current is not vcpu:
                guest.make_current(vcpu)
            if domain.grants.written_elsewhere:
                domain.grants.forget_code()
            vcpu.runstate.enter(RUNSTATE_running, started_ns)
            vcpu.timers.go_on(started_ns)
            publish_time(vcpu, self._time, started_ns)
            if vcpu.runstate.area:
                publish_runstate(vcpu)
            if vcpu.selectors_stale:
                parts.bounce.reload_selectors()
            if vcpu.nmi_pending and domain.stepping is None:
                self._deliver_nmi(guest, vcpu)
            blocks = self._blocks_until_due(guest, started_ns)
            self._running = cpu
            if slice_timer is not None:
                slice_timer.begin(cpu, started_ns)
            if guest.debugger is None:
                cpu.enter(blocks)
            else:
                guest.debugger.enter(blocks)
            if domain.shutdown_reason == SHUTDOWN_crash:
                raise DomainCrash("sched.guest-crashed", "the guest says so itself")
        except DomainCrash as crash:
            if guest.debugger is None or not guest.debugger.keep_crash(crash):
                self._crash(domain, crash)
        finally:
            self._running = None
            if slice_timer is not None:
                slice_timer.end()
            if parts.page_writes.is_stepping:
                parts.page_writes.abort()
            now_ns = clock.monotonic_ns()
            spent_ns = now_ns - started_ns
            self.scheduler.charge(domain.domid, spent_ns, now_ns)
            vcpu.runstate.enter(RUNSTATES[vcpu.state], now_ns)
            if guest.debugger is not None:
                guest.debugger.report()
        if blocks and (not cpu.blocks_left or spent_ns > SLICE_NS):
            guest.calibrate(blocks - cpu.blocks_left, spent_ns)
        return now_ns

    def _run_recorded_slice(self, guest: _Guest, vcpu: Vcpu, started_ns: int) -> int:
        assert self.recorder is not None
        began_ns = self.recorder.turn_begins(vcpu)
        now_ns = self._run_slice(guest, vcpu, started_ns)
        self.recorder.turn(vcpu, began_ns)
        return now_ns

    def _deliver_nmi(self, guest: _Guest, vcpu: Vcpu) -> None:
        """Enter the handler of an NMI; unlike on Xen, another may come before it returns."""
        vcpu.nmi_pending = False
        if vcpu.traps[VECTOR_NMI] is not None:
            guest.parts.bounce.fault(VECTOR_NMI, None)

    def _blocks_until_due(self, guest: _Guest, now_ns: int) -> int:
        """Return a slice's blocks, or fewer where a timer is due before its end."""
        timers = self.machine.timers
        if timers.earliest_ns - now_ns >= SLICE_NS:
            return guest.slice_blocks
        due_ns = timers.next_deadline_ns()
        if due_ns is None or due_ns - now_ns >= SLICE_NS:
            return guest.slice_blocks
        return max(_MIN_SLICE_BLOCKS, guest.slice_blocks * max(due_ns - now_ns, 0) // SLICE_NS)

    def _crash(self, domain: Domain, crash: DomainCrash) -> None:
        domain.shutdown_reason = SHUTDOWN_crash
        if self.recorder is not None:
            self.recorder.crashed(domain, crash)
        self.crashes[domain.domid] = CrashRecord(
            domid=domain.domid,
            vcpu=domain.current.id,
            rule=crash.rule,
            detail=crash.detail,
            registers=read_registers(domain.current),
            hypercalls=_trail(domain),
            traps=tuple(TrapRecord(*seen) for seen in domain.engine.trail.newest_traps()),
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
        entry=refused.entry,
        eip=regs[EIP],
        caller=caller,
    )


def _drop_output(_domid: int, _text: bytes) -> None:
    """Drop console_io output that nobody asked for."""
