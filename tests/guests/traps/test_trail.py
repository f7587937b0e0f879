# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash tells the last traps, whoever served them: the stub alone, Python, or a saved context."""

from __future__ import annotations

import pytest

from tests.support.guest import made, traps
from xenlite.abi.x86_32p import TRAP_divide_error, TRAP_int3, TRAP_invalid_op, TRAP_page_fault
from xenlite.machine.cpu import Mode

NOWHERE = 0x08000123
KERNEL = f"""
    SET_TRAPS traps
    mov edi, 100
again:
    xor ecx, ecx
divide:
    div ecx                         # from the second on, the stub serves it alone
behind_divide:
    dec edi
    jnz again
undefined:
    ud2
behind_undefined:
    int3
touch:
    mov eax, [{NOWHERE:#x}]
    FINISH 1
skip_two:
    add dword ptr [esp], 2
    push eax
    XEN iret
back:
    push eax
    XEN iret
die:
    FINISH 3                        # SHUTDOWN_crash
"""
GATES = traps(
    "TRAP_divide_error, 0, skip_two",
    "TRAP_invalid_op, 0, skip_two",
    "TRAP_int3, 0, back",
    "TRAP_page_fault, 0, die",
)


@pytest.mark.parametrize("mode", ["live", "copied"])
def test_a_crash_names_the_last_traps_with_their_places(mode: Mode) -> None:
    with made(KERNEL + GATES, mode=mode) as guest:
        guest.run()
        assert guest.crash is not None
        seen = guest.crash.traps
        place = {name: guest.symbols[name] for name in ("divide", "undefined", "touch")}
        assert len(seen) == 64
        divisions, (invalid, software, fault) = seen[:-3], seen[-3:]
        assert {(one.vector, one.eip) for one in divisions} == {
            (TRAP_divide_error, place["divide"])
        }
        assert (invalid.vector, invalid.eip) == (TRAP_invalid_op, place["undefined"])
        assert (software.vector, software.is_software) == (TRAP_int3, True)
        assert (fault.vector, fault.eip, fault.cr2) == (TRAP_page_fault, place["touch"], NOWHERE)
        assert {one.ring for one in seen} == {1}
        assert not any(one.is_software for one in (*divisions, invalid, fault))
