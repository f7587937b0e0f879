# SPDX-License-Identifier: GPL-2.0-or-later
"""Record what guests do: every trap, hypercall, event, upcall and turn, in a buffer of fixed size.

Nothing of this exists for a domain that isn't recorded. For one that is, recording handlers stand
before its trap handlers and hypercalls, and no way is opened (``machine/ways.py``), so that every
trap comes to Python. An event is packed into the buffer, with copies of what its pointers named,
taken at the call: what is decoded later is what the hypervisor saw. Where the buffer is full,
events are counted and lost; ``take`` empties it, between two turns of a guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    MMU_UPDATE_PREEMPTED,
    POINTERS,
    HYPERVISOR_console_io,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_iret,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_xen_version,
)
from xenlite.core.hole import HOLE_START
from xenlite.core.vcpu import RUNSTATES
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls.restart import Restart
from xenlite.machine.clock import HostClock
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import (
    CR2,
    EIP,
    ERROR_CODE,
    ESP,
    HF_CPL,
    HFLAGS,
    IS_INT,
    VECTOR_DB,
    VECTOR_UD,
    CpuidLeaf,
    IoDirection,
    SyscallKind,
    TrapHandlers,
)
from xenlite.machine.x86_32p import INDEX_MASK, L2_SHIFT, PTE_ADDRESS, PTE_P
from xenlite.trace_format import ALIGNMENT, COPY, HEAD, WORDS, Cause, Kind, Outcome, padded

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu
    from xenlite.hypercalls.restart import Handler
    from xenlite.machine.clock import Clock
    from xenlite.traps import TrapParts

MOST_COPIED: Final = 4096  # bytes of a list that are kept; a page of 256 mmu_update entries
_WORD: Final = 0xFFFFFFFF
_OFFSET: Final = PAGE_SIZE - 1
# Finding a member through its class takes 0.1 us.
_RETURNED, _SET = int(Outcome.RETURNED), int(Outcome.REGISTERS_SET)
_RESTARTS, _REFUSED, _CRASHED = map(int, (Outcome.RESTARTS, Outcome.REFUSED, Outcome.CRASHED))

_STACK_PAGE, _STACK_AT, _WHO = range(3)  # of a seat
_MAPS_NOTHING: Final = frozenset(
    {
        HYPERVISOR_console_io,
        HYPERVISOR_event_channel_op,
        HYPERVISOR_fpu_taskswitch,
        HYPERVISOR_iret,
        HYPERVISOR_sched_op,
        HYPERVISOR_set_timer_op,
        HYPERVISOR_stack_switch,
        HYPERVISOR_xen_version,
    }
)
_NO_COPIES: Final = (b"", 0)
_COPY_HEAD: Final = COPY.size
_COUNT: Final = _WORD ^ MMU_UPDATE_PREEMPTED
_VCPU_SHIFT, _KIND_SHIFT = 16, 24  # in ``who``
_VCPU: Final = 0xFF << _VCPU_SHIFT
_ALIGNED: Final = ALIGNMENT - 1
_ONE_WORD: Final = 4

Put = Callable[[int, int, int, tuple[int, ...], bytes], None]
"""``put(time_ns, end_ns, who, words, extra)``: ten words, ``extra`` padded."""


class Recorder:
    """The buffer, and what writes into it."""

    def __init__(self, clock: Clock, size_bytes: int) -> None:
        # The host's own clock as it is: counting from the machine's making costs 0.1 us.
        self.now_ns = time.monotonic_ns if isinstance(clock, HostClock) else clock.monotonic_ns
        self.buffer = bytearray(size_bytes)
        self.place = [0, 0]  # where the next event goes; how many found no room
        self.put = self._make_put()
        self._seats: dict[int, list[int]] = {}

    def take(self) -> tuple[bytes, int]:
        """Return the events since the last time, and how many were lost."""
        used, lost = self.place
        self.place[:] = 0, 0
        return bytes(self.buffer[:used]), lost

    def _make_put(self) -> Put:
        buffer, place, pack_into = self.buffer, self.place, HEAD.pack_into
        head, limit = HEAD.size, len(self.buffer)

        def put(time_ns: int, end_ns: int, who: int, words: tuple[int, ...], extra: bytes) -> None:
            at = place[0]
            size = head + len(extra)
            if at + size > limit:
                place[1] += 1
                return
            pack_into(buffer, at, time_ns, end_ns, size, who, *words)
            if extra:
                buffer[at + head : at + size] = extra
            place[0] = at + size

        return put

    # -- what is not a trap -------------------------------------------------------------------

    def note(self, domain: Domain, kind: Kind, words: tuple[int, ...] = (), *texts: str) -> None:
        """Record something rare of the current vCPU; ``texts`` go into extra."""
        extra = "\0".join(texts).encode("utf-8", "backslashreplace")
        now_ns = self.now_ns()
        self.put(now_ns, now_ns, _who(domain, kind), _filled(words), padded(extra))

    def refused(self, domain: Domain, number: int, refused: Refused) -> None:
        """Record by which rule a hypercall was refused, behind the hypercall."""
        argument = refused.argument
        entry = 0 if refused.entry is None else refused.entry + 1
        words = (number & _WORD, refused.errno, entry)
        shown = hex(argument) if isinstance(argument, int) else str(argument or "")
        self.note(domain, Kind.REFUSAL, words, refused.rule, shown)

    def crashed(self, domain: Domain, crash: DomainCrash) -> None:
        """Record a domain's end by a rule."""
        self.note(domain, Kind.CRASH, (), crash.rule, crash.detail)

    def ended(self, domain: Domain) -> None:
        """Record that a domain is taken apart."""
        self.note(domain, Kind.END)
        self._seats.pop(domain.domid, None)

    def seat_of(self, domain: Domain) -> list[int]:
        """Return what is remembered of a domain's current vCPU; indexes are _STACK_PAGE and so on.

        The page of its stack, so that a call's return address needn't be looked for each time, is
        forgotten at whatever may map another frame there: a turn, an emulated page-table write, and
        every hypercall but those of _MAPS_NOTHING, and update_va_mapping of another page.
        """
        return self._seats.setdefault(domain.domid, [-1, 0, domain.domid])

    def turn_begins(self, vcpu: Vcpu) -> int:
        """Take ``vcpu`` for whose events follow; return the time."""
        seat = self.seat_of(vcpu.domain)
        seat[_STACK_PAGE], seat[_WHO] = -1, vcpu.domain.domid | vcpu.id << _VCPU_SHIFT
        return self.now_ns()

    def turn(self, vcpu: Vcpu, started_ns: int) -> None:
        """Record that a vCPU had the processor from ``started_ns`` until now."""
        words = _filled((RUNSTATES[vcpu.state],))
        self.put(started_ns, self.now_ns(), _who(vcpu.domain, Kind.TURN), words, b"")

    def watch_events(self, domain: Domain) -> None:
        """Record the events that a domain's ports receive, from now on."""
        put, now_ns, who, peers = self.put, self.now_ns, _who(domain, Kind.EVENT), domain.peers
        who &= ~_VCPU
        events = domain.events
        channel_of, receive = events.channel, events.receive

        def recorded(port: int) -> None:
            time_ns = now_ns()
            channel = channel_of(port)
            assert channel is not None, port
            remote = channel.remote
            sender = peers.get(remote)
            by = 0 if sender is None else sender.current.id
            words = (port, channel.state.value, remote, channel.remote_port, by, 0, 0, 0, 0, 0)
            put(time_ns, time_ns, who | channel.vcpu << _VCPU_SHIFT, words, b"")
            receive(port)

        events.watch(recorded)

    # -- traps --------------------------------------------------------------------------------

    def wrap(self, handlers: TrapHandlers) -> RecordedTraps:
        """Put recording handlers before those of one domain."""
        return _wrap(self, handlers)


