# SPDX-License-Identifier: GPL-2.0-or-later
"""Name the registers of a stopped vCPU, for crash reports and debuggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlite.machine.trap import (
    CR0,
    CR2,
    CR3,
    CR4,
    CS,
    DS,
    EFLAGS,
    ES,
    FS,
    GENERAL_REGISTERS,
    GS,
    SEG0,
    SEGMENT_WORDS,
    SS,
)

if TYPE_CHECKING:
    from xenlite.core.vcpu import Vcpu

_WORDS = {
    **GENERAL_REGISTERS,
    "cs": SEG0 + SEGMENT_WORDS * CS,
    "ss": SEG0 + SEGMENT_WORDS * SS,
    "ds": SEG0 + SEGMENT_WORDS * DS,
    "es": SEG0 + SEGMENT_WORDS * ES,
    "fs": SEG0 + SEGMENT_WORDS * FS,
    "gs": SEG0 + SEGMENT_WORDS * GS,
    "cr0": CR0,
    "cr2": CR2,
    "cr3": CR3,
    "cr4": CR4,
}


def read_registers(vcpu: Vcpu) -> dict[str, int]:
    """Read what the engine holds of a vCPU, or what was saved of it; selectors as 16 bits.

    One that has never run has none.
    """
    engine = vcpu.domain.engine
    if vcpu is vcpu.domain.current:
        regs, eflags = engine.regs, engine.read_eflags()
    elif vcpu.context is not None:
        regs = memoryview(vcpu.context).cast("I")
        eflags = regs[EFLAGS]
    else:
        return {}
    named = {name: int(regs[word]) for name, word in _WORDS.items()}
    for selector in ("cs", "ss", "ds", "es", "fs", "gs"):
        named[selector] &= 0xFFFF
    named["eflags"] = eflags
    return named
