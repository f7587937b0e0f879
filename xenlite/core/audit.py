# SPDX-License-Identifier: GPL-2.0-or-later
"""The definition of "the isolation holds": what must be true, worked out a second time.

Two passes that share nothing with ``paging`` but the facts they check:

- *recount* starts from everything that holds a reference (pins, CR3s, descriptor tables, grants,
  shared_info, work under way) and derives type, type count and reference count of every frame
  from the raw tables; the frame table must say the same;
- *walk* follows every address space through raw memory as the processor would, trusting no type
  and no count, and looks at what can be reached: nothing writable that is a table, nothing
  foreign, nothing of the hypervisor's but the hole.

It changes nothing, and costs about a millisecond per four page tables.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from xenlite.abi.x86_32p import DOMID_INVALID, DOMID_XEN
from xenlite.core.hole import HOLE_SLOT
from xenlite.machine.frames import INVALID_M2P_ENTRY, NONE, WRITABLE, FrameType
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.machine.machine import Machine

# The processor's format, spelled out again: a mistake in the constants that validation uses must
# not be invisible here (Intel SDM 3A, 4.4).
_PRESENT: Final = 0x1
_WRITABLE: Final = 0x2
_RESERVED: Final = {  # bits that an entry of that level may never have
    1: 0x7FF0_0000_0000_0098,  # PWT, PCD, PAT
    2: 0x7FF0_0000_0000_0198,  # PWT, PCD, PSE, G
    3: 0xFFF0_0000_0000_0198,  # and NX
}
_NX: Final = 1 << 63
_MFN: Final = 0xFF_FFFF_FFFF
_TABLE: Final = Struct("<512Q")
_TOP_SLOTS: Final = 4
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_MAY_BE_WRITABLE: Final = (NONE, WRITABLE)
_TABLE_KINDS: Final = frozenset((FrameType.L1, FrameType.L2, FrameType.L2XEN, FrameType.L3))
_ByOwner: TypeAlias = "defaultdict[int, set[int]]"


def audit(machine: Machine, domains: Iterable[Domain]) -> list[str]:
    """Recompute everything that isolation rests on; return what differs, in words.

    ``domains`` must be all of the machine's, Dom0 included. To be called between hypercalls.
    """
    everyone = list(domains)
    by_owner = _frames_by_owner(machine.frames.owner)
    return [
        *_Recount(machine, everyone, by_owner).problems(),
        *_Walk(machine, everyone, by_owner).problems(),
        *_free_frames(machine),
        *(problem for domain in everyone for problem in domain.events.audit()),
    ]


class _Recount:
    """What the frame table ought to say."""

    def __init__(self, machine: Machine, domains: list[Domain], by_owner: _ByOwner) -> None:
        self._frames = machine.frames
        self._memory = machine.memory
        self._domains = domains
        self._by_owner = by_owner
        count = machine.frames.nr_frames
        self._kind = bytearray(count)
        self._type_count = [0] * count
        self._refs = list(machine.frames.allocated)
        self._executable = [0] * count
        self._unread: list[int] = []
        self._problems: list[str] = []
        # By table, entry and frame: how many read-only and how many writable pins are held.
        self._pins: defaultdict[tuple[int, int, int], list[int]] = defaultdict(lambda: [0, 0])
        live = {domain.domid for domain in domains} | {DOMID_XEN}
        self._orphans = [mfn for owner in by_owner.keys() - live for mfn in by_owner[owner]]

    def problems(self) -> list[str]:
        """Return where the frame table and the references disagree."""
        self._check_orphans()
        for domain in self._domains:
            self._count_roots(domain)
        self._compare_pins()
        while self._unread:
            self._count_table(self._unread.pop())
        self._compare()
        self._compare_owners()
        return self._problems

    def _count_roots(self, domain: Domain) -> None:
        who = f"domain {domain.domid}"
        for vcpu in domain.vcpus:
            if vcpu.cr3_mfn is not None:
                self._use(vcpu.cr3_mfn, FrameType.L3, f"CR3 of {who}")
            if vcpu.info_mfn is not None:
                self._use(vcpu.info_mfn, FrameType.WRITABLE, f"a vcpu_info of {who}")
            for mfn in vcpu.gdt_frames:
                self._use(mfn, FrameType.SEGDESC, f"a GDT of {who}")
            for mfn in vcpu.ldt_frames.values():
                self._use(mfn, FrameType.SEGDESC, f"an LDT of {who}")
        # A pin or a deferred reference does not say of which level: here the stored type counts.
        for mfn in self._frames.pinned & self._frames.pages_of(domain.domid):
            self._use_as_stored(mfn, f"a pin of {who}")
        for mfn in (*domain.paging.kept, *domain.paging.deferred):
            self._use_as_stored(mfn, f"unfinished work of {who}")
        self._use(domain.shared_info_mfn, FrameType.WRITABLE, f"shared_info of {who}")
        for mfn in domain.grants.mfns:
            self._use(mfn, FrameType.WRITABLE, f"the grant table of {who}")
        for table, ref, mfn, writable in domain.maptrack.pins():
            self._pins[id(table), ref, mfn][writable] += 1
            if writable:
                self._use(mfn, FrameType.WRITABLE, f"a grant used by {who}")
            else:
                self._refs[mfn] += 1

    def _compare_pins(self) -> None:
        """Each entry in use has the pins that the domains hold of it, and no others."""
        for domain in self._domains:
            table = domain.grants
            for ref, mfn, readers, writers in table.uses():
                held = self._pins.pop((id(table), ref, mfn), [0, 0])
                if held != [readers, writers]:
                    self._problems.append(
                        f"grant {ref} of domain {domain.domid} has pins {readers}, {writers}; "
                        f"held are {held}"
                    )
        live = {id(domain.grants) for domain in self._domains}
        for table_id, ref, mfn in self._pins:
            if table_id in live:
                self._problems.append(f"mfn {mfn:#x} is held by grant {ref}, which is not in use")

    def _check_orphans(self) -> None:
        """Frames of dead domains: all that may hold them is what peers have mapped."""
        frames = self._frames
        for mfn in self._orphans:
            if frames.allocated[mfn] or frames.kind[mfn] not in _MAY_BE_WRITABLE:
                self._problems.append(f"mfn {mfn:#x} outlives its domain {frames.owner[mfn]}")

    def _use_as_stored(self, mfn: int, by: str) -> None:
        kind = FrameType(self._frames.kind[mfn])
        if kind in _TABLE_KINDS:
            self._use(mfn, kind, by)
        else:
            self._problems.append(f"mfn {mfn:#x}, held by {by}, has no table type but {kind.name}")

    def _use(self, mfn: int, kind: FrameType, by: str) -> None:
        if not 0 <= mfn < self._frames.nr_frames:
            self._problems.append(f"mfn {mfn:#x}, named by {by}, does not exist")
            return
        self._refs[mfn] += 1
        self._type_count[mfn] += 1
        before = self._kind[mfn]
        if not before:
            self._kind[mfn] = kind
            if kind in _TABLE_KINDS:
                self._unread.append(mfn)
        elif before != kind:
            self._problems.append(
                f"mfn {mfn:#x} is {kind.name} for {by}, and {FrameType(before).name} too"
            )

    def _count_table(self, mfn: int) -> None:
        kind = FrameType(self._kind[mfn])
        entries = _TABLE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)
        if kind is FrameType.L1:
            self._count_l1(mfn, entries)
            return
        if kind is FrameType.L3:
            children = [FrameType.L2] * 3 + [FrameType.L2XEN]
        else:
            slots = HOLE_SLOT if kind is FrameType.L2XEN else len(entries)
            children = [FrameType.L1] * slots
        for entry, child in zip(entries, children, strict=False):
            if entry & _PRESENT:
                self._use(entry >> PAGE_SHIFT & _MFN, child, f"{kind.name} {mfn:#x}")

    def _count_l1(self, mfn: int, entries: tuple[int, ...]) -> None:
        refs, type_count, kind = self._refs, self._type_count, self._kind
        executable = self._executable
        limit = self._frames.nr_frames
        for entry in entries:
            if entry & _PRESENT:
                target = entry >> PAGE_SHIFT & _MFN
                if target >= limit:
                    self._problems.append(f"L1 {mfn:#x} names mfn {target:#x}, which is no RAM")
                elif not entry & _WRITABLE:
                    refs[target] += 1
                elif kind[target] in _MAY_BE_WRITABLE:
                    kind[target] = WRITABLE
                    refs[target] += 1
                    type_count[target] += 1
                else:
                    self._use(target, FrameType.WRITABLE, f"L1 {mfn:#x}")
                if target < limit and not entry & _NX:
                    executable[target] += 1

    def _compare(self) -> None:
        frames = self._frames
        for name, stored, expected in (
            ("type", frames.kind, self._kind),
            ("type count", frames.type_count, self._type_count),
            ("reference count", frames.refs, self._refs),
            ("count of executable mappings", frames.executable, self._executable),
        ):
            if stored != expected:
                self._problems.extend(
                    f"mfn {mfn:#x}: stored {name} {have}, counted {want}"
                    for mfn, (have, want) in enumerate(zip(stored, expected, strict=True))
                    if have != want
                )

    def _compare_owners(self) -> None:
        frames = self._frames
        by_owner = self._by_owner
        for mfn in sorted(frames.pinned):
            if FrameType(frames.kind[mfn]) not in _TABLE_KINDS:
                self._problems.append(f"mfn {mfn:#x} is pinned and no table")
        for domain in self._domains:
            counted = by_owner[domain.domid] - {domain.shared_info_mfn, *domain.grants.mfns}
            for mfn in sorted(counted ^ frames.pages_of(domain.domid)):
                self._problems.append(f"mfn {mfn:#x} is wrongly counted for domain {domain.domid}")
        for mfns in by_owner.values():
            for mfn in mfns:
                if not frames.refs[mfn]:
                    self._problems.append(f"mfn {mfn:#x} has an owner and no reference")
        free = frames.nr_frames - sum(map(len, by_owner.values()))
        if frames.free != free:
            self._problems.append(f"{frames.free} frames count as free, {free} are")


class _Walk:
    """What the processors of all domains can reach."""

    def __init__(self, machine: Machine, domains: list[Domain], by_owner: _ByOwner) -> None:
        self._memory = machine.memory
        self._nr_frames = machine.frames.nr_frames
        self._m2p = set(machine.frames.m2p_frames)
        self._by_owner = by_owner
        self._domains = domains
        self._problems: list[str] = []
        self._level: dict[int, int] = {}  # every table met -> 3, 2 or 1
        self._l2_places: dict[int, tuple[int, int] | None] = {}  # where an L2 of a hole stands
        self._l1s: dict[int, dict[int, bool]] = {}  # per domain: L1 -> can it be written through
        self._granted: dict[int, set[tuple[int, bool]]] = {}  # per domain: frame, and how
        self._segdesc: set[int] = set()
        self._pinned = machine.frames.pinned
        self._kind = machine.frames.kind

    def problems(self) -> list[str]:
        """Return what must not be reachable, and the tables that must not exist."""
        for domain in self._domains:
            self._l1s[domain.domid] = {}
            pins = domain.maptrack.pins()
            self._granted[domain.domid] = {(mfn, writable) for _, _, mfn, writable in pins}
            for vcpu in domain.vcpus:
                self._segdesc.update(vcpu.gdt_frames, vcpu.ldt_frames.values())
            for l3 in self._address_spaces(domain):
                self._walk_l3(domain, l3)
        for domain in self._domains:
            self._check_hole(domain)
            for l1, writable in self._l1s[domain.domid].items():
                self._check_l1(domain, l1, writable=writable)
        return self._problems

    def _address_spaces(self, domain: Domain) -> set[int]:
        owned = self._by_owner[domain.domid]
        pinned = {mfn for mfn in self._pinned & owned if self._kind[mfn] == FrameType.L3}
        return pinned | {vcpu.cr3_mfn for vcpu in domain.vcpus if vcpu.cr3_mfn is not None}

    def _entries(self, mfn: int) -> tuple[int, ...]:
        return _TABLE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)

    def _meet(self, domain: Domain, mfn: int, level: int) -> bool:
        """Note a table; False where it can't be looked into."""
        if mfn not in self._by_owner[domain.domid]:
            self._problems.append(
                f"domain {domain.domid} uses mfn {mfn:#x}, not its own, as L{level}"
            )
            return False
        if self._level.setdefault(mfn, level) != level:
            self._problems.append(f"mfn {mfn:#x} serves as L{level} and as L{self._level[mfn]}")
        return True

    def _walk_l3(self, domain: Domain, l3: int) -> None:
        if not self._meet(domain, l3, 3):
            return
        entries = self._entries(l3)
        if any(entries[_TOP_SLOTS:]):
            self._problems.append(f"L3 {l3:#x} has something behind its four entries")
        if not entries[3] & _PRESENT:
            self._problems.append(f"L3 {l3:#x} leaves out the hypervisor's hole")
        for slot, _, mfn in self._present(l3, entries[:_TOP_SLOTS], 3):
            # One place for each L2 of a hole; the others may be shared.
            place = (l3, 3) if slot == 3 else None
            if self._l2_places.setdefault(mfn, place) != place:
                self._problems.append(f"L2 {mfn:#x} serves a top gigabyte and something else")
            if self._meet(domain, mfn, 2):
                self._walk_l2(domain, mfn, top=slot == 3)

    def _walk_l2(self, domain: Domain, l2: int, *, top: bool) -> None:
        entries = self._entries(l2)
        if top:
            if entries[HOLE_SLOT:] != domain.hole.pdes:
                self._problems.append(f"L2 {l2:#x} has other entries for the hole than Xen's")
            entries = entries[:HOLE_SLOT]
        l1s = self._l1s[domain.domid]
        for _, entry, mfn in self._present(l2, entries, 2):
            if self._meet(domain, mfn, 1):
                l1s[mfn] = bool(entry & _WRITABLE) or l1s.get(mfn, False)

    def _present(
        self, table: int, entries: tuple[int, ...], level: int
    ) -> Iterator[tuple[int, int, int]]:
        for slot, entry in enumerate(entries):
            if entry & _PRESENT:
                if entry & _RESERVED[level]:
                    self._problems.append(
                        f"L{level} {table:#x} slot {slot:#x} has forbidden bits: {entry:#x}"
                    )
                mfn = entry >> PAGE_SHIFT & _MFN
                if mfn < self._nr_frames:
                    yield slot, entry, mfn
                else:
                    self._problems.append(
                        f"L{level} {table:#x} slot {slot:#x} names mfn {mfn:#x}, which is no RAM"
                    )

    def _check_l1(self, domain: Domain, l1: int, *, writable: bool) -> None:
        entries = [entry for entry in self._entries(l1) if entry & _PRESENT]
        if reduce(or_, entries, 0) & _RESERVED[1]:
            self._problems.append(f"L1 {l1:#x} has an entry with forbidden bits")
        foreign = [
            entry
            for entry in entries
            if entry >> PAGE_SHIFT & _MFN not in self._by_owner[domain.domid]
        ]
        for entry in foreign:
            mfn, writes = entry >> PAGE_SHIFT & _MFN, bool(entry & _WRITABLE)
            if (mfn, writes) not in self._granted[domain.domid] or not entry & _NX:
                self._problems.append(
                    f"domain {domain.domid} can reach mfn {mfn:#x}, not its own, by {entry:#x}"
                )
        if not writable:
            return
        written = {entry >> PAGE_SHIFT & _MFN for entry in entries if entry & _WRITABLE}
        for mfn in written & self._level.keys():
            self._problems.append(f"domain {domain.domid} can write page table {mfn:#x}")
        for mfn in written & self._segdesc:
            self._problems.append(f"domain {domain.domid} can write descriptor table {mfn:#x}")

    def _check_hole(self, domain: Domain) -> None:
        """Read-only, not executable, and nothing but the M2P, descriptors and Xen's own."""
        xen = self._by_owner[DOMID_XEN]
        shown = self._m2p | self._segdesc | xen
        for pde in domain.hole.pdes:
            if not pde & _PRESENT:
                continue
            table = pde >> PAGE_SHIFT & _MFN
            if table not in xen:
                self._problems.append(f"the hole of domain {domain.domid} is mapped by {table:#x}")
            for slot, entry in enumerate(self._entries(table)):
                if not entry & _PRESENT:
                    continue
                if entry & _WRITABLE or not entry & _NX or entry & _RESERVED[1]:
                    self._problems.append(f"hole L1 {table:#x} slot {slot:#x} is {entry:#x}")
                if entry >> PAGE_SHIFT & _MFN not in shown:
                    self._problems.append(f"hole L1 {table:#x} slot {slot:#x} shows {entry:#x}")


def _free_frames(machine: Machine) -> Iterator[str]:
    """Say which free frames are not as good as new."""
    frames, memory = machine.frames, machine.memory
    for mfn in _frames_with_memory(memory.fd, memory.size_bytes):
        if frames.owner[mfn] != DOMID_INVALID:
            continue
        if memory.m8[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT].tobytes() != _ZERO_PAGE:
            yield f"free mfn {mfn:#x} was not scrubbed"
        if frames.m2p[mfn] != INVALID_M2P_ENTRY:
            yield f"free mfn {mfn:#x} still has M2P entry {frames.m2p[mfn]:#x}"
        if memory.code[mfn]:
            yield f"free mfn {mfn:#x} may still be translated by an engine"


def _frames_with_memory(fd: int, size_bytes: int) -> Iterator[int]:
    """Yield the frames that the host has memory for: looking at the rest would allocate it."""
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield from range(start >> PAGE_SHIFT, at >> PAGE_SHIFT)


def _frames_by_owner(owners: Iterable[int]) -> _ByOwner:
    by_owner: _ByOwner = defaultdict(set)
    for mfn, owner in enumerate(owners):
        if owner != DOMID_INVALID:
            by_owner[owner].add(mfn)
    return by_owner
