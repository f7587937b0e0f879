# SPDX-License-Identifier: GPL-2.0-or-later
"""event_channel_op: ports between domains, vCPUs and the machine (public/event_channel.h).

Every operation copies its structure in once; where it has a result, the structure must be
writable before anything happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EINVAL,
    ENOSYS,
    EPERM,
    ESRCH,
    EVTCHN_CLOSE_PORT,
    EVTCHN_OP_CMD,
    EVTCHN_OP_U,
    EVTCHN_SEND_PORT,
    EVTCHN_SET_PRIORITY_PORT,
    EVTCHN_UNMASK_PORT,
    SIZEOF_EVTCHN_ALLOC_UNBOUND,
    SIZEOF_EVTCHN_BIND_INTERDOMAIN,
    SIZEOF_EVTCHN_BIND_IPI,
    SIZEOF_EVTCHN_BIND_VCPU,
    SIZEOF_EVTCHN_BIND_VIRQ,
    SIZEOF_EVTCHN_RESET,
    SIZEOF_EVTCHN_STATUS,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EvtchnReset,
    EVTCHNSTAT_closed,
    EvtchnStatus,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_event_channel_op_compat,
)
from xenlite.core.evtchn import Channel, EventChannels, PortState
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_COMPAT: Final = frozenset(
    {
        EVTCHNOP_bind_interdomain,
        EVTCHNOP_bind_virq,
        EVTCHNOP_bind_pirq,
        EVTCHNOP_close,
        EVTCHNOP_send,
        EVTCHNOP_status,
        EVTCHNOP_alloc_unbound,
        EVTCHNOP_bind_ipi,
        EVTCHNOP_bind_vcpu,
        EVTCHNOP_unmask,
    }
)


class EventCalls:
    """The event channel hypercalls of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._events = domain.events
        self._operations = {
            EVTCHNOP_bind_interdomain: self._bind_interdomain,
            EVTCHNOP_bind_virq: self._bind_virq,
            EVTCHNOP_bind_pirq: self._bind_pirq,
            EVTCHNOP_close: self._close,
            EVTCHNOP_send: self._send,
            EVTCHNOP_status: self._status,
            EVTCHNOP_alloc_unbound: self._alloc_unbound,
            EVTCHNOP_bind_ipi: self._bind_ipi,
            EVTCHNOP_bind_vcpu: self._bind_vcpu,
            EVTCHNOP_unmask: self._unmask,
            EVTCHNOP_reset: self._reset,
            EVTCHNOP_reset_cont: self._go_on_resetting,
            EVTCHNOP_set_priority: self._set_priority,
        }
        self.event_channel_op = self._make_event_channel_op()

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_event_channel_op: self.event_channel_op,
            HYPERVISOR_event_channel_op_compat: self.event_channel_op_compat,
        }

    def _make_event_channel_op(self) -> Handler:
        """Bind the call: sending is in every hot path, and closure cells are cheap."""
        read_u32, send = self._guest_memory.read_u32, self._events.send
        operations = self._operations

        def event_channel_op(command: int, argument: int, _1: int, _2: int, _3: int) -> int:
            """Do one operation on the structure at ``argument``."""
            if command == EVTCHNOP_send:
                send(read_u32(argument + EVTCHN_SEND_PORT))
                return 0
            operation = operations.get(command)
            if operation is None:
                raise Refused(ENOSYS, "events.command", command)
            operation(argument)
            return 0

        return event_channel_op

    def event_channel_op_compat(self, op: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Do the same by the old number, as far as it goes: command and structure are one."""
        command = self._guest_memory.read_u32(op + EVTCHN_OP_CMD)
        if command not in _COMPAT:
            raise Refused(ENOSYS, "events.command", command)
        return self.event_channel_op(command, op + EVTCHN_OP_U, 0, 0, 0)

    # -- events -------------------------------------------------------------------------------

    def _send(self, argument: int) -> None:
        self._events.send(self._guest_memory.read_u32(argument + EVTCHN_SEND_PORT))

    def _unmask(self, argument: int) -> None:
        self._events.unmask(self._guest_memory.read_u32(argument + EVTCHN_UNMASK_PORT))

    # -- binding ------------------------------------------------------------------------------

    def _alloc_unbound(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_ALLOC_UNBOUND)
        asked = EvtchnAllocUnbound.unpack(copy)
        events = self._events_of(asked.dom)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_ALLOC_UNBOUND)
        remote = self._domain.domid if asked.remote_dom == DOMID_SELF else asked.remote_dom
        port = events.alloc_unbound(remote)
        self._guest_memory.write(argument, asked.replace(port=port).pack())

    def _bind_interdomain(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_BIND_INTERDOMAIN)
        asked = EvtchnBindInterdomain.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_BIND_INTERDOMAIN)
        port = self._events.bind_interdomain(asked.remote_dom, asked.remote_port)
        self._guest_memory.write(argument, asked.replace(local_port=port).pack())

    def _bind_virq(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_BIND_VIRQ)
        asked = EvtchnBindVirq.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_BIND_VIRQ)
        port = self._events.bind_virq(asked.virq, asked.vcpu)
        self._guest_memory.write(argument, asked.replace(port=port).pack())

    def _bind_pirq(self, argument: int) -> None:
        del argument
        raise Refused(EPERM, "events.no-physical-interrupts")

    def _bind_ipi(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_BIND_IPI)
        asked = EvtchnBindIpi.unpack(copy)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_BIND_IPI)
        port = self._events.bind_ipi(asked.vcpu)
        self._guest_memory.write(argument, asked.replace(port=port).pack())

    def _bind_vcpu(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_BIND_VCPU)
        asked = EvtchnBindVcpu.unpack(copy)
        self._events.bind_vcpu(asked.port, asked.vcpu)

    def _close(self, argument: int) -> None:
        self._events.close(self._guest_memory.read_u32(argument + EVTCHN_CLOSE_PORT))

    # -- the whole ----------------------------------------------------------------------------

    def _reset(self, argument: int) -> None:
        self._close_stretch(argument, goes_on=False)

    def _go_on_resetting(self, argument: int) -> None:
        self._close_stretch(argument, goes_on=True)

    def _close_stretch(self, argument: int, *, goes_on: bool) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_RESET)
        domid = EvtchnReset.unpack(copy).dom
        events = self._events_of(domid)
        if events is not self._events and not self._domain.peers[domid].paused:
            raise Refused(EINVAL, "events.reset-of-a-running-domain", domid)
        if not events.reset(goes_on=goes_on):
            raise Restart((EVTCHNOP_reset_cont, argument, 0, 0, 0))

    def _set_priority(self, argument: int) -> None:
        port = self._guest_memory.read_u32(argument + EVTCHN_SET_PRIORITY_PORT)
        self._events.channel_or_closed(port)
        raise Refused(ENOSYS, "events.no-priorities", port)

    def _status(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_EVTCHN_STATUS)
        asked = EvtchnStatus.unpack(copy)
        events = self._events_of(asked.dom)
        self._guest_memory.check_writable(argument, SIZEOF_EVTCHN_STATUS)
        channel = events.channel_or_closed(asked.port)
        if channel is None:
            answer = asked.replace(status=EVTCHNSTAT_closed, vcpu=0, u=_bound_to(0))
        else:
            answer = asked.replace(
                status=channel.state.value, vcpu=channel.vcpu, u=_other_end(channel)
            )
        self._guest_memory.write(argument, answer.pack())

    # -- common -------------------------------------------------------------------------------

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


def _other_end(channel: Channel) -> bytes:
    """Tell what a port is bound to, as the union of evtchn_status has it."""
    if channel.state is PortState.VIRQ:
        return _bound_to(channel.virq)
    return _bound_to(channel.remote, channel.remote_port)


def _bound_to(first: int, second: int = 0) -> bytes:
    return first.to_bytes(4, "little") + second.to_bytes(4, "little")
