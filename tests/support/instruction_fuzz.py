# SPDX-License-Identifier: GPL-2.0-or-later
"""Random instructions in rings 1 and 3 of a real domain, generated, checked, and cut down.

A stream is some pieces of machine code (plain noise, or an instruction of the dangerous kind with
random operands), where they stand, and the registers they start with. The domain that runs them
has handlers that step over a faulting byte and go on, descriptor tables full of traps, and a victim
beside it. After each stream: the processor's state is one that a guest may have. Every few: the
audit, and the victim. Streams run in a child process, so that an abort of the engine is a finding
like any other::

    parent: campaign(seed, first, count) --> child: generate, run --> number of each stream, "done"
    parent: replay(streams) ------------->   the same for a list
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from tests.support.fuzz_guest import PAGE, SmallDomain, Victim, program
from xenlite.abi.x86_32p import (
    FLAT_RING1_CS,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_writable_pagetables,
    VMASST_TYPE_xenlite_fault_address,
)
from xenlite.core.vcpu import VcpuState
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock
from xenlite.machine.cpu import Mode
from xenlite.machine.trap import (
    CR0,
    CR0_TS,
    CR3,
    CR4,
    DR7,
    EAX,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_VM,
    EIP,
    GDT,
    HF_CPL,
    HF_IOBPT,
    HFLAGS,
    IDT,
    LDT,
    LDT_FLAGS,
    SEG0,
    SEGMENT_FLAGS,
    SEGMENT_WORDS,
    TR,
    TSS_FLAGS,
)
from xenlite.machine.x86_32p import PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US

HOST_MB = 16
FRESH_EVERY = 50  # streams on one domain, if it lives that long
AUDIT_EVERY = 10
SLICES = 2
BLOCKS = 80  # of one slice
HANG_S = 60.0
_BUSY_TSS_FLAGS = TSS_FLAGS | 0x200
_WORD = 0xFFFFFFFF

_USER_PAGE = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
_SELECTORS = 32  # descriptors in the GDT and the LDT
_GUEST = f"""
.macro STAY_NEAR
    cmp dword ptr [esp], 0x3000
    jb 1f
    cmp dword ptr [esp], offset stream
    jb 2f
    cmp dword ptr [esp], offset stream + 8192
    jb 1f
2:
    push eax
    mov eax, cs:[middle]
    mov [esp + 4], eax
    pop eax
1:
.endm
.text
    MAP_SHARED_INFO
    SET_TRAPS traps
    mov ebx, FLAT_RING1_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    mov ebx, FLAT_RING1_CS
    mov ecx, offset plain
    mov edx, FLAT_RING1_CS
    mov esi, offset failsafe
    XEN set_callbacks
    REMAP offset gdt, PTE_RO_DATA
    REMAP offset ldt, PTE_RO_DATA
    REMAP offset low_l1, PTE_RO_DATA
    REMAP offset low_l2, PTE_RO_DATA
    mov eax, offset gdt - VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov edx, [edx + eax * 4]
    mov [gdt_frame], edx
    mov ebx, offset gdt_frame
    mov ecx, {_SELECTORS}
    XEN set_gdt
    mov ebx, offset ldt_operation
    mov ecx, 1
    xor edx, edx
    mov esi, DOMID_SELF
    XEN mmuext_op
    REMAP offset stream, PTE_USER_RW
    REMAP offset stream + 4096, PTE_USER_RW
    REMAP offset scratch, PTE_USER_RW
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    REMAP offset read_only, PTE_USER_RO
    mov ebx, SCHEDOP_yield
    XEN sched_op
    TO_USER stream

# Step over a byte; one who is lost in unmapped memory goes on in the middle of the stream.
coded:
    add esp, 4
plain:
    inc dword ptr [esp]
    STAY_NEAR
debug:
    iretd
through_xen:
    inc dword ptr [esp]
    STAY_NEAR
    push eax
    mov eax, HYPERVISOR_iret
    int HYPERCALL_VECTOR
system_call:
    push eax
    mov eax, HYPERVISOR_iret
    int HYPERCALL_VECTOR
failsafe:
    add esp, 16
    iretd
gate_target:
    retf
