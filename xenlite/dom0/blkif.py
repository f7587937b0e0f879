# SPDX-License-Identifier: GPL-2.0-or-later
"""Block requests: from a copied slot to something checked, and from an outcome to a response.

``decode`` believes nothing: the operation is one of the protocol's, segments are whole sectors of a
page and as many as may be, the sectors lie on the disk, and a disk that is only to be read is never
written. What fails is a ``Bad``, which says what to answer; a frontend's mistake costs that request
and nothing more. An indirect request names pages that hold its segments: ``Indirect`` says which,
and ``resolve`` decodes it once those have been copied.

Sectors are of 512 bytes whatever the disk's own are.
Source: public/io/blkif.h; the layout is x86_32-abi, which is the native one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

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
    SIZEOF_BLKIF_REQUEST,
    SIZEOF_BLKIF_REQUEST_SEGMENT,
    SIZEOF_BLKIF_RESPONSE,
    BlkifRequest,
    BlkifRequestDiscard,
    BlkifRequestIndirect,
    BlkifRequestSegment,
    BlkifResponse,
)
from xenlite.dom0.slot_ring import PAGE_SIZE, Shape, shape

SECTOR: Final = 512
SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SIZEOF_BLKIF_REQUEST_SEGMENT
MAX_INDIRECT_SEGMENTS: Final = 256
assert MAX_INDIRECT_SEGMENTS <= SEGMENTS_PER_PAGE * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST


class Operation(Enum):
    """What is to be done; the value is the number of the protocol."""

    READ = BLKIF_OP_READ
    WRITE = BLKIF_OP_WRITE
    BARRIER = BLKIF_OP_WRITE_BARRIER
    FLUSH = BLKIF_OP_FLUSH_DISKCACHE
    DISCARD = BLKIF_OP_DISCARD


_BY_NUMBER: Final = {operation.value: operation for operation in Operation}
_OF_SEGMENTS: Final = (Operation.READ, Operation.WRITE, Operation.BARRIER)


@dataclass(frozen=True, slots=True)
class Disk:
    """What a frontend is told of its disk."""

    sectors: int
    read_only: bool = False
    can_discard: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be done; ``start`` and sizes in bytes."""

    id: int
    operation: Operation
    start: int
    size: int
    refs: tuple[int, ...] = ()
    pieces: tuple[tuple[int, int], ...] = ()  # offset and size in the page of each ref


@dataclass(frozen=True, slots=True)
class Indirect:
    """A request whose segments lie in the pages under ``refs``: ``pieces`` as in a request."""

    id: int
    operation: Operation
    sector: int
    refs: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that cannot be done, and the status to answer."""

    id: int
    operation: int
    status: int
    why: str


def ring_shape(pages: int) -> Shape:
    """Return the shape of a block ring."""
    return shape("block ring", SIZEOF_BLKIF_REQUEST, SIZEOF_BLKIF_RESPONSE, pages)


def decode(slot: bytes, disk: Disk) -> Request | Indirect | Bad:
    """Check one copied request."""
    number, count, _, request_id, sector, segments = BlkifRequest.LAYOUT.unpack(slot)
    if number == BLKIF_OP_INDIRECT:
        return _decode_indirect(slot)
    operation = _BY_NUMBER.get(number)
    if operation is None:
        return Bad(request_id, number, BLKIF_RSP_EOPNOTSUPP, f"operation {number} is not known")
    if operation is Operation.DISCARD:
        return _decode_discard(slot, disk)
    if operation is Operation.FLUSH:
        if count:
            return Bad(request_id, number, BLKIF_RSP_ERROR, f"a flush of {count} segments")
        return Request(request_id, operation, 0, 0)
    least = 0 if operation is Operation.BARRIER else 1
    if not least <= count <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
        return Bad(request_id, number, BLKIF_RSP_ERROR, f"{count} segments")
    raw = segments[: count * SIZEOF_BLKIF_REQUEST_SEGMENT]
    return _with_segments(request_id, operation, sector, raw, disk)


def resolve(request: Indirect, raw: bytes, disk: Disk) -> Request | Bad:
    """Check an indirect request, given a copy of its segments."""
    return _with_segments(request.id, request.operation, request.sector, raw, disk)


def response(request_id: int, operation: int, status: int) -> bytes:
    """Write a response."""
    return BlkifResponse.LAYOUT.pack(request_id, operation, status)


def _with_segments(
    request_id: int, operation: Operation, sector: int, raw: bytes, disk: Disk
) -> Request | Bad:
    if disk.read_only and operation is not Operation.READ:
        return Bad(request_id, operation.value, BLKIF_RSP_ERROR, "a write to a read-only disk")
    refs, pieces, size = [], [], 0
    for ref, first, last in BlkifRequestSegment.LAYOUT.iter_unpack(raw):
        if not first <= last < SECTORS_PER_PAGE:
            what = f"sectors {first} to {last} of a page"
            return Bad(request_id, operation.value, BLKIF_RSP_ERROR, what)
        length = (last - first + 1) * SECTOR
        refs.append(ref)
        pieces.append((first * SECTOR, length))
        size += length
    if sector + size // SECTOR > disk.sectors:
        what = f"{size // SECTOR} sectors at {sector}, of {disk.sectors}"
        return Bad(request_id, operation.value, BLKIF_RSP_ERROR, what)
    return Request(request_id, operation, sector * SECTOR, size, tuple(refs), tuple(pieces))


def _decode_indirect(slot: bytes) -> Indirect | Bad:
    asked = BlkifRequestIndirect.unpack(slot[: BlkifRequestIndirect.LAYOUT.size])
    number, count = asked.indirect_op, asked.nr_segments
    operation = _BY_NUMBER.get(number)
    if operation not in (Operation.READ, Operation.WRITE):
        what = f"operation {number} with indirect segments"
        return Bad(asked.id, BLKIF_OP_INDIRECT, BLKIF_RSP_EOPNOTSUPP, what)
    if not 1 <= count <= MAX_INDIRECT_SEGMENTS:
        return Bad(asked.id, BLKIF_OP_INDIRECT, BLKIF_RSP_ERROR, f"{count} indirect segments")
    size = count * SIZEOF_BLKIF_REQUEST_SEGMENT
    pieces = tuple((0, min(size - at, PAGE_SIZE)) for at in range(0, size, PAGE_SIZE))
    refs = asked.indirect_grefs[: len(pieces)]
    return Indirect(asked.id, operation, asked.sector_number, refs, pieces)


def _decode_discard(slot: bytes, disk: Disk) -> Request | Bad:
    asked = BlkifRequestDiscard.unpack(slot[: BlkifRequestDiscard.LAYOUT.size])
    if disk.read_only or not disk.can_discard:
        status = BLKIF_RSP_ERROR if disk.read_only else BLKIF_RSP_EOPNOTSUPP
        return Bad(asked.id, asked.operation, status, "a discard on a disk without")
    # Secure or not: what was discarded reads as zeros.
    if asked.sector_number + asked.nr_sectors > disk.sectors:
        what = f"{asked.nr_sectors} sectors at {asked.sector_number}, of {disk.sectors}"
        return Bad(asked.id, asked.operation, BLKIF_RSP_ERROR, what)
    size = asked.nr_sectors * SECTOR
    return Request(asked.id, Operation.DISCARD, asked.sector_number * SECTOR, size)
