# SPDX-License-Identifier: GPL-2.0-or-later
"""The debugger's door into a domain, as types only: what ``Control.attach_debugger`` gives.

Apart from ``doors.py``, so that no start of a domain waits for 7 ms of class definitions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xenlite.doors import HypercallRecord, Refusal


class StopKind(Enum):
    """Why a domain under a debugger does not run."""

    ASKED = "asked"
    STEPPED = "stepped"
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    HYPERCALL = "hypercall"
    REFUSAL = "refusal"
    CRASH = "crash"
    ENDED = "ended"


class Writer(Enum):
    """Who has changed what a watchpoint is for."""

    INSTRUCTION = "instruction"
    HYPERVISOR = "hypervisor"
    OUTSIDE = "outside"


class Access(Enum):
    """What a watchpoint stops at: a change, a load, or any load or store."""

    CHANGE = "change"
    READ = "read"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Change:
    """What a watchpoint has seen: ``old`` and ``new`` are the same for a mere access.

    ``eip`` is that of the last instruction before: the one that made it, or in whose trap the
    hypervisor did; where it came from outside, it means nothing.
    """

    vaddr: int
    access: Access
    old: bytes
    new: bytes
    writer: Writer
    eip: int


@dataclass(frozen=True, slots=True)
class DebugStop:
    """Why a domain has stopped, on which vCPU; of what follows, what belongs to the kind.

    A hypercall has not been made, EIP is at its ``int``; a refused one is over. ``reason`` is a
    shutdown's, None for a domain that was destroyed.
    """

    kind: StopKind
    vcpu: int = 0
    change: Change | None = None
    hypercall: HypercallRecord | None = None
    refusal: Refusal | None = None
    crash: str = ""
    reason: int | None = None


@dataclass(frozen=True, slots=True)
class VcpuInfo:
    """One vCPU: what it does, and whether events wait or are held off."""

    vcpu: int
    state: str
    has_registers: bool
    is_current: bool
    upcall_pending: bool
    upcall_masked: bool


@dataclass(frozen=True, slots=True)
class PortInfo:
    """One open event port."""

    port: int
    state: str
    vcpu: int
    remote: int
    remote_port: int
    virq: int
    is_pending: bool
    is_masked: bool


@dataclass(frozen=True, slots=True)
class GrantInfo:
    """One grant entry in use or on offer."""

    ref: int
    flags: int
    to: int
    mfn: int
    mappings: int
    writable_mappings: int


class Debugger(Protocol):
    """One debugger's hold on one domain. Every method raises ``Refused``.

    The domain is held from the start and after each stop, all its vCPUs together, while others go
    on. Its memory and registers show nothing of it. Breakpoints are by virtual address, in every
    address space. Events wait while a single step is made.
    """

    stop: DebugStop | None
    """Why the domain is held; None while it runs."""

    def resume(self) -> None:
        """Let the domain run."""

    def step(self, vcpu: int) -> None:
        """Let one vCPU make one instruction, or the trap that comes of it, and nobody else."""

    def interrupt(self) -> None:
        """Hold the domain."""

    def detach(self) -> None:
        """Let go: the domain runs on as if nobody had been there."""

    def set_breakpoint(self, vaddr: int) -> None:
        """Stop before the instruction at ``vaddr``, in any ring."""

    def clear_breakpoint(self, vaddr: int) -> None:
        """Stop there no more."""

    def set_watchpoint(self, vcpu: int, vaddr: int, size: int, access: Access) -> None:
        """Stop behind what changes or uses these bytes of the vCPU's address space."""

    def clear_watchpoint(self, vaddr: int, size: int, access: Access) -> None:
        """Stop there no more."""

    def break_on_hypercalls(self, numbers: Collection[int]) -> None:
        """Stop before each of these hypercalls is made; the set replaces the last one."""

    def break_on_refusals(self, *, wanted: bool) -> None:
        """Stop behind each hypercall that is refused, or no more."""

    def break_on_crash(self, *, wanted: bool) -> None:
        """Stop where the domain would crash, which it does when it is resumed; on at first."""

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Change general registers, ``eip`` and ``eflags``."""

    def read_fpu(self, vcpu: int) -> bytes:
        """Read x87 and SSE as a 512-byte FXSAVE image."""

    def write_fpu(self, vcpu: int, image: bytes) -> None:
        """Load x87 and SSE from such an image."""

    def vcpus(self) -> list[VcpuInfo]:
        """Tell what each vCPU does."""

    def frame_of(self, pfn: int) -> int | None:
        """Return the mfn that the machine-to-phys table gives this pfn of the domain, if any."""

    def mapped_by(self, mfn: int) -> list[int]:
        """Find the L1 entries that map a frame, by looking at all: their machine addresses."""

    def ports(self) -> list[PortInfo]:
        """List the open event ports."""

    def grants(self) -> list[GrantInfo]:
        """List the grant entries that offer something or are mapped."""

    def hypercalls(self) -> list[HypercallRecord]:
        """Return the last hypercalls, oldest first."""
