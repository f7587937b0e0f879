# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten thousand hostile operations break nothing; ``tools/fuzz paging`` does as many as wanted."""

from __future__ import annotations

import pytest

from tests.support.paging_fuzz import Fuzz, generate, minimise, run

OPERATIONS = 2500


@pytest.mark.parametrize("seed", range(4))
def test_hostile_operations_break_nothing(seed: int) -> None:
    results: dict[str, dict[str, int]] = {}
    failure = run(generate(seed, OPERATIONS), results=results)
    if failure is not None:
        pytest.fail(str(minimise(failure)))
    # A fuzz that is refused everything, or nothing, tests little.
    for name in ("map", "update", "extended", "make_table", "make_space", "memory"):
        assert min(results[name].values()) > 5, (name, results[name])


def test_a_sequence_is_the_same_for_the_same_seed() -> None:
    assert list(generate(7, 50)) == list(generate(7, 50))
    assert list(generate(7, 50)) != list(generate(8, 50))


def test_a_failure_is_cut_down_to_what_causes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a check that fails on one operation, one operation is left."""

    def check(fuzz: Fuzz) -> None:
        if fuzz.results.get("grant", {}).get("done"):
            raise AssertionError("granted")

    monkeypatch.setattr(Fuzz, "check", check)
    failure = run(generate(3, 300))
    assert failure is not None
    assert [name for name, _ in minimise(failure).operations] == ["grant"]
