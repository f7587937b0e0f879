# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that both ends of a ring share, with no hypervisor between them."""

from __future__ import annotations

from struct import pack_into, unpack_from

PAGE_SIZE = 4096


class SharedPage:
    """One page of plain memory that behaves as ``dom0.ring.Page`` demands."""

    def __init__(self) -> None:
        self.bytes = bytearray(PAGE_SIZE)

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out of the page."""
        assert 0 <= offset <= offset + size <= PAGE_SIZE
        return bytes(self.bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the page."""
        assert 0 <= offset <= offset + len(data) <= PAGE_SIZE
        self.bytes[offset : offset + len(data)] = data

    def read_u32(self, offset: int) -> int:
        """Read one little-endian word."""
        word: int = unpack_from("<I", self.bytes, offset)[0]
        return word

    def write_u32(self, offset: int, value: int) -> None:
        """Write one little-endian word."""
        pack_into("<I", self.bytes, offset, value)
