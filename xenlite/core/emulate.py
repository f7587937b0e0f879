# SPDX-License-Identifier: GPL-2.0-or-later
"""Do for a guest's kernel what its ring may not: the privileged instructions that Xen emulates.

=====================  ==========================================================================
mov from CR0, 2, 3, 4  the virtual registers; CR3 as ``mfn << 12 | mfn >> 20``
mov to CR0, clts       only TS may change
mov to CR2, CR3        ``arch.cr2``; CR3 as NEW_BASEPTR
mov to CR4             TSD and DE are kept, and have no effect
mov DR                 kept per vCPU, checked, and without effect (core/debug_registers.py)
rdmsr, wrmsr           a few model-specific registers whose values mean nothing here
cli, sti               nothing, as in Xen: the virtual interrupt flag is the mask byte; from any
                       ring that the virtual IOPL allows
in, out                nothing is behind any port: reads give ones; likewise, or by the I/O bitmap
wbinvd                 nothing
ud2 "xen" cpuid        CPUID, in every ring
=====================  ==========================================================================

Everything else (hlt, lgdt, invlpg, lmsw, string I/O, ...) stays the fault that it was. The guest's
bytes are fetched with its rights, each page only if it is there, and never twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    VCPU_INFO_ARCH_CR2,
    VMASST_TYPE_architectural_iopl,
)
from xenlite.core import debug_registers
from xenlite.core.paging import LEAST_WORK, Preempted
from xenlite.errors import Refused
from xenlite.machine.cpuid import cpuid
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import (
    CR0,
    CR0_TS,
    CR4,
    CS_SELECTOR,
    EAX,
    EBX,
    ECX,
    EDX,
    EFLAGS,
    EFLAGS_RF,
    EIP,
    ERROR_CODE,
    HF_CPL,
    HF_CS32,
    HFLAGS,
    SEGMENT_BASE,
    IoDirection,
)

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_WORD: Final = 0xFFFFFFFF
_KERNEL_CPL: Final = 1
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl
_IOPL_SHIFT: Final = 12
_LONGEST: Final = 15  # bytes of an instruction
# Operand and address size, segments, repeats. Not lock, which none of these instructions takes.
_PREFIXES: Final = b"\x66\x67\x2e\x36\x3e\x26\x64\x65\xf2\xf3"
_CLI, _STI, _ESCAPE = 0xFA, 0xFB, 0x0F
_CLTS, _WBINVD, _MOV_FROM_CR, _MOV_FROM_DR, _MOV_TO_CR, _MOV_TO_DR = 6, 9, 0x20, 0x21, 0x22, 0x23
_WRMSR, _RDMSR = 0x30, 0x32
_INS_OUTS: Final = range(0x6C, 0x70)
_FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"

_CR4_GUEST: Final = 1 << 2 | 1 << 3  # TSD, DE
_MSR_EFER: Final = 0xC0000080
_EFER_NXE: Final = 1 << 11
# Reads as given; writing the same value is ignored. Microcode is asked for by writing 0 first.
_MSRS: Final = {
    0x17: 0,  # platform id
    0x8B: 0,  # microcode revision
    0x1A0: 0,  # miscellaneous features
    _MSR_EFER: _EFER_NXE,
}


class Emulator:
    """The emulation of one domain, for its current vCPU."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._engine = domain.engine
        self._regs = domain.engine.regs
        self._memory = domain.machine.memory
        self._m32 = self._memory.m32

    def privileged(self) -> bool:
        """Emulate the instruction at EIP that gave #GP; False where it stays the guest's."""
        regs = self._regs
        if regs[ERROR_CODE] or not regs[HFLAGS] & HF_CS32:
            return False
        code = self._fetch(_LONGEST)
        length = 0
        while length < len(code) and code[length] in _PREFIXES:
            length += 1
        opcode = code[length : length + 1]
        if opcode and opcode[0] in (_CLI, _STI):
            if not self._may_do_io():
                return False
            self._finish(length + 1)
            return True
        if regs[HFLAGS] & HF_CPL != _KERNEL_CPL:
            return False
        if opcode != bytes((_ESCAPE,)) or len(code) < length + 2:
            return False
        try:
            return self._two_bytes(code, length + 1)
        except Preempted:
            self._engine.stop()  # EIP still points at the instruction: it goes on after the drain
            return True

    def forced(self) -> bool:
        """Emulate the instruction behind ``ud2 "xen"`` at EIP; False for any other #UD."""
        regs = self._regs
        if self._fetch(len(_FORCED_CPUID)) != _FORCED_CPUID:
            return False
        regs[EAX], regs[EBX], regs[ECX], regs[EDX] = cpuid(regs[EAX], regs[ECX])
        self._finish(len(_FORCED_CPUID))
        return True

    def port_access(self, port: int, size: int, direction: IoDirection, next_eip: int) -> bool:
        """Do an IN or OUT of ``size`` bytes at EIP; False where it is a fault of the guest's."""
        if not self._may_do_io() and not self._is_open(port, size):
            return False
        if self._is_string_io():
            return False
        regs = self._regs
        if direction is IoDirection.IN:
            regs[EAX] |= (1 << 8 * size) - 1
        regs[EIP] = next_eip
        return True

    # -- instructions -------------------------------------------------------------------------

    def _two_bytes(self, code: bytes, at: int) -> bool:
        """Emulate 0F xx; ``at`` is where the second byte stands."""
        opcode = code[at]
        if opcode == _CLTS:
            self._engine.set_task_switched(False)
        elif opcode == _WBINVD:
            pass
        elif opcode in (_RDMSR, _WRMSR):
            if not self._model_specific(writing=opcode == _WRMSR):
                return False
        elif _MOV_FROM_CR <= opcode <= _MOV_TO_DR and len(code) > at + 1:
            at += 1
            number, register = code[at] >> 3 & 7, 2 * (code[at] & 7)
            if opcode in (_MOV_FROM_CR, _MOV_FROM_DR):
                read = self._read_cr if opcode == _MOV_FROM_CR else self._read_dr
                value = read(number)
                if value is None:
                    return False
                self._regs[register] = value
            else:
                write = self._write_cr if opcode == _MOV_TO_CR else self._write_dr
                if not write(number, self._regs[register]):
                    return False
        else:
            return False
        self._finish(at + 1)
        return True

    def _read_cr(self, number: int) -> int | None:
        vcpu = self._domain.current
        if number == 0:
            return int(self._regs[CR0])
        if number == 2:
            return int(self._m32[(vcpu.info_maddr + VCPU_INFO_ARCH_CR2) >> 2])
        if number == 3:
            assert vcpu.cr3_mfn is not None
            return (vcpu.cr3_mfn << PAGE_SHIFT | vcpu.cr3_mfn >> 20) & _WORD
        if number == 4:
            return int(self._regs[CR4]) | vcpu.ctrl_cr4
        return None

    def _write_cr(self, number: int, value: int) -> bool:
        vcpu = self._domain.current
        if number == 0:
            if (value ^ self._regs[CR0]) & ~CR0_TS:
                return False
            self._engine.set_task_switched(bool(value & CR0_TS))
        elif number == 2:
            self._memory.write(vcpu.info_maddr + VCPU_INFO_ARCH_CR2, value.to_bytes(4, "little"))
        elif number == 3:
            return self._load_cr3(value >> PAGE_SHIFT | (value & (PAGE_SIZE - 1)) << 20)
        elif number == 4:
            vcpu.ctrl_cr4 = value & _CR4_GUEST
        else:
            return False
        return True

    def _load_cr3(self, mfn: int) -> bool:
        paging = self._domain.paging
        if paging.work_left < LEAST_WORK:
            paging.begin_work()
        try:
            paging.new_baseptr(mfn)
        except Refused:
            return False
        finally:
            if not paging.drain():
                self._engine.stop()
        return True

    def _read_dr(self, number: int) -> int | None:
        try:
            return debug_registers.read(self._domain.current, number)
        except Refused:
            return None

    def _write_dr(self, number: int, value: int) -> bool:
        try:
            debug_registers.write(self._domain.current, number, value)
        except Refused:
            return False
        return True

    def _model_specific(self, *, writing: bool) -> bool:
        regs = self._regs
        value = _MSRS.get(regs[ECX])
        if value is None:
            return False
        if writing:
            return bool(regs[EDX] << 32 | regs[EAX] == value)
        regs[EAX], regs[EDX] = value & _WORD, value >> 32
        return True

    # -- common -------------------------------------------------------------------------------

    def _finish(self, length: int) -> None:
        regs = self._regs
        regs[EIP] = (regs[EIP] + length) & _WORD
        regs[EFLAGS] &= ~EFLAGS_RF & _WORD

    def _may_do_io(self) -> bool:
        """Compare the ring with the virtual IOPL; the kernel counts as ring 0, as Xen has it."""
        domain = self._domain
        ring = self._regs[HFLAGS] & HF_CPL
        if ring == _KERNEL_CPL and not domain.assists & _ARCHITECTURAL_IOPL:
            ring = 0
        return ring <= domain.current.io_privilege >> _IOPL_SHIFT

    def _is_open(self, port: int, size: int) -> bool:
        """Look up ``size`` ports in the guest's bitmap; what can't be read there is closed."""
        vcpu = self._domain.current
        if port + size >= vcpu.io_ports:
            return False
        try:
            closed = self._guest_memory.read(vcpu.io_bitmap + (port >> 3), 2)
        except Refused:
            return False
        return not int.from_bytes(closed, "little") >> (port & 7) & (1 << size) - 1

    def _is_string_io(self) -> bool:
        code = self._fetch(_LONGEST).lstrip(_PREFIXES)
        return not code or code[0] in _INS_OUTS

    def _fetch(self, size: int) -> bytes:
        """Copy up to ``size`` bytes at EIP, as far as the guest has them."""
        regs = self._regs
        start = (regs[EIP] + regs[CS_SELECTOR + SEGMENT_BASE]) & _WORD
        here = PAGE_SIZE - (start & (PAGE_SIZE - 1))
        code = b""
        for at, length in ((start, min(size, here)), (start + here, size - here)):
            if length <= 0:
                break
            try:
                code += self._guest_memory.read(at, length)
            except Refused:
                break
        return code
