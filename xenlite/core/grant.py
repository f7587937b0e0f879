# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants: pages that a domain offers to others, and what of them is mapped at the moment.

The domain writes its offers into a table that it shares with the hypervisor (version 1 entries:
flags, domid, frame). The table begins as one frame; it grows when the domain asks, up to a limit,
and never shrinks. Each entry is copied once, when it is first mapped, and the copy counts from then
on: what the domain writes into a used entry changes nothing. While an entry is used, its
GTF_reading bit is set, and GTF_writing while it is used for writing.

Invariants:

1. A live mapping holds a general reference on the frame, and a writable type reference if it may
   write; ``core/audit.py`` counts them.
2. ``_active`` holds exactly the entries with live mappings, with their numbers.
3. The table's frames are none of the domain's pages, and held writable: they can't be freed or
   become tables of another kind before the domain ends.

A mapping outlives its granter: the frame stays until it is unmapped.
Source: public/grant_table.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EACCES,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOSPC,
    SIZEOF_GRANT_ENTRY_V1,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
)
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRY: Final = Struct("<HHI")
assert _ENTRY.size == SIZEOF_GRANT_ENTRY_V1
ENTRIES_PER_FRAME: Final = PAGE_SIZE // SIZEOF_GRANT_ENTRY_V1
DEFAULT_MAX_FRAMES: Final = 64


@dataclass(slots=True)
class _Active:
    """One entry as it was when it was first mapped, and how many mappings it has."""

    to: int
    mfn: int
    readers: int = 0
    writers: int = 0


class MappedGrant:
    """One mapping of a granted page (``doors.GrantMapping``); offsets and sizes in bytes."""

    __slots__ = ("_memory", "_start", "domid", "is_live", "mfn", "ref", "table", "writable")

    def __init__(self, table: GrantTable, ref: int, mfn: int, *, writable: bool) -> None:
        self.table = table
        self.domid = table.domid
        self.ref = ref
        self.mfn = mfn
        self.writable = writable
        self.is_live = True
        self._memory = table.memory
        self._start = mfn << PAGE_SHIFT

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out of the page."""
        assert self.is_live, self.ref
        assert 0 <= offset <= offset + size <= PAGE_SIZE, (offset, size)
        start = self._start + offset
        return bytes(self._memory.m8[start : start + size])

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the page; translated code of the guest stays right."""
        assert self.is_live, self.ref
        assert self.writable, self.ref
        assert 0 <= offset <= offset + len(data) <= PAGE_SIZE, (offset, len(data))
        self._memory.write(self._start + offset, data)

    def read_u32(self, offset: int) -> int:
        """Read one aligned little-endian word."""
        assert self.is_live, self.ref
        assert 0 <= offset < PAGE_SIZE, offset
        assert not offset & 3, offset
        return int(self._memory.m32[(self._start + offset) >> 2])

    def write_u32(self, offset: int, value: int) -> None:
        """Write one aligned little-endian word."""
        assert not offset & 3, offset
        self.write(offset, value.to_bytes(4, "little"))


