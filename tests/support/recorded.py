# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot lines of assembly with a recorder before them, and read what it has seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support.guest import MEGABYTE, BootedGuest, add_guest
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock
from xenlite.toolstack.event_text import Happening, event_line, happenings
from xenlite.toolstack.symbols import Symbols
from xenlite.trace_format import Kind, Record, read

NOT_SHOWN = (Kind.TURN, Kind.START, Kind.END)


@dataclass
class RecordedGuest:
    """A domain that has run to its end, and what was recorded."""

    guest: BootedGuest
    data: bytes
    lost: int

    @property
    def symbols(self) -> Symbols:
        """Return the guest's labels by address; all of it counts as code."""
        names = {address: name for name, address in self.guest.symbols.items()}
        return Symbols(names, [range(0xC0000000, 0xC0400000)])

    @property
    def records(self) -> list[Record]:
        return list(read(self.data))

    @property
    def happenings(self) -> list[Happening]:
        """Return what the guest did, in the order in which it ended."""
        found = happenings(self.records)
        return [one for one in found if one.record.kind not in NOT_SHOWN]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.happenings]

    def line(self, name: str) -> str:
        """Return the line of the only event of that name, without its time."""
        (one,) = [one for one in self.happenings if one.name == name]
        return event_line(one, self.symbols, 0).split(maxsplit=1)[1]


@contextmanager
def recorded(
    *sources: str,
    buffer_bytes: int = MEGABYTE,
    seconds: float = 10.0,
    clock: Clock | None = None,
) -> Iterator[list[RecordedGuest]]:
    """Run a domain of each source to its end; the record is of all."""
    hypervisor = Hypervisor(64 * MEGABYTE, clock)
    try:
        control = hypervisor.control()
        control.record(buffer_bytes)
        with ExitStack() as undo:
            guests = [
                add_guest(hypervisor, source, undo, name=f"guest{n}")
                for n, source in enumerate(sources)
            ]
            for guest in guests:
                control.unpause(guest.domid)
            for guest in guests:
                assert guest.run(seconds)
            data, lost = control.recorded()
            yield [RecordedGuest(guest, data, lost) for guest in guests]
            assert control.audit() == []
    finally:
        hypervisor.close()
