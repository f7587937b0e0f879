# SPDX-License-Identifier: GPL-2.0-or-later
"""One virtual CPU: what the guest registered, and what it is doing.

The CPU's own registers live in the domain's engine while the vCPU is current there, and in
``context`` otherwise.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.abi.x86_32p import (
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    VcpuRunstateInfo,
)
from xenlite.core.timers import VcpuTimers

if TYPE_CHECKING:
    from xenlite.abi.x86_32p import VcpuGuestContext
    from xenlite.core.descriptors import Segments
    from xenlite.core.domain import Domain
    from xenlite.machine.tsc import TimeSample


DR6_RESET: Final = 0xFFFF0FF0
DR7_RESET: Final = 0x400


class VcpuState(Enum):
    """Whether the scheduler may enter this vCPU."""

    DOWN = "down"
    RUNNABLE = "runnable"
    BLOCKED = "blocked"


RUNSTATES: Final = {
    VcpuState.RUNNABLE: RUNSTATE_runnable,
    VcpuState.BLOCKED: RUNSTATE_blocked,
    VcpuState.DOWN: RUNSTATE_offline,
}
"""What a vCPU that isn't running tells its guest."""


class TrapGate(NamedTuple):
    """One registered trap handler (public/arch-x86/xen.h, trap_info)."""

    dpl: int
    cs: int
    address: int
    masks_events: bool
    pushes_address: bool  # xenlite's addition, see docs/architecture.md


class Callback(NamedTuple):
    """A code address in ring 1 (public/callback.h); ``masks_events`` for failsafe."""

    cs: int
    address: int
    masks_events: bool = False


class Runstate:
    """How a vCPU has spent its time, in nanoseconds (public/vcpu.h, vcpu_runstate_info).

    ``area`` is where the guest wants to find it, by virtual address; 0 for nowhere.
    """

    __slots__ = ("area", "since_ns", "state", "times_ns")

    def __init__(self, now_ns: int) -> None:
        self.state = RUNSTATE_offline
        self.since_ns = now_ns
        self.times_ns = [0, 0, 0, 0]
        self.area = 0

    def enter(self, state: int, now_ns: int) -> None:
        """Go on in another state from now."""
        self.times_ns[self.state] += now_ns - self.since_ns
        self.state = state
        self.since_ns = now_ns

    def pack(self, now_ns: int) -> bytes:
        """Return the structure as it is now, the time in the current state included."""
        times = list(self.times_ns)
        times[self.state] += now_ns - self.since_ns
        return VcpuRunstateInfo(self.state, self.since_ns, tuple(times)).pack()


