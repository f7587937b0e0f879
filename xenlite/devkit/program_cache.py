# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep packed directories of programs: `ramdisk: programs` of a domain's file.

An archive is found as a kernel is (kernel_cache.py), by reading and hashing what is in the
directory; what builds it (program_archive.py) is imported only when something has changed.

Programs in C are left out where no compiler works; the archive without them has a name of its own,
so that it is built again, and whole, once there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xenlite.devkit import kernel_cache
from xenlite.errors import ConfigError, Fault

LIBRARY = "lib"
"""The subdirectory of what programs are made with: it is not packed."""

_MAX_FILES = 4096
_DRIVER = ("program_archive.py", "program_cache.py", "program_compiler.py")


@dataclass(frozen=True, slots=True)
class ProgramArchive:
    """An archive, and the programs of the directory that it lacks for want of a compiler."""

    path: Path
    left_out: tuple[str, ...] = ()


def build_archive(directory: Path) -> ProgramArchive:
    """Return the archive of `directory`, built now or kept from before. Raise `ConfigError`."""
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - "." has no name and no parent
    whole, reduced = archive_names(directory)
    kept = kernel_cache.find_kept(directory, whole)
    if kept is not None:
        return ProgramArchive(kept)
    c_programs = tuple(sorted(path.name for path in directory.glob("*.c")))
    if c_programs:
        from xenlite.devkit.program_compiler import find_compiler

        compiler = find_compiler()
        if compiler is None:
            kept = kernel_cache.find_kept(directory, reduced)
            if kept is not None:
                return ProgramArchive(kept, c_programs)
    else:
        compiler = None
    from xenlite.devkit.program_archive import pack

    data = pack(directory, compiler)
    if compiler is None and c_programs:
        return ProgramArchive(kernel_cache.keep(reduced, data), c_programs)
    return ProgramArchive(kernel_cache.keep(whole, data))


def archive_names(directory: Path) -> tuple[str, str]:
    """Return the file names of the archive of `directory` as it is now: whole, and without C."""
    paths = files_of(directory)
    names = "\n".join(path.relative_to(directory).as_posix() for path in paths)
    digits = kernel_cache.content_hash(paths, drivers=_DRIVER, also=os.fsencode(names))
    return f"{directory.name}-{digits}.tar", f"{directory.name}-{digits}-asm.tar"


def files_of(directory: Path) -> list[Path]:
    """Return every file below `directory`, in order; hidden ones and editors' copies don't count.

    What is not a regular file does not count either. Raise `ConfigError` where there are too many
    for a directory of programs.
    """
    found = []
    for top, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        found += [
            Path(top, name)
            for name in names
            if not name.startswith(".") and not name.endswith("~") and Path(top, name).is_file()
        ]
        if len(found) > _MAX_FILES:
            what = f"more than {_MAX_FILES} files; this is no directory of programs"
            raise ConfigError(Fault(str(directory), what))
    return sorted(found)
