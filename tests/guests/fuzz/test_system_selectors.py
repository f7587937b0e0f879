# SPDX-License-Identifier: GPL-2.0-or-later
"""No jump, call or return to a system selector switches a task or ends the engine (ENGINES 6).

The hostile domain's tables hold every system type that may stand there: those that are not present.
Behind the flat selectors lie the ones that the hypervisor loads itself, without descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

import pytest

from tests.support.instruction_fuzz import Generator, Stream, minimise, replay
from xenlite.core.descriptors import LDT_SELECTOR, TSS_SELECTOR
from xenlite.machine.trap import EFLAGS_NT

_TABLE = (0x00, 0x80, 0x88, 0x90, 0x98, 0xA0, 0xD8, 0xE0)  # of the GDT: instruction_fuzz lists them
SELECTORS = (
    *(selector | ldt for selector in _TABLE for ldt in (0, 4)),
    *(TSS_SELECTOR, LDT_SELECTOR, 0xEFF8, 0xF000, 0xFFF8, 0xFFFC),
)
PLAIN = 0x202


def push(word: int) -> bytes:
    return b"\x68" + pack("<I", word)


WAYS: dict[str, Callable[[int], bytes]] = {
    "call": lambda selector: b"\x9a" + pack("<IH", 0, selector),
    "jump": lambda selector: b"\xea" + pack("<IH", 0, selector),
    "call through memory": lambda selector: push(selector) + push(0) + b"\xff\x1c\x24",
    "jump through memory": lambda selector: push(selector) + push(0) + b"\xff\x2c\x24",
    "return": lambda selector: push(selector) + push(0) + b"\xcb",
    "interrupt return": lambda selector: push(PLAIN) + push(selector) + push(0) + b"\xcf",
    "outward return": lambda selector: (
        push(selector) + push(0) + push(PLAIN) + push(selector) + push(0) + b"\xcf"
    ),
    "data": lambda selector: b"\x66\xb8" + pack("<H", selector) + b"\x8e\xd8\x8e\xc0\x8e\xd0",
    "ltr": lambda selector: b"\x66\xb8" + pack("<H", selector) + b"\x0f\x00\xd8",
    "lldt": lambda selector: b"\x66\xb8" + pack("<H", selector) + b"\x0f\x00\xd0",
}


@pytest.mark.parametrize("eflags", [PLAIN, PLAIN | EFLAGS_NT], ids=["plain", "nested"])
def test_no_way_to_a_system_selector_leads_anywhere(eflags: int) -> None:
    stacks = Generator().stacks
    streams = [
        Stream(
            ring=ring,
            offset=0,
            pieces=(code(selector | rpl),),
            registers=(0,) * 4 + (stacks[ring] - 64,) + (0,) * 3,
            eflags=eflags,
            assists=0,
            event=False,
            unhandled=None,
        )
        for ring in (1, 3)
        for rpl in {0, ring}
        for code in WAYS.values()
        for selector in SELECTORS
    ]
    failure = replay(streams)
    if failure is not None:
        pytest.fail(str(minimise(failure)))
