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
    EAX,
    EBP,
    EBX,
    ECX,
    EDI,
    EDX,
    EIP,
    ES,
    ESI,
    ESP,
    FS,
    GS,
    SEG0,
    SEGMENT_WORDS,
    SS,
)

if TYPE_CHECKING:
    from xenlite.core.domain import Domain

_WORDS = {
    "eax": EAX,
    "ebx": EBX,
    "ecx": ECX,
    "edx": EDX,
    "esi": ESI,
    "edi": EDI,
    "ebp": EBP,
    "esp": ESP,
    "eip": EIP,
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


def read_registers(domain: Domain) -> dict[str, int]:
    """Read what the domain's engine holds; selectors as 16 bits."""
    regs = domain.engine.regs
    named = {name: int(regs[word]) for name, word in _WORDS.items()}
    for selector in ("cs", "ss", "ds", "es", "fs", "gs"):
        named[selector] &= 0xFFFF
    named["eflags"] = domain.engine.read_eflags()
    return named
