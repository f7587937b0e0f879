# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels: a domain's ports, and the two-level bitmaps that tell it of events.

::

              alloc_unbound            bind_interdomain (by the peer named)
    CLOSED ------------------> UNBOUND ------------------------------------> INTERDOMAIN
      |^                          |  ^                                          |   |
      |'---------- close ---------'  '------------ close by the peer -----------'   |
      |^------------------------------- close --------------------------------------'
      |
      | bind_virq, bind_ipi                close
      '---------------------> VIRQ, IPI -----------> CLOSED

Invariants:

1. An interdomain port and its peer name each other; the peer's domain is alive.
2. Port 0 is never used; the lowest closed port is given first, and none beyond ``max_port``.
3. When a port is closed it is made neither pending nor masked.
4. A virtual interrupt of a vCPU has one port at most, and ``_virqs`` names exactly those.
5. A vCPU in ``pollers`` isn't runnable.

Delivery, in this order: the port's pending bit; if that was clear and the port isn't masked, the
selector bit of the vCPU that the port notifies; if that was clear, that vCPU's pending byte, and if
it was clear the vCPU wakes. Last, whoever polls the port wakes, masked or not. A domain whose
kernel is Python has no use for bitmaps: its ``on_pending`` is called instead.
Source: public/event_channel.h; public/xen.h, shared_info.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    EPERM,
    ESRCH,
    EVTCHN_2L_NR_CHANNELS,
    NR_VIRQS,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_EVTCHN_PENDING_SEL,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

_BITS: Final = 32  # per word of the bitmaps
_CLOSED_PER_CALL: Final = 64  # then a reset lets others have their turn
# Each vCPU has these; all others are the machine's, for domains that manage it.
_VIRQS_OF_VCPUS: Final = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU))


class PortState(Enum):
    """What a port is bound to; the values are those of EVTCHNOP_status."""

    CLOSED = EVTCHNSTAT_closed
    UNBOUND = EVTCHNSTAT_unbound
    INTERDOMAIN = EVTCHNSTAT_interdomain
    VIRQ = EVTCHNSTAT_virq
    IPI = EVTCHNSTAT_ipi


# Finding a member through its class takes 0.15 us, a third of what an event costs here.
_INTERDOMAIN: Final = PortState.INTERDOMAIN
_VIRQ: Final = PortState.VIRQ
_IPI: Final = PortState.IPI
_RUNNABLE: Final = VcpuState.RUNNABLE
assert VCPU_INFO_EVTCHN_UPCALL_PENDING == 0


@dataclass(slots=True)
class Channel:
    """One port that is not closed."""

    state: PortState
    vcpu: int = 0  # whom it notifies
    remote: int = 0  # domid: who may bind it, or who has
    remote_port: int = 0
    virq: int = 0


