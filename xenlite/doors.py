# SPDX-License-Identifier: GPL-2.0-or-later
"""The two doors into the hypervisor, as types only.

``Link`` is for backends (what Xen gives a driver domain by grant tables and event channels).
``Control`` is for a toolstack (what Xen gives it by domctl). Every call is checked: an object of
either kind belongs to one domid, and acts with that domain's rights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from xenlite.debug_doors import Debugger, DebugStop


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
    """One domain as its toolstack sees it; page counts in 4 KiB pages.

    ``cpu_ns`` is how long its vCPUs have run, all together.
    """

    domid: int
    name: str
    state: RunState
    shutdown_reason: int | None
    pages: int
    max_pages: int
    shared_info_mfn: int
    vcpus: int
    cpu_ns: int


@dataclass(frozen=True, slots=True)
class HypercallRecord:
    """One remembered hypercall; ``result`` is None while it has not returned."""

    number: int
    arguments: tuple[int, int, int, int, int]
    result: int | None


@dataclass(frozen=True, slots=True)
class TrapRecord:
    """One trap that was not a hypercall: where it came from.

    ``error_code`` and ``cr2`` mean something with the vectors that have them.
    """

    vector: int
    is_software: bool
    ring: int
    eip: int
    error_code: int
    cr2: int


@dataclass(frozen=True, slots=True)
class CrashRecord:
    """Why and where a domain died: registers by name, in hexadecimal when shown."""

    domid: int
    vcpu: int
    rule: str
    detail: str
    registers: dict[str, int]
    hypercalls: tuple[HypercallRecord, ...]
    traps: tuple[TrapRecord, ...]


@dataclass(frozen=True, slots=True)
class PageStep:
    """One entry on the way through page tables, at machine address ``maddr``.

    It leads to ``mfn``, None where it isn't present. The rights are those of this entry alone.
    """

    level: int
    index: int
    maddr: int
    entry: int
    mfn: int | None
    writable: bool
    user: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """What a frame is used as, and how often; ``owner`` is None for nobody.

    ``pfn`` is what the machine-to-phys table says that its owner calls it.
    """

    owner: int | None
    pfn: int
    type: str
    type_count: int
    references: int
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A stretch of an address space with the same rights; sizes in bytes."""

    vaddr: int
    size: int
    writable: bool
    executable: bool


Answer = TypeVar("Answer")


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

    def view(self, offset: int, size: int) -> memoryview:
        """Return the bytes themselves, for I/O; say ``wrote`` after writing into them."""

    def wrote(self) -> None:
        """Keep translated code right after writes through a view. On the main thread."""


class GrantedPages(Protocol):
    """Granted pages of one transfer, pinned together."""

    writable: bool

    def pages(self) -> list[memoryview]:
        """Return the pages themselves, whole; the unpin looks after what is written there."""


class Link(Protocol):
    """What a backend may do, as domain ``domid``. Every method raises ``Refused``."""

    domid: int

    def map_grant(self, granter: int, ref: int, *, writable: bool) -> GrantMapping:
        """Map the page that ``granter`` offers to this domain under ``ref``."""

    def unmap_grant(self, mapping: GrantMapping) -> None:
        """Give the page back; the mapping may not be used again."""

    def with_grants(
        self,
        granter: int,
        refs: Sequence[int],
        use: Callable[[list[memoryview]], Answer],
        *,
        writable: bool,
    ) -> Answer:
        """Have ``use`` read, or write, the pages that ``granter`` offers under ``refs``.

        All are checked, or Refused, before it is called with them; they are whole pages, and good
        during that call alone, in which nothing of a guest runs. Nothing is pinned or mapped.
        """

    def pin_grants(self, granter: int, refs: Sequence[int], *, writable: bool) -> GrantedPages:
        """Pin the pages that ``granter`` offers under ``refs`` for one transfer, all or none."""

    def unpin_grants(self, pages: GrantedPages) -> None:
        """Give them back, on the main thread; they may not be used again."""

    def copy_from_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Copy pieces, of a byte at least, out of the pages that ``granter`` offers under ``refs``.

        One that is refused, or does not lie in its page, comes back empty; the others don't suffer.
        """

    def copy_to_grants(
        self, granter: int, refs: Sequence[int], offsets: Sequence[int], contents: Sequence[bytes]
    ) -> list[int]:
        """Copy into pages that ``granter`` offers; return the indexes of what was refused."""

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Join ``remote``'s unbound port; return the local port."""

    def close(self, port: int) -> None:
        """Close a local port."""

    def notify(self, port: int) -> None:
        """Send an event through a local port."""

    def on_event(self, port: int, handler: Callable[[], None]) -> None:
        """Run ``handler`` outside any trap each time ``port`` has become pending."""

    def defer(self, work: Callable[[], None], *, charge: int | None = None) -> None:
        """Run ``work`` once, soon, outside any trap. Callable from any thread.

        Its time is taken from the share of the domain ``charge``, if there is such.
        """

    def on_end(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Run ``handler`` before this domain is taken apart; return what takes the wish back.

        Afterwards nothing of it may be in use, on any thread.
        """

    def payer(self) -> int | None:
        """Tell at whose expense the work is that is being done; None where it is nobody's."""

    def now_ns(self) -> int:
        """Read the machine's monotonic clock."""

    def call_at(
        self, deadline_ns: int, work: Callable[[], None], *, charge: int | None = None
    ) -> None:
        """Run ``work`` once, outside any trap, when the machine's clock has come so far."""


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

    def set_m2p(self, domid: int, mfns: Sequence[int]) -> None:
        """Record that the domain calls these frames by the pfns from 0 on."""

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

    def page_walk(self, domid: int, vcpu: int, vaddr: int) -> list[PageStep]:
        """Follow the vCPU's page tables to an address, as far as they are present."""

    def mapped(self, domid: int, vcpu: int) -> Iterator[MappedRange]:
        """Yield what the vCPU's page tables map below the hypervisor's hole, in order."""

    def frame(self, mfn: int) -> FrameInfo:
        """Tell what a frame is used as."""

    def write_virtual(self, domid: int, vcpu: int, vaddr: int, data: bytes) -> None:
        """Write guest memory, read-only pages too; all of it or nothing.

        Refused where a page is not mapped, not the domain's, or a page or descriptor table.
        """

    def attach_debugger(self, domid: int, on_stop: Callable[[DebugStop], None]) -> Debugger:
        """Hold a domain for a debugger, the only one; ``on_stop`` hears of each stop.

        It is called between two turns, and may call ``Control``.
        """

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

    def record(self, size_bytes: int) -> None:
        """Record the traps of domains made from now on, in a buffer of so many bytes."""

    def recorded(self) -> tuple[bytes, int]:
        """Take the events since the last time (``trace_format.py``), and how many were lost."""

    def audit(self) -> list[str]:
        """Recompute every count and mapping from scratch; return what differs."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused hypercall, for whoever explains it to the guest's author.

    ``eip`` follows the ``int``; ``caller`` is the word on top of the guest's stack, which is the
    return address where the call went through the hypercall page (None where unreadable).
    ``entry`` is the index of the entry at fault, where the call's arguments name a list.
    """

    domid: int
    vcpu: int
    number: int
    arguments: tuple[int, int, int, int, int]
    errno: int
    rule: str
    argument: object
    entry: int | None
    eip: int
    caller: int | None
