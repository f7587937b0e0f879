# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide, in one place, what each trap of a guest means.

::

    int 0x82 from ring 1 ......... the hypercall table
    int n ........................ the guest's own gate, if its privilege allows
    #PF .......................... a page-table write to emulate, else the guest's
    #GP in ring 1 ................ a privileged instruction to emulate, else the guest's
    #UD .......................... a forced emulation, else the guest's
    #NM .......................... CR0.TS is cleared, then the guest's
    any other fault .............. the guest's
    no frame possible ............ the domain crashes

Before each return to the guest comes one look at its pending events. This is the path that every
figure depends on, so what it touches is bound once per domain, as closures (a closure cell costs
8 ns where an attribute of ``self`` costs 20), and nothing is formatted or logged here. Each handler
catches everything: ``Cpu.enter`` raises it again outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.core.bounce import Bounce
from xenlite.core.emulate import Emulator
from xenlite.core.page_writes import PageWrites
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls.restart import Handler, NoteRefusal, Restart
from xenlite.machine.cpuid import cpuid
from xenlite.machine.trap import (
    CR2,
    EAX,
    EBX,
    ECX,
    EDI,
    EDX,
    EIP,
    ERROR_CODE,
    ESI,
    HF_CPL,
    HFLAGS,
    IS_INT,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_NM,
    VECTOR_PF,
    VECTOR_UD,
    IoDirection,
    SyscallKind,
    TrapHandlers,
)
from xenlite.machine.x86_32p import ERROR_CODE_VECTORS

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.machine.cpu import Cpu

HYPERCALL_VECTOR: Final = 0x82
SYSTEM_CALL_VECTOR: Final = 0x80  # any vector may be one; this one has an entry of its own
_INT_SIZE: Final = 2
_WORD: Final = 0xFFFFFFFF
# eax ecx edx ebx, esp ebp skipped by name below, esi edi: the low halves of eight 64-bit cells.
_REGISTERS: Final = Struct("<I4xI4xI4xI4xI4xI4xI4xI")
_KERNEL_CPL: Final = 1


@dataclass(frozen=True, slots=True)
class TrapRoute:
    """The trap handlers of one domain, and the step that gives them their domain.

    The engine wants its handlers when it is made, and the domain wants its engine.
    """

    handlers: TrapHandlers
    bind: Callable[[Domain, list[Handler]], TrapParts]


@dataclass(frozen=True, slots=True)
class TrapParts:
    """What the run loop needs of the trap path between two stays in the guest."""

    bounce: Bounce
    page_writes: PageWrites


def make_route(cpu_of: Callable[[], Cpu], note: NoteRefusal) -> TrapRoute:
    """Make the handlers of one domain; ``note`` hears of each refused hypercall."""
    domain: Domain
    table: list[Handler]
    bounce: Bounce
    emulator: Emulator
    page_writes: PageWrites
    cpu: Cpu
    regs: memoryview
    m16: memoryview
    read_registers: Callable[[], tuple[int, ...]]
    trail: Callable[[tuple[int, ...]], None]
    results: Callable[[int | None], None]

    def bind(new_domain: Domain, new_table: list[Handler]) -> TrapParts:
        nonlocal domain, table, bounce, emulator, page_writes
        nonlocal cpu, regs, m16, read_registers, trail, results
        domain = new_domain
        table = new_table
        cpu = cpu_of()
        bounce = Bounce(domain)
        emulator = Emulator(domain)
        page_writes = PageWrites(domain)
        regs = cpu.regs
        state = cpu.regs8
        m16 = domain.machine.memory.m16
        read_registers = lambda: _REGISTERS.unpack_from(state)  # noqa: E731
        trail = domain.trail.append
        results = domain.results.append
        return TrapParts(bounce, page_writes)

    def hypercall() -> None:
        try:
            if regs[HFLAGS] & HF_CPL != _KERNEL_CPL:
                bounce.software_interrupt(HYPERCALL_VECTOR)
            else:
                registers = read_registers()
                number, ecx, edx, ebx, _, _, esi, edi = registers
                trail(registers)
                try:
                    result = table[number if number < 64 else -1](ebx, ecx, edx, esi, edi)
                except Refused as refused:
                    note(number, (ebx, ecx, edx, esi, edi), refused)
                    result = -refused.errno
                except Restart as restart:
                    regs[EBX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = restart.arguments
                    regs[EIP] = (regs[EIP] - _INT_SIZE) & _WORD
                    result = None
                except DomainCrash:
                    results(None)
                    raise
                if result is not None:
                    regs[EAX] = result & _WORD
                results(result)
            if 0 < m16[domain.current.upcall_index] < 0x100:
                bounce.upcall()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def system_call() -> None:
        try:
            bounce.software_interrupt(SYSTEM_CALL_VECTOR)
            if 0 < m16[domain.current.upcall_index] < 0x100:
                bounce.upcall()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def page_fault() -> None:
        try:
            if page_writes.is_stepping:
                page_writes.abort()
            error_code = regs[ERROR_CODE]
            if not page_writes.begin(regs[CR2], error_code):
                bounce.fault(VECTOR_PF, error_code)
                if 0 < m16[domain.current.upcall_index] < 0x100:
                    bounce.upcall()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def fault_or_interrupt(vector: int) -> None:
        if regs[IS_INT]:
            bounce.software_interrupt(vector)
        elif vector == VECTOR_GP:
            if not (regs[HFLAGS] & HF_CPL == _KERNEL_CPL and emulator.privileged()):
                bounce.fault(VECTOR_GP, regs[ERROR_CODE])
        elif vector == VECTOR_NM:
            cpu.set_task_switched(False)
            bounce.fault(VECTOR_NM, None)
        else:
            code = regs[ERROR_CODE] if vector in ERROR_CODE_VECTORS else None
            bounce.fault(vector, code)

    def interrupt(_uc: int, vector: int, _user: object) -> None:
        try:
            if page_writes.is_stepping:
                if vector == VECTOR_DB:
                    if not page_writes.finish():
                        bounce.page_fault_again()
                    return
                page_writes.abort()
            fault_or_interrupt(vector)
            if 0 < m16[domain.current.upcall_index] < 0x100:
                bounce.upcall()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def invalid_opcode(_uc: int, _user: object) -> bool:
        try:
            if page_writes.is_stepping:
                page_writes.abort()
            if not emulator.forced():
                bounce.fault(VECTOR_UD, None)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)
        return True

    def io(port: int, size: int, direction: IoDirection, next_eip: int) -> None:
        if page_writes.is_stepping:
            page_writes.abort()
        if not emulator.port_access(port, size, direction, next_eip):
            bounce.fault(VECTOR_GP, 0)

    def syscall(_kind: SyscallKind) -> None:
        # No entry point can be registered for either, so both are what a CPU without them does.
        bounce.fault(VECTOR_UD, None)

    def unmapped(maddr: int) -> None:
        raise DomainCrash("paging.outside-memory", f"{maddr:#x} was reached through a page table")

    return TrapRoute(
        handlers=TrapHandlers(
            interrupt=interrupt,
            invalid_opcode=invalid_opcode,
            io=io,
            cpuid=cpuid,
            syscall=syscall,
            unmapped=unmapped,
            vectors={
                HYPERCALL_VECTOR: hypercall,
                VECTOR_PF: page_fault,
                SYSTEM_CALL_VECTOR: system_call,
            },
        ),
        bind=bind,
    )
