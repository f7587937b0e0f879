# SPDX-License-Identifier: GPL-2.0-or-later
"""One debugger's hold on one domain (``debug_doors.Debugger``).

States, by ``domain.held``, ``domain.stepping`` and ``stop``::

    held --resume--> running --anything worth a stop--> held
      '-----step---> stepping --one instruction-------> held

What is worth a stop is noted during a turn of the domain, the first note counts, and ``report``
turns it into a hold when the turn is over: outside the guest, at an exact instruction. While a
debugger is attached the engine has its stop tests (``Cpu.set_quiet_memory``) and no trap goes by
without Python (``Ways.forbid``); when it lets go, nothing of it is left.

A crash is kept back while its domain is held, so that it can be looked at, and made when it is
resumed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite import inspection
from xenlite.abi.x86_32p import EBUSY, EINVAL, ESRCH
from xenlite.core.watchpoints import Watchpoint, Watchpoints
from xenlite.debug_doors import (
    Access,
    Change,
    DebugStop,
    GrantInfo,
    PortInfo,
    StopKind,
    VcpuInfo,
    Writer,
)
from xenlite.doors import HypercallRecord
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls.breaks import CallBreaks
from xenlite.machine.probes import Breakpoints
from xenlite.machine.trap import (
    EFLAGS_AC,
    EFLAGS_ARITHMETIC,
    EFLAGS_DF,
    EFLAGS_NT,
    EFLAGS_TF,
    EIP,
    GENERAL_REGISTERS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from xenlite.core.domain import Domain
    from xenlite.core.page_writes import PageWrites
    from xenlite.core.vcpu import Vcpu
    from xenlite.doors import Refusal
    from xenlite.hypercalls.restart import Arguments, Handler
    from xenlite.machine.cpu import Cpu

_FLAG_ID: Final = 1 << 21
_GUESTS_FLAGS: Final = EFLAGS_ARITHMETIC | EFLAGS_DF | EFLAGS_TF | EFLAGS_NT | EFLAGS_AC | _FLAG_ID
_ACCESSES: Final = {
    Access.CHANGE: (False, True),
    Access.READ: (True, False),
    Access.ANY: (True, True),
}
_FXSAVE_SIZE_BYTES: Final = 512
_INT: Final = 0xCD


@dataclass(frozen=True, slots=True)
class RunParts:
    """What the run loop lends a debugger of one domain.

    ``table`` is its hypercalls, ``make_current`` gives the engine to a vCPU, ``crash`` makes a
    crash that was kept back, and ``forget`` is called when the debugger leaves.
    """

    cpu: Cpu
    page_writes: PageWrites
    table: list[Handler]
    make_current: Callable[[Vcpu], None]
    crash: Callable[[DomainCrash], None]
    forget: Callable[[], None]


class DomainDebugger:
    """Implement ``debug_doors.Debugger``, and what the run loop calls while one is attached."""

    def __init__(
        self, domain: Domain, parts: RunParts, on_stop: Callable[[DebugStop], None]
    ) -> None:
        """Hold the domain."""
        self._domain = domain
        self._parts = parts
        self._cpu = cpu = parts.cpu
        self._page_writes = parts.page_writes
        self._on_stop = on_stop
        self._breakpoints = Breakpoints(cpu)
        self._watchpoints = Watchpoints(domain, cpu)
        self._call_breaks = CallBreaks(domain, parts.table, self._before_call)
        self._noted: DebugStop | None = None
        self._kept_crash: DomainCrash | None = None
        self._wants_refusals = False
        self._wants_crash = True
        self._is_over = False
        self.stop: DebugStop | None = DebugStop(StopKind.ASKED, domain.current.id)
        domain.held = True
        cpu.set_quiet_memory(quiet=False)
        cpu.ways.forbid(forbidden=True)

    # -- what a debugger asks for -------------------------------------------------------------

    def resume(self) -> None:
        """Let the domain run."""
        self._check_held()
        self._go_on()
        self._domain.held = False

    def step(self, vcpu: int) -> None:
        """Let one vCPU make one instruction, or the trap that comes of it, and nobody else."""
        self._check_held()
        target = self._vcpu(vcpu)
        if not target.is_initialised:
            raise Refused(EINVAL, "debug.vcpu-is-down", vcpu)
        self._domain.stepping = target
        self._go_on()

    def interrupt(self) -> None:
        """Hold the domain."""
        self._check_attached()
        if self.stop is None:
            self._note(DebugStop(StopKind.ASKED, self._domain.current.id))
            self.report()

    def detach(self) -> None:
        """Let go: the domain runs on as if nobody had been there."""
        if self._is_over:
            return
        self.break_on_hypercalls(())
        self._breakpoints.clear_all()
        self._watchpoints.clear()
        self._cpu.set_quiet_memory(quiet=True)
        self._cpu.ways.forbid(forbidden=False)
        self._leave()
        self._go_on()

    def set_breakpoint(self, vaddr: int) -> None:
        """Stop before the instruction at ``vaddr``, in any ring."""
        self._check_attached()
        self._breakpoints.set(vaddr)

    def clear_breakpoint(self, vaddr: int) -> None:
        """Stop there no more."""
        self._check_attached()
        self._breakpoints.clear(vaddr)

    def set_watchpoint(self, vcpu: int, vaddr: int, size: int, access: Access) -> None:
        """Stop behind what changes or uses these bytes of the vCPU's address space."""
        self._check_attached()
        l3_mfn = self._vcpu(vcpu).cr3_mfn
        if l3_mfn is None:
            raise Refused(EINVAL, "debug.vcpu-is-down", vcpu)
        reads, writes = _ACCESSES[access]
        self._watchpoints.add(Watchpoint(l3_mfn, vaddr, size, reads, writes))

    def clear_watchpoint(self, vaddr: int, size: int, access: Access) -> None:
        """Stop there no more."""
        self._check_attached()
        reads, writes = _ACCESSES[access]
        self._watchpoints.remove(vaddr, size, reads=reads, writes=writes)

    def break_on_hypercalls(self, numbers: Collection[int]) -> None:
        """Stop before each of these hypercalls is made; the set replaces the last one."""
        self._check_attached()
        self._call_breaks.set(numbers)

    def break_on_refusals(self, *, wanted: bool) -> None:
        """Stop behind each hypercall that is refused, or no more."""
        self._wants_refusals = wanted

    def break_on_crash(self, *, wanted: bool) -> None:
        """Stop where the domain would crash, which it does when it is resumed; on at first."""
        self._wants_crash = wanted

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Change general registers, ``eip`` and ``eflags``: of these what a guest may change."""
        unknown = values.keys() - GENERAL_REGISTERS.keys() - {"eflags"}
        if unknown:
            raise Refused(EINVAL, "debug.register-is-read-only", min(unknown))
        with self._registers_of(vcpu):
            for name, value in values.items():
                if name == "eflags":
                    kept = self._cpu.read_eflags() & ~_GUESTS_FLAGS
                    self._cpu.write_eflags(kept | value & _GUESTS_FLAGS)
                else:
                    self._cpu.regs[GENERAL_REGISTERS[name]] = value & 0xFFFFFFFF

    def read_fpu(self, vcpu: int) -> bytes:
        """Read x87 and SSE as a 512-byte FXSAVE image."""
        with self._registers_of(vcpu):
            return self._cpu.save_fpu()

    def write_fpu(self, vcpu: int, image: bytes) -> None:
        """Load x87 and SSE from such an image."""
        if len(image) != _FXSAVE_SIZE_BYTES:
            raise Refused(EINVAL, "debug.fpu-image-size", len(image))
        with self._registers_of(vcpu):
            self._cpu.load_fpu(image)

    def vcpus(self) -> list[VcpuInfo]:
        """Tell what each vCPU does."""
        return inspection.vcpus(self._attached())

    def frame_of(self, pfn: int) -> int | None:
        """Return the mfn that the machine-to-phys table gives this pfn of the domain, if any."""
        return inspection.frame_of(self._attached(), pfn)

    def mapped_by(self, mfn: int) -> list[int]:
        """Find the L1 entries that map a frame, by looking at all: their machine addresses."""
        return inspection.mapped_by(self._attached().machine, mfn)

    def ports(self) -> list[PortInfo]:
        """List the open event ports."""
        return inspection.ports(self._attached())

    def grants(self) -> list[GrantInfo]:
        """List the grant entries that offer something or are mapped."""
        return inspection.grants(self._attached())

    def hypercalls(self) -> list[HypercallRecord]:
        """Return the last hypercalls, oldest first."""
        return inspection.hypercalls(self._attached())

    # -- what the run loop calls --------------------------------------------------------------

    def enter(self, blocks: int) -> None:
        """Do what ``Cpu.enter`` does, or a single step, and note what is worth a stop."""
        self._breakpoints.forget_hit()
        if self._watchpoints and self._watchpoints.cells.have_changed():
            self._note_change(Writer.OUTSIDE)
            if self._noted is not None:
                return
        vcpu = self._domain.current
        if self._domain.stepping is None:
            self._run(blocks)
        else:
            self._step(blocks)
            self._note(DebugStop(StopKind.STEPPED, vcpu.id))
        if self._breakpoints.hit is not None:
            self._note(DebugStop(StopKind.BREAKPOINT, vcpu.id))

    def accept_changes(self) -> None:
        """Take what is watched as it is now: a debugger has written it."""
        if self._watchpoints:
            self._watchpoints.changed()

    def refused(self, refusal: Refusal) -> None:
        """Hear of a refused hypercall, in its trap."""
        if self._wants_refusals:
            self._note(DebugStop(StopKind.REFUSAL, refusal.vcpu, refusal=refusal))
            self._cpu.stop()

    def keep_crash(self, crash: DomainCrash) -> bool:
        """Hear of a crash; True where it shall wait until the domain is resumed."""
        if not self._wants_crash or self._is_over:
            return False
        self._kept_crash = crash
        self._domain.shutdown_reason = None
        self._noted = DebugStop(StopKind.CRASH, self._domain.current.id, crash=str(crash))
        return True

    def report(self) -> None:
        """Hold the domain for what was noted, and say so; between two turns."""
        if self._is_over:
            return
        domain = self._domain
        if domain.shutdown_reason is not None:
            self._noted = DebugStop(
                StopKind.ENDED, domain.current.id, reason=domain.shutdown_reason
            )
        if self._noted is None or (self.stop is not None and self.stop.kind is StopKind.ENDED):
            return
        self.stop, self._noted = self._noted, None
        domain.held, domain.stepping = True, None
        self._on_stop(self.stop)

    def gone(self) -> None:
        """Hear that the domain is destroyed; its engine must not be used any more."""
        if self._is_over:
            return
        self._leave()
        if self.stop is None or self.stop.kind is not StopKind.ENDED:
            self.stop = DebugStop(StopKind.ENDED, reason=self._domain.shutdown_reason)
            self._on_stop(self.stop)

    # -- running ------------------------------------------------------------------------------

    def _run(self, blocks: int) -> None:
        cells, cpu = self._watchpoints.cells, self._cpu
        while True:
            cpu.enter(blocks)
            if not self._watchpoints or not cells.have_changed():
                return
            was_stopped_here = cells.has_stopped
            if self._page_writes.is_stepping:
                self._watchpoints.settle_tables_only()
            else:
                self._note_change(self._writer())
            if self._noted is not None or not was_stopped_here:
                return
            blocks = cpu.blocks_left  # only a way there has changed

    def _step(self, blocks: int) -> None:
        """Make one instruction; a store to a page table that is emulated takes two runs."""
        cells, cpu = self._watchpoints.cells, self._cpu
        is_emulated = False
        self._breakpoints.are_quiet = True
        cpu.hold_upcalls(held=True)
        try:
            cpu.step(blocks)
            while self._page_writes.is_stepping:
                is_emulated = True
                if self._watchpoints:
                    self._watchpoints.settle_tables_only()
                cpu.step(blocks)
        finally:
            cpu.hold_upcalls(held=False)
            self._breakpoints.are_quiet = False
        if self._watchpoints and cells.have_changed():
            self._note_change(Writer.HYPERVISOR if is_emulated else self._writer())

    def _note_change(self, writer: Writer) -> None:
        eip = self._watchpoints.cells.last_eip
        found = self._watchpoints.changed()
        if found is None:
            return
        point, old, new = found
        access = next(a for a, kind in _ACCESSES.items() if kind == (point.reads, point.writes))
        change = Change(point.vaddr, access, old, new, writer, eip)
        self._note(DebugStop(StopKind.WATCHPOINT, self._domain.current.id, change=change))

    def _writer(self) -> Writer:
        """Say who has changed a cell since the last instruction began.

        A trap and the block in which its handler begins are two entries, where one instruction
        makes no more than one. A run that ended before the next instruction leaves open which
        one it was: then the instruction's first byte says, or that a handler has been entered.
        """
        cells = self._watchpoints.cells
        entries = cells.entries_since
        if cells.has_stopped and self._cpu.capabilities.exact_stop:
            is_trap = entries > 1
        elif entries == 0 or cells.has_stopped:
            is_trap = entries > 0
        else:
            is_trap = self._is_in_handler() or self._is_interrupt(cells.last_eip)
        return Writer.HYPERVISOR if is_trap else Writer.INSTRUCTION

    def _is_in_handler(self) -> bool:
        vcpu = self._domain.current
        eip = self._cpu.regs[EIP]
        entries = [*vcpu.traps, vcpu.event_callback, vcpu.failsafe_callback]
        return any(entry is not None and entry.address == eip for entry in entries)

    def _is_interrupt(self, eip: int) -> bool:
        try:
            return self._domain.guest_memory.read(eip, 1)[0] == _INT
        except Refused:
            return False

    def _before_call(self, number: int, arguments: Arguments) -> None:
        record = HypercallRecord(number, arguments, None)
        self._note(DebugStop(StopKind.HYPERCALL, self._domain.current.id, hypercall=record))
        self._cpu.stop()

    # -- holding ------------------------------------------------------------------------------

    def _note(self, stop: DebugStop) -> None:
        if self._noted is None:
            self._noted = stop

    def _go_on(self) -> None:
        self.stop = None
        crash, self._kept_crash = self._kept_crash, None
        if crash is not None:
            self._parts.crash(crash)
            self.report()

    def _leave(self) -> None:
        self._is_over = True
        self._domain.held, self._domain.stepping = False, None
        self._parts.forget()

    @contextmanager
    def _registers_of(self, vcpu: int) -> Iterator[None]:
        """Have the engine hold the registers of a vCPU for a moment, of a held domain."""
        self._check_held()
        target, current = self._vcpu(vcpu), self._domain.current
        if not target.has_registers:
            raise Refused(EINVAL, "debug.vcpu-has-not-run", vcpu)
        if target is current:
            yield
            return
        self._parts.make_current(target)
        try:
            yield
        finally:
            self._parts.make_current(current)

    def _vcpu(self, vcpu: int) -> Vcpu:
        if not 0 <= vcpu < len(self._domain.vcpus):
            raise Refused(EINVAL, "control.no-such-vcpu", vcpu)
        return self._domain.vcpus[vcpu]

    def _attached(self) -> Domain:
        self._check_attached()
        return self._domain

    def _check_attached(self) -> None:
        if self._is_over:
            raise Refused(ESRCH, "debug.not-attached", self._domain.domid)

    def _check_held(self) -> None:
        self._check_attached()
        if self.stop is None or self.stop.kind is StopKind.ENDED:
            raise Refused(EBUSY, "debug.not-held", self._domain.domid)
