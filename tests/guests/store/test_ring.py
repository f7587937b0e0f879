# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that talk to XenStore over their ring, well and badly (SECURITY F1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.guest import BootedGuest, made
from tests.support.guests import several
from tests.support.store import Client
from xenlite.abi.x86_32p import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlite.dom0.xenstore.permissions import Access, Permission
from xenlite.dom0.xenstore.quota import Quotas
from xenlite.dom0.xenstore.store import StoreNode, XenStore
from xenlite.dom0.xenstore.wire import Decoder, Message
from xenlite.errors import PeerError

RING = """
.equ REQ_CONS, XENSTORE_DOMAIN_INTERFACE_REQ_CONS
.equ REQ_PROD, XENSTORE_DOMAIN_INTERFACE_REQ_PROD
.equ RSP_CONS, XENSTORE_DOMAIN_INTERFACE_RSP_CONS
.equ RSP_PROD, XENSTORE_DOMAIN_INTERFACE_RSP_PROD

# Tell the store, and let it run.
.macro TELL
    push ecx
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    XEN event_channel_op
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    XEN sched_op
    pop ecx
.endm

.data
port: .long 0
.text
start:
    mov eax, [esi + START_INFO_STORE_EVTCHN]
    mov [port], eax
    mov ebx, [esi + START_INFO_STORE_MFN]
    mov ebp, [HYPERVISOR_VIRT_START + ebx * 4]
    shl ebp, XEN_PAGE_SHIFT
    add ebp, VIRT_BASE
"""
"""The start of a kernel that finds its store page at ebp."""

TALK = (
    RING
    + """
    mov esi, offset requests
    mov edi, offset answers
again:
    cmp esi, offset requests_end
    je receive
    mov ecx, [ebp + REQ_PROD]
    mov eax, ecx
    sub eax, [ebp + REQ_CONS]
    cmp eax, XENSTORE_RING_SIZE
    jae receive
    mov edx, ecx
    and edx, XENSTORE_RING_SIZE - 1
    mov al, [esi]
    mov [ebp + edx], al
    inc esi
    inc ecx
    mov [ebp + REQ_PROD], ecx
    {each}
    jmp again
receive:
    mov ecx, [ebp + RSP_CONS]
    cmp ecx, [ebp + RSP_PROD]
    je tell
    mov edx, ecx
    and edx, XENSTORE_RING_SIZE - 1
    mov al, [ebp + edx + XENSTORE_DOMAIN_INTERFACE_RSP]
    mov [edi], al
    inc edi
    inc ecx
    mov [ebp + RSP_CONS], ecx
    jmp receive
tell:
    mov eax, edi
    sub eax, offset answers
    cmp eax, {wanted}
    jae done
    TELL
    jmp again
done:
    FINISH 7
.data
requests: .byte {requests}
requests_end:
.bss
answers: .space 16384
"""
)
BREAK = (
    RING
    + """
    {break_it}
    mov edi, 20
again:
    TELL
    dec edi
    jnz again
    FINISH 7
"""
)


def bytes_of(data: bytes) -> str:
    return ", ".join(map(str, data))


def talking(requests: list[Message], answers: list[Message], *, each: str = "") -> str:
    """Write a kernel that sends requests and ends when it has as many bytes as the answers."""
    data = b"".join(message.encode() for message in requests)
    wanted = sum(len(message.encode()) for message in answers)
    return TALK.format(requests=bytes_of(data), wanted=wanted, each=each)


def heard(guest: BootedGuest, size: int) -> list[Message]:
    decoder = Decoder()
    decoder.feed(guest.bytes_at("answers", size))
    found = []
    while (message := decoder.next()) is not None:
        found.append(message)
    return found


