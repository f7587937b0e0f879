# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's Linux under Debian's QEMU, with one network card on a datagram socket.

``tools/fetch_peer`` makes it. The guest does each line that is typed at its serial console and says
``status N`` behind it. Time limits only mean failure: nothing waits for longer than it has to.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Final, Protocol, Self

ROOT: Final = Path(__file__).resolve().parents[2]
PEER: Final = ROOT / "build/peer"
KERNEL, INITRD = PEER / "debian/vmlinuz", PEER / "initrd"
QEMU: Final = "qemu-system-x86_64"
MAC: Final = "52:54:00:00:00:01"
PATIENCE_S: Final = 60
BOOT_PATIENCE_S: Final = 120


class Beside(Protocol):
    """Something that has to be served while the test waits for the guest."""

    def fileno(self) -> int:
        """Return what becomes readable when there is something to do."""

    def serve(self) -> None:
        """Do it, without waiting."""


class QemuPeer:
    """A running peer; it ends with the ``with`` block, whatever happens there.

    ``here`` is the socket that QEMU makes, ``there`` the one that it sends to.
    """

    def __init__(
        self, here: Path, there: Path, *, mac: str = MAC, beside: Sequence[Beside] = ()
    ) -> None:
        assert INITRD.exists(), "run tools/fetch_peer first (tools/check does)"
        netdev = (
            f"dgram,id=net,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
        )
        self._output = b""
        self._process = subprocess.Popen(
            [
                *[QEMU, "-accel", "tcg", "-cpu", "max", "-m", "96", "-no-reboot"],
                *["-nodefaults", "-display", "none", "-serial", "stdio"],
                *["-kernel", str(KERNEL), "-initrd", str(INITRD)],
                *["-append", "console=ttyS0 quiet panic=-1"],
                *["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="],
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._console = self._process.stdout.fileno()
        os.set_blocking(self._console, False)
        self._beside = beside
        self._selector = DefaultSelector()
        self._selector.register(self._console, EVENT_READ, self._read)
        for each in beside:
            self._selector.register(each, EVENT_READ, each.serve)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._end)
            self._answer(BOOT_PATIENCE_S)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def command(self, line: str) -> str:
        """Have the guest do a line of its shell's; return what it printed."""
        status, printed = self.attempt(line)
        assert status == 0, f"{line}: status {status}\n{printed}"
        return printed

    def attempt(self, line: str) -> tuple[int, str]:
        """Have the guest do a line that may fail: its status, and what it printed."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(PATIENCE_S)

    def wait_until(self, done: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Serve what is beside the guest until something holds."""
        deadline = monotonic() + patience_s
        while not done():
            left = deadline - monotonic()
            assert left > 0, f"waited in vain; the console says {self._output!r}"
            for key, _ in self._selector.select(left):
                key.data()

    def _answer(self, patience_s: float) -> tuple[int, str]:
        """Take the console's output up to a line that tells a status."""
        mark = b"status "

        def is_whole() -> bool:
            at = self._output.find(mark)
            return at >= 0 and b"\n" in self._output[at:]

        self.wait_until(is_whole, patience_s)
        printed, _, rest = self._output.partition(mark)
        status, _, self._output = rest.partition(b"\n")
        return int(status), printed.decode(errors="replace")

    def _read(self) -> None:
        piece = os.read(self._console, 65536)
        assert piece, f"the guest has ended: {self._output.decode(errors='replace')}"
        self._output += piece

    def _end(self) -> None:
        self._selector.close()
        self._process.kill()
        self._process.communicate()
