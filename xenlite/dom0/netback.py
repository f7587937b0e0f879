# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve one connected pair of network rings: frames out of a frontend's pages, and into them.

::

    tx: slots --copy--> netif: check --> link: copy the pages --> checksum --> bridge
             `-- bad ---------------------------+--> a response each, publish, notify if asked
    rx: bridge --> queue --> slots --copy--> link: copy into the pages --> response, notify if asked

All of it happens at once, on the main thread, after the guest has been left: nothing is in work
between two calls, and no page stays pinned. A batch is moved by a handful of calls, however many
packets it has, because Python's cost is in the steps and not in the bytes.

*Load*: after a packet a frontend is not asked to tell of the next one. Its ring is looked at after
each turn that some guest has had, until that was in vain LOOKS times; an event for each packet
would bring the loop round each time, and wake the receiver for a single one. One look is not
enough, for the receiver's turn often comes before the sender's. So a packet may wait for the end of
its sender's turn, as it would for a busy processor. The responses to a FEW show at the next look
too: by then there may be an answer to the packet, and one event tells of both.

*Room*: frames wait in a bounded queue for slots; what doesn't fit is dropped and counted.

A frontend that breaks a ring loses the device: ``broken`` is told, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import ESRCH, NETIF_RSP_ERROR, NETIF_RSP_OKAY, NETTXF_csum_blank
from xenlite.dom0.checksum import complete
from xenlite.dom0.groups import GroupFilter
from xenlite.dom0.netif import (
    ALL_OKAY,
    RX_RING,
    TX_RING,
    Packet,
    are_plain,
    cut,
    parse,
    rx_columns,
    rx_responses,
    slots_for,
    spoil,
    tx_columns,
    tx_responses,
)
from xenlite.dom0.slot_ring import PAGE_SIZE, BackRing
from xenlite.errors import PeerError, Refused

if TYPE_CHECKING:
    from xenlite.dom0.rate import RateLimit
    from xenlite.doors import Link

MOST_AT_ONCE: Final = 128  # slots that are taken before others have their turn: 0.5 ms
QUEUE_FRAMES: Final = 1024  # that wait for room in a frontend's ring
LOOKS: Final = 3  # in vain, before a frontend is asked for an event again
FEW: Final = 16  # slots, whose responses may wait
LOOK_AGAIN_NS: Final = 10_000_000  # for room, where a frontend does not tell of it


@dataclass(frozen=True, slots=True)
class Offer:
    """What a frontend has offered: its rings and ports, which may be one, and what it can do."""

    domid: int
    tx_ref: int
    rx_ref: int
    tx_port: int
    rx_port: int
    takes_chains: bool  # packets in several slots
    tells_of_room: bool  # by an event, when it has put in slots to receive into
    filters_groups: bool  # it wants multicasts of its groups only


@dataclass(slots=True)
class NetCounters:
    """What has passed a network card; tx is what its frontend sends."""

    tx_packets: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    rx_errors: int = 0  # into pages that could not be written
    rx_dropped: int = 0  # no frontend, no room, too long for it
    rx_filtered: int = 0  # multicasts that it has not asked for
    events: int = 0  # from the frontend
    notifications: int = 0  # to it


class NetRings:
    """One frontend's pair of rings while it is connected."""

    def __init__(
        self,
        link: Link,
        offer: Offer,
        counters: NetCounters,
        *,
        frame_limit: int,
        limit: RateLimit | None,
        send: Callable[[Sequence[bytes]], None],
        broken: Callable[[PeerError], None],
    ) -> None:
        """Join what is offered. Raises Refused where it isn't, PeerError where it can't be.

        ``counters`` and ``limit`` are the card's, and outlive this.
        """
        self._link = link
        self._frontend = offer.domid
        self.counters = counters
        self._tx_limit = frame_limit
        self._rx_limit = frame_limit if offer.takes_chains else min(frame_limit, PAGE_SIZE)
        self._send = send
        self._broken = broken
        self._tells_of_room = offer.tells_of_room
        self._limit = limit
        self.is_open = True
        self._rest = b""  # slots of a packet that is not whole yet
        self._queue: Sequence[bytes] = ()
        self._looks_left = 0
        self._is_queued = False  # its turn comes again without an event
        self._waits_for_credit = False
        self._waits_to_look = False
        with ExitStack() as undo:
            pages = []
            for ref in (offer.tx_ref, offer.rx_ref):
                page = link.map_grant(offer.domid, ref, writable=True)
                undo.callback(link.unmap_grant, page)
                pages.append(page)
            self._tx = BackRing(pages[0], TX_RING)
            self._rx = BackRing(pages[1], RX_RING)
            # What groups a frontend has told a backend before this one, nobody knows: it gets all.
            self._groups = GroupFilter(is_on=offer.filters_groups and not self._tx.was_used)
            self.tx_port = self.rx_port = self._bind(offer.tx_port, undo)
            if offer.rx_port == offer.tx_port:
                link.on_event(self.tx_port, self._on_event)
            else:
                self.rx_port = self._bind(offer.rx_port, undo)
                link.on_event(self.tx_port, self._on_tx_event)
                link.on_event(self.rx_port, self._on_rx_event)
            self._undo = undo.pop_all()

    def _bind(self, theirs: int, undo: ExitStack) -> int:
        port = self._link.bind_interdomain(self._frontend, theirs)
        undo.callback(self._link.close, port)
        return port

    def start(self) -> None:
        """Serve what is in the ring already: its event may have come before anybody listened."""
        self._pump_tx()

    def indexes(self) -> dict[str, int]:
        """Return the rings' indexes as they stand; none where the pages are given back."""
        if not self.is_open:
            return {}
        rings = {"tx": self._tx, "rx": self._rx}
        return {
            f"{name} {index}": value
            for name, ring in rings.items()
            for index, value in ring.indexes().items()
        }

    def close(self, drained: Callable[[], None]) -> None:
        """Give rings and ports back; nothing is in work, so it is ``drained`` at once."""
        self._let_go()
        drained()

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Take what the bridge brings, in order."""
        if not self.is_open:
            self.counters.rx_dropped += len(frames)
            return
        self._queue = [*self._queue, *self._wanted(frames)]
        self._pump_rx()
        excess = len(self._queue) - QUEUE_FRAMES
        if excess > 0:
            self._queue = self._queue[:QUEUE_FRAMES]
            self.counters.rx_dropped += excess

    def _let_go(self) -> None:
        if self.is_open:
            self.is_open = False
            self.counters.rx_dropped += len(self._queue)
            self._queue = ()
            self._publish_tx()  # what isn't answered, a frontend that begins anew sends again
            self._undo.close()

    def _fail(self, error: PeerError) -> None:
        self._let_go()
        self._broken(error)

    def _mourn(self, refused: Refused) -> None:
        """Give everything back: the frontend's domain has ended, and with it all its offers."""
        assert refused.errno == ESRCH, refused
        self._let_go()

    # -- events -------------------------------------------------------------------------------

    def _on_event(self) -> None:
        self._on_tx_event()
        self._pump_rx()

    def _on_tx_event(self) -> None:
        self.counters.events += 1
        if not self._is_queued:
            self._pump_tx()

    def _on_rx_event(self) -> None:
        self.counters.events += 1
        self._pump_rx()

    def _notify(self, port: int) -> None:
        self.counters.notifications += 1
        self._link.notify(port)

    # -- what the frontend sends --------------------------------------------------------------

    def _pump_tx(self) -> None:
        """Take what is there, and rest only after the final check."""
        if not self.is_open:
            return
        self._publish_tx()
        if self._waits_for_credit:
            return
        frames: Sequence[bytes] = ()
        try:
            waiting = self._tx.waiting()
            if waiting:
                count = min(waiting, self._may_take())
                if not count:
                    return
                frames = self._transmit(self._tx.take_slots(count))
                if count > FEW:
                    self._publish_tx()
            self._looks_left = LOOKS if waiting else self._looks_left - 1
            if self._looks_left > 0 or self._tx.has_more():
                self._come_again()
        except PeerError as error:
            self._fail(error)
        except Refused as refused:
            self._mourn(refused)
        if frames:
            self._pass_on(frames)

    def _publish_tx(self) -> None:
        if self._tx.publish():
            self._notify(self.tx_port)

    def _come_again(self) -> None:
        """Look at the ring after the next turn of a guest."""
        if not self._is_queued:
            self._is_queued = True
            self._link.defer(self._next_turn, charge=self._frontend)

    def _next_turn(self) -> None:
        self._is_queued = False
        self._pump_tx()

    def _may_take(self) -> int:
        """Count the slots that may be taken now; where it is none, note when there will be some.

        Where a rate is limited, as many as surely stay within it, and one more.
        """
        if self._limit is None:
            return MOST_AT_ONCE
        credit = self._limit.credit(self._link.now_ns())
        if credit > 0:
            return min(MOST_AT_ONCE, credit // self._tx_limit + 1)
        self._waits_for_credit = True
        self._link.call_at(self._limit.next_ns(), self._has_credit, charge=self._frontend)
        return 0

    def _has_credit(self) -> None:
        self._waits_for_credit = False
        self._pump_tx()

    def _pass_on(self, frames: Sequence[bytes]) -> None:
        """Send frames into the bridge."""
        size = sum(map(len, frames))
        self.counters.tx_packets += len(frames)
        self.counters.tx_bytes += size
        if self._limit is not None:
            self._limit.spend(size)
        self._send(frames)

    def _transmit(self, slots: bytes) -> Sequence[bytes]:
        """Copy the packets that are whole, answer their slots, return them. Raises PeerError."""
        if not self._rest:
            refs, offsets, flags, ids, sizes = tx_columns(slots)
            if are_plain(flags, sizes, self._tx_limit):
                copied = self._link.copy_from_grants(self._frontend, refs, offsets, sizes)
                if any(flags):
                    for index, flag in enumerate(flags):
                        if flag & NETTXF_csum_blank:
                            copied[index] = complete(copied[index])
                if all(copied):
                    self._tx.put_slots(tx_responses(ids, ALL_OKAY))
                    return copied
                statuses = [NETIF_RSP_OKAY if frame else NETIF_RSP_ERROR for frame in copied]
                self._tx.put_slots(tx_responses(ids, statuses))
                self.counters.tx_errors += copied.count(b"")
                return [frame for frame in copied if frame]
        packets, self._rest = parse(self._rest + slots, self._tx_limit)
        return self._transmit_packets(packets)

    def _transmit_packets(self, packets: Sequence[Packet]) -> Sequence[bytes]:
        """Do the same for packets of any form."""
        pieces = [piece for packet in packets for piece in packet.pieces]
        refs, offsets, sizes = zip(*pieces, strict=True) if pieces else ((), (), ())
        copied = iter(self._link.copy_from_grants(self._frontend, refs, offsets, sizes))
        frames = []
        for packet in packets:
            own = [next(copied) for _ in packet.pieces]
            if packet.group_changes and not packet.why_not:
                is_okay = self._groups.change(packet.group_changes)
            else:
                frame = b"".join(own) if all(own) else b""
                if packet.is_blank:
                    frame = complete(frame)
                is_okay = bool(frame)
                if frame:
                    frames.append(frame)
            self.counters.tx_errors += not is_okay
            status = NETIF_RSP_OKAY if is_okay else NETIF_RSP_ERROR
            self._tx.put_slots(packet.responses(status))
        return frames

    # -- what it receives ---------------------------------------------------------------------

    def _wanted(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Leave out what the frontend has not asked for, or can't take."""
        if self._groups.is_on:
            given = len(frames)
            frames = self._groups.wanted(frames)
            self.counters.rx_filtered += given - len(frames)
        if max(map(len, frames), default=0) > self._rx_limit:
            given = len(frames)
            frames = [frame for frame in frames if len(frame) <= self._rx_limit]
            self.counters.rx_dropped += given - len(frames)
        return frames

    def _pump_rx(self) -> None:
        """Hand over what waits, as far as there is room; else be told of room."""
        try:
            while self.is_open and self._queue:
                room, needed = self._rx.waiting(), slots_for(self._queue[0])
                if room >= needed:
                    self._queue = self._queue[self._receive(self._queue, room) :]
                elif not self._rx.has_more(needed):
                    self._look_again()
                    return
        except PeerError as error:
            self._fail(error)
        except Refused as refused:
            self._mourn(refused)

    def _receive(self, frames: Sequence[bytes], room: int) -> int:
        """Copy frames into the frontend's pages, as many as there is room for; count them."""
        pieces = frames[:room]
        sizes = list(map(len, pieces))
        count, flags = len(pieces), [0] * len(pieces)
        if max(sizes) > PAGE_SIZE:
            count, pieces, flags = cut(pieces, room)
            sizes = list(map(len, pieces))
        ids, refs = rx_columns(self._rx.take_slots(len(pieces)))
        refused = self._link.copy_to_grants(self._frontend, refs, bytes(len(refs)), pieces)
        lost = spoil(sizes, flags, refused) if refused else 0
        self._rx.put_slots(rx_responses(ids, flags, sizes))
        self.counters.rx_errors += lost
        self.counters.rx_packets += count - lost
        self.counters.rx_bytes += sum(size for size in sizes if size > 0) if lost else sum(sizes)
        if self._rx.publish():
            self._notify(self.rx_port)
        return count

    def _look_again(self) -> None:
        """Look for room later, if the frontend may not tell of it."""
        if not self._tells_of_room and not self._waits_to_look:
            self._waits_to_look = True
            due_ns = self._link.now_ns() + LOOK_AGAIN_NS
            self._link.call_at(due_ns, self._look, charge=self._frontend)

    def _look(self) -> None:
        self._waits_to_look = False
        self._pump_rx()
