# SPDX-License-Identifier: GPL-2.0-or-later
"""Time guest operations, the floor that they stand on, and the start of a process.

Operations are timed in nanoseconds that this thread, which guests run on, had a processor: what
others do on a busy host then costs little. The start of a process is timed by the wall's clock.
"""

from __future__ import annotations

import os
import platform
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Final

from xenlite.devkit.assembler import assemble_fragment, build_kernel
from xenlite.dom0.xenstore.store import XenStore
from xenlite.errors import PeerError
from xenlite.hypervisor import Hypervisor
from xenlite.machine import engine as uc
from xenlite.machine.memory import PAGE_SIZE, MachineMemory
from xenlite.machine.selftest import capabilities
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.lifecycle import Guest
from xenlite.trace_format import read

KERNEL: Final = Path(__file__).with_name("bench_kernel.s")
MEMORY_MIB: Final = 8
RECORD_BYTES: Final = 64 << 20
PARTNERS: Final = {"event_round_trip": "event_echo"}
"""Operations that need a second domain, and what that one does."""
VCPUS: Final = {"vcpu_switch": 2}
_MARK: Final = b"."
_MARKS_PER_ROUND: Final = 3
_FLOOR_CODE: Final = "mov ecx, [{count}]\nagain:\n int 0x90\n dec ecx\n jnz again\n hlt"
_FLOOR_COUNT: Final = 2 * PAGE_SIZE
_FLOOR_MEMORY_BYTES: Final = 1 << 20
_QUIET_S: Final = 0.3


def times_of_round(stamps: list[int], count: int) -> float:
    """Return ns per operation from the stamps around ``count`` and twice ``count`` of them."""
    start, middle, end = stamps
    return ((end - middle) - (middle - start)) / count


class Floor:
    """The least that a trap into Python can cost: an INTR callback that does nothing.

    The callback has the engine's three arguments; the engine has no paging and no other hook.
    """

    def __init__(self) -> None:
        self._memory = MachineMemory(_FLOOR_MEMORY_BYTES)
        code = assemble_fragment(_FLOOR_CODE.format(count=_FLOOR_COUNT), PAGE_SIZE).code
        self._memory.write(PAGE_SIZE, code)
        self._engine = uc.Engine(self._memory.host_address, self._memory.size_bytes)
        self._engine.hook(uc.UC_HOOK_INTR, uc.IntrCallback(_nothing))

    def measure(self, count: int) -> float:
        """Return ns per callback."""
        stamps = [thread_time_ns()]
        for repeat in (count, 2 * count):
            self._run(repeat)
            stamps.append(thread_time_ns())
        return times_of_round(stamps, count)

    def _run(self, count: int) -> None:
        self._memory.m32[_FLOOR_COUNT >> 2] = count
        error = self._engine.library.free.uc_emu_start(self._engine.handle, PAGE_SIZE, 0, 0, 0)
        uc.check(error, "the floor's run")

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
        self._memory.close()


def _nothing(_uc: int, _vector: int, _user: object) -> None:
    pass


class TimedGuest:
    """A domain that does one operation, built and run as any other; it runs only in ``measure``."""

    def __init__(self, hypervisor: Hypervisor, operation: str, count: int) -> None:
        self._hypervisor = hypervisor
        self._control = hypervisor.control()
        self.operation = operation
        self._count = count
        self._stamps: list[int] = []
        config = DomainConfig(
            name=operation,
            kernel=build_kernel(KERNEL),
            kernel_name=str(KERNEL),
            memory_mib=MEMORY_MIB,
            maxmem_mib=MEMORY_MIB,
            cmdline=f"{operation} {count}",
            vcpus=VCPUS.get(operation, 1),
            maxvcpus=VCPUS.get(operation, 1),
        )
        self._guest = Guest(config)
        link = hypervisor.link(0)
        store = XenStore(link, lambda _domid, error: _broken(error))
        built = self._guest.start(
            self._control, link, store, sink=lambda _domid, _data: None, broken=_broken
        )
        self.domid = built.domid
        self._control.pause(self.domid)
        self._partner: TimedGuest | None = None
        if operation in PARTNERS:
            partner = TimedGuest(hypervisor, PARTNERS[operation], self.domid)
            self._control.alloc_unbound(self.domid, partner.domid)
            self._partner = partner

    def wrote(self, text: bytes) -> None:
        """Take what the guest writes by console_io: a mark, or the operation that is timed."""
        if text == _MARK:
            self._stamps.append(thread_time_ns())
            if len(self._stamps) == _MARKS_PER_ROUND:
                self._hypervisor.kick()

    def measure(self) -> float:
        """Let the guest run for a round; return ns per operation."""
        self._stamps.clear()
        guests = [self] if self._partner is None else [self, self._partner]
        for guest in guests:
            self._control.unpause(guest.domid)
        self._hypervisor.run(
            lambda: (
                len(self._stamps) >= _MARKS_PER_ROUND or any(guest.has_ended() for guest in guests)
            )
        )
        for guest in guests:
            self._control.pause(guest.domid)
            if guest.has_ended():
                record = self._control.crash_record(guest.domid)
                assert record is not None, "the kernel ends by a crash only"
                raise RuntimeError(f"{guest.operation}: {record.rule}: {record.detail}")
        return times_of_round(self._stamps, self._count)

    def close(self) -> None:
        """Destroy the domain, and its partner."""
        self._guest.stop()
        if self._partner is not None:
            self._partner.close()

    def has_ended(self) -> bool:
        """Tell whether the domain has shut down or crashed."""
        return self._hypervisor.domains[self.domid].shutdown_reason is not None


