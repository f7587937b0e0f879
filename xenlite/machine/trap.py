# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the CPU state that a trap sees, and the calls that a trap makes.

``Cpu.regs`` is a view of 32-bit words over the engine's CPU state; ``Cpu.regs8`` shows the same
bytes. Registers stand in 64-bit cells, so a register's word index is even and its upper half is
unused by a 32-bit guest::

    word   0  EAX  ECX  EDX  EBX  ESP  EBP  ESI  EDI      one cell each
          32  EIP  EFLAGS                                 read_eflags() adds CC_* and DF
          36  CC_DST  CC_SRC  CC_SRC2  CC_OP|DF           lazily evaluated arithmetic flags
          44  HFLAGS                                      what the translator depends on
          46  ES CS SS DS FS GS LDT TR GDT IDT            6 words each, see SEGMENT_*
         106  CR0 .. CR4
        1346  ERROR_CODE  IS_INT                          of the last exception
        1350  DR0 .. DR7
        1374  OLD_EXCEPTION

The self-test checks these offsets against the running engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

STATE_SIZE_BYTES: Final = 5568
"""Bytes of CPU state that a context holds."""

# Word indexes into Cpu.regs
EAX: Final = 0
ECX: Final = 2
EDX: Final = 4
EBX: Final = 6
ESP: Final = 8
EBP: Final = 10
ESI: Final = 12
EDI: Final = 14
EIP: Final = 32
EFLAGS: Final = 34
CC_DST: Final = 36
CC_SRC: Final = 38
CC_SRC2: Final = 40
CC_OP: Final = 42
DF: Final = 43
HFLAGS: Final = 44
SEG0: Final = 46
CR0: Final = 106
CR2: Final = 110
CR3: Final = 112
CR4: Final = 114
ERROR_CODE: Final = 1346
IS_INT: Final = 1347
DR0: Final = 1350
DR6: Final = 1362
DR7: Final = 1364
OLD_EXCEPTION: Final = 1374

GENERAL_REGISTERS: Final = {
    "eax": EAX,
    "ebx": EBX,
    "ecx": ECX,
    "edx": EDX,
    "esi": ESI,
    "edi": EDI,
    "ebp": EBP,
    "esp": ESP,
    "eip": EIP,
}
"""By the names that people give them."""

# Segments, in the order of the state; word index of one is SEG0 + SEGMENT_WORDS * number
ES: Final = 0
CS: Final = 1
SS: Final = 2
DS: Final = 3
FS: Final = 4
GS: Final = 5
LDT: Final = 6
TR: Final = 7
GDT: Final = 8
IDT: Final = 9
SEGMENT_WORDS: Final = 6
SEGMENT_BASE: Final = 2
"""Word of the base within a segment; word 0 is the selector."""
SEGMENT_LIMIT: Final = 4
SEGMENT_FLAGS: Final = 5
"""Holds a descriptor's upper word: type, S, DPL, P, AVL, L, D/B, G where a descriptor has them."""

CS_SELECTOR: Final = SEG0 + SEGMENT_WORDS * CS
SS_SELECTOR: Final = SEG0 + SEGMENT_WORDS * SS
DS_SELECTOR: Final = SEG0 + SEGMENT_WORDS * DS
ES_SELECTOR: Final = SEG0 + SEGMENT_WORDS * ES
FS_SELECTOR: Final = SEG0 + SEGMENT_WORDS * FS
GS_SELECTOR: Final = SEG0 + SEGMENT_WORDS * GS

# Upper descriptor words of segments that span all 4 GiB, accessed bit set, by privilege level
FLAT_LIMIT: Final = 0xFFFFFFFF
FLAT_CODE: Final = (0x00CF9B00, 0x00CFBB00, 0x00CFDB00, 0x00CFFB00)
FLAT_DATA: Final = (0x00CF9300, 0x00CFB300, 0x00CFD300, 0x00CFF300)
TSS_FLAGS: Final = 0x8900
"""Present and available. A busy TSS makes an inward gate call abort the whole process."""
LDT_FLAGS: Final = 0x8200

# HFLAGS
HF_CPL: Final = 3
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_TS: Final = 1 << 11
HF_IOBPT: Final = 1 << 24
"""Each IN and OUT is followed by a test for an I/O breakpoint: what makes them exact."""

# Control registers
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10

