# SPDX-License-Identifier: GPL-2.0-or-later
"""Pack a directory of programs for a guest kernel into a ustar archive.

====================  ===========================================================================
`NAME.s`              assembled, a static ELF file at 0x08048000: `bin/NAME`
`NAME.c`              compiled with the sources of `lib`, the same: `bin/NAME`
`lib/`, `.inc`, `.h`  what they include and are linked with; not packed
any other file        packed as it is, under its name
====================  ===========================================================================

The same directory always gives the same bytes (as far as the compiler does).
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

from xenlite.devkit.assembler import assemble
from xenlite.devkit.program_cache import LIBRARY, files_of
from xenlite.devkit.program_compiler import BASE, Compiler
from xenlite.errors import ConfigError, Fault

_MAX_NAME = 100
"""The longest name in a ustar header, which guestos reads without its prefix field."""


def pack(directory: Path, compiler: str | None) -> bytes:
    """Return the archive; programs in C are left out without a compiler. Raise `ConfigError`.

    Every program is tried, so that the mistakes of all of them are reported.
    """
    library = directory / LIBRARY
    members: dict[str, tuple[int, bytes]] = {}
    faults: list[Fault] = []
    with tempfile.TemporaryDirectory(prefix="xenlite-") as scratch:
        maker: Compiler | None = None
        for path in files_of(directory):
            if path.is_relative_to(library) or path.suffix in {".inc", ".h"}:
                continue
            is_program = path.parent == directory and path.suffix in {".s", ".c"}
            if path.suffix == ".c" and is_program and compiler is None:
                continue
            name = f"bin/{path.stem}" if is_program else path.relative_to(directory).as_posix()
            try:
                if not is_program:
                    data = path.read_bytes()
                elif path.suffix == ".s":
                    data = assemble(path, base=BASE).elf()
                else:
                    assert compiler is not None
                    maker = maker or Compiler(compiler, directory, library, Path(scratch))
                    data = maker.build(path)
                _check_name(name, path, members)
                members[name] = (0o755 if is_program else 0o644, data)
            except ConfigError as error:
                faults += error.faults
            except OSError as error:
                faults.append(Fault(str(path), error.strerror or "cannot be read"))
    if faults:
        raise ConfigError(*dict.fromkeys(faults))
    return _archive(members)


def _check_name(name: str, path: Path, members: dict[str, tuple[int, bytes]]) -> None:
    if name in members:
        raise ConfigError(Fault(str(path), f"{name} is packed already; give one another name"))
    if len(os.fsencode(name)) > _MAX_NAME:
        raise ConfigError(Fault(str(path), f"the name is longer than {_MAX_NAME} bytes"))


def _archive(members: dict[str, tuple[int, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (mode, data) in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
