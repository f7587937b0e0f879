# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fuzzes found, each as a guest of its own."""

from __future__ import annotations

from tests.support.guest import KERNEL_AND_PROGRAM, boot, traps
from xenlite.abi.x86_32p import EFLAGS_IF, EFLAGS_IOPL


def test_a_trap_from_virtual_8086_mode_restores_iopl_and_if() -> None:
    """The engine takes both from the frame that enters that mode, from ring 3 too."""
    source = KERNEL_AND_PROGRAM.replace("\\before", "").replace(
        "\\program",
        """
        push 0
        push 0
        push 0
        push 0
        push 0
        push 0x1000
        push 0x23002
        push 0
        push 0x100
        iretd
        """,
    )
    source = source.replace(
        "\\handler",
        """
        pushfd
        pop eax
        mov ebx, offset flags_then
        mov ss:[ebx], eax
        mov eax, ss
        mov ds, eax
        FINISH 1
        """,
    )
    source += traps("TRAP_page_fault, 0, handler") + ".data\nflags_then: .long 0\n"
    with boot(source) as guest:
        assert guest.reason == 1, guest.crash
        assert guest.word("flags_then") & (EFLAGS_IOPL | EFLAGS_IF) == EFLAGS_IF
