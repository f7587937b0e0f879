# SPDX-License-Identifier: GPL-2.0-or-later
"""Keep assembled kernels: one whose sources did not change is found by reading and hashing them.

This stands on the way of every boot from a source, so it imports little: the assembler itself, and
the process that runs Keystone, only when something has to be assembled. Archives of programs
(program_cache.py) are kept by the same rules.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from _sha256 import sha256  # type: ignore[import-not-found] # hashlib loads OpenSSL: 3 ms
except ImportError:
    from hashlib import sha256

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlite.devkit.assembly_text import AssemblyError

_DRIVER = (
    "assembler.py", "assembler_worker.py", "assembly_expression.py", "assembly_operands.py",
    "assembly_source.py", "assembly_text.py", "dwarf_writer.py", "elf_writer.py",
    "kernel_cache.py", "keystone_child.py",
)  # fmt: skip
# Also what a comment or an untaken branch names: at worst a kernel is assembled once too often.
_INCLUDE = re.compile(rb'\.include\s+"([^"\n]+)"')
_PACKAGE = Path(__file__).resolve().parent.parent


def kernel_name(source: Path) -> str:
    """Return the file name that holds what `source` assembles to, now. Raise `AssemblyError`."""
    return f"{source.stem}-{content_hash([source])}.elf"


def build_kernel(source: Path) -> Path:
    """Return the ELF file of `source`, assembled now or kept from before. Raise `AssemblyError`.

    It lies beside the source, as in the wheel, or under `$XDG_CACHE_HOME/xenlite/kernels`
    (`~/.cache` without it), named by a hash of all that went into it.
    """
    name = kernel_name(source)
    shipped = source.with_name(name)
    if shipped.is_file():
        return shipped
    # Debuggers are told where the sources are, so what is kept is for one place.
    directory = str(source.parent.resolve())
    name = f"{sha256(os.fsencode(directory)).hexdigest()[:8]}-{name}"
    kept = find_kept(source, name)
    if kept is not None:
        return kept
    from xenlite.devkit.assembler import assemble

    return keep(name, assemble(source).elf(directory))


def find_kept(source: Path, name: str) -> Path | None:
    """Return the file `name` that was made of `source`, shipped beside it or made here before."""
    for path in (source.parent / name, _directory() / name):
        if path.is_file():
            return path
    return None


def keep(name: str, data: bytes) -> Path:
    """Write `data` as the file `name` of the cache; return its path."""
    path = _directory() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(data)
    draft.replace(path)  # another process that does the same writes the same bytes
    return path


def include_directories() -> tuple[Path, ...]:
    """Return where the generated `xen_abi.inc` lies, in a checkout or in the installed package."""
    candidates = (_PACKAGE.parent / "guestos/include", _PACKAGE / "share/guestos/include")
    return tuple(path for path in candidates if path.is_dir())


def content_hash(sources: Iterable[Path], *, drivers: Iterable[str] = (), also: bytes = b"") -> str:
    """Return a hash of `sources`, of all that they include, and of the code that builds them.

    That is the assembler and the files `drivers` of this package; `also` is hashed as it is.
    Raise `AssemblyError`.
    """
    digest = sha256(also)
    for name in (*_DRIVER, *drivers):
        digest.update(Path(__file__).with_name(name).read_bytes())
    directories = include_directories()
    seen: set[Path] = set()
    todo = list(sources)
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _error(path, error.strerror or "cannot be read") from None
        digest.update(b"%d:%s" % (len(data), data))
        for name in _INCLUDE.findall(data):
            todo += [
                found
                for directory in (path.parent, *directories)
                if (found := directory / os.fsdecode(name)).is_file()
            ][:1]
    digits: str = digest.hexdigest()
    return digits[:24]


def _directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xenlite/kernels"


def _error(path: Path, what: str) -> AssemblyError:
    from xenlite.devkit.assembly_text import AssemblyError
    from xenlite.errors import Fault

    return AssemblyError(Fault(str(path), what))
