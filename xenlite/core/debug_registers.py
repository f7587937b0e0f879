# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug registers of a vCPU: kept and checked as Xen does, and without effect.

What a guest sets up there never becomes #DB. The engine has no watchpoints, and it keeps EFLAGS.RF
over every block that it has chained: of a breakpoint in a loop only the first #DB came (measured; a
debugger would wait for ever). Single-stepping by EFLAGS.TF is exact, and is noted in DR6. DR4 and
DR5 are other names of DR6 and DR7, unless CR4.DE says that they are not there. Source: Intel SDM
3B, 18.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import CR4_DE, ENODEV, EPERM
from xenlite.core.hole import HOLE_START
from xenlite.errors import Refused

if TYPE_CHECKING:
    from xenlite.core.vcpu import Vcpu

_ADDRESSES: Final = range(4)
_ALIASES: Final = {4: 6, 5: 7}
_DR6, _DR7 = 6, 7
_DR6_FIXED: Final = 0xFFFF0FF0
_DR6_ZERO: Final = 1 << 12
_DR7_FIXED: Final = 1 << 10
_DR7_ZERO: Final = 0xD800
_DR7_GENERAL_DETECT: Final = 1 << 13
_DR7_IO: Final = 2


def read(vcpu: Vcpu, number: int) -> int:
    """Return a register. Raises Refused(ENODEV) where there is none of that number."""
    return vcpu.debug_registers[_existing(vcpu, number)]


def write(vcpu: Vcpu, number: int, value: int) -> None:
    """Set a register, its fixed bits as they must be.

    Raises Refused: ENODEV, and EPERM for what would watch the hypervisor or I/O.
    """
    number = _existing(vcpu, number)
    if number in _ADDRESSES:
        if value >= HOLE_START:
            raise Refused(EPERM, "debug.address-in-the-hole", value)
    elif number == _DR6:
        value = (value | _DR6_FIXED) & ~_DR6_ZERO
    else:
        value = (value | _DR7_FIXED) & ~_DR7_ZERO
        if value & _DR7_GENERAL_DETECT or _watches_ports(value):
            raise Refused(EPERM, "debug.privileged-control", value)
    vcpu.debug_registers[number] = value


def _existing(vcpu: Vcpu, number: int) -> int:
    if number in _ALIASES and not vcpu.ctrl_cr4 & CR4_DE:
        return _ALIASES[number]
    if number not in (*_ADDRESSES, _DR6, _DR7):
        raise Refused(ENODEV, "debug.no-such-register", number)
    return number


def _watches_ports(dr7: int) -> bool:
    """Tell whether DR7 enables a breakpoint on I/O, for which there is nothing to watch."""
    return any(
        dr7 >> 2 * number & 3 and dr7 >> 16 + 4 * number & 3 == _DR7_IO for number in range(4)
    )
