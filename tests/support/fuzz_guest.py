# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fuzzes that run guests share: small domains that are cheap to make, and a victim.

The victim is a domain that only counts and yields. Whatever happens beside it, its memory must stay
as it was and its count must grow.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

from tests.support.guest import ORIGIN, PRELUDE, START, VIRT_BASE, image_of
from xenlite.devkit.assembler import assemble_fragment
from xenlite.hypervisor import Hypervisor
from xenlite.toolstack.builder import BuiltDomain, build
from xenlite.toolstack.domain_config import DomainConfig
from xenlite.toolstack.image import KernelImage

PAGE = 4096
_MEMORY_MB = 4
_VICTIM = """
.text
loop:
    inc dword ptr [progress]
    mov ebx, SCHEDOP_yield
    XEN sched_op
    jmp loop
.bss
.p2align 12
progress:
    .space 4096
"""
_TURNS_TO_SETTLE = 4


@dataclass(frozen=True)
class Program:
    """An assembled guest kernel."""

    image: KernelImage
    symbols: dict[str, int]


@cache
def program(source: str) -> Program:
    """Assemble a kernel that begins with ``tests.support.guest.START``."""
    fragment = assemble_fragment(PRELUDE + START + source, ORIGIN, {"VIRT_BASE": VIRT_BASE})
    image = image_of(fragment)
    return Program(image, dict(fragment.symbols))


class SmallDomain:
    """A domain of 4 MB around a program, built by the real builder and paused."""

    def __init__(self, hypervisor: Hypervisor, kernel: Program) -> None:
        self.hypervisor = hypervisor
        self.control = hypervisor.control()
        self.symbols = kernel.symbols
        self._undo = ExitStack()
        config = DomainConfig("guest", Path("guest"), "guest", _MEMORY_MB, _MEMORY_MB)
        self.built: BuiltDomain = build(self.control, config, kernel.image, b"", self._undo)
        self.domid = self.built.domid
        self.domain = hypervisor.domains[self.domid]

    def destroy(self) -> None:
        """Take it apart."""
        self._undo.close()

    def maddr(self, vaddr: int) -> int:
        """Find the machine address of something that is mapped."""
        found = self.control.translate(self.domid, 0, vaddr)
        assert found is not None, f"{vaddr:#x} is not mapped"
        return found

    def write(self, vaddr: int, data: bytes) -> None:
        """Write inside one page, whatever its rights."""
        self.hypervisor.machine.memory.write(self.maddr(vaddr), data)

    def turn(self, blocks: int) -> None:
        """Let it run for at most so many blocks, alone."""
        guest = self.hypervisor._guests[self.domid]
        guest.slice_blocks = blocks
        now_ns = self.hypervisor.machine.clock.monotonic_ns()
        self.hypervisor._run_slice(guest, guest.domain.current, now_ns)


class Victim(SmallDomain):
    """The domain beside the hostile ones."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        super().__init__(hypervisor, program(_VICTIM))
        self.control.unpause(self.domid)
        for _ in range(_TURNS_TO_SETTLE):
            self.turn(1000)
        self._progress_mfn = self.maddr(self.symbols["progress"]) >> 12
        self._checksum = self._memory_checksum()
        self._progress = self._read_progress()

    def problems(self) -> list[str]:
        """Let it run, and tell what has happened to it since the last time."""
        self.turn(1000)
        progress = self._read_progress()
        found = []
        if self.control.info(self.domid).shutdown_reason is not None:
            found.append("the victim has shut down")
        elif progress <= self._progress:
            found.append(f"the victim makes no progress: {progress}")
        if self._memory_checksum() != self._checksum:
            found.append("the victim's memory has changed")
        self._progress = progress
        return found

    def _read_progress(self) -> int:
        return int(self.hypervisor.machine.memory.m32[self._progress_mfn << 10])

    def _memory_checksum(self) -> int:
        machine = self.hypervisor.machine
        checksum = 0
        for mfn in sorted(machine.frames.pages_of(self.domid)):
            if mfn != self._progress_mfn:
                checksum = crc32(machine.memory.m8[mfn << 12 : (mfn + 1) << 12], checksum)
        return checksum
