# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile programs in C for a guest kernel, with the host's gcc.

A program is one `NAME.c` of the directory, linked with every source of the directory's library, so
it needs nothing of the host but a compiler that knows `-m32`: no headers, no libraries.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from xenlite.errors import ConfigError, Fault

BASE = 0x08048000
"""Where programs are linked, as on Linux for i386."""

_TIME_LIMIT_S = 60
_COMPILE = (
    "-m32", "-march=i686", "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-ffreestanding",
    "-fno-pie", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns", "-c",
)  # fmt: skip
_LINK = (
    "-m32", "-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext-segment={BASE:#x}",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,norelro", "-Wl,--strip-all",
)  # fmt: skip
# "a.c:3:5: error: ...", and of the linker "a.c:3: undefined reference to ..."
_PROBLEM = re.compile(
    r"(?:.*/)?([^/:\s]+\.[chS]):(\d+)(?::\d+)?: (?:(?:fatal )?error: (.*)|(undefined reference .*"
    r"|multiple definition .*))"
)


class CompileError(ConfigError):
    """Report what is wrong with a program in C, each fault with its file and line."""


def find_compiler() -> str | None:
    """Return the path of a gcc that can make 32-bit programs; None where there is none."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="xenlite-") as scratch:
        source = Path(scratch, "probe.c")
        source.write_text("void _start(void) { for (;;); }\n")
        done = _run([compiler, *_COMPILE, source.name, "-o", "probe.o"], Path(scratch))
        if done.returncode == 0:
            done = _run([compiler, *_LINK, "probe.o", "-o", "probe"], Path(scratch))
    return compiler if done.returncode == 0 else None


class Compiler:
    """Makes the programs of one directory; the library's objects are made once."""

    def __init__(self, compiler: str, directory: Path, library: Path, scratch: Path) -> None:
        self._compiler = compiler
        self._directory = directory.resolve()
        self._library = library.resolve()
        self._scratch = scratch
        self._objects = [self._compile(path) for path in sorted(self._library.glob("*.c"))]

    def build(self, source: Path) -> bytes:
        """Return the ELF file of a program. Raise `CompileError`."""
        program = self._scratch / source.stem
        objects = [str(self._compile(source.resolve())), *map(str, self._objects)]
        self._checked(source, [*_LINK, *objects, "-o", str(program)])
        return program.read_bytes()

    def _compile(self, source: Path) -> Path:
        """Compile one file. No path of the host gets into it: what is equal compiles equally."""
        made = self._scratch / f"{source.parent.name}-{source.stem}.o"
        includes = ["-I", str(self._library)]
        options = [*_COMPILE, f"-ffile-prefix-map={self._directory}=.", *includes]
        self._checked(source, [*options, str(source), "-o", str(made)])
        return made

    def _checked(self, source: Path, arguments: list[str]) -> None:
        done = _run([self._compiler, *arguments], self._directory)
        if done.returncode == 0:
            return
        faults = [
            Fault(f"{match[1]}:{match[2]}", match[3] or match[4])
            for match in map(_PROBLEM.match, done.stderr.splitlines())
            if match
        ]
        last = (done.stderr.strip().splitlines() or ["gcc fails and does not say why"])[-1]
        raise CompileError(*faults or [Fault(source.name, last)])


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run gcc, its messages in English; one that does not end counts as failed."""
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
