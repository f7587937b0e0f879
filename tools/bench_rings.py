# SPDX-License-Identifier: GPL-2.0-or-later
"""Time what guests do through shared rings, against the plain I/O: ``tools/bench rings``.

Each kind of ring is a module of its own, with ``run`` and ``table``; this is their command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns, process_time_ns

from tools import bench_blocks, bench_packets


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/bench rings", description="Time block requests and packets of guests."
    )
    parser.add_argument(
        "words", nargs="*", help="words that a case must have, e.g. read 'depth 32', or ping"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1, help="of the number of requests and packets"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="draw it too (needs matplotlib)")
    parser.add_argument(
        "--processor-time", action="store_true", help="of all threads, not the wall's: a busy host"
    )
    options = parser.parse_args(arguments)
    clock_ns = process_time_ns if options.processor_time else perf_counter_ns
    asked = (options.words, options.rounds, options.scale, clock_ns)
    blocks, packets = bench_blocks.run(*asked), bench_packets.run(*asked)
    if not blocks and not packets:
        parser.error(f"no case has all of these words: {' '.join(options.words)}")
    if options.plot is not None:
        from tools.bench_rings_plot import draw  # matplotlib is an extra

        draw(blocks, packets, options.plot)
    if options.json:
        found = [*map(asdict, blocks), *map(asdict, packets)]
        print(json.dumps(found, indent=2))
    else:
        tables = [bench_blocks.table(blocks)] * bool(blocks)
        tables += [bench_packets.table(packets)] * bool(packets)
        print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
