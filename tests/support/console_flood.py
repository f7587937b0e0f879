# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that prints as fast as it can, read and unread, and another that must not notice."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from xenlite.devkit.kernel_cache import build_kernel

ROOT = Path(__file__).parents[2]
PATIENCE = 60
LINE = b"#" * 63 + b"\n"


@dataclass(frozen=True, slots=True)
class Flooded:
    """What a flood of so many bytes cost."""

    size_bytes: int
    seconds: float
    growth_kib: int  # of the host's memory
    worst_echo_ms: float  # of the other guest, while it lasted

    def __str__(self) -> str:
        rate = self.size_bytes / self.seconds / 1e6
        return (
            f"{self.size_bytes} bytes in {self.seconds:.1f} s, {rate:.1f} MB/s;"
            f" memory grew by {self.growth_kib} KiB;"
            f" the other guest's slowest echo took {self.worst_echo_ms:.0f} ms"
        )


def flood(directory: Path, size_bytes: int) -> Flooded:
    """Have a guest print so many bytes to a socket that is read; its PTY is not.

    What is read is compared byte by byte, and a log is kept beside it.
    """
    kernel = build_kernel(ROOT / "tests/system/kernels/obedient.s")
    for name, order, console in (
        ("echo", "e", "terminal"),
        ("flood", "g", "{output: socket, path: flood.sock, log: flood.log}"),
    ):
        text = f"name: {name}\nkernel: {kernel}\nmemory: 4\ncmdline: {order}\nconsole: {console}\n"
        (directory / f"{name}.yaml").write_text(text)
    files = [str(directory / f"{name}.yaml") for name in ("echo", "flood")]
    command = [sys.executable, "-m", "xenlite.cli.main", "run", *files]
    process = subprocess.Popen(
        [*command, "--socket-dir", str(directory / "sockets")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"echo| hello\n"
        return _measure(process, directory / "flood.sock", size_bytes)
    finally:
        process.kill()
        process.communicate()


def _measure(process: subprocess.Popen[bytes], path: Path, size_bytes: int) -> Flooded:
    echoes: list[float] = [_echo(process)]
    ends = threading.Event()

    def echo_on() -> None:
        while not ends.is_set():
            echoes.append(_echo(process))

    before_kib = resident_kib(process.pid)
    thread = threading.Thread(target=echo_on)
    started = time.monotonic()
    thread.start()
    seen = 0
    try:
        while seen < size_bytes:
            seen += _read(path, size_bytes - seen)
    finally:
        seconds = time.monotonic() - started
        ends.set()
        thread.join(PATIENCE)
    growth_kib = resident_kib(process.pid) - before_kib
    return Flooded(seen, seconds, growth_kib, max(echoes) * 1000)


def _read(path: Path, size_bytes: int) -> int:
    """Read and compare as much, or until we were too slow and are cut off; return how much."""
    expected = LINE * (1 + (1 << 20) // len(LINE))
    seen = 0
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        while seen < size_bytes and (data := client.recv(1 << 20)):
            at = seen % len(LINE)
            assert data == expected[at : at + len(data)], f"at byte {seen}"
            seen += len(data)
    return seen


def _echo(process: subprocess.Popen[bytes]) -> float:
    """Type a line to the other guest; return how many seconds its echo took."""
    assert process.stdin is not None
    assert process.stdout is not None
    started = time.monotonic()
    process.stdin.write(b"ping\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"echo| ping\n"
    return time.monotonic() - started


def resident_kib(pid: int) -> int:
    """Return how much memory a process has now."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])
