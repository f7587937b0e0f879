# SPDX-License-Identifier: GPL-2.0-or-later
"""The two doors into the hypervisor, as types only.

``Link`` is for backends (what Xen gives a driver domain by grant tables and event channels).
``Control`` is for a toolstack (what Xen gives it by domctl). Every call is checked: an object of
either kind belongs to one domid, and acts with that domain's rights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class VcpuContext:
    """The registers a vCPU starts with (public/arch-x86/xen.h, vcpu_guest_context).

    Everything not named here starts as zero; data selectors are ``ss``.
    """

    eip: int
    esp: int
    esi: int
    cs: int
    ss: int
    cr3_mfn: int


class RunState(Enum):
    """What one domain is doing, as ``xl list`` tells it."""

    RUNNING = "r"
    BLOCKED = "b"
    PAUSED = "p"
    SHUTDOWN = "s"
    CRASHED = "c"
    DYING = "d"


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """One domain as its toolstack sees it; page counts in 4 KiB pages."""

    domid: int
    name: str
    state: RunState
    shutdown_reason: int | None
    pages: int
    max_pages: int
    shared_info_mfn: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class HypercallRecord:
    """One remembered hypercall; ``result`` is None while it has not returned."""

    number: int
    arguments: tuple[int, int, int, int, int]
    result: int | None


@dataclass(frozen=True, slots=True)
class CrashRecord:
    """Why and where a domain died: registers by name, in hexadecimal when shown."""

    domid: int
    vcpu: int
    rule: str
    detail: str
    registers: dict[str, int]
    hypercalls: tuple[HypercallRecord, ...]


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
class TableEntry:
    """One step of a page walk: the level, where the entry lies, and what it says."""

    level: int
    maddr: int
    entry: int


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """One frame of the machine: whose, what it is, and the L1 entries that map it."""

    mfn: int
    owner: int
    kind: str
    type_count: int
    refs: int
    is_pinned: bool
    pfn: int
    mapped_by: tuple[int, ...]


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


class GrantMapping(Protocol):
    """One granted page, mapped by a backend. Offsets and sizes in bytes, within the page."""

    domid: int
    writable: bool

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out of the page."""

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the page; translated code of the guest stays right."""

    def read_u32(self, offset: int) -> int:
        """Read one aligned little-endian word (a ring index)."""

    def write_u32(self, offset: int, value: int) -> None:
        """Write one aligned little-endian word (a ring index)."""


class Link(Protocol):
    """What a backend may do, as domain ``domid``. Every method raises ``Refused``."""

    domid: int

    def map_grant(self, granter: int, ref: int, *, writable: bool) -> GrantMapping:
        """Map the page that ``granter`` offers to this domain under ``ref``."""

    def unmap_grant(self, mapping: GrantMapping) -> None:
        """Give the page back; the mapping may not be used again."""

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Join ``remote``'s unbound port; return the local port."""

    def close(self, port: int) -> None:
        """Close a local port."""

    def notify(self, port: int) -> None:
        """Send an event through a local port."""

    def on_event(self, port: int, handler: Callable[[], None]) -> None:
        """Run ``handler`` outside any trap each time ``port`` has become pending."""

    def defer(self, work: Callable[[], None]) -> None:
        """Run ``work`` once, soon, outside any trap. Callable from any thread."""