@dataclass(frozen=True, slots=True)
class RecordedTraps:
    """Recording handlers, and the steps that give them their domain: the engine comes between.

    ``bind`` stands before each call of the domain's table, then ``join`` before its upcalls.
    """

    handlers: TrapHandlers
    bind: Callable[[Domain, list[Handler]], None]
    join: Callable[[TrapParts], None]


def _wrap(recorder: Recorder, inner: TrapHandlers) -> RecordedTraps:
    now_ns, pack_into = recorder.now_ns, HEAD.pack_into
    buffer, place, head, limit = recorder.buffer, recorder.place, HEAD.size, len(recorder.buffer)
    domain: Domain
    parts: TrapParts
    regs: memoryview
    seat: list[int]
    kind = Kind.TRAP << _KIND_SHIFT

    def bind(new_domain: Domain, table: list[Handler]) -> None:
        nonlocal domain, regs, seat
        domain, regs = new_domain, new_domain.engine.regs
        seat = recorder.seat_of(domain)
        for number, handler in enumerate(table):
            table[number] = _record_call(recorder, domain, number, handler)
        recorder.note(domain, Kind.START, (), domain.name)

    def join(new_parts: TrapParts) -> None:
        nonlocal parts
        parts = new_parts
        _record_upcalls(recorder, domain, parts)

    def trap(cause: int, vector: int, handle: Callable[[], object]) -> None:
        """Record what ``handle`` does about a trap of the current vCPU."""
        started_ns = now_ns()
        error_code, cr2, eip = regs[ERROR_CODE], regs[CR2], regs[EIP]
        cpl = regs[HFLAGS] & HF_CPL
        try:
            handle()
        finally:
            at = place[0]
            if at + head > limit:
                place[1] += 1
            else:
                pack_into(
                    buffer, at, started_ns, now_ns(), head, seat[_WHO] | kind,
                    cause, vector, error_code, cr2, eip, cpl, regs[EIP], 0, 0, 0,
                )  # fmt: skip
                place[0] = at + head

    def of_vector(vector: int, handler: Callable[[], None]) -> Callable[[], None]:
        return lambda: trap(regs[IS_INT], vector, handler)

    def interrupt(uc: int, vector: int, user: object) -> None:
        trap(regs[IS_INT], vector, lambda: inner.interrupt(uc, vector, user))

    def debug() -> None:
        cause = regs[IS_INT]
        if parts.page_writes.is_stepping:
            cause, seat[_STACK_PAGE] = Cause.STEP, -1
        trap(cause, VECTOR_DB, serve_debug)

    def invalid_opcode(uc: int, user: object) -> bool:
        trap(Cause.FAULT, VECTOR_UD, lambda: inner.invalid_opcode(uc, user))
        return True

    def io(port: int, size: int, direction: IoDirection, next_eip: int) -> None:
        trap(Cause.IO, port, lambda: inner.io(port, size, direction, next_eip))

    def syscall(kind: SyscallKind) -> None:
        is_sysenter = int(kind is SyscallKind.SYSENTER)
        trap(Cause.SYSCALL, is_sysenter, lambda: inner.syscall(kind))

    def cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
        recorder.note(domain, Kind.CPUID, (leaf, subleaf, regs[EIP]))
        return inner.cpuid(leaf, subleaf)

    serve_debug = inner.debug or (lambda: inner.interrupt(0, VECTOR_DB, None))
    handlers = replace(
        inner,
        interrupt=interrupt,
        invalid_opcode=invalid_opcode,
        io=io,
        cpuid=cpuid,
        syscall=syscall,
        vectors={vector: of_vector(vector, one) for vector, one in inner.vectors.items()},
        debug=debug,
        sees_all=True,
    )
    return RecordedTraps(handlers, bind, join)


