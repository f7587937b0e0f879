# SPDX-License-Identifier: GPL-2.0-or-later
"""Say what a recorded event is: the recorder writes them, everybody else reads them here.

An event is a head of 64 bytes, little-endian, and what didn't fit, padded to 8 bytes::

     0  time_ns   u64   when it began, on a clock that only goes forward
     8  end_ns    u64   when it was over
    16  size      u32   of the event, head included
    20  who       u32   domid, vCPU << 16, kind << 24
    24  words     10 u32, see the views below
    64  extra     copies of what a hypercall's pointers named, texts

Events stand in the order in which they ended: a hypercall behind what happened within it. A file
is MAGIC and such events; whoever writes it may add some of the kinds from SYMBOLS on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is a class
from typing import Final, NamedTuple, TypeVar

MAGIC: Final = b"xenlite trace 1\n"
HEAD: Final = Struct("<QQII10I")
WORDS: Final = 10
COPY: Final = Struct("<IIII")  # address, bytes that follow, bytes there were, 0
ALIGNMENT: Final = 8
_COUNT: Final = Struct("<I")
_SPAN: Final = Struct("<II")


class Kind(IntEnum):
    """What an event is about."""

    START = 1  # a domain was made; extra: its name
    HYPERCALL = 2
    REFUSAL = 3
    TRAP = 4
    UPCALL = 5
    EVENT = 6
    TURN = 7
    CRASH = 8
    END = 9  # a domain was taken apart
    CPUID = 10
    SYMBOLS = 11  # labels of a domain's kernel
    LOST = 12  # so many events found no room


class Outcome(IntEnum):
    """How a hypercall ended."""

    RETURNED = 0
    REGISTERS_SET = 1  # iret: it goes elsewhere
    RESTARTS = 2  # it has not finished, and is called again
    REFUSED = 3
    CRASHED = 4


class Cause(IntEnum):
    """By what a trap was taken."""

    FAULT = 0
    SOFTWARE = 1  # int n
    IO = 2
    SYSCALL = 3
    STEP = 4  # the end of a page-table write that is emulated


class Hypercall(NamedTuple):
    """The words of a HYPERCALL. Extra: copies, see ``copies``."""

    outcome: int
    number: int
    result: int
    eip: int
    caller: int  # the word on top of the stack: the return address behind a hypercall page
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int

    @property
    def arguments(self) -> tuple[int, int, int, int, int]:
        """Return the argument registers in their order."""
        return (self.a0, self.a1, self.a2, self.a3, self.a4)


class RefusedCall(NamedTuple):
    """The words of a REFUSAL, which comes behind its hypercall. Extra: rule, argument as texts."""

    number: int
    errno: int
    entry: int  # of the list, counted from 1; 0 for none


class Trap(NamedTuple):
    """The words of a TRAP: where it came from, and where the guest went on."""

    cause: int
    vector: int  # of IO the port, of SYSCALL 1 for SYSENTER
    error_code: int
    cr2: int
    eip: int
    cpl: int
    target: int  # EIP afterwards


class Upcall(NamedTuple):
    """The words of an UPCALL."""

    eip: int
    cpl: int
    target: int


class Event(NamedTuple):
    """The words of an EVENT: a port of ``domid`` has become pending for ``vcpu``."""

    port: int
    state: int  # EVTCHNSTAT_*
    remote: int
    remote_port: int
    sender_vcpu: int


class Turn(NamedTuple):
    """The words of a TURN: a vCPU had the processor."""

    state: int  # RUNSTATE_* that it went on to


class Cpuid(NamedTuple):
    """The words of a CPUID."""

    leaf: int
    subleaf: int
    eip: int


class Record(NamedTuple):
    """One event as it was read."""

    time_ns: int
    end_ns: int
    domid: int
    vcpu: int
    kind: Kind
    words: tuple[int, ...]
    extra: bytes

    def texts(self) -> list[str]:
        """Return the strings in ``extra``."""
        return self.extra.rstrip(b"\0").decode("utf-8", "backslashreplace").split("\0")

    @property
    def duration_ns(self) -> int:
        """Return how long it took; 0 of what is only a moment."""
        return self.end_ns - self.time_ns

    def copies(self) -> list[tuple[int, bytes, int]]:
        """Return the copies in ``extra``: address, bytes, and how many there were in all.

        A structure that the call wrote to is there twice, the second time as it was afterwards.
        """
        found = []
        at = 0
        while at + COPY.size <= len(self.extra):
            vaddr, size, whole, _ = COPY.unpack_from(self.extra, at)
            at += COPY.size
            found.append((vaddr, self.extra[at : at + size], whole))
            at += -(-size // ALIGNMENT) * ALIGNMENT
        return found


View = TypeVar("View", Hypercall, RefusedCall, Trap, Upcall, Event, Turn, Cpuid)


def view(shape: type[View], record: Record) -> View:
    """Name the words of an event."""
    return shape(*record.words[: len(shape._fields)])


def pack(record: Record) -> bytes:
    """Return the bytes of an event; missing words are 0."""
    extra = padded(record.extra)
    words = (*record.words, *(0,) * (WORDS - len(record.words)))
    size = HEAD.size + len(extra)
    who = record.domid | record.vcpu << 16 | record.kind << 24
    head = HEAD.pack(record.time_ns, record.end_ns, size, who, *words)
    return head + extra


def padded(extra: bytes) -> bytes:
    """Return ``extra`` and zeros up to a multiple of ALIGNMENT."""
    return extra + bytes(-len(extra) % ALIGNMENT)


def read(data: bytes, at: int = 0) -> Iterator[Record]:
    """Yield the events from byte ``at``; ValueError where they are no events."""
    while at < len(data):
        if len(data) - at < HEAD.size:
            raise ValueError(f"byte {at}: the last event is cut off")
        time_ns, end_ns, size, who, *words = HEAD.unpack_from(data, at)
        if size < HEAD.size or size % ALIGNMENT or at + size > len(data) or end_ns < time_ns:
            raise ValueError(f"byte {at}: an event of {size} bytes")
        extra = data[at + HEAD.size : at + size]
        domid, vcpu, kind = who & 0xFFFF, who >> 16 & 0xFF, Kind(who >> 24)
        yield Record(time_ns, end_ns, domid, vcpu, kind, tuple(words), extra)
        at += size


def pack_symbols(names: dict[int, str], code: Iterable[range]) -> bytes:
    """Return what is known of a kernel's addresses as the extra of SYMBOLS.

    How many stretches of code, their bounds, how many labels; then address, name, 0 of each.
    """
    spans = list(code)
    bounds = b"".join(_SPAN.pack(span.start, span.stop) for span in spans)
    labels = b"".join(
        _COUNT.pack(address) + name.encode("utf-8", "backslashreplace") + b"\0"
        for address, name in names.items()
    )
    return _COUNT.pack(len(spans)) + bounds + _COUNT.pack(len(names)) + labels


def unpack_symbols(extra: bytes) -> tuple[dict[int, str], list[range]]:
    """Read what ``pack_symbols`` wrote; ValueError where that isn't it."""
    try:
        (spans,) = _COUNT.unpack_from(extra)
        at = _COUNT.size + spans * _SPAN.size
        code = [range(*bounds) for bounds in _SPAN.iter_unpack(extra[_COUNT.size : at])]
        (labels,) = _COUNT.unpack_from(extra, at)
        at += _COUNT.size
        names = {}
        for _ in range(labels):
            (address,) = _COUNT.unpack_from(extra, at)
            end = extra.index(b"\0", at + _COUNT.size)
            names[address] = extra[at + _COUNT.size : end].decode("utf-8", "backslashreplace")
            at = end + 1
    except StructError as error:
        raise ValueError(f"labels: {error}") from None
    return names, code
