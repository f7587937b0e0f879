# SPDX-License-Identifier: GPL-2.0-or-later
"""Look into a domain for somebody who debugs it: nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import SHARED_INFO_EVTCHN_MASK, SHARED_INFO_EVTCHN_PENDING
from xenlite.debug_doors import GrantInfo, PortInfo, VcpuInfo
from xenlite.doors import HypercallRecord
from xenlite.machine.frames import FrameType
from xenlite.machine.memory import PAGE_SHIFT
from xenlite.machine.x86_32p import ENTRIES, PTE_ADDRESS, PTE_P

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlite.core.domain import Domain
    from xenlite.machine.machine import Machine


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


def frame_of(domain: Domain, pfn: int) -> int | None:
    """Return the mfn that the machine-to-phys table gives this pfn of the domain, if any."""
    frames = domain.machine.frames
    return next((mfn for mfn in frames.pages_of(domain.domid) if frames.m2p[mfn] == pfn), None)


def mapped_by(machine: Machine, mfn: int) -> list[int]:
    """Find the L1 entries that map a frame, by looking at all: their machine addresses."""
    m64 = machine.memory.m64
    return [
        slot * 8
        for table in _frames_of_kind(machine.frames.kind, FrameType.L1)
        for slot, entry in enumerate(m64[table * ENTRIES : (table + 1) * ENTRIES], table * ENTRIES)
        if entry & PTE_P and (entry & PTE_ADDRESS) >> PAGE_SHIFT == mfn
    ]


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