.data
traps:
    GATE 0, 0, plain
    GATE 1, 3, debug
    GATE 3, 3, through_xen
    GATE 4, 3, plain
    GATE 5, 0, plain
    GATE 6, 4, through_xen
    GATE 7, 0, plain
    GATE 8, 0, coded
    GATE 10, 0, coded
    GATE 11, 0, coded
    GATE 12, 4, coded
    GATE 13, 0, coded
    GATE 14, 4, coded
    GATE 16, 0, plain
    GATE 17, 0, coded
    GATE 19, 0, plain
    GATE 0x21, 1, plain
    GATE 0x22, 7, debug, 0x29
    GATE 0x23, 3, debug, 0x31
    GATE 0x24, 3, debug, 0x53
    GATE 0x25, 3, debug, 0x0D
    GATE 0x26, 3, debug, 0
    GATE 0x27, 7, system_call
    GATE 0x80, 3, system_call
    GATES_END
middle:
    .long 0
gdt_frame:
    .long 0
ldt_operation:
    .long MMUEXT_SET_LDT, ldt, {_SELECTORS}
.bss
.p2align 12
gdt:
    .space 4096
ldt:
    .space 4096
low_l1:
    .space 4096
low_l2:
    .space 4096
stream:
    .space 8192
scratch:
    .space 4096
read_only:
    .space 4096