class GrantTable:
    """The grants of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domid = domain.domid
        self.memory = domain.machine.memory
        self._frames = domain.machine.frames
        self._active: dict[int, _Active] = {}
        self.max_frames = DEFAULT_MAX_FRAMES
        self.mfns: list[int] = []  # of the table, in the order of the entries
        self.grow(1)

    def grow(self, count: int) -> None:
        """Have at least ``count`` frames of entries, all or none of the new ones.

        Raises Refused: ENOSPC beyond the limit, ENOMEM where the machine has too few.
        """
        self.check_size(count)
        new: list[int] = []
        try:
            while len(self.mfns) + len(new) < count:
                mfn = self._frames.allocate_uncounted(self.domid)
                self._frames.get_writable(mfn, self.domid)
                new.append(mfn)
        except Refused:
            self._give_back(new)
            raise
        self.mfns += new

    def check_size(self, count: int) -> None:
        """Refuse more frames than this domain may have (ENOSPC)."""
        if count > self.max_frames:
            raise Refused(ENOSPC, "grants.table-limit", count)

    def seed(self, ref: int, to: int, mfn: int) -> None:
        """Write entry ``ref``, as the domain could: ``to`` may map ``mfn`` read-write."""
        self.memory.write(self._entry_maddr(ref), _ENTRY.pack(GTF_permit_access, to, mfn))

    def map(self, ref: int, domid: int, *, writable: bool) -> MappedGrant:
        """Map what entry ``ref`` offers to ``domid``.

        Raises Refused: EINVAL for a bad ref or an unused entry, EACCES for somebody else's or for
        writing what is read-only, EBUSY where the frame can't be mapped so.
        """
        at = self._entry_maddr(ref)
        flags, to, mfn = _ENTRY.unpack(self.memory.read(at, _ENTRY.size))
        active = self._active.get(ref)
        if flags & GTF_type_mask != GTF_permit_access:
            raise Refused(EINVAL, "grants.not-offered", ref)
        if to != domid or (active is not None and active.to != domid):
            raise Refused(EACCES, "grants.not-to-you", ref)
        if writable and flags & GTF_readonly:
            raise Refused(EACCES, "grants.read-only", ref)
        if active is not None:
            mfn = active.mfn
        if writable:
            self._frames.get_writable(mfn, self.domid, EBUSY)
        else:
            self._frames.get_page(mfn, self.domid, EBUSY)
        if active is None:
            active = self._active[ref] = _Active(to, mfn)
        if writable:
            active.writers += 1
        else:
            active.readers += 1
        self._set_flags(at, flags | GTF_reading | (GTF_writing if active.writers else 0))
        return MappedGrant(self, ref, mfn, writable=writable)

    def unmap(self, mapping: MappedGrant) -> None:
        """Give a mapping back. Raises Refused(ENOENT) where that was done before."""
        if not mapping.is_live:
            raise Refused(ENOENT, "grants.not-mapped", mapping.ref)
        assert mapping.table is self, mapping.ref
        mapping.is_live = False
        active = self._active[mapping.ref]
        if mapping.writable:
            active.writers -= 1
            self._frames.put_writable(mapping.mfn)
        else:
            active.readers -= 1
            self._frames.put_page(mapping.mfn)
        cleared = 0 if active.writers else GTF_writing
        if not active.writers and not active.readers:
            del self._active[mapping.ref]
            cleared |= GTF_reading
        if self.mfns:
            at = self._entry_maddr(mapping.ref)
            self._set_flags(at, self.memory.m16[at >> 1] & ~cleared)

    def mapped(self) -> Iterator[tuple[int, int, int]]:
        """Yield (mfn, mappings, writable ones of them) of each used entry."""
        for active in self._active.values():
            yield active.mfn, active.readers + active.writers, active.writers

    def entries(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Yield (ref, flags, to, mfn, mappings, writable ones) of entries offered or in use."""
        for ref in range(len(self.mfns) * ENTRIES_PER_FRAME):
            flags, to, mfn = _ENTRY.unpack(self.memory.read(self._entry_maddr(ref), _ENTRY.size))
            active = self._active.get(ref)
            if active is not None:
                counts = (active.readers + active.writers, active.writers)
                yield (ref, flags, active.to, active.mfn, *counts)
            elif flags & GTF_type_mask:
                yield ref, flags, to, mfn, 0, 0

    def release(self) -> None:
        """Give the table's frames back; pages that are mapped stay until they are unmapped."""
        mfns, self.mfns = self.mfns, []
        self._give_back(mfns)

    def _give_back(self, mfns: Iterable[int]) -> None:
        for mfn in mfns:
            self._frames.put_writable(mfn)
            self._frames.drop_allocation(mfn)

    def _entry_maddr(self, ref: int) -> int:
        frame, index = divmod(ref, ENTRIES_PER_FRAME)
        if not 0 <= frame < len(self.mfns):
            raise Refused(EINVAL, "grants.bad-reference", ref)
        return (self.mfns[frame] << PAGE_SHIFT) + index * SIZEOF_GRANT_ENTRY_V1

    def _set_flags(self, maddr: int, flags: int) -> None:
        self.memory.m16[maddr >> 1] = flags
        if self.memory.code[maddr >> PAGE_SHIFT]:
            self.memory.wrote(maddr >> PAGE_SHIFT)