def _record_upcalls(recorder: Recorder, domain: Domain, parts: TrapParts) -> None:
    """Record each entry of the event callback, after a trap or at the start of a turn."""
    put, now_ns, regs = recorder.put, recorder.now_ns, domain.engine.regs
    bounce = parts.bounce
    upcall = bounce.upcall

    def recorded() -> None:
        time_ns = now_ns()
        eip, cpl = regs[EIP], regs[HFLAGS] & HF_CPL
        upcall()
        words = (eip, cpl, regs[EIP], 0, 0, 0, 0, 0, 0, 0)
        put(time_ns, time_ns, _who(domain, Kind.UPCALL), words, b"")

    bounce.upcall = recorded


def _record_call(recorder: Recorder, domain: Domain, number: int, handler: Handler) -> Handler:
    """Put a recording function before one hypercall; those of a multicall come here, too.

    It is one long function because it is on the way of every hypercall: each call costs 0.1 us.
    """
    now_ns, regs = recorder.now_ns, domain.engine.regs
    seat, kind = recorder.seat_of(domain), Kind.HYPERCALL << _KIND_SHIFT
    memory = domain.machine.memory
    m8, m32, m64 = memory.m8, memory.m32, memory.m64
    buffer, place, pack_into = recorder.buffer, recorder.place, HEAD.pack_into
    head, limit = HEAD.size, len(recorder.buffer)
    copy = _make_copy(domain, number) if number in POINTERS else None
    may_move_stack = number not in _MAPS_NOTHING
    maps_one_page = number == HYPERVISOR_update_va_mapping  # the one that it names first

    def find_stack(esp: int) -> int:
        """Walk to the word on top of the stack, and remember its page; return the word or 0."""
        slot = domain.paging.slot_of(esp)
        entry = 0 if slot is None else m64[slot]
        if not entry & PTE_P:
            return 0
        seat[_STACK_PAGE] = esp >> PAGE_SHIFT
        seat[_STACK_AT] = (entry & PTE_ADDRESS) >> 2
        return m32[seat[_STACK_AT] + ((esp & _OFFSET) >> 2)]

    def recorded(a: int, b: int, c: int, d: int, e: int) -> int:
        started_ns = now_ns()
        esp, eip = regs[ESP], regs[EIP]
        if esp >> PAGE_SHIFT == seat[_STACK_PAGE]:
            caller = m32[seat[_STACK_AT] + ((esp & _OFFSET) >> 2)]
        else:
            caller = find_stack(esp)
        copies, at = _NO_COPIES if copy is None else copy((a, b, c, d, e))
        outcome, result = _CRASHED, 0
        try:
            result = handler(a, b, c, d, e)
            outcome = _RETURNED if result >= 0 else _SET
            return result
        except Refused as refused:
            outcome, result = _REFUSED, -refused.errno
            raise
        except Restart:
            outcome = _RESTARTS
            raise
        finally:
            if may_move_stack and (not maps_one_page or a >> PAGE_SHIFT == seat[_STACK_PAGE]):
                seat[_STACK_PAGE] = -1
            if at and m8[at : at + len(copies) - _COPY_HEAD] != copies[_COPY_HEAD:]:
                copies += _changed(domain, copies)
            at = place[0]
            size = head + len(copies)
            if at + size > limit:
                place[1] += 1
            else:
                pack_into(
                    buffer, at, started_ns, now_ns(), size, seat[_WHO] | kind,
                    outcome, number, result & _WORD, eip, caller, a, b, c, d, e,
                )  # fmt: skip
                if copies:
                    buffer[at + head : at + size] = copies
                place[0] = at + size

    return recorded


