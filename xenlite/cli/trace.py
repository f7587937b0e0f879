# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite trace``: show what ``xenlite run --trace`` has recorded, or hand it to other tools."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from xenlite.devkit.trace_file import Trace
from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path


def show(options: argparse.Namespace) -> int:
    """Convert ``options.file`` as the options say; return the exit status."""
    trace = Trace(options.file)
    convert = _CONVERTERS.get(options.to)
    if convert is not None:
        _write(options.output, convert(trace))
        return 0
    from xenlite.devkit.strace import Counts, Filter, Strace

    lines: list[str] = []
    counts = Counts() if options.counts else None
    strace = Strace(lines.append, Filter(options.events or ""), counts)
    strace.name_by(trace.symbols)
    strace.show(trace.records)
    if counts is not None:
        lines.append(counts.table())
    _write(options.output, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    return 0


def _to_perfetto(trace: Trace) -> bytes:
    from xenlite.devkit.trackevent import to_trackevent

    return to_trackevent(trace)


def _to_xentrace(trace: Trace) -> bytes:
    from xenlite.devkit.xentrace import to_xentrace

    return to_xentrace(trace)


_CONVERTERS: dict[str, Callable[[Trace], bytes]] = {
    "perfetto": _to_perfetto,
    "xentrace": _to_xentrace,
}


def _write(path: Path | None, data: bytes) -> None:
    if path is None:
        if data and sys.stdout.isatty() and b"\0" in data:
            raise ConfigError(Fault("-o", "binary data would spoil the terminal: name a file"))
        sys.stdout.buffer.write(data)
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(Fault(str(path), error.strerror or str(error))) from None
