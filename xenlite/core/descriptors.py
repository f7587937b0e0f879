# SPDX-License-Identifier: GPL-2.0-or-later
"""Segment descriptors: the guest's GDT and LDT frames, Xen's flat selectors, and the TSS.

Each vCPU has a window in the hole (``core/hole.py``) that the processor reads::

    page 0..13   the guest's GDT frames; an empty page where it has none
    page 14      Xen's flat selectors: 0xE019 0xE021 (ring 1), 0xE02B 0xE033 (ring 3)
    page 15      the TSS, beyond the GDT's limit, with the stack of inward gate calls
    page 16..31  the guest's LDT frames, each mapped when it is first used

Invariants:

1. A frame in a window is of type segdesc and holds only descriptors that ``checked`` let through:
   nothing of DPL 0, no system descriptor but call gates to the guest's own selectors.
2. Each GDT page and each mapped LDT page holds one type reference (``Vcpu.gdt_frames``,
   ``Vcpu.ldt_frames``); ``core/audit.py`` counts them.
3. ``Vcpu.segments`` caches what a pair of selectors loads; any change of a table empties it.

The engine enforces no segment limits, so none is checked here; paging is the protection.
Source: public/arch-x86/xen-x86_32.h; Intel SDM 3A, 3.4.5 and 5.8.3.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenlite.abi.x86_32p import (
    EINVAL,
    FIRST_RESERVED_GDT_BYTE,
    FIRST_RESERVED_GDT_ENTRY,
    FIRST_RESERVED_GDT_PAGE,
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS,
    FLAT_RING3_DS,
    MAX_GDT_ENTRIES,
    MAX_LDT_ENTRIES,
    SELECTOR_RPL,
    SELECTOR_TI_LDT,
)
from xenlite.core.hole import GDT_PAGES, HOLE_START, VCPU_WINDOW
from xenlite.core.paging import SEGDESC, Preempted
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import (
    CS,
    DS,
    ES,
    FLAT_CODE,
    FLAT_DATA,
    FS,
    GS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_SS32,
    HFLAGS,
    SS,
    VECTOR_GP,
    VECTOR_NP,
    VECTOR_SS,
)
from xenlite.machine.x86_32p import PTE_ADDRESS, PTE_P

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

PER_PAGE: Final = PAGE_SIZE // 8
GDT_LIMIT: Final = FIRST_RESERVED_GDT_BYTE + PAGE_SIZE - 1
TSS_SELECTOR: Final = FIRST_RESERVED_GDT_BYTE + 0x40  # no descriptor stands behind either:
LDT_SELECTOR: Final = FIRST_RESERVED_GDT_BYTE + 0x50  # TR and LDTR are loaded by the hypervisor
TSS_LIMIT: Final = 0x67
TSS_ESP1: Final = 12
TSS_SS1: Final = 16
TSS_IO_MAP: Final = 102

# Bits of a descriptor as one 64-bit word
_TYPE: Final = 0xF << 40
_ACCESSED: Final = 1 << 40
_WRITABLE: Final = 1 << 41  # of data; of code: readable
_CONFORMING: Final = 1 << 42
_CODE: Final = 1 << 43
_S: Final = 1 << 44
_DPL_SHIFT: Final = 45
_P: Final = 1 << 47
_L: Final = 1 << 53
_B: Final = 1 << 54
_G: Final = 1 << 55
_CALL_GATE: Final = 0xC << 40

_PAGE: Final = Struct(f"<{PER_PAGE}Q")
_CS_AND_SS: Final = Struct("<12I")
_FLAT_LIMIT_WORD: Final = 0x0000FFFF


class Segments(NamedTuple):
    """What loading a code and a stack selector does, ready to be copied into the engine."""

    state: bytes  # the hidden parts of CS and SS, which are neighbours there
    hflags: int  # CPL, CS32, SS32; ADDSEG where one of the two needs it
    ss_base: int


class BadSelector(Exception):  # noqa: N818 - what the guest gets is a fault of that number
    """Refuse to load a selector: the processor would raise ``vector`` with ``error_code``."""

    __slots__ = ("error_code", "vector")

    def __init__(self, vector: int, selector: int) -> None:
        super().__init__(vector, selector)
        self.vector = vector
        self.error_code = selector & ~SELECTOR_RPL


def guest_selector(selector: int) -> int:
    """Force the privilege of a selector that a guest registers to ring 1 at most."""
    selector &= 0xFFFF
    return selector if selector & SELECTOR_RPL else selector | 1


def checked(descriptor: int) -> int | None:
    """Return the descriptor as a guest may have it, or None where it may not.

    DPL 0 becomes 1, and the accessed bit is set, because the processor could not set it in a
    read-only page. A descriptor that isn't present can't be used, so it may hold anything.
    """
    if not descriptor & _P:
        return descriptor
    if not descriptor >> _DPL_SHIFT & 3:
        descriptor |= 1 << _DPL_SHIFT
    if descriptor & _S:
        return None if descriptor & _L else descriptor | _ACCESSED
    kind = descriptor & _TYPE
    if not kind:
        return descriptor
    if kind != _CALL_GATE:
        return None
    target = descriptor >> 16 & 0xFFFF
    is_guests = target >> 3 < FIRST_RESERVED_GDT_ENTRY or target & SELECTOR_TI_LDT
    return descriptor if is_guests or target == FLAT_RING1_CS else None


class Descriptors:
    """The descriptor tables of one domain's vCPUs."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._domid = domain.domid
        self._engine = domain.engine
        self._hole = domain.hole
        self._paging = domain.paging
        self._frames = domain.machine.frames
        self._memory = domain.machine.memory
        self._m32 = self._memory.m32
        self._m64 = self._memory.m64
        self._empty_mfn = self._frames.allocate_xen()
        self._flat_mfn = self._frames.allocate_xen()
        for selector, upper in (
            (FLAT_RING1_CS, FLAT_CODE[1]),
            (FLAT_RING1_DS, FLAT_DATA[1]),
            (FLAT_RING3_CS, FLAT_CODE[3]),
            (FLAT_RING3_DS, FLAT_DATA[3]),
        ):
            index = (selector >> 3) - FIRST_RESERVED_GDT_ENTRY
            self._m64[self._flat_mfn * PER_PAGE + index] = upper << 32 | _FLAT_LIMIT_WORD
        for vcpu in domain.vcpus:
            for page in range(FIRST_RESERVED_GDT_PAGE):
                self._map_gdt_page(vcpu, page, self._empty_mfn)
            self._map_gdt_page(vcpu, FIRST_RESERVED_GDT_PAGE, self._flat_mfn)
            tss = self._hole.tss_maddr(vcpu.id)
            self._memory.m16[(tss + TSS_IO_MAP) >> 1] = TSS_LIMIT + 1

    def load(self, cs: int, ss: int) -> None:
        """Point the engine at the current vCPU's tables, and load its first selectors.

        The data selectors get ``ss`` too. Raises Refused(EINVAL) for unusable ones.
        """
        vcpu = self._domain.current
        engine = self._engine
        engine.set_gdt(self._hole.gdt_vaddr(vcpu.id), GDT_LIMIT)
        engine.set_tss(TSS_SELECTOR, self._hole.tss_vaddr(vcpu.id))
        self._load_ldt(vcpu)
        self.set_kernel_stack(vcpu.kernel_ss, vcpu.kernel_sp)
        try:
            segments = self.segments(vcpu, cs, ss)
        except BadSelector as bad:
            raise Refused(EINVAL, "descriptors.unusable-selector", bad.error_code) from None
        words = _CS_AND_SS.unpack(segments.state)
        for index, start in ((CS, 0), (SS, 6), (DS, 6), (ES, 6), (FS, 6), (GS, 6)):
            selector, _, base, _, limit, flags = words[start : start + 6]
            engine.set_segment(index, selector, base, limit, flags)
        engine.regs[HFLAGS] = engine.regs[HFLAGS] & ~HF_CPL | segments.hflags & HF_CPL

    def set_kernel_stack(self, ss: int, esp: int) -> None:
        """Set where frames from outer rings go, for bounces and for gates alike."""
        vcpu = self._domain.current
        if ss != vcpu.kernel_ss:
            vcpu.entries.clear()
        vcpu.kernel_ss = ss
        vcpu.kernel_sp = esp
        self._engine.ways.close()
        tss = self._hole.tss_maddr(vcpu.id)
        self._m32[(tss + TSS_ESP1) >> 2] = esp
        self._m32[(tss + TSS_SS1) >> 2] = ss

    # -- GDT ----------------------------------------------------------------------------------

    def set_gdt(self, mfns: tuple[int, ...], entries: int) -> None:
        """Replace the current vCPU's GDT frames; all or nothing.

        Raises Refused(EINVAL), or Preempted with nothing changed.
        """
        if entries > MAX_GDT_ENTRIES:
            raise Refused(EINVAL, "descriptors.gdt-size", entries)
        assert len(mfns) == -(-entries // PER_PAGE), (mfns, entries)
        taken: list[int] = []
        try:
            for mfn in mfns:
                self._paging.get_descriptor_frame(mfn, self._validate)
                taken.append(mfn)
        except (Refused, Preempted):
            for mfn in taken:
                self._paging.put_descriptor_frame(mfn)
            raise
        vcpu = self._domain.current
        old = vcpu.gdt_frames
        vcpu.gdt_frames = mfns
        vcpu.gdt_entries = entries
        for page in range(max(len(mfns), len(old))):
            self._map_gdt_page(vcpu, page, mfns[page] if page < len(mfns) else self._empty_mfn)
        for mfn in old:
            self._paging.put_descriptor_frame(mfn)
        self._forget_segments()

    def update_descriptor(self, maddr: int, descriptor: int) -> None:
        """Write one descriptor into a frame of the domain that is a table or could become one.

        Raises Refused(EINVAL).
        """
        good = checked(descriptor)
        if maddr & 7 or good is None:
            raise Refused(EINVAL, "descriptors.bad-descriptor", descriptor)
        mfn = maddr >> PAGE_SHIFT
        frames = self._frames
        if frames.is_owned(mfn, self._domid) and frames.kind[mfn] == SEGDESC:
            self._memory.write(maddr, good.to_bytes(8, "little"))
            self._forget_segments()
            return
        frames.get_writable(mfn, self._domid, EINVAL)
        self._memory.write(maddr, good.to_bytes(8, "little"))
        frames.put_writable(mfn)

    def _map_gdt_page(self, vcpu: Vcpu, page: int, mfn: int) -> None:
        self._hole.map(self._hole.gdt_vaddr(vcpu.id) + page * PAGE_SIZE, mfn)

    def _validate(self, mfn: int) -> None:
        old = _PAGE.unpack_from(self._memory.m8, mfn << PAGE_SHIFT)
        new = []
        for descriptor in old:
            good = checked(descriptor) if descriptor else 0
            if good is None:
                raise Refused(EINVAL, "descriptors.bad-descriptor", descriptor)
            new.append(good)
        if tuple(new) != old:
            self._memory.write(mfn << PAGE_SHIFT, _PAGE.pack(*new))

    # -- LDT ----------------------------------------------------------------------------------

    def set_ldt(self, base: int, entries: int) -> None:
        """Give the current vCPU an LDT of ``entries`` at a page-aligned address; 0 for none.

        Its frames are looked at when they are used. Raises Refused(EINVAL).
        """
        if not entries:
            base = 0
        if base & (PAGE_SIZE - 1) or entries > MAX_LDT_ENTRIES or base + entries * 8 > HOLE_START:
            raise Refused(EINVAL, "descriptors.ldt-range", base)
        vcpu = self._domain.current
        if (vcpu.ldt_base, vcpu.ldt_entries) != (base, entries):
            self.drop_ldt()
            vcpu.ldt_base = base
            vcpu.ldt_entries = entries
            self._load_ldt(vcpu)

    def drop_ldt(self) -> None:
        """Forget the current vCPU's LDT frames: the addresses may mean others from now on."""
        self._drop_ldt_of(self._domain.current)

    def fix_fault(self, vaddr: int) -> int | None:
        """Answer a supervisor's page fault in the hole: None to try again, or whose fault it is.

        That is the address to report: for an LDT page that can't be mapped, where the guest keeps
        it; the faulting address otherwise.
        """
        vcpu = self._domain.current
        offset = vaddr - self._hole.ldt_vaddr(vcpu.id)
        if not 0 <= offset < VCPU_WINDOW - GDT_PAGES * PAGE_SIZE:
            return vaddr
        if offset >> 3 < vcpu.ldt_entries and self._map_ldt_page(vcpu, offset >> PAGE_SHIFT):
            return None
        return (vcpu.ldt_base + offset) & 0xFFFFFFFF

    def _load_ldt(self, vcpu: Vcpu) -> None:
        if vcpu.ldt_entries:
            address = self._hole.ldt_vaddr(vcpu.id)
            self._engine.set_ldt(LDT_SELECTOR, address, vcpu.ldt_entries * 8 - 1)
        else:
            self._engine.set_ldt(0, 0, 0)

    def _map_ldt_page(self, vcpu: Vcpu, page: int) -> bool:
        """Promote the frame behind one LDT page and show it to the processor."""
        if page in vcpu.ldt_frames:
            return True
        slot = self._paging.slot_of(vcpu.ldt_base + page * PAGE_SIZE)
        if slot is None or not self._m64[slot] & PTE_P:
            return False
        mfn = (self._m64[slot] & PTE_ADDRESS) >> PAGE_SHIFT
        self._paging.work_left = max(self._paging.work_left, 1)
        try:
            self._paging.get_descriptor_frame(mfn, self._validate)
        except Refused:
            return False
        vcpu.ldt_frames[page] = mfn
        self._hole.map(self._hole.ldt_vaddr(vcpu.id) + page * PAGE_SIZE, mfn)
        return True

    def _drop_ldt_of(self, vcpu: Vcpu) -> None:
        if not vcpu.ldt_frames:
            return
        for page, mfn in vcpu.ldt_frames.items():
            self._hole.unmap(self._hole.ldt_vaddr(vcpu.id) + page * PAGE_SIZE)
            self._paging.put_descriptor_frame(mfn)
        vcpu.ldt_frames.clear()
        self._forget_segments()

    # -- loading selectors --------------------------------------------------------------------

    def segments(self, vcpu: Vcpu, cs: int, ss: int) -> Segments:
        """Return what loading ``cs`` and ``ss`` does; the privilege is that of ``cs``.

        The checks are those of an interrupt return. Raises BadSelector. Callers on a hot path
        look into ``vcpu.segments`` first.
        """
        code = self._descriptor(vcpu, cs)
        dpl, rpl = code >> _DPL_SHIFT & 3, cs & SELECTOR_RPL
        if not code & _S or not code & _CODE or not cs & ~SELECTOR_RPL:
            raise BadSelector(VECTOR_GP, cs)
        if dpl > rpl if code & _CONFORMING else dpl != rpl:
            raise BadSelector(VECTOR_GP, cs)
        if not code & _P:
            raise BadSelector(VECTOR_NP, cs)
        stack = self._descriptor(vcpu, ss)
        if ss & SELECTOR_RPL != rpl or stack >> _DPL_SHIFT & 3 != rpl:
            raise BadSelector(VECTOR_GP, ss)
        if not stack & _S or stack & _CODE or not stack & _WRITABLE or not ss & ~SELECTOR_RPL:
            raise BadSelector(VECTOR_GP, ss)
        if not stack & _P:
            raise BadSelector(VECTOR_SS, ss)
        ss_base = _base(stack)
        hflags = rpl
        if code & _B:
            hflags |= HF_CS32
        if stack & _B:
            hflags |= HF_SS32
        if ss_base or not code & _B:
            hflags |= HF_ADDSEG
        state = _CS_AND_SS.pack(*_hidden(cs, code), *_hidden(ss, stack))
        result = Segments(state, hflags, ss_base)
        vcpu.segments[cs << 16 | ss] = result
        return result

    def data_segment(
        self, vcpu: Vcpu, selector: int, cpl: int
    ) -> tuple[int, int, int, int, int, int]:
        """Return what loading a data selector does, as the engine keeps it: words as ``_hidden``.

        A null selector loads nothing. Raises BadSelector.
        """
        if not selector & ~SELECTOR_RPL:
            return selector, 0, 0, 0, 0, 0
        descriptor = self._descriptor(vcpu, selector)
        is_conforming = descriptor & _CODE and descriptor & _CONFORMING
        is_readable = descriptor & _WRITABLE or not descriptor & _CODE
        too_inner = descriptor >> _DPL_SHIFT & 3 < max(cpl, selector & SELECTOR_RPL)
        if not descriptor & _S or not is_readable or (too_inner and not is_conforming):
            raise BadSelector(VECTOR_GP, selector)
        if not descriptor & _P:
            raise BadSelector(VECTOR_NP, selector)
        return _hidden(selector, descriptor)

    def _descriptor(self, vcpu: Vcpu, selector: int) -> int:
        """Read the descriptor that a selector names, LDT pages mapped as the processor would."""
        page, index = divmod(selector >> 3, PER_PAGE)
        mfn = self._empty_mfn
        if selector & SELECTOR_TI_LDT:
            if selector >> 3 >= vcpu.ldt_entries or not self._map_ldt_page(vcpu, page):
                raise BadSelector(VECTOR_GP, selector)
            mfn = vcpu.ldt_frames[page]
        elif page < len(vcpu.gdt_frames):
            mfn = vcpu.gdt_frames[page]
        elif page == FIRST_RESERVED_GDT_PAGE:
            mfn = self._flat_mfn
        return int(self._m64[mfn * PER_PAGE + index])

    def _forget_segments(self) -> None:
        self._engine.ways.close()
        for vcpu in self._domain.vcpus:
            vcpu.segments.clear()
            vcpu.entries.clear()
            vcpu.selectors_stale = True

    # -- the end ------------------------------------------------------------------------------

    def release(self) -> None:
        """Give every frame back; the domain must not run again."""
        for vcpu in self._domain.vcpus:
            self._drop_ldt_of(vcpu)
            for page, mfn in enumerate(vcpu.gdt_frames):
                self._map_gdt_page(vcpu, page, self._empty_mfn)
                self._paging.put_descriptor_frame(mfn)
            vcpu.gdt_frames = ()
            vcpu.gdt_entries = 0
        self._forget_segments()
        for vcpu in self._domain.vcpus:
            for page in range(FIRST_RESERVED_GDT_PAGE + 1):
                self._hole.unmap(self._hole.gdt_vaddr(vcpu.id) + page * PAGE_SIZE)
        self._frames.drop_allocation(self._empty_mfn)
        self._frames.drop_allocation(self._flat_mfn)


def _base(descriptor: int) -> int:
    return descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24


def _hidden(selector: int, descriptor: int) -> tuple[int, int, int, int, int, int]:
    """Lay a loaded segment register out as the engine keeps it."""
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    if descriptor & _G:
        limit = limit << 12 | 0xFFF
    return selector, 0, _base(descriptor), 0, limit, descriptor >> 32
