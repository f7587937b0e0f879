# SPDX-License-Identifier: GPL-2.0-or-later
"""Record what guests do: every trap, hypercall, event, upcall and turn, in a buffer of fixed size.

Nothing of this exists for a domain that isn't recorded. For one that is, recording handlers stand
before its trap handlers and hypercalls, and no way is opened (``machine/ways.py``), so that every
trap comes to Python. An event is packed into the buffer, with copies of what its pointers named,
taken at the call: what is decoded later is what the hypervisor saw. Where the buffer is full,
events are counted and lost; ``take`` empties it, between two turns of a guest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    HYPERCALL_ARGS,
    HYPERCALL_NAMES,
    LISTS,
    MMU_UPDATE_PREEMPTED,
    OPERATIONS,
    SCALAR_SIZES,
    STRUCTURES,
)
from xenlite.core.hole import HOLE_START
from xenlite.core.vcpu import RUNSTATES
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls.restart import Restart
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
from xenlite.machine.x86_32p import INDEX_MASK, PTE_ADDRESS, PTE_P
from xenlite.trace_format import COPY, HEAD, Cause, Kind, Outcome, padded

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu
    from xenlite.hypercalls.restart import Handler
    from xenlite.machine.clock import Clock
    from xenlite.traps import TrapParts

MOST_COPIED: Final = 4096  # bytes of a list that are kept; a page of 256 mmu_update entries
_WORD: Final = 0xFFFFFFFF
_OFFSET: Final = PAGE_SIZE - 1
_REGION_SHIFT: Final = 21  # of what one L1 covers
# Finding a member through its class takes 0.1 us.
_HYPERCALL, _TRAP = int(Kind.HYPERCALL), int(Kind.TRAP)
_RETURNED, _SET = int(Outcome.RETURNED), int(Outcome.REGISTERS_SET)
_RESTARTS, _REFUSED, _CRASHED = map(int, (Outcome.RESTARTS, Outcome.REFUSED, Outcome.CRASHED))

Put = Callable[[int, int, int, int, tuple[int, ...], bytes], None]
"""``put(time_ns, domid, vcpu, kind, words, extra)``: twelve words, ``extra`` padded."""


class Recorder:
    """The buffer, and what writes into it."""

    def __init__(self, clock: Clock, size_bytes: int) -> None:
        self.now_ns = clock.monotonic_ns
        self._buffer = bytearray(size_bytes)
        self._place = [0, 0]  # where the next event goes; how many found no room
        self.put = self._make_put()

    def take(self) -> tuple[bytes, int]:
        """Return the events since the last time, and how many were lost."""
        used, lost = self._place
        self._place[:] = 0, 0
        return bytes(self._buffer[:used]), lost

    def _make_put(self) -> Put:
        buffer, place, pack_into = self._buffer, self._place, HEAD.pack_into
        head, limit = HEAD.size, len(self._buffer)

        def put(
            time_ns: int, domid: int, vcpu: int, kind: int, words: tuple[int, ...], extra: bytes
        ) -> None:
            at = place[0]
            size = head + len(extra)
            if at + size > limit:
                place[1] += 1
                return
            pack_into(buffer, at, time_ns, size, domid, vcpu, kind, *words)
            if extra:
                buffer[at + head : at + size] = extra
            place[0] = at + size

        return put

    # -- what is not a trap -------------------------------------------------------------------

    def note(self, domain: Domain, kind: Kind, words: tuple[int, ...] = (), *texts: str) -> None:
        """Record something rare of the current vCPU; ``texts`` go into extra."""
        extra = "\0".join(texts).encode("utf-8", "backslashreplace")
        whole = (*words, *(0,) * (12 - len(words)))
        self.put(self.now_ns(), domain.domid, domain.current.id, kind, whole, padded(extra))

    def refused(self, domain: Domain, number: int, refused: Refused) -> None:
        """Record by which rule a hypercall was refused, behind the hypercall."""
        argument = refused.argument
        entry = 0 if refused.entry is None else refused.entry + 1
        words = (number & _WORD, refused.errno, entry, int(isinstance(argument, int)))
        shown = hex(argument) if isinstance(argument, int) else str(argument or "")
        self.note(domain, Kind.REFUSAL, words, refused.rule, shown)

    def crashed(self, domain: Domain, crash: DomainCrash) -> None:
        """Record a domain's end by a rule."""
        self.note(domain, Kind.CRASH, (), crash.rule, crash.detail)

    def ended(self, domain: Domain) -> None:
        """Record that a domain is taken apart."""
        self.note(domain, Kind.END)

    def turn(self, vcpu: Vcpu, started_ns: int) -> None:
        """Record that a vCPU had the processor from ``started_ns`` until now."""
        spent_ns = self.now_ns() - started_ns
        words = (min(spent_ns, _WORD), RUNSTATES[vcpu.state], *(0,) * 10)
        self.put(started_ns, vcpu.domain.domid, vcpu.id, Kind.TURN, words, b"")

    def watch_events(self, domain: Domain) -> None:
        """Record the events that a domain's ports receive, from now on."""
        put, now_ns, domid, peers = self.put, self.now_ns, domain.domid, domain.peers
        events = domain.events
        receive = events.receive

        def recorded(port: int) -> None:
            channel = events.channel(port)
            assert channel is not None, port
            sender = peers.get(channel.remote)
            sender_vcpu = 0 if sender is None else sender.current.id
            words = (port, channel.state.value, channel.remote, channel.remote_port, sender_vcpu)
            put(now_ns(), domid, channel.vcpu, Kind.EVENT, (*words, *(0,) * 7), b"")
            receive(port)

        events.receive = recorded

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
    put, now_ns = recorder.put, recorder.now_ns
    domain: Domain
    parts: TrapParts
    regs: memoryview
    domid: int

    def bind(new_domain: Domain, table: list[Handler]) -> None:
        nonlocal domain, regs, domid
        domain, regs = new_domain, new_domain.engine.regs
        domid = domain.domid
        for number, handler in enumerate(table):
            table[number] = _record_call(recorder, domain, number, handler)
        recorder.watch_events(domain)
        recorder.note(domain, Kind.START, (), domain.name)

    def join(new_parts: TrapParts) -> None:
        nonlocal parts
        parts = new_parts
        _record_upcalls(recorder, domain, parts)

    def trap(cause: int, vector: int, handle: Callable[[], object]) -> None:
        """Record what ``handle`` does about a trap of the current vCPU."""
        started_ns = now_ns()
        error_code, cr2, eip = regs[ERROR_CODE], regs[CR2], regs[EIP]
        cpl, vcpu = regs[HFLAGS] & HF_CPL, domain.current.id
        try:
            handle()
        finally:
            spent_ns = min(now_ns() - started_ns, _WORD)
            target = (regs[EIP], regs[HFLAGS] & HF_CPL)
            words = (cause, vector, error_code, cr2, eip, cpl, *target, spent_ns, 0, 0, 0)
            put(started_ns, domid, vcpu, _TRAP, words, b"")

    def of_vector(vector: int, handler: Callable[[], None]) -> Callable[[], None]:
        return lambda: trap(regs[IS_INT], vector, handler)

    def interrupt(uc: int, vector: int, user: object) -> None:
        trap(regs[IS_INT], vector, lambda: inner.interrupt(uc, vector, user))

    def debug() -> None:
        cause = Cause.STEP if parts.page_writes.is_stepping else regs[IS_INT]
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
    put, now_ns, regs, domid = recorder.put, recorder.now_ns, domain.engine.regs, domain.domid
    bounce = parts.bounce
    upcall = bounce.upcall

    def recorded() -> None:
        started_ns = now_ns()
        eip, cpl = regs[EIP], regs[HFLAGS] & HF_CPL
        upcall()
        words = (eip, cpl, regs[EIP], *(0,) * 9)
        put(started_ns, domid, domain.current.id, Kind.UPCALL, words, b"")

    bounce.upcall = recorded


