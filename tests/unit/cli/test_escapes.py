# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlite.cli.escapes import EscapeFilter


def seen(data: bytes) -> bytes:
    return EscapeFilter().feed(data)


@pytest.mark.parametrize(
    "data",
    [
        b"plain text\r\n\ttab\b\a",
        "Gr\u00fc\u00dfe \u20ac \U0001f600\n".encode(),
        b"\x1b[31;1mred\x1b[0m",
        b"\x1b[2J\x1b[H\x1b[10;20Hx\x1b[K",
        b"\x1b[?25l\x1b[?1049h\x1b[4h",
        b"\x1b7\x1b8\x1b(0\x1b)B\x1bM\x1bc",
    ],
)
def test_text_colours_and_movement_pass(data: bytes) -> None:
    assert seen(data) == data


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b]0;title\a", b"^[]0;title\a"),
        (b"\x1b]52;c;cm0gLXJmIC8=\x1b\\", b"^[]52;c;cm0gLXJmIC8=^[\\"),
        (b"\x1b[6n", b"^[[6n"),
        (b"\x1b[c", b"^[[c"),
        (b"\x1b[>c", b"^[[>c"),
        (b"\x1b[21t", b"^[[21t"),
        (b"\x1b[5i", b"^[[5i"),
        (b"\x1b[?1000h", b"^[[?1000h"),
        (b"\x1b[?2004h", b"^[[?2004h"),
        (b"\x1b[!p", b"^[[!p"),
        (b"\x1b[99999999b", b"^[[99999999b"),
        (b"\x1bP+q544e\x1b\\", b"^[P+q544e^[\\"),
        (b"\x1b_x\x1b^y\x1bXz", b"^[_x^[^y^[Xz"),
        (b"\x1bZ", b"^[Z"),
        (b"\x1b\x1b[c", b"^[^[[c"),
        (b"\x1b[1\x1b[c", b"^[[1^[[c"),
        (b"\x05\x0e\x7f\x01", b"^E^N^?^A"),
        (b"\x9b6n\x9d0;x", b"\\x9b6n\\x9d0;x"),
        (b"\xc2\x9b6n", b"\\x9b6n"),
        (b"\xc2\x1b[c", b"\\xc2^[[c"),
        (b"\xe2\x1b[c", b"\xe2^[[c"),
        (b"\xff\xfe\x80", b"\\xff\\xfe\\x80"),
    ],
)
def test_commands_to_the_terminal_are_shown_instead(data: bytes, shown: bytes) -> None:
    assert seen(data) == shown


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\x1b", b"[", b"]", b"?", b"1049", b";", b"h", b"n", b"c", b"\xc2", b"\x9b"]
        ),
        st.binary(max_size=3),
    ),
    max_size=20,
)


@settings(max_examples=500)
@given(PIECES)
def test_no_split_makes_a_difference(pieces: list[bytes]) -> None:
    whole, parts = EscapeFilter(), EscapeFilter()
    assert b"".join(map(parts.feed, pieces)) == whole.feed(b"".join(pieces))


@settings(max_examples=1000)
@given(PIECES)
def test_what_passes_commands_nothing(pieces: list[bytes]) -> None:
    """What comes out would come out again: no refused sequence hides in it."""
    out = EscapeFilter().feed(b"".join(pieces))
    assert EscapeFilter().feed(out) == out


def test_an_endless_sequence_is_shown_and_not_kept() -> None:
    filter_ = EscapeFilter()
    out = filter_.feed(b"\x1b[" + b"1;" * 1000)
    assert out.startswith(b"^[[1;1;")
    assert len(out) > 1900
