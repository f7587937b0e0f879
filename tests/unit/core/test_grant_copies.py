# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies out of and into granted pages obey what a mapping would (SECURITY D1, D4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import pack

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.domains import FREE_PFN, PAGE, READ_ONLY, Guest, World, world
from xenlite.abi.x86_32p import GTF_accept_transfer, GTF_permit_access, GTF_readonly
from xenlite.core.grant import ENTRIES_PER_FRAME, GrantTable
from xenlite.errors import Refused

OFFERED = 8  # entries that the tests use


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    """Make a world in which guest 1 offers pages, and 2 has some of its own."""
    with world(32) as one:
        one.add(1)
        one.add(2)
        yield one


def mapped_copy(
    table: GrantTable, made: World, ref: int, offset: int, data: bytes | None, size: int
) -> bytes | None:
    """Copy as a backend that maps the page would: None where it may not."""
    try:
        mapping = made.dom0.maptrack.map(table, ref, writable=data is not None)
    except Refused:
        return None
    try:
        if not 0 <= offset <= offset + size <= PAGE:
            return None
        if data is None:
            return mapping.read(offset, size) or None
        mapping.write(offset, data)
        return data
    finally:
        made.dom0.maptrack.unmap(mapping)


def frames_of(made: World) -> dict[str, int]:
    """Name frames that an entry may show."""
    guest = made.guests[1]
    table = guest.domain.current.cr3_mfn
    assert table is not None
    return {
        "plain": guest.mfns[FREE_PFN],
        "other plain": guest.mfns[FREE_PFN + 1],
        "untyped": guest.mfns[FREE_PFN + 2],
        "page table": table,
        "grant table": guest.domain.grants.mfns[0],
        "another's": made.guests[2].mfns[FREE_PFN],
        "nobody's": made.machine.frames.nr_frames - 1,
        "none": made.machine.frames.nr_frames,
        "far": 0xFFFFFFFF,
    }


def counts(made: World) -> tuple[object, ...]:
    """Return what copies may not change of the frames."""
    frames = made.machine.frames
    return bytes(frames.kind), list(frames.type_count), list(frames.refs)


def contents(made: World) -> dict[int, bytes]:
    """Return what is in the frames that are there."""
    memory = made.machine.memory
    return {
        mfn: memory.read(mfn << 12, PAGE)
        for mfn in frames_of(made).values()
        if mfn < memory.nr_frames
    }


def restore(made: World, saved: dict[int, bytes]) -> None:
    """Bring that back."""
    for mfn, content in saved.items():
        made.machine.memory.write(mfn << 12, content)


FLAGS = (0, GTF_permit_access, GTF_permit_access | GTF_readonly, GTF_accept_transfer, 3)
OFFERS = st.lists(
    st.tuples(
        st.sampled_from(FLAGS),
        st.sampled_from([0, 0, 0, 2, 0x7FF0]),
        st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ),
    min_size=OFFERED,
    max_size=OFFERED,
)
REFS = st.one_of(
    st.integers(0, OFFERED - 1),
    st.sampled_from([OFFERED, ENTRIES_PER_FRAME - 1, ENTRIES_PER_FRAME, 0xFFFFFFFF, -1]),
)
# Nothing that keeps a list from being done at once, and everything else.
PLAIN = st.lists(
    st.tuples(st.integers(0, OFFERED - 1), st.integers(0, 4000), st.integers(1, 96)),
    min_size=1,
    max_size=10,
)
WILD = st.lists(
    st.tuples(
        REFS,
        st.one_of(st.integers(0, PAGE), st.sampled_from([-1, PAGE + 1, 0xFFFF])),
        st.one_of(st.integers(0, 64), st.sampled_from([PAGE, PAGE + 1, 0xFFFF])),
    ),
    max_size=10,
)


