# SPDX-License-Identifier: GPL-2.0-or-later
"""Put guestos into the wheel: its sources and, assembled now, the kernel.

The kernel's name carries the hash of all that it was made from, and `build_kernel` looks for that
name beside the source before it assembles anything. An editable installation needs none of
this: it uses the checkout.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GuestosHook(BuildHookInterface[Any]):
    """Assemble guestos for a wheel that is installed elsewhere."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to the wheel."""
        self._directory = Path(tempfile.mkdtemp(prefix="guestos-"))
        if version == "editable":
            return
        root = Path(self.root)
        sys.path.insert(0, str(root))  # nothing of xenlite is installed where a wheel is built
        from xenlite.devkit.assembler import assemble
        from xenlite.devkit.kernel_cache import kernel_name

        source = root / "guestos/main.s"
        kernel = self._directory / kernel_name(source)
        kernel.write_bytes(assemble(source).elf())
        include = build_data["force_include"]
        include[str(root / "guestos")] = "xenlite/share/guestos"
        include[str(kernel)] = f"xenlite/share/guestos/{kernel.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was only made for the wheel."""
        shutil.rmtree(self._directory, ignore_errors=True)
