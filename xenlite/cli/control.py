# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs for a running xenlite: xl's names, arguments and tables, asked over its socket."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenlite.cli.running import choose, write_to_pipe

if TYPE_CHECKING:
    from xenlite.toolstack.control_client import ControlClient

DETACH_SECONDS: Final = 10
_STATES: Final = "rbpscd"


def run(options: argparse.Namespace) -> int:
    """Do one verb; return the exit status."""
    from xenlite.toolstack.control_client import ControlClient
    from xenlite.toolstack.socket_dir import CONTROL_SOCKET

    verb: Callable[[ControlClient, argparse.Namespace], None] = options.control_verb
    with ControlClient(choose(options.socket_dir) / CONTROL_SOCKET) as client:

        def ask() -> int:
            verb(client, options)
            return 0

        return write_to_pipe(ask)


# -- verbs ----------------------------------------------------------------------------------------


def list_domains(client: ControlClient, options: argparse.Namespace) -> None:
    """Print what there is to say of each domain."""
    found = client.ask("list")
    if options.domain is not None:
        wish = options.domain
        found = [one for one in found if wish in (one["name"], str(one["domid"]))]
        if not found:
            from xenlite.errors import ConfigError, Fault

            raise ConfigError(Fault("", f"no domain is called {wish!r} here"))
    if options.format == "json":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif options.format == "yaml":
        import yaml

        yaml.safe_dump(found, sys.stdout, sort_keys=False)
    else:
        _row(_DOMAIN_ROW, "Name", "ID", "Mem", "VCPUs", "State", "Time(s)")
        for one in found:
            mib = one["memory_kib"] >> 10
            state = _state(one["state"])
            seconds = f"{one['cpu_seconds']:.1f}"
            _row(_DOMAIN_ROW, one["name"], one["domid"], mib, one["vcpus"], state, seconds)


_DOMAIN_ROW: Final = "{:<40} {:>5} {:>5} {:>5} {:>10} {:>8}"
_DISK_ROW: Final = "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {}"
_CARD_ROW: Final = "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:<15} {}"


def join_console(client: ControlClient, options: argparse.Namespace) -> None:
    """Have a console here, until Ctrl-] or its end."""
    from xenlite.cli.join import join

    join(client.ask("console", domain=options.domain, number=options.number))


def list_disks(client: ControlClient, options: argparse.Namespace) -> None:
    """Print the disks of a domain."""
    _row(_DISK_ROW, "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path")
    for disk in client.ask("block-list", domain=options.domain):
        _row(_DISK_ROW, *disk.values())


def attach_disk(client: ControlClient, options: argparse.Namespace) -> None:
    """Give a domain a disk."""
    disk = ",".join(options.disk)
    client.ask("block-attach", domain=options.domain, disk=disk, directory=str(Path.cwd()))


def detach_disk(client: ControlClient, options: argparse.Namespace) -> None:
    """Take a disk away."""
    client.ask(
        "block-detach",
        domain=options.domain,
        vdev=options.vdev,
        force=options.force,
        seconds=options.timeout,
    )


def list_cards(client: ControlClient, options: argparse.Namespace) -> None:
    """Print the network cards of a domain."""
    heads = ("Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-/rx-ring-ref", "BE-path")
    _row(_CARD_ROW, *heads)
    for card in client.ask("network-list", domain=options.domain):
        rings = f"{card.pop('tx_ring_ref')}/{card.pop('rx_ring_ref')}"
        *cells, path = card.values()
        _row(_CARD_ROW, *cells, rings, path)


def attach_card(client: ControlClient, options: argparse.Namespace) -> None:
    """Give a domain a network card."""
    client.ask("network-attach", domain=options.domain, vif=",".join(options.vif))


def detach_card(client: ControlClient, options: argparse.Namespace) -> None:
    """Take a network card away."""
    client.ask(
        "network-detach",
        domain=options.domain,
        vif=options.vif,
        force=options.force,
        seconds=options.timeout,
    )


def _simple(verb: str) -> Callable[[ControlClient, argparse.Namespace], None]:
    def ask(client: ControlClient, options: argparse.Namespace) -> None:
        client.ask(verb, domain=options.domain)

    return ask


def _state(letter: str) -> str:
    """Show a state as xl does: each letter at its place, a crash as a kind of shutdown."""
    letters = {"c": "sc"}.get(letter, letter)
    return "".join(each if each in letters else "-" for each in _STATES)


def _row(form: str, *cells: object) -> None:
    sys.stdout.write(form.format(*cells) + "\n")


# -- arguments ------------------------------------------------------------------------------------

VERBS: Final[dict[str, str]] = {
    "list": "list the domains of a running xenlite",
    "pause": "have a domain stand still",
    "unpause": "have a paused domain go on",
    "shutdown": "ask a guest to power off",
    "reboot": "ask a guest to reboot",
    "destroy": "take a domain apart at once",
    "console": "join a console of a domain; Ctrl-] leaves",
    "block-attach": "give a running domain a disk",
    "block-detach": "take a disk away from a running domain",
    "block-list": "list the disks of a domain",
    "network-attach": "give a running domain a network card",
    "network-detach": "take a network card away from a running domain",
    "network-list": "list the network cards of a domain",
}


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    parsers = {name: _add(verbs, name, what) for name, what in VERBS.items()}
    for name in ("pause", "unpause", "shutdown", "reboot", "destroy"):
        parsers[name].set_defaults(control_verb=_simple(name))
    listing = parsers["list"]
    listing.add_argument("--format", choices=("table", "json", "yaml"), default="table")
    listing.set_defaults(control_verb=list_domains)
    for name, parser in parsers.items():
        optional = name == "list"
        parser.add_argument("domain", nargs="?" if optional else None, help="its name or domid")
    joining = parsers["console"]
    joining.add_argument("-n", dest="number", type=int, default=0, help="which (0, the first)")
    joining.set_defaults(control_verb=join_console)
    attaching = parsers["block-attach"]
    attaching.add_argument(
        "disk",
        nargs="+",
        help="as in dom.yaml: TARGET,FORMAT,VDEV,ACCESS; the parts may be separate words",
    )
    attaching.set_defaults(control_verb=attach_disk)
    detaching = parsers["block-detach"]
    detaching.add_argument("vdev", help="as in xvdb, or its number")
    _add_detaching(detaching)
    detaching.set_defaults(control_verb=detach_disk)
    parsers["block-list"].set_defaults(control_verb=list_disks)
    _add_card_arguments(parsers)


def _add_card_arguments(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    attaching = parsers["network-attach"]
    attaching.add_argument(
        "vif", nargs="*", help="as in dom.yaml: bridge=xenbr0 mac=...; nothing for a usual one"
    )
    attaching.set_defaults(control_verb=attach_card)
    detaching = parsers["network-detach"]
    detaching.add_argument("vif", help="its number or address")
    _add_detaching(detaching)
    detaching.set_defaults(control_verb=detach_card)
    parsers["network-list"].set_defaults(control_verb=list_cards)


def _add_detaching(detaching: argparse.ArgumentParser) -> None:
    detaching.add_argument(
        "-f", "--force", action="store_true", help="at once, whatever the guest does with it"
    )
    detaching.add_argument(
        "--timeout",
        type=int,
        default=DETACH_SECONDS,
        metavar="SECONDS",
        help=f"how long the guest may take to close it ({DETACH_SECONDS})",
    )


def _add(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    made.add_argument("--socket-dir", type=Path, metavar="DIR", help="of `xenlite run`")
    made.set_defaults(verb=run)
    return made
