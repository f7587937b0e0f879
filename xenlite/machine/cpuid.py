# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer CPUID: what is shown is what the CPU does.

Three rules made the lists below, and ``tests/unit/machine/test_cpuid.py`` executes every feature
that is shown:

- Shown is what the emulator executes and keeps per vCPU. It runs a few more opcodes than it
  claims (RDSEED, VZEROUPPER): those stay hidden.
- Hidden is what Xen keeps from PV guests because it works on physical addresses or on hardware
  that they do not have: PSE, PGE, PSE36, MTRR, APIC, MCE, PAT, VME, MONITOR.
- Hidden is what no guest can switch on here: SYSENTER and SYSCALL (no entry point can be
  registered), XSAVE and all that needs it, FSGSBASE, SMEP, PCID, long mode.

Source: Intel SDM volume 2A, CPUID; public/arch-x86/cpuid.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from xenlite.abi.x86_32p import (
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
    XEN_CPUID_FIRST_LEAF,
    XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX,
    XEN_CPUID_SIGNATURE_EDX,
)
from xenlite.machine.trap import CpuidLeaf

XEN_MAJOR: Final = 4
XEN_MINOR: Final = 17
"""The version of Xen whose interface is offered, to CPUID and to ``xen_version`` alike."""

LEAF1_EDX: Final[Mapping[str, int]] = {
    "fpu": 0, "tsc": 4, "msr": 5, "pae": 6, "cx8": 8, "cmov": 15, "clflush": 19, "mmx": 23,
    "fxsr": 24, "sse": 25, "sse2": 26,
}  # fmt: skip
LEAF1_ECX: Final[Mapping[str, int]] = {
    "sse3": 0, "pclmulqdq": 1, "ssse3": 9, "sse4_1": 19, "sse4_2": 20, "movbe": 22, "popcnt": 23,
    "aes": 25, "rdrand": 30, "hypervisor": 31,
}  # fmt: skip
LEAF7_EBX: Final[Mapping[str, int]] = {"bmi1": 3, "bmi2": 8, "erms": 9}
EXTENDED_EDX: Final[Mapping[str, int]] = {"nx": 20, "rdtscp": 27}
EXTENDED_ECX: Final[Mapping[str, int]] = {"lahf": 0, "abm": 5}

_HIGHEST: Final = 7
_HIGHEST_EXTENDED: Final = 0x80000008
_EXTENDED: Final = 0x80000000
_MODEL: Final = 0x000306C4
"""Family 6, model 0x3c, stepping 4: what the emulator says of itself."""
_CACHE_LINE: Final = 8 << 8
"""CLFLUSH works on 8 times 8 bytes."""
_CACHES: Final = (1, 0, 0, 0x2C307D)
"""Leaf 2: descriptors of a 32 KiB L1 data, a 32 KiB L1 code and a 2 MiB L2 cache."""
_VENDOR: Final = b"GenuineIntel"
_BRAND: Final = b"xenlite virtual processor"
_ADDRESS_BITS: Final = 32 << 8 | 40
"""32 virtual bits, 40 physical ones: entries above bit 39 fault as reserved."""
_ALL_HYPERCALL_PAGES: Final = 1
_XEN_MSR_BASE: Final = 0x40000000
"""Where a guest asks for a hypercall page; a PV guest's loader has given it one already."""

_NOTHING: Final[CpuidLeaf] = (0, 0, 0, 0)


def cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
    """Answer one CPUID, plain or forced; leaves that are not there are zero, as Xen's are."""
    if leaf == _HIGHEST and subleaf:
        return _NOTHING
    return _leaves().get(leaf, _NOTHING)


@cache
def _leaves() -> Mapping[int, CpuidLeaf]:
    ebx, edx, ecx = _words(_VENDOR, 3)
    brand = _words(_BRAND, 12)
    return {
        0: (_HIGHEST, ebx, ecx, edx),
        1: (_MODEL, _CACHE_LINE, _mask(LEAF1_ECX), _mask(LEAF1_EDX)),
        2: _CACHES,
        7: (0, _mask(LEAF7_EBX), 0, 0),
        XEN_CPUID_FIRST_LEAF: (
            XEN_CPUID_FIRST_LEAF + 2,
            XEN_CPUID_SIGNATURE_EBX,
            XEN_CPUID_SIGNATURE_ECX,
            XEN_CPUID_SIGNATURE_EDX,
        ),
        XEN_CPUID_FIRST_LEAF + 1: (XEN_MAJOR << 16 | XEN_MINOR, 0, 0, 0),
        XEN_CPUID_FIRST_LEAF + 2: (
            _ALL_HYPERCALL_PAGES,
            _XEN_MSR_BASE,
            XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
            0,
        ),
        _EXTENDED: (_HIGHEST_EXTENDED, ebx, ecx, edx),
        _EXTENDED + 1: (_MODEL, 0, _mask(EXTENDED_ECX), _mask(EXTENDED_EDX)),
        _EXTENDED + 2: (brand[0], brand[1], brand[2], brand[3]),
        _EXTENDED + 3: (brand[4], brand[5], brand[6], brand[7]),
        _EXTENDED + 4: (brand[8], brand[9], brand[10], brand[11]),
        _HIGHEST_EXTENDED: (_ADDRESS_BITS, 0, 0, 0),
    }


def _mask(bits: Mapping[str, int]) -> int:
    return sum(1 << bit for bit in bits.values())


def _words(text: bytes, count: int) -> list[int]:
    padded = text.ljust(4 * count, b"\0")
    return [int.from_bytes(padded[4 * n : 4 * n + 4], "little") for n in range(count)]
