# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure domains that share the machine: who idles, who wakes, who gets how much of the CPU.

Times of waking are the guest's own, by its system time, which agrees with the host's clock. On a
host that is busy with other things they say more about that host.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import process_time_ns
from typing import Final

from xenlite.abi.x86_32p import RUNSTATE_running
from xenlite.devkit.assembler import build_kernel
from xenlite.dom0.xenstore.store import XenStore
from xenlite.doors import RunState
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.lifecycle import Guest

KERNEL: Final = Path(__file__).with_name("bench_sharing.s")
MEMORY_MIB: Final = 4
WEIGHTS: Final = (128, 256, 512)
_SPARE_MIB: Final = 32
_SETTLE_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class WakeUps:
    """How long after its deadline a timer's upcall ran its first instruction."""

    about: str
    count: int
    p50_us: float
    p99_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class Idle:
    """What domains cost that have nothing to do."""

    domains: int
    cpu_percent: float
    resident_mb_each: float


@dataclass(frozen=True, slots=True)
class Fairness:
    """What spinners of some weights got, in percent, and what they should have."""

    weights: tuple[int, ...]
    shares: tuple[float, ...]
    wanted: tuple[float, ...]
    sleeper: WakeUps


class Machine:
    """A hypervisor with a domain for each command line, all running once ``run`` is called."""

    def __init__(self, roles: Sequence[str], undo: ExitStack) -> None:
        self.hypervisor = Hypervisor((MEMORY_MIB * len(roles) + _SPARE_MIB) << 20)
        undo.callback(self.hypervisor.close)
        self.hypervisor.console_output = lambda domid, text: self._output[domid].extend(text)
        self._output: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.control = self.hypervisor.control()
        self.domids: list[int] = []
        link = self.hypervisor.link(0)
        store = XenStore(link, lambda _domid, error: _broken(error))
        for role in roles:
            guest = Guest(_config(role))
            built = guest.start(
                self.control, link, store, sink=lambda _domid, _data: None, broken=_broken
            )
            undo.callback(guest.stop)
            self.domids.append(built.domid)

    def run(self, for_ns: int) -> None:
        """Let all of them run; RuntimeError where one has ended."""
        now_ns = self.hypervisor.machine.clock.monotonic_ns()
        self.hypervisor.run(lambda: False, now_ns + for_ns)
        for domid in self.domids:
            if self.control.info(domid).state in (RunState.SHUTDOWN, RunState.CRASHED):
                raise RuntimeError(f"domain {domid}: {self.control.crash_record(domid)}")

    def take_late_us(self, domid: int) -> list[float]:
        """Return, once, how late each wake-up of a ticking domain was."""
        words = memoryview(bytes(self._output.pop(domid, b""))).cast("I")
        return [word / 1e3 for word in words]

    def ran_ns(self, domid: int) -> int:
        """Return how long a domain has run."""
        return self.hypervisor.domains[domid].vcpus[0].runstate.times_ns[RUNSTATE_running]


@contextmanager
def machine(roles: Sequence[str]) -> Iterator[Machine]:
    """Make domains of these command lines, and take them apart at the end."""
    with ExitStack() as undo:
        yield Machine(roles, undo)


def measure_wake_ups(about: str, others: Sequence[str], for_ns: int) -> WakeUps:
    """Time the wake-ups of a domain that sleeps 10 ms at a time beside some others."""
    with machine(["tick", *others]) as made:
        made.run(_SETTLE_NS)
        made.take_late_us(made.domids[0])
        made.run(for_ns)
        return _wake_ups(about, made.take_late_us(made.domids[0]))


def measure_idle(domains: int, for_ns: int) -> Idle:
    """Measure processor time and memory of domains that block for ever.

    Memory is what the process has more than before they were made, with one such domain there: what
    domains share does not count.
    """
    with machine(["idle"]) as first:
        first.run(_SETTLE_NS)
        before_mb = _resident_mb()
        with machine(["idle"] * domains) as made:
            made.run(_SETTLE_NS)
            resident_mb = _resident_mb() - before_mb
            before_ns = process_time_ns()
            made.run(for_ns)
            cpu_ns = process_time_ns() - before_ns
    return Idle(domains, 100 * cpu_ns / for_ns, resident_mb / domains)


def measure_fairness(for_ns: int) -> Fairness:
    """Let spinners of different weights compete, beside a domain that sleeps."""
    with machine(["tick", *["spin"] * len(WEIGHTS)]) as made:
        sleeper, *spinners = made.domids
        for domid, weight in zip(spinners, WEIGHTS, strict=True):
            made.control.set_scheduling(domid, weight=weight, cap=0)
        made.run(_SETTLE_NS)
        made.take_late_us(sleeper)
        before = [made.ran_ns(domid) for domid in spinners]
        made.run(for_ns)
        ran = [made.ran_ns(domid) - start for domid, start in zip(spinners, before, strict=True)]
        late = made.take_late_us(sleeper)
    return Fairness(
        WEIGHTS,
        tuple(100 * each / sum(ran) for each in ran),
        tuple(100 * weight / sum(WEIGHTS) for weight in WEIGHTS),
        _wake_ups("10 ms timer beside them", late),
    )


def _config(role: str) -> DomainConfig:
    return DomainConfig(
        name=role,
        kernel=build_kernel(KERNEL),
        kernel_name=str(KERNEL),
        memory_mib=MEMORY_MIB,
        maxmem_mib=MEMORY_MIB,
        cmdline=role,
    )


def _wake_ups(about: str, late_us: list[float]) -> WakeUps:
    if len(late_us) < 2:
        raise RuntimeError(f"{about}: the sleeping domain hardly ever woke")
    p99_us = quantiles(late_us, n=100, method="inclusive")[98]
    return WakeUps(about, len(late_us), median(late_us), p99_us, max(late_us))


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    kilobytes = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
    assert kilobytes is not None, status
    return int(kilobytes[1]) * 1024 / 1e6


def _broken(error: PeerError) -> None:
    raise error
