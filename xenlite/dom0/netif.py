# SPDX-License-Identifier: GPL-2.0-or-later
"""Network packets in a ring's slots: from copied slots to checked packets, and to responses.

Sent by a frontend, a packet is a chain of slots::

    first slot          size: of the whole packet     flags: blank checksum, extra, more
      extra info ...    while the one before says so; the first follows if the first slot says so
      data slots ...    size: of this piece           flags: more
    the first slot's own piece is what the others leave of the whole

Nothing is believed: each piece lies in its page, the sizes add up, a packet is a frame that the
card may send. What fails costs that packet and nothing more, because the chain still says where the
next one begins. Only one that is longer than any may be is a PeerError.

What a frontend is not offered is refused where it asks for it: GSO, hashes, checksums of IPv6.
Source: public/io/netif.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from struct import Struct
from typing import Final

from xenlite.abi.x86_32p import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    SIZEOF_NETIF_RX_REQUEST,
    SIZEOF_NETIF_RX_RESPONSE,
    SIZEOF_NETIF_TX_REQUEST,
    SIZEOF_NETIF_TX_RESPONSE,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_MAX,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_MAX_TX_SIZE,
    XEN_NETIF_NR_SLOTS_MIN,
    NetifExtraInfo,
    NetifRxRequest,
    NetifRxResponse,
    NetifTxRequest,
    NetifTxResponse,
    NETRXF_more_data,
    NETTXF_csum_blank,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenlite.dom0.ethernet import HEADER_BYTES
from xenlite.dom0.slot_ring import PAGE_SIZE, shape
from xenlite.errors import PeerError

VLAN_TAG: Final = 4
DEFAULT_MTU: Final = 1500
MAX_MTU: Final = XEN_NETIF_MAX_TX_SIZE - HEADER_BYTES - VLAN_TAG
MAX_EXTRAS: Final = XEN_NETIF_EXTRA_TYPE_MAX - 1  # one of each type that there is
TX_RING: Final = shape("network tx ring", SIZEOF_NETIF_TX_REQUEST, SIZEOF_NETIF_TX_RESPONSE)
RX_RING: Final = shape("network rx ring", SIZEOF_NETIF_RX_REQUEST, SIZEOF_NETIF_RX_RESPONSE)

_REQUEST: Final = NetifTxRequest.LAYOUT
_EXTRA: Final = NetifExtraInfo.LAYOUT
_RESPONSE: Final = Struct(
    f"{NetifTxResponse.LAYOUT.format}{TX_RING.slot - SIZEOF_NETIF_TX_RESPONSE}x"
)
_GROUP_CHANGES: Final = (XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL)

TxColumns = tuple[
    tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]
]


def frame_limit(mtu: int) -> int:
    """Return the longest frame, with a VLAN's tag, of a card whose packets have so many bytes."""
    assert mtu <= MAX_MTU, mtu
    return mtu + HEADER_BYTES + VLAN_TAG


# -- what a frontend sends ------------------------------------------------------------------------


@dataclass(slots=True)
class Packet:
    """One packet's slots. ``why_not`` says what is wrong with it: then it has no pieces.

    One that changes what groups the frontend is in is a dummy, which is not sent.
    """

    ids: list[int]  # of its data slots
    pieces: list[tuple[int, int, int]]  # reference, offset, size
    is_blank: bool  # its checksum is
    extras: int = 0
    group_changes: list[tuple[bool, bytes]] = field(default_factory=list)  # joined? which?
    why_not: str = ""

    def responses(self, status: int) -> bytes:
        """Answer each of its slots, in their order."""
        first, *rest = self.ids
        ids = (first, *repeat(0, self.extras), *rest)
        statuses = (status, *repeat(NETIF_RSP_NULL, self.extras), *repeat(status, len(rest)))
        return tx_responses(ids, statuses)


def tx_columns(slots: bytes) -> TxColumns:
    """Return references, offsets, flags, ids and sizes of copied slots, of which there are some."""
    refs, offsets, flags, ids, sizes = zip(*_REQUEST.iter_unpack(slots), strict=True)
    return refs, offsets, flags, ids, sizes


def are_plain(flags: Sequence[int], sizes: Sequence[int], limit: int) -> bool:
    """Tell whether each slot is a packet of its own, of a size that is allowed."""
    return max(flags) < NETTXF_more_data and min(sizes) >= HEADER_BYTES and max(sizes) <= limit


def parse(slots: bytes, limit: int) -> tuple[list[Packet], bytes]:
    """Cut copied slots into packets of at most ``limit`` bytes.

    Return also the slots of a packet whose rest has not come: they belong before the next ones.
    Raises PeerError.
    """
    packets = []
    at = 0
    while (end := _chain_end(slots, at)) is not None:
        packets.append(_packet(slots[at:end], limit))
        at = end
    return packets, slots[at:]