class EventChannels:
    """The ports of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._memory = domain.machine.memory
        self._code = self._memory.code
        self._m32 = self._memory.m32
        self._mfn = domain.shared_info_mfn
        shared = self._mfn << PAGE_SHIFT
        self._pending = (shared + SHARED_INFO_EVTCHN_PENDING) >> 2
        self._mask = (shared + SHARED_INFO_EVTCHN_MASK) >> 2
        self._channels: list[Channel | None] = [None]  # by port; grows as ports are used
        self._virqs: dict[tuple[int, int], int] = {}  # (vCPU, VIRQ) -> port
        self._reset_at = 0  # the port at which an unfinished reset goes on; 0 for none
        self.max_port = EVTCHN_2L_NR_CHANNELS - 1
        self.pollers: dict[int, frozenset[int]] = {}  # vCPU -> the ports that it waits for
        self._search_from = 1  # no port below is closed
        self.on_pending: Callable[[int], None] | None = None
        self.receive = self._make_receive()
        self.send = self._make_send()

    # -- binding ------------------------------------------------------------------------------

    def alloc_unbound(self, remote: int) -> int:
        """Open a port that domain ``remote`` may bind; return it.

        Raises Refused(ENOSPC).
        """
        if remote == DOMID_SELF:
            remote = self._domain.domid
        return self._bind(Channel(PortState.UNBOUND, remote=remote))

    def bind_interdomain(self, remote: int, remote_port: int) -> int:
        """Join the port of ``remote`` that waits for this domain; return the local port.

        The local port is pending at once, for what was sent before it existed.
        Raises Refused: ESRCH, EINVAL, ENOSPC.
        """
        domid = self._domain.domid
        if remote == DOMID_SELF:
            remote = domid
        peer = self._domain.peers.get(remote)
        if peer is None:
            raise Refused(ESRCH, "events.no-such-domain", remote)
        theirs = peer.events.channel(remote_port)
        if theirs is None or theirs.state is not PortState.UNBOUND or theirs.remote != domid:
            raise Refused(EINVAL, "events.not-offered", remote_port)
        port = self._bind(Channel(PortState.INTERDOMAIN, remote=remote, remote_port=remote_port))
        theirs.state = PortState.INTERDOMAIN
        theirs.remote_port = port
        self.receive(port)
        return port

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """Open a port for a virtual interrupt of a vCPU; return it.

        Those that are no vCPU's own need privilege (Xen lets anybody bind them, and raises them
        for Dom0 only). Raises Refused: EINVAL, EPERM, ENOENT, EEXIST, ENOSPC.
        """
        if not 0 <= virq < NR_VIRQS:
            raise Refused(EINVAL, "events.no-such-virq", virq)
        if virq not in _VIRQS_OF_VCPUS:
            if not self._domain.is_privileged:
                raise Refused(EPERM, "events.virq-needs-privilege", virq)
            if vcpu:
                raise Refused(EINVAL, "events.virq-is-no-vcpus", virq)
        self._check_vcpu(vcpu)
        if (vcpu, virq) in self._virqs:
            raise Refused(EEXIST, "events.virq-is-bound", virq)
        port = self._bind(Channel(PortState.VIRQ, vcpu, virq=virq))
        self._virqs[vcpu, virq] = port
        return port

    def bind_ipi(self, vcpu: int) -> int:
        """Open a port by which the domain interrupts one of its own vCPUs; return it.

        Raises Refused: ENOENT, ENOSPC.
        """
        self._check_vcpu(vcpu)
        return self._bind(Channel(PortState.IPI, vcpu))

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Let a port notify another vCPU from the next event on.

        Raises Refused: ENOENT, and EINVAL where the port is closed or belongs to one vCPU.
        """
        self._check_vcpu(vcpu)
        channel = self._open(port)
        if channel.state is PortState.IPI or (
            channel.state is PortState.VIRQ and channel.virq in _VIRQS_OF_VCPUS
        ):
            raise Refused(EINVAL, "events.port-keeps-its-vcpu", port)
        channel.vcpu = vcpu

    def close(self, port: int) -> None:
        """Close a port; its peer's, if any, waits for this domain again.

        Raises Refused(EINVAL).
        """
        channel = self._open(port)
        if channel.state is PortState.INTERDOMAIN:
            theirs = self._domain.peers[channel.remote].events.channel(channel.remote_port)
            assert theirs is not None, (self._domain.domid, port)
            theirs.state = PortState.UNBOUND
            theirs.remote = self._domain.domid
            theirs.remote_port = 0
        elif channel.state is PortState.VIRQ:
            owner = channel.vcpu if channel.virq in _VIRQS_OF_VCPUS else 0
            del self._virqs[owner, channel.virq]
        self._channels[port] = None
        self._search_from = min(self._search_from, port)
        word, bit = port // _BITS, 1 << port % _BITS
        self._m32[self._pending + word] &= ~bit
        self._m32[self._mask + word] &= ~bit
        self._wrote()

    def close_all(self) -> None:
        """Close every port, at the domain's end."""
        for port, channel in enumerate(self._channels):
            if channel is not None:
                self.close(port)
        self.pollers.clear()

    def reset(self, *, goes_on: bool) -> bool:
        """Close the next stretch of ports; False where there are more, and it has to go on.

        Raises Refused: EBUSY for a second reset beside an unfinished one, or for going on with
        none; EAGAIN at the end where ports were opened meanwhile.
        """
        if goes_on != bool(self._reset_at):
            raise Refused(EBUSY, "events.reset-in-progress")
        first = self._reset_at or 1
        end = first + _CLOSED_PER_CALL
        for port, channel in enumerate(self._channels[first:end], first):
            if channel is not None:
                self.close(port)
        if end < len(self._channels):
            self._reset_at = end
            return False
        self._reset_at = 0
        if any(self._channels):
            raise Refused(EAGAIN, "events.opened-during-reset")
        return True

    def channel(self, port: int) -> Channel | None:
        """Return what a port is bound to; None where it is closed or no port at all."""
        return self._channels[port] if 0 <= port < len(self._channels) else None

    def channel_or_closed(self, port: int) -> Channel | None:
        """Return what a port is bound to, None where it is closed.

        Raises Refused(EINVAL) for a number that no port can have.
        """
        if not 0 <= port <= self.max_port:
            raise Refused(EINVAL, "events.no-such-port", port)
        return self.channel(port)

    # -- events -------------------------------------------------------------------------------

    def _make_send(self) -> Callable[[int], None]:
        """Bind the way of every event that a domain sends."""
        channels, receive, peers = self._channels, self.receive, self._domain.peers

        def send(port: int) -> None:
            """Notify the other end; nobody hears it while there is none. Raises Refused(EINVAL)."""
            channel = channels[port] if 0 <= port < len(channels) else None
            if channel is None:
                raise Refused(EINVAL, "events.no-such-port", port)
            state = channel.state
            if state is _INTERDOMAIN:
                peers[channel.remote].events.receive(channel.remote_port)
            elif state is _IPI:
                receive(port)
            elif state is _VIRQ:
                raise Refused(EINVAL, "events.virq-is-not-sent", port)

        return send

    def raise_virq(self, vcpu: int, virq: int) -> None:
        """Raise a virtual interrupt of a vCPU (0 for the machine's); lost where it isn't bound."""
        port = self._virqs.get((vcpu, virq))
        if port is not None:
            self.receive(port)

    def unmask(self, port: int) -> None:
        """Clear an open port's mask bit and deliver what has waited.

        Raises Refused(EINVAL) for a number that no port can have.
        """
        channel = self.channel_or_closed(port)
        if channel is None:
            return
        word, bit = port // _BITS, 1 << port % _BITS
        m32 = self._m32
        if m32[self._mask + word] & bit:
            m32[self._mask + word] &= ~bit
            if m32[self._pending + word] & bit:
                self._select(word, channel.vcpu)
            self._wrote()

    def _make_receive(self) -> Callable[[int], None]:
        """Bind the way of every event (closure cells cost a third of what attributes do)."""
        m32, code, mfn = self._m32, self._code, self._mfn
        pending_at, mask_at = self._pending, self._mask
        channels, pollers = self._channels, self.pollers
        select = self._select = self._make_select()

        def receive(port: int) -> None:
            """Take an event for an open port."""
            if self.on_pending is not None:
                self.on_pending(port)
                return
            word, bit = port >> 5, 1 << (port & 31)
            pending = m32[pending_at + word]
            if pending & bit:
                return
            m32[pending_at + word] = pending | bit
            if not m32[mask_at + word] & bit:
                channel = channels[port]
                assert channel is not None, port
                select(word, channel.vcpu)
            if code[mfn]:
                self._memory.wrote(mfn)
            if pollers:
                self._end_polls_of(port)

        return receive

    def _make_select(self) -> Callable[[int, int], None]:
        """Bind what follows where the port's bit is news."""
        m8, m32, code = self._memory.m8, self._m32, self._code
        vcpus = self._domain.vcpus

        def select(word: int, vcpu_id: int) -> None:
            """Set the selector bit of a word on a vCPU, and its pending byte if that is news."""
            vcpu = vcpus[vcpu_id]
            info = vcpu.info_maddr
            at = (info + VCPU_INFO_EVTCHN_PENDING_SEL) >> 2
            selected = m32[at]
            if selected >> word & 1:
                return
            m32[at] = selected | 1 << word
            if not m8[info]:
                m8[info] = 1
                if vcpu.state is not _RUNNABLE:
                    self._wake(vcpu)
            if code[info >> PAGE_SHIFT]:  # which needn't be in shared_info
                self._memory.wrote(info >> PAGE_SHIFT)

        return select

    # -- polling ------------------------------------------------------------------------------

    def poll(self, vcpu: int, ports: Iterable[int]) -> bool:
        """Tell whether one of ``ports`` is pending; where none is, note that a vCPU waits.

        The caller then blocks that vCPU; the next event of these ports wakes it, masked or not.
        Raises Refused(EINVAL) at a port that isn't open, unless one before it is pending.
        """
        wanted = []
        for port in ports:
            self._open(port)
            if self._m32[self._pending + port // _BITS] >> port % _BITS & 1:
                return True
            wanted.append(port)
        self.pollers[vcpu] = frozenset(wanted)
        return False

    def end_poll(self, vcpu: int) -> None:
        """Wake a vCPU that polls, its time being up; nothing where it doesn't."""
        if vcpu in self.pollers:
            self._wake(self._domain.vcpus[vcpu])

    def _end_polls_of(self, port: int) -> None:
        for vcpu in [vcpu for vcpu, ports in self.pollers.items() if port in ports]:
            self._wake(self._domain.vcpus[vcpu])

    def _wake(self, vcpu: Vcpu) -> None:
        self.pollers.pop(vcpu.id, None)
        vcpu.wake()

    # -- common -------------------------------------------------------------------------------

    def _check_vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < len(self._domain.vcpus):
            raise Refused(ENOENT, "events.no-such-vcpu", vcpu)

    def _open(self, port: int) -> Channel:
        channel = self.channel(port)
        if channel is None:
            raise Refused(EINVAL, "events.no-such-port", port)
        return channel

    def _bind(self, channel: Channel) -> int:
        """Give a channel the lowest closed port."""
        channels = self._channels
        for port in range(self._search_from, len(channels)):
            self._search_from = port
            if channels[port] is None:
                channels[port] = channel
                return port
        if len(channels) > self.max_port:
            raise Refused(ENOSPC, "events.ports-exhausted", self.max_port)
        channels.append(channel)
        return len(channels) - 1

    def _wrote(self) -> None:
        if self._code[self._mfn]:
            self._memory.wrote(self._mfn)

    # -- audit --------------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """Return what contradicts the invariants."""
        who = f"domain {self._domain.domid}"
        found = []
        if self._channels[0] is not None:
            found.append(f"{who} uses port 0")
        if len(self._channels) > self.max_port + 1:
            found.append(f"{who} has ports beyond {self.max_port}")
        virqs = {}
        for port, channel in enumerate(self._channels):
            if channel is None:
                continue
            if not 0 <= channel.vcpu < len(self._domain.vcpus):
                found.append(f"{who} port {port} notifies vCPU {channel.vcpu}, which it has not")
            if channel.state is PortState.INTERDOMAIN and not self._is_named_by_peer(port, channel):
                found.append(
                    f"{who} port {port} names domain {channel.remote} port "
                    f"{channel.remote_port}, which does not name it"
                )
            elif channel.state is PortState.VIRQ:
                owner = channel.vcpu if channel.virq in _VIRQS_OF_VCPUS else 0
                virqs[owner, channel.virq] = port
        if virqs != self._virqs:
            found.append(f"{who} has VIRQs {self._virqs} by number, but {virqs} by port")
        found += [
            f"{who} vCPU {vcpu} polls and is runnable"
            for vcpu in self.pollers
            if self._domain.vcpus[vcpu].state is VcpuState.RUNNABLE
        ]
        return found

    def _is_named_by_peer(self, port: int, channel: Channel) -> bool:
        peer = self._domain.peers.get(channel.remote)
        theirs = peer.events.channel(channel.remote_port) if peer is not None else None
        return theirs is not None and (theirs.state, theirs.remote, theirs.remote_port) == (
            PortState.INTERDOMAIN,
            self._domain.domid,
            port,
        )
