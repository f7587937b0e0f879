# SPDX-License-Identifier: GPL-2.0-or-later
"""Note every rule by which a test has something refused, for tests/architecture/test_refusals.py.

What only random operations reach does not count, nor does a test that makes a ``Refused`` itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenlite.errors import DomainCrash, Refused

TESTS = Path(__file__).resolve().parent
PACKAGE = str(TESTS.parent / "xenlite")
FINAL_TEST = "test_every_rule_is_provoked_by_a_test"

rules_raised = pytest.StashKey[set[str]]()
is_whole_run = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[rules_raised] = set()
    config.stash[is_whole_run] = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the test that looks at all others last; tell it whether all are here."""
    items.sort(key=lambda item: item.name == FINAL_TEST)
    wanted = {path for room in ("unit", "guests") for path in (TESTS / room).rglob("test_*.py")}
    is_filtered = bool(config.option.keyword or config.option.markexpr or config.option.deselect)
    config.stash[is_whole_run] = not is_filtered and wanted <= {item.path for item in items}


@pytest.fixture(autouse=True)
def note_rules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Watch refusals being made, from xenlite's own code, while a directed test runs."""
    if "fuzz" in request.node.path.as_posix():
        yield
        return
    raised = request.config.stash[rules_raised]
    refuse, crash = Refused.__init__, DomainCrash.__init__

    def note(rule: str) -> None:
        if sys._getframe(2).f_code.co_filename.startswith(PACKAGE):
            raised.add(rule)

    def noted_refusal(self: Refused, errno: int, rule: str, argument: object = None) -> None:
        note(rule)
        refuse(self, errno, rule, argument)

    def noted_crash(self: DomainCrash, rule: str, detail: str = "") -> None:
        note(rule)
        crash(self, rule, detail)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refused, "__init__", noted_refusal)
        patch.setattr(DomainCrash, "__init__", noted_crash)
        yield
