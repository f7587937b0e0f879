# SPDX-License-Identifier: GPL-2.0-or-later
"""physdev_op: the virtual I/O privilege of a vCPU (public/physdev.h).

Nothing is behind any port, so the rights decide only whether an access is answered with ones or
is the guest's fault. There are no physical devices, and no operations for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    EFLAGS_IOPL,
    EINVAL,
    ENOSYS,
    PHYSDEV_OP_CMD,
    PHYSDEV_OP_U,
    SIZEOF_PHYSDEV_SET_IOBITMAP,
    SIZEOF_PHYSDEV_SET_IOPL,
    HYPERVISOR_physdev_op,
    HYPERVISOR_physdev_op_compat,
    PHYSDEVOP_alloc_irq_vector,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_free_irq_vector,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    PhysdevSetIobitmap,
    PhysdevSetIopl,
    VMASST_TYPE_architectural_iopl,
)
from xenlite.core.hole import HOLE_START
from xenlite.errors import Refused
from xenlite.hypercalls.restart import Handler

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_COMPAT: Final = frozenset(
    {
        PHYSDEVOP_irq_status_query,
        PHYSDEVOP_set_iopl,
        PHYSDEVOP_set_iobitmap,
        PHYSDEVOP_apic_read,
        PHYSDEVOP_apic_write,
        PHYSDEVOP_alloc_irq_vector,
        PHYSDEVOP_free_irq_vector,
    }
)
_HIGHEST_IOPL: Final = 3
_IOPL_UNIT: Final = EFLAGS_IOPL & -EFLAGS_IOPL
_PORTS: Final = 65536
_BITMAP_SIZE: Final = _PORTS // 8


class PhysdevCalls:
    """The device hypercalls of one domain, for its current vCPU."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._guest_memory = domain.guest_memory
        self._operations = {
            PHYSDEVOP_set_iopl: self._set_iopl,
            PHYSDEVOP_set_iobitmap: self._set_iobitmap,
        }

    def handlers(self) -> dict[int, Handler]:
        """Name the handler of each hypercall number."""
        return {
            HYPERVISOR_physdev_op: self.physdev_op,
            HYPERVISOR_physdev_op_compat: self.physdev_op_compat,
        }

    def physdev_op(self, command: int, argument: int, _1: int, _2: int, _3: int) -> int:
        """Do one operation on the structure at ``argument``."""
        operation = self._operations.get(command)
        if operation is None:
            raise Refused(ENOSYS, "physdev.command", command)
        operation(argument)
        return 0

    def physdev_op_compat(self, op: int, _1: int, _2: int, _3: int, _4: int) -> int:
        """Do the same by the old number: command and structure are one."""
        command = self._guest_memory.read_u32(op + PHYSDEV_OP_CMD)
        if command not in _COMPAT:
            raise Refused(EINVAL, "physdev.command", command)
        return self.physdev_op(command, op + PHYSDEV_OP_U, 0, 0, 0)

    def _set_iopl(self, argument: int) -> None:
        copy = self._guest_memory.read(argument, SIZEOF_PHYSDEV_SET_IOPL)
        iopl = PhysdevSetIopl.unpack(copy).iopl
        if iopl > _HIGHEST_IOPL:
            raise Refused(EINVAL, "physdev.iopl", iopl)
        shown = bool(self._domain.assists >> VMASST_TYPE_architectural_iopl & 1)
        self._domain.engine.ways.close()
        self._domain.current.set_io_privilege(iopl * _IOPL_UNIT, shown=shown)

    def _set_iobitmap(self, argument: int) -> None:
        """Keep where the bitmap is: it is read when a port is used, as the processor would."""
        copy = self._guest_memory.read(argument, SIZEOF_PHYSDEV_SET_IOBITMAP)
        asked = PhysdevSetIobitmap.unpack(copy)
        if asked.nr_ports > _PORTS or asked.bitmap + _BITMAP_SIZE > HOLE_START:
            raise Refused(EINVAL, "physdev.io-bitmap", asked.nr_ports)
        vcpu = self._domain.current
        vcpu.io_bitmap, vcpu.io_ports = asked.bitmap, asked.nr_ports
