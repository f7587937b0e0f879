# SPDX-License-Identifier: GPL-2.0-or-later
"""Time GRUB, unmodified, from the start of the process to its menu, which it reads from a disk.

Its first words come before it looks at any disk: what it takes until then is the start of the
process, the building of the domain, and GRUB's own start. Behind them are its modules, and its
search of the disk for every kind of file system.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from tools.bench_measure import Start, host, measure_start
from tools.demo_disks import make_disk
from xenlite.toolstack.firmware import PVGRUB32, find_firmware

MENU_REACH_MS: Final = 800
# What GRUB prints, and when; the last of them is the first line of the menu.
MOMENTS: Final = {"first words": b"Welcome to GRUB!", "menu": b"GNU GRUB  version"}
MENU: Final = 'set timeout=-1\nmenuentry "Power off" {\n  halt\n}\n'
CONFIG: Final = f"name: grub\nfirmware: {PVGRUB32}\nmemory: 32\ndisk: disk.img,raw,xvda,rw\n"


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was seen, in ms from before the process was made; medians over all rounds."""

    name: str
    seen_ms: float
    least_ms: float
    processor_ms: float


def measure(rounds: int) -> list[Moment]:
    """Measure each moment in processes of its own, by turns."""
    starts: dict[str, list[Start]] = {name: [] for name in MOMENTS}
    with TemporaryDirectory() as kept:
        config = _lay_out(Path(kept))
        measure_start(config, until=MOMENTS["menu"])  # untimed: compiles Python files
        for _ in range(rounds):
            for name, text in MOMENTS.items():
                starts[name].append(measure_start(config, until=text))
    return [_moment(name, found) for name, found in starts.items()]


def _lay_out(directory: Path) -> Path:
    menu = directory / "files/boot/grub/grub.cfg"
    menu.parent.mkdir(parents=True)
    menu.write_text(MENU)
    make_disk(directory / "disk.img", "ext2", "16M", directory / "files")
    config = directory / "dom.yaml"
    config.write_text(CONFIG)
    return config


def _moment(name: str, found: list[Start]) -> Moment:
    seen = [start.seen_ms for start in found]
    return Moment(name, median(seen), min(seen), median(start.processor_ms for start in found))


def table(moments: Sequence[Moment]) -> str:
    """Lay the moments out for reading; `*` stands where the bar is missed."""
    lines = [
        host(),
        "",
        f"{'from process start to GRUB':28} {'ms':>6} {'least':>6} {'processor':>9}",
    ]
    for one in moments:
        lines.append(
            f"{one.name:28} {one.seen_ms:6.0f} {one.least_ms:6.0f} {one.processor_ms:9.0f}"
        )
    missed = "*" if moments[-1].seen_ms > MENU_REACH_MS else ""
    return "\n".join([*lines, f"reach of the menu: {MENU_REACH_MS} ms{missed}"])


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench grub_menu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="how often (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        find_firmware(PVGRUB32)
    except ValueError as error:
        parser.error(str(error))
    moments = measure(options.rounds)
    if options.json:
        json.dump([asdict(one) for one in moments], sys.stdout, indent=2)
        print()
    else:
        print(table(moments))
    return 0
