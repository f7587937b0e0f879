# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule has a name that `xenlite explain` knows, and a test that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import is_whole_run, rules_raised
from xenlite.devkit.refusals import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "xenlite"
# Where the rule stands among the arguments.
RAISED = {"Refused": 1, "DomainCrash": 0}
# Who passes a rule on to whom raises it, and where it stands there.
PASSED_ON = {"_set_upper": 3, "_take_children": 2}


def rules_in_the_code() -> Iterator[tuple[str, str]]:
    """Yield each rule that the code may refuse by, and where."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).split(".")[-1]
            at = RAISED.get(name, PASSED_ON.get(name))
            if at is None:
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            keywords = {word.arg: word.value for word in node.keywords}
            given = node.args[at] if len(node.args) > at else keywords.get("rule")
            assert given is not None, f"{where}: {name} without a rule"
            if isinstance(given, ast.Name) and given.id == "rule" and name in RAISED:
                continue  # a function of PASSED_ON: its callers are looked at
            assert isinstance(given, ast.Constant), f"{where}: the rule is computed"
            assert isinstance(given.value, str), where
            yield given.value, where


def test_every_rule_in_the_code_is_explained_and_no_other() -> None:
    in_code = dict(rules_in_the_code())
    assert len(in_code) > 100
    explained = load()
    assert {rule: in_code[rule] for rule in in_code.keys() - explained.keys()} == {}
    assert explained.keys() - in_code.keys() == set()


def test_explanations_are_whole_and_in_order() -> None:
    explained = load()
    assert list(explained) == sorted(explained)
    for name, entry in explained.items():
        for text in (entry.rule, entry.stops, entry.causes, entry.mend):
            assert text.endswith("."), f"{name}: {text!r}"


def test_the_page_of_the_docs_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "tools/gen_refusals.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_rule_is_provoked_by_a_test(pytestconfig: pytest.Config) -> None:
    """Runs last; only a run of all unit and guest tests can tell (tests/conftest.py)."""
    if not pytestconfig.stash[is_whole_run]:
        pytest.skip("needs a run of all tests in tests/unit and tests/guests")
    raised = pytestconfig.stash[rules_raised]
    assert load().keys() - raised == set()
