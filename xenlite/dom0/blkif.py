# SPDX-License-Identifier: GPL-2.0-or-later
"""Block requests: from a copied slot to something checked, and from an outcome to a response.

``decode`` believes nothing: the operation is one of the protocol's, segments are whole sectors of a
page and as many as may be, the sectors lie on the disk, and a disk that is only to be read is never
written. What fails is a ``Bad``, which says what to answer; a frontend's mistake costs that request
and nothing more. An indirect request names pages that hold its segments: ``Indirect`` says which,
and ``resolve`` decodes it once those have been copied.

Sectors are of 512 bytes whatever the disk's own are. A frontend of 64 bits lays the same fields out
in other places: its ``Wire``. Source: public/io/blkif.h, public/io/protocols.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import Struct, unpack
from typing import Final, NamedTuple

from xenlite.abi.x86_32p import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    SIZEOF_BLKIF_REQUEST_SEGMENT,
    XEN_IO_PROTO_ABI_X86_32,
    XEN_IO_PROTO_ABI_X86_64,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifResponse,
    BlkifX8664Request,
    BlkifX8664RequestDiscard,
    BlkifX8664RequestIndirect,
    BlkifX8664Response,
)
from xenlite.dom0.slot_ring import PAGE_SIZE, Shape, shape

SECTOR: Final = 512
SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR
MAX_INDIRECT_SEGMENTS: Final = 256
assert MAX_INDIRECT_SEGMENTS * SIZEOF_BLKIF_REQUEST_SEGMENT <= (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * PAGE_SIZE
)


class Operation(Enum):
    """What is to be done; the value is the number of the protocol."""

    READ = BLKIF_OP_READ
    WRITE = BLKIF_OP_WRITE
    BARRIER = BLKIF_OP_WRITE_BARRIER
    FLUSH = BLKIF_OP_FLUSH_DISKCACHE
    DISCARD = BLKIF_OP_DISCARD


_OF_SEGMENTS: Final = {
    operation.value: operation for operation in (Operation.READ, Operation.WRITE, Operation.BARRIER)
}
_READ: Final = Operation.READ
_WHOLE_PAGE: Final = (SECTORS_PER_PAGE - 1) << 8  # first and last sector of a segment, as a word
_GREFS: Final = Struct(f"<{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST}I")


@dataclass(frozen=True, slots=True)
class Wire:
    """How requests and responses lie in a ring's slots."""

    request: Struct  # operation, segments, handle, id, sector, what describes the segments
    discard: Struct  # operation, flag, handle, id, sector, sectors
    indirect: Struct  # operation, the one meant, segments, id, sector, handle, grefs
    response: Struct  # id, operation, status


