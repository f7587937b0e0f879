# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring up a second vCPU: what its guest asks for is checked first, and loaded when it first runs.

A vCPU's registers can be loaded only while the engine is its own, so this comes in two steps::

    prepare (VCPUOP_initialise, in a trap of another vCPU)  references taken, everything checked
    load    (outside any run, when the vCPU is current for the first time)

Selectors wait for the second step, as on Xen: what they mean may change until then.
Source: public/arch-x86/xen.h, vcpu_guest_context.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    MAX_GDT_ENTRIES,
    MAX_LDT_ENTRIES,
    TI_DPL_MASK,
    TI_FAULT_ADDRESS,
    TI_MASK_EVENTS,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VMASST_TYPE_architectural_iopl,
)
from xenlite.core import debug_registers
from xenlite.core.descriptors import PER_PAGE, guest_selector
from xenlite.core.hole import HOLE_START
from xenlite.core.vcpu import Callback, TrapGate
from xenlite.errors import DomainCrash, Refused
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE
from xenlite.machine.trap import (
    CR0_TS,
    DS_SELECTOR,
    EFLAGS_IF,
    EFLAGS_IOPL,
    EFLAGS_NT,
    EFLAGS_VM,
    ES_SELECTOR,
    FS_SELECTOR,
    GENERAL_REGISTERS,
    GS_SELECTOR,
)

if TYPE_CHECKING:
    from xenlite.abi.x86_32p import VcpuGuestContext
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu

_NEVER: Final = EFLAGS_IOPL | EFLAGS_NT | EFLAGS_VM
_ARCHITECTURAL_IOPL: Final = 1 << VMASST_TYPE_architectural_iopl


def cr3_to_mfn(cr3: int) -> int:
    """Return the frame that a guest's CR3 names: its upper bits stand in the low ones."""
    return cr3 >> PAGE_SHIFT | (cr3 & 0xFFF) << 20


def prepare(domain: Domain, vcpu: Vcpu, context: VcpuGuestContext) -> None:
    """Take what the context names: descriptor frames, page tables, handlers, stacks.

    Raises Refused(EINVAL), or Preempted, with nothing taken.
    """
    _check(context)
    frames = tuple(context.gdt_frames[: -(-context.gdt_ents // PER_PAGE)])
    current = domain.current
    domain.current = vcpu
    try:
        domain.descriptors.set_gdt(frames, context.gdt_ents)
        try:
            domain.paging.take_baseptr(mfn := cr3_to_mfn(context.ctrlreg[3]))
        except BaseException:
            domain.descriptors.set_gdt((), 0)
            raise
    finally:
        domain.current = current
    vcpu.cr3_mfn = mfn
    vcpu.ldt_base, vcpu.ldt_entries = context.ldt_base, context.ldt_ents
    vcpu.kernel_ss, vcpu.kernel_sp = guest_selector(context.kernel_ss), context.kernel_sp
    # By place, as on Xen: the vector that an entry names is not looked at.
    vcpu.traps = [
        TrapGate(
            dpl=info.flags & TI_DPL_MASK,
            cs=guest_selector(info.cs),
            address=info.address,
            masks_events=bool(info.flags & TI_MASK_EVENTS),
            pushes_address=bool(info.flags & TI_FAULT_ADDRESS),
        )
        if info.address
        else None
        for info in context.trap_ctxt
    ]
    if context.event_callback_eip:
        cs = guest_selector(context.event_callback_cs)
        vcpu.event_callback = Callback(cs, context.event_callback_eip, masks_events=True)
    if context.failsafe_callback_eip:
        cs = guest_selector(context.failsafe_callback_cs)
        masks_events = bool(context.flags & VGCF_failsafe_disables_events)
        vcpu.failsafe_callback = Callback(cs, context.failsafe_callback_eip, masks_events)
    shown = bool(domain.assists & _ARCHITECTURAL_IOPL)
    vcpu.set_io_privilege(context.user_regs.eflags & EFLAGS_IOPL, shown=shown)
    for number, value in enumerate(context.debugreg):
        with suppress(Refused):  # as on Xen: what may not be set stays as it was
            debug_registers.write(vcpu, number, value)
    vcpu.start = context
    vcpu.is_initialised = True


def load(domain: Domain, vcpu: Vcpu) -> None:
    """Load the prepared registers into the engine, which is the vCPU's for the first time.

    Data selectors that are no good enter the failsafe callback, like any that go bad. Raises
    DomainCrash for a code or stack selector that can't be used.
    """
    context = vcpu.start
    assert context is not None
    assert domain.current is vcpu
    assert vcpu.cr3_mfn is not None
    vcpu.start = None
    user = context.user_regs
    engine = domain.engine
    engine.load_cr3(vcpu.cr3_mfn << PAGE_SHIFT)
    cs, ss = guest_selector(user.cs), guest_selector(user.ss)
    try:
        domain.descriptors.load(cs, ss)
    except Refused as refused:
        raise DomainCrash("vcpu.start-selectors", f"cs {cs:#x}, ss {ss:#x}") from refused
    regs = engine.regs
    for word, selector in (
        (DS_SELECTOR, user.ds),
        (ES_SELECTOR, user.es),
        (FS_SELECTOR, user.fs),
        (GS_SELECTOR, user.gs),
    ):
        regs[word] = selector & 0xFFFF
    vcpu.selectors_stale = True  # what stands in them is loaded before the vCPU runs
    for name, word in GENERAL_REGISTERS.items():
        regs[word] = getattr(user, name)
    engine.write_eflags(user.eflags & ~_NEVER | EFLAGS_IF)
    engine.set_task_switched(bool(context.ctrlreg[0] & CR0_TS))
    if context.flags & VGCF_i387_valid:
        engine.load_fpu(context.fpu_ctxt_x)


def _check(context: VcpuGuestContext) -> None:
    if context.gdt_ents > MAX_GDT_ENTRIES:
        raise Refused(EINVAL, "descriptors.gdt-size", context.gdt_ents)
    ldt_end = context.ldt_base + 8 * context.ldt_ents
    if (
        context.ldt_base & (PAGE_SIZE - 1)
        or context.ldt_ents > MAX_LDT_ENTRIES
        or ldt_end > HOLE_START
    ):
        raise Refused(EINVAL, "descriptors.ldt-range", context.ldt_base)
