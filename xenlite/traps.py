# SPDX-License-Identifier: GPL-2.0-or-later
"""Decide, in one place, what each trap of a guest means.

::

    int 0x82 from ring 1 ......... the hypercall table
    int n ........................ the guest's own gate, if its privilege allows
    #PF .......................... a page-table write to emulate, else the guest's
    #GP .......................... a privileged instruction to emulate, else the guest's
    sysenter ..................... the kernel's entry point for it, if it has one
    #UD .......................... a forced emulation, else the guest's
    #NM .......................... CR0.TS is cleared, then the guest's
    any other fault .............. the guest's
    no frame possible ............ the domain crashes

Before each return to the guest the CPU looks at its pending events (``upcall``). Every figure
depends on this path, so what it touches is bound once per domain, as closures (a closure cell costs
8 ns where an attribute of ``self`` costs 20), and nothing is formatted or logged here. Each handler
catches everything: ``Cpu.enter`` raises it again outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenlite.core.bounce import Bounce
from xenlite.core.emulate import Emulator
from xenlite.core.page_writes import PageWrites
from xenlite.core.vcpu import VcpuState
from xenlite.errors import DomainCrash, Refused
from xenlite.hypercalls.restart import Handler, NoteRefusal, Restart
from xenlite.hypercalls.table import TABLE_SIZE
from xenlite.machine.cpuid import cpuid
from xenlite.machine.trap import (
    CR2,
    EBX,
    ECX,
    EDI,
    EDX,
    EIP,
    ERROR_CODE,
    ERROR_CODE_VECTORS,
    ESI,
    IS_INT,
    REGISTERS_SET,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_NM,
    VECTOR_PF,
    VECTOR_UD,
    IoDirection,
    SyscallKind,
    TrapHandlers,
)

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.machine.cpu import Cpu

HYPERCALL_VECTOR: Final = 0x82
SYSTEM_CALL_VECTOR: Final = 0x80  # any vector may be one; this one has an entry of its own
_INT_SIZE: Final = 2
_WORD: Final = 0xFFFFFFFF


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


def make_route(
    cpu_of: Callable[[], Cpu], note: NoteRefusal, rdtsc: Callable[[], int] | None = None
) -> TrapRoute:
    """Make the handlers of one domain; ``note`` hears of each refused hypercall.

    ``rdtsc`` answers RDTSC where the host's own counter may not be shown.
    """
    domain: Domain
    table: list[Handler]
    bounce: Bounce
    emulator: Emulator
    page_writes: PageWrites
    cpu: Cpu
    regs: memoryview

    def bind(new_domain: Domain, new_table: list[Handler]) -> TrapParts:
        nonlocal domain, table, bounce, emulator, page_writes
        nonlocal cpu, regs
        domain = new_domain
        table = new_table
        cpu = cpu_of()
        bounce = Bounce(domain)
        emulator = Emulator(domain)
        page_writes = PageWrites(domain)
        regs = cpu.regs
        cpu.watch_upcalls(domain.current.info_maddr)
        return TrapParts(bounce, page_writes)

    def hypercall(number: int, ebx: int, ecx: int, edx: int, esi: int, edi: int) -> int:
        try:
            if page_writes.is_stepping:
                page_writes.abort()  # its code has changed under a stale translation
                return REGISTERS_SET
            return table[number if number < TABLE_SIZE else -1](ebx, ecx, edx, esi, edi)
        except Refused as refused:
            note(number, (ebx, ecx, edx, esi, edi), refused)
            return -refused.errno & _WORD
        except Restart as restart:
            regs[EBX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = restart.arguments
            regs[EIP] = (regs[EIP] - _INT_SIZE) & _WORD
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)
        return REGISTERS_SET

    def upcall() -> None:
        try:
            # An event waits for the end of a store: no other code may run while it is under way.
            if (
                domain.current.state is VcpuState.RUNNABLE
                and not cpu.has_failed
                and not page_writes.is_stepping
            ):
                bounce.upcall()
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def system_call() -> None:
        try:
            if page_writes.is_stepping:
                page_writes.abort()
                return
            bounce.software_interrupt(SYSTEM_CALL_VECTOR)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def page_fault() -> None:
        try:
            error_code = regs[ERROR_CODE]
            if page_writes.is_stepping:
                # Another operand's fault, or a second table: two at once cannot be emulated.
                page_writes.abort()
                if not regs[IS_INT]:
                    bounce.fault(VECTOR_PF, error_code)
            elif regs[IS_INT]:
                bounce.software_interrupt(VECTOR_PF)
            elif not page_writes.begin(regs[CR2], error_code):
                bounce.fault(VECTOR_PF, error_code)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def fault_or_interrupt(vector: int) -> None:
        if regs[IS_INT]:
            bounce.software_interrupt(vector)
        elif vector == VECTOR_GP:
            if not emulator.privileged():
                bounce.fault(VECTOR_GP, regs[ERROR_CODE])
        elif vector == VECTOR_NM:
            cpu.set_task_switched(False)
            bounce.fault(VECTOR_NM, None)
        else:
            code = regs[ERROR_CODE] if vector in ERROR_CODE_VECTORS else None
            bounce.fault(vector, code)

    def debug() -> None:
        try:
            if not page_writes.is_stepping:
                fault_or_interrupt(VECTOR_DB)
            elif not page_writes.finish():
                bounce.page_fault_again()
            elif page_writes.guest_steps:
                bounce.fault(VECTOR_DB, None)
        except BaseException as error:  # noqa: BLE001 - enter raises it again
            cpu.fail(error)

    def interrupt(_uc: int, vector: int, _user: object) -> None:
        try:
            if page_writes.is_stepping:
                page_writes.abort()
                if regs[IS_INT]:
                    return
            fault_or_interrupt(vector)
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

    def syscall(kind: SyscallKind) -> None:
        if kind is SyscallKind.SYSENTER:
            bounce.sysenter()
        else:  # which processors of this make have in 64-bit mode only
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
            rdtsc=rdtsc,
            vectors={
                VECTOR_PF: page_fault,
                SYSTEM_CALL_VECTOR: system_call,
            },
            debug=debug,
            call_vector=HYPERCALL_VECTOR,
            call=hypercall,
            upcall=upcall,
        ),
        bind=bind,
    )
