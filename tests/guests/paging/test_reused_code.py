# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that held code holds other code later: what runs then is what was written.

A kernel that keeps all of memory mapped without the right to execute writes programs that way. The
engine looks for translations only at the first store through such an alias, and only at its place.
"""

from __future__ import annotations

import pytest

from tests.support.paging_guest import notes_of

WRITE_SECOND_ROUTINE = """
    mov byte ptr [FREE], 0x90               # the engine looks here, and nowhere else
    mov byte ptr [FREE + 0x80], 0xB8        # mov eax, number; ret
    mov dword ptr [FREE + 0x81], {number}
    mov byte ptr [FREE + 0x85], 0xC3
"""
SHOW = """
    ENTRY ebp, FREE, RO
    MAP FREE + PAGE, ebp
    mov eax, FREE + PAGE + 0x80
    call eax
    NOTE
"""
HIDE = {
    "taken away": "MAP FREE + PAGE, 0",
    "not executable for a while": "ENTRY ebp, FREE, RO\nMAP FREE + PAGE, ebp, 0x80000000",
}


@pytest.mark.parametrize("hide", HIDE)
def test_code_in_a_page_that_held_other_code_is_what_was_written(hide: str) -> None:
    text = f"""
        ENTRY ebp, FREE, RW
        MAP FREE, ebp, 0x80000000
        {WRITE_SECOND_ROUTINE.format(number=1)}
        {SHOW}
        {HIDE[hide]}
        {WRITE_SECOND_ROUTINE.format(number=2)}
        {SHOW}
        ret
    """
    assert notes_of(text) == [1, 2]
