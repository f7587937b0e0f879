# SPDX-License-Identifier: GPL-2.0-or-later
"""A CPU with hand-made page tables and no hypervisor, for tests of the machine itself.

Memory: frame 1 the L3, 2 to 5 the L2s, from 6 on the L1s as they are needed; the GDT stands at
``GDT_BASE``. Selectors follow the usual order, ring 1 flat, ring 3 flat, TSS, free slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.support.asm import assemble
from xenlite.machine.cpu import Cpu, Mode
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE, MachineMemory
from xenlite.machine.selftest import Capabilities, capabilities
from xenlite.machine.trap import (
    CS,
    DS,
    EIP,
    ERROR_CODE,
    ES,
    ESP,
    FLAT_CODE,
    FLAT_DATA,
    FLAT_LIMIT,
    HF_CPL,
    HFLAGS,
    IS_INT,
    SS,
    CpuidLeaf,
    IoDirection,
    SyscallKind,
    TrapHandlers,
)

P, RW, US, ACCESSED, DIRTY, GLOBAL = 1, 2, 4, 0x20, 0x40, 0x100
NX = 1 << 63

L3_MFN = 1
FIRST_FREE_MFN = 64
CODE = 0x10000
STACK_TOP = 0x22000
DATA = 0x30000
GDT_BASE = 0x40000
TSS_BASE = 0x41000

RING1_CS, RING1_DS, RING3_CS, RING3_DS, TSS_SELECTOR, GATE = 0x09, 0x11, 0x1B, 0x23, 0x28, 0x33


@dataclass(frozen=True, slots=True)
class Trap:
    """What a trap handler saw."""

    vector: int
    eip: int
    error_code: int
    is_int: int
    eflags: int
    cpl: int


@dataclass(frozen=True, slots=True)
class PortAccess:
    """What the port handler saw."""

    port: int
    size: int
    direction: IoDirection
    eip: int
    next_eip: int


class BareMachine:
    """Run code and record its traps, stopping; a handler put into ``on_*`` replaces that."""

    def __init__(
        self,
        mode: Mode = "live",
        caps: Capabilities | None = None,
        *,
        memory: MachineMemory | None = None,
        rdtsc: Callable[[], int] | None = None,
        vectors: dict[int, Callable[[], None]] | None = None,
    ) -> None:
        self.owns_memory = memory is None
        self.memory = memory if memory is not None else MachineMemory(16 << 20)
        self.traps: list[Trap] = []
        self.ports: list[PortAccess] = []
        self.syscalls: list[tuple[SyscallKind, int]] = []
        self.unmapped: list[int] = []
        self.on_interrupt: Callable[[Trap], None] = self._record
        self.on_port: Callable[[PortAccess], None] = self._record_port
        self.on_invalid: Callable[[], bool] = self._record_invalid
        self.on_cpuid: Callable[[int, int], CpuidLeaf] = lambda _leaf, _subleaf: (1, 2, 3, 4)
        self.on_syscall: Callable[[SyscallKind], None] = self._record_syscall
        handlers = TrapHandlers(
            interrupt=self._interrupt,
            invalid_opcode=self._invalid_opcode,
            io=self._io,
            cpuid=lambda leaf, subleaf: self.on_cpuid(leaf, subleaf),
            syscall=lambda kind: self.on_syscall(kind),
            unmapped=self._unmapped,
            rdtsc=rdtsc,
            vectors=vectors or {},
        )
        self.cpu = Cpu(self.memory, traps=handlers, mode=mode, caps=caps)
        self.regs = self.cpu.regs
        self._next_table = L3_MFN + 5
        if self.owns_memory:
            self._make_tables()
        self.cpu.load_cr3(L3_MFN << PAGE_SHIFT)
        self.cpu.set_gdt(GDT_BASE, 0xFFF)
        self.enter_ring(1)

    def close(self) -> None:
        self.cpu.close()
        if self.owns_memory:
            self.memory.close()

    # Memory

    def _make_tables(self) -> None:
        for top in range(4):
            self.memory.m64[(L3_MFN << 9) + top] = (L3_MFN + 1 + top) << PAGE_SHIFT | P
        self.map(CODE, 16, P | RW | US)
        self.map(CODE + PAGE_SIZE, 17, P | RW | US)
        for page in range(2):
            self.map(0x20000 + page * PAGE_SIZE, 32 + page, P | RW | US | NX)
            self.map(DATA + page * PAGE_SIZE, 34 + page, P | RW | US | NX)
            self.map(GDT_BASE + page * PAGE_SIZE, 36 + page, P | RW | NX)
        for slot, upper in enumerate((0, FLAT_CODE[1], FLAT_DATA[1], FLAT_CODE[3], FLAT_DATA[3])):
            self.write_descriptor(slot, upper << 32 | (0xFFFF if upper else 0))
        tss = 0x67 | (TSS_BASE & 0xFFFFFF) << 16 | 0x89 << 40 | TSS_BASE >> 24 << 56
        self.write_descriptor(TSS_SELECTOR >> 3, tss)

    def write_descriptor(self, slot: int, value: int) -> None:
        self.memory.m64[(36 << 9) + slot] = value

    def write_tss_stack(self, ring: int, selector: int, esp: int) -> None:
        word = (37 << 10) + 1 + 2 * ring
        self.memory.m32[word] = esp
        self.memory.m32[word + 1] = selector

    def pte_index(self, vaddr: int) -> int:
        """Find the index into ``m64`` of the L1 entry, making its L1."""
        l2_entry = ((L3_MFN + 1 + (vaddr >> 30)) << 9) + (vaddr >> 21 & 511)
        m64 = self.memory.m64
        if not m64[l2_entry] & P:
            m64[l2_entry] = self._next_table << PAGE_SHIFT | P | RW | US
            self._next_table += 1
        return ((m64[l2_entry] >> PAGE_SHIFT) << 9) + (vaddr >> PAGE_SHIFT & 511)

    def map(self, vaddr: int, mfn: int, flags: int) -> None:
        """Write an L1 entry; no flush."""
        self.memory.m64[self.pte_index(vaddr)] = mfn << PAGE_SHIFT | flags
        if not flags & NX and mfn < self.memory.nr_frames:
            self.memory.mark_code(mfn, self.cpu)

    def pte(self, vaddr: int) -> int:
        return self.memory.m64[self.pte_index(vaddr)]

    def maddr(self, vaddr: int) -> int:
        return (self.pte(vaddr) & 0xFFFFFFF000) | (vaddr & (PAGE_SIZE - 1))

    def load(self, source: str | bytes, vaddr: int = CODE) -> bytes:
        """Put code into memory as the hypervisor would, and return its bytes."""
        code = assemble(source, vaddr) if isinstance(source, str) else source
        self.memory.write(self.maddr(vaddr), code)
        return code

    def word(self, vaddr: int) -> int:
        return self.memory.m32[self.maddr(vaddr) >> 2]

    def set_word(self, vaddr: int, value: int) -> None:
        self.memory.m32[self.maddr(vaddr) >> 2] = value

    # Running

    def enter_ring(self, ring: int) -> None:
        """Load flat segments of ring 1 or 3."""
        code, stack = (RING1_CS, RING1_DS) if ring == 1 else (RING3_CS, RING3_DS)
        self.cpu.set_segment(CS, code, 0, FLAT_LIMIT, FLAT_CODE[ring])
        for number in (SS, DS, ES):
            self.cpu.set_segment(number, stack, 0, FLAT_LIMIT, FLAT_DATA[ring])
        self.cpu.set_cpl(ring)

    def run(self, eip: int = CODE, *, blocks: int = 100_000) -> list[Trap]:
        """Run from ``eip`` until a trap stops it or the budget ends; return new traps."""
        before = len(self.traps)
        self.regs[EIP] = eip
        self.regs[ESP] = STACK_TOP
        self.cpu.enter(blocks)
        return self.traps[before:]

    def run_code(self, source: str | bytes, *, blocks: int = 100_000) -> list[Trap]:
        self.load(source)
        return self.run(blocks=blocks)

    def stop(self) -> None:
        self.cpu.stop()

    # Handlers

    def _trap(self, vector: int) -> Trap:
        regs = self.regs
        return Trap(
            vector,
            regs[EIP],
            regs[ERROR_CODE],
            regs[IS_INT],
            self.cpu.read_eflags(),
            regs[HFLAGS] & HF_CPL,
        )

    def _interrupt(self, _uc: int, vector: int, _user: object) -> None:
        try:
            self.on_interrupt(self._trap(vector))
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.cpu.fail(error)

    def _invalid_opcode(self, _uc: int, _user: object) -> bool:
        try:
            return self.on_invalid()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            self.cpu.fail(error)
            return True

    def _io(self, port: int, size: int, direction: IoDirection, next_eip: int) -> None:
        self.on_port(PortAccess(port, size, direction, self.regs[EIP], next_eip))

    def _record(self, trap: Trap) -> None:
        self.traps.append(trap)
        self.cpu.stop()

    def _record_port(self, access: PortAccess) -> None:
        self.ports.append(access)
        self.cpu.stop()

    def _record_invalid(self) -> bool:
        self.traps.append(self._trap(6))
        self.cpu.stop()
        return True

    def _record_syscall(self, kind: SyscallKind) -> None:
        self.syscalls.append((kind, self.regs[EIP]))
        self.cpu.stop()

    def _unmapped(self, maddr: int) -> None:
        self.unmapped.append(maddr)
        self.cpu.stop()


@contextmanager
def bare_machine(mode: Mode = "live", **options: object) -> Iterator[BareMachine]:
    """Make a machine and close it."""
    machine = BareMachine(mode, **options)  # type: ignore[arg-type]
    try:
        yield machine
    finally:
        machine.close()


Way = tuple[Mode, Capabilities]


def _every_way() -> dict[str, Way]:
    best = capabilities()
    return {
        "live": ("live", best),
        "copied": ("copied", best),
        "counted": ("live", replace(best, exact_stop=False)),
        "loud-memory": ("live", replace(best, quiet_memory=False)),
        "api-only": (
            "live",
            replace(best, page_flush=False, code_invalidate=False, fast_eflags=False),
        ),
        "slowest": ("copied", Capabilities(False, False, False, False, False, False)),
    }


WAYS = _every_way()
"""Every way to run: the fast one, and one with each fallback forced."""