@given(
    OFFERS,
    st.one_of(st.just(frozenset()), st.frozensets(st.integers(0, OFFERED - 1))),
    st.one_of(PLAIN, WILD),
    st.booleans(),
)
@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_list_of_copies_does_what_mappings_of_each_would(
    made: World,
    offers: list[tuple[int, int, int]],
    used: frozenset[int],
    pieces: list[tuple[int, int, int]],
    writes: object,
) -> None:
    """Entries of all kinds, some of them in use, pieces that lie in their pages and that don't."""
    guest = made.guests[1]
    guest.remap(FREE_PFN + 2, READ_ONLY)  # of no type, since nothing writes it
    frames = list(frames_of(made).values())
    grants, memory = guest.domain.grants, made.machine.memory
    # A mapping marks its entry, and would find the mark in what it copies out of the table.
    asked = [offers[ref][2] for ref, _, _ in pieces if 0 <= ref < OFFERED]
    assume(writes or grants.mfns[0] not in [frames[frame] for frame in asked])
    held = []
    for ref, (flags, to, frame) in enumerate(offers):
        memory.write((grants.mfns[0] << 12) + 8 * ref, pack("<HHI", flags, to, frames[frame]))
        if ref in used:
            try:
                held.append(made.dom0.maptrack.map(grants, ref, writable=False))
            except Refused:
                continue
    before, shown = counts(made), contents(made)
    if writes:
        # Into the grant table would change what the next piece finds, in both ways of doing it.
        wanted = [
            mapped_copy(grants, made, ref, offset, bytes([n]) * size, size)
            for n, (ref, offset, size) in enumerate(pieces)
        ]
        after = contents(made)
        restore(made, shown)
        refused = grants.copy_to(
            0,
            [ref for ref, _, _ in pieces],
            [offset for _, offset, _ in pieces],
            [bytes([n]) * size for n, (_, _, size) in enumerate(pieces)],
        )
        assert refused == [n for n, one in enumerate(wanted) if one is None]
        assert contents(made) == after
        restore(made, shown)
    else:
        wanted = [
            mapped_copy(grants, made, ref, offset, None, size) for ref, offset, size in pieces
        ]
        for n, (ref, offset, size) in enumerate(pieces):
            # Out of the table itself a mapping reads its own mark.
            if wanted[n] is not None and frames[offers[ref][2]] == grants.mfns[0]:
                wanted[n] = shown[grants.mfns[0]][offset : offset + size]
        columns = list(zip(*pieces, strict=True)) or [(), (), ()]
        assert grants.copy_from(0, *columns) == [one or b"" for one in wanted]
        assert contents(made) == shown
    assert counts(made) == before
    for mapping in held:
        made.dom0.maptrack.unmap(mapping)
    assert made.audit() == []


def outcome(ask: Callable[[], list[int]]) -> list[int] | tuple[int, str, object]:
    """Return the frames, or why they were refused."""
    try:
        return ask()
    except Refused as refused:
        return refused.errno, refused.rule, refused.argument


