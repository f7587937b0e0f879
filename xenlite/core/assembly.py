# SPDX-License-Identifier: GPL-2.0-or-later
"""Put a domain together from its parts, and take it apart again.

The order matters: each part may use those before it, and goes before them at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.core.descriptors import Descriptors
from xenlite.core.domain import Domain
from xenlite.core.evtchn import EventChannels
from xenlite.core.grant import GrantTable
from xenlite.core.guest_memory import GuestMemory
from xenlite.core.hole import Hole, M2pWindow
from xenlite.core.maptrack import Maptrack
from xenlite.core.paging import WORK_BUDGET, PageTables
from xenlite.machine.tlb import Tlb

if TYPE_CHECKING:
    from xenlite.machine.machine import Machine
    from xenlite.machine.processor import Engine

# What the parts take at once, the hole's tables (less than one for each vCPU) not counted.
_OWN_FRAMES: Final = 6


def assemble(
    machine: Machine,
    m2p: M2pWindow,
    peers: dict[int, Domain],
    engine: Engine,
    *,
    domid: int,
    name: str,
    max_pages: int,
    max_vcpus: int,
) -> Domain:
    """Make an empty, paused domain and enter it into ``peers``.

    Raises Refused(ENOMEM) before anything is made.
    """
    frames = machine.frames
    frames.require(_OWN_FRAMES + max_vcpus)
    shared_info_mfn = frames.allocate_uncounted(domid)
    # The hypervisor writes it as data for ever: it can be freed or become a table only after us.
    frames.get_writable(shared_info_mfn, domid)
    domain = Domain(
        machine,
        peers,
        domid,
        name,
        max_pages=max_pages,
        max_vcpus=max_vcpus,
        shared_info_mfn=shared_info_mfn,
    )
    domain.engine = engine
    domain.tlb = Tlb(engine, frames.stale_tlbs)
    domain.hole = Hole(machine, m2p, domain.tlb, max_vcpus)
    domain.paging = PageTables(domain)
    domain.guest_memory = GuestMemory(domain)
    domain.descriptors = Descriptors(domain)
    domain.events = EventChannels(domain)
    domain.grants = GrantTable(domain)
    domain.maptrack = Maptrack(domain)
    peers[domid] = domain
    return domain


def take_apart(domain: Domain) -> None:
    """Give back everything a domain holds; afterwards it owns nothing and is no peer.

    A frame that a live peer still maps by a grant stays until the peer unmaps it.
    """
    domain.dying = True
    domain.watchdogs.stop_all()
    frames = domain.machine.frames
    for vcpu in domain.vcpus:
        vcpu.timers.stop_all()
        if vcpu.info_mfn is not None:
            frames.put_writable(vcpu.info_mfn)
    domain.events.close_all()
    domain.descriptors.release()
    domain.paging.release()
    while not domain.paging.drain():
        domain.paging.work_left = WORK_BUDGET
    domain.maptrack.release()
    domain.grants.release()
    frames.put_writable(domain.shared_info_mfn)
    frames.drop_allocation(domain.shared_info_mfn)
    for mfn in list(frames.pages_of(domain.domid)):
        frames.drop_allocation(mfn)
    domain.hole.release()
    del domain.peers[domain.domid]
