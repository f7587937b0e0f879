# SPDX-License-Identifier: GPL-2.0-or-later
"""Put guestos into the wheel: its sources and, built now, the kernel and its programs.

Both names carry the hash of all that they were made from, and `find_kept` looks for such a name
beside the source before anything is built. An editable installation needs none of
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
        from xenlite.devkit.program_archive import pack
        from xenlite.devkit.program_cache import archive_names
        from xenlite.devkit.program_compiler import find_compiler

        source, programs = root / "guestos/main.s", root / "guestos/programs"
        compiler = find_compiler()
        whole, reduced = archive_names(programs)
        include = build_data["force_include"]
        include[str(root / "guestos")] = "xenlite/share/guestos"
        for name, data in (
            (kernel_name(source), assemble(source).elf(".")),
            (whole if compiler else reduced, pack(programs, compiler)),
        ):
            path = self._directory / name
            path.write_bytes(data)
            include[str(path)] = f"xenlite/share/guestos/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was only made for the wheel."""
        shutil.rmtree(self._directory, ignore_errors=True)
