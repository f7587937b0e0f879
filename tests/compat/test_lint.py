# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenlite lint` has no false alarm on kernels that run: what it finds there was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.cli.lint import key
from xenlite.cli.main import main
from xenlite.devkit.linter import lint

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = {
    "grub": ROOT / "build/kernels/grub-i386-xen.bin",
    "gnumach": ROOT / "build/kernels/gnumach-1.8-xen-486.gz",
}


@pytest.mark.parametrize("name", KERNELS)
def test_all_that_is_found_in_a_kernel_of_others_was_looked_at(name: str) -> None:
    kernel, allow = KERNELS[name], HERE / f"lint/{name}.allow"
    assert kernel.exists(), "run tools/fetch_kernels first (tools/check does)"
    assert main(["lint", str(kernel), "--allow", str(allow)]) == 0
    lines = [line.split("#")[0].strip() for line in allow.read_text().splitlines()]
    found = {key(one) for one in lint(kernel.read_bytes(), name)}
    assert found == {line for line in lines if line}, "a line for what is no longer found"


def test_guestos_has_nothing_to_look_at() -> None:
    assert main(["lint", str(ROOT / "guestos/main.s")]) == 0
