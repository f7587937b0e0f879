# SPDX-License-Identifier: GPL-2.0-or-later
"""What all verbs for a running xenlite need: which one it is, and an output that may be a pipe."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_to_pipe(verb: Callable[[], int]) -> int:
    """Do a verb and return its status, or the shells' own for an output that nobody reads on."""
    try:
        status = verb()
        sys.stdout.flush()
    except BrokenPipeError:
        # Nor shall Python try to write what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def choose(wish: Path | None) -> Path:
    """Return the directory of its sockets. Raises ConfigError where that is not clear."""
    from xenlite.toolstack.socket_dir import base_directory, running

    if wish is not None:
        return wish
    found = running()
    if len(found) == 1:
        return found[0]
    if not found:
        what = "no xenlite is running here; --socket-dir names another place"
        raise ConfigError(Fault(str(base_directory()), what))
    names = ", ".join(map(str, found))
    raise ConfigError(Fault("", f"several are running; give --socket-dir with one of {names}"))
