# SPDX-License-Identifier: GPL-2.0-or-later
"""How a guest says where its traps go: handlers, callbacks, stacks, descriptor tables, and iret.

Debug registers and the NMI handler, which is the trap handler of vector 2, are set here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EINVAL,
    ENOSYS,
    FLAT_RING1_CS,
    MAX_GDT_ENTRIES,
    SIZEOF_CALLBACK_REGISTER,
    SIZEOF_CALLBACK_UNREGISTER,
    SIZEOF_TRAP_INFO,
    SIZEOF_XENNMI_CALLBACK,
    TI_DPL_MASK,
    TI_FAULT_ADDRESS,
    TI_MASK_EVENTS,
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CallbackUnregister,
    HYPERVISOR_callback_op,
    HYPERVISOR_fpu_taskswitch,
    HYPERVISOR_get_debugreg,
    HYPERVISOR_iret,
    HYPERVISOR_nmi_op,
    HYPERVISOR_set_callbacks,
    HYPERVISOR_set_debugreg,
    HYPERVISOR_set_gdt,
    HYPERVISOR_set_trap_table,
    HYPERVISOR_stack_switch,
    HYPERVISOR_update_descriptor,
    TrapInfo,
    XENNMI_register_callback,
    XENNMI_unregister_callback,
    XennmiCallback,
)
from xenlite.core import debug_registers
from xenlite.core.bounce import Bounce
from xenlite.core.descriptors import PER_PAGE, guest_selector
from xenlite.core.paging import LEAST_WORK, Preempted
from xenlite.core.vcpu import Callback, TrapGate
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler, Restart
from xenlite.machine.trap import VECTOR_NMI

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_ENTRIES_PER_CALL: Final = 256  # then the call restarts: a table may be as long as memory
_STAYING_CALLBACKS: Final = (
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_sysenter,
    CALLBACKTYPE_syscall32,
)
_WORK_PER_ENTRY: Final = 4  # of a multicall's budget: the same call may stand there 2000 times


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
            HYPERVISOR_nmi_op: self.nmi_op,
            HYPERVISOR_set_debugreg: self.set_debugreg,
            HYPERVISOR_get_debugreg: self.get_debugreg,
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
        """Register one callback, or unregister that for NMIs: the others can't be."""
        if command == CALLBACKOP_register:
            copy = self._guest_memory.read(argument, SIZEOF_CALLBACK_REGISTER)
            one = CallbackRegister.unpack(copy)
            self._register(one.type, one.address.cs, one.address.eip, one.flags)
            return 0
        if command == CALLBACKOP_unregister:
            copy = self._guest_memory.read(argument, SIZEOF_CALLBACK_UNREGISTER)
            kind = CallbackUnregister.unpack(copy).type
            if kind in _STAYING_CALLBACKS:
                raise Refused(EINVAL, "traps.callback-stays", kind)
            if kind != CALLBACKTYPE_nmi:
                raise Refused(ENOSYS, "traps.callback-type", kind)
            self._set_nmi_gate(None)
            return 0
        raise Refused(ENOSYS, "traps.callback-command", command)

    def _register(self, kind: int, cs: int, address: int, flags: int) -> None:
        vcpu = self._domain.current
        if kind == CALLBACKTYPE_event:
            self._domain.engine.ways.close()
            vcpu.event_callback = Callback(guest_selector(cs), address, masks_events=True)
        elif kind == CALLBACKTYPE_failsafe:
            masks = bool(flags & CALLBACKF_mask_events)
            vcpu.failsafe_callback = Callback(guest_selector(cs), address, masks_events=masks)
        elif kind == CALLBACKTYPE_sysenter:
            masks = bool(flags & CALLBACKF_mask_events)
            vcpu.sysenter_callback = Callback(guest_selector(cs), address, masks_events=masks)
        elif kind == CALLBACKTYPE_nmi:
            self._register_nmi(address)
        elif kind != CALLBACKTYPE_syscall32:  # for processors that have SYSCALL in 32-bit mode
            raise Refused(ENOSYS, "traps.callback-type", kind)

    # -- non-maskable interrupts --------------------------------------------------------------

    def nmi_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Register or unregister the handler of NMIs."""
        if command == XENNMI_register_callback:
            copy = self._guest_memory.read(argument, SIZEOF_XENNMI_CALLBACK)
            self._register_nmi(XennmiCallback.unpack(copy).handler_address)
        elif command == XENNMI_unregister_callback:
            self._set_nmi_gate(None)
        else:
            raise Refused(ENOSYS, "traps.nmi-command", command)
        return 0

    def _register_nmi(self, address: int) -> None:
        gate = TrapGate(
            dpl=0, cs=FLAT_RING1_CS, address=address, masks_events=True, pushes_address=False
        )
        self._set_nmi_gate(gate)

    def _set_nmi_gate(self, gate: TrapGate | None) -> None:
        """Change the gate of vector 2, which the trap table may have given to ``int 2``."""
        self._domain.engine.ways.close()
        self._domain.current.traps[VECTOR_NMI] = gate

    # -- debug registers ----------------------------------------------------------------------

    def set_debugreg(self, number: int, value: int, _1: int, _2: int, _3: int) -> int:
        """Set a debug register, as ``mov`` to it does."""
        debug_registers.write(self._domain.current, number, value)
        return 0

    def get_debugreg(self, number: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Return a debug register."""
        return debug_registers.read(self._domain.current, number)
