# SPDX-License-Identifier: GPL-2.0-or-later
"""The toolstack's door: what Xen gives Dom0 by domctl (``doors.Control``).

It acts on paused domains with Dom0's rights, through the same validation that guests meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_INVALID,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    ESRCH,
    EVTCHN_2L_NR_CHANNELS,
    VMASST_TYPE_NAMES,
    RUNSTATE_running,
)
from xenlite.core.audit import audit
from xenlite.core.domain import Domain
from xenlite.core.hole import HOLE_START
from xenlite.core.paging import WORK_BUDGET, Preempted
from xenlite.core.scheduler import MAX_WEIGHT
from xenlite.core.vcpu import VcpuState
from xenlite.doors import (
    CrashRecord,
    DomainInfo,
    FrameInfo,
    MappedRange,
    PageStep,
    RunState,
    VcpuContext,
)
from xenlite.errors import Refused
from xenlite.machine.frames import FrameType
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import EIP, ESI, ESP
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L1_SHIFT,
    L2_SHIFT,
    L3_SHIFT,
    PTE_ADDRESS,
    PTE_NX,
    PTE_P,
    PTE_RW,
    PTE_US,
)
from xenlite.registers import read_registers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xenlite.core.vcpu import Vcpu
    from xenlite.debug_doors import DebugStop
    from xenlite.debugger import DomainDebugger
    from xenlite.hypervisor import Hypervisor


_L3_LEVEL: Final = 3
_SHIFT_OF_LEVEL: Final = {3: L3_SHIFT, 2: L2_SHIFT, 1: L1_SHIFT}


class ControlDoor:
    """Implement ``doors.Control`` over one hypervisor."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._frames = hypervisor.machine.frames
        self._memory = hypervisor.machine.memory

    # -- domains ------------------------------------------------------------------------------

    def create_domain(
        self, name: str, *, max_pages: int, max_vcpus: int, domid: int | None = None
    ) -> int:
        """Make an empty, paused domain; return its domid."""
        domains = self._hypervisor.domains
        if domid is None:
            domid = self._hypervisor.next_domid()
        elif domid in domains or self._frames.is_owner(domid):  # a dead one's, still mapped
            raise Refused(EEXIST, "control.domid-taken", domid)
        self._hypervisor.add_domain(domid, name, max_pages=max_pages, max_vcpus=max_vcpus)
        return domid

    def destroy_domain(self, domid: int) -> None:
        """Take a domain apart, whatever its state; its frames come back scrubbed."""
        self._hypervisor.remove_domain(self._guest(domid))

    def info(self, domid: int) -> DomainInfo:
        """Tell the state of one domain."""
        domain = self._domain(domid)
        return DomainInfo(
            domid=domid,
            name=domain.name,
            state=_run_state(domain, has_crashed=domid in self._hypervisor.crashes),
            shutdown_reason=domain.shutdown_reason,
            pages=len(self._frames.pages_of(domid)),
            max_pages=domain.max_pages,
            shared_info_mfn=domain.shared_info_mfn,
            vcpus=len(domain.vcpus),
            cpu_ns=sum(vcpu.runstate.times_ns[RUNSTATE_running] for vcpu in domain.vcpus),
        )

    def domains(self) -> list[int]:
        """List the domids that exist, Dom0 included."""
        return sorted(self._hypervisor.domains)

    def pause(self, domid: int) -> None:
        """Stop scheduling a domain."""
        self._guest(domid).paused = True

    def unpause(self, domid: int) -> None:
        """Let a domain run."""
        self._guest(domid).paused = False

    def ended(self) -> list[int]:
        """List the domids of domains that have shut down or crashed and still exist."""
        domains = self._hypervisor.domains.values()
        return [domain.domid for domain in domains if domain.shutdown_reason is not None]

    def set_scheduling(self, domid: int, *, weight: int, cap: int) -> None:
        """Set a domain's share of the CPU, and the most it may use in percent (0: no such)."""
        domain = self._guest(domid)
        if not 1 <= weight <= MAX_WEIGHT:
            raise Refused(EINVAL, "control.weight", weight)
        if not 0 <= cap <= 100 * len(domain.vcpus):
            raise Refused(EINVAL, "control.cap", cap)
        self._hypervisor.scheduler.set(domid, weight, cap)

    def set_max_port(self, domid: int, port: int) -> None:
        """Let a domain have event channels up to number ``port``."""
        if not 1 <= port < EVTCHN_2L_NR_CHANNELS:
            raise Refused(EINVAL, "control.max-port", port)
        self._guest(domid).events.max_port = port

    def enable_assist(self, domid: int, assist: int) -> None:
        """Turn on ``vm_assist`` type ``assist`` before the kernel's first instruction."""
        if assist not in VMASST_TYPE_NAMES:
            raise Refused(EINVAL, "control.unknown-assist", assist)
        self._guest(domid).assists |= 1 << assist

    # -- memory -------------------------------------------------------------------------------

    def populate(self, domid: int, pages: int) -> list[int]:
        """Give a domain frames; return their mfns in pfn order, scattered on purpose."""
        domain = self._guest(domid)
        if len(self._frames.pages_of(domid)) + pages > domain.max_pages:
            raise Refused(ENOMEM, "memory.over-maximum", pages)
        return self._frames.allocate(domid, pages)

    def set_m2p(self, domid: int, mfns: Sequence[int]) -> None:
        """Record that the domain calls these frames by the pfns from 0 on."""
        pages = self._frames.pages_of(self._guest(domid).domid)
        for mfn in mfns:
            if mfn not in pages:
                raise Refused(EINVAL, "frames.not-owned", mfn)
        m2p = self._frames.m2p
        for pfn, mfn in enumerate(mfns):
            m2p[mfn] = pfn

    def read_frame(self, domid: int, mfn: int, offset: int, size: int) -> bytes:
        """Read inside one frame of the domain; sizes in bytes."""
        self._check_owned(domid, mfn)
        _check_within_page(offset, size)
        return self._memory.read((mfn << PAGE_SHIFT) + offset, size)

    def write_frame(self, domid: int, mfn: int, offset: int, data: bytes) -> None:
        """Write inside one frame of the domain that is not a page or descriptor table."""
        _check_within_page(offset, len(data))
        self._frames.get_writable(mfn, domid)
        self._memory.write((mfn << PAGE_SHIFT) + offset, data)
        self._frames.put_writable(mfn)

    def pin_l3(self, domid: int, mfn: int) -> None:
        """Validate and pin a top-level page table, as the guest's own pin would."""
        paging = self._guest(domid).paging
        while True:
            paging.work_left = WORK_BUDGET
            try:
                paging.pin(mfn, FrameType.L3)
                break
            except Preempted:
                continue
        while not paging.drain():
            paging.work_left = WORK_BUDGET

    # -- vCPUs --------------------------------------------------------------------------------

    def set_vcpu_context(self, domid: int, vcpu: int, context: VcpuContext) -> None:
        """Load the start registers of a vCPU that has never run, and bring it up."""
        domain = self._guest(domid)
        target = domain.vcpus[vcpu]
        if target is not domain.current:
            raise Refused(EINVAL, "control.vcpu-not-current", vcpu)
        if target.state is not VcpuState.DOWN:
            raise Refused(EBUSY, "control.vcpu-is-up", vcpu)
        domain.paging.take_baseptr(context.cr3_mfn)
        target.cr3_mfn = context.cr3_mfn
        domain.paging.forget_walks()
        target.kernel_ss, target.kernel_sp = context.ss, context.esp
        domain.descriptors.load(context.cs, context.ss)
        regs = domain.engine.regs
        regs[EIP], regs[ESP], regs[ESI] = context.eip, context.esp, context.esi
        domain.engine.load_cr3(context.cr3_mfn << PAGE_SHIFT)
        target.is_initialised = True
        target.state = VcpuState.RUNNABLE

    def registers(self, domid: int, vcpu: int) -> dict[str, int]:
        """Read the registers of a vCPU that is not running."""
        return read_registers(self._vcpu(domid, vcpu))

    def translate(self, domid: int, vcpu: int, vaddr: int) -> int | None:
        """Walk the vCPU's page tables: the machine address, or None where not present."""
        steps = self.page_walk(domid, vcpu, vaddr)
        mfn = steps[-1].mfn if steps else None
        return None if mfn is None else mfn << PAGE_SHIFT | vaddr & (PAGE_SIZE - 1)

    def read_virtual(self, domid: int, vcpu: int, vaddr: int, size: int) -> bytes:
        """Read guest memory as far as it is mapped (shorter than ``size`` where it ends)."""
        out = b""
        while len(out) < size:
            at = (vaddr + len(out)) & 0xFFFFFFFF
            maddr = self.translate(domid, vcpu, at)
            if maddr is None:
                break
            piece = min(PAGE_SIZE - (at & (PAGE_SIZE - 1)), size - len(out))
            out += self._memory.read(maddr, piece)
        return out

    def page_walk(self, domid: int, vcpu: int, vaddr: int) -> list[PageStep]:
        """Follow the vCPU's page tables to an address, as far as they are present."""
        table = self._vcpu(domid, vcpu).cr3_mfn
        steps: list[PageStep] = []
        for level, shift in _SHIFT_OF_LEVEL.items():
            if table is None:
                break
            index = vaddr >> shift & INDEX_MASK
            slot = table * ENTRIES + index
            entry = self._memory.m64[slot]
            table = (entry & PTE_ADDRESS) >> PAGE_SHIFT if entry & PTE_P else None
            steps.append(
                PageStep(
                    level,
                    index,
                    slot * 8,
                    entry,
                    table,
                    # An L3 entry of PAE has no rights: it takes none away.
                    writable=level == _L3_LEVEL or bool(entry & PTE_RW),
                    user=level == _L3_LEVEL or bool(entry & PTE_US),
                    executable=not entry & PTE_NX,
                )
            )
        return steps

    def mapped(self, domid: int, vcpu: int) -> Iterator[MappedRange]:
        """Yield what the vCPU's page tables map below the hypervisor's hole, in order."""
        found: MappedRange | None = None
        vaddr = 0
        while vaddr < HOLE_START and (steps := self.page_walk(domid, vcpu, vaddr)):
            last = steps[-1]
            size = 1 << _SHIFT_OF_LEVEL[last.level]
            if last.mfn is not None:
                writable = all(step.writable for step in steps)
                executable = all(step.executable for step in steps)
                page = MappedRange(vaddr, size, writable, executable)
                if found is not None and _follows(found, page):
                    found = replace(found, size=found.size + size)
                else:
                    if found is not None:
                        yield found
                    found = page
            vaddr = (vaddr | (size - 1)) + 1
        if found is not None:
            yield found

    def frame(self, mfn: int) -> FrameInfo:
        """Tell what a frame is used as."""
        frames = self._frames
        if not 0 <= mfn < frames.nr_frames:
            raise Refused(EINVAL, "control.no-such-frame", mfn)
        owner = frames.owner[mfn]
        return FrameInfo(
            owner=None if owner == DOMID_INVALID else owner,
            pfn=frames.m2p[mfn],
            type=FrameType(frames.kind[mfn]).name.lower(),
            type_count=frames.type_count[mfn],
            references=frames.refs[mfn],
            is_pinned=mfn in frames.pinned,
        )

    def write_virtual(self, domid: int, vcpu: int, vaddr: int, data: bytes) -> None:
        """Write guest memory, read-only pages too; all of it or nothing.

        Refused where a page is not mapped, not the domain's, or a page or descriptor table.
        """
        pieces: list[tuple[int, bytes]] = []
        done = 0
        while done < len(data):
            at = (vaddr + done) & 0xFFFFFFFF
            maddr = self.translate(domid, vcpu, at)
            if maddr is None:
                raise Refused(EFAULT, "control.not-mapped", at)
            self._frames.get_writable(maddr >> PAGE_SHIFT, domid)
            self._frames.put_writable(maddr >> PAGE_SHIFT)
            size = PAGE_SIZE - (at & (PAGE_SIZE - 1))
            pieces.append((maddr, data[done : done + size]))
            done += size
        for maddr, piece in pieces:
            self._memory.write(maddr, piece)
        self._hypervisor.wrote_for_debugger(domid)

    # -- ports and grants ---------------------------------------------------------------------

    def alloc_unbound(self, domid: int, remote: int) -> int:
        """Allocate a port of ``domid`` that ``remote`` may bind; return it."""
        return self._guest(domid).events.alloc_unbound(remote)

    def seed_grant(self, domid: int, ref: int, mfn: int, to: int) -> None:
        """Write grant entry ``ref``: ``to`` may map ``mfn`` of ``domid`` read-write."""
        self._check_owned(domid, mfn)
        self._guest(domid).grants.seed(ref, to, mfn)

    # -- debugging ----------------------------------------------------------------------------

    def attach_debugger(self, domid: int, on_stop: Callable[[DebugStop], None]) -> DomainDebugger:
        """Hold a domain for a debugger, the only one; ``on_stop`` hears of each stop."""
        return self._hypervisor.attach_debugger(self._guest(domid), on_stop)

    # -- looking ------------------------------------------------------------------------------

    def crash_record(self, domid: int) -> CrashRecord | None:
        """Tell why a domain crashed, if it did."""
        return self._hypervisor.crashes.get(self._domain(domid).domid)

    def record(self, size_bytes: int) -> None:
        """Record the traps of domains made from now on, in a buffer of so many bytes."""
        if self._hypervisor.recorder is not None:
            raise Refused(EBUSY, "control.records-already", size_bytes)
        self._hypervisor.record(size_bytes)

    def recorded(self) -> tuple[bytes, int]:
        """Take the events since the last time (``trace_format.py``), and how many were lost."""
        recorder = self._hypervisor.recorder
        return (b"", 0) if recorder is None else recorder.take()

    def audit(self) -> list[str]:
        """Recompute every count and mapping from scratch; return what differs."""
        return audit(self._hypervisor.machine, self._hypervisor.domains.values())

    # -- checks -------------------------------------------------------------------------------

    def _domain(self, domid: int) -> Domain:
        domain = self._hypervisor.domains.get(domid)
        if domain is None:
            raise Refused(ESRCH, "control.no-such-domain", domid)
        return domain

    def _guest(self, domid: int) -> Domain:
        if domid == 0:
            raise Refused(EINVAL, "control.not-dom0", domid)
        return self._domain(domid)

    def _vcpu(self, domid: int, vcpu: int) -> Vcpu:
        domain = self._guest(domid)
        if not 0 <= vcpu < len(domain.vcpus):
            raise Refused(EINVAL, "control.no-such-vcpu", vcpu)
        return domain.vcpus[vcpu]

    def _check_owned(self, domid: int, mfn: int) -> None:
        if not self._frames.is_owned(mfn, self._guest(domid).domid):
            raise Refused(EINVAL, "frames.not-owned", mfn)


def _follows(before: MappedRange, after: MappedRange) -> bool:
    return (before.vaddr + before.size, before.writable, before.executable) == (
        after.vaddr,
        after.writable,
        after.executable,
    )


def _check_within_page(offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > PAGE_SIZE:
        raise Refused(EINVAL, "control.outside-frame", offset)


def _run_state(domain: Domain, *, has_crashed: bool) -> RunState:
    if domain.dying:
        return RunState.DYING
    if has_crashed:
        return RunState.CRASHED
    if domain.shutdown_reason is not None:
        return RunState.SHUTDOWN
    if domain.paused or domain.held:
        return RunState.PAUSED
    if all(vcpu.state is not VcpuState.RUNNABLE for vcpu in domain.vcpus):
        return RunState.BLOCKED
    return RunState.RUNNING