@contextmanager
def serving(*guests: BootedGuest) -> Iterator[tuple[XenStore, dict[int, PeerError]]]:
    """Serve guests, each with a home of its own; yield the store, and who broke its ring."""
    broken: dict[int, PeerError] = {}
    store = XenStore(guests[0].hypervisor.link(0), broken.__setitem__)
    for guest in guests:
        owns = (Permission(guest.domid, Access.NONE),)
        store.put([StoreNode(f"/local/domain/{guest.domid}", permissions=owns)])
        store.introduce(guest.domid, guest.built.store_port)
    try:
        yield store, broken
        assert store.audit() == []
    finally:
        for guest in guests:
            store.release(guest.domid)


PLAIN = [
    (Message(XS_WRITE, 1, 0, b"data\0hello"), Message(XS_WRITE, 1, 0, b"OK\0")),
    (Message(XS_READ, 2, 0, b"/local/domain/1/data\0"), Message(XS_READ, 2, 0, b"hello")),
    (Message(XS_DIRECTORY, 3, 0, b"device/vbd\0"), Message(XS_ERROR, 3, 0, b"ENOENT\0")),
    (Message(XS_READ, 4, 0, b"/tool\0"), Message(XS_ERROR, 4, 0, b"EACCES\0")),
    (Message(XS_TRANSACTION_START, 5, 0, b"\0"), Message(XS_TRANSACTION_START, 5, 0, b"1\0")),
    (Message(XS_WRITE, 6, 1, b"big\0" + b"x" * 1900), Message(XS_WRITE, 6, 1, b"OK\0")),
    (Message(XS_TRANSACTION_END, 7, 1, b"T\0"), Message(XS_TRANSACTION_END, 7, 1, b"OK\0")),
    (Message(XS_READ, 8, 0, b"big\0"), Message(XS_READ, 8, 0, b"x" * 1900)),
    (Message(XS_WATCH, 9, 0, b"data\0t\0"), Message(XS_WATCH, 9, 0, b"OK\0")),
]
FIRST_EVENT = Message(XS_WATCH_EVENT, 0, 0, b"data\0t\0")


@pytest.mark.parametrize("each", ["", "TELL"], ids=["at once", "a byte at a time"])
def test_a_guest_is_answered_over_its_ring(each: str) -> None:
    requests = [request for request, _ in PLAIN]
    answers = [answer for _, answer in PLAIN] + [FIRST_EVENT]
    with made(talking(requests, answers, each=each)) as guest, serving(guest) as (store, broken):
        assert guest.run()
        assert (guest.reason, broken) == (7, {})
        size = sum(len(answer.encode()) for answer in answers)
        assert heard(guest, size) == answers
        assert Client(store.server, 0).read("/local/domain/1/data") == b"hello"


def test_a_guest_hears_of_what_a_tool_writes() -> None:
    watch = Message(XS_WATCH, 1, 0, b"control/shutdown\0t\0")
    event = Message(XS_WATCH_EVENT, 0, 0, b"control/shutdown\0t\0")
    answers = [Message(XS_WATCH, 1, 0, b"OK\0"), event, event]
    with made(talking([watch], answers)) as guest, serving(guest) as (store, _):
        assert guest.run(until=lambda: bool(store.server.watches.all()))
        Client(store.server, 0).write("/local/domain/1/control/shutdown", b"poweroff")
        assert guest.run()
        assert heard(guest, sum(len(answer.encode()) for answer in answers)) == answers


