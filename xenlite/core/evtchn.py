# SPDX-License-Identifier: GPL-2.0-or-later
"""Event channels: a domain's ports, and the two-level bitmaps that tell it of events.

::

              alloc_unbound            bind_interdomain (by the peer named)
    CLOSED ------------------> UNBOUND ------------------------------------> INTERDOMAIN
       ^                          |  ^                                          |   |
       '---------- close ---------'  '------------ close by the peer -----------'   |
       ^------------------------------- close --------------------------------------'

Invariants:

1. An interdomain port and its peer name each other; the peer's domain is alive.
2. Port 0 is never used; the lowest closed port is given first.
3. A closed port is neither pending nor masked.

Delivery: the port's pending bit; if that was clear and the port isn't masked, the vCPU's selector
bit; if that was clear, the vCPU's pending byte, and a blocked vCPU wakes. A domain whose kernel is
Python has no use for bitmaps: its ``on_pending`` is called instead.
Source: public/event_channel.h; public/xen.h, shared_info.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EINVAL,
    ENOSPC,
    ESRCH,
    EVTCHN_2L_NR_CHANNELS,
    SHARED_INFO_EVTCHN_MASK,
    SHARED_INFO_EVTCHN_PENDING,
    VCPU_INFO_EVTCHN_PENDING_SEL,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_unbound,
)
from xenlite.core.vcpu import VcpuState
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_BITS: Final = 32  # per word of the bitmaps


class PortState(Enum):
    """What a port is bound to; the values are those of EVTCHNOP_status."""

    CLOSED = EVTCHNSTAT_closed
    UNBOUND = EVTCHNSTAT_unbound
    INTERDOMAIN = EVTCHNSTAT_interdomain


@dataclass(slots=True)
class Channel:
    """One port that is not closed."""

    state: PortState
    remote: int  # domid: who may bind it, or who has
    remote_port: int = 0
    vcpu: int = 0  # whom it notifies


class EventChannels:
    """The ports of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._memory = domain.machine.memory
        self._m8 = self._memory.m8
        self._m32 = self._memory.m32
        self._mfn = domain.shared_info_mfn
        shared = self._mfn << PAGE_SHIFT
        self._pending = (shared + SHARED_INFO_EVTCHN_PENDING) >> 2
        self._mask = (shared + SHARED_INFO_EVTCHN_MASK) >> 2
        self._channels: list[Channel | None] = [None]  # by port; grows as ports are used
        self._search_from = 1  # no port below is closed
        self.on_pending: Callable[[int], None] | None = None

    # -- binding ------------------------------------------------------------------------------

    def alloc_unbound(self, remote: int) -> int:
        """Open a port that domain ``remote`` may bind; return it.

        Raises Refused(ENOSPC).
        """
        if remote == DOMID_SELF:
            remote = self._domain.domid
        port = self._lowest_closed()
        self._channels[port] = Channel(PortState.UNBOUND, remote)
        return port

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
        port = self._lowest_closed()
        self._channels[port] = Channel(PortState.INTERDOMAIN, remote, remote_port)
        theirs.state = PortState.INTERDOMAIN
        theirs.remote_port = port
        self._set_pending(port)
        return port

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

    def channel(self, port: int) -> Channel | None:
        """Return what a port is bound to; None where it is closed or no port at all."""
        return self._channels[port] if 0 <= port < len(self._channels) else None

    def channel_or_closed(self, port: int) -> Channel | None:
        """Return what a port is bound to, None where it is closed.

        Raises Refused(EINVAL) for a number that no port can have.
        """
        if not 0 <= port < EVTCHN_2L_NR_CHANNELS:
            raise Refused(EINVAL, "events.no-such-port", port)
        return self.channel(port)

    # -- events -------------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """Notify the other end; nobody hears it while there is none. Raises Refused(EINVAL)."""
        channel = self._open(port)
        if channel.state is PortState.INTERDOMAIN:
            self._domain.peers[channel.remote].events.receive(channel.remote_port)

    def receive(self, port: int) -> None:
        """Take a peer's notification of an open port."""
        self._set_pending(port)

    def unmask(self, port: int) -> None:
        """Clear a port's mask bit and deliver what has waited; as in Xen, of closed ports too.

        Raises Refused(EINVAL) for a number that no port can have.
        """
        self.channel_or_closed(port)
        word, bit = port // _BITS, 1 << port % _BITS
        m32 = self._m32
        if m32[self._mask + word] & bit:
            m32[self._mask + word] &= ~bit
            if m32[self._pending + word] & bit:
                self._select(port)
            self._wrote()

    def _set_pending(self, port: int) -> None:
        if self.on_pending is not None:
            self.on_pending(port)
            return
        word, bit = port // _BITS, 1 << port % _BITS
        m32 = self._m32
        pending = m32[self._pending + word]
        if pending & bit:
            return
        m32[self._pending + word] = pending | bit
        if not m32[self._mask + word] & bit:
            self._select(port)
        self._wrote()

    def _select(self, port: int) -> None:
        """Set the port's selector bit on its vCPU, and its pending byte if that is news."""
        channel = self.channel(port)
        vcpu = self._domain.vcpus[channel.vcpu if channel is not None else 0]
        at = (vcpu.info_maddr + VCPU_INFO_EVTCHN_PENDING_SEL) >> 2
        bit = 1 << port // _BITS
        selected = self._m32[at]
        if selected & bit:
            return
        self._m32[at] = selected | bit
        self._m8[vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_PENDING] = 1
        if vcpu.state is VcpuState.BLOCKED:
            vcpu.state = VcpuState.RUNNABLE

    # -- common -------------------------------------------------------------------------------

    def _open(self, port: int) -> Channel:
        channel = self.channel(port)
        if channel is None:
            raise Refused(EINVAL, "events.no-such-port", port)
        return channel

    def _lowest_closed(self) -> int:
        channels = self._channels
        for port in range(self._search_from, len(channels)):
            self._search_from = port
            if channels[port] is None:
                return port
        if len(channels) == EVTCHN_2L_NR_CHANNELS:
            raise Refused(ENOSPC, "events.ports-exhausted", EVTCHN_2L_NR_CHANNELS)
        channels.append(None)
        return len(channels) - 1

    def _wrote(self) -> None:
        if self._memory.code[self._mfn]:
            self._memory.wrote(self._mfn)

    def audit(self) -> list[str]:
        """Return what contradicts the invariants."""
        domid = self._domain.domid
        found = []
        if self._channels[0] is not None:
            found.append(f"domain {domid} uses port 0")
        for port, channel in enumerate(self._channels):
            if channel is None or channel.state is not PortState.INTERDOMAIN:
                continue
            peer = self._domain.peers.get(channel.remote)
            theirs = peer.events.channel(channel.remote_port) if peer is not None else None
            if theirs is None or (theirs.state, theirs.remote, theirs.remote_port) != (
                PortState.INTERDOMAIN,
                domid,
                port,
            ):
                found.append(
                    f"domain {domid} port {port} names domain {channel.remote} port "
                    f"{channel.remote_port}, which does not name it"
                )
        return found
