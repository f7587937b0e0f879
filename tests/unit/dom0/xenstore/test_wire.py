# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlite.abi.x86_32p import EINVAL, ENOENT, XENSTORE_PAYLOAD_MAX, XS_ERROR, XS_READ
from xenlite.dom0.xenstore.wire import Decoder, Message, event, refusal, reply, strings
from xenlite.errors import PeerError, Refused

WORDS = st.integers(0, 0xFFFFFFFF)
MESSAGES = st.builds(Message, WORDS, WORDS, WORDS, st.binary(max_size=200))


def decode(decoder: Decoder) -> list[Message]:
    found = []
    while (message := decoder.next()) is not None:
        found.append(message)
    return found


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(0, 900), max_size=12))
def test_messages_arrive_whole_whatever_the_pieces(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(message.encode() for message in sent)
    decoder = Decoder()
    received = []
    start = 0
    for end in [*sorted(cuts), len(stream)]:
        decoder.feed(stream[start:end])
        start = max(start, end)
        received += decode(decoder)
    assert received == sent


def test_the_longest_payload_passes_and_one_more_byte_is_the_peers_fault() -> None:
    decoder = Decoder()
    longest = Message(XS_READ, 1, 2, bytes(XENSTORE_PAYLOAD_MAX))
    decoder.feed(longest.encode())
    assert decoder.next() == longest
    decoder.feed(pack("<IIII", XS_READ, 1, 2, XENSTORE_PAYLOAD_MAX + 1))
    for _ in range(2):
        with pytest.raises(PeerError, match="4097 bytes, of at most 4096"):
            decoder.next()


def test_answers_carry_the_numbers_of_their_request() -> None:
    request = Message(XS_READ, 7, 9, b"/a\0")
    assert reply(request, b"x") == Message(XS_READ, 7, 9, b"x")
    assert refusal(request, ENOENT) == Message(XS_ERROR, 7, 9, b"ENOENT\0")
    assert event(b"/a", b"t").payload == b"/a\0t\0"


@pytest.mark.parametrize(
    ("payload", "count", "expected"),
    [
        (b"a\0", 1, [b"a"]),
        (b"\0", 1, [b""]),
        (b"a\0b\0", None, [b"a", b"b"]),
        (b"a\0b\0", 2, [b"a", b"b"]),
    ],
)
def test_strings_end_with_a_nul_each(
    payload: bytes, count: int | None, expected: list[bytes]
) -> None:
    assert strings(payload, count) == expected


@pytest.mark.parametrize(
    ("payload", "count"), [(b"", None), (b"a", None), (b"a\0b", None), (b"a\0b\0", 1), (b"a\0", 2)]
)
def test_strings_without_their_nul_or_of_another_number_are_refused(
    payload: bytes, count: int | None
) -> None:
    with pytest.raises(Refused) as refused:
        strings(payload, count)
    assert refused.value.errno == EINVAL
