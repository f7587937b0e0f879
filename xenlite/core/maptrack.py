# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants, the using side: which pages of others a domain has mapped, by handle.

A mapping is a pin of the granter's entry (``core/grant.py``). A guest also gets an entry in one of
its page tables, which holds references of its own like every entry. The two are independent::

    map    --> pin, and the entry
    unmap  --> the entry is cleared if it still maps that frame with that right; then the pin goes
    anything else that replaces the entry takes the entry's references; the pin, and with it the
    granter's GTF_reading, stays until the domain ends, and nothing can be unmapped twice

So a frame is never let go while anything still leads to it, whatever order a guest chooses.

Dom0, whose kernel is Python, reaches the pages through ``MappedGrant`` and ``PinnedPages``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EBADF, ENOENT, ENOSPC
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.x86_32p import PTE_RW

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.grant import GrantTable
    from xenlite.machine.memory import MachineMemory

_NOT_A_WORDS: Final = ~(PAGE_SIZE - 4)  # bits that no offset of a word in a page has
# Xen's limit: 1024 frames of mappings, 16 bytes each.
MAX_HANDLES: Final = 1024 * (PAGE_SIZE // 16)


class MappedGrant:
    """One mapping of a granted page (``doors.GrantMapping``); offsets and sizes in bytes."""

    __slots__ = (
        "_memory",
        "_start",
        "by_pte",
        "domid",
        "handle",
        "is_live",
        "mfn",
        "on_device",
        "on_host",
        "ref",
        "table",
        "writable",
    )

    def __init__(
        self, memory: MachineMemory, handle: int, table: GrantTable, ref: int, mfn: int
    ) -> None:
        self.domid = table.domid
        self.handle = handle
        self.table = table
        self.ref = ref
        self.mfn = mfn
        self.writable = False
        self.is_live = True
        self.on_host = False  # a page-table entry of a guest was made for it
        self.by_pte = False  # and the guest named it by its machine address
        self.on_device = False
        self._memory = memory
        self._start = mfn << PAGE_SHIFT

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out of the page."""
        assert self.is_live, self.ref
        assert 0 <= offset <= offset + size <= PAGE_SIZE, (offset, size)
        start = self._start + offset
        return self._memory.copies[start : start + size]

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the page; translated code of the guest stays right."""
        assert self.is_live, self.ref
        assert self.writable, self.ref
        assert 0 <= offset <= offset + len(data) <= PAGE_SIZE, (offset, len(data))
        memory, start = self._memory, self._start + offset
        memory.m8[start : start + len(data)] = data
        if memory.code[self.mfn]:
            memory.wrote(self.mfn)

    def read_u32(self, offset: int) -> int:
        """Read one aligned little-endian word."""
        assert self.is_live, self.ref
        assert not offset & _NOT_A_WORDS, offset
        return self._memory.m32[(self._start + offset) >> 2]

    def write_u32(self, offset: int, value: int) -> None:
        """Write one aligned little-endian word."""
        assert self.is_live, self.ref
        assert self.writable, self.ref
        assert not offset & _NOT_A_WORDS, offset
        memory = self._memory
        memory.m32[(self._start + offset) >> 2] = value
        if memory.code[self.mfn]:
            memory.wrote(self.mfn)

    def view(self, offset: int, size: int) -> memoryview:
        """Return the bytes themselves, for I/O; say ``wrote`` after writing into them."""
        assert self.is_live, self.ref
        assert 0 <= offset <= offset + size <= PAGE_SIZE, (offset, size)
        start = self._start + offset
        return self._memory.m8[start : start + size]

    def wrote(self) -> None:
        """Keep translated code right after writes through a view."""
        if self._memory.code[self.mfn]:
            self._memory.wrote(self.mfn)


class PinnedPages:
    """Pages of one transfer, granted and given back together (``doors.GrantedPages``)."""

    __slots__ = ("_memory", "is_live", "mfns", "refs", "table", "writable")

    def __init__(
        self,
        memory: MachineMemory,
        table: GrantTable,
        refs: Sequence[int],
        mfns: list[int],
        *,
        writable: bool,
    ) -> None:
        self._memory = memory
        self.table = table
        self.refs = refs
        self.mfns = mfns
        self.writable = writable
        self.is_live = True

    def pages(self) -> list[memoryview]:
        """Return the pages themselves, whole; the unpin looks after them."""
        assert self.is_live, self.refs
        return self._memory.pages(self.mfns)


class Maptrack:
    """What one domain has mapped of others."""

    def __init__(self, domain: Domain) -> None:
        self._domid = domain.domid
        self._paging = domain.paging
        self._memory = domain.machine.memory
        self._mapped: dict[int, MappedGrant] = {}
        self._pinned: set[PinnedPages] = set()
        self._free: list[int] = []  # handles below ``_next`` that are not in use
        self._next = 0

    # -- mappings -----------------------------------------------------------------------------

    def map(self, table: GrantTable, ref: int, *, writable: bool) -> MappedGrant:
        """Pin what entry ``ref`` offers, under a handle.

        Raises Refused: ENOSPC without a free handle, or what ``GrantTable.pin`` says.
        """
        if not self._free and self._next >= MAX_HANDLES:
            raise Refused(ENOSPC, "grants.no-free-handle", MAX_HANDLES)
        [mfn] = table.pin((ref,), self._domid, writable=writable)
        if self._free:
            handle = self._free.pop()
        else:
            handle, self._next = self._next, self._next + 1
        mapping = MappedGrant(self._memory, handle, table, ref, mfn)
        mapping.writable = writable
        self._mapped[handle] = mapping
        return mapping

    def unmap(self, mapping: MappedGrant) -> None:
        """Give a pin back. Raises Refused(ENOENT) where that was done before."""
        if self._mapped.get(mapping.handle) is not mapping:
            raise Refused(ENOENT, "grants.not-mapped", mapping.ref)
        del self._mapped[mapping.handle]
        self._free.append(mapping.handle)
        mapping.is_live = False
        mapping.table.unpin((mapping.ref,), (mapping.mfn,), writable=mapping.writable)

    def find(self, handle: int) -> MappedGrant:
        """Return the live mapping of a handle. Raises Refused(EBADF)."""
        mapping = self._mapped.get(handle)
        if mapping is None:
            raise Refused(EBADF, "grants.bad-handle", handle)
        return mapping

    def __len__(self) -> int:
        return len(self._mapped)

    def maps(self, mfn: int) -> bool:
        """Tell whether any live mapping is of that frame."""
        return any(mapping.mfn == mfn for mapping in self._mapped.values())

    # -- entries in the page tables of a guest ------------------------------------------------

    def enter(self, mapping: MappedGrant, slot: int, flags: int) -> None:
        """Let the L1 entry ``slot`` map the page, with ``flags`` beside the right to write."""
        self._paging.set_granted(slot, mapping.mfn, flags | (PTE_RW if mapping.writable else 0))
        mapping.on_host = True
        if mapping.writable:
            mapping.table.begin_writing(mapping.mfn)

    def leave(self, mapping: MappedGrant, slot: int) -> None:
        """Clear the entry. Raises Refused(EINVAL) where it maps something else by now."""
        assert mapping.on_host, mapping.handle
        self._paging.clear_granted(slot, mapping.mfn, writable=mapping.writable)
        self._leave_host(mapping)

    def _leave_host(self, mapping: MappedGrant) -> None:
        mapping.on_host = False
        if mapping.writable:
            mapping.table.end_writing(mapping.mfn)

    # -- pins for one transfer ----------------------------------------------------------------

    def pin(self, table: GrantTable, refs: Sequence[int], *, writable: bool) -> PinnedPages:
        """Pin what several entries offer, all or none, without handles."""
        mfns = table.pin(refs, self._domid, writable=writable)
        pages = PinnedPages(self._memory, table, refs, mfns, writable=writable)
        self._pinned.add(pages)
        return pages

    def unpin(self, pages: PinnedPages) -> None:
        """Give them back. Raises Refused(ENOENT) where that was done before."""
        if pages not in self._pinned:
            raise Refused(ENOENT, "grants.not-mapped", len(pages.refs))
        self._pinned.discard(pages)
        pages.is_live = False
        pages.table.unpin(pages.refs, pages.mfns, writable=pages.writable)

    # -- all of them --------------------------------------------------------------------------

    def pins(self) -> Iterator[tuple[GrantTable, int, int, bool]]:
        """Yield (table, ref, mfn, writable) of each pin this domain holds."""
        for mapping in self._mapped.values():
            yield mapping.table, mapping.ref, mapping.mfn, mapping.writable
        for pages in self._pinned:
            for ref, mfn in zip(pages.refs, pages.mfns, strict=True):
                yield pages.table, ref, mfn, pages.writable

    def release(self) -> None:
        """Give every pin back: the domain is dying, and its page tables are gone."""
        for mapping in list(self._mapped.values()):
            if mapping.on_host:
                self._leave_host(mapping)
            self.unmap(mapping)
        for pages in list(self._pinned):
            self.unpin(pages)
