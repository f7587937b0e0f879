# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring up a second vCPU: what its guest asks for is checked first, and loaded when it first runs.

A vCPU's registers can be loaded only while the engine is its own, so this comes in two steps::

    prepare (VCPUOP_initialise, in a trap of another vCPU)  references taken, everything checked
    load    (outside any run, when the vCPU is current for the first time)

Source: public/arch-x86/xen.h, vcpu_guest_context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    MAX_GDT_ENTRIES,
    TI_DPL_MASK,
    TI_FAULT_ADDRESS,
    TI_MASK_EVENTS,
)
from xenlite.core.descriptors import PER_PAGE, BadSelector, guest_selector
from xenlite.core.hole import HOLE_START
from xenlite.core.vcpu import Callback, TrapGate
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT
from xenlite.machine.trap import (
    DS,
    EAX,
    EBP,
    EBX,
    ECX,
    EDI,
    EDX,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_NT,
    EFLAGS_VM,
    EIP,
    ES,
    ESI,
    ESP,
    FS,
    GS,
)

if TYPE_CHECKING:
    from xenlite.abi.x86_32p import VcpuGuestContext
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

_NEVER: Final = EFLAGS_IOPL | EFLAGS_NT | EFLAGS_VM
_GENERAL: Final = {
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


def cr3_to_mfn(cr3: int) -> int:
    """Return the frame that a guest's CR3 names: its upper bits stand in the low ones."""
    return cr3 >> PAGE_SHIFT | (cr3 & 0xFFF) << 20


def prepare(domain: Domain, vcpu: Vcpu, context: VcpuGuestContext) -> None:
    """Take what the context names: descriptor frames, page tables, handlers, stacks.

    Raises Refused(EINVAL), or Preempted, with nothing taken.
    """
    if context.gdt_ents > MAX_GDT_ENTRIES:
        raise Refused(EINVAL, "descriptors.gdt-size", context.gdt_ents)
    frames = tuple(context.gdt_frames[: -(-context.gdt_ents // PER_PAGE)])
    current = domain.current
    domain.current = vcpu
    try:
        domain.descriptors.set_gdt(frames, context.gdt_ents)
        try:
            _check_selectors(domain, vcpu, context)
            domain.paging.take_baseptr(mfn := cr3_to_mfn(context.ctrlreg[3]))
        except BaseException:
            domain.descriptors.set_gdt((), 0)
            raise
    finally:
        domain.current = current
    vcpu.cr3_mfn = mfn
    vcpu.ldt_base, vcpu.ldt_entries = context.ldt_base, context.ldt_ents
    vcpu.kernel_ss, vcpu.kernel_sp = guest_selector(context.kernel_ss), context.kernel_sp
    for info in context.trap_ctxt:
        if info.address:
            vcpu.traps[info.vector] = TrapGate(
                dpl=info.flags & TI_DPL_MASK,
                cs=guest_selector(info.cs),
                address=info.address,
                masks_events=bool(info.flags & TI_MASK_EVENTS),
                pushes_address=bool(info.flags & TI_FAULT_ADDRESS),
            )
    if context.event_callback_eip:
        cs = guest_selector(context.event_callback_cs)
        vcpu.event_callback = Callback(cs, context.event_callback_eip, masks_events=True)
    if context.failsafe_callback_eip:
        cs = guest_selector(context.failsafe_callback_cs)
        vcpu.failsafe_callback = Callback(cs, context.failsafe_callback_eip)
    vcpu.start = context
    vcpu.is_initialised = True


def load(domain: Domain, vcpu: Vcpu) -> None:
    """Load the prepared registers into the engine, which is the vCPU's for the first time."""
    context = vcpu.start
    assert context is not None
    assert domain.current is vcpu
    vcpu.start = None
    user = context.user_regs
    domain.descriptors.load(guest_selector(user.cs), guest_selector(user.ss))
    cpl = guest_selector(user.cs) & 3
    for index, selector in ((DS, user.ds), (ES, user.es), (FS, user.fs), (GS, user.gs)):
        loaded, _, base, _, limit, flags = domain.descriptors.data_segment(vcpu, selector, cpl)
        domain.engine.set_segment(index, loaded, base, limit, flags)
    regs = domain.engine.regs
    for name, word in _GENERAL.items():
        regs[word] = getattr(user, name)
    domain.engine.write_eflags(user.eflags & ~_NEVER | EFLAGS_IF)
    assert vcpu.cr3_mfn is not None
    domain.engine.load_cr3(vcpu.cr3_mfn << PAGE_SHIFT)


def _check_selectors(domain: Domain, vcpu: Vcpu, context: VcpuGuestContext) -> None:
    user = context.user_regs
    if context.ldt_base & 0xFFF or context.ldt_base + 8 * context.ldt_ents > HOLE_START:
        raise Refused(EINVAL, "descriptors.ldt-range", context.ldt_base)
    cs = guest_selector(user.cs)
    try:
        domain.descriptors.segments(vcpu, cs, guest_selector(user.ss))
        for selector in (user.ds, user.es, user.fs, user.gs):
            domain.descriptors.data_segment(vcpu, selector, cs & 3)
    except BadSelector as bad:
        raise Refused(EINVAL, "descriptors.unusable-selector", bad.error_code) from None
