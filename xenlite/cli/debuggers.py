# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite run --gdb``: let debuggers in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from xenlite.cli.main import GDB_ADDRESS
from xenlite.devkit.gdb_listeners import GdbListeners
from xenlite.toolstack.lifecycle import exit_status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from xenlite.hypervisor import Hypervisor


def let_in(
    options: argparse.Namespace, names: Sequence[str], hypervisor: Hypervisor, cleanup: ExitStack
) -> Callable[[int, str], None]:
    """Listen for debuggers until ``cleanup``; return what is to hear of each domain.

    Says where, a line for each domain. Raises ConfigError.
    """
    listeners = GdbListeners(
        options.gdb or GDB_ADDRESS,
        names,
        hypervisor.control(),
        hypervisor.defer,
        exit_status,
        waits=options.gdb_wait,
    )
    cleanup.callback(listeners.close)
    for name, address in listeners.addresses().items():
        sys.stderr.write(f"xenlite: domain {name!r}: gdb, target remote {address}\n")
    sys.stderr.flush()
    return listeners.built
