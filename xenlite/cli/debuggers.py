# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run --gdb``: let debuggers in."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from xenlite.devkit.gdb_listeners import GdbListeners
from xenlite.toolstack.device_text import device_lines
from xenlite.toolstack.lifecycle import exit_status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from xenlite.hypervisor import Hypervisor
    from xenlite.toolstack.domain_config import DomainConfig
    from xenlite.toolstack.host import Host


def let_in(
    options: argparse.Namespace,
    configs: Sequence[DomainConfig],
    hypervisor: Hypervisor,
    host: Host,
    cleanup: ExitStack,
) -> Callable[[int, str], None]:
    """Listen for debuggers until ``cleanup``; return what is to hear of each domain.

    Says where, a line for each domain. Raises ConfigError.
    """
    kernels = {config.name: config.kernel for config in configs}
    listeners = GdbListeners(
        options.gdb,
        list(kernels),
        hypervisor.control(),
        hypervisor.defer,
        exit_status,
        waits=options.gdb_wait,
        devices=lambda domid: device_lines(host.devices(domid)),
    )
    cleanup.callback(listeners.close)
    for name, address in listeners.addresses().items():
        command = shlex.join(["gdb", str(kernels[name]), "-ex", f"target remote {address}"])
        sys.stderr.write(f"xenlite: {name}: {command}\n")
    sys.stderr.flush()
    return listeners.built
