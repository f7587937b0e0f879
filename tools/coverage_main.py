# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the unit and guest tests under coverage.py, and list every refusal that none of them takes.

A refusal is a ``raise`` of Refused, DomainCrash, PeerError or ConfigError in the hypervisor, Dom0
or the toolstack. Traps are served by ctypes callbacks on the thread that runs the guest, where
coverage's trace function works as everywhere else. Exit status 1 where one is not taken.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/unit", "tests/guests", "tests/pair")
REFUSING = (
    *("xenlite/core", "xenlite/hypercalls", "xenlite/dom0", "xenlite/machine"),
    *("xenlite/toolstack", "xenlite/traps.py", "xenlite/hypervisor.py", "xenlite/control.py"),
    *("xenlite/link.py",),
)
ERRORS = {"Refused", "DomainCrash", "PeerError", "ConfigError"}


def main() -> int:
    """Run the tests, then read what they reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzz", action="store_true", help="count what only the fuzzes reach, too")
    parser.add_argument("tests", nargs="*", default=TESTS, help="tests to run (default: all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data_file = str(Path(scratch) / "coverage")
        command = ["-m", "coverage", "run", "--branch", f"--data-file={data_file}"]
        command += ["--source=xenlite", "-m", "pytest", "-q", "--no-header", *options.tests]
        if not options.fuzz:
            command += ["--ignore-glob=*fuzz*"]
        ended = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
        if ended.returncode:
            print("some tests failed: the list may be too long")
        measured = coverage.Coverage(data_file=data_file)
        measured.load()
        return _report(measured)


def _report(measured: coverage.Coverage) -> int:
    taken = untaken = 0
    statements = missing_statements = 0
    for path in _files():
        _, lines, _, missing, _ = measured.analysis2(str(path))
        statements += len(lines)
        missing_statements += len(missing)
        for line, text in _refusals(path):
            if line in missing:
                untaken += 1
                print(f"{path.relative_to(ROOT)}:{line}: {text}")
            else:
                taken += 1
    print(f"{taken} refusals are taken by a test, {untaken} are not")
    reached = 100 * (statements - missing_statements) / statements
    print(f"{reached:.1f} % of {statements} statements are reached")
    return int(untaken > 0)


def _files() -> Iterator[Path]:
    for name in REFUSING:
        path = ROOT / name
        yield from sorted(path.glob("*.py")) if path.is_dir() else [path]


def _refusals(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each raise of an error that somebody else is to blame for."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(raised, ast.Name) and raised.id in ERRORS:
            yield node.lineno, ast.unparse(node)


if __name__ == "__main__":
    sys.exit(main())
