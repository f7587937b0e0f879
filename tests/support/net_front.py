# SPDX-License-Identifier: GPL-2.0-or-later
"""A network frontend whose guest is the test: real domain, real grants and ports, no kernel.

Its pages are read and written in machine memory, as a guest would; backend and bridge are the real
ones, and everything they defer runs in the hypervisor's own loop (``settle``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from struct import pack

from tests.support.front_domain import PAGE, GuestPage, PlainStore
from xenlite.abi.x86_32p import (
    NETIF_RSP_NULL,
    GTF_permit_access,
    NetifRxRequest,
    NetifRxResponse,
    NetifTxRequest,
    NetifTxResponse,
    NETRXF_more_data,
    NETTXF_more_data,
)
from xenlite.dom0.ethernet import build, parse_address
from xenlite.dom0.netback import NetRings
from xenlite.dom0.netif import DEFAULT_MTU, RX_RING, TX_RING
from xenlite.dom0.rate import Rate
from xenlite.dom0.slot_ring import FrontRing
from xenlite.dom0.switch import Bridge
from xenlite.dom0.vif import Vif, vif_paths
from xenlite.dom0.xenbus import State
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock

SLOTS = 256
TX_REF, RX_REF = 8, 9  # of the rings; a page is offered under its own number
FIRST_TX, FIRST_RX, SPARE = 16, 16 + SLOTS, 16 + 2 * SLOTS
MAC = "00:16:3e:00:00:{:02x}"


class NetFront:
    """The frontend, and the backend that it talks to."""

    def __init__(
        self,
        net: Net,
        *,
        mtu: int = DEFAULT_MTU,
        rate: Rate | None = None,
        handle: int = 0,
        domid: int | None = None,
    ) -> None:
        self.net = net
        self.hypervisor = net.hypervisor
        control = net.control
        if domid is None:
            domid = control.create_domain(f"front{handle}", max_pages=600, max_vcpus=1)
            self.mfns = control.populate(domid, 600)
            self.hypervisor.domains[domid].grants.grow(2)
        self.domid = domid
        self.domain = self.hypervisor.domains[domid]
        self.mac_text = MAC.format(len(net.fronts) + 1)
        self.mac = parse_address(self.mac_text)
        self.paths = vif_paths(0, domid, handle)
        self.said: list[str] = []
        self._mtu, self._rate = mtu, rate
        self.write("state", State.INITIALISING.value)
        self.vif = self.make_vif()
        self.tx: FrontRing
        self.rx: FrontRing
        self.tx_port = self.rx_port = 0
        self.statuses: dict[int, int] = {}  # by the id of a slot that was sent
        self.nulls = 0
        self._free_tx = list(range(SLOTS))
        self._posted: list[int] = []  # ids of receive slots, in order
        self._started: list[bytes] = []  # pieces of a packet that is not whole yet

    def make_vif(self) -> Vif:
        """Make the device, as a backend that starts again does too."""
        return Vif(
            self.net.link,
            self.net.store,
            self.paths,
            self.net.bridge,
            name=f"vif{self.domid}.{self.paths.number}",
            mac=self.mac_text,
            mtu=self._mtu,
            rate=self._rate,
            broken=lambda error: self.said.append(str(error)),
        )

    @property
    def rings(self) -> NetRings:
        """Return what serves the frontend, which is connected."""
        rings = self.vif.rings
        assert rings is not None, self.said
        return rings

    # -- the domain ---------------------------------------------------------------------------

    def offer(self, ref: int, page: int, flags: int = 0, *, to: int = 0) -> None:
        """Offer a page to the backend's domain."""
        content = pack("<HHI", GTF_permit_access | flags, to, self.mfns[page])
        table, index = divmod(ref, PAGE // 8)
        maddr = self.domain.grants.mfns[table] * PAGE + index * 8
        self.hypervisor.machine.memory.write(maddr, content)

    def revoke(self, ref: int) -> None:
        """Take an offer back."""
        table, index = divmod(ref, PAGE // 8)
        maddr = self.domain.grants.mfns[table] * PAGE + index * 8
        self.hypervisor.machine.memory.write(maddr, bytes(8))

    def page(self, number: int) -> GuestPage:
        """Return a page of the domain."""
        return GuestPage(self.hypervisor, self.mfns[number])

    # -- the device ---------------------------------------------------------------------------

    def show(self, state: State | int) -> None:
        """Show a state."""
        number = state.value if isinstance(state, State) else state
        self.net.store.write(f"{self.paths.frontend}/state", str(number))
        self.net.settle()

    @property
    def seen(self) -> str | None:
        """Return the state that the backend shows."""
        return self.net.store.read(f"{self.paths.backend}/state")

    def write(self, name: str, value: object) -> None:
        """Write a node of the frontend."""
        self.net.store.write(f"{self.paths.frontend}/{name}", str(value))

    def make_rings(self, start: int = 0) -> None:
        """Make rings of the first pages, with every slot to receive into."""
        for ref in (TX_REF, RX_REF):
            self.offer(ref, ref)
        for page in range(FIRST_TX, SPARE):
            self.offer(page, page)
        self.tx = FrontRing(self.page(TX_REF), TX_RING, start)
        self.rx = FrontRing(self.page(RX_REF), RX_RING, start)
        self._free_tx = list(range(SLOTS))
        self._posted = []
        self._started = []

    def connect(
        self,
        *,
        start: int = 0,
        split: bool = False,
        chains: bool = True,
        tells_of_room: bool = True,
        groups: bool = False,
        post: int = SLOTS,
    ) -> None:
        """Make rings, and let the backend join them."""
        self.make_rings(start)
        self.write("tx-ring-ref", TX_REF)
        self.write("rx-ring-ref", RX_REF)
        events = self.domain.events
        self.tx_port = self.rx_port = events.alloc_unbound(0)
        if split:
            self.rx_port = events.alloc_unbound(0)
            self.write("event-channel-tx", self.tx_port)
            self.write("event-channel-rx", self.rx_port)
        else:
            self.write("event-channel", self.tx_port)
        self.write("request-rx-copy", 1)
        self.write("feature-sg", int(chains))
        self.write("feature-rx-notify", int(tells_of_room))
        self.write("request-multicast-control", int(groups))
        self.show(State.CONNECTED)
        self.post(range(post))

    # -- sending ------------------------------------------------------------------------------

    def put(self, pieces: Sequence[tuple[int, bytes]], flags: int = 0, whole: int = -1) -> int:
        """Put a packet into the ring, each piece at an offset of a page of its own: its first id.

        ``whole`` is the size that it claims.
        """
        ids = [self._free_tx.pop() for _ in pieces]
        size = sum(len(data) for _, data in pieces) if whole < 0 else whole
        for n, (number, (offset, data)) in enumerate(zip(ids, pieces, strict=True)):
            self.page(FIRST_TX + number).write(offset, data)
            more = NETTXF_more_data if n < len(pieces) - 1 else 0
            own = (flags | more, size) if n == 0 else (more, len(data))
            self.put_slot(FIRST_TX + number, offset, own[0], number, own[1])
        return ids[0]

    def put_frame(self, frame: bytes, flags: int = 0) -> int:
        """Put a frame into the ring, in as few pieces as it needs."""
        pieces = [(0, frame[at : at + PAGE]) for at in range(0, len(frame), PAGE)]
        return self.put(pieces, flags)

    def put_slot(self, ref: int, offset: int, flags: int, number: int, size: int) -> None:
        """Put in one slot of any content."""
        self.tx.put(NetifTxRequest(ref, offset, flags, number, size).pack())

    def put_extra(self, kind: int, flags: int, content: bytes = bytes(6)) -> None:
        """Put in a slot of extra information."""
        self.tx.put(pack("<BB6s4x", kind, flags, content))

    def send(self) -> None:
        """Publish what was put in, and notify if the backend wants it."""
        if self.tx.publish():
            self.domain.events.send(self.tx_port)

    def take_statuses(self) -> None:
        """Note what became of the slots that were sent."""
        for raw in self.tx.take(SLOTS):
            response = NetifTxResponse.unpack(raw)
            if response.status == NETIF_RSP_NULL:
                self.nulls += 1
            else:
                self.statuses[response.id] = response.status
                if response.id < SLOTS:
                    self._free_tx.append(response.id)
        self.tx.has_more()

    def sent(self) -> dict[int, int]:
        """Send, wait until the backend is idle; return the statuses of slots, by their ids."""
        self.statuses = {}
        self.send()
        self.net.settle()
        self.take_statuses()
        return self.statuses

    @property
    def tx_room(self) -> int:
        """Count the frames of one slot that can be sent now."""
        return min(self.tx.room, len(self._free_tx))

    # -- receiving ----------------------------------------------------------------------------

    def post(self, numbers: Sequence[int]) -> None:
        """Put in slots to receive into."""
        for number in numbers:
            self.rx.put(NetifRxRequest(number, FIRST_RX + number).pack())
        self._posted += numbers
        if self.rx.publish():
            self.domain.events.send(self.rx_port)

    def take_responses(self) -> list[NetifRxResponse]:
        """Take what was answered; each response is in the slot of its request."""
        found = [NetifRxResponse.unpack(raw) for raw in self.rx.take(SLOTS)]
        asked, self._posted = self._posted[: len(found)], self._posted[len(found) :]
        assert [response.id for response in found] == asked
        self.rx.has_more()
        return found

    def receive(self, *, repost: bool = True) -> list[bytes]:
        """Take the frames that have come whole, and let others come into their slots."""
        frames = []
        responses = self.take_responses()
        for response in responses:
            if response.status > 0:
                page = self.page(FIRST_RX + response.id)
                self._started.append(page.read(response.offset, response.status))
            else:
                self._started = []
            if not response.flags & NETRXF_more_data and self._started:
                frames.append(b"".join(self._started))
                self._started = []
        if repost:
            self.post([response.id for response in responses])
        return frames


class Net:
    """One hypervisor with one bridge."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.hypervisor = Hypervisor(48 << 20, clock)
        self.control = self.hypervisor.control()
        self.link = self.hypervisor.link(0)
        self.store = PlainStore(self.link.defer)
        self.bridge = Bridge("net", self.link.now_ns)
        self.fronts: list[NetFront] = []

    def add(
        self, *, mtu: int = DEFAULT_MTU, rate: Rate | None = None, beside: NetFront | None = None
    ) -> NetFront:
        """Add a frontend in a domain of its own, or as another card of a domain that is there."""
        if beside is None:
            front = NetFront(self, mtu=mtu, rate=rate)
        else:
            handle = sum(other.domid == beside.domid for other in self.fronts)
            front = NetFront(self, mtu=mtu, rate=rate, handle=handle, domid=beside.domid)
            front.mfns = beside.mfns
        self.fronts.append(front)
        return front

    def settle(self, turns: int = 8) -> None:
        """Let the backends work: what one turn defers is done in the next."""
        for _ in range(turns):
            assert self.hypervisor.run(lambda: True)

    def close(self) -> None:
        """Take everything down, devices first, and demand that nothing is left."""
        for front in self.fronts:
            front.vif.close()
        assert self.bridge.plugs == ()
        assert self.control.audit() == []
        for front in self.fronts:
            assert list(front.domain.grants.uses()) == []
        dom0 = self.hypervisor.domains[0]
        assert list(dom0.maptrack.pins()) == []
        self.hypervisor.close()


@contextmanager
def net(clock: Clock | None = None) -> Iterator[Net]:
    """Make a bridge, and take everything down at the end."""
    made = Net(clock)
    with ExitStack() as undo:
        undo.callback(made.hypervisor.close)
        yield made
        undo.pop_all()  # what a failed test left may not be whole enough for the checks of close
    made.close()


def frame(to: bytes, source: bytes, payload: bytes, kind: int = 0x88B5) -> bytes:
    """Make an Ethernet frame; its type is one for local experiments."""
    return build(to, source, kind, payload)
