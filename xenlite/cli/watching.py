# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``xenlite run`` was asked to show of the guests' doings: lines, counts, a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from xenlite.toolstack.host import Watcher


def open_watchers(
    options: argparse.Namespace, cleanup: ExitStack, say: Callable[[str], None]
) -> list[Watcher]:
    """Open what the options ask for; ``cleanup`` closes it, and writes the counts."""
    watchers: list[Watcher] = []
    if options.trace is not None:
        from xenlite.devkit.trace_file import TraceFile

        trace = TraceFile(options.trace, say)
        cleanup.callback(trace.close)
        watchers.append(trace)
    if options.strace or options.strace_output or options.events or options.counts:
        watchers.append(_strace(options, cleanup, say))
    return watchers


def open_crash_reports(
    options: argparse.Namespace, cleanup: ExitStack, say: Callable[[str], None]
) -> Callable[[str], None]:
    """Open the file for crash reports, if there is to be one: JSON, a line each."""
    if options.crash_report is None:
        return lambda _report: None
    return _open_lines(options.crash_report, "--crash-report", cleanup, say)


def _strace(options: argparse.Namespace, cleanup: ExitStack, say: Callable[[str], None]) -> Watcher:
    from xenlite.devkit.strace import Counts, Filter, Strace

    is_wanted = Filter(options.events or "")
    write = say
    if options.strace_output is not None:
        write = _open_lines(options.strace_output, "--strace-output", cleanup, say)
    counts = Counts() if options.counts else None
    if counts is not None:
        cleanup.callback(lambda: write(counts.table()))
    return Strace(write, is_wanted, counts)


def _open_lines(
    path: Path, option: str, cleanup: ExitStack, say: Callable[[str], None]
) -> Callable[[str], None]:
    """Open a file for lines; a full disk ends it, and is told once."""
    try:
        file = path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(Fault(str(path), f"{error.strerror} ({option})")) from None
    has_failed = False

    def attempt(step: Callable[[], object]) -> None:
        nonlocal has_failed
        try:
            if not has_failed:
                step()
        except OSError as error:
            has_failed = True
            say(f"{path}: {error.strerror}: the lines end here")

    cleanup.callback(attempt, file.close)
    return lambda line: attempt(lambda: file.write(f"{line}\n"))
