# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door to guest memory by virtual address.

Addresses are those of the current vCPU's address space, with the rights of its kernel (ring 1 is a
supervisor: present is enough to read, and CR0.WP makes read-only pages read-only to it). The hole
is refused, and so is anything that wraps. Accessed and dirty bits are set as the processor would,
and translated code stays right.

Everything raises Refused(EFAULT, "memory.bad-pointer") before the first byte is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EFAULT
from xenlite.core.hole import HOLE_START
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.x86_32p import (
    INDEX_MASK,
    L2_SHIFT,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_P,
    PTE_RW,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.core.domain import Domain

_OFFSET: Final = PAGE_SIZE - 1
_READ_RIGHTS: Final = PTE_P | PTE_A
_WRITE_RIGHTS: Final = PTE_P | PTE_RW | PTE_A | PTE_D


class GuestMemory:
    """Reads and writes by virtual address; sizes in bytes."""

    def __init__(self, domain: Domain) -> None:
        self._paging = domain.paging
        self._memory = domain.machine.memory
        self._m8 = self._memory.m8
        self._m32 = self._memory.m32
        self._m64 = self._memory.m64
        self._code = self._memory.code
        self.read_u32 = self._make_read_u32()

    def translate_read(self, vaddr: int) -> int | None:
        """Return the machine address that the kernel reads at ``vaddr``, or None."""
        slot = self._paging.slot_of(vaddr)
        if slot is None or vaddr >= HOLE_START:
            return None
        entry = self._m64[slot]
        if entry & _READ_RIGHTS != _READ_RIGHTS:
            if not entry & PTE_P:
                return None
            self._m64[slot] = entry | PTE_A
        return (entry & PTE_ADDRESS) | (vaddr & _OFFSET)

    def translate_write(self, vaddr: int) -> int | None:
        """Return the machine address that the kernel may write at ``vaddr``, or None."""
        slot = self._paging.write_slot_of(vaddr)
        if slot is None or vaddr >= HOLE_START:
            return None
        entry = self._m64[slot]
        if entry & _WRITE_RIGHTS != _WRITE_RIGHTS:
            if not (entry & PTE_P and entry & PTE_RW):
                return None
            self._m64[slot] = entry | PTE_A | PTE_D
        return (entry & PTE_ADDRESS) | (vaddr & _OFFSET)

    def read(self, vaddr: int, size: int) -> bytes:
        """Copy ``size`` bytes in."""
        maddr = self.translate_read(vaddr)
        if maddr is not None and (vaddr & _OFFSET) + size <= PAGE_SIZE:
            return bytes(self._m8[maddr : maddr + size])
        return b"".join(
            bytes(self._m8[start : start + length])
            for start, length in self._pieces(vaddr, size, writing=False)
        )

    def write(self, vaddr: int, data: bytes) -> None:
        """Copy ``data`` out; nothing is written where any page of it may not be."""
        maddr = self.translate_write(vaddr)
        if maddr is not None and (vaddr & _OFFSET) + len(data) <= PAGE_SIZE:
            self._m8[maddr : maddr + len(data)] = data
            if self._code[maddr >> 12]:
                self._memory.wrote(maddr >> 12)
            return
        done = 0
        for start, length in self._pieces(vaddr, len(data), writing=True):
            self._memory.write(start, data[done : done + length])
            done += length

    def check_range(self, vaddr: int, size: int) -> None:
        """Refuse a range that wraps or reaches the hole, without looking at its pages."""
        if vaddr + size > HOLE_START:
            raise Refused(EFAULT, "memory.bad-pointer", vaddr)

    def check_writable(self, vaddr: int, size: int) -> None:
        """Refuse a range of which any byte could not be written."""
        self._pieces(vaddr, size, writing=True)

    def _make_read_u32(self) -> Callable[[int], int]:
        """Bind the read that most calls begin with: 0.25 us, by way of ``read`` 0.7."""
        m32, m64, l1_base_of = self._m32, self._m64, self._paging.l1_bases.get

        def read_u32(vaddr: int) -> int:
            """Read one little-endian word, aligned or not."""
            base = l1_base_of(vaddr >> L2_SHIFT)
            if base is not None and not vaddr & 3 and vaddr < HOLE_START:
                entry = m64[base + (vaddr >> PAGE_SHIFT & INDEX_MASK)]
                if entry & _READ_RIGHTS == _READ_RIGHTS:
                    return m32[(entry & PTE_ADDRESS | vaddr & _OFFSET) >> 2]
            return int.from_bytes(self.read(vaddr, 4), "little")

        return read_u32

    def read_u64(self, vaddr: int) -> int:
        """Read one little-endian double word, aligned or not."""
        return int.from_bytes(self.read(vaddr, 8), "little")

    def write_u32(self, vaddr: int, value: int) -> None:
        """Write one little-endian word, aligned or not."""
        self.write(vaddr, value.to_bytes(4, "little"))

    def _pieces(self, vaddr: int, size: int, *, writing: bool) -> list[tuple[int, int]]:
        """Split a range into (machine address, length) per page; all of it, or Refused."""
        self.check_range(vaddr, size)
        translate = self.translate_write if writing else self.translate_read
        pieces = []
        end = vaddr + size
        while vaddr < end:
            maddr = translate(vaddr)
            if maddr is None:
                raise Refused(EFAULT, "memory.bad-pointer", vaddr)
            length = min(PAGE_SIZE - (vaddr & _OFFSET), end - vaddr)
            pieces.append((maddr, length))
            vaddr += length
        return pieces
