# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a console back to back: Dom0's, and a guest's made of the same ring code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.shared_page import SharedPage
from xenlite.dom0.console import IN, OUT, ConsoleProtocol
from xenlite.dom0.ring import Consumer, Producer
from xenlite.errors import PeerError


def joined() -> tuple[ConsoleProtocol, Producer, Consumer, SharedPage]:
    page = SharedPage()
    return ConsoleProtocol(page), Producer(page, OUT), Consumer(page, IN), page


def test_the_rings_have_the_sizes_of_the_interface() -> None:
    assert (IN.size, OUT.size) == (1024, 2048)


def test_output_is_taken_and_the_guest_told() -> None:
    protocol, guest_out, _, _ = joined()
    guest_out.put(b"hello")
    assert protocol.step() == (b"hello", True)
    assert protocol.step() == (b"", False)


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_output_of_any_length_arrives_whole(lines: list[bytes]) -> None:
    protocol, guest_out, _, _ = joined()
    received = b""
    for line in lines:
        while line:
            line = line[guest_out.put(line) :]
            output, told = protocol.step()
            assert told
            received += output
    assert received == b"".join(lines)


@given(st.lists(st.binary(max_size=1500), max_size=8))
def test_input_waits_for_room_and_arrives_whole(typed: list[bytes]) -> None:
    protocol, _, guest_in, _ = joined()
    received = b""
    for data in typed:
        protocol.queue(data)
        protocol.step()
        assert protocol.waiting_bytes + len(received) >= 0
        received += guest_in.take()
    while protocol.waiting_bytes:
        _, told = protocol.step()
        assert told
        received += guest_in.take()
    assert received == b"".join(typed)


def test_a_guest_that_never_reads_gets_no_more_than_the_ring_holds() -> None:
    protocol, _, guest_in, _ = joined()
    protocol.queue(b"x" * 5000)
    assert protocol.step() == (b"", True)
    assert protocol.waiting_bytes == 5000 - 1024
    assert protocol.step() == (b"", False)
    assert guest_in.take() == b"x" * 1024


@pytest.mark.parametrize("index", [2049, 0x80000000, 0xFFFFFFFF])
def test_an_impossible_out_prod_is_the_guests_fault(index: int) -> None:
    protocol, _, _, page = joined()
    page.write_u32(OUT.prod, index)
    with pytest.raises(PeerError, match="console output"):
        protocol.step()


def test_an_impossible_in_cons_is_the_guests_fault() -> None:
    protocol, _, _, page = joined()
    page.write_u32(IN.cons, 1)
    protocol.queue(b"x")
    with pytest.raises(PeerError, match="console input"):
        protocol.step()
