# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run``: one domain in this process, its console on the user's terminal."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from xenlite.toolstack.domain_config import DomainConfig

ASSEMBLY_SUFFIXES = frozenset({".s", ".S"})


def load(path: Path, overrides: list[str]) -> DomainConfig:
    """Read a domain's file; a kernel given as assembly is assembled, or taken from the cache."""
    from xenlite.toolstack.config import load

    config = load(path, overrides)
    if config.kernel.suffix in ASSEMBLY_SUFFIXES:
        from xenlite.devkit.kernel_cache import build_kernel

        return replace(config, kernel=build_kernel(config.kernel))
    return config


def run(options: argparse.Namespace) -> int:
    """Run the domain of ``options.config``; return the exit status."""
    config = load(options.config, options.overrides)

    from xenlite.cli.terminal import Output, Terminal
    from xenlite.hypervisor import Hypervisor
    from xenlite.machine.clock import HostClock
    from xenlite.machine.memory import DEFAULT_SIZE_BYTES
    from xenlite.toolstack.console_log import LogFile
    from xenlite.toolstack.host import Host, Voice

    with ExitStack() as cleanup:
        log = None
        if options.log is not None:
            log = LogFile(options.log, _say)
            cleanup.callback(log.close)

        def output_broke(error: OSError) -> None:
            if error.errno != errno.EPIPE:
                _say(f"standard output: {error.strerror}")
            host.leave(128 + signal.SIGPIPE if error.errno == errno.EPIPE else 1)

        clock = HostClock()
        hypervisor = Hypervisor(options.host_memory or DEFAULT_SIZE_BYTES, clock)
        output = Output(
            sys.stdout.fileno(),
            gives_up=lambda: host.has_to_end(),
            broken=output_broke,
        )

        def console(_domid: int, data: bytes) -> None:
            if log is not None:
                log.write(data)
            if not options.quiet:
                output.write(data)

        host = Host(hypervisor, clock, Voice(console, _say))
        cleanup.callback(host.close)
        with Terminal(typed=host.feed, wants_input=host.wants_input, leave=host.leave):
            return host.run(
                [config],
                timeout_s=options.timeout,
                audits=options.audit,
                explains=options.verbose,
            )


def _say(text: str) -> None:
    """Write lines of our own beside the guest's; names in them may be the guest's choice."""
    from xenlite.toolstack.console_log import readable

    lines = "\n".join(map(readable, f"xenlite: {text}".split("\n")))
    os.write(sys.stderr.fileno(), f"{lines}\n".encode(errors="backslashreplace"))
