# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run``: domains in this process, their consoles on the user's terminal."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from xenlite.toolstack.domain_config import DomainConfig

ASSEMBLY_SUFFIXES = frozenset({".s", ".S"})


def load(
    path: Path, overrides: list[str], note: Callable[[str], None] | None = None
) -> DomainConfig:
    """Read a domain's file, and build what it gives as sources, unless the cache has it.

    These are a kernel in assembly and a directory of programs. ``note`` hears what is left out.
    Raises ConfigError with the faults of both.
    """
    from xenlite.toolstack.config import load

    config = load(path, overrides)
    faults: list[Fault] = []
    if config.kernel.suffix in ASSEMBLY_SUFFIXES:
        from xenlite.devkit.kernel_cache import build_kernel

        try:
            config = replace(config, kernel=build_kernel(config.kernel))
        except ConfigError as error:
            faults += error.faults
    # Path's own is_dir raises where it may not look; whoever reads the file says why, in a line.
    if config.ramdisk is not None and os.path.isdir(config.ramdisk):  # noqa: PTH112
        from xenlite.devkit.program_cache import build_archive

        try:
            archive = build_archive(config.ramdisk)
        except ConfigError as error:
            faults += error.faults
        else:
            if archive.left_out and note is not None:
                note(f"{config.ramdisk}: no gcc -m32 here; left out: {', '.join(archive.left_out)}")
            config = replace(config, ramdisk=archive.path)
    if faults:
        raise ConfigError(*faults)
    return config


def load_all(
    words: Iterable[str], note: Callable[[str], None] | None = None
) -> list[tuple[Path, DomainConfig]]:
    """Read the files of a command line, each with the ``key=value`` words that follow it.

    ``note`` hears what is left out. Raises ConfigError with the faults of all of them.
    """
    configs: list[tuple[Path, DomainConfig]] = []
    faults: list[Fault] = []
    for path, overrides in _by_file(words):
        try:
            configs.append((path, load(path, overrides, note)))
        except ConfigError as error:
            faults += error.faults
    owners: dict[str, Path] = {}
    for path, config in configs:
        if config.name in owners:
            first = owners[config.name]
            what = f"name: {config.name!r} is taken by {first}; give one of them name=..."
            faults.append(Fault(str(path), what))
        owners.setdefault(config.name, path)
    if any(config.networks for _, config in configs):
        from xenlite.toolstack.network_config import conflicts

        faults += conflicts((str(path), config) for path, config in configs)
    if faults:
        raise ConfigError(*faults)
    return configs


def _by_file(words: Iterable[str]) -> list[tuple[Path, list[str]]]:
    files: list[tuple[Path, list[str]]] = []
    for word in words:
        if re.match(r"[A-Za-z_]\w*=", word, re.ASCII) is None:
            files.append((Path(word), []))
        elif not files:
            raise ConfigError(Fault("command line", f"{word!r} stands before the file it changes"))
        else:
            files[-1][1].append(word)
    return files


def run(options: argparse.Namespace) -> int:
    """Run the domains of ``options.words``; return the exit status."""
    left_out = _say if options.verbose else None
    configs = [config for _, config in load_all(options.words, left_out)]
    names = [config.name for config in configs]

    from xenlite.cli.consoles import join
    from xenlite.cli.terminal import Output, Terminal
    from xenlite.cli.watching import open_crash_reports, open_watchers
    from xenlite.dom0.rolling_file import RollingFile
    from xenlite.hypervisor import Hypervisor
    from xenlite.machine.clock import HostClock
    from xenlite.machine.memory import DEFAULT_SIZE_BYTES
    from xenlite.toolstack.host import Host, Voice
    from xenlite.toolstack.socket_dir import CONTROL_SOCKET, STORE_SOCKET, SocketDirectory

    with ExitStack() as cleanup:
        consoles = []
        sockets = cleanup.enter_context(SocketDirectory(options.socket_dir))
        if options.log is not None:
            log = RollingFile(options.log, "log", "--log", _say)
            cleanup.callback(log.close)
            consoles.append(join(names, log.write, is_terminal=False))

        def output_broke(error: OSError) -> None:
            if error.errno != errno.EPIPE:
                _say(f"standard output: {error.strerror}")
            host.leave(128 + signal.SIGPIPE if error.errno == errno.EPIPE else 1)

        clock = HostClock()
        hypervisor = Hypervisor(options.host_memory or DEFAULT_SIZE_BYTES, clock)
        for note in hypervisor.notes:
            _say(f"note: {note}")
        output = Output(
            sys.stdout.fileno(),
            gives_up=lambda: host.has_to_end(),
            broken=output_broke,
        )

        if not options.quiet:
            consoles.append(join(names, output.write, is_terminal=output.is_terminal))

        def console(name: str, data: bytes) -> None:
            for each in consoles:
                each.write(name, data)

        def ended(name: str) -> None:
            for each in consoles:
                each.ended(name)

        watchers = open_watchers(options, cleanup, _say)
        crashed = open_crash_reports(options, cleanup, _say)
        host = Host(hypervisor, clock, Voice(console, ended, _say, crashed), watchers)
        cleanup.callback(host.close)
        cleanup.callback(host.serve_store(sockets.listen(STORE_SOCKET)).close)
        cleanup.callback(host.serve_control(sockets.listen(CONTROL_SOCKET)).close)
        if not options.quiet:
            _say(f"sockets in {sockets.path}")
        built = None
        if options.gdb is not None:
            from xenlite.cli.debuggers import let_in

            built = let_in(options, configs, hypervisor, host, cleanup)
        with Terminal(typed=host.feed, wants_input=host.wants_input, leave=host.leave):
            return host.run(
                configs,
                timeout_s=options.timeout,
                audits=options.audit,
                explains=options.verbose,
                built=built,
                captures=_captures(options.pcap),
            )


def _captures(wishes: Iterable[tuple[str, Path]] | None) -> dict[str, Path]:
    """Bring each capture's file to what is captured; ConfigError where there are two."""
    captures: dict[str, Path] = {}
    for name, path in wishes or ():
        if name in captures:
            raise ConfigError(Fault(f"--pcap {name}", "given twice"))
        captures[name] = path
    return captures


def _say(text: str) -> None:
    """Write lines of our own beside the guest's; names in them may be the guest's choice."""
    from xenlite.toolstack.console_log import readable

    lines = "\n".join(map(readable, f"xenlite: {text}".split("\n")))
    os.write(sys.stderr.fileno(), f"{lines}\n".encode(errors="backslashreplace"))