class Control(Protocol):
    """What a toolstack may do. Every method raises ``Refused``."""

    def create_domain(
        self, name: str, *, max_pages: int, max_vcpus: int, domid: int | None = None
    ) -> int:
        """Make an empty, paused domain; return its domid."""

    def destroy_domain(self, domid: int) -> None:
        """Take a domain apart, whatever its state; its frames come back scrubbed."""

    def info(self, domid: int) -> DomainInfo:
        """Tell the state of one domain."""

    def domains(self) -> list[int]:
        """List the domids that exist, Dom0 included."""

    def ended(self) -> list[int]:
        """List the domids of domains that have shut down or crashed and still exist."""

    def set_scheduling(self, domid: int, *, weight: int, cap: int) -> None:
        """Set a domain's share of the CPU, and the most it may use in percent (0: no such)."""

    def set_max_port(self, domid: int, port: int) -> None:
        """Let a domain have event channels up to number ``port``."""

    def populate(self, domid: int, pages: int) -> list[int]:
        """Give a domain frames; return their mfns in pfn order, scattered on purpose."""

    def enable_assist(self, domid: int, assist: int) -> None:
        """Turn on ``vm_assist`` type ``assist`` before the kernel's first instruction."""

    def set_m2p(self, domid: int, mfn: int, pfn: int) -> None:
        """Record which pfn the domain calls ``mfn``."""

    def read_frame(self, domid: int, mfn: int, offset: int, size: int) -> bytes:
        """Read inside one frame of the domain; sizes in bytes."""

    def write_frame(self, domid: int, mfn: int, offset: int, data: bytes) -> None:
        """Write inside one frame of the domain that is not a page or descriptor table."""

    def pin_l3(self, domid: int, mfn: int) -> None:
        """Validate and pin a top-level page table, as the guest's own pin would."""

    def set_vcpu_context(self, domid: int, vcpu: int, context: VcpuContext) -> None:
        """Load the start registers of a vCPU that has never run, and bring it up."""

    def registers(self, domid: int, vcpu: int) -> dict[str, int]:
        """Read the registers of a vCPU that is not running."""

    def translate(self, domid: int, vcpu: int, vaddr: int) -> int | None:
        """Walk the vCPU's page tables: the machine address, or None where not present."""

    def read_virtual(self, domid: int, vcpu: int, vaddr: int, size: int) -> bytes:
        """Read guest memory as far as it is mapped (shorter than ``size`` where it ends)."""

    def write_virtual(self, domid: int, vcpu: int, vaddr: int, data: bytes) -> None:
        """Write guest memory, read-only pages too; all of it or nothing.

        Refused where a page is not mapped, not the domain's, or a page or descriptor table.
        """

    def attach_debugger(self, domid: int, on_stop: Callable[[DebugStop], None]) -> Debugger:
        """Hold a domain for a debugger, the only one; ``on_stop`` hears of each stop.

        It is called between two turns, and may call ``Control``.
        """

    def vcpus(self, domid: int) -> list[VcpuInfo]:
        """Tell what each vCPU does."""

    def walk(self, domid: int, vcpu: int, vaddr: int) -> list[TableEntry]:
        """Follow the vCPU's page tables as far as they lead, from the top."""

    def frame_of(self, domid: int, pfn: int) -> int | None:
        """Return the mfn that the machine-to-phys table gives this pfn of the domain, if any."""

    def frame(self, mfn: int) -> FrameInfo:
        """Tell all about one frame; finds who maps it by looking at every L1 table."""

    def ports(self, domid: int) -> list[PortInfo]:
        """List the open event ports."""

    def grants(self, domid: int) -> list[GrantInfo]:
        """List the grant entries that offer something or are mapped."""

    def hypercalls(self, domid: int) -> list[HypercallRecord]:
        """Return the last hypercalls, oldest first."""

    def alloc_unbound(self, domid: int, remote: int) -> int:
        """Allocate a port of ``domid`` that ``remote`` may bind; return it."""

    def seed_grant(self, domid: int, ref: int, mfn: int, to: int) -> None:
        """Write grant entry ``ref``: ``to`` may map ``mfn`` of ``domid`` read-write."""

    def pause(self, domid: int) -> None:
        """Stop scheduling a domain."""

    def unpause(self, domid: int) -> None:
        """Let a domain run."""

    def crash_record(self, domid: int) -> CrashRecord | None:
        """Tell why a domain crashed, if it did."""

    def audit(self) -> list[str]:
        """Recompute every count and mapping from scratch; return what differs."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused hypercall, for whoever explains it to the guest's author.

    ``eip`` follows the ``int``; ``caller`` is the word on top of the guest's stack, which is the
    return address where the call went through the hypercall page (None where unreadable).
    """

    domid: int
    vcpu: int
    number: int
    arguments: tuple[int, int, int, int, int]
    errno: int
    rule: str
    argument: object
    eip: int
    caller: int | None