"""

# Upper halves; all but gates have 0xFFFF below, and gates FLAT_RING1_CS:gate_target.
_DESCRIPTORS = (
    0x00000B00, 0x00CFBB00, 0x00CFB300, 0x00CFFB00, 0x00CFF300, 0x00CFBF00, 0x008FBB00, 0x008FB300,
    0x008FFB00, 0xC0CFB300, 0x00CFDB00, 0x00CFD300, 0x0000EC00, 0x0000EC1F, 0x0000AC00, 0x0000CC00,
    0x00006900, 0x00006500, 0x00000200, 0x00006E00, 0x0000E000, 0x00CFF900, 0x00CFF700, 0x00CFF100,
    0x00CF7300, 0xC0CFBB00, 0x00CFFF00, 0x00006B00, 0x00006400, 0x008FF300, 0xC0CFF300, 0x0000EC02,
)  # fmt: skip
_FIRST_GATE = 0xC


@dataclass(frozen=True)
class Stream:
    """Some code, and how it starts."""

    ring: int
    offset: int  # in the two pages of code
    pieces: tuple[bytes, ...]
    registers: tuple[int, ...]
    eflags: int
    assists: int
    event: bool  # one is pending, and not masked
    unhandled: int | None  # a vector without a handler

    @property
    def code(self) -> bytes:
        """Return the bytes."""
        return b"".join(self.pieces)

    def to_json(self) -> str:
        """Write it on one line."""
        return json.dumps(asdict(self) | {"pieces": [piece.hex() for piece in self.pieces]})

    @classmethod
    def from_json(cls, line: str) -> Stream:
        """Read what ``to_json`` wrote."""
        fields = json.loads(line)
        fields["pieces"] = tuple(bytes.fromhex(piece) for piece in fields["pieces"])
        fields["registers"] = tuple(fields["registers"])
        return cls(**fields)


class Broken(Exception):  # noqa: N818 - what a fuzz is for
    """An invariant does not hold."""


# -- generating ---------------------------------------------------------------------------------

_PREFIXES = b"\x66\x67\x2e\x36\x3e\x26\x64\x65\xf0\xf2\xf3"
_ONE_BYTE = bytes.fromhex(
    "9c9d cf cb cc ce f1 f4 fa fb 6c 6d 6e 6f a4 a5 a6 a7 aa ab ac ad ae af"
    "06 07 0e 16 17 1e 1f ec ed ee ef 9b c9 60 61 d7 98 99 f5 27 c3 9e 9f 40 50 58 fc fd f8"
)
_SYSTEM = tuple(
    b"\x0f" + bytes.fromhex(text)
    for text in (
        *("05", "06", "07", "08", "09", "0b", "0e", "30", "31", "32", "33", "34", "35", "77", "a2"),
        *("01c1", "01c8", "01c9", "01ca", "01cb", "01d0", "01d1", "01d8", "01d9", "01da", "01db"),
        *("01dc", "01dd", "01de", "01df", "01ee", "01ef", "01f8", "01f9", "01fa", "01fc", "01fd"),
        *("0b78656e0fa2", "a0", "a1", "a8", "a9", "aa", "aef0", "aed8", "b9c0", "c7f0", "c7f8"),
        "ffc0",
    )
)
_VECTORS = (
    *(0, 1, 3, 4, 6, 8, 13, 14, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27),
    *(0x80, 0x80, 0x82, 0xFF),
)
_POPS = (b"\x07", b"\x17", b"\x1f", b"\x0f\xa1", b"\x0f\xa9")
_STACK_USES = (b"\x50", b"\x9c", b"\x60", b"\xe8\0\0\0\0", b"\xc8\x08\x00\x03", b"\x9d")
_STRING_IO = (b"\x6c", b"\x6d", b"\x6e", b"\x6f")


class Generator:
    """Makes streams that know where things are in the guest."""

    def __init__(self) -> None:
        symbols = program(_GUEST).symbols
        self.code = symbols["stream"]
        places = [symbols[name] for name in ("stream", "scratch", "read_only", "gdt", "ldt")]
        places += [symbols["shared_info"], symbols["kernel_stack_top"] - PAGE, symbols["traps"]]
        places += [symbols["user_stack_top"] - PAGE, symbols["plain"] & -PAGE]
        # What follows the program: start_info, page tables, the boot stack; then plain memory.
        after = -(-program(_GUEST).image.end // PAGE) * PAGE
        places += [after + PAGE * page for page in range(8)]
        places += [0xF5800000, 0xFC000000, 0xFC00E000, 0xFC00F000, 0xFC010000, 0xFC400000]
        self._places = tuple(places)
        self.stacks = {1: symbols["kernel_stack_top"], 3: symbols["user_stack_top"]}

    def stream(self, seed: int, number: int) -> Stream:
        """Make one; the same for the same numbers."""
        random = Random(f"{seed} {number}")
        ring = random.choice((1, 3))
        pieces = tuple(self._piece(random) for _ in range(random.choice((1, 2, 4, 8, 12))))
        size = sum(map(len, pieces))
        offset = random.choice((0, PAGE - random.randrange(size + 1), 2 * PAGE - size))
        registers = [self._word(random) for _ in range(8)]
        if random.randrange(8):
            registers[4] = self.stacks[ring] - 4 * random.randrange(4, 64)
        eflags = random.getrandbits(22) & 0x40CD5 | 0x202
        if not random.randrange(6):
            eflags |= random.choice((0x100, 0x4000, 0x10000, 0x4100))
        assists = 0
        if random.randrange(3):
            assists |= 1 << VMASST_TYPE_writable_pagetables
        if not random.randrange(4):
            assists |= 1 << VMASST_TYPE_architectural_iopl
        if not random.randrange(6):
            assists |= 1 << VMASST_TYPE_xenlite_fault_address
        return Stream(
            ring,
            min(offset, 2 * PAGE - size),
            pieces,
            tuple(registers),
            eflags,
            assists,
            event=not random.randrange(8),
            unhandled=random.choice((6, 13, 14, 1, 7)) if not random.randrange(16) else None,
        )

    def _word(self, random: Random) -> int:
        choice = random.randrange(10)
        if choice < 6:
            near = random.choice((0, 0, 8 * random.randrange(512), PAGE - random.randrange(1, 9)))
            return random.choice(self._places) + near & _WORD
        if choice < 8:
            return random.randrange(64)
        if choice == 8:
            return random.choice((0, 1, 0x7FFFFFFF, 0x80000000, _WORD, _WORD - 7))
        return random.getrandbits(32)

    @staticmethod
    def _selector(random: Random) -> int:
        choice = random.randrange(12)
        if choice < 9:
            return random.randrange(_SELECTORS) << 3 | random.randrange(8)
        if choice < 11:
            return 0xE000 + random.choice((0x19, 0x21, 0x2B, 0x33, 0x18, 0x40, 0x50, 0x43, 0x53))
        return random.getrandbits(16)

    def _piece(self, random: Random) -> bytes:
        makers: tuple[Callable[[Random], bytes], ...] = (
            self._noise,
            self._noise,
            self._one_byte,
            self._system,
            self._two_byte,
            self._memory,
            self._load_selector,
            self._far,
            self._return,
            self._interrupt,
            self._ports,
            self._string,
            self._float,
            self._store_to_code,
            self._stack,
            self._set_register,
            self._virtual_8086,
        )
        piece = random.choice(makers)(random)
        while not random.randrange(5):
            piece = bytes((random.choice(_PREFIXES),)) + piece
        return piece

    @staticmethod
    def _noise(random: Random) -> bytes:
        return random.randbytes(random.randrange(1, 16))

    @staticmethod
    def _one_byte(random: Random) -> bytes:
        return bytes((random.choice(_ONE_BYTE),))

    @staticmethod
    def _system(random: Random) -> bytes:
        choice = random.randrange(4)
        if choice == 0:
            opcode = random.choice((0x20, 0x21, 0x22, 0x23))
            return bytes((0x0F, opcode, 0xC0 | random.randrange(64)))
        if choice == 1:
            return bytes((0x0F, random.randrange(2), random.randrange(256))) + random.randbytes(5)
        return random.choice(_SYSTEM)

    @staticmethod
    def _two_byte(random: Random) -> bytes:
        opcode = bytes((0x0F, random.randrange(256)))
        if not random.randrange(4):
            opcode = bytes((0x0F, random.choice((0x38, 0x3A)), random.randrange(256)))
        return opcode + random.randbytes(random.randrange(1, 7))

    def _memory(self, random: Random) -> bytes:
        """Make any one-byte opcode with a register or an absolute address as its operand."""
        opcode = bytes((random.randrange(256),))
        if random.randrange(2):
            modrm = bytes((random.randrange(8) << 3 | random.randrange(8),))
            return opcode + modrm + random.randbytes(random.randrange(5))
        modrm = bytes((random.randrange(8) << 3 | 5,))
        return opcode + modrm + struct.pack("<I", self._word(random)) + random.randbytes(2)

    def _load_selector(self, random: Random) -> bytes:
        move = b"\xb8" + struct.pack("<I", self._selector(random))
        choice = random.randrange(3)
        if choice == 0:
            return move + bytes((0x8E, 0xC0 | random.randrange(8) << 3))
        if choice == 1:
            return move + b"\x50" + random.choice(_POPS)
        load = random.choice((b"\xc4", b"\xc5", b"\x0f\xb2", b"\x0f\xb4", b"\x0f\xb5"))
        check = random.choice((b"\x0f\x02\xd0", b"\x0f\x03\xd0", b"\x0f\x00\xe0", b"\x0f\x00\xe8"))
        return move + random.choice((load + bytes((random.randrange(64),)), check))

    def _far(self, random: Random) -> bytes:
        target = self._target(random)
        if random.randrange(2):
            opcode = random.choice((b"\x9a", b"\xea"))
            return opcode + struct.pack("<IH", target, self._selector(random))
        pushes = self._push(self._selector(random)) + self._push(target)
        return pushes + random.choice((b"\xff\x1c\x24", b"\xff\x2c\x24", b"\xcb", b"\xca\x08\x00"))

    def _return(self, random: Random) -> bytes:
        """Make an interrupt return, native or by hypercall, to anywhere."""
        eflags = random.choice((0x202, 0x202, 0x302, 0x4202, 0x20202, 0x3202, 0x2, _WORD))
        frame = b""
        if random.randrange(2):
            if not random.randrange(4):
                frame += b"".join(self._push(self._selector(random)) for _ in range(4))
            frame += self._push(self._selector(random)) + self._push(self._word(random))
        frame += self._push(eflags) + self._push(self._selector(random))
        frame += self._push(self._target(random))
        if random.randrange(3):
            return frame + b"\xcf"
        return frame + b"\x50" + b"\xb8" + struct.pack("<I", 23) + b"\xcd\x82"

    def _virtual_8086(self, random: Random) -> bytes:
        """Return to virtual-8086 mode, where the engine lets ring 3 go, in the same two pages."""
        frame = b"".join(self._push(random.randrange(0x300)) for _ in range(4))
        frame += self._push(0x300) + self._push(random.choice((0x800, 0x1000, 0xFFFF, 2)))
        frame += self._push(0x20002 | random.choice((0x200, 0x3200, 0x3000, 0x4200, 0x300)))
        frame += self._push(0x100)
        if not random.randrange(4):
            return frame + self._push(random.randrange(2 * PAGE)) + b"\xcf"
        # call next; next: pop edx; sub edx, where the code is; add edx, 12; push edx; iretd
        here = b"\xe8\0\0\0\0\x5a\x81\xea" + struct.pack("<I", self.code)
        return frame + here + b"\x83\xc2\x0c\x52\xcf"

    @staticmethod
    def _interrupt(random: Random) -> bytes:
        if not random.randrange(4):  # often enough for the short ways in and back to open
            vector = random.choice((0x27, 0x80))
            return b"\xb9\x06\0\0\0" + bytes((0xCD, vector)) + b"\xe2\xfc"
        if random.randrange(3):
            return bytes((0xCD, random.choice(_VECTORS)))
        number = b"\xb8" + struct.pack("<I", random.randrange(64))
        return number + b"\xcd\x82"

    @staticmethod
    def _ports(random: Random) -> bytes:
        repeat = random.choice((b"", b"\xf3", b"\xf2"))
        if random.randrange(2):
            count = b"\xb9" + struct.pack("<I", random.randrange(6))
            return count + repeat + random.choice(_STRING_IO)
        opcode = random.choice((0xE4, 0xE5, 0xE6, 0xE7))
        return repeat + bytes((opcode, random.randrange(256)))

    def _string(self, random: Random) -> bytes:
        source = b"\xbe" + struct.pack("<I", self._word(random))
        target = b"\xbf" + struct.pack("<I", self._word(random))
        count = b"\xb9" + struct.pack("<I", random.choice((0, 1, 3, 600, self._word(random))))
        opcode = random.choice(b"\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf")
        return source + target + count + random.choice((b"\xf3", b"\xf2", b"")) + bytes((opcode,))

    @staticmethod
    def _float(random: Random) -> bytes:
        choice = random.randrange(3)
        if choice == 0:
            opcode = bytes((0xD8 + random.randrange(8),))
        elif choice == 1:
            opcode = random.choice((b"\x0f\xae", b"\x0f\xc7", b"\x66\x0f\xe7", b"\x0f\xc3"))
        else:
            opcode = b"\x0f" + bytes((random.randrange(0x50, 0x80),))
        return opcode + bytes((random.randrange(256),)) + random.randbytes(random.randrange(5))

    def _store_to_code(self, random: Random) -> bytes:
        at = self.code + random.randrange(2 * PAGE)
        return b"\xc6\x05" + struct.pack("<IB", at, random.randrange(256))

    def _stack(self, random: Random) -> bytes:
        """Move the stack, then use it."""
        move = b"\xbc" + struct.pack("<I", self._word(random))
        use = random.choice(
            (b"\x50", b"\x9c", b"\x60", b"\xe8\0\0\0\0", b"\xc8\x08\x00\x03", b"\x9d")
        )
        return move + use

    def _set_register(self, random: Random) -> bytes:
        return bytes((0xB8 + random.randrange(8),)) + struct.pack("<I", self._word(random))

    def _target(self, random: Random) -> int:
        if random.randrange(4):
            return self.code + random.randrange(2 * PAGE)
        return self._word(random)

    @staticmethod
    def _push(word: int) -> bytes:
        return b"\x68" + struct.pack("<I", word & _WORD)


# -- running ------------------------------------------------------------------------------------


class _Hostile(SmallDomain):
    """The domain that runs streams."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        super().__init__(hypervisor, program(_GUEST))
        target = self.symbols["gate_target"]
        table = b"".join(
            struct.pack("<II", FLAT_RING1_CS << 16 | target & 0xFFFF, target & ~0xFFFF | upper)
            if upper >> 8 & 0x1F == _FIRST_GATE
            else struct.pack("<II", 0xFFFF, upper)
            for upper in _DESCRIPTORS
        )
        for label in ("gdt", "ldt"):
            self.write(self.symbols[label], table)
        self._code = self.symbols["stream"]
        self._middle = self.maddr(self.symbols["middle"])
        self._code_mfns = (self.maddr(self._code) >> 12, self.maddr(self._code + PAGE) >> 12)
        self._fill(b"", 0)
        self._write_low_tables()
        self.control.unpause(self.domid)
        self.turn(10_000)
        assert self.domain.shutdown_reason is None, hypervisor.crashes[self.domid]
        self._map_low_tables()
        self.cpu = hypervisor._guests[self.domid].cpu
        regs = self.cpu.regs
        self._states = {1: bytearray(self.cpu.regs8)}
        self.turn(10_000)
        assert regs[EIP] == self._code, hex(regs[EIP])
        assert regs[HFLAGS] & HF_CPL == 3
        self._states[3] = bytearray(self.cpu.regs8)
        self._fixed = self._fixed_state()
        vcpu = self.domain.current
        self._traps = list(vcpu.traps)
        self._cr3 = vcpu.cr3_mfn
        self.turns = 0

    def start(self, stream: Stream) -> None:
        """Set everything up; the next turn runs it."""
        vcpu, cpu = self.domain.current, self.cpu
        cpu.restore_context(self._states[stream.ring])
        self._fill(stream.code, stream.offset)
        for number, value in enumerate(stream.registers):
            cpu.regs[EAX + 2 * number] = value
        cpu.regs[EIP] = self._code + stream.offset
        middle = self._code + stream.offset + len(stream.code) // 2
        self.hypervisor.machine.memory.write(self._middle, struct.pack("<I", middle))
        cpu.write_eflags(stream.eflags)
        self.domain.assists = stream.assists
        vcpu.iopl = 0
        vcpu.traps = list(self._traps)
        if stream.unhandled is not None:
            vcpu.traps[stream.unhandled] = None
        self.hypervisor.machine.memory.write(vcpu.info_maddr, bytes((stream.event, 0)))
        vcpu.state = VcpuState.RUNNABLE
        self.turns = 0

    def is_worn(self) -> bool:
        """Tell whether it can't run another stream: it is dead, or where they stand is gone."""
        domain = self.domain
        frames = self.hypervisor.machine.frames
        return (
            domain.shutdown_reason is not None
            or domain.current.cr3_mfn != self._cr3
            or domain.current.ldt_entries != _SELECTORS
            or any(frames.owner[mfn] != self.domid for mfn in self._code_mfns)
            or self.control.translate(self.domid, 0, self._code) != self._code_mfns[0] << 12
            or self.control.translate(self.domid, 0, self._code + PAGE) != self._code_mfns[1] << 12
        )

    def check(self) -> None:
        """Compare the processor with what no guest may change."""
        regs, cpu = self.cpu.regs, self.cpu
        problems = []
        if not regs[HFLAGS] & HF_CPL:
            problems.append("it runs in ring 0")
        eflags = cpu.read_eflags()
        # Virtual-8086 mode, which the engine enters from ring 3, takes both from its frame.
        if not eflags & EFLAGS_VM and eflags & (EFLAGS_IOPL | EFLAGS_IF) != EFLAGS_IF:
            problems.append(f"eflags are {eflags:#x}")
        if self._fixed_state() != self._fixed:
            problems.append(f"{self._fixed_state()} instead of {self._fixed}")
        if regs[CR3] >> 12 != self.domain.current.cr3_mfn:
            problems.append(f"cr3 is {regs[CR3]:#x}")
        if not regs[HFLAGS] & HF_IOBPT or cpu._io is not None or regs[DR7] & 0xFF:
            problems.append("a port access is still under way")
        if cpu._pending is not None or cpu.has_failed:
            problems.append("something waits to be delivered")
        if self.hypervisor._guests[self.domid].parts.page_writes.is_stepping:
            problems.append("a page-table write is still under way")
        if problems:
            raise Broken("; ".join(problems))

    def _write_low_tables(self) -> None:
        """Let virtual-8086 mode find the code at paragraph 0x100, and a stack at 0x300."""
        pages = [self._code, self._code + PAGE, self.symbols["scratch"]]
        entries = [0, *(self.maddr(page) | _USER_PAGE for page in pages)]
        self.write(self.symbols["low_l1"], struct.pack("<4Q", *entries))
        entry = self.maddr(self.symbols["low_l1"]) | _USER_PAGE
        self.write(self.symbols["low_l2"], struct.pack("<Q", entry))

    def _map_low_tables(self) -> None:
        paging = self.domain.paging
        l3_mfn = self.domain.current.cr3_mfn
        assert l3_mfn is not None
        paging.begin_work()
        paging.set_l3(l3_mfn * 512, self.maddr(self.symbols["low_l2"]) | PTE_P)

    def _fixed_state(self) -> tuple[int, ...]:
        regs = self.cpu.regs
        tables = [
            int(regs[SEG0 + SEGMENT_WORDS * number + word])
            for number in (GDT, IDT, TR)
            for word in range(SEGMENT_WORDS)
        ]
        ldt = int(regs[SEG0 + SEGMENT_WORDS * LDT + SEGMENT_FLAGS])
        assert ldt in (0, LDT_FLAGS), hex(ldt)
        return (int(regs[CR0]) & ~CR0_TS, int(regs[CR4]), *tables)

    def _fill(self, code: bytes, offset: int) -> None:
        """Put code into the two pages, with jumps to themselves around it."""
        pages = bytearray(b"\xeb\xfe" * PAGE)
        pages[offset : offset + len(code)] = code
        end = offset + len(code)
        pages[end : end + 2] = b"\xeb\xfe"[: 2 * PAGE - end]
        memory = self.hypervisor.machine.memory
        for number, mfn in enumerate(self._code_mfns):
            memory.write(mfn << 12, bytes(pages[number * PAGE : (number + 1) * PAGE]))