@given(OFFERS, st.sets(st.integers(0, OFFERED - 1)), st.lists(REFS, max_size=6), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_needs_no_pin_is_checked_like_what_does(
    made: World,
    offers: list[tuple[int, int, int]],
    used: set[int],
    refs: list[int],
    writes: object,
) -> None:
    guest = made.guests[1]
    guest.remap(FREE_PFN + 2, READ_ONLY)
    frames = list(frames_of(made).values())
    grants, memory, writable = guest.domain.grants, made.machine.memory, bool(writes)
    held = []
    for ref, (flags, to, frame) in enumerate(offers):
        memory.write((grants.mfns[0] << 12) + 8 * ref, pack("<HHI", flags, to, frames[frame]))
        if ref in used:
            try:
                held.append(made.dom0.maptrack.map(grants, ref, writable=False))
            except Refused:
                continue
        # What stands in an entry that is used does not count.
        memory.write((grants.mfns[0] << 12) + 8 * ref + 4, pack("<I", frames[ref]))

    def pin_and_unpin() -> list[int]:
        mfns = grants.pin(refs, 0, writable=writable)
        grants.unpin(refs, mfns, writable=writable)
        return mfns

    before, shown = counts(made), contents(made)
    wanted = outcome(pin_and_unpin)
    assert outcome(lambda: grants.check(refs, 0, writable=writable)) == wanted
    assert counts(made) == before
    assert contents(made) == shown
    for mapping in held:
        made.dom0.maptrack.unmap(mapping)
    assert made.audit() == []


def test_what_is_copied_into_the_table_counts_for_the_copies_behind_it(made: World) -> None:
    guest, mfn = offered(made)
    grants, memory = guest.domain.grants, made.machine.memory
    grants.seed(1, 0, grants.mfns[0])
    memory.write(mfn << 12, b"before")
    entry = pack("<HHI", 0, 0, 0)  # of 0, which offers nothing then
    assert grants.copy_to(0, [1, 0], [0, 0], [entry, b"behind"]) == [1]
    assert memory.read(mfn << 12, 6) == b"before"


def offered(made: World, flags: int = GTF_permit_access) -> tuple[Guest, int]:
    """Offer one page to Dom0."""
    guest = made.guests[1]
    grants = guest.domain.grants
    mfn = guest.mfns[FREE_PFN]
    entry = pack("<HHI", flags, 0, mfn)
    made.machine.memory.write(grants.mfns[0] << 12, entry)
    return guest, mfn


@pytest.mark.parametrize(
    ("frame", "flags", "to", "reads", "writes"),
    [
        ("plain", GTF_permit_access, 0, True, True),
        ("plain", GTF_permit_access | GTF_readonly, 0, True, False),
        ("plain", GTF_permit_access, 2, False, False),
        ("plain", 0, 0, False, False),
        ("plain", GTF_accept_transfer, 0, False, False),
        ("page table", GTF_permit_access, 0, True, False),
        ("another's", GTF_permit_access, 0, False, False),
        ("nobody's", GTF_permit_access, 0, False, False),
        ("none", GTF_permit_access, 0, False, False),
        ("far", GTF_permit_access, 0, False, False),
    ],
)
def test_only_what_is_offered_is_copied(
    made: World, frame: str, flags: int, to: int, *, reads: bool, writes: bool
) -> None:
    grants, memory = made.guests[1].domain.grants, made.machine.memory
    mfn = frames_of(made)[frame]
    memory.write(grants.mfns[0] << 12, pack("<HHI", flags, to, mfn))
    before = contents(made)
    copied = grants.copy_from(0, [0, 0], [0, 4095], [4096, 1])
    if reads:
        assert copied == [before[mfn], before[mfn][-1:]]
    else:
        assert copied == [b"", b""]
    assert grants.copy_to(0, [0, 0], [8, 4095], [b"abc", b"d"]) == ([] if writes else [0, 1])
    changed = {mfn: content for mfn, content in contents(made).items() if content != before[mfn]}
    assert list(changed) == ([mfn] if writes else [])
    if writes:
        assert changed[mfn] == before[mfn][:8] + b"abc" + before[mfn][11:-1] + b"d"


def test_an_entry_in_use_counts_as_it_was_when_it_was_read(made: World) -> None:
    guest, mfn = offered(made)
    grants, memory = guest.domain.grants, made.machine.memory
    other = guest.mfns[FREE_PFN + 1]
    memory.write(mfn << 12, b"first")
    memory.write(other << 12, b"other")
    mapping = made.dom0.maptrack.map(grants, 0, writable=False)
    grants.seed(0, 0, other)
    assert grants.copy_from(0, [0], [0], [5]) == [b"first"]
    assert grants.copy_to(0, [0], [0], [b"11111"]) == []
    assert memory.read(mfn << 12, 5) == b"11111"
    made.dom0.maptrack.unmap(mapping)
    assert grants.copy_from(0, [0], [0], [5]) == [b"other"]


def test_code_that_is_copied_over_is_translated_anew(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, mfn = offered(made)
    forgotten: list[int] = []
    monkeypatch.setattr(
        guest.engine, "invalidate_code", lambda maddr, _size: forgotten.append(maddr >> 12)
    )
    made.machine.memory.mark_code(mfn, guest.engine)
    guest.domain.grants.copy_from(0, [0], [0], [9])
    assert forgotten == []
    assert guest.domain.grants.copy_to(0, [0], [7], [b"code"]) == []
    assert forgotten == [mfn]
    made.machine.memory.release(mfn)


def test_entries_are_found_in_every_frame_of_the_table(made: World) -> None:
    guest, mfn = offered(made)
    grants, memory = guest.domain.grants, made.machine.memory
    grants.grow(3)
    refs = [0, ENTRIES_PER_FRAME - 1, ENTRIES_PER_FRAME, 3 * ENTRIES_PER_FRAME - 1]
    for ref in refs:
        grants.seed(ref, 0, mfn)
    memory.write(mfn << 12, b"abcdefgh")
    assert grants.copy_from(0, refs, [0, 1, 2, 3], [1] * 4) == [b"a", b"b", b"c", b"d"]
    assert grants.copy_to(0, refs, [3, 2, 1, 0], [b"1", b"2", b"3", b"4"]) == []
    assert memory.read(mfn << 12, 8) == b"4321efgh"
    assert grants.copy_from(0, [3 * ENTRIES_PER_FRAME], [0], [1]) == [b""]
