# SPDX-License-Identifier: GPL-2.0-or-later
"""The generated files are what the generator makes of hypercall_abi.yaml today."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = (
    "xenlite/abi/x86_32p.py",
    "guestos/include/xen_abi.inc",
    "guestos/include/xen_abi.h",
    "docs/abi.md",
)


def generate(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools/gen_abi.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a directory with the description and the generator, and nothing generated."""
    (tmp_path / "tools").mkdir()
    for name in ("hypercall_abi.yaml", "tools/gen_abi.py", "tools/abi_model.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_generated_files_are_fresh() -> None:
    result = generate(ROOT, "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_check_names_stale_files_and_writes_none(copy: Path) -> None:
    generate(copy)
    (copy / GENERATED[0]).write_text("stale")
    (copy / GENERATED[3]).unlink()

    result = generate(copy, "--check")

    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        GENERATED[0],
        GENERATED[3],
    ]
    assert (copy / GENERATED[0]).read_text() == "stale"
    assert not (copy / GENERATED[3]).exists()


@pytest.mark.parametrize(
    ("text", "mistake", "complaint"),
    [
        ("val: {type: uint64, x86_32p: 8}", "val: {type: uint64, x86_32p: 4}", "mmu_update.val"),
        ("val: {type: uint64, x86_32p: 8}", "val: {type: uint64, x86_32: 8}", "keys x86_32"),
        ("size: {x86_32p: 16}", "size: {x86_32p: 20}", "but the size is 20"),
        ('ureqs: "mmu_update*"', 'ureqs: "mmu_updates*"', "no type mmu_updates"),
        ("arg: sched_poll", "arg: sched_pole", "no structure sched_pole"),
        ("operations: {by: cmd, of: vcpu_op}", "operations: {by: cmd, of: cpu}", "no group cpu"),
        ("VIRQ_DEBUG: 1", "VIRQ_TIMER_: 1\n      EPERM: 1", "EPERM: defined by"),
    ],
)
def test_generator_refuses_a_mistake_in_the_description(
    copy: Path, text: str, mistake: str, complaint: str
) -> None:
    source = copy / "hypercall_abi.yaml"
    correct = source.read_text()
    assert text in correct
    source.write_text(correct.replace(text, mistake, 1))

    result = generate(copy)

    assert result.returncode == 1
    assert complaint in result.stderr.splitlines()[-1]
    assert not (copy / GENERATED[0]).exists()