def _record_call(recorder: Recorder, domain: Domain, number: int, handler: Handler) -> Handler:
    """Put a recording function before one hypercall; those of a multicall come here, too."""
    put, now_ns, regs, domid = recorder.put, recorder.now_ns, domain.engine.regs, domain.domid
    bases, memory = domain.paging.l1_bases, domain.machine.memory
    m32, m64 = memory.m32, memory.m64
    pointer = _pointer_of(number)

    def caller() -> int:
        """Read the word on top of the stack, with no trace in the page tables; 0 for none."""
        esp = regs[ESP]
        base = bases.get(esp >> _REGION_SHIFT)
        if base is None or esp & 3:
            return _word(domain, esp)
        entry = m64[base + (esp >> PAGE_SHIFT & INDEX_MASK)]
        if not entry & PTE_P:
            return 0
        return int(m32[(entry & PTE_ADDRESS | esp & _OFFSET) >> 2])

    def recorded(a: int, b: int, c: int, d: int, e: int) -> int:
        started_ns = now_ns()
        eip, from_eip, vcpu = regs[EIP], caller(), domain.current.id
        result, outcome = 0, _CRASHED
        copies, length = b"", 0
        if pointer is not None:
            copies, length = _copy(domain, pointer, (a, b, c, d, e))
        try:
            result = handler(a, b, c, d, e)
            outcome = _RETURNED if result >= 0 else _SET
            return result
        except Refused as refused:
            result, outcome = -refused.errno, _REFUSED
            raise
        except Restart:
            outcome = _RESTARTS
            raise
        finally:
            if copies and pointer is not None and not pointer.is_list:
                copies += _changed(domain, copies)
            spent_ns = now_ns() - started_ns
            words = (outcome, number, result & _WORD, spent_ns & _WORD, eip, from_eip)
            whole = (*words, a, b, c, d, e, length)
            put(started_ns, domid, vcpu, _HYPERCALL, whole, copies)

    return recorded


