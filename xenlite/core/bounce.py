# SPDX-License-Identifier: GPL-2.0-or-later
"""Enter the guest's kernel for a trap, and return from it.

A bounce frame lies on the kernel's stack: below the current one when the kernel itself was
interrupted, at ``kernel_ss:kernel_sp`` when an outer ring was::

    esp -> [faulting address]   xenlite's addition, only if asked for (vector 14)
           [error code]         of the vectors that have one; ds, es, fs, gs of the failsafe
           eip
           cs                   bits 16-23: the mask byte before the trap
           eflags               IF says "that byte was 0"; IOPL is the virtual one
           [esp, ss]            only from an outer ring

The frame of the iret hypercall is the same after its first word, EAX, and without the others.

The whole frame must be writable with the kernel's rights, and below the hole, before its first
byte is written. A frame that can't be built ends the domain: there is no way left to tell it.
Nothing of a trap is done twice, and nothing half: what follows the frame cannot fail.

This is the hottest path of the hypervisor. An access to the engine's state costs 28 ns, so what
lies together is read and written together, and selectors are loaded from a cache.
Source: public/arch-x86/xen-x86_32.h, xen.h (trap_info); Intel SDM 3A, 6.12.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    SAVED_UPCALL_MASK_SHIFT,
    SELECTOR_RPL,
    VCPU_INFO_ARCH_CR2,
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_xenlite_fault_address,
)
from xenlite.core.descriptors import BadSelector
from xenlite.core.hole import HOLE_START
from xenlite.errors import DomainCrash, Refused
from xenlite.machine.memory import PAGE_SIZE
from xenlite.machine.trap import (
    CR2,
    CS_SELECTOR,
    DS,
    DS_SELECTOR,
    EAX,
    EFLAGS,
    EFLAGS_AC,
    EFLAGS_ARITHMETIC,
    EFLAGS_DF,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_NT,
    EFLAGS_RF,
    EFLAGS_TF,
    EFLAGS_VM,
    EIP,
    ES,
    ES_SELECTOR,
    ESP,
    FS,
    FS_SELECTOR,
    GS,
    GS_SELECTOR,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_SS32,
    HFLAGS,
    SEG0,
    SEGMENT_BASE,
    SEGMENT_FLAGS,
    SEGMENT_WORDS,
    SS_SELECTOR,
)
from xenlite.machine.x86_32p import (
    PF_PRESENT,
    PF_USER,
    PF_WRITE,
    PTE_A,
    PTE_ADDRESS,
    PTE_D,
    PTE_P,
    PTE_RW,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_OF,
    VECTOR_PF,
)

if TYPE_CHECKING:
    from xenlite.core.descriptors import Segments
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Callback, TrapGate, Vcpu

_WORD: Final = 0xFFFFFFFF
_OFFSET: Final = PAGE_SIZE - 1
_KERNEL_CPL: Final = 1
_OUTER_RING: Final = 2  # this bit of the privilege level: rings 2 and 3
_INT_SIZE: Final = 2
_FROM_IDT: Final = 2  # in an error code
_FREE_FOR_ALL: Final = (VECTOR_BP, VECTOR_OF)
_FAULT_ADDRESS: Final = 1 << VMASST_TYPE_xenlite_fault_address
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl
_READABLE: Final = PTE_P | PTE_A
_WRITABLE: Final = PTE_P | PTE_RW | PTE_A | PTE_D
_NOT_TABLE_READ: Final = PF_PRESENT | PF_USER
_DR6_SINGLE_STEP: Final = 1 << 14

_NOT_PUSHED: Final = EFLAGS_IF | EFLAGS_IOPL
_CLEARED_ON_ENTRY: Final = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM
_ID: Final = 1 << 21
_RESTORED: Final = (
    EFLAGS_ARITHMETIC | EFLAGS_DF | EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_AC | _ID
)

_CS_AND_SS: Final = slice(4 * CS_SELECTOR, 4 * (SS_SELECTOR + SEGMENT_WORDS))
_NOT_SEGMENTS: Final = _WORD & ~(HF_CPL | HF_CS32 | HF_SS32)
_DATA_SELECTORS: Final = (ES_SELECTOR, DS_SELECTOR, FS_SELECTOR, GS_SELECTOR)
_FAILSAFE_ORDER: Final = (DS, ES, FS, GS)
_DPL_SHIFT: Final = 13
_DPL: Final = 3 << _DPL_SHIFT
_PRESENT: Final = 1 << 15
_CONFORMING_CODE: Final = 0xC << 8

_LONGEST_FRAME: Final = 9  # words: four selectors, three, esp and ss
_PUSH: Final = [Struct(f"<{words}I").pack_into for words in range(_LONGEST_FRAME + 1)]
_PACK: Final = [Struct(f"<{words}I").pack for words in range(_LONGEST_FRAME + 1)]
_INNER_IRET_SIZE: Final = 16
_OUTER_IRET_SIZE: Final = 24
_INNER_IRET: Final = Struct("<4I").unpack_from
_OUTER_IRET: Final = Struct("<6I").unpack_from
_VM86_FRAME_SIZE: Final = 40  # eax, eip, cs, eflags, esp, ss, es, ds, fs, gs


class Bounce:
    """The ways into the kernel of one domain, and the way back by hypercall."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._descriptors = domain.descriptors
        self._engine = domain.engine
        self._regs = domain.engine.regs
        self._regs8 = domain.engine.regs8
        self._read_eflags = domain.engine.read_eflags
        self._write_eflags = domain.engine.write_eflags
        self._slot_of = domain.paging.slot_of
        self._write_slot_of = domain.paging.write_slot_of
        self._memory = domain.machine.memory
        self._code = self._memory.code
        self._m8 = self._memory.m8
        self._m32 = self._memory.m32
        self._m64 = self._memory.m64

    # -- what enters the kernel ---------------------------------------------------------------

    def fault(self, vector: int, error_code: int | None) -> None:
        """Deliver a fault or trap of the processor, EIP where the engine put it.

        Of a page fault the address is in CR2. Raises DomainCrash.
        """
        vcpu = self._domain.current
        gate = vcpu.traps[vector]
        prefix: tuple[int, ...] = () if error_code is None else (error_code,)
        if vector == VECTOR_PF:
            assert error_code is not None
            address = self._regs[CR2]
            if address >= HOLE_START and not error_code & _NOT_TABLE_READ:
                reported = self._descriptors.fix_fault(address)
                if reported is None:
                    return
                address = reported
            cr2 = vcpu.info_maddr + VCPU_INFO_ARCH_CR2
            self._m32[cr2 >> 2] = address
            if self._code[cr2 >> 12]:
                self._memory.wrote(cr2 >> 12)
            if gate is not None and gate.pushes_address and self._domain.assists & _FAULT_ADDRESS:
                prefix = (address, error_code)
        elif vector == VECTOR_DB:
            vcpu.debug_registers[6] |= _DR6_SINGLE_STEP
        if gate is None:
            raise DomainCrash("traps.no-handler", f"vector {vector}")
        self._enter(vcpu, gate, prefix)

    def page_fault_again(self) -> None:
        """Deliver the page fault of a kernel's store that was tried out and refused."""
        self.fault(VECTOR_PF, PF_PRESENT | PF_WRITE)

    def software_interrupt(self, vector: int) -> None:
        """Deliver an ``int n`` of the guest, EIP behind it; raises DomainCrash.

        A gate that the ring may not use gives #GP at the instruction. The kernel may use every
        gate, as Xen has it; breakpoint and overflow are free for all.
        """
        vcpu = self._domain.current
        gate = vcpu.traps[vector]
        if gate is not None and gate.dpl == 3:
            self._enter(vcpu, gate, ())
            return
        cpl = self._regs[HFLAGS] & HF_CPL
        if cpl == _KERNEL_CPL and not self._domain.assists & _ARCHITECTURAL_IOPL:
            cpl = 0
        if vector not in _FREE_FOR_ALL and cpl > (0 if gate is None else gate.dpl):
            self._regs[EIP] = (self._regs[EIP] - _INT_SIZE) & _WORD
            self.fault(VECTOR_GP, vector << 3 | _FROM_IDT)
            return
        if gate is None:
            raise DomainCrash("traps.no-handler", f"int {vector:#x}")
        self._enter(vcpu, gate, ())

    def upcall(self) -> None:
        """Enter the event callback, with the mask set; raises DomainCrash."""
        vcpu = self._domain.current
        if vcpu.event_callback is None:
            raise DomainCrash("traps.no-handler", "an event is pending, and there is no callback")
        self._enter(vcpu, vcpu.event_callback, ())

    def reload_selectors(self) -> None:
        """Load the data selectors again after a descriptor table has changed.

        One that is no longer good enters the failsafe callback with all of them on the stack
        (ds, es, fs, gs below the usual frame) and null in the registers. Raises DomainCrash.
        """
        vcpu = self._domain.current
        if not vcpu.selectors_stale:
            return
        vcpu.selectors_stale = False
        regs = self._regs
        cpl = regs[HFLAGS] & HF_CPL
        selectors = tuple(regs[SEG0 + SEGMENT_WORDS * index] & 0xFFFF for index in _FAILSAFE_ORDER)
        try:
            loads = [self._descriptors.data_segment(vcpu, one, cpl) for one in selectors]
        except BadSelector as bad:
            if vcpu.failsafe_callback is None:
                raise DomainCrash(
                    "traps.no-handler", f"selector {bad.error_code:#x} is no longer good"
                ) from bad
            for index in _FAILSAFE_ORDER:
                self._engine.set_segment(index, 0, 0, 0, 0)
            self._enter(vcpu, vcpu.failsafe_callback, selectors)
            return
        for index, (selector, _, base, _, limit, flags) in zip(_FAILSAFE_ORDER, loads, strict=True):
            self._engine.set_segment(index, selector, base, limit, flags)

    # -- the frame ----------------------------------------------------------------------------

    def _enter(self, vcpu: Vcpu, handler: TrapGate | Callback, prefix: tuple[int, ...]) -> None:
        """Build the frame, ``prefix`` at its lower end, then continue at ``handler``."""
        regs = self._regs
        eflags = self._read_eflags()
        hflags = regs[HFLAGS]
        esp = regs[ESP]
        cs = regs[CS_SELECTOR]
        mask_at = vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_MASK
        mask = self._m8[mask_at]
        pushed = eflags & ~_NOT_PUSHED | vcpu.iopl
        if not mask:
            pushed |= EFLAGS_IF
        segments = None
        base = 0
        if hflags & _OUTER_RING:
            ss = vcpu.kernel_ss
            frame = (
                *prefix,
                regs[EIP],
                cs | mask << SAVED_UPCALL_MASK_SHIFT,
                pushed,
                esp,
                regs[SS_SELECTOR],
            )
            esp = vcpu.kernel_sp
            segments = vcpu.segments.get(handler.cs << 16 | ss)
            if segments is None:
                segments = self._load(vcpu, handler.cs, ss)
            base = segments.ss_base
        else:
            frame = (*prefix, regs[EIP], cs | mask << SAVED_UPCALL_MASK_SHIFT, pushed)
            if hflags & HF_ADDSEG:
                base = regs[SS_SELECTOR + SEGMENT_BASE]
            if handler.cs != cs:
                ss = regs[SS_SELECTOR]
                segments = vcpu.segments.get(handler.cs << 16 | ss)
                if segments is None:
                    segments = self._load(vcpu, handler.cs, ss)
                base = segments.ss_base
        words = len(frame)
        esp = (esp - 4 * words) & _WORD
        bottom = (esp + base) & _WORD
        slot = self._write_slot_of(bottom)
        entry = 0 if slot is None else self._m64[slot]
        if (
            entry & _WRITABLE == _WRITABLE
            and bottom & _OFFSET <= PAGE_SIZE - 4 * words
            and bottom < HOLE_START
        ):
            maddr = (entry & PTE_ADDRESS) | bottom & _OFFSET
            _PUSH[words](self._m8, maddr, *frame)
            if self._code[maddr >> 12]:
                self._memory.wrote(maddr >> 12)
        else:
            self._push_slowly(bottom, _PACK[words](*frame))

        if handler.masks_events and not mask & 1:
            self._m8[mask_at] = mask | 1
            if self._code[mask_at >> 12]:
                self._memory.wrote(mask_at >> 12)
        regs[EIP] = handler.address
        regs[ESP] = esp
        if eflags & _CLEARED_ON_ENTRY:
            regs[EFLAGS] &= ~_CLEARED_ON_ENTRY & _WORD
            if eflags & EFLAGS_VM:
                self._drop_vm86_selectors()
        if segments is not None:
            self._regs8[_CS_AND_SS] = segments.state
            regs[HFLAGS] = hflags & _NOT_SEGMENTS | segments.hflags
            if hflags & HF_ADDSEG and not segments.hflags & HF_ADDSEG:
                self._derive_addseg()

    def _push_slowly(self, bottom: int, frame: bytes) -> None:
        """Write a frame that crosses a page, or whose page lacks a bit; or crash."""
        try:
            self._guest_memory.write(bottom, frame)
        except Refused as refused:
            raise DomainCrash(
                "traps.no-frame", f"{len(frame)} bytes can't be written at {bottom:#x}"
            ) from refused

    def _load(self, vcpu: Vcpu, cs: int, ss: int) -> Segments:
        try:
            return self._descriptors.segments(vcpu, cs, ss)
        except BadSelector as bad:
            raise DomainCrash(
                "traps.no-frame", f"cs {cs:#x} with ss {ss:#x} can't be loaded"
            ) from bad

    def _derive_addseg(self) -> None:
        """Drop ADDSEG again where no base needs it, as the processor does at each load."""
        regs = self._regs
        if not (
            regs[DS_SELECTOR + SEGMENT_BASE]
            | regs[ES_SELECTOR + SEGMENT_BASE]
            | regs[SS_SELECTOR + SEGMENT_BASE]
        ):
            regs[HFLAGS] &= ~HF_ADDSEG & _WORD

    def _drop_vm86_selectors(self) -> None:
        """Null what virtual-8086 mode left in the data selectors, as a trap from there does.

        Hardware never enters that mode from an outer ring; the engine does (ENGINES 6).
        """
        for index in _FAILSAFE_ORDER:
            self._engine.set_segment(index, 0, 0, 0, 0)

    # -- the way back -------------------------------------------------------------------------

    def iret(self, _1: int = 0, _2: int = 0, _3: int = 0, _4: int = 0, _5: int = 0) -> None:
        """Return through the frame at ESP: eax, eip, cs, eflags, and to outer rings esp, ss.

        The new mask is the opposite of IF. A selector that can't be loaded gives the guest the
        fault that it would get from its own iret at the target; ring 0 or an unreadable frame
        raises DomainCrash, with nothing changed.
        """
        vcpu = self._domain.current
        regs = self._regs
        hflags = regs[HFLAGS]
        esp = regs[ESP]
        top = esp
        if hflags & HF_ADDSEG:
            top = (esp + regs[SS_SELECTOR + SEGMENT_BASE]) & _WORD
        slot = self._slot_of(top)
        entry = 0 if slot is None else self._m64[slot]
        if (
            entry & _READABLE == _READABLE
            and top & _OFFSET <= PAGE_SIZE - _OUTER_IRET_SIZE
            and top < HOLE_START
        ):
            eax, eip, cs, eflags, new_esp, ss = _OUTER_IRET(
                self._m8, (entry & PTE_ADDRESS) | top & _OFFSET
            )
        else:
            eax, eip, cs, eflags, new_esp, ss = self._read_iret_frame(top)
        cs &= 0xFFFF
        ring = cs & SELECTOR_RPL
        if eflags & EFLAGS_VM:
            self._refuse_vm86(vcpu, top)
            return
        if ring == _KERNEL_CPL:
            new_esp = (esp + _INNER_IRET_SIZE) & _WORD
            ss = regs[SS_SELECTOR]
        elif not ring:
            raise DomainCrash("traps.iret-to-ring-0", f"cs {cs:#x}")
        ss &= 0xFFFF
        segments = None
        if ring != _KERNEL_CPL or cs != regs[CS_SELECTOR]:
            segments = vcpu.segments.get(cs << 16 | ss)
            if segments is None:
                try:
                    segments = self._descriptors.segments(vcpu, cs, ss)
                except BadSelector as bad:
                    self._set_flags(vcpu, eflags)
                    regs[EAX] = eax
                    self._fault_at_target(vcpu, bad, cs, eip, ss, new_esp)
                    return
        regs[EAX] = eax
        regs[EIP] = eip
        regs[ESP] = new_esp
        self._set_flags(vcpu, eflags)
        if segments is not None:
            self._regs8[_CS_AND_SS] = segments.state
            regs[HFLAGS] = hflags & _NOT_SEGMENTS | segments.hflags
            if hflags & HF_ADDSEG and not segments.hflags & HF_ADDSEG:
                self._derive_addseg()
            if ring != _KERNEL_CPL:
                self._null_inner_selectors(ring)

    def _set_flags(self, vcpu: Vcpu, eflags: int) -> None:
        mask_at = vcpu.info_maddr + VCPU_INFO_EVTCHN_UPCALL_MASK
        self._m8[mask_at] = 0 if eflags & EFLAGS_IF else 1
        if self._code[mask_at >> 12]:
            self._memory.wrote(mask_at >> 12)
        if self._domain.assists & _ARCHITECTURAL_IOPL:
            vcpu.iopl = eflags & EFLAGS_IOPL
        self._write_eflags(eflags & _RESTORED | EFLAGS_IF)

    def _read_iret_frame(self, top: int) -> tuple[int, ...]:
        """Read a frame that lies across pages, or in one that was never read."""
        try:
            inner = _INNER_IRET(self._guest_memory.read(top, _INNER_IRET_SIZE))
            if inner[2] & SELECTOR_RPL <= _KERNEL_CPL:
                return (*inner, 0, 0)
            return _OUTER_IRET(self._guest_memory.read(top, _OUTER_IRET_SIZE))
        except Refused as refused:
            raise DomainCrash("traps.iret-frame", f"{top:#x} can't be read") from refused

    def _null_inner_selectors(self, ring: int) -> None:
        """Null the data selectors that the outer ring may not keep, as iret does."""
        regs = self._regs
        for selector in _DATA_SELECTORS:
            flags = regs[selector + SEGMENT_FLAGS]
            if flags & _DPL != _DPL and flags >> _DPL_SHIFT & 3 < ring and regs[selector]:
                if flags & _CONFORMING_CODE == _CONFORMING_CODE:
                    continue
                regs[selector] = 0
                regs[selector + SEGMENT_FLAGS] = flags & ~_PRESENT & _WORD

    def _fault_at_target(
        self, vcpu: Vcpu, bad: BadSelector, cs: int, eip: int, ss: int, esp: int
    ) -> None:
        """Deliver the fault of a selector with the state that could not be returned to."""
        regs = self._regs
        gate = vcpu.traps[bad.vector]
        if gate is not None and gate.cs == cs:
            raise DomainCrash("traps.no-frame", f"cs {cs:#x} can't be loaded") from bad
        regs[EIP] = eip
        regs[ESP] = esp
        regs[CS_SELECTOR] = cs
        regs[SS_SELECTOR] = ss
        regs[HFLAGS] = regs[HFLAGS] & ~HF_CPL | cs & SELECTOR_RPL
        self.fault(bad.vector, bad.error_code)

    def _refuse_vm86(self, vcpu: Vcpu, top: int) -> None:
        """Answer a return to virtual-8086 mode as Xen does: #GP on its first instruction.

        The frame moves to the kernel's stack, with 0 for EAX's word as the error code.
        """
        gate = vcpu.traps[VECTOR_GP]
        if gate is None:
            raise DomainCrash("traps.no-handler", f"vector {VECTOR_GP}")
        segments = self._load(vcpu, gate.cs, vcpu.kernel_ss)
        esp = (vcpu.kernel_sp - _VM86_FRAME_SIZE) & _WORD
        try:
            frame = self._guest_memory.read(top, _VM86_FRAME_SIZE)
        except Refused as refused:
            raise DomainCrash("traps.iret-frame", f"{top:#x} can't be read") from refused
        self._push_slowly((esp + segments.ss_base) & _WORD, bytes(4) + frame[4:])
        regs = self._regs
        eflags = int.from_bytes(frame[12:16], "little")
        if gate.masks_events:
            eflags &= ~EFLAGS_IF
        self._set_flags(vcpu, eflags & ~_CLEARED_ON_ENTRY)
        regs[EAX] = int.from_bytes(frame[:4], "little")
        regs[EIP] = gate.address
        regs[ESP] = esp
        self._regs8[_CS_AND_SS] = segments.state
        regs[HFLAGS] = regs[HFLAGS] & _NOT_SEGMENTS | segments.hflags
        self._derive_addseg()
