# SPDX-License-Identifier: GPL-2.0-or-later
"""Which events are shown, and how they are counted; the lines are seen in tests/guests/tracing."""

from __future__ import annotations

from struct import error as StructError  # noqa: N812 - it is a class

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.abi.x86_32p import (
    EINVAL,
    HYPERVISOR_event_channel_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_xen_version,
    TRAP_page_fault,
)
from xenlite.devkit.strace import Counts, Filter, Strace
from xenlite.errors import ConfigError
from xenlite.toolstack.event_text import Happening, happenings
from xenlite.toolstack.symbols import Symbols
from xenlite.trace_format import (
    WORDS,
    Cause,
    Kind,
    Outcome,
    Record,
    pack,
    pack_symbols,
    read,
    unpack_symbols,
)


def record(kind: Kind, *words: int, extra: bytes = b"", time_ns: int = 0) -> Record:
    return Record(time_ns, time_ns, 1, 0, kind, (*words, *(0,) * (WORDS - len(words))), extra)


def call(number: int, result: int = 0, duration_ns: int = 1000) -> Record:
    outcome = Outcome.REFUSED if result < 0 else Outcome.RETURNED
    one = record(Kind.HYPERCALL, outcome, number, result & 0xFFFFFFFF)
    return one._replace(end_ns=duration_ns)


EVENTS = {
    "mmu_update": call(HYPERVISOR_mmu_update),
    "evtchn": call(HYPERVISOR_event_channel_op),
    "event": record(Kind.EVENT, 1),
    "#PF": record(Kind.TRAP, Cause.FAULT, TRAP_page_fault),
    "int": record(Kind.TRAP, Cause.SOFTWARE, 0x80),
    "turn": record(Kind.TURN, 1),
}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", {"mmu_update", "evtchn", "event", "#PF", "int"}),
        ("all", set(EVENTS)),
        ("mmu_update", {"mmu_update"}),
        ("mmu_update, evtchn", {"mmu_update", "evtchn", "event"}),
        ("!hypercall", {"event", "#PF", "int"}),
        ("fault", {"#PF"}),
        ("#pf", {"#PF"}),
        ("int,turn", {"int", "turn"}),
        ("hypercall,!mmu", {"evtchn"}),
    ],
)
def test_a_filter_shows_what_its_words_mean(words: str, shown: set[str]) -> None:
    is_wanted = Filter(words)
    assert {name for name, one in EVENTS.items() if is_wanted(Happening(one))} == shown


def test_a_word_that_means_nothing_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="'mmu_updates' is no event"):
        Filter("mmu_updates")


def test_counts_tell_calls_errors_total_and_percentiles() -> None:
    counts = Counts()
    for duration_ns in range(1000, 101_000, 1000):
        counts.add(Happening(call(HYPERVISOR_xen_version, duration_ns=duration_ns)))
    counts.add(Happening(call(HYPERVISOR_mmu_update, -EINVAL, 7_000_000)))
    counts.add(Happening(EVENTS["event"]))
    rows = [row.split() for row in counts.table().splitlines()]
    assert rows[1][:3] == ["7.000", "1", "1"]
    assert rows[1][-1] == "mmu_update"
    total_ms, calls, p50_us, p99_us, name = rows[2]
    assert (total_ms, calls, name) == ("5.050", "100", "xen_version")
    assert float(p50_us) == pytest.approx(50, rel=1 / 16)
    assert float(p99_us) == pytest.approx(99, rel=1 / 16)
    assert rows[3] == ["0.000", "1", "event"]
    assert rows[4] == ["12.050", "102", "1", "total"]


def test_a_refused_call_is_joined_with_its_rule_and_no_other() -> None:
    rule = record(Kind.REFUSAL, 99, EINVAL, 3, extra=b"frames.not-owned\x000x7\0\0\0\0\0")
    refused = call(HYPERVISOR_mmu_update, -EINVAL)
    found = list(happenings([refused, rule, rule, refused, EVENTS["event"]]))
    assert [(one.record.kind, one.refusal is rule) for one in found] == [
        (Kind.HYPERCALL, True),
        (Kind.REFUSAL, False),
        (Kind.HYPERCALL, False),
        (Kind.EVENT, False),
    ]
    assert found[0].name == "hypercall 99"


def test_lost_events_are_told() -> None:
    lines: list[str] = []
    Strace(lines.append, Filter()).events(pack(EVENTS["event"]), 5)
    assert lines[1] == "5 events were lost: the buffer was full"


def test_no_name_moves_the_terminal() -> None:
    lines: list[str] = []
    strace = Strace(lines.append, Filter())
    strace.started(1, lambda: Symbols({0: "\x1b[31m"}, []))
    strace.events(pack(EVENTS["mmu_update"]), 0)
    assert "\x1b" not in lines[0]
    assert lines[0].endswith("<\\x1b[31m>")


@given(st.dictionaries(st.integers(0, 0xFFFFFFFF), st.from_regex(r"[a-zé_]{1,9}", fullmatch=True)))
def test_labels_come_back(names: dict[int, str]) -> None:
    code = [range(0x1000, 0x2000), range(5, 7)]
    assert unpack_symbols(pack_symbols(names, code)) == (names, code)


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_no_events(data: bytes) -> None:
    for step in (lambda: list(read(data)), lambda: unpack_symbols(data)):
        try:
            step()
        except ValueError:
            pass
        except StructError:  # pragma: no cover
            pytest.fail("a broken file shows our insides")


def test_a_record_comes_back() -> None:
    one = record(Kind.EVENT, 1, 2, 3, extra=b"12345678", time_ns=1 << 60)
    assert list(read(pack(one) * 2)) == [one, one]
