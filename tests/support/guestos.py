# SPDX-License-Identifier: GPL-2.0-or-later
"""Run guestos in the test's own process, type at it, and look into it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from xenlite.cli.run import load
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import Clock, HostClock
from xenlite.machine.x86_32p import PTE_ADDRESS, PTE_P
from xenlite.toolstack.disk_config import read_disk
from xenlite.toolstack.lifecycle import Guest
from xenlite.toolstack.networks import Networks
from xenlite.toolstack.poller import Poller

ROOT = Path(__file__).resolve().parents[2]
DOM = "guestos/dom.yaml"
PROMPT = "guestos> "
LIMIT_S = 20
MIB = 1 << 20
END_OF_TIME_NS = 1 << 62
HOLE = 0xF5800000
LOOKS = 200
NAP = "sleep 0.02"


def lines(answer: str) -> list[str]:
    """Divide what a command printed."""
    return answer.removesuffix("\n").split("\n") if answer else []


def ramdisk() -> dict[str, int]:
    """Return the files of the RAM disk that dom.yaml names, with their sizes."""
    archive = load(ROOT / DOM, []).ramdisk
    assert archive is not None
    with tarfile.open(archive) as tar:
        return {entry.name: entry.size for entry in tar}


class Rack:
    """What machines run on, and find each other by."""

    def __init__(self, clock: Clock | None = None, memory_bytes: int = 64 * MIB) -> None:
        self.clock = clock or HostClock()
        self.hypervisor = Hypervisor(memory_bytes, self.clock)
        self.control = self.hypervisor.control()
        self.link = self.hypervisor.link(0)
        self.store = XenStore(self.link, lambda _domid, error: self.broken(error))
        self._undo = ExitStack()
        self._undo.callback(self.hypervisor.close)
        self._networks: Networks | None = None

    def networks(self) -> Networks:
        """Return the networks, which are made when they are first asked for."""
        if self._networks is None:
            poller = Poller(self.link)
            self._undo.callback(poller.close)
            self._networks = Networks(self.link, poller, self.clock.wall_ns, self.said)
            self._undo.callback(self._networks.close)
        return self._networks

    def broken(self, error: PeerError) -> None:
        raise error

    def said(self, line: str) -> None:
        raise AssertionError(f"nothing was to be said, but {line!r}")

    def close(self) -> None:
        self._undo.close()


class Machine:
    """One guestos, driven step by step; alone, or in a rack with others."""

    def __init__(
        self,
        *overrides: str,
        clock: Clock | None = None,
        disks: Sequence[str] = (),
        rack: Rack | None = None,
    ) -> None:
        self.rack = rack or Rack(clock)
        self._owns_rack = rack is None
        self.clock, self.hypervisor = self.rack.clock, self.rack.hypervisor
        self.control, self.store = self.rack.control, self.rack.store
        self.output = ""
        self.blocks_of_slices: Callable[[], int] | None = None
        config = load(ROOT / DOM, ["memory=8", *overrides])
        self.guest = Guest(replace(config, disks=tuple(map(read_disk, disks))))
        self.domid = self.guest.start(
            self.control,
            self.rack.link,
            self.store,
            sink=self._hear,
            broken=self.rack.broken,
            networks=self.rack.networks,
        ).domid

    def _hear(self, _domid: int, data: bytes) -> None:
        # The two may come apart.
        self.output = (self.output + data.decode("ascii")).replace("\r\n", "\n")

    def wait_for(self, text: str) -> str:
        """Run until the console shows ``text``; return what came before it, and forget both."""
        self.run_until(lambda: text in self.output, f"{text!r} in {self.output!r}")
        before, _, self.output = self.output.partition(text)
        return before

    def command(self, line: str) -> str:
        """Type a line at the prompt; return what is shown behind it, up to the next prompt."""
        self.type(line + "\r")
        self.wait_for("\n")  # a long line is drawn several times, each time behind the prompt
        return self.wait_for(PROMPT)

    def type(self, keys: str) -> None:
        assert self.guest.console is not None
        self.guest.console.feed(keys.encode())

    def status(self, line: str) -> int:
        """Type a line that runs a command; return the status that it leaves."""
        self.command(line)
        return int(self._answer("echo $?")[-1])

    def memory(self) -> dict[str, int]:
        """Ask how memory is used: what each count of `mem` says."""
        return {name: int(count) for name, count in map(str.split, self._answer("mem"))}

    def processes(self) -> dict[int, str]:
        """Ask for the processes but the one that answers: names by id."""
        rows = [line.split() for line in self._answer("ps")[1:]]
        return {int(row[0]): row[-1] for row in rows if row[-1] != "ps"}

    def _answer(self, line: str) -> list[str]:
        """Type a line; return what is shown, without news of jobs."""
        return [each for each in self.command(line).splitlines() if not each.startswith("[")]

    def process_named(self, name: str) -> int:
        """Run until one process has the name; return its id."""
        for _ in range(LOOKS):
            found = [key for key, each in self.processes().items() if each == name]
            if len(found) == 1:
                return found[0]
            self.command(NAP)
        raise AssertionError(f"not one {name} among {self.processes()}")

    def wait_for_quiet(self) -> None:
        """Run until the shell is the only process."""
        for _ in range(LOOKS):
            if list(self.processes().values()) == ["sh"]:
                return
            self.command(NAP)
        raise AssertionError(f"processes are left: {self.processes()}")

    def wait_for_end(self) -> int | None:
        """Run until the domain has ended; return the reason."""
        info = self.control.info
        self.run_until(lambda: info(self.domid).shutdown_reason is not None, "an end")
        assert self.guest.console is not None
        self.guest.console.pump()
        return info(self.domid).shutdown_reason

    def entries(self) -> Iterator[tuple[int, int]]:
        """Walk the tables that the guest runs on: (address, L1 entry) of every page below Xen."""
        domain = self.hypervisor.domains[self.domid]
        words = self.hypervisor.machine.memory.m64
        assert domain.current.cr3_mfn is not None

        def table(mfn: int, count: int) -> Iterator[tuple[int, int]]:
            for slot in range(count):
                entry = words[mfn * 512 + slot]
                if entry & PTE_P:
                    yield slot, entry

        for i, l3e in table(domain.current.cr3_mfn, 4):
            for j, l2e in table((l3e & PTE_ADDRESS) >> 12, 512):
                if (i << 30 | j << 21) >= HOLE:
                    break
                for k, l1e in table((l2e & PTE_ADDRESS) >> 12, 512):
                    yield i << 30 | j << 21 | k << 12, l1e

    def run_until(self, until: Callable[[], bool], what: str) -> None:
        is_real = isinstance(self.clock, HostClock)
        deadline_ns = self.clock.monotonic_ns() + LIMIT_S * 10**9 if is_real else END_OF_TIME_NS
        assert self.hypervisor.run(self._looking(until), deadline_ns), f"waited in vain for {what}"

    def _looking(self, until: Callable[[], bool]) -> Callable[[], bool]:
        """Have the look before each slice say how long it may be, too."""
        blocks = self.blocks_of_slices
        if blocks is None:
            return until
        guest = self.hypervisor._guests[self.domid]

        def look() -> bool:
            guest.slice_blocks = blocks()
            return until()

        return look

    def close(self) -> None:
        assert self.control.audit() == []
        self.guest.stop()
        if self._owns_rack:
            self.rack.close()