def _make_copy(domain: Domain, number: int) -> Callable[[tuple[int, ...]], tuple[bytes, int]]:
    """Bind what copies the memory that hypercall ``number`` names, given its registers.

    Returns the copy as an event has it, and the machine address to look at again after the call.
    That is of a sub-operation's structure in one page, and 0 of all else. A structure of one word
    is not looked at: EVTCHNOP_send, the commonest of them, has no room for an answer.
    """
    bases, slot_of, memory = domain.paging.l1_bases, domain.paging.slot_of, domain.machine.memory
    m8, m64, pack = memory.m8, memory.m64, COPY.pack
    place, sizes, selector, counter, each, has_end = POINTERS[number]
    only = 0 if selector is not None else sizes[0]

    def copy(registers: tuple[int, ...]) -> tuple[bytes, int]:
        entry_size = size = only if selector is None else sizes.get(registers[selector], 0)
        if counter is not None:
            count = registers[counter] & _COUNT
            size *= count if each == 1 else -(-count // each)
        elif has_end:
            size = MOST_COPIED
        if not size:
            return _NO_COPIES
        size = size if size <= _WORD else _WORD
        vaddr = registers[place]
        kept = size if size <= MOST_COPIED else MOST_COPIED
        room = (kept + _ALIGNED) & ~_ALIGNED
        base = bases.get(vaddr >> L2_SHIFT)
        slot = slot_of(vaddr) if base is None else base + (vaddr >> PAGE_SHIFT & INDEX_MASK)
        entry = 0 if slot is None else m64[slot]
        offset = vaddr & _OFFSET
        if entry & PTE_P and offset + room <= PAGE_SIZE and vaddr < HOLE_START:
            at = entry & PTE_ADDRESS | offset
            data = pack(vaddr, kept, size, 0) + m8[at : at + room]
            is_answer = selector is not None and size == entry_size > _ONE_WORD
            return data, at if is_answer else 0
        found = _read_mapped(domain, vaddr, kept)
        if not found:
            return _NO_COPIES
        return pack(vaddr, len(found), size, 0) + padded(found), 0

    return copy


def _who(domain: Domain, kind: Kind) -> int:
    return domain.domid | domain.current.id << _VCPU_SHIFT | kind << _KIND_SHIFT


def _filled(words: tuple[int, ...]) -> tuple[int, ...]:
    return (*words, *(0,) * (WORDS - len(words)))


def _changed(domain: Domain, copies: bytes) -> bytes:
    """Copy a structure again, by its address, where the call has written to it."""
    vaddr, size, _, _ = COPY.unpack_from(copies)
    now = _read_mapped(domain, vaddr, size)
    if now == copies[COPY.size : COPY.size + size]:
        return b""
    return COPY.pack(vaddr, len(now), size, 0) + padded(now)


def _read_mapped(domain: Domain, vaddr: int, size: int) -> bytes:
    """Read as far as the guest has something mapped; accessed bits stay as they are."""
    memory, slot_of = domain.machine.memory, domain.paging.slot_of
    data = b""
    end = min(vaddr + size, HOLE_START)
    while vaddr < end:
        slot = slot_of(vaddr)
        entry = 0 if slot is None else memory.m64[slot]
        if not entry & PTE_P:
            break
        length = min(PAGE_SIZE - (vaddr & _OFFSET), end - vaddr)
        at = (entry & PTE_ADDRESS) | (vaddr & _OFFSET)
        data += memory.m8[at : at + length]
        vaddr += length
    return data