# EFLAGS
EFLAGS_CF: Final = 1 << 0
EFLAGS_FIXED: Final = 1 << 1
EFLAGS_ZF: Final = 1 << 6
EFLAGS_TF: Final = 1 << 8
EFLAGS_IF: Final = 1 << 9
EFLAGS_DF: Final = 1 << 10
EFLAGS_IOPL: Final = 3 << 12
EFLAGS_NT: Final = 1 << 14
EFLAGS_RF: Final = 1 << 16
EFLAGS_VM: Final = 1 << 17
EFLAGS_AC: Final = 1 << 18
EFLAGS_ARITHMETIC: Final = 0x8D5
"""CF, PF, AF, ZF, SF and OF: the flags that the engine evaluates lazily."""
CC_OP_EFLAGS: Final = 1
"""The value of CC_OP that says: the arithmetic flags stand in CC_SRC."""
REGISTERS_SET: Final = -1
"""What a call answers when its handler has set the registers itself."""
NO_EXCEPTION: Final = 0xFFFFFFFF
"""OLD_EXCEPTION of a CPU that is not delivering one; else the next fault becomes #DF."""

# Exception vectors
VECTOR_DE: Final = 0
VECTOR_DB: Final = 1
VECTOR_NMI: Final = 2
VECTOR_BP: Final = 3
VECTOR_OF: Final = 4
VECTOR_BR: Final = 5
VECTOR_UD: Final = 6
VECTOR_NM: Final = 7
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_MF: Final = 16
VECTOR_AC: Final = 17
VECTOR_XM: Final = 19
ERROR_CODE_VECTORS: Final = frozenset({8, 10, 11, 12, 13, 14, 17})


class IoDirection(Enum):
    """Say which way a port access goes."""

    IN = "in"
    OUT = "out"


class SyscallKind(Enum):
    """Say which fast system call instruction was met."""

    SYSCALL = "syscall"
    SYSENTER = "sysenter"


CpuidLeaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""


@dataclass(frozen=True, slots=True)
class TrapHandlers:
    """Name the six entries from the engine, as the CPU calls them.

    ``interrupt(uc, vector, user)`` and ``invalid_opcode(uc, user)`` are the raw callbacks of the
    engine, with no Python frame between: ``uc`` and ``user`` mean nothing to the handler, and the
    handler itself must catch everything and pass it to ``Cpu.fail``. ``vectors`` may give single
    vectors a handler of no arguments, which saves a third of the cost of an empty callback; the
    same rule holds for it. The CPU catches what the other handlers raise.

    In ``interrupt``, ``vectors``, ``invalid_opcode``, ``io``, ``syscall`` and ``unmapped`` every
    part of the state may be changed, mappings flushed and the run stopped. In ``cpuid`` and
    ``rdtsc`` nothing may be touched: they run inside translated code.
    """

    interrupt: Callable[[int, int, object], None]
    """A fault (``regs[IS_INT] == 0``: EIP at the instruction, ERROR_CODE valid) or an ``int n``
    (EIP after it, gate privilege unchecked)."""

    invalid_opcode: Callable[[int, object], bool]
    """An undefined instruction, EIP at it. True: go on with the state as it is now."""

    io: Callable[[int, int, IoDirection, int], None]
    """``io(port, size_bytes, direction, next_eip)``: an IN, OUT, INS or OUTS at EIP, at any
    privilege, that has not happened: inject a fault, or complete it and set EIP to ``next_eip``
    (of a repeated one: to EIP until ECX ends). INS has already zeroed its element."""

    cpuid: Callable[[int, int], CpuidLeaf]
    """``cpuid(leaf, subleaf)``: what CPUID shall answer."""

    syscall: Callable[[SyscallKind], None]
    """A SYSCALL or SYSENTER at EIP that has not happened."""

    unmapped: Callable[[int], None]
    """``unmapped(maddr)``: a mapping of ``maddr``, where no RAM is, was used. A load has not
    happened and EIP is at it; a store is lost, and the rest of its block has run."""

    rdtsc: Callable[[], int] | None = None
    """What RDTSC and RDTSCP shall answer, 64 bits; None leaves them to the host's counter."""

    vectors: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    """Handlers of single vectors, instead of ``interrupt``."""

    debug: Callable[[], None] | None = None
    """A #DB that is no port access, by fault or by ``int 1``; None leaves it to ``interrupt``."""

    call_vector: int = 0xFFFFFFFF
    """The ``int n`` that is a call of the guest's kernel, from ring 1; none by default."""

    call: Callable[[int, int, int, int, int, int], int] = lambda *_: -1
    """``call(eax, ebx, ecx, edx, esi, edi)``: a call, already recorded in ``Cpu.trail``. The
    result, 32 bits, goes into EAX; a negative one leaves the registers as the handler set them."""

    sees_all: bool = False
    """Every trap comes to its handler: the stub repeats none by itself."""

    upcall: Callable[[], None] = lambda: None
    """The word given to ``Cpu.watch_upcalls`` says so, at the end of ``interrupt``, ``vectors`` or
    ``call``. It too must catch everything."""
