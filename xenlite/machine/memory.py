# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold the machine's RAM, and remember which of its frames may have been translated.

The RAM is one sparse memfd, mapped shared once and handed to every engine by pointer, so that
Python and all guests see the same bytes::

    maddr      0        4096      8192                      size_bytes
    mfn        |   0    |    1    |    2    | ...           |
    code[mfn]      0         3        255                     (one byte per frame)

``code[mfn]`` is 0 while no L1 entry without NX has ever mapped the frame. Otherwise it names the
engines that may hold translations of it: the slot number of the one engine, or ``SEVERAL`` when
``_several[mfn]`` lists them.

Invariants:

- An engine's translations are keyed by physical page and survive a write by anyone but that
  engine's own guest, a CR3 write too (tests/architecture/test_engine_facts.py). So every write by
  Python to a marked frame goes through ``write`` or is followed by ``wrote``.
- A mark disappears only through ``release`` or ``detach``, both of which leave no translation.
- Frame contents are zero at first: the file is sparse.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Collection, Sequence
from typing import Final, Protocol

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
DEFAULT_SIZE_BYTES: Final = 1 << 30

SEVERAL: Final = 255
"""The mark of a frame that more than one engine may have translated."""

_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_MAX_KEPT_PAGES: Final = 8192  # 1.5 MB of views


class Translator(Protocol):
    """Describe what this module asks of an engine."""

    slot: int
    """Where ``attach`` put the engine: 1 to 254, or 0 while it is not attached."""

    def invalidate_code(self, maddr: int, size: int, /) -> object:
        """Forget every translation of ``size`` bytes at ``maddr``."""