def _chain_end(slots: bytes, at: int) -> int | None:
    """Find where a packet's slots end; None where some of them have not come."""
    first = at
    extras = data = 0
    expects_extra = expects_data = False
    while at < len(slots):
        if expects_extra:
            extras += 1
            if extras > MAX_EXTRAS:
                raise PeerError(f"{TX_RING.name}: a packet with more than {MAX_EXTRAS} extra slots")
            expects_extra = bool(_EXTRA.unpack_from(slots, at)[1] & XEN_NETIF_EXTRA_FLAG_MORE)
        else:
            data += 1
            if data > XEN_NETIF_NR_SLOTS_MIN:
                what = f"a packet of more than {XEN_NETIF_NR_SLOTS_MIN} slots"
                raise PeerError(f"{TX_RING.name}: {what}")
            flags = _REQUEST.unpack_from(slots, at)[2]
            expects_data = bool(flags & NETTXF_more_data)
            expects_extra = at == first and bool(flags & NETTXF_extra_info)
        at += TX_RING.slot
        if not (expects_extra or expects_data):
            return at
    return None


def _packet(slots: bytes, limit: int) -> Packet:
    """Check one packet, whose slots are all here."""
    ref, offset, flags, first_id, whole = _REQUEST.unpack_from(slots)
    packet = Packet([first_id], [], bool(flags & NETTXF_csum_blank))
    at = TX_RING.slot
    expects_extra = flags & NETTXF_extra_info
    while expects_extra:
        kind, extra_flags, content = _EXTRA.unpack_from(slots, at)
        packet.extras += 1
        if kind in _GROUP_CHANGES:
            packet.group_changes.append((kind == XEN_NETIF_EXTRA_TYPE_MCAST_ADD, content))
        else:
            packet.why_not = f"extra info {kind}, which is not offered"
        expects_extra = extra_flags & XEN_NETIF_EXTRA_FLAG_MORE
        at += TX_RING.slot
    pieces, left = [], whole
    for more_ref, more_offset, _, more_id, size in _REQUEST.iter_unpack(slots[at:]):
        packet.ids.append(more_id)
        pieces.append((more_ref, more_offset, size))
        left -= size
    pieces.insert(0, (ref, offset, left))
    if not packet.group_changes:
        packet.why_not = packet.why_not or _what_is_wrong(pieces, whole, limit)
        if not packet.why_not:
            packet.pieces = [piece for piece in pieces if piece[2]]
    return packet


def _what_is_wrong(pieces: Iterable[tuple[int, int, int]], whole: int, limit: int) -> str:
    """Say what is wrong with a packet's sizes; nothing where all is well."""
    if not HEADER_BYTES <= whole <= limit:
        return f"a frame of {whole} bytes, not between {HEADER_BYTES} and {limit}"
    for _, offset, size in pieces:
        if size < 0:
            return f"pieces of more than the packet's {whole} bytes"
        if offset + size > PAGE_SIZE:
            return f"{size} bytes at {offset} of a page"
    return ""


def tx_responses(ids: Iterable[int], statuses: Iterable[int]) -> bytes:
    """Answer slots, each in a whole one."""
    return b"".join(map(_RESPONSE.pack, ids, statuses))


ALL_OKAY: Final = repeat(NETIF_RSP_OKAY)


# -- what a frontend receives ---------------------------------------------------------------------


def rx_columns(slots: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ids and references of copied slots, of which there are some."""
    ids, refs = zip(*NetifRxRequest.LAYOUT.iter_unpack(slots), strict=True)
    return ids, refs


def slots_for(frame: bytes) -> int:
    """Count the slots that a frame takes."""
    return -(-len(frame) // PAGE_SIZE)


def cut(frames: Sequence[bytes], room: int) -> tuple[int, list[bytes], list[int]]:
    """Cut as many frames as ``room`` slots hold into pages; return how many, pieces and flags."""
    pieces: list[bytes] = []
    flags: list[int] = []
    for count, frame in enumerate(frames):
        slots = slots_for(frame)
        if len(pieces) + slots > room:
            return count, pieces, flags
        pieces += [frame[at : at + PAGE_SIZE] for at in range(0, len(frame), PAGE_SIZE)]
        flags += [NETRXF_more_data] * (slots - 1) + [0]
    return len(frames), pieces, flags


def spoil(statuses: list[int], flags: Sequence[int], refused: Iterable[int]) -> int:
    """Say in every slot of a packet that it is in error, for each slot refused; count packets."""
    spoilt = set()
    for index in refused:
        first = last = index
        while first and flags[first - 1] & NETRXF_more_data:
            first -= 1
        while flags[last] & NETRXF_more_data:
            last += 1
        statuses[first : last + 1] = [NETIF_RSP_ERROR] * (last + 1 - first)
        spoilt.add(first)
    return len(spoilt)


def rx_responses(ids: Iterable[int], flags: Iterable[int], statuses: Iterable[int]) -> bytes:
    """Answer slots: a status that is no error is a size; data begins where the page does."""
    return b"".join(map(NetifRxResponse.LAYOUT.pack, ids, repeat(0), flags, statuses))
