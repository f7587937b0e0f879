# SPDX-License-Identifier: GPL-2.0-or-later
"""Which running xenlite a command is for: the one that is named, or the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.errors import ConfigError, Fault

if TYPE_CHECKING:
    from pathlib import Path


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
