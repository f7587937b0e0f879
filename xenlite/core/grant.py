# SPDX-License-Identifier: GPL-2.0-or-later
"""Grants, the offering side: which pages a domain offers to whom, and which of them are in use.

The domain writes its offers into a table that it shares with the hypervisor (version 1 entries:
flags, domid, frame). The table begins as one frame; it grows when the domain asks, up to a limit,
and never shrinks. Each entry is read once, when its first pin is taken, and that counts from then
on: what the domain writes into a used entry changes nothing. While an entry is used, its
GTF_reading bit is set, and GTF_writing while it is used for writing.

Whoever uses an entry holds a *pin* of it (``core/maptrack.py`` knows who). Invariants, which
``core/audit.py`` recomputes from the holders:

1. A pin holds a general reference on the frame, and a writable type reference if it may write.
2. ``_pins`` counts the pins of each entry: read-only ones, and above WRITER those that write.
3. The table's frames are none of the domain's pages, and held writable: they can't be freed or
   become tables of another kind before the domain ends.

A pin outlives its granter: the frame stays until the last one is given back. What is over before
any guest can run again needs no pin, only the same checks (``check``).

An entry can also wait for a page that another domain gives away for good (GTF_accept_transfer).
Source: public/grant_table.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import add
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EACCES,
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENXIO,
    SIZEOF_GRANT_ENTRY_V1,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_type_mask,
    GTF_writing,
)
from xenlite.errors import Refused
from xenlite.machine.frames import NONE, WRITABLE
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRY: Final = Struct("<HHI")
assert _ENTRY.size == SIZEOF_GRANT_ENTRY_V1
ENTRIES_PER_FRAME: Final = PAGE_SIZE // SIZEOF_GRANT_ENTRY_V1
DEFAULT_MAX_FRAMES: Final = 64
WRITER: Final = 1 << 32  # one writing pin; the read-only ones are counted below it
_FRAME_SHIFT: Final = 9  # entries of a frame
# An entry is read and written as one number: flags, domid from bit 16, frame from bit 32.
_DOMID_SHIFT: Final = 16
_DOMID_MASK: Final = 0xFFFF0000
_MFN_SHIFT: Final = 32
_WRITTEN_FREELY: Final = frozenset(
    (NONE, WRITABLE)
)  # kinds of frames whose content nobody relies on
# What of an entry says whether it offers a page, and for writing.
_OFFER: Final = _DOMID_MASK | GTF_type_mask
_WRITABLE_OFFER: Final = _OFFER | GTF_readonly


class GrantTable:
    """The grants of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domid = domain.domid
        self._memory = domain.machine.memory
        self._frames = domain.machine.frames
        self.max_frames = DEFAULT_MAX_FRAMES
        self.mfns: list[int] = []  # of the table, in the order of the entries
        # Columns by entry: where it is in ``memory.m64``; who uses it. ``_to`` and ``_mfn`` count
        # while it has a pin.
        self._at: list[int] = []
        self._pins: list[int] = []
        self._to: list[int] = []
        self._mfn: list[int] = []
        # By frame: how many page-table entries of other guests may write it.
        self.written_elsewhere: dict[int, int] = {}
        self.grow(1)

    # -- the table ----------------------------------------------------------------------------

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
        for mfn in new:
            first = mfn << _FRAME_SHIFT
            self._at += range(first, first + ENTRIES_PER_FRAME)
        for column in (self._pins, self._to, self._mfn):
            column += [0] * (ENTRIES_PER_FRAME * len(new))

    def check_size(self, count: int) -> None:
        """Refuse more frames than this domain may have (ENOSPC)."""
        if count > self.max_frames:
            raise Refused(ENOSPC, "grants.table-limit", count)

    def seed(self, ref: int, to: int, mfn: int) -> None:
        """Write entry ``ref``, as the domain could: ``to`` may map ``mfn`` read-write."""
        self._memory.write(self._entry_maddr(ref), _ENTRY.pack(GTF_permit_access, to, mfn))

    def swap(self, ref_a: int, ref_b: int) -> None:
        """Swap what two entries say. Raises Refused(EAGAIN) while one of them is in use."""
        at_a, at_b = self._entry_maddr(ref_a), self._entry_maddr(ref_b)
        for ref in (ref_a, ref_b):
            if self._pins[ref]:
                raise Refused(EAGAIN, "grants.entry-in-use", ref)
        entry_a = self._memory.read(at_a, _ENTRY.size)
        self._memory.write(at_a, self._memory.read(at_b, _ENTRY.size))
        self._memory.write(at_b, entry_a)

    def receive(self, ref: int, giver: int, mfn: int) -> None:
        """Make a stolen frame the domain's page, if entry ``ref`` waits for one of ``giver``.

        The entry then names the frame, and takes no other one until it is written anew.
        Raises Refused: ENOENT for a bad ref, EINVAL for an entry that does not wait, EACCES for one
        that waits for somebody else's.
        """
        at = self._entry_maddr(ref)
        flags, awaited, _ = _ENTRY.unpack(self._memory.read(at, _ENTRY.size))
        if flags != GTF_accept_transfer or self._pins[ref]:
            raise Refused(EINVAL, "grants.no-transfer-awaited", ref)
        if awaited != giver:
            raise Refused(EACCES, "grants.not-to-you", ref)
        self._frames.hand_over(mfn, self.domid)
        flags |= GTF_transfer_committed | GTF_transfer_completed
        self._memory.write(at, _ENTRY.pack(flags, awaited, mfn))

    # -- pins ---------------------------------------------------------------------------------

    def pin(self, refs: Sequence[int], domid: int, *, writable: bool) -> list[int]:
        """Pin what the entries offer to ``domid``, all or none; return their frames.

        Raises Refused: ENOENT for a bad ref, EINVAL for an unused entry, EACCES for somebody else's
        or for writing what is read-only, ENXIO for a frame that is not the granter's, EBUSY for one
        that can't be written because of what it is.
        """
        frames, m64, places = self._frames, self._memory.m64, self._at
        owner, kind, type_count = frames.owner, frames.kind, frames.type_count
        nr_frames, nr_entries, domain = frames.nr_frames, len(places), self.domid
        pins, to_column, mfn_column, counts = self._pins, self._to, self._mfn, frames.refs
        checked = _WRITABLE_OFFER if writable else _OFFER
        wanted = domid << _DOMID_SHIFT | GTF_permit_access
        one = WRITER if writable else 1
        mfns: list[int] = []
        try:
            for ref in refs:
                if not 0 <= ref < nr_entries:
                    raise Refused(ENOENT, "grants.bad-reference", ref)
                at = places[ref]
                entry = m64[at]
                if entry & checked != wanted:
                    raise _why_not(ref, entry, domid)
                used = pins[ref]
                if used:
                    if to_column[ref] != domid:
                        raise Refused(EACCES, "grants.not-to-you", ref)
                    mfn = mfn_column[ref]
                else:
                    mfn = entry >> _MFN_SHIFT
                if mfn >= nr_frames or owner[mfn] != domain:
                    raise Refused(ENXIO, "frames.not-owned", mfn)
                if writable:
                    if kind[mfn] != WRITABLE:
                        if type_count[mfn]:
                            raise Refused(EBUSY, "paging.writable-page-table", mfn)
                        kind[mfn] = WRITABLE
                    type_count[mfn] += 1
                counts[mfn] += 1
                if not used:
                    to_column[ref], mfn_column[ref] = domid, mfn
                pins[ref] = used = used + one
                m64[at] = entry | (GTF_reading | GTF_writing if used >= WRITER else GTF_reading)
                mfns.append(mfn)
        except Refused:
            self.unpin(refs[: len(mfns)], mfns, writable=writable)
            raise
        self._wrote_entries(refs)
        return mfns

    def unpin(self, refs: Sequence[int], mfns: Sequence[int], *, writable: bool) -> None:
        """Give pins back; ``mfns`` are the frames that ``pin`` returned for ``refs``.

        What was written through a writable pin is looked after here: no engine goes on running
        what it has translated of the frame before.
        """
        frames, memory, places, pins = self._frames, self._memory, self._at, self._pins
        m64, counts, type_count = memory.m64, frames.refs, frames.type_count
        one = WRITER if writable else 1
        if writable:
            memory.wrote_all(mfns)
        for ref, mfn in zip(refs, mfns, strict=True):
            pins[ref] = left = pins[ref] - one
            if writable:
                if type_count[mfn] > 1:
                    type_count[mfn] -= 1
                else:
                    frames.drop_type(mfn)
            if counts[mfn] > 1:
                counts[mfn] -= 1
            else:
                frames.put_page(mfn)
            if left < WRITER and places:
                m64[places[ref]] &= ~(GTF_writing if left else GTF_writing | GTF_reading)
        if places:
            self._wrote_entries(refs)

    def check(self, refs: Sequence[int], domid: int, *, writable: bool) -> list[int]:
        """Return the frames that the entries offer to ``domid``, all or none, without pins.

        They are good until a guest runs or anything else changes. Raises Refused as ``pin`` does.
        """
        mfns = self._check_unused(refs, domid, writable=writable)
        if mfns is None:
            mfns = self.pin(refs, domid, writable=writable)
            self.unpin(refs, mfns, writable=writable)
        return mfns

    def _check_unused(self, refs: Sequence[int], domid: int, *, writable: bool) -> list[int] | None:
        """Return the frames if all entries are good and unused; None where ``pin`` decides."""
        if not refs or min(refs) < 0:
            return None
        m64, places, pins = self._memory.m64, self._at, self._pins
        owner, kind, granter = self._frames.owner, self._frames.kind, self.domid
        checked = _WRITABLE_OFFER if writable else _OFFER
        wanted = domid << _DOMID_SHIFT | GTF_permit_access
        mfns = []
        try:
            for ref in refs:
                entry = m64[places[ref]]
                mfn = entry >> _MFN_SHIFT
                if entry & checked != wanted or pins[ref] or owner[mfn] != granter:
                    return None
                if writable and kind[mfn] not in _WRITTEN_FREELY:
                    return None
                mfns.append(mfn)
        except IndexError:  # no such entry, or no such frame
            return None
        return mfns

    # -- copies -------------------------------------------------------------------------------

    # No guest runs meanwhile, so a copy needs no pin and its entry no mark: an entry is read once,
    # checked, and obeyed at once. What isn't plainly good goes the long way, by a pin, which knows
    # every rule. 128 copies out of 1,500 bytes each take 0.08 ms so, and 0.15 by one list of pins.

    def copy_from(
        self, domid: int, refs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Copy out of pages offered to ``domid``, at once where all are plainly good.

        Each piece is at least a byte and lies in its page; one that is refused comes back empty.
        """
        mfns = self._check_unused(refs, domid, writable=False)
        if mfns is not None:
            memory = self._memory.copies
            copies = []
            for mfn, offset, size in zip(mfns, offsets, sizes, strict=True):
                if not 0 <= offset < offset + size <= PAGE_SIZE:
                    break
                start = (mfn << PAGE_SHIFT) + offset
                copies.append(memory[start : start + size])
            else:
                return copies
        pieces = zip(refs, offsets, sizes, strict=True)
        return [self._copy_one_from(domid, *piece) for piece in pieces]

    def copy_to(
        self, domid: int, refs: Sequence[int], offsets: Sequence[int], contents: Sequence[bytes]
    ) -> list[int]:
        """Copy into pages offered to ``domid``; return the indexes of what was refused."""
        sizes = list(map(len, contents))
        mfns = self._check_unused(refs, domid, writable=True)
        # What goes into the table itself changes what later entries say.
        touches_table = mfns is not None and not set(mfns).isdisjoint(self.mfns)
        if mfns is None or touches_table or not _are_in_pages(offsets, sizes):
            return [
                index
                for index, piece in enumerate(zip(refs, offsets, contents, strict=True))
                if not self._copy_one_to(domid, *piece)
            ]
        m8 = self._memory.m8
        for mfn, offset, content in zip(mfns, offsets, contents, strict=True):
            start = (mfn << PAGE_SHIFT) + offset
            m8[start : start + len(content)] = content
        self._memory.wrote_all(mfns)
        return []

    def _copy_one_from(self, domid: int, ref: int, offset: int, size: int) -> bytes:
        """Copy one piece out; nothing where that is refused."""
        if not 0 <= offset < offset + size <= PAGE_SIZE:
            return b""
        try:
            [mfn] = self.check((ref,), domid, writable=False)
        except Refused:
            return b""
        return self._memory.read((mfn << PAGE_SHIFT) + offset, size)

    def _copy_one_to(self, domid: int, ref: int, offset: int, content: bytes) -> bool:
        """Copy one piece in; False where that is refused."""
        if not 0 <= offset <= offset + len(content) <= PAGE_SIZE:
            return False
        try:
            [mfn] = self.check((ref,), domid, writable=True)
        except Refused:
            return False
        self._memory.write((mfn << PAGE_SHIFT) + offset, content)
        return True

    # -- frames that others map writable ------------------------------------------------------

    def begin_writing(self, mfn: int) -> None:
        """Note that another guest has a page-table entry by which it can write the frame."""
        self.written_elsewhere[mfn] = self.written_elsewhere.get(mfn, 0) + 1

    def end_writing(self, mfn: int) -> None:
        """Take one such note back."""
        left = self.written_elsewhere[mfn] - 1
        if left:
            self.written_elsewhere[mfn] = left
        else:
            del self.written_elsewhere[mfn]

    def forget_code(self) -> None:
        """Forget what was translated of frames that other guests can write at any time.

        To be called before the domain's engine is entered: the others may just have run.
        """
        for mfn in self.written_elsewhere:
            if self._memory.code[mfn]:
                self._memory.wrote(mfn)

    def uses(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (ref, mfn, readers, writers) of each entry that is in use."""
        for ref, pins in enumerate(self._pins):
            if pins:
                yield ref, self._mfn[ref], pins % WRITER, pins // WRITER

    def entries(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Yield (ref, flags, to, mfn, pins, writable ones) of entries offered or in use."""
        for ref, pins in enumerate(self._pins):
            maddr = self._entry_maddr(ref)
            flags, to, mfn = _ENTRY.unpack(self._memory.read(maddr, _ENTRY.size))
            if pins:
                readers, writers = pins % WRITER, pins // WRITER
                yield ref, flags, self._to[ref], self._mfn[ref], readers + writers, writers
            elif flags & GTF_type_mask:
                yield ref, flags, to, mfn, 0, 0

    # -- the end ------------------------------------------------------------------------------

    def release(self) -> None:
        """Give the table's frames back; pages that are pinned stay until they are unpinned."""
        mfns, self.mfns = self.mfns, []
        self._at.clear()
        self._give_back(mfns)

    def _give_back(self, mfns: Iterable[int]) -> None:
        for mfn in mfns:
            self._frames.put_writable(mfn)
            self._frames.drop_allocation(mfn)

    def _entry_maddr(self, ref: int) -> int:
        frame, index = divmod(ref, ENTRIES_PER_FRAME)
        if not 0 <= frame < len(self.mfns):
            raise Refused(ENOENT, "grants.bad-reference", ref)
        return (self.mfns[frame] << PAGE_SHIFT) + index * SIZEOF_GRANT_ENTRY_V1

    def _wrote_entries(self, refs: Sequence[int]) -> None:
        """Keep translations right where a guest maps its table executable, as kernels do."""
        code = self._memory.code
        if any(map(code.__getitem__, self.mfns)):
            self._memory.wrote_all({self.mfns[ref >> _FRAME_SHIFT] for ref in refs})


def _are_in_pages(offsets: Sequence[int], sizes: Sequence[int]) -> bool:
    """Tell whether all pieces lie in their pages."""
    return min(offsets) >= 0 and max(map(add, offsets, sizes)) <= PAGE_SIZE


def _why_not(ref: int, entry: int, domid: int) -> Refused:
    """Say what an entry lacks."""
    if entry & GTF_type_mask != GTF_permit_access:
        return Refused(EINVAL, "grants.not-offered", ref)
    if (entry & _DOMID_MASK) >> _DOMID_SHIFT != domid:
        return Refused(EACCES, "grants.not-to-you", ref)
    return Refused(EACCES, "grants.read-only", ref)
