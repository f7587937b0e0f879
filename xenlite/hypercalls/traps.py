# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest says where its traps go: handlers, callbacks, stacks, descriptor tables, and iret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSYS,
    MAX_GDT_ENTRIES,
    SIZEOF_CALLBACK_REGISTER,
    SIZEOF_CALLBACK_UNREGISTER,
    SIZEOF_TRAP_INFO,
    TI_DPL_MASK,
    TI_FAULT_ADDRESS,
    TI_MASK_EVENTS,
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CallbackUnregister,
    HYPERVISOR_callback_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_iret,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_gdt,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_descriptor,
    TrapInfo,
)
from xenlite.core.bounce import Bounce
from xenlite.core.descriptors import PER_PAGE, guest_selector
from xenlite.core.paging import LEAST_WORK, Preempted
from xenlite.core.vcpu import Callback, TrapGate
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRIES_PER_CALL: Final = 256  # then the call restarts: a table may be as long as memory
_WORK_PER_ENTRY: Final = 4  # of a multicall's budget: the same call may stand there 2000 times
# Xen keeps these for processors that have the instructions; ours shows them in no CPUID leaf.
_UNUSED_CALLBACKS: Final = (CALLBACKTYPE_sysenter, CALLBACKTYPE_syscall32)


class TrapCalls:
    """The trap hypercalls of one domain, for its current vCPU."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._descriptors = domain.descriptors
        self._bounce = Bounce(domain)

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_set_trap_table: self.set_trap_table,
            HYPERVISOR_set_gdt: self.set_gdt,
            HYPERVISOR_stack_switch: self.stack_switch,
            HYPERVISOR_set_callbacks: self.set_callbacks,
            HYPERVISOR_fpu_taskswitch: self.fpu_taskswitch,
            HYPERVISOR_update_descriptor: self.update_descriptor,
            HYPERVISOR_iret: self._bounce.iret,
            HYPERVISOR_callback_op: self.callback_op,
        }

    def set_trap_table(self, traps: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Register handlers up to an entry with address 0; clear all for a null pointer.

        Entries before an unreadable one stay registered.
        """
        vcpu, paging = self._domain.current, self._domain.paging
        if paging.work_left < LEAST_WORK:
            paging.begin_work()
        self._domain.engine.ways.close()
        if not traps:
            vcpu.traps = [None] * len(vcpu.traps)
            return 0
        for at in range(traps, traps + _ENTRIES_PER_CALL * SIZEOF_TRAP_INFO, SIZEOF_TRAP_INFO):
            info = TrapInfo.unpack(self._guest_memory.read(at, SIZEOF_TRAP_INFO))
            paging.work_left -= _WORK_PER_ENTRY
            if not info.address:
                return 0
            vcpu.traps[info.vector] = TrapGate(
                dpl=info.flags & TI_DPL_MASK,
                cs=guest_selector(info.cs),
                address=info.address,
                masks_events=bool(info.flags & TI_MASK_EVENTS),
                pushes_address=bool(info.flags & TI_FAULT_ADDRESS),
            )
        raise Restart((traps + _ENTRIES_PER_CALL * SIZEOF_TRAP_INFO, 0, 0, 0, 0))

    def set_gdt(self, frame_list: int, entries: int, _1: int, _2: int, _3: int) -> int:
        """Replace the GDT by ``entries`` descriptors in the listed frames."""
        if entries > MAX_GDT_ENTRIES:
            raise Refused(EINVAL, "descriptors.gdt-size", entries)
        count = -(-entries // PER_PAGE)
        words = memoryview(self._guest_memory.read(frame_list, 4 * count)).cast("I")
        if self._domain.paging.work_left < LEAST_WORK:
            self._domain.paging.begin_work()
        try:
            self._descriptors.set_gdt(tuple(words), entries)
        except Preempted:
            raise Restart((frame_list, entries, 0, 0, 0)) from None
        return 0

    def update_descriptor(self, maddr: int, maddr_high: int, low: int, high: int, _: int) -> int:
        """Write one descriptor at a machine address."""
        self._descriptors.update_descriptor(maddr | maddr_high << 32, low | high << 32)
        return 0

    def stack_switch(self, ss: int, esp: int, _1: int, _2: int, _3: int) -> int:
        """Set the kernel's stack for traps from outer rings."""
        self._descriptors.set_kernel_stack(guest_selector(ss), esp)
        return 0

    def fpu_taskswitch(self, switched: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Set CR0.TS, so that the next use of the FPU gives #NM, or clear it."""
        self._domain.engine.set_task_switched(bool(switched))
        return 0

    # -- callbacks ----------------------------------------------------------------------------

    def set_callbacks(
        self, event_cs: int, event: int, failsafe_cs: int, failsafe: int, _: int
    ) -> int:
        """Register the event and the failsafe callback."""
        self._register(CALLBACKTYPE_event, event_cs, event, 0)
        self._register(CALLBACKTYPE_failsafe, failsafe_cs, failsafe, 0)
        return 0

    def callback_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Register one callback. None of those that can be can also be unregistered."""
        if command == CALLBACKOP_register:
            copy = self._guest_memory.read(argument, SIZEOF_CALLBACK_REGISTER)
            one = CallbackRegister.unpack(copy)
            self._register(one.type, one.address.cs, one.address.eip, one.flags)
            return 0
        if command == CALLBACKOP_unregister:
            copy = self._guest_memory.read(argument, SIZEOF_CALLBACK_UNREGISTER)
            kind = CallbackUnregister.unpack(copy).type
            if kind in (CALLBACKTYPE_event, CALLBACKTYPE_failsafe, *_UNUSED_CALLBACKS):
                raise Refused(EINVAL, "traps.callback-stays", kind)
            raise Refused(ENOSYS, "traps.callback-type", kind)
        raise Refused(ENOSYS, "traps.callback-command", command)

    def _register(self, kind: int, cs: int, address: int, flags: int) -> None:
        vcpu = self._domain.current
        if kind == CALLBACKTYPE_event:
            vcpu.event_callback = Callback(guest_selector(cs), address, masks_events=True)
        elif kind == CALLBACKTYPE_failsafe:
            masks = bool(flags & CALLBACKF_mask_events)
            vcpu.failsafe_callback = Callback(guest_selector(cs), address, masks_events=masks)
        elif kind not in _UNUSED_CALLBACKS:
            raise Refused(ENOSYS, "traps.callback-type", kind)
