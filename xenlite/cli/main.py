# SPDX-License-Identifier: GPL-2.0-or-later
"""``xenlite <verb>``: read the arguments, do the verb, return the exit status.

Each verb imports what it needs when it runs: a domain may take 200 ms from the start of the process
to its kernel's first line.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_ERROR = 1
GDB_ADDRESS = ":1234"
RUN_ABOUT = """\
Run domains here, side by side, with their consoles on this terminal. Ctrl-] leaves and destroys
them. key=value words replace keys of the file before them. Of several domains each line is shown
behind the name of its domain; what is typed goes to the first one."""
CREATE_ABOUT = """\
Make a domain and run it. Today this is the same as `run`: it stays in the foreground, with the
console joined, and Ctrl-] leaves and destroys the domain. A later version will start the domain in
a background host and return at once."""
EXIT_STATUS_HELP = """\
exit status:
  0         the domain powered off (of several: all did; else the first other status, in the
            order in which they were given)
  1         xenlite's own error: a bad file, too little memory
  16+N      the domain shut down for reason N: 17 reboot, 18 suspend, 19 crash, 20 watchdog;
            at most 123
  124       the time given with --timeout was up
  130       the user left (Ctrl-] on a terminal, Ctrl-C elsewhere) or destroyed the domain
  128+S     ended by signal S
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
    parser = _parser(next(iter(arguments), ""))
    try:
        # argparse takes words that stand together only; options may stand between them.
        options, words = parser.parse_known_args(_with_gdb_address(arguments))
        unknown = [word for word in words if word.startswith("-") or "words" not in options]
        if unknown:
            parser.error(f"unknown: {' '.join(unknown)}")
        if words:
            options.words += words
        if options.version:
            sys.stdout.write(f"xenlite {_version()}\n")
            return 0
        if "verb" not in options:
            parser.error("which verb?")
    except SystemExit as end:
        # argparse has written its message; 2 for a mistake is its own, ours is 1.
        return EXIT_ERROR if end.code else 0
    try:
        status: int = options.verb(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        lines = _in_the_users_words(error)
        if lines is None:
            raise
        sys.stderr.write("".join(f"xenlite: {line}\n" for line in lines))
        return EXIT_ERROR
    return status


def _in_the_users_words(error: Exception) -> list[str] | None:
    """Return the lines for an error that the user can mend; None for a fault of xenlite."""
    from xenlite.errors import ConfigError, Refused
    from xenlite.toolstack.console_log import readable

    if isinstance(error, ConfigError):
        return [readable(str(fault)) for fault in error.faults]
    return [readable(str(error))] if isinstance(error, Refused) else None


def _parser(first_word: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xenlite",
        description="Run kernels ported to Xen on an emulated CPU: no root, no KVM, no Xen.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(metavar="VERB")
    run = _add_run(
        verbs, "run", "run domains here, with their consoles on this terminal", RUN_ABOUT
    )
    run.add_argument("-c", dest="counts", action="store_true", help="the same as --counts")
    create = _add_run(verbs, "create", "make a domain and run it (today: as `run`)", CREATE_ABOUT)
    # What fingers trained on xl add; the first two ask for what happens anyway.
    create.add_argument("-c", "--console", action="store_true", help="join the console, as always")
    create.add_argument("-F", "--foreground", action="store_true", help="stay here, as always")
    create.add_argument(
        "-n", "--dryrun", dest="verb", action="store_const", const=_check, help="only check"
    )
    check = verbs.add_parser("check", help="read domains' files and kernels, and run nothing")
    _add_config(check)
    check.set_defaults(verb=_check)
    schema = verbs.add_parser("schema", help="print the JSON Schema of dom.yaml, for editors")
    schema.set_defaults(verb=_schema)
    trace = verbs.add_parser("trace", help="show or convert what `run --trace` has recorded")
    trace.add_argument("file", type=Path, metavar="FILE", help="the record")
    trace.add_argument(
        "--to",
        choices=("text", "perfetto", "xentrace"),
        default="text",
        help="lines (the default), a file for ui.perfetto.dev, or one for xenalyze --cpu-hz 1G",
    )
    trace.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (stdout)")
    trace.add_argument("-e", dest="events", metavar="NAMES", help="of the text, as of run --strace")
    trace.add_argument("-c", "--counts", action="store_true", help="count instead, as run -c")
    trace.set_defaults(verb=_trace)
    explain = verbs.add_parser("explain", help="tell what a rule is for, and how to keep it")
    explain.add_argument(
        "words", nargs="*", metavar="RULE", help="as in paging.l1-bits; none lists all"
    )
    explain.set_defaults(verb=_explain)
    lint = verbs.add_parser("lint", help="tell what of a kernel does not work in ring 1")
    lint.add_argument("kernel", type=Path, metavar="KERNEL", help="ELF, packed or not, or assembly")
    lint.add_argument(
        "--allow", type=Path, metavar="FILE", help="lines `FUNCTION: NAME` that were looked at"
    )
    lint.set_defaults(verb=_lint)
    what = "read, write and watch the XenStore of a running xenlite"
    store = verbs.add_parser("xenstore", help=what, description=what)
    if first_word == "xenstore":
        from xenlite.cli.xenstore import add_verbs

        add_verbs(store)
    if first_word not in ("run", "create"):  # whose start they would delay
        from xenlite.cli import control

        control.add_verbs(verbs)
    return parser


def _with_gdb_address(arguments: Sequence[str]) -> list[str]:
    """Give a ``--gdb`` that no address follows its default: argparse would take a file for one."""
    words = list(arguments)
    for at, word in enumerate(words):
        if word == "--gdb":
            following = words[at + 1] if at + 1 < len(words) else ""
            is_path = following.startswith("/") and not Path(following).is_file()
            if not is_path and not following.startswith(":"):
                words[at] = f"--gdb={GDB_ADDRESS}"
    return words


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="dom.yaml [key=value ...]",
        help="a domain's file, and keys of it to replace",
    )


def _add_run(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, about: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=what,
        description=about,
        epilog=EXIT_STATUS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only errors of ours")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say why each refused hypercall was refused"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="give up then, with status 124"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the console's output")
    parser.add_argument(
        "--host-memory", type=_host_memory, metavar="SIZE", help="memory of the machine (1G)"
    )
    parser.add_argument(
        "--audit", action="store_true", help="recompute every invariant while it runs (slow)"
    )
    parser.add_argument(
        "--pcap",
        type=_capture,
        action="append",
        metavar="NAME=FILE",
        help="capture a network (xenbr0) or a domain's card (a.0) for tcpdump; may be repeated",
    )
    seeing = parser.add_argument_group("seeing what the guests do (slower: every trap is shown)")
    seeing.add_argument(
        "--strace", action="store_true", help="show hypercalls, traps, events and upcalls"
    )
    seeing.add_argument(
        "-e", dest="events", metavar="NAMES", help="of those only: mmu_update,evtchn,fault or !iret"
    )
    seeing.add_argument(
        "--counts", action="store_true", help="count instead: calls, errors, time, p50, p99"
    )
    seeing.add_argument(
        "-o", "--strace-output", type=Path, metavar="FILE", help="write that to a file"
    )
    seeing.add_argument(
        "--trace", type=Path, metavar="FILE", help="record all of it for `xenlite trace`"
    )
    seeing.add_argument(
        "--crash-report", type=Path, metavar="FILE", help="keep crash reports, too, as JSON lines"
    )
    parser.add_argument(
        "--socket-dir", type=Path, metavar="DIR", help="where its sockets are (a fresh directory)"
    )
    parser.add_argument(
        "--gdb",
        type=_gdb_address,
        metavar="[:PORT|/SOCKET]",
        help=f"let gdb or LLDB attach, at {GDB_ADDRESS} or there; other domains at the next ports",
    )
    parser.add_argument(
        "--gdb-wait", action="store_true", help="the same, and wait for it before each first step"
    )
    parser.set_defaults(verb=_run)
    return parser


def _run(options: argparse.Namespace) -> int:
    from xenlite.cli.run import run

    if options.gdb_wait and options.gdb is None:
        options.gdb = GDB_ADDRESS
    return run(options)


def _check(options: argparse.Namespace) -> int:
    from xenlite.cli.run import load_all
    from xenlite.toolstack.console_log import readable
    from xenlite.toolstack.layout import plan
    from xenlite.toolstack.lifecycle import Guest

    def note(text: str) -> None:
        sys.stdout.write(f"{readable(text)}\n")

    for path, config in load_all(options.words, note):
        guest = Guest(config)
        layout = plan(
            guest.image,
            ramdisk_size=len(guest.ramdisk),
            nr_pages=config.pages,
            where=f"domain {config.name!r}",
        )
        system = readable(guest.image.guest_os) or "a kernel that does not say its name"
        sys.stdout.write(
            f"{path}: {config.name}: {system}, entry {guest.image.entry:#x},"
            f" {layout.mapped_pages} of {layout.nr_pages} pages mapped at the start\n"
        )
    return 0


def _schema(_options: argparse.Namespace) -> int:
    import json

    from xenlite.toolstack.config import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0


def _trace(options: argparse.Namespace) -> int:
    from xenlite.cli.trace import show

    return show(options)


def _lint(options: argparse.Namespace) -> int:
    from xenlite.cli.lint import run_lint

    return run_lint(options.kernel, options.allow)


def _explain(options: argparse.Namespace) -> int:
    from xenlite.cli.explain import explain

    return explain(options.words)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xenlite")
    except PackageNotFoundError:
        return "(not installed: run from its source)"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _gdb_address(text: str) -> str:
    if re.fullmatch(r":[0-9]{1,5}|/.+", text) is None or (text[0] == ":" and int(text[1:]) > 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is neither :PORT nor the path of a socket")
    return text


def _capture(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, as in xenbr0=net.pcap")
    return name, Path(file)


def _host_memory(text: str) -> int:
    from xenlite.toolstack.domain_config import MAX_MEMORY_MIB, mebibytes

    try:
        mib = mebibytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= mib <= MAX_MEMORY_MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1M and {MAX_MEMORY_MIB}M")
    return mib << 20


if __name__ == "__main__":
    sys.exit(main())