HEADER = "mov dword ptr [ebp + 12], {len}\n mov dword ptr [ebp + REQ_PROD], 16"
ONE_READ = bytes_of(Message(XS_READ, 1, 0, b"data\0").encode())
PUT_READ = f"""
    mov esi, offset one_read
    mov edi, ebp
    mov ecx, 21
    cld
    rep movsb
    mov dword ptr [ebp + REQ_PROD], 21
.data
one_read: .byte {ONE_READ}
.text
"""


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        ("mov dword ptr [ebp + REQ_PROD], 1025", "1025 bytes of 1024"),
        ("mov dword ptr [ebp + REQ_PROD], -1", "bytes of 1024"),
        ("mov dword ptr [ebp + REQ_PROD], 0x80000000", "bytes of 1024"),
        ("mov dword ptr [ebp + RSP_CONS], 1\n" + PUT_READ, "store answers"),
        (HEADER.format(len=4097), "a message of 4097 bytes"),
        (HEADER.format(len=-1), "a message of 4294967295 bytes"),
    ],
)
def test_a_guest_that_breaks_its_ring_is_cut_off_alone(break_it: str, what: str) -> None:
    request, answer = PLAIN[0]
    sources = [BREAK.format(break_it=break_it), talking([request], [answer])]
    with several(sources) as guests, serving(*guests) as (store, broken):
        hostile, other = guests
        client = Client(store.server, 0)
        assert hostile.run(until=lambda: hostile.reason is not None and other.reason is not None)
        assert (hostile.reason, other.reason) == (7, 7)
        assert list(broken) == [hostile.domid]
        assert what in str(broken[hostile.domid])
        assert not store.server.hears(store.server.domains[hostile.domid])
        assert client.read(f"/local/domain/{other.domid}/data") == b"hello"


def test_writing_the_stores_own_indexes_moves_nothing() -> None:
    request, answer = PLAIN[0]
    spoil = "mov dword ptr [ebp + REQ_CONS], 77\n mov dword ptr [ebp + RSP_PROD], 99\n"
    source = talking([request], [answer]).replace("    mov esi, offset requests\n", spoil + TAIL)
    with made(source) as guest, serving(guest) as (store, broken):
        assert guest.run()
        assert (guest.reason, broken) == (7, {})
        assert Client(store.server, 0).read("/local/domain/1/data") == b"hello"


TAIL = """
    mov esi, offset requests
    mov ecx, requests_end - requests
    mov edi, ebp
    cld
    rep movsb
    mov dword ptr [ebp + REQ_PROD], requests_size
.equ requests_size, requests_end - requests
    TELL
    jmp done
"""


def test_a_guest_that_never_reads_blocks_itself_alone() -> None:
    read = Message(XS_READ, 1, 0, b"/local/domain/1\0").encode()
    # Fill the request ring, again and again, whenever there is room; never look at the answers.
    flood = TALK.format(requests=bytes_of(read * 8), wanted=1, each="").replace(
        "receive:\n", "receive:\n    mov esi, offset requests\n    TELL\n    jmp again\n"
    )
    request, answer = PLAIN[0]
    with several([flood, talking([request], [answer])]) as guests, serving(*guests) as served:
        store, broken = served
        hostile, other = guests
        assert hostile.run(until=lambda: other.reason is not None)
        outbox = store.server.domains[hostile.domid].outbox
        assert hostile.run(until=lambda: outbox.replies >= store.server.quotas.outstanding)
        held = outbox.size_bytes
        rounds = iter(range(100))
        assert hostile.run(until=lambda: next(rounds, None) is None)
        assert outbox.size_bytes == held
        assert (other.reason, broken) == (7, {})


def test_a_guest_that_leaves_its_events_unread_is_cut_off() -> None:
    watch = Message(XS_WATCH, 1, 0, b"/local/domain/1\0t\0")
    source = talking([watch], [Message(XS_WATCH, 1, 0, b"OK\0")])
    with made(source) as guest, serving(guest) as (store, broken):
        store.server.quotas = Quotas(unread=4000)
        assert guest.run()
        tool = Client(store.server, 0)
        for n in range(200):
            tool.write(f"/local/domain/1/{n}")
        assert "events unread" in str(broken[guest.domid])
        assert store.server.watches.all() == []


def test_a_ring_comes_and_goes_with_its_domain() -> None:
    request, answer = PLAIN[0]
    with made(talking([request], [answer])) as guest, serving(guest) as (store, _):
        for _ in range(5):
            store.release(guest.domid)
            assert guest.domid not in store.server.domains
            store.introduce(guest.domid, guest.built.store_port)
        store.put([StoreNode("/local/domain/1", "", (Permission(1, Access.NONE),))])
        assert guest.run()
        assert guest.reason == 7
