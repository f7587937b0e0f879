# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn recorded events into Perfetto's TrackEvent format, for ui.perfetto.dev.

::

    d1 name          a process per domain, a thread per vCPU
      vcpu 0         turns, in them hypercalls and traps (as long as the hypervisor worked on
                     them), upcalls
    d0:1 - d1:2      a track per event channel between domains, which is to say per ring

A flow leads from where an event was sent to the upcall that tells the guest.
Source: perfetto.dev, protos/perfetto/trace (trace_packet, track_descriptor, track_event).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import EVTCHNSTAT_interdomain
from xenlite.devkit.protobuf import fixed64, message, number, text
from xenlite.toolstack.event_text import Happening, happenings, what
from xenlite.trace_format import Event, Kind, Record, view

if TYPE_CHECKING:
    from xenlite.devkit.trace_file import Trace

# Fields of Trace, TracePacket, TrackDescriptor, TrackEvent and DebugAnnotation
_PACKET: Final = 1
_TIMESTAMP, _SEQUENCE, _EVENT, _SEQUENCE_FLAGS, _DESCRIPTOR = 8, 10, 11, 13, 60
_UUID, _NAME, _PROCESS, _THREAD = 1, 2, 3, 4
_PROCESS_PID, _PROCESS_NAME = 1, 6
_THREAD_PID, _THREAD_TID, _THREAD_NAME = 1, 2, 5
_ANNOTATION, _TYPE, _TRACK, _CATEGORY, _EVENT_NAME, _FLOWS, _ENDED_FLOWS = 4, 9, 11, 22, 23, 47, 48
_ANNOTATION_NAME, _ANNOTATION_TEXT = 10, 6
_BEGIN, _END, _INSTANT = 1, 2, 3
_STATE_CLEARED: Final = 1

# The track of a vCPU has its thread's number.
_PROCESS_UUIDS: Final = 1 << 32
_CHANNEL_UUIDS: Final = 1 << 33
_ORDER: Final = {_END: 0, _INSTANT: 1, _BEGIN: 2}  # of what happens at one time


class _Converter:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._packets: list[tuple[tuple[int, int, int], bytes]] = []
        self._names = {
            record.domid: record.texts()[0] for record in trace.records if record.kind is Kind.START
        } | {0: "Domain-0"}
        self._tracks: dict[int, bytes] = {}  # uuid -> its descriptor
        self._channels: dict[tuple[tuple[int, int], ...], int] = {}
        self._flows = 0
        self._waiting: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def convert(self) -> bytes:
        for happening in happenings(self._trace.records):
            self._add_slice(happening)
        for record in self._trace.in_order():
            self._add_event(record)
        self._packets.sort(key=lambda packet: packet[0])
        first = number(_SEQUENCE, 1) + number(_SEQUENCE_FLAGS, _STATE_CLEARED)
        head = [message(_PACKET, first)]
        head += [message(_PACKET, number(_SEQUENCE, 1), track) for track in self._tracks.values()]
        return b"".join(head + [packet for _, packet in self._packets])

    # -- what takes time, and what is only said ----------------------------------------------

    def _add_slice(self, happening: Happening) -> None:
        record = happening.record
        if record.kind in (Kind.EVENT, Kind.UPCALL, Kind.START, Kind.LOST):
            return
        track = self._vcpu(record.domid, record.vcpu)
        said = message(
            _ANNOTATION,
            text(_ANNOTATION_NAME, "what"),
            text(_ANNOTATION_TEXT, what(happening, self._trace.symbols_of(record.domid))),
        )
        category = text(_CATEGORY, record.kind.name.lower())
        named = text(_EVENT_NAME, happening.name) + category + said
        duration_ns = happening.duration_ns
        if duration_ns is None:
            self._put(record.time_ns, _INSTANT, track, named)
            return
        # A slice that ends as it begins would end before that.
        duration_ns = max(duration_ns, 1)
        self._put(record.time_ns, _BEGIN, track, named, rank=-duration_ns)
        self._put(record.time_ns + duration_ns, _END, track, b"", rank=duration_ns)

    # -- events and what they lead to --------------------------------------------------------

    def _add_event(self, record: Record) -> None:
        here = record.domid, record.vcpu
        track = self._vcpu(*here)
        if record.kind is Kind.UPCALL:
            flows = b"".join(fixed64(_ENDED_FLOWS, flow) for flow in self._waiting.pop(here, []))
            self._put(record.time_ns, _INSTANT, track, text(_EVENT_NAME, "upcall") + flows)
        elif record.kind is Kind.EVENT:
            event = view(Event, record)
            self._flows += 1
            flow = self._flows
            sent = fixed64(_FLOWS, flow)
            if event.state == EVTCHNSTAT_interdomain:
                sender = self._vcpu(event.remote, event.sender_vcpu)
                name = f"send port {event.remote_port}"
                self._put(record.time_ns, _INSTANT, sender, text(_EVENT_NAME, name) + sent)
                channel = self._channel(record.domid, event)
                name = f"to d{record.domid}"
                self._put(record.time_ns, _INSTANT, channel, text(_EVENT_NAME, name))
            else:
                name = f"event at port {event.port}"
                self._put(record.time_ns, _INSTANT, track, text(_EVENT_NAME, name) + sent)
            if record.domid:
                self._waiting[here].append(flow)
            else:  # whose kernel is told by a call of ours
                ended = fixed64(_ENDED_FLOWS, flow)
                name = f"event at port {event.port}"
                self._put(record.time_ns, _INSTANT, track, text(_EVENT_NAME, name) + ended, rank=1)

    def _put(self, time_ns: int, kind: int, track: int, fields: bytes, rank: int = 0) -> None:
        event = message(_EVENT, number(_TYPE, kind), number(_TRACK, track), fields)
        packet = message(_PACKET, number(_TIMESTAMP, time_ns), number(_SEQUENCE, 1), event)
        self._packets.append(((time_ns, _ORDER[kind], rank), packet))

    # -- tracks ------------------------------------------------------------------------------

    def _vcpu(self, domid: int, vcpu: int) -> int:
        """Return the track of a vCPU; 0 is the pid of nobody."""
        pid, tid = domid + 1, (domid + 1) << 8 | vcpu
        if tid not in self._tracks:
            process = number(_PROCESS_PID, pid)
            name = text(_PROCESS_NAME, f"d{domid} {self._names.get(domid, '')}".rstrip())
            owner = message(_PROCESS, process, name)
            uuid = _PROCESS_UUIDS + pid
            self._tracks.setdefault(uuid, message(_DESCRIPTOR, number(_UUID, uuid), owner))
            thread = message(
                _THREAD,
                number(_THREAD_PID, pid),
                number(_THREAD_TID, tid),
                text(_THREAD_NAME, f"vcpu {vcpu}"),
            )
            self._tracks[tid] = message(_DESCRIPTOR, number(_UUID, tid), thread)
        return tid

    def _channel(self, domid: int, event: Event) -> int:
        """Return the track of an event channel, whichever end is asked about."""
        ends = sorted([(domid, event.port), (event.remote, event.remote_port)])
        (domid, port), (other, other_port) = ends
        uuid = self._channels.setdefault(tuple(ends), _CHANNEL_UUIDS + len(self._channels))
        if uuid not in self._tracks:
            name = text(_NAME, f"d{domid}:{port} - d{other}:{other_port}")
            self._tracks[uuid] = message(_DESCRIPTOR, number(_UUID, uuid), name)
        return uuid


def to_trackevent(trace: Trace) -> bytes:
    """Return the bytes of a file for Perfetto."""
    return _Converter(trace).convert()
