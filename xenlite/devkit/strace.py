# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what domains do, a line an event, and count it: ``xenlite run --strace``."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import HYPERCALL_NAMES
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.console_log import readable
from xenlite.toolstack.event_text import Happening, event_line, happenings
from xenlite.toolstack.symbols import Symbols
from xenlite.trace_format import Cause, Kind, Record, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Words that stand for several names.
GROUPS: Final = {
    "evtchn": {"event_channel_op", "event_channel_op_compat", "event", "upcall"},
    "mmu": {"mmu_update", "mmuext_op", "update_va_mapping", "update_va_mapping_otherdomain"},
    "memory": {"memory_op"},
    "grant": {"grant_table_op"},
    "sched": {"sched_op", "sched_op_compat"},
    "vcpu": {"vcpu_op"},
}
KIND_WORDS: Final = {kind.name.lower() for kind in Kind} | {"fault", "int", "refused", "all"}
QUIET: Final = frozenset({"turn", "symbols"})  # shown only where asked for

_STEPS: Final = 16  # of a histogram, per power of two: a percentile is right to 1 in 16


class Filter:
    """Which events to show: ``mmu_update,evtchn``; ``!iret`` for all but that one."""

    def __init__(self, text: str = "") -> None:
        words = [word.strip().lower() for word in text.split(",") if word.strip()]
        self._unwanted = self._names([word[1:] for word in words if word.startswith("!")])
        self._wanted = self._names([word for word in words if not word.startswith("!")])

    def __call__(self, happening: Happening) -> bool:
        """Tell whether an event is to be shown."""
        names = words_of(happening)
        if names & self._unwanted:
            return False
        if self._wanted:
            return bool(names & self._wanted)
        return not names & QUIET

    @staticmethod
    def _names(words: list[str]) -> frozenset[str]:
        known = {*HYPERCALL_NAMES.values(), *KIND_WORDS, *GROUPS}
        names: set[str] = set()
        for word in words:
            is_vector = word.startswith("#") or word == "nmi"
            if word not in known and not is_vector:
                what = f"{word!r} is no event; hypercalls by name, {', '.join(sorted(GROUPS))}, "
                what += f"{', '.join(sorted(KIND_WORDS))}, or an exception like '#pf'"
                raise ConfigError(Fault("-e", what))
            names |= GROUPS.get(word, {word})
        return frozenset(names)


def words_of(happening: Happening) -> set[str]:
    """Return every word of a filter that means this event."""
    record = happening.record
    words = {"all", happening.name.lower(), record.kind.name.lower()}
    if record.kind is Kind.TRAP:
        words.add("fault" if record.words[0] == Cause.FAULT else "trap")
        if record.words[0] == Cause.SOFTWARE:
            words.add("int")
    if happening.refusal is not None or record.kind is Kind.REFUSAL:
        words |= {"refused", "refusal"}
    return words


class Counts:
    """How often each event came, how often it failed, and how long it took."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._total_ns: Counter[str] = Counter()
        self._steps: dict[str, Counter[int]] = {}

    def add(self, happening: Happening) -> None:
        """Count one event."""
        name = happening.name
        self._calls[name] += 1
        self._errors[name] += happening.is_error
        duration_ns = happening.duration_ns
        if duration_ns is not None:
            self._total_ns[name] += duration_ns
            self._steps.setdefault(name, Counter())[_step(duration_ns)] += 1

    def table(self) -> str:
        """Lay all counts out, what took longest first."""
        rows = [f"{'total ms':>10} {'calls':>9} {'errors':>7} {'p50 us':>9} {'p99 us':>9}  name"]
        for name in sorted(self._calls, key=lambda name: (-self._total_ns[name], name)):
            percentiles = "".join(f" {self._percentile(name, part)}" for part in (50, 99))
            rows.append(
                f"{self._total_ns[name] / 1e6:10.3f} {self._calls[name]:9}"
                f" {self._errors[name] or '':>7}{percentiles}  {name}"
            )
        total_ms = sum(self._total_ns.values()) / 1e6
        calls, errors = self._calls.total(), self._errors.total()
        rows.append(f"{total_ms:10.3f} {calls:9} {errors or '':>7} {'':>9} {'':>9}  total")
        return "\n".join(rows)

    def _percentile(self, name: str, part: int) -> str:
        steps = self._steps.get(name)
        if steps is None:
            return f"{'':>9}"
        left = steps.total() * part / 100
        for step in sorted(steps):
            left -= steps[step]
            if left <= 0:
                return f"{_middle_ns(step) / 1e3:9.2f}"
        raise AssertionError(name)


class Strace:
    """A watcher of a host (``toolstack.host``) that writes lines, or counts."""

    def __init__(
        self, write: Callable[[str], None], is_wanted: Filter, counts: Counts | None = None
    ) -> None:
        """Write each line by ``write``; with ``counts`` write none, and count."""
        self._write = write
        self._is_wanted = is_wanted
        self._counts = counts
        self._symbols: dict[int, Callable[[], Symbols]] = {}
        self._zero_ns: int | None = None  # when the first event was

    def started(self, domid: int, symbols: Callable[[], Symbols]) -> None:
        """Name addresses of a new domain by ``symbols()``."""
        self._symbols[domid] = symbols

    def name_by(self, symbols: dict[int, Symbols]) -> None:
        """Name addresses by these labels, a domain each."""
        self._symbols |= {domid: partial(_the, labels) for domid, labels in symbols.items()}

    def events(self, data: bytes, lost: int) -> None:
        """Show what was recorded."""
        self.show(read(data))
        if lost:
            self._write(f"{lost} events were lost: the buffer was full")

    def show(self, records: Iterable[Record]) -> None:
        """Show or count those events that are wanted."""
        for happening in happenings(records):
            if self._zero_ns is None:
                self._zero_ns = happening.record.time_ns
            if not self._is_wanted(happening):
                continue
            if self._counts is not None:
                self._counts.add(happening)
                continue
            symbols = self._symbols.get(happening.record.domid, _no_symbols)()
            self._write(readable(event_line(happening, symbols, self._zero_ns)))


def _the(symbols: Symbols) -> Symbols:
    return symbols


def _no_symbols() -> Symbols:
    return Symbols({}, [])  # of Dom0, whose kernel is Python


def _step(duration_ns: int) -> int:
    """Return the step of the histogram that a time falls in."""
    if duration_ns < _STEPS:
        return duration_ns
    octave = duration_ns.bit_length() - _STEPS.bit_length()
    return octave * _STEPS + (duration_ns >> octave)


def _middle_ns(step: int) -> float:
    """Return the middle of a step: what its times are taken for."""
    if step < 2 * _STEPS:
        return float(step)
    octave = step // _STEPS - 1
    return ((step - octave * _STEPS) + 0.5) * (1 << octave)
