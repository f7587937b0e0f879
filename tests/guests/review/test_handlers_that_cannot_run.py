# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose handlers cannot run keeps nobody from running: its traps use up its turns.

In ring 3, so that each frame goes to the same place: in ring 1 the stack would end it.
"""

from __future__ import annotations

import pytest

from tests.support.guest import made, traps

SECONDS = 0.3

STACKS_FOR_RING_3 = """
    MAP_SHARED_INFO
    SET_TRAPS traps
    REMAP offset user_stack_top - 4096, PTE_USER_RW
    REMAP offset kernel_stack_top - 4096, PTE_USER_RW
    REMAP offset program_page, PTE_USER_RO
    mov ebx, FLAT_RING3_SS
    mov ecx, offset kernel_stack_top
    XEN stack_switch
    TO_USER program
.text
.p2align 12
program_page:
program:
    .byte 0xF0, 0x0F, 0xAB, 0xD0    # lock bts eax, edx: the engine cannot translate it
.p2align 12
"""
NOWHERE = 0x10


@pytest.mark.parametrize(
    "gates",
    [
        (f"6, 0, {NOWHERE}, FLAT_RING3_CS", f"14, 0, {NOWHERE}, FLAT_RING3_CS"),
        ("6, 0, program, FLAT_RING3_CS",),
    ],
    ids=["it is not mapped", "it cannot be translated"],
)
def test_a_handler_that_cannot_run_does_not_hold_the_processor(gates: tuple[str, ...]) -> None:
    with made(STACKS_FOR_RING_3 + traps(*gates)) as guest:
        assert not guest.run(SECONDS)
        assert guest.reason is None
