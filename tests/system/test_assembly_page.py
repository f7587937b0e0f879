# SPDX-License-Identifier: GPL-2.0-or-later
"""The example of docs/assembly.md is a kernel that boots."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30


def test_the_example_boots_and_says_hello(tmp_path: Path) -> None:
    page = (ROOT / "docs/assembly.md").read_text()
    example = re.search(r"```asm\n(.*?)```", page, re.DOTALL)
    assert example is not None
    (tmp_path / "main.s").write_text(example[1])
    (tmp_path / "dom.yaml").write_text("name: example\nkernel: main.s\nmemory: 4\n")
    done = subprocess.run(
        [sys.executable, "-m", "xenlite.cli.main", "run", str(tmp_path / "dom.yaml")],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