@dataclass(frozen=True, slots=True)
class _Pointer:
    """The argument of a hypercall that names memory; places are registers in their order."""

    place: int
    sizes: dict[int, int]  # bytes of an entry, by sub-operation
    selector: int | None  # where the sub-operation stands; without one it is 0
    counter: int | None
    each: int
    has_end: bool

    @property
    def is_list(self) -> bool:
        return self.counter is not None or self.has_end


def _pointer_of(number: int) -> _Pointer | None:
    """Look up what hypercall ``number`` points to: a structure, or a list of anything."""
    name = HYPERCALL_NAMES.get(number, "")
    selector, _, structures = OPERATIONS.get(name, ("", {}, {}))
    lists = LISTS.get(name, {})
    places: dict[str, int] = {}
    place = 0
    found: tuple[str, dict[int, int]] | None = None
    selects: int | None = None
    for argument, kind in HYPERCALL_ARGS.get(name, ()):
        places[argument] = place
        place += 2 if kind == "uint64" else 1
        target = kind.removesuffix("*")
        if kind == "void*" and structures:
            found = argument, {cmd: _size_of(type_) for cmd, type_ in structures.items()}
            selects = places[selector]
        elif argument in lists or (kind != target and target in STRUCTURES):
            found = argument, {0: _size_of(target)}
    if found is None:
        return None
    argument, sizes = found
    counter, each, until = lists.get(argument, ("", 1, ""))
    return _Pointer(places[argument], sizes, selects, places.get(counter), each, bool(until))


def _size_of(type_: str) -> int:
    structure = STRUCTURES.get(type_)
    return SCALAR_SIZES[type_] if structure is None else structure.LAYOUT.size


def _copy(domain: Domain, pointer: _Pointer, registers: tuple[int, ...]) -> tuple[bytes, int]:
    """Copy what a call's pointer names, as an event has it; and say how long all of it is."""
    selected = 0 if pointer.selector is None else registers[pointer.selector]
    size = pointer.sizes.get(selected, 0)
    if pointer.counter is not None:
        count = registers[pointer.counter] & ~MMU_UPDATE_PREEMPTED
        size *= -(-count // pointer.each)
    elif pointer.has_end:
        size = MOST_COPIED
    vaddr = registers[pointer.place]
    data = _read_mapped(domain, vaddr, min(size, MOST_COPIED))
    if not data:
        return b"", 0
    return COPY.pack(vaddr, len(data)) + padded(data), min(size, _WORD)


def _word(domain: Domain, vaddr: int) -> int:
    return int.from_bytes(_read_mapped(domain, vaddr, 4), "little")


def _changed(domain: Domain, copies: bytes) -> bytes:
    """Copy a structure again where the call has written to it."""
    vaddr, size = COPY.unpack_from(copies)
    now = _read_mapped(domain, vaddr, size)
    if now == copies[COPY.size : COPY.size + size]:
        return b""
    return COPY.pack(vaddr, len(now)) + padded(now)


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
