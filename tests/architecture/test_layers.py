# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports point down the house, never up (docs/architecture.md); type-checking ones too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "xenlite"

MICROHYPERVISOR = frozenset(
    {"hypervisor", "control", "link", "traps", "recorder", "registers", "hypercalls", "core"}
    | {"machine", "debugger", "inspection"}
)
# What a process holds of the microhypervisor only once a debugger has attached.
FOR_DEBUGGERS = (
    "debugger.py",
    "inspection.py",
    "hypercalls/breaks.py",
    "core/watchpoints.py",
    "machine/probes.py",
)
BASE = frozenset({"abi", "errors", "trace_format"})
# What each room may import besides itself. `xenlite` itself stands for the version.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "abi": frozenset(),
    "errors": frozenset(),
    "trace_format": frozenset(),
    "doors": BASE | {"debug_doors"},
    "debug_doors": BASE | {"doors"},
    "machine": BASE,
    "core": BASE | {"machine"},
    "hypercalls": BASE | {"machine", "core"},
    "registers": BASE | {"machine", "core"},
    "traps": BASE | {"machine", "core", "hypercalls"},
    "recorder": BASE | {"machine", "core", "hypercalls", "traps"},
    "link": BASE | {"machine", "core", "doors", "hypervisor"},
    "inspection": BASE | {"machine", "core", "doors", "debug_doors"},
    "debugger": BASE | {"machine", "core", "doors", "debug_doors", "hypercalls", "inspection"},
    "control": BASE
    | {"machine", "core", "doors", "debug_doors", "hypervisor", "registers", "debugger"},
    "hypervisor": BASE | MICROHYPERVISOR | {"doors", "debug_doors"},
    "dom0": BASE | {"doors"},
    "toolstack": BASE | {"doors", "dom0"},
    "devkit": BASE | {"doors", "debug_doors", "toolstack"},
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


def lines_of(path: Path) -> int:
    """Count lines that are neither blank nor an import."""
    tree = ast.parse(path.read_text())
    imports = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    text = enumerate(path.read_text().splitlines(), 1)
    return sum(1 for n, line in text if line.strip() and n not in imports)


def test_the_microhypervisor_stays_small() -> None:
    """The trusted base, comments and audit included; blank lines and import lists are not read.

    Nor are the assembled bytes of trap_stub.s; its source is counted, and so is the recorder, which
    stands before every trap handler of a domain that is recorded. What is there for debuggers alone
    has a measure of its own.
    """
    lines = len((PACKAGE / "machine/trap_stub.s").read_text().splitlines())
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        is_base = room in MICROHYPERVISOR and relative.as_posix() not in FOR_DEBUGGERS
        if is_base and path.name != "trap_stub.py":
            lines += lines_of(path)
    assert lines < 10800
    assert sum(lines_of(PACKAGE / name) for name in FOR_DEBUGGERS) < 1000


def test_what_is_for_debuggers_is_not_loaded_without_one() -> None:
    modules = [f"xenlite.{name.removesuffix('.py').replace('/', '.')}" for name in FOR_DEBUGGERS]
    program = f"""
import sys, xenlite.hypervisor, xenlite.toolstack.host, xenlite.cli.run
assert not set(sys.modules) & set({modules})
assert not any(name.startswith("xenlite.devkit.gdb") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
