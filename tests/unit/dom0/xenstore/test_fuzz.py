# SPDX-License-Identifier: GPL-2.0-or-later
"""Random requests at every change (R10); ``tools/fuzz xenstore`` goes on for as long as asked."""

from __future__ import annotations

import pytest

from tests.support import store_fuzz
from xenlite.dom0.xenstore.tree import Overlay


def test_random_requests_break_nothing() -> None:
    results: dict[str, int] = {}
    for seed in range(4):
        failure = store_fuzz.run(store_fuzz.generate(seed, 1000), results)
        assert failure is None, str(failure)
    # It comes to what it is meant to come to.
    reached = {"done", "cut off", "EINVAL", "ENOENT", "EACCES", "EAGAIN", "ENOSPC", "ENOMEM"}
    assert reached | {"EEXIST", "E2BIG", "EPERM", "EBUSY", "ENOSYS"} <= set(results)
    assert results["done"] > 500


def test_a_fault_is_found_and_cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overlay, "fits", lambda _overlay: True)
    failures = (store_fuzz.run(store_fuzz.generate(seed, 1000)) for seed in range(20))
    failure = next(failure for failure in failures if failure is not None)
    small = store_fuzz.minimise(failure)
    assert len(small.steps) < 10
    again = store_fuzz.run(store_fuzz.parse(str(small)))
    assert again is not None