class Runner:
    """A machine with a victim and a hostile domain, which runs one stream after the other."""

    def __init__(self, mode: Mode = "auto") -> None:
        self.hypervisor = Hypervisor(HOST_MB << 20, ManualClock(), cpu_mode=mode)
        self._victim = Victim(self.hypervisor)
        self._hostile: _Hostile | None = None
        self._count = 0
        self.ends: dict[str, int] = {}

    def run(self, stream: Stream) -> None:
        """Run one stream. Raises Broken, or whatever the hypervisor raised."""
        hostile = self._hostile
        if hostile is None or self._count % FRESH_EVERY == 0 or hostile.is_worn():
            if hostile is not None:
                hostile.destroy()
                self._check_all()
            hostile = self._hostile = _Hostile(self.hypervisor)
        self._count += 1
        hostile.start(stream)
        for _ in range(SLICES):
            if hostile.domain.shutdown_reason is not None:
                break
            hostile.turn(BLOCKS)
            if hostile.domain.shutdown_reason is None:
                hostile.check()
        crash = self.hypervisor.crashes.get(hostile.domid)
        end = "went on" if crash is None else crash.rule
        self.ends[end] = self.ends.get(end, 0) + 1
        if self._count % AUDIT_EVERY == 0:
            self._check_all()

    def close(self) -> None:
        """Take everything apart."""
        self._check_all()
        if self._hostile is not None:
            self._hostile.destroy()
        self._victim.destroy()
        self.hypervisor.close()

    def _check_all(self) -> None:
        problems = self.hypervisor.control().audit() + self._victim.problems()
        if problems:
            raise Broken("; ".join(problems[:8]))


