# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from xenlite.toolstack.console_log import TAIL_BYTES, ConsoleTail


def test_the_tail_is_the_last_lines_made_readable() -> None:
    tail = ConsoleTail()
    tail.write(b"one\r\ntwo\n\x1b[31mred \xff \xe2\x82")
    tail.write(b"\xac\tx\n\n")
    assert tail.lines(2) == ["two", "\\x1b[31mred \\xff \u20ac\tx"]
    assert tail.lines(9)[0] == "one"


def test_the_tail_is_bounded() -> None:
    tail = ConsoleTail()
    for n in range(10_000):
        tail.write(b"%05d\n" % n)
    lines = tail.lines(1 << 20)
    assert lines[-1] == "09999"
    assert len("\n".join(lines)) <= TAIL_BYTES
