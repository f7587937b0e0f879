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

A pin outlives its granter: the frame stays until the last one is given back.
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
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
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
_WORDS_SHIFT: Final = 10  # 32-bit words of a frame
_FRAME_SHIFT: Final = 9  # entries of a frame
_INDEX_MASK: Final = ENTRIES_PER_FRAME - 1
_DOMID_SHIFT: Final = 16  # flags and domid are read as one word
_DOMID_MASK: Final = 0xFFFF0000
_MFN_SHIFT: Final = 32  # and all of an entry as two
_WRITTEN_FREELY: Final = (NONE, WRITABLE)  # kinds of frames whose content nobody relies on
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
        self._words: list[int] = []  # where each of them begins in ``memory.m32``
        self._firsts: list[int] = []  # and in ``memory.m64``, of which each is an entry
        # Columns by entry; ``_to`` and ``_mfn`` count while the entry has a pin.
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
        self._words += [mfn << _WORDS_SHIFT for mfn in new]
        self._firsts += [mfn << _FRAME_SHIFT for mfn in new]
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

    # -- pins ---------------------------------------------------------------------------------

    def pin(self, refs: Sequence[int], domid: int, *, writable: bool) -> list[int]:
        """Pin what the entries offer to ``domid``, all or none; return their frames.

        Raises Refused: ENOENT for a bad ref, EINVAL for an unused entry, EACCES for somebody else's
        or for writing what is read-only, ENXIO for a frame that is not the granter's, EBUSY for one
        that can't be written because of what it is.
        """
        frames, m32, words = self._frames, self._memory.m32, self._words
        owner, kind, type_count = frames.owner, frames.kind, frames.type_count
        nr_frames, nr_entries, domain = frames.nr_frames, len(self._pins), self.domid
        pins, to_column, mfn_column, counts = self._pins, self._to, self._mfn, frames.refs
        checked = _WRITABLE_OFFER if writable else _OFFER
        wanted = domid << _DOMID_SHIFT | GTF_permit_access
        one = WRITER if writable else 1
        mfns: list[int] = []
        try:
            for ref in refs:
                if not 0 <= ref < nr_entries:
                    raise Refused(ENOENT, "grants.bad-reference", ref)
                at = words[ref >> _FRAME_SHIFT] + ((ref & _INDEX_MASK) << 1)
                word = m32[at]
                if word & checked != wanted:
                    raise _why_not(ref, word, domid)
                used = pins[ref]
                if used:
                    if to_column[ref] != domid:
                        raise Refused(EACCES, "grants.not-to-you", ref)
                    mfn = mfn_column[ref]
                else:
                    mfn = m32[at + 1]
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
                m32[at] = word | (GTF_reading | GTF_writing if used >= WRITER else GTF_reading)
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
        frames, memory, words, pins = self._frames, self._memory, self._words, self._pins
        m32, code, counts, type_count = memory.m32, memory.code, frames.refs, frames.type_count
        one = WRITER if writable else 1
        for ref, mfn in zip(refs, mfns, strict=True):
            pins[ref] = left = pins[ref] - one
            if writable:
                if code[mfn]:
                    memory.wrote(mfn)
                if type_count[mfn] > 1:
                    type_count[mfn] -= 1
                else:
                    frames.drop_type(mfn)
            if counts[mfn] > 1:
                counts[mfn] -= 1
            else:
                frames.put_page(mfn)
            if left < WRITER and words:
                cleared = GTF_writing if left else GTF_writing | GTF_reading
                m32[words[ref >> _FRAME_SHIFT] + ((ref & _INDEX_MASK) << 1)] &= ~cleared
        if words:
            self._wrote_entries(refs)

    # -- copies -------------------------------------------------------------------------------

    # No guest runs meanwhile, so a copy needs no pin and its entry no mark: an entry is read once,
    # checked, and obeyed at once. What isn't plainly good goes the long way, by a pin, which knows
    # every rule. 128 copies out of 1,500 bytes each take 0.08 ms so, and 0.15 by one list of pins.

    def copy_from(
        self, domid: int, refs: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
    ) -> list[bytes]:
        """Copy out of pages offered to ``domid``, which may be read-only.

        Each piece is at least a byte and lies in its page; one that is refused comes back empty.
        """
        pieces = zip(refs, offsets, sizes, strict=True)
        ends = tuple(map(add, offsets, sizes))
        if not refs or min(sizes) <= 0 or not self._are_plain(refs, offsets, ends):
            return [self._copy_from_pinned(domid, *piece) for piece in pieces]
        copies, m64, firsts = self._memory.copies, self._memory.m64, self._firsts
        owner, nr_frames, domain = self._frames.owner, self._frames.nr_frames, self.domid
        wanted = domid << _DOMID_SHIFT | GTF_permit_access
        copied: list[bytes] = []
        for ref, offset, size in pieces:
            entry = m64[firsts[ref >> _FRAME_SHIFT] + (ref & _INDEX_MASK)]
            mfn = entry >> _MFN_SHIFT
            if entry & _OFFER == wanted and mfn < nr_frames and owner[mfn] == domain:
                start = (mfn << PAGE_SHIFT) + offset
                copied.append(copies[start : start + size])
            else:
                copied.append(self._copy_from_pinned(domid, ref, offset, size))
        return copied

    def copy_to(
        self, domid: int, refs: Sequence[int], offsets: Sequence[int], contents: Sequence[bytes]
    ) -> list[int]:
        """Copy into pages offered to ``domid``; return the indexes of what was refused."""
        pieces = zip(refs, offsets, contents, strict=True)
        ends = tuple(map(add, offsets, map(len, contents)))
        if not refs or not self._are_plain(refs, offsets, ends):
            return [
                index
                for index, piece in enumerate(pieces)
                if not self._copy_to_pinned(domid, *piece)
            ]
        memory, frames = self._memory, self._frames
        m8, m64, code, firsts = memory.m8, memory.m64, memory.code, self._firsts
        owner, kind, nr_frames, domain = frames.owner, frames.kind, frames.nr_frames, self.domid
        wanted = domid << _DOMID_SHIFT | GTF_permit_access
        refused: list[int] = []
        for index, (ref, offset, content) in enumerate(pieces):
            entry = m64[firsts[ref >> _FRAME_SHIFT] + (ref & _INDEX_MASK)]
            mfn = entry >> _MFN_SHIFT
            if (
                entry & _WRITABLE_OFFER == wanted
                and mfn < nr_frames
                and owner[mfn] == domain
                and kind[mfn] in _WRITTEN_FREELY
            ):
                start = (mfn << PAGE_SHIFT) + offset
                m8[start : start + len(content)] = content
                if code[mfn]:
                    memory.wrote(mfn)
            elif not self._copy_to_pinned(domid, ref, offset, content):
                refused.append(index)
        return refused

    def _are_plain(self, refs: Sequence[int], offsets: Sequence[int], ends: Sequence[int]) -> bool:
        """Tell whether all pieces lie in their pages, and all entries are there and not in use."""
        return (
            min(refs) >= 0
            and max(refs) < len(self._pins)
            and min(offsets) >= 0
            and max(ends) <= PAGE_SIZE
            and not any(map(self._pins.__getitem__, refs))
        )

    def _copy_from_pinned(self, domid: int, ref: int, offset: int, size: int) -> bytes:
        """Copy out the long way; nothing where that is refused."""
        if not 0 <= offset < offset + size <= PAGE_SIZE:
            return b""
        try:
            mfns = self.pin((ref,), domid, writable=False)
        except Refused:
            return b""
        content = self._memory.read((mfns[0] << PAGE_SHIFT) + offset, size)
        self.unpin((ref,), mfns, writable=False)
        return content

    def _copy_to_pinned(self, domid: int, ref: int, offset: int, content: bytes) -> bool:
        """Copy in the long way; False where that is refused."""
        if not 0 <= offset <= offset + len(content) <= PAGE_SIZE:
            return False
        try:
            mfns = self.pin((ref,), domid, writable=True)
        except Refused:
            return False
        self._memory.write((mfns[0] << PAGE_SHIFT) + offset, content)
        self.unpin((ref,), mfns, writable=True)
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
        self._words.clear()
        self._firsts.clear()
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
        for mfn in self.mfns:
            if code[mfn] and any(self.mfns[ref >> _FRAME_SHIFT] == mfn for ref in refs):
                self._memory.wrote(mfn)


def _why_not(ref: int, word: int, domid: int) -> Refused:
    """Say what an entry, whose first word that is, lacks."""
    if word & GTF_type_mask != GTF_permit_access:
        return Refused(EINVAL, "grants.not-offered", ref)
    if word >> _DOMID_SHIFT != domid:
        return Refused(EACCES, "grants.not-to-you", ref)
    return Refused(EACCES, "grants.read-only", ref)
