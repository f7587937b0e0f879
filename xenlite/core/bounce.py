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
from typing import TYPE_CHECKING, Final, TypeAlias

from xenlite.abi.x86_32p import (
    FLAT_RING3_SS,
    SAVED_UPCALL_MASK_SHIFT,
    SELECTOR_RPL,
    VCPU_INFO_ARCH_CR2,
    HYPERVISOR_iret,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_xenlite_fault_address,
)
from xenlite.core.descriptors import BadSelector, Segments
from xenlite.core.hole import HOLE_START
from xenlite.errors import DomainCrash, Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import (
    CC_OP,
    CC_OP_EFLAGS,
    CC_SRC,
    CR2,
    CS_SELECTOR,
    DF,
    DS,
    DS_SELECTOR,
    EAX,
    EFLAGS,
    EFLAGS_AC,
    EFLAGS_ARITHMETIC,
    EFLAGS_DF,
    EFLAGS_FIXED,
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
    REGISTERS_SET,
    SEG0,
    SEGMENT_BASE,
    SEGMENT_FLAGS,
    SEGMENT_WORDS,
    SS_SELECTOR,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_DE,
    VECTOR_GP,
    VECTOR_OF,
    VECTOR_PF,
)
from xenlite.machine.ways import UPCALL, Way, WayKind
from xenlite.machine.x86_32p import (
    INDEX_MASK,
    L2_SHIFT,
    PF_PRESENT,
    PF_USER,
    PF_WRITE,
    PTE_ADDRESS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Callback, TrapGate, Vcpu

Enter: TypeAlias = "Callable[[Vcpu, int, int, bool, tuple[int, ...]], None]"
Iret: TypeAlias = "Callable[[int, int, int, int, int], int]"
Place: TypeAlias = tuple[int, int, int, int, int]
"""Region and index of an address, its page-table entry, machine address, and frame."""

_WORD: Final = 0xFFFFFFFF
_OFFSET: Final = PAGE_SIZE - 1
_KERNEL_CPL: Final = 1
OUTERMOST: Final = 3
_OUTER_RING: Final = 2  # this bit of the privilege level: rings 2 and 3
_INT_SIZE: Final = 2
_FROM_IDT: Final = 2  # in an error code
_FREE_FOR_ALL: Final = (VECTOR_BP, VECTOR_OF)
_FAULT_ADDRESS: Final = 1 << VMASST_TYPE_xenlite_fault_address
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl
_NOT_TABLE_READ: Final = PF_PRESENT | PF_USER
_DR6_SINGLE_STEP: Final = 1 << 14

_IF: Final = EFLAGS_IF
_PUSHED: Final = 0x3FFFFF & ~(EFLAGS_IF | EFLAGS_IOPL)
_CLEARED_ON_ENTRY: Final = EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM
_ID: Final = 1 << 21
_RESTORED: Final = (
    EFLAGS_ARITHMETIC | EFLAGS_DF | EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_AC | _ID
)
# What the short way back leaves to the long one, and how the engine splits the rest.
_SLOW_TO_RESTORE: Final = EFLAGS_DF | EFLAGS_VM | EFLAGS_IOPL
_KEPT_IN_WORD: Final = _RESTORED & ~(EFLAGS_ARITHMETIC | EFLAGS_DF)
_ALWAYS_SET: Final = EFLAGS_IF | EFLAGS_FIXED

_CS_AND_SS: Final = slice(4 * CS_SELECTOR, 4 * (SS_SELECTOR + SEGMENT_WORDS))
_NOT_SEGMENTS: Final = _WORD & ~(HF_CPL | HF_CS32 | HF_SS32)
_DATA_SELECTORS: Final = (DS_SELECTOR, ES_SELECTOR, FS_SELECTOR, GS_SELECTOR)
_FAILSAFE_ORDER: Final = (DS, ES, FS, GS)
_DPL_SHIFT: Final = 13
_PRESENT: Final = 1 << 15
_CONFORMING_CODE: Final = 0xC << 8

_LONGEST_FRAME: Final = 10  # words: of virtual-8086 mode
_MOST_PLACES: Final = 256  # remembered of each kind
_PUSH: Final = [Struct(f"<{words}I").pack_into for words in range(_LONGEST_FRAME + 1)]
_PACK: Final = [Struct(f"<{words}I").pack for words in range(_LONGEST_FRAME + 1)]
_ENTRY_SIZE: Final = 8
_INNER_FRAME_WORDS: Final = 3
_OUTER_FRAME_WORDS: Final = 5

# Traps that the stub may repeat. The rest of the faults may be ours to emulate, or change more.
_SOFTWARE: Final = int(WayKind.SOFTWARE)
_SAME_RING: Final = int(WayKind.SAME_RING)
_MASKS_EVENTS: Final = int(WayKind.MASKS_EVENTS)
_REPEATABLE: Final = {VECTOR_DE: 0, VECTOR_PF: int(WayKind.PAGE_FAULT)}
_NO_SEGMENTS: Final = Segments(b"", 0, 0)  # none are loaded
_KIND_OF_PREFIX: Final = (
    0, int(WayKind.ERROR_CODE), int(WayKind.ERROR_CODE | WayKind.ADDRESS)
)  # fmt: skip

_INNER_IRET_SIZE: Final = 16
_OUTER_IRET_SIZE: Final = 24
# Only the selectors count: above CS lies the mask byte, and whatever was pushed above SS.
_INNER_IRET: Final = Struct("<2IH2xI").unpack_from
_OUTER_IRET: Final = Struct("<2IH2x2IH2x").unpack_from
_VM86_FRAME: Final = Struct("<10I")  # eax, eip, cs, eflags, esp, ss, es, ds, fs, gs


class Bounce:
    """The ways into the kernel of one domain, and the way back by hypercall."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._paging = domain.paging
        self._guest_memory = domain.guest_memory
        self._descriptors = domain.descriptors
        self._engine = domain.engine
        self._regs = domain.engine.regs
        self._regs8 = domain.engine.regs8
        self._read_eflags = domain.engine.read_eflags
        self._write_eflags = domain.engine.write_eflags
        self._memory = domain.machine.memory
        self._code = self._memory.code
        self._m8 = self._memory.m8
        self._m32 = self._memory.m32
        self._m64 = self._memory.m64
        # Where frames were written and read before, by length in words and by address.
        self._places: list[dict[int, Place]] = [{} for _ in range(_LONGEST_FRAME + 1)]
        self._iret_places: dict[int, Place] = {}
        self._enter = self._make_enter()
        self.iret = self._make_iret()
        self.upcall = self._upcall  # an attribute, so that a recorder can stand before it

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
        kind = _REPEATABLE.get(vector)
        if kind is None:
            self._enter(vcpu, gate.cs, gate.address, gate.masks_events, prefix)
            return
        kind |= _KIND_OF_PREFIX[len(prefix)]
        words = len(prefix) + _OUTER_FRAME_WORDS
        if not self._regs[HFLAGS] & _OUTER_RING:
            kind |= _SAME_RING
            words = len(prefix) + _INNER_FRAME_WORDS
        self._enter(vcpu, gate.cs, gate.address, gate.masks_events, prefix)
        self._open_way_in(vcpu, vector, gate, kind, words)

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
        if gate is not None:
            dpl, cs, address, masks_events, _ = gate
            if dpl == OUTERMOST:
                self._enter(vcpu, cs, address, masks_events, ())
                self._open_way_in(vcpu, vector, gate, _SOFTWARE, _OUTER_FRAME_WORDS)
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
        self._enter(vcpu, gate.cs, gate.address, gate.masks_events, ())

    def _upcall(self) -> None:
        """Enter the event callback, with the mask set; raises DomainCrash."""
        vcpu = self._domain.current
        if vcpu.event_callback is None:
            raise DomainCrash("traps.no-handler", "an event is pending, and there is no callback")
        callback = vcpu.event_callback
        is_outer = self._regs[HFLAGS] & _OUTER_RING
        self._enter(vcpu, callback.cs, callback.address, callback.masks_events, ())
        kind, words = (0, _OUTER_FRAME_WORDS) if is_outer else (_SAME_RING, _INNER_FRAME_WORDS)
        self._open_way_in(vcpu, UPCALL, callback, kind, words)

    def sysenter(self) -> None:
        """Enter the kernel for SYSENTER, as Xen does, to which the processor tells no way back.

        The frame is that of ring 3 at address 0, with a null code selector. A kernel that has no
        entry point finds it in a #GP. Raises DomainCrash.
        """
        vcpu = self._domain.current
        regs = self._regs
        regs[EIP] = regs[ESP] = 0
        regs[CS_SELECTOR] = OUTERMOST
        regs[SS_SELECTOR] = FLAT_RING3_SS
        regs[HFLAGS] |= HF_CPL
        if vcpu.sysenter_callback is None:
            self.fault(VECTOR_GP, 0)
            return
        cs, address, masks_events = vcpu.sysenter_callback
        self._enter(vcpu, cs, address, masks_events, ())

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
            cs, address, masks_events = vcpu.failsafe_callback
            self._enter(vcpu, cs, address, masks_events, selectors)
            return
        for index, (selector, _, base, _, limit, flags) in zip(_FAILSAFE_ORDER, loads, strict=True):
            self._engine.set_segment(index, selector, base, limit, flags)

    def _open_way_in(
        self, vcpu: Vcpu, vector: int, gate: TrapGate | Callback, kind: int, words: int
    ) -> None:
        """Let a trap like the one that has just entered at ``gate`` do so without us.

        Only one that is no more than an entry: what may be ours to handle has no way.
        """
        is_same_ring = kind & _SAME_RING
        esp = self._regs[ESP] if is_same_ring else vcpu.kernel_sp - 4 * words
        place = self._places[words].get(esp)
        segments = _NO_SEGMENTS if is_same_ring else vcpu.entries.get(gate.cs)
        if place is None or segments is None or vcpu.iopl:
            return
        region, index, entry, maddr, _ = place
        l1 = self._paging.writable_l1_bases.get(region)
        if l1 is None or self._m64[l1 + index] != entry:
            return
        if is_same_ring:
            esp >>= PAGE_SHIFT
            maddr &= ~_OFFSET
        if gate.masks_events:
            kind |= _MASKS_EVENTS
        way = Way(
            entry_maddr=(l1 + index) * _ENTRY_SIZE,
            entry=entry,
            frame_maddr=maddr,
            target=gate.address,
            esp=esp,
            hflags=segments.hflags,
            kind=kind,
            cs_and_ss=segments.state,
            selectors=(gate.cs, 0, 0, 0, 0, 0),
            cr2_maddr=vcpu.info_maddr + VCPU_INFO_ARCH_CR2,
            size=4 * words,
            limit=HOLE_START,
        )
        self._engine.ways.open_in(vector, way)

    # -- the frame ----------------------------------------------------------------------------

    def _make_enter(self) -> Enter:
        """Bind the short way into the kernel: 0.6 us where the long one takes 1.4.

        It serves frames at addresses where one was written before, as long as the page-table
        entry is the same as then; everything else goes the long way, which notes the address.
        """
        regs, regs8 = self._regs, self._regs8
        read_eflags = self._read_eflags
        memory, m8, m64, code = self._memory, self._m8, self._m64, self._code
        l1_bases = self._paging.writable_l1_bases
        places, push, enter_slowly = self._places, _PUSH, self._enter_slowly

        def enter(
            vcpu: Vcpu, cs: int, address: int, masks_events: bool, prefix: tuple[int, ...]
        ) -> None:
            eflags = read_eflags()
            hflags = regs[HFLAGS]
            mask_at = vcpu.mask_at
            mask = m8[mask_at]
            flags = eflags & _PUSHED | vcpu.iopl if mask else eflags & _PUSHED | vcpu.iopl | _IF
            old_cs = regs[CS_SELECTOR]
            segments = None
            if hflags & _OUTER_RING:
                frame: tuple[int, ...] = (
                    *prefix,
                    regs[EIP],
                    old_cs | mask << SAVED_UPCALL_MASK_SHIFT,
                    flags,
                    regs[ESP],
                    regs[SS_SELECTOR],
                )
                words = len(frame)
                esp = vcpu.kernel_sp - 4 * words
                segments = vcpu.entries.get(cs)
                place = None if segments is None else places[words].get(esp)
            else:
                frame = (
                    *prefix, regs[EIP], old_cs | mask << SAVED_UPCALL_MASK_SHIFT, flags
                )  # fmt: skip
                words = len(frame)
                esp = regs[ESP] - 4 * words
                place = places[words].get(esp) if cs == old_cs else None
            if place is not None and not (eflags & _CLEARED_ON_ENTRY or hflags & HF_ADDSEG):
                region, index, entry, maddr, mfn = place
                l1 = l1_bases.get(region)
                if l1 is not None and m64[l1 + index] == entry:
                    push[words](m8, maddr, *frame)
                    if code[mfn]:
                        memory.wrote(mfn)
                    if masks_events:
                        m8[mask_at] = mask | 1
                        if code[mask_at >> 12]:
                            memory.wrote(mask_at >> 12)
                    regs[EIP] = address
                    regs[ESP] = esp
                    if segments is not None:
                        state, bits, _ = segments
                        regs8[_CS_AND_SS] = state
                        regs[HFLAGS] = hflags & _NOT_SEGMENTS | bits
                    return
            enter_slowly(vcpu, cs, address, masks_events, frame, eflags)

        return enter

    def _enter_slowly(
        self,
        vcpu: Vcpu,
        cs: int,
        address: int,
        masks_events: bool,
        frame: tuple[int, ...],
        eflags: int,
    ) -> None:
        """Write the frame, wherever it goes, then continue at the handler."""
        regs = self._regs
        hflags = regs[HFLAGS]
        is_outer = hflags & _OUTER_RING
        ss = vcpu.kernel_ss if is_outer else regs[SS_SELECTOR] & 0xFFFF
        segments = None
        base = regs[SS_SELECTOR + SEGMENT_BASE]
        if is_outer or cs != regs[CS_SELECTOR]:
            segments = self._load(vcpu, cs, ss)
            base = segments.ss_base
            if is_outer and not segments.hflags & HF_ADDSEG:
                vcpu.entries[cs] = segments
        esp = ((vcpu.kernel_sp if is_outer else regs[ESP]) - 4 * len(frame)) & _WORD
        self._push(esp, base, frame)

        if masks_events:
            self._write_mask(vcpu, self._m8[vcpu.mask_at] | 1)
        regs[EIP] = address
        regs[ESP] = esp
        if eflags & _CLEARED_ON_ENTRY:
            regs[EFLAGS] &= ~_CLEARED_ON_ENTRY & _WORD
            if eflags & EFLAGS_VM:
                self._drop_vm86_state()
        if segments is not None:
            self._set_cs_and_ss(segments)

    def _push(self, esp: int, base: int, frame: tuple[int, ...]) -> None:
        """Write the words of a frame with the kernel's rights, or crash; note a good address."""
        words = len(frame)
        bottom = (esp + base) & _WORD
        try:
            self._guest_memory.write(bottom, _PACK[words](*frame))
        except Refused as refused:
            raise DomainCrash(
                "traps.no-frame", f"{4 * words} bytes can't be written at {bottom:#x}"
            ) from refused
        if not base and bottom & _OFFSET <= PAGE_SIZE - 4 * words:
            self._note(self._places[words], bottom)

    def _note(self, places: dict[int, Place], vaddr: int) -> None:
        """Remember where an address is that has just been used, for as long as it stays there."""
        slot = self._paging.slot_of(vaddr)
        assert slot is not None, vaddr
        entry = self._m64[slot]
        maddr = (entry & PTE_ADDRESS) | vaddr & _OFFSET
        if len(places) == _MOST_PLACES:
            places.clear()
        places[vaddr] = (vaddr >> L2_SHIFT, vaddr >> 12 & INDEX_MASK, entry, maddr, maddr >> 12)

    def _write_mask(self, vcpu: Vcpu, mask: int) -> None:
        self._m8[vcpu.mask_at] = mask
        if self._code[vcpu.mask_at >> 12]:
            self._memory.wrote(vcpu.mask_at >> 12)

    def _set_cs_and_ss(self, segments: Segments) -> None:
        regs = self._regs
        regs8 = self._regs8
        regs8[_CS_AND_SS] = segments.state
        hflags = regs[HFLAGS]
        regs[HFLAGS] = hflags & _NOT_SEGMENTS | segments.hflags
        if hflags & HF_ADDSEG and not segments.hflags & HF_ADDSEG:
            self._derive_addseg()

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

    def _drop_vm86_state(self) -> None:
        """Null what virtual-8086 mode left in the data selectors, as a trap from there does.

        Hardware never enters that mode from an outer ring; the engine does (ENGINES 6), and then
        takes IOPL and IF from the same frame.
        """
        regs = self._regs
        regs[EFLAGS] = regs[EFLAGS] & ~EFLAGS_IOPL | EFLAGS_IF
        for index in _FAILSAFE_ORDER:
            self._engine.set_segment(index, 0, 0, 0, 0)

    # -- the way back -------------------------------------------------------------------------

    def _make_iret(self) -> Iret:
        """Bind the short way back: 0.5 us where the long one takes 1.4; see ``_make_enter``."""
        domain = self._domain
        regs, regs8 = self._regs, self._regs8
        memory, m8, m64, code = self._memory, self._m8, self._m64, self._code
        l1_bases = self._paging.l1_bases
        places, iret_slowly = self._iret_places, self._iret_slowly
        null_inner_selectors = self._null_inner_selectors
        open_back = self._engine.ways.open_back

        def iret(_1: int = 0, _2: int = 0, _3: int = 0, _4: int = 0, _5: int = 0) -> int:
            vcpu = domain.current
            hflags = regs[HFLAGS]
            top = regs[ESP]
            place = places.get(top)
            if place is None or hflags & HF_ADDSEG:
                return iret_slowly()
            region, index, entry, maddr, _ = place
            l1 = l1_bases.get(region)
            if l1 is None or m64[l1 + index] != entry:
                return iret_slowly()
            eax, eip, cs, eflags, esp, ss = _OUTER_IRET(m8, maddr)
            if eflags & _SLOW_TO_RESTORE or vcpu.iopl or cs & SELECTOR_RPL != OUTERMOST:
                return iret_slowly()
            segments = vcpu.segments.get(cs << 16 | ss)
            if segments is None:
                return iret_slowly()
            state, bits, _ = segments
            regs[EAX] = eax
            regs[EIP] = eip
            regs[ESP] = esp
            mask_at = vcpu.mask_at
            m8[mask_at] = 0 if eflags & EFLAGS_IF else 1
            if code[mask_at >> 12]:
                memory.wrote(mask_at >> 12)
            regs[EFLAGS] = eflags & _KEPT_IN_WORD | _ALWAYS_SET
            regs[CC_SRC] = eflags & EFLAGS_ARITHMETIC
            regs[CC_OP] = CC_OP_EFLAGS
            regs[DF] = 1
            regs8[_CS_AND_SS] = state
            regs[HFLAGS] = hflags & _NOT_SEGMENTS | bits
            data = (
                regs[DS_SELECTOR], regs[ES_SELECTOR], regs[FS_SELECTOR], regs[GS_SELECTOR]
            )  # fmt: skip
            if data != vcpu.outer_selectors:
                null_inner_selectors(vcpu, OUTERMOST)
                return REGISTERS_SET
            way = Way(
                entry_maddr=(l1 + index) * _ENTRY_SIZE,
                entry=entry,
                frame_maddr=maddr,
                target=HYPERVISOR_iret,
                esp=top,
                hflags=bits,
                cs_and_ss=state,
                selectors=(cs, ss, *data),
                cr2_maddr=vcpu.info_maddr + VCPU_INFO_ARCH_CR2,
            )
            open_back(way)
            return REGISTERS_SET

        return iret

    def _iret_slowly(self) -> int:
        """Return through any frame."""
        vcpu = self._domain.current
        regs = self._regs
        esp = regs[ESP]
        top = (esp + regs[SS_SELECTOR + SEGMENT_BASE]) & _WORD
        eax, eip, cs, eflags, new_esp, ss = self._read_iret_frame(top)
        ring = cs & SELECTOR_RPL
        if eflags & EFLAGS_VM:
            self._refuse_vm86(vcpu, top)
            return REGISTERS_SET
        if ring == _KERNEL_CPL:
            new_esp = (esp + _INNER_IRET_SIZE) & _WORD
            ss = regs[SS_SELECTOR] & 0xFFFF
        elif not ring:
            raise DomainCrash("traps.iret-to-ring-0", f"cs {cs:#x}")
        regs[EAX] = eax
        self._restore_flags(vcpu, eflags)
        if ring != _KERNEL_CPL or cs != regs[CS_SELECTOR]:
            try:
                segments = self._descriptors.segments(vcpu, cs, ss)
            except BadSelector as bad:
                self._fault_at_target(vcpu, bad, cs, eip, ss, new_esp)
                return REGISTERS_SET
            self._set_cs_and_ss(segments)
            if ring != _KERNEL_CPL:
                self._null_inner_selectors(vcpu, ring)
        elif top == esp:
            self._open_way_back_inside(vcpu, top, cs)
        regs[EIP] = eip
        regs[ESP] = new_esp
        return REGISTERS_SET

    def _open_way_back_inside(self, vcpu: Vcpu, top: int, cs: int) -> None:
        """Let the next return within ring 1 from this page of the stack do without us."""
        if vcpu.iopl or self._domain.assists & _ARCHITECTURAL_IOPL:
            return
        slot = self._paging.slot_of(top)
        assert slot is not None, top
        entry = self._m64[slot]
        way = Way(
            entry_maddr=slot * _ENTRY_SIZE,
            entry=entry,
            frame_maddr=entry & PTE_ADDRESS,
            target=HYPERVISOR_iret,
            esp=top >> PAGE_SHIFT,
            hflags=0,
            cs_and_ss=b"",
            selectors=(cs, 0, 0, 0, 0, 0),
            cr2_maddr=vcpu.info_maddr + VCPU_INFO_ARCH_CR2,
            kind=_SAME_RING,
        )
        self._engine.ways.open_back(way)

    def _restore_flags(self, vcpu: Vcpu, eflags: int) -> None:
        self._write_mask(vcpu, 0 if eflags & EFLAGS_IF else 1)
        if self._domain.assists & _ARCHITECTURAL_IOPL:
            vcpu.iopl = eflags & EFLAGS_IOPL
            self._engine.ways.close()
        self._write_eflags(eflags & _RESTORED | EFLAGS_IF)

    def _read_iret_frame(self, top: int) -> tuple[int, ...]:
        """Copy the frame in, its last two words only if they belong to it; or crash."""
        try:
            inner = _INNER_IRET(self._guest_memory.read(top, _INNER_IRET_SIZE))
            if inner[2] & SELECTOR_RPL <= _KERNEL_CPL:
                return (*inner, 0, 0)
            outer = _OUTER_IRET(self._guest_memory.read(top, _OUTER_IRET_SIZE))
        except Refused as refused:
            raise DomainCrash("traps.iret-frame", f"{top:#x} can't be read") from refused
        if (
            top & _OFFSET <= PAGE_SIZE - _OUTER_IRET_SIZE
            and not self._regs[SS_SELECTOR + SEGMENT_BASE]
        ):
            self._note(self._iret_places, top)
        return outer

    def _null_inner_selectors(self, vcpu: Vcpu, ring: int) -> None:
        """Null the data selectors that the outer ring may not keep, as iret does.

        Notes those of ring 3, which need no second look while they are the same.
        """
        regs = self._regs
        for selector in _DATA_SELECTORS:
            flags = regs[selector + SEGMENT_FLAGS]
            is_inner = flags >> _DPL_SHIFT & 3 < ring
            if is_inner and flags & _CONFORMING_CODE != _CONFORMING_CODE and regs[selector]:
                regs[selector] = 0
                regs[selector + SEGMENT_FLAGS] = flags & ~_PRESENT & _WORD
        if ring == OUTERMOST:
            vcpu.outer_selectors = tuple(regs[selector] for selector in _DATA_SELECTORS)

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
        esp = (vcpu.kernel_sp - _VM86_FRAME.size) & _WORD
        try:
            frame = self._guest_memory.read(top, _VM86_FRAME.size)
        except Refused as refused:
            raise DomainCrash("traps.iret-frame", f"{top:#x} can't be read") from refused
        self._push(esp, segments.ss_base, (0, *_VM86_FRAME.unpack(frame)[1:]))
        regs = self._regs
        eflags = int.from_bytes(frame[12:16], "little")
        if gate.masks_events:
            eflags &= ~EFLAGS_IF
        self._restore_flags(vcpu, eflags & ~_CLEARED_ON_ENTRY)
        regs[EAX] = int.from_bytes(frame[:4], "little")
        regs[EIP] = gate.address
        regs[ESP] = esp
        self._set_cs_and_ss(segments)
