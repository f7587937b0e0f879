# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports point down the house, never up (docs/architecture.md); type-checking ones too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "xenlite"

MICROHYPERVISOR = frozenset(
    {"hypervisor", "control", "link", "traps", "registers", "hypercalls", "core", "machine"}
)
BASE = frozenset({"abi", "errors"})
# What each room may import besides itself. `xenlite` itself stands for the version.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "abi": frozenset(),
    "errors": frozenset(),
    "doors": BASE,
    "machine": BASE,
    "core": BASE | {"machine"},
    "hypercalls": BASE | {"machine", "core"},
    "registers": BASE | {"machine", "core"},
    "traps": BASE | {"machine", "core", "hypercalls"},
    "link": BASE | {"machine", "core", "doors", "hypervisor"},
    "control": BASE | {"machine", "core", "doors", "hypervisor", "registers"},
    "hypervisor": BASE | MICROHYPERVISOR | {"doors"},
    "dom0": BASE | {"doors"},
    "toolstack": BASE | {"doors", "dom0"},
    "devkit": BASE | {"doors"},
    "cli": BASE | {"doors", "dom0", "toolstack", "devkit", "hypervisor", "machine"},
}
# The one place that knows both sides of the doors.
COMPOSES = {"toolstack/host.py": frozenset({"hypervisor", "machine"})}


def room_of(module: str) -> str | None:
    """Return the room of an imported module: None for other packages and for the version."""
    parts = module.split(".")
    if parts[0] != "xenlite" or len(parts) == 1:
        return None
    return parts[1]


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            modules = [node.module]
            if node.module == "xenlite":
                modules = [f"xenlite.{alias.name}" for alias in node.names]
        else:
            continue
        rooms.update(room for room in map(room_of, modules) if room is not None)
    return rooms - {"__version__"}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_rooms_below_its_own(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        assert not imported_rooms(path)
        return
    allowed = MAY_IMPORT[room] | {room} | COMPOSES.get(relative.as_posix(), frozenset())
    assert imported_rooms(path) <= allowed


def test_the_engine_and_the_assembler_have_one_door_each() -> None:
    found: dict[str, set[str]] = {"unicorn": set(), "keystone": set()}
    for path in FILES:
        for name, places in found.items():
            use = rf'^\s*(import|from) {name}\b|find_spec\("{name}"\)'
            if re.search(use, path.read_text(), re.MULTILINE):
                places.add(path.relative_to(PACKAGE).as_posix())
    assert found == {
        "unicorn": {"machine/engine.py"},
        "keystone": {"devkit/assembler_worker.py"},
    }


def test_the_microhypervisor_stays_small() -> None:
    """The trusted base, comments and audit included; blank lines and import lists are not read.

    Nor are the assembled bytes of trap_stub.s; its source is counted.
    """
    lines = len((PACKAGE / "machine/trap_stub.s").read_text().splitlines())
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in MICROHYPERVISOR and path.name != "trap_stub.py":
            tree = ast.parse(path.read_text())
            imports = {
                line
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            }
            text = enumerate(path.read_text().splitlines(), 1)
            lines += sum(1 for n, line in text if line.strip() and n not in imports)
    assert lines < 9700
