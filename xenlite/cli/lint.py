# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite lint``: what of a kernel does not work in ring 1, for people and for CI."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from xenlite.cli.run import ASSEMBLY_SUFFIXES
from xenlite.devkit.linter import Finding, lint
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.console_log import readable

if TYPE_CHECKING:
    from pathlib import Path

STATUS_CLEAN = 0
STATUS_FOUND = 1


def run_lint(kernel: Path, allow: Path | None) -> int:
    """Print what is found and not allowed; return 1 where there is any. Raises ConfigError."""
    path = kernel
    if path.suffix in ASSEMBLY_SUFFIXES:
        from xenlite.devkit.kernel_cache import build_kernel

        path = build_kernel(path)
    allowed = set() if allow is None else _allowed(allow)
    found = [one for one in lint(_read(path), str(kernel)) if key(one) not in allowed]
    sys.stdout.write("".join(f"{readable(str(one))}\n" for one in found))
    count = len(found)
    summary = "nothing to look at" if not count else f"{count} to look at"
    sys.stderr.write(f"xenlite: {readable(str(kernel))}: {summary}\n")
    return STATUS_FOUND if found else STATUS_CLEAN


def key(finding: Finding) -> str:
    """Return the line of an allow file that is for a finding: ``place: name``."""
    if finding.address is None:
        return finding.name
    place = finding.function.partition("+")[0] or f"{finding.address:08x}"
    return f"{place}: {finding.name}"


def _allowed(path: Path) -> set[str]:
    lines = _read(path).decode(errors="backslashreplace").splitlines()
    return {re.sub(r"\s*#.*", "", line).strip() for line in lines} - {""}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(Fault(str(path), error.strerror or "cannot be read")) from None
