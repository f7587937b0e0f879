# SPDX-License-Identifier: GPL-2.0-or-later
"""Several consoles on one output: whose line is whose, whatever pieces they come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenlite.cli.consoles import LONGEST, join

Pieces = list[tuple[str, bytes]]


def shown(*pieces: tuple[str, bytes], is_terminal: bool = False) -> bytes:
    """Return what is seen of the consoles a (the live one), b and c."""
    out = bytearray()
    consoles = join(["a", "b", "c"], out.extend, is_terminal=is_terminal)
    for name, data in pieces:
        consoles.write(name, data)
    return bytes(out)


def test_one_console_is_passed_on_as_it_is() -> None:
    out = bytearray()
    consoles = join(["a"], out.extend, is_terminal=False)
    consoles.write("a", b"x\x1b[6n\r\ny")
    consoles.ended("a")
    assert out == b"x\x1b[6n\r\ny"


def test_one_console_does_not_command_a_terminal() -> None:
    out = bytearray()
    join(["a"], out.extend, is_terminal=True).write("a", b"\x1b[6n")
    assert out == b"^[[6n"


def test_each_line_has_a_label() -> None:
    text = shown(("a", b"one\ntwo\r\n"), ("b", b"three\n\nfour\n"))
    assert text == b"a| one\na| two\r\nb| three\nb| \nb| four\n"


def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    assert shown(("a", b"o"), ("a", b"n"), ("a", b"e\nt"), ("a", b"wo")) == b"a| one\na| two"
    assert shown(("b", b"o"), ("c", b"t"), ("b", b"ne\n"), ("c", b"wo\n")) == b"b| one\nc| two\n"


def test_the_first_console_is_live_and_the_others_wait_for_their_line() -> None:
    assert shown(("a", b"prompt> "), ("b", b"prompt> ")) == b"a| prompt> "


def test_a_live_line_is_interrupted_by_lines_and_goes_on_behind_a_label() -> None:
    text = shown(("a", b"prompt> "), ("b", b"line\nmo"), ("a", b"mem"), ("b", b"re\n"))
    assert text == b"a| prompt> \nb| line\na| mem\nb| more\n"


def test_on_a_terminal_the_live_line_moves_below() -> None:
    text = shown(("a", b"> m"), ("b", b"line\n"), ("a", b"em"), is_terminal=True)
    assert text == b"\x1b[ma| > m\r\x1b[K\x1b[mb| line\n\x1b[ma| > mem"


def test_a_live_line_too_long_to_be_wiped_is_ended_instead() -> None:
    text = shown(("a", b"x" * 100), ("b", b"line\n"), is_terminal=True)
    assert text == b"\x1b[ma| " + b"x" * 100 + b"\n\x1b[mb| line\n"


def test_an_escape_sequence_is_not_joined_across_consoles() -> None:
    text = shown(("a", b"\x1b["), ("b", b"6n\n"), ("a", b"6n\n"), is_terminal=True)
    assert text == b"\x1b[mb| 6n\n\x1b[ma| ^[[6n\n"


def test_an_end_shows_what_was_begun() -> None:
    for name in ("a", "b"):
        out = bytearray()
        consoles = join(["a", "b"], out.extend, is_terminal=False)
        consoles.write(name, b"panic: ")
        consoles.ended(name)
        consoles.ended(name)
        consoles.write(name, b"again\n")
        assert out == f"{name}| panic: \n{name}| again\n".encode()


def test_an_end_does_not_mix_with_a_live_line() -> None:
    out = bytearray()
    consoles = join(["a", "b"], out.extend, is_terminal=False)
    consoles.write("a", b"> ")
    consoles.write("b", b"bye")
    consoles.ended("b")
    assert out == b"a| > \nb| bye\n"


def test_a_line_without_an_end_is_cut() -> None:
    text = shown(("b", b"x" * LONGEST), ("b", b"x"))
    assert text == b"b| " + b"x" * (LONGEST + 1) + b"\n"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.text("xy\n", max_size=5).map(str.encode)), max_size=20
    ),
    st.booleans(),
)
def test_every_console_arrives_whole_and_in_order(pieces: Pieces, is_terminal: bool) -> None:
    out = bytearray()
    consoles = join(["a", "b", "c"], out.extend, is_terminal=is_terminal)
    for name, data in pieces:
        consoles.write(name, data)
    for name in "abc":
        consoles.ended(name)
    if is_terminal:
        lines = [line.rpartition(b"\r\x1b[K")[2] for line in _rows(bytes(out))]
    else:
        lines = bytes(out).split(b"\n")[:-1]
    for name in "abc":
        label = f"{name}| ".encode()
        wanted = b"".join(data for who, data in pieces if who == name)
        if wanted and not wanted.endswith(b"\n"):
            wanted += b"\n"
        seen = [line.removeprefix(label) for line in lines if line.startswith(label)]
        if name == "a" and not is_terminal:
            # Interrupted lines go on behind a second label.
            assert b"".join(seen) == wanted.replace(b"\n", b"")
        else:
            assert b"".join(line + b"\n" for line in seen) == wanted


def _rows(text: bytes) -> list[bytes]:
    """Return the rows that a terminal shows in the end, colours left out."""
    return text.replace(b"\x1b[m", b"").split(b"\n")[:-1]