NATIVE: Final = Wire(
    BlkifRequest.LAYOUT,
    BlkifRequestDiscard.LAYOUT,
    BlkifRequestIndirect.LAYOUT,
    BlkifResponse.LAYOUT,
)
WIRES: Final = {
    XEN_IO_PROTO_ABI_X86_32: NATIVE,
    XEN_IO_PROTO_ABI_X86_64: Wire(
        BlkifX8664Request.LAYOUT,
        BlkifX8664RequestDiscard.LAYOUT,
        BlkifX8664RequestIndirect.LAYOUT,
        BlkifX8664Response.LAYOUT,
    ),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """What a frontend is told of its disk."""

    sectors: int
    read_only: bool = False
    can_discard: bool = False


class Request(NamedTuple):
    """A request that may be done; ``start`` and sizes in bytes.

    A tuple, because a frozen dataclass takes 1.0 us to make, and this 0.3.
    """

    id: int
    operation: Operation
    start: int
    size: int
    refs: tuple[int, ...] = ()
    pieces: tuple[tuple[int, int], ...] | None = None  # of each page, or the pages are whole


@dataclass(frozen=True, slots=True)
class Indirect:
    """A request whose segments lie in the pages under ``refs``, ``size`` bytes from their start."""

    id: int
    operation: Operation
    sector: int
    refs: tuple[int, ...]
    size: int

    @property
    def pages(self) -> int:
        """Return how many pages its segments are of."""
        return self.size // SIZEOF_BLKIF_REQUEST_SEGMENT


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that cannot be done, and the status to answer."""

    id: int
    operation: int
    status: int
    why: str


def ring_shape(pages: int, wire: Wire = NATIVE) -> Shape:
    """Return the shape of a block ring."""
    return shape("block ring", wire.request.size, wire.response.size, pages)


def decode(slot: bytes, disk: Disk, wire: Wire = NATIVE) -> Request | Indirect | Bad:
    """Check one copied request."""
    number, count, _, request_id, sector, segments = wire.request.unpack(slot)
    operation = _OF_SEGMENTS.get(number)
    if operation is None:
        return _decode_other(slot, disk, wire)
    if count > BLKIF_MAX_SEGMENTS_PER_REQUEST or (not count and number != BLKIF_OP_WRITE_BARRIER):
        return Bad(request_id, number, BLKIF_RSP_ERROR, f"{count} segments")
    raw = segments[: count * SIZEOF_BLKIF_REQUEST_SEGMENT]
    return _with_segments(request_id, operation, sector, raw, disk)


def resolve(request: Indirect, raw: bytes, disk: Disk) -> Request | Bad:
    """Check an indirect request, given a copy of its segments."""
    return _with_segments(request.id, request.operation, request.sector, raw, disk)


def _with_segments(
    request_id: int, operation: Operation, sector: int, raw: bytes, disk: Disk
) -> Request | Bad:
    if disk.read_only and operation is not _READ:
        return Bad(request_id, operation.value, BLKIF_RSP_ERROR, "a write to a read-only disk")
    words = unpack(f"<{len(raw) >> 2}I", raw)
    refs, sectors = words[::2], words[1::2]
    pieces: tuple[tuple[int, int], ...] | None = None
    if sectors.count(_WHOLE_PAGE) == len(refs):
        size = len(refs) * PAGE_SIZE
    else:
        ranges = [(word & 0xFF, word >> 8 & 0xFF) for word in sectors]
        for first, last in ranges:
            if not first <= last < SECTORS_PER_PAGE:
                what = f"sectors {first} to {last} of a page"
                return Bad(request_id, operation.value, BLKIF_RSP_ERROR, what)
        pieces = tuple((first * SECTOR, (last - first + 1) * SECTOR) for first, last in ranges)
        size = sum(length for _, length in pieces)
    if sector + size // SECTOR > disk.sectors:
        what = f"{size // SECTOR} sectors at {sector}, of {disk.sectors}"
        return Bad(request_id, operation.value, BLKIF_RSP_ERROR, what)
    return Request(request_id, operation, sector * SECTOR, size, refs, pieces)


def _decode_other(slot: bytes, disk: Disk, wire: Wire) -> Request | Indirect | Bad:
    """Check a request that has no segments in its slot."""
    number, count, _, request_id, _, _ = wire.request.unpack(slot)
    if number == BLKIF_OP_INDIRECT:
        return _decode_indirect(slot, wire)
    if number == BLKIF_OP_DISCARD:
        return _decode_discard(slot, disk, wire)
    if number != BLKIF_OP_FLUSH_DISKCACHE:
        return Bad(request_id, number, BLKIF_RSP_EOPNOTSUPP, f"operation {number} is not known")
    if count:
        return Bad(request_id, number, BLKIF_RSP_ERROR, f"a flush of {count} segments")
    return Request(request_id, Operation.FLUSH, 0, 0)


def _decode_indirect(slot: bytes, wire: Wire) -> Indirect | Bad:
    _, number, count, request_id, sector, _, grefs = wire.indirect.unpack_from(slot)
    operation = _OF_SEGMENTS.get(number)
    if operation is None or operation is Operation.BARRIER:
        what = f"operation {number} with indirect segments"
        return Bad(request_id, BLKIF_OP_INDIRECT, BLKIF_RSP_EOPNOTSUPP, what)
    if not 1 <= count <= MAX_INDIRECT_SEGMENTS:
        return Bad(request_id, BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, f"{count} indirect segments")
    size = count * SIZEOF_BLKIF_REQUEST_SEGMENT
    pages = -(-size // PAGE_SIZE)
    return Indirect(request_id, operation, sector, _GREFS.unpack(grefs)[:pages], size)


def _decode_discard(slot: bytes, disk: Disk, wire: Wire) -> Request | Bad:
    number, _, _, request_id, sector, sectors = wire.discard.unpack_from(slot)
    if disk.read_only or not disk.can_discard:
        status = BLKIF_RSP_ERROR if disk.read_only else BLKIF_RSP_EOPNOTSUPP
        return Bad(request_id, number, status, "a discard on a disk without")
    # Secure or not: what was discarded reads as zeros.
    if sector + sectors > disk.sectors:
        what = f"{sectors} sectors at {sector}, of {disk.sectors}"
        return Bad(request_id, number, BLKIF_RSP_ERROR, what)
    return Request(request_id, Operation.DISCARD, sector * SECTOR, sectors * SECTOR)