class Vcpu:
    """State of one vCPU; created DOWN."""

    __slots__ = (
        "concealed_iopl",
        "context",
        "cr3_mfn",
        "ctrl_cr4",
        "debug_registers",
        "domain",
        "entries",
        "event_callback",
        "failsafe_callback",
        "gdt_entries",
        "gdt_frames",
        "has_yielded",
        "id",
        "info_maddr",
        "info_mfn",
        "io_bitmap",
        "io_ports",
        "iopl",
        "is_initialised",
        "kernel_sp",
        "kernel_ss",
        "ldt_base",
        "ldt_entries",
        "ldt_frames",
        "mask_at",
        "nmi_pending",
        "outer_selectors",
        "runstate",
        "segments",
        "selectors_stale",
        "start",
        "state",
        "sysenter_callback",
        "time_area",
        "time_sample",
        "timers",
        "traps",
        "upcall_index",
        "was_blocked",
        "was_woken",
    )

    def __init__(self, domain: Domain, vcpu_id: int, info_maddr: int) -> None:
        self.domain = domain
        self.id = vcpu_id
        self.state = VcpuState.DOWN
        self.context: bytearray | None = None  # the CPU's state while another vCPU is current
        self.is_initialised = False
        self.start: VcpuGuestContext | None = None  # registers to load when it first runs
        self.info_mfn: int | None = None  # the guest's frame that holds vcpu_info, if it moved
        self.timers = VcpuTimers(self)
        self.nmi_pending = False  # it enters the handler of vector 2 before anything else
        self.time_area = 0  # where the guest wants a copy of its time, by virtual address
        self.time_sample: TimeSample | None = None  # what its time words were last made of
        self.was_blocked = False  # when it was taken down: it sleeps on when it comes up
        self.was_woken = False  # since it last ran: the scheduler lets it go first
        self.has_yielded = False  # since it last ran: everybody else goes first
        self.runstate = Runstate(domain.machine.clock.monotonic_ns())
        self.info_maddr = info_maddr
        # evtchn_upcall_pending and _mask are neighbouring bytes: one 16-bit read sees both.
        self.upcall_index = info_maddr >> 1
        self.mask_at = info_maddr + VCPU_INFO_EVTCHN_UPCALL_MASK
        self.kernel_ss = 0
        self.kernel_sp = 0
        self.traps: list[TrapGate | None] = [None] * 256
        self.event_callback: Callback | None = None
        self.failsafe_callback: Callback | None = None
        self.sysenter_callback: Callback | None = None
        self.cr3_mfn: int | None = None  # the L3 frame that this vCPU holds a type reference on
        self.ctrl_cr4 = 0
        self.gdt_frames: tuple[int, ...] = ()
        self.gdt_entries = 0
        self.ldt_base = 0
        self.ldt_entries = 0
        self.ldt_frames: dict[int, int] = {}  # LDT page number -> mfn held as segdesc
        # What loading a pair of selectors does, by cs << 16 | ss; core/descriptors.py keeps it.
        self.segments: dict[int, Segments] = {}
        # The same for the selectors of handlers entered from an outer ring, by cs alone.
        self.entries: dict[int, Segments] = {}
        # ds, es, fs, gs that ring 3 may keep, as they were when it was last entered.
        self.outer_selectors: tuple[int, ...] = ()
        self.selectors_stale = False  # a table has changed since the data selectors were loaded
        # The virtual IOPL at its place in EFLAGS: the first with vm_assist architectural_iopl,
        # when the guest sees it there, the second without. The other is 0.
        self.iopl = 0
        self.concealed_iopl = 0
        self.io_bitmap = 0  # address of the guest's I/O permission bitmap
        self.io_ports = 0  # how many ports it is for
        self.debug_registers = [0, 0, 0, 0, 0, 0, DR6_RESET, DR7_RESET]

    @property
    def io_privilege(self) -> int:
        """Return the virtual IOPL at its place in EFLAGS."""
        return self.iopl | self.concealed_iopl

    def set_io_privilege(self, iopl: int, *, shown: bool) -> None:
        """Set the virtual IOPL, given at its place in EFLAGS; ``shown`` there or concealed."""
        self.iopl, self.concealed_iopl = (iopl, 0) if shown else (0, iopl)

    def move_info(self, maddr: int) -> None:
        """Look for vcpu_info at another machine address from now on."""
        self.info_maddr = maddr
        self.upcall_index = maddr >> 1
        self.mask_at = maddr + VCPU_INFO_EVTCHN_UPCALL_MASK

    @property
    def may_run(self) -> bool:
        """Tell whether the scheduler may enter this vCPU, its domain considered."""
        domain = self.domain
        is_stopped = domain.paused or domain.shutdown_reason is not None
        is_held = domain.held and domain.stepping is not self
        return self.state is VcpuState.RUNNABLE and not is_stopped and not is_held

    @property
    def has_registers(self) -> bool:
        """Tell whether it has registers: not before it has first run, but for the first vCPU."""
        return self.start is None and (self is self.domain.current or self.context is not None)

    def wake(self) -> None:
        """End what ``block`` began; nothing otherwise. One that is down stays so."""
        self.was_blocked = False
        if self.state is VcpuState.BLOCKED:
            self.was_woken = True
            self._enter(VcpuState.RUNNABLE)

    def block(self) -> None:
        """Sleep until ``wake``."""
        self.state = VcpuState.BLOCKED

    def take_down(self) -> None:
        """Stop until ``bring_up``, wherever it is."""
        self.was_blocked = self.state is VcpuState.BLOCKED
        self._enter(VcpuState.DOWN)

    def bring_up(self) -> None:
        """Go on where ``take_down`` came: asleep, if it was and nothing has woken it since."""
        if self.state is VcpuState.DOWN:
            self._enter(VcpuState.BLOCKED if self.was_blocked else VcpuState.RUNNABLE)

    def _enter(self, state: VcpuState) -> None:
        self.state = state
        self.runstate.enter(RUNSTATES[state], self.domain.machine.clock.monotonic_ns())
