# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite xenstore <verb>``: Xen's xenstore-ls, -read, -write and so on, for a running xenlite.

Options and output are those of xenstore-utils.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xenlite.abi.x86_32p import ENOENT
from xenlite.cli.running import choose, write_to_pipe
from xenlite.errors import ConfigError, Fault
from xenlite.toolstack.store_client import StoreClient, StoreError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

EXIT_OK = 0
EXIT_NOT = 1
PERMISSIONS_COLUMN = 60
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def run(options: argparse.Namespace) -> int:
    """Do one verb; return the exit status."""
    from xenlite.toolstack.socket_dir import STORE_SOCKET

    directory = choose(options.socket_dir)
    verb: Callable[[StoreClient, argparse.Namespace], int] = options.store_verb
    with StoreClient(directory / STORE_SOCKET) as client:
        return write_to_pipe(lambda: verb(client, options))


# -- verbs ----------------------------------------------------------------------------------------


def list_tree(client: StoreClient, options: argparse.Namespace) -> int:
    """Print everything below a node; what goes away meanwhile is left out."""
    for path, depth in _below(client, options.path):
        try:
            value = client.read(path)
            entries = client.permissions(path) if options.permissions else []
        except StoreError as refused:
            if refused.errno != ENOENT:
                raise
            continue
        line = path if options.full else " " * depth + path.rpartition("/")[2]
        line += f' = "{_printable(value)}"'
        if entries:
            led = f"{line} " if options.full else _dotted(line)
            line = f"{led}  ({','.join(entries)})"
        _print(line)
    return EXIT_OK


def _below(client: StoreClient, top: str) -> Iterator[tuple[str, int]]:
    """Yield each path below ``top`` and its depth, a node before its children.

    Without recursion: how deep the tree is may be a guest's choice.
    """
    waiting = [(_child(top, name), 0) for name in reversed(client.directory(top))]
    while waiting:
        path, depth = waiting.pop()
        yield path, depth
        try:
            names = client.directory(path)
        except StoreError as refused:
            if refused.errno != ENOENT:
                raise
            continue
        waiting += [(_child(path, name), depth + 1) for name in reversed(names)]


def _child(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"


def read(client: StoreClient, options: argparse.Namespace) -> int:
    """Print values."""
    for path in options.paths:
        value = client.read(path)
        if options.prefix:
            sys.stdout.write(f"{path}: ")
        if options.raw:
            sys.stdout.flush()
            sys.stdout.buffer.write(value + b"\n")
        else:
            _print(_printable(value))
    return EXIT_OK


def list_children(client: StoreClient, options: argparse.Namespace) -> int:
    """Print the names of children."""
    for path in options.paths:
        for name in client.directory(path):
            _print(f"{path}/{name}" if options.prefix else name)
    return EXIT_OK


def exists(client: StoreClient, options: argparse.Namespace) -> int:
    """Tell by the exit status whether all of the nodes exist."""
    return EXIT_OK if all(map(client.exists, options.paths)) else EXIT_NOT


def write(client: StoreClient, options: argparse.Namespace) -> int:
    """Set values, all or none."""
    paths, values = options.pairs[::2], options.pairs[1::2]
    if len(paths) != len(values):
        raise ConfigError(Fault("write", f"{paths[-1]!r} has no value"))

    def write_all() -> None:
        for path, value in zip(paths, values, strict=True):
            client.write(path, os.fsencode(value))

    client.in_transaction(write_all)
    return EXIT_OK


def remove(client: StoreClient, options: argparse.Namespace) -> int:
    """Remove nodes, all or none; with ``-t`` also what is empty above them then."""

    def remove_all() -> None:
        for path in options.paths:
            client.remove(path)
            above = path.rpartition("/")[0]
            while options.tidy and above and not client.directory(above) and not client.read(above):
                client.remove(above)
                above = above.rpartition("/")[0]

    client.in_transaction(remove_all)
    return EXIT_OK


def chmod(client: StoreClient, options: argparse.Namespace) -> int:
    """Set permissions, of what is below (``-r``) and above (``-u``) too."""

    def set_all() -> None:
        client.set_permissions(options.path, options.modes)
        if options.recurse:
            for path, _ in _below(client, options.path):
                client.set_permissions(path, options.modes)
        above = options.path.rpartition("/")[0]
        while options.upwards and above:
            client.set_permissions(above, options.modes)
            above = above.rpartition("/")[0]

    client.in_transaction(set_all)
    return EXIT_OK


def watch(client: StoreClient, options: argparse.Namespace) -> int:
    """Print the path of each event, as it comes."""
    for path in options.paths:
        client.watch(path)
    left = options.count
    while left != 0:
        _print(client.next_event())
        sys.stdout.flush()
        left = None if left is None else left - 1
    return EXIT_OK


def _printable(value: bytes) -> str:
    """Show bytes that may be a guest's choice: nothing that a terminal would act on."""
    return "".join(
        _ESCAPES.get(char, char if " " <= char <= "~" else f"\\x{ord(char):02x}")
        for char in value.decode("latin-1")
    )


def _dotted(line: str) -> str:
    """Lead the eye from a line to what stands behind it, in a column where there is room."""
    line += " "
    while len(line) < PERMISSIONS_COLUMN:
        line += "." if len(line) % 2 else " "
    return line


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


# -- arguments ------------------------------------------------------------------------------------


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs below ``xenlite xenstore``."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(
        name: str, verb: Callable[[StoreClient, argparse.Namespace], int], what: str
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        made.add_argument("--socket-dir", type=Path, metavar="DIR", help="of `xenlite run`")
        made.add_argument("-s", action="store_true", help="use the socket, as always")
        made.set_defaults(verb=run, store_verb=verb)
        return made

    ls = add("ls", list_tree, "print everything below a node")
    ls.add_argument("-f", dest="full", action="store_true", help="whole paths")
    ls.add_argument("-p", dest="permissions", action="store_true", help="permissions too")
    ls.add_argument("path", nargs="?", default="/")

    reading = add("read", read, "print the values of nodes")
    reading.add_argument("-p", dest="prefix", action="store_true", help="with the path before them")
    reading.add_argument("-R", dest="raw", action="store_true", help="as they are, unescaped")
    listing = add("list", list_children, "print the names of the children of nodes")
    listing.add_argument("-p", dest="prefix", action="store_true", help="with the path before them")
    exist = add("exists", exists, "tell by the exit status whether nodes exist")
    removing = add("rm", remove, "remove nodes with all below them")
    removing.add_argument("-t", dest="tidy", action="store_true", help="and what is empty above")
    watching = add("watch", watch, "print the paths that change")
    watching.add_argument("-n", dest="count", type=int, metavar="NR", help="only so many events")
    for made in (reading, listing, exist, removing, watching):
        made.add_argument("paths", nargs="+", metavar="path")

    writing = add("write", write, "set the values of nodes")
    writing.add_argument("-R", action="store_true", help="values as they are, as always")
    writing.add_argument("pairs", nargs="+", metavar="path value")

    mode = add("chmod", chmod, "set who may do what with a node")
    mode.add_argument("-r", dest="recurse", action="store_true", help="and all below it")
    mode.add_argument("-u", dest="upwards", action="store_true", help="and all above it")
    mode.add_argument("path")
    mode.add_argument("modes", nargs="+", metavar="mode", help="letter n, r, w or b, and a domid")
