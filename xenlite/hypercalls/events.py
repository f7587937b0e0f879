# SPDX-License-Identifier: GPL-2.0-or-later
"""event_channel_op: ports between domains (public/event_channel.h).

Every operation copies its structure in once; where it has a result, the structure must be
writable before anything happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    ENOSYS,
    EPERM,
    ESRCH,
    EVTCHN_OP_CMD,
    EVTCHN_OP_U,
    SIZEOF_EVTCHN_ALLOC_UNBOUND,
    SIZEOF_EVTCHN_BIND_INTERDOMAIN,
    SIZEOF_EVTCHN_CLOSE,
    SIZEOF_EVTCHN_SEND,
    SIZEOF_EVTCHN_STATUS,
    SIZEOF_EVTCHN_UNMASK,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnClose,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_close,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnSend,
    EVTCHNSTAT_closed,
    EvtchnStatus,
    EvtchnUnmask,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_event_channel_op_compat,
)
from xenlite.core.evtchn import EventChannels, PortState
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler

if TYPE_CHECKING:
    from xenlite.core.domain import Domain


class EventCalls:
    """The event channel hypercalls of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._events = domain.events
        self._operations = {
            EVTCHNOP_send: self._send,
            EVTCHNOP_unmask: self._unmask,
            EVTCHNOP_close: self._close,
            EVTCHNOP_status: self._status,
            EVTCHNOP_alloc_unbound: self._alloc_unbound,
            EVTCHNOP_bind_interdomain: self._bind_interdomain,
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_event_channel_op: self.event_channel_op,
            HYPERVISOR_event_channel_op_compat: self.event_channel_op_compat,
        }

    def event_channel_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Do one operation on the structure at ``argument``."""
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(ENOSYS, "events.command", command)
        operation(argument)
        return 0

    def event_channel_op_compat(self, op: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Do the same by the old number: command and structure are one."""
        command = self._guest_memory.read_u32(op + EVTCHN_OP_CMD)
        return self.event_channel_op(command, op + EVTCHN_OP_U, 0, 0, 0)

    def _send(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_SEND)
        self._events.send(EvtchnSend.unpack(copy).port)

    def _unmask(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_UNMASK)
        self._events.unmask(EvtchnUnmask.unpack(copy).port)

    def _close(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_CLOSE)
        self._events.close(EvtchnClose.unpack(copy).port)

    def _status(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_STATUS)
        asked = EvtchnStatus.unpack(copy)
        events = self._events_of(asked.dom)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_STATUS)
        channel = events.channel_or_closed(asked.port)
        state, vcpu, bound = EVTCHNSTAT_closed, 0, bytes(8)
        if channel is not None:
            state, vcpu = channel.state.value, channel.vcpu
            bound = channel.remote.to_bytes(4, "little")
            interdomain = channel.state is PortState.INTERDOMAIN
            bound += (channel.remote_port if interdomain else 0).to_bytes(4, "little")
        answer = asked.replace(status=state, vcpu=vcpu, u=bound)
        self._guest_memory.write(argument, answer.pack())

    def _alloc_unbound(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_ALLOC_UNBOUND)
        asked = EvtchnAllocUnbound.unpack(copy)
        events = self._events_of(asked.dom)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_ALLOC_UNBOUND)
        port = events.alloc_unbound(asked.remote_dom)
        self._guest_memory.write(argument, asked.replace(port=port).pack())

    def _bind_interdomain(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_BIND_INTERDOMAIN)
        asked = EvtchnBindInterdomain.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_BIND_INTERDOMAIN)
        port = self._events.bind_interdomain(asked.remote_dom, asked.remote_port)
        self._guest_memory.write(argument, asked.replace(local_port=port).pack())

    def _events_of(self, domid: int) -> EventChannels:
        """Return the ports of the domain itself; another's need privilege."""
        if domid in (DOMID_SELF, self._domain.domid):
            return self._events
        peer = self._domain.peers.get(domid)
        if peer is None:
            raise Refused(ESRCH, "events.no-such-domain", domid)
        if not self._domain.is_privileged:
            raise Refused(EPERM, "events.foreign-domain", domid)
        return peer.events