def _broken(error: PeerError) -> None:
    raise error


class Bench:
    """A machine with one guest per operation, of which one runs at a time."""

    def __init__(self, *, records: bool = False) -> None:
        """Record what all guests do, if ``records``."""
        self._undo = ExitStack()
        self.floor = Floor()
        self._undo.callback(self.floor.close)
        self._hypervisor = Hypervisor()
        self._undo.callback(self._hypervisor.close)
        if records:
            self._hypervisor.control().record(RECORD_BYTES)
        self._guests: dict[int, TimedGuest] = {}
        self._hypervisor.console_output = self._route

    def add(self, operation: str, count: int) -> TimedGuest:
        """Make the guest for an operation that is done ``count`` and twice ``count`` times."""
        guest = TimedGuest(self._hypervisor, operation, count)
        self._guests[guest.domid] = guest
        self._undo.callback(guest.close)
        return guest

    def take_events(self) -> tuple[int, int]:
        """Forget what was recorded; return how many events it was, and how many were lost."""
        data, lost = self._hypervisor.control().recorded()
        return sum(1 for _ in read(data)), lost

    def close(self) -> None:
        """Destroy the guests, then the machine."""
        self._undo.close()

    def _route(self, domid: int, text: bytes) -> None:
        self._guests[domid].wrote(text)


@contextmanager
def bench(*, records: bool = False) -> Iterator[Bench]:
    """Make a bench, and take it apart at the end."""
    made = Bench(records=records)
    try:
        yield made
    finally:
        made.close()


def host() -> str:
    """Say what figures are made on."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    version = uc.library().version
    state = "live" if capabilities().live_state else "copied"
    return (
        f"{processor}, Python {platform.python_version()},"
        f" Unicorn {version >> 24}.{version >> 16 & 255}.{version >> 8 & 255}, {state} state"
    )


# -- a whole process -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """What it took to come to what was waited for on a guest's console."""

    seen_ms: float
    processor_ms: float
    resident_mb: float


def measure_start(config: Path, words: Sequence[str] = (), until: bytes = b"\n") -> Start:
    """Run `xenlite run CONFIG WORDS` in a process of its own until its guest is quiet.

    Time runs from before the process is made until the guest has written ``until``, by the wall's
    clock and by what the process had of a processor; memory is the most that was resident (VmHWM)
    when the guest had been quiet for a while. Compiled Python files are used and kept, as in an
    installed package.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [str(Path(sys.executable).with_name("xenlite")), "run", str(config), *words]
    with tempfile.TemporaryFile() as complaints:
        started = perf_counter_ns()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        try:
            assert process.stdout is not None
            text = b""
            while until not in text:
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    complaints.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: {complaints.read().decode()}")
                text += piece
            seen = perf_counter_ns() - started
            processor = _processor_ns(process.pid)
            while select.select([process.stdout], [], [], _QUIET_S)[0]:
                if not os.read(process.stdout.fileno(), 4096):
                    raise RuntimeError("the guest ended before its memory could be looked at")
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.kill()
            process.communicate()
    kilobytes = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    assert kilobytes is not None, status
    return Start(seen / 1e6, processor / 1e6, int(kilobytes[1]) * 1024 / 1e6)


def _processor_ns(pid: int) -> int:
    """Return what all threads of a process have had of the processors so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)