# -- the child ----------------------------------------------------------------------------------


def _work(streams: Iterable[Stream]) -> int:
    """Run streams; tell standard output the number of each before it starts, and how it ended."""
    unraisable: list[str] = []
    sys.unraisablehook = lambda args: unraisable.append(repr(args.exc_value))
    number = -1
    runner: Runner | None = None
    try:
        runner = Runner()
        for number, stream in enumerate(streams):
            os.write(1, b"%d\n" % number)
            runner.run(stream)
            if unraisable:
                raise Broken(f"a callback raised {unraisable[0]}")
        runner.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        trace = traceback.format_exc(limit=-6)
        os.write(1, b"!" + json.dumps([repr(error), trace]).encode() + b"\n")
        return 1
    os.write(1, b"=" + json.dumps(runner.ends).encode() + b"\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run as the child: ``seed first count``, or the streams on standard input."""
    if arguments:
        seed, first, count = map(int, arguments)
        generator = Generator()
        return _work(generator.stream(seed, first + number) for number in range(count))
    return _work(Stream.from_json(line) for line in sys.stdin)


# -- the parent ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """What went wrong, and the streams that led there."""

    error: str
    detail: str
    streams: tuple[Stream, ...]

    def __str__(self) -> str:
        listed = "\n".join(stream.to_json() for stream in self.streams)
        return (
            f"{self.error}\n{self.detail}\nafter these streams (tools/fuzz replays them):\n{listed}"
        )


@dataclass(frozen=True)
class _Outcome:
    last: int  # the stream that was running
    error: str | None
    detail: str
    ends: dict[str, int]


def campaign(
    seed: int, first: int, count: int, ends: dict[str, int] | None = None
) -> Failure | None:
    """Run generated streams in a child; return the failure, with all that its domain had run."""
    outcome = _run_child([str(seed), str(first), str(count)], "")
    for name, times in outcome.ends.items():
        if ends is not None:
            ends[name] = ends.get(name, 0) + times
    if outcome.error is None:
        return None
    generator = Generator()
    begin = max(outcome.last, 0) // FRESH_EVERY * FRESH_EVERY
    streams = tuple(
        generator.stream(seed, first + number) for number in range(begin, outcome.last + 1)
    )
    return Failure(outcome.error, outcome.detail, streams)


def replay(streams: Sequence[Stream]) -> Failure | None:
    """Run these streams in a child."""
    outcome = _run_child([], "".join(stream.to_json() + "\n" for stream in streams))
    if outcome.error is None:
        return None
    return Failure(outcome.error, outcome.detail, tuple(streams[: outcome.last + 1]))


def minimise(failure: Failure) -> Failure:
    """Leave out streams, then pieces, then bytes that it does not take to fail in the same way."""
    best = replay(failure.streams) or failure
    for shorter in ([best.streams[-1:]], _without(best.streams)):
        for streams in shorter:
            again = _same(streams, best)
            if again is not None:
                best = again
                break
    best = _shrink(best, _without)
    best = _shrink(best, lambda streams: _in_last(streams, _fewer_pieces))
    return _shrink(best, lambda streams: _in_last(streams, _fewer_bytes))


def _shrink(
    best: Failure, shorter: Callable[[tuple[Stream, ...]], Iterator[tuple[Stream, ...]]]
) -> Failure:
    while True:
        for streams in shorter(best.streams):
            again = _same(streams, best)
            if again is not None:
                best = again
                break
        else:
            return best


def _same(streams: Sequence[Stream], failure: Failure) -> Failure | None:
    again = replay(streams) if streams else None
    return again if again is not None and again.error[:20] == failure.error[:20] else None


def _without(streams: tuple[Stream, ...]) -> Iterator[tuple[Stream, ...]]:
    size = len(streams) // 2
    while size:
        for at in range(0, len(streams) - size, size):
            yield streams[:at] + streams[at + size :]
        size //= 2


def _in_last(
    streams: tuple[Stream, ...], change: Callable[[Stream], Iterator[Stream]]
) -> Iterator[tuple[Stream, ...]]:
    for shorter in change(streams[-1]):
        yield (*streams[:-1], shorter)


def _fewer_pieces(stream: Stream) -> Iterator[Stream]:
    for at in range(len(stream.pieces)):
        yield replace(stream, pieces=stream.pieces[:at] + stream.pieces[at + 1 :])


def _fewer_bytes(stream: Stream) -> Iterator[Stream]:
    code = stream.code
    for at in range(len(code)):
        yield replace(stream, pieces=(code[:at] + code[at + 1 :],))
    if any(stream.registers):
        yield replace(stream, registers=(0,) * len(stream.registers))
    for at, value in enumerate(stream.registers):
        if value:
            fewer = (*stream.registers[:at], 0, *stream.registers[at + 1 :])
            yield replace(stream, registers=fewer)


def _run_child(arguments: list[str], text: str) -> _Outcome:
    root = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.instruction_fuzz", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(text.encode())
        child.stdin.close()
        said = b""
        hung = False
        while True:
            if not select.select([child.stdout], [], [], HANG_S)[0]:
                hung = True
                child.kill()
            piece = os.read(child.stdout.fileno(), 1 << 16)
            if not piece:
                break
            said = said[-(1 << 16) :] + piece
        complaints = child.stderr.read().decode(errors="replace").strip()
    last = -1
    for line in said.splitlines():
        if line.startswith(b"!"):
            error, trace = json.loads(line[1:])
            return _Outcome(last, error, trace, {})
        if line.startswith(b"="):
            ends = json.loads(line[1:])
            return _Outcome(last, "it complained" if complaints else None, complaints, ends)
        if line.isdigit():
            last = int(line)
    how = "it hung" if hung else f"it died with status {child.returncode}"
    return _Outcome(last, how, complaints, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
