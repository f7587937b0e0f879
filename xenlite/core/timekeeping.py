# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell a guest the time: the page words from which it computes system time and time of day.

Written when a vCPU is about to run and has not the newest line yet, with the version odd while they
change (public/xen.h, vcpu_time_info, shared_info).
"""

from __future__ import annotations

from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenlite.abi.x86_32p import (
    SHARED_INFO_WC_NSEC,
    SHARED_INFO_WC_SEC,
    SHARED_INFO_WC_VERSION,
    SIZEOF_VCPU_TIME_INFO,
    VCPU_INFO_TIME,
    VCPU_TIME_INFO_PAD0,
    VCPU_TIME_INFO_VERSION,
)
from xenlite.errors import Refused
from xenlite.machine.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from xenlite.core.domain import Domain
    from xenlite.core.vcpu import Vcpu
    from xenlite.machine.tsc import TimeSource

_AFTER_VERSION: Final = Struct("<IQQIb3x")  # pad0, tsc_timestamp, system_time, mul, shift
_NS_PER_S: Final = 10**9
assert (VCPU_TIME_INFO_VERSION, VCPU_TIME_INFO_PAD0) == (0, 4)


def publish_time(vcpu: Vcpu, source: TimeSource, now_ns: int) -> None:
    """Bring the vCPU's time words up to now, and the copy of them where it can be written."""
    sample = source.line(now_ns)
    if sample is vcpu.time_sample:
        return
    vcpu.time_sample = sample
    memory = vcpu.domain.machine.memory
    at = vcpu.info_maddr + VCPU_INFO_TIME
    version = (memory.m32[at >> 2] & ~1) + 2
    _AFTER_VERSION.pack_into(
        memory.m8, at + 4, 0, sample.tsc, sample.system_ns, sample.mul, sample.shift
    )
    memory.m32[at >> 2] = version & 0xFFFFFFFF
    if memory.code[at >> PAGE_SHIFT]:
        memory.wrote(at >> PAGE_SHIFT)
    if vcpu.time_area:
        with suppress(Refused):
            vcpu.domain.guest_memory.write(vcpu.time_area, read_time(vcpu))


def read_time(vcpu: Vcpu) -> bytes:
    """Return the vCPU's time words as they were published last."""
    at = vcpu.info_maddr + VCPU_INFO_TIME
    return vcpu.domain.machine.memory.read(at, SIZEOF_VCPU_TIME_INFO)


def publish_wall_clock(domain: Domain) -> None:
    """Write what time of day it was when system time was 0."""
    machine = domain.machine
    start_ns = machine.clock.wall_ns() - machine.clock.monotonic_ns()
    memory = machine.memory
    base = domain.shared_info_mfn << PAGE_SHIFT
    version = memory.m32[(base + SHARED_INFO_WC_VERSION) >> 2]
    memory.m32[(base + SHARED_INFO_WC_VERSION) >> 2] = version + 1
    memory.m32[(base + SHARED_INFO_WC_SEC) >> 2] = start_ns // _NS_PER_S & 0xFFFFFFFF
    memory.m32[(base + SHARED_INFO_WC_NSEC) >> 2] = start_ns % _NS_PER_S
    memory.m32[(base + SHARED_INFO_WC_VERSION) >> 2] = version + 2 & 0xFFFFFFFF


def publish_runstate(vcpu: Vcpu) -> None:
    """Write the vCPU's runstate where it asked for it; nothing where it can't be written."""
    if vcpu.runstate.area:
        domain = vcpu.domain
        state = vcpu.runstate.pack(domain.machine.clock.monotonic_ns())
        with suppress(Refused):
            domain.guest_memory.write(vcpu.runstate.area, state)