class MachineMemory:
    """Own the RAM of the machine and the marks of translated code.

    Views over all of RAM, for reading and for writing where no mark is set: ``m8``, ``m16``,
    ``m32`` and ``m64``; ``m64[(mfn << 9) + i]`` is entry ``i`` of page table ``mfn``. A hot writer
    writes through a view and then tests ``if memory.code[mfn]: memory.wrote(mfn)``. ``copies`` is
    all of RAM too; its slices are copies, made in half the time that ``bytes(m8[...])`` takes.
    """

    __slots__ = (
        "_engines",
        "_pages",
        "_several",
        "code",
        "copies",
        "fd",
        "host_address",
        "m8",
        "m16",
        "m32",
        "m64",
        "nr_frames",
        "size_bytes",
    )

    def __init__(self, size_bytes: int = DEFAULT_SIZE_BYTES) -> None:
        assert size_bytes > 0, size_bytes
        assert size_bytes % PAGE_SIZE == 0, size_bytes
        self.size_bytes = size_bytes
        self.nr_frames = size_bytes >> PAGE_SHIFT
        self.fd = os.memfd_create("xenlite-ram")
        os.ftruncate(self.fd, size_bytes)
        self.copies = mmap.mmap(self.fd, size_bytes)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self.copies))
        self.m8 = memoryview(self.copies)
        self.m16 = self.m8.cast("H")
        self.m32 = self.m8.cast("I")
        self.m64 = self.m8.cast("Q")
        self.code = bytearray(self.nr_frames)
        self._pages: dict[int, memoryview] = {}
        self._engines: dict[int, Translator] = {}
        self._several: dict[int, set[int]] = {}

    def close(self) -> None:
        """Give the RAM back to the host; every engine must be detached."""
        assert not self._engines, "an engine still runs on this memory"
        if self.fd < 0:
            return
        self._pages.clear()
        for view in (self.m16, self.m32, self.m64, self.m8):
            view.release()
        self.copies.close()
        os.close(self.fd)
        self.fd = -1

    # Contents

    def read(self, maddr: int, size: int) -> bytes:
        """Copy ``size`` bytes at ``maddr`` out."""
        assert 0 <= maddr <= maddr + size <= self.size_bytes, (maddr, size)
        return bytes(self.m8[maddr : maddr + size])

    def pages(self, mfns: Sequence[int]) -> list[memoryview]:
        """Return the bytes of whole frames, for I/O; say ``wrote_all`` after writing into them.

        The views are kept: to make one takes 0.15 us, and to find it 0.02.
        """
        pages = self._pages
        try:
            return [pages[mfn] for mfn in mfns]
        except KeyError:
            if len(pages) > _MAX_KEPT_PAGES:
                pages.clear()
            for mfn in mfns:
                pages[mfn] = self.m8[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT]
            return [pages[mfn] for mfn in mfns]

    def write(self, maddr: int, content: bytes | bytearray | memoryview) -> None:
        """Copy ``content`` to ``maddr`` and forget the translations of the bytes it replaces."""
        end = maddr + len(content)
        self.m8[maddr:end] = content
        code = self.code
        for mfn in range(maddr >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT):
            if code[mfn]:
                self.wrote(mfn)

    def scrub(self, mfn: int) -> None:
        """Zero the frame.

        One that the host has not yet given memory to is zero, and stays without: writing it would
        cost 4 us and a page of the host's, where asking costs 0.4 us.
        """
        maddr = mfn << PAGE_SHIFT
        if not self._has_memory(maddr):
            return
        self.m8[maddr : maddr + PAGE_SIZE] = _ZERO_PAGE
        if self.code[mfn]:
            self.wrote(mfn)

    def _has_memory(self, maddr: int) -> bool:
        try:
            return os.lseek(self.fd, maddr, os.SEEK_DATA) == maddr
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing from here to the end
                raise
            return False

    def discard(self, mfn: int, count: int = 1) -> None:
        """Zero ``count`` frames by giving their memory back to the host.

        Slower for one frame than ``scrub`` and much faster for many; the marks must be clear.
        """
        assert not any(self.code[mfn : mfn + count]), mfn
        self.copies.madvise(mmap.MADV_REMOVE, mfn << PAGE_SHIFT, count << PAGE_SHIFT)

    # Translated code

    def attach(self, engine: Translator) -> None:
        """Let ``engine`` run on this memory and give it its slot."""
        slot = next((n for n in range(1, SEVERAL) if n not in self._engines), 0)
        if not slot:
            raise RuntimeError(f"no more than {SEVERAL - 1} engines can share one memory")
        engine.slot = slot
        self._engines[slot] = engine

    def detach(self, engine: Translator) -> None:
        """Forget the engine, whose translations die with it."""
        slot = engine.slot
        assert self._engines.pop(slot) is engine, slot
        engine.slot = 0
        mfn = self.code.find(slot)
        while mfn >= 0:
            self.code[mfn] = 0
            mfn = self.code.find(slot, mfn + 1)
        for mfn, slots in list(self._several.items()):
            slots.discard(slot)
            if not slots:
                del self._several[mfn]
                self.code[mfn] = 0

    def mark_code(self, mfn: int, engine: Translator) -> None:
        """Note that ``engine`` may translate the frame from now on; not attached, it never does."""
        code = self.code
        mark = code[mfn]
        slot = engine.slot
        if mark == slot or not slot:
            return
        if mark == 0:
            code[mfn] = slot
            return
        if mark != SEVERAL:
            code[mfn] = SEVERAL
            self._several[mfn] = {mark}
        self._several[mfn].add(slot)

    def wrote(self, mfn: int) -> None:
        """Forget the translations of a frame that Python wrote through a view.

        Safe outside a run and in an INTR or INSN_INVALID trap, in no other callback.
        """
        mark = self.code[mfn]
        if mark == SEVERAL:
            for slot in self._several[mfn]:
                self._engines[slot].invalidate_code(mfn << PAGE_SHIFT, PAGE_SIZE)
        elif mark:
            self._engines[mark].invalidate_code(mfn << PAGE_SHIFT, PAGE_SIZE)

    def wrote_all(self, mfns: Collection[int]) -> None:
        """Forget the translations of all frames, as ``wrote`` does of one."""
        code = self.code
        for mfn in mfns:
            if code[mfn]:
                self.wrote(mfn)

    def release(self, mfn: int) -> None:
        """Forget the translations and the mark of a frame that is freed, or executable no more."""
        if self.code[mfn]:
            self.wrote(mfn)
            self.code[mfn] = 0
            self._several.pop(mfn, None)
