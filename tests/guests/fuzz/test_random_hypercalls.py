# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile hypercalls out of ring 1 break nothing; ``tools/fuzz guest`` makes as many as wanted.

Goal R2 of SECURITY.md.
"""

from __future__ import annotations

import pytest

from tests.support.hypercall_fuzz import RING_WEIGHTS, RingFuzz
from tests.support.paging_fuzz import generate, minimise, run

OPERATIONS = 600


@pytest.mark.parametrize("seed", range(2))
def test_hostile_hypercalls_out_of_ring_1_break_nothing(seed: int) -> None:
    results: dict[str, dict[str, int]] = {}
    failure = run(generate(seed, OPERATIONS, RING_WEIGHTS), results=results, make=RingFuzz)
    if failure is not None:
        pytest.fail(str(minimise(failure, make=RingFuzz)))
    # A fuzz that is refused everything, or nothing, tests little.
    for name in ("map", "update", "extended", "make_table", "wild"):
        assert min(results[name].values()) > 3, (name, results[name])


def test_a_store_that_changes_a_table_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody notes that a TLB is stale, a page that became a table is still written."""
    monkeypatch.setattr("xenlite.machine.tlb.Tlb.revoke", lambda _tlb: None)
    weights = {"map": 1, "make_table": 6, "touch": 12}
    failure = run(generate(1, 2000, weights), make=RingFuzz)
    assert failure is not None
    assert "changed a table" in str(failure.error)
