# SPDX-License-Identifier: GPL-2.0-or-later
"""Look into a domain for somebody who debugs it: nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
)
from xenlite.debug_doors import FrameInfo, GrantInfo, PortInfo, TableEntry, VcpuInfo
from xenlite.doors import HypercallRecord
from xenlite.errors import Refused
from xenlite.machine.frames import FrameType
from xenlite.machine.memory import PAGE_SHIFT
from xenlite.machine.x86_32p import (
    ENTRIES,
    INDEX_MASK,
    L1_SHIFT,
    L2_SHIFT,
    L3_SHIFT,
    PTE_ADDRESS,
    PTE_P,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu
    from xenlite.machine.machine import Machine

_LEVELS: Final = ((3, L3_SHIFT), (2, L2_SHIFT), (1, L1_SHIFT))


def vcpus(domain: Domain) -> list[VcpuInfo]:
    """Tell what each vCPU does."""
    m8 = domain.machine.memory.m8
    return [
        VcpuInfo(
            vcpu=vcpu.id,
            state=vcpu.state.value,
            has_registers=vcpu.is_initialised and vcpu.has_registers,
            is_current=vcpu is domain.current,
            upcall_pending=bool(m8[vcpu.mask_at - 1]),
            upcall_masked=bool(m8[vcpu.mask_at]),
        )
        for vcpu in domain.vcpus
    ]


def walk(vcpu: Vcpu, vaddr: int) -> list[TableEntry]:
    """Follow the vCPU's page tables as far as they lead, from the top."""
    memory = vcpu.domain.machine.memory
    steps: list[TableEntry] = []
    if vcpu.cr3_mfn is None:
        return steps
    at = vcpu.cr3_mfn << PAGE_SHIFT
    for level, shift in _LEVELS:
        maddr = at + (vaddr >> shift & INDEX_MASK) * 8
        entry = memory.m64[maddr >> 3]
        steps.append(TableEntry(level, maddr, entry))
        at = entry & PTE_ADDRESS
        if not entry & PTE_P or at >= memory.size_bytes:
            break
    return steps


def frame_of(domain: Domain, pfn: int) -> int | None:
    """Return the mfn that the machine-to-phys table gives this pfn of the domain, if any."""
    frames = domain.machine.frames
    return next((mfn for mfn in frames.pages_of(domain.domid) if frames.m2p[mfn] == pfn), None)


def frame(machine: Machine, mfn: int) -> FrameInfo:
    """Tell all about one frame; finds who maps it by looking at every L1 table."""
    frames, m64 = machine.frames, machine.memory.m64
    if not 0 <= mfn < frames.nr_frames:
        raise Refused(EINVAL, "frames.no-such-frame", mfn)
    mapped_by = [
        slot * 8
        for table in _frames_of_kind(frames.kind, FrameType.L1)
        for slot, entry in enumerate(m64[table * ENTRIES : (table + 1) * ENTRIES], table * ENTRIES)
        if entry & PTE_P and (entry & PTE_ADDRESS) >> PAGE_SHIFT == mfn
    ]
    return FrameInfo(
        mfn=mfn,
        owner=frames.owner[mfn],
        kind=FrameType(frames.kind[mfn]).name.lower(),
        type_count=frames.type_count[mfn],
        refs=frames.refs[mfn],
        is_pinned=mfn in frames.pinned,
        pfn=frames.m2p[mfn],
        mapped_by=tuple(mapped_by),
    )


def _frames_of_kind(kinds: bytearray, kind: FrameType) -> Iterator[int]:
    mfn = kinds.find(kind)
    while mfn >= 0:
        yield mfn
        mfn = kinds.find(kind, mfn + 1)


def ports(domain: Domain) -> list[PortInfo]:
    """List the open event ports."""
    m8 = domain.machine.memory.m8
    shared = domain.shared_info_mfn << PAGE_SHIFT
    found = []
    for port in range(domain.events.max_port + 1):
        channel = domain.events.channel(port)
        if channel is None:
            continue
        pending, masked = (
            bool(m8[shared + bitmap + (port >> 3)] >> (port & 7) & 1)
            for bitmap in (SHARED_INFO_EVTCHN_PENDING, SHARED_INFO_EVTCHN_MASK)
        )
        found.append(
            PortInfo(
                port=port,
                state=channel.state.name.lower(),
                vcpu=channel.vcpu,
                remote=channel.remote,
                remote_port=channel.remote_port,
                virq=channel.virq,
                is_pending=pending,
                is_masked=masked,
            )
        )
    return found


def grants(domain: Domain) -> list[GrantInfo]:
    """List the grant entries that offer something or are mapped."""
    return [GrantInfo(*entry) for entry in domain.grants.entries()]


def hypercalls(domain: Domain) -> list[HypercallRecord]:
    """Return the last hypercalls, oldest first."""
    return [HypercallRecord(*record) for record in domain.engine.trail.newest()]
