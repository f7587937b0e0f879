# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of the gdb server that means ill: the guest goes on, and the next client is served."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.gdb import RawClient, listening, run_beside
from tests.support.guest import BootedGuest, made
from tests.support.guests import several
from xenlite.debug_doors import DebugStop
from xenlite.devkit.gdb_packets import MAX_PACKET_BYTES, encode
from xenlite.devkit.gdb_server import Client, GdbSession
from xenlite.errors import ConfigError
from xenlite.toolstack.lifecycle import exit_status

SPIN = """
spin:
    inc dword ptr [counter]
    jmp spin
.data
counter: .long 0
"""


def is_served(guest: BootedGuest, address: str) -> None:
    """Check, from another thread, that a client is served; it lets the guest go on."""
    while True:
        try:
            with RawClient(address) as client:
                assert client.ask(b"?").startswith(b"T")
                return
        except (
            AssertionError,
            ConnectionError,
        ):  # the last client has not been forgotten yet: turned away
            continue


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"junk without end" * 100,
        b"$g#00$g#zz$#00",
        b"$" + b"a" * (MAX_PACKET_BYTES * 2),
        b"\x03" * 5000,
        encode(b"m"),
        encode(b"mffffffff,ffffffffffffffff"),
        encode(b"m0,99999999999999999999"),
        encode(b"Mc0000000,4:zz"),
        encode(b"Mc0000000,ffffffff:00"),
        encode(b"Xc0000000,4:a"),
        encode(b"P9999=00"),
        encode(b"P=="),
        encode(b"G00"),
        encode(b"Hgffff"),
        encode(b"Z2,c0001000,ffffffff"),
        encode(b"Z2,ffffffff,8"),
        encode(b"Z0"),
        encode(b"Z9,0,0"),
        encode(b"vCont;x:1"),
        encode(b"vCont;s:77"),
        encode(b"vCont"),
        encode(b"qXfer:features:read:target.xml:fffffffff,ffffffff"),
        encode(b"qXfer:features:read:target.xml:,"),
        encode(b"qRcmd,zz"),
        encode(b"qRcmd," + b"walk \xff\xfe 1".hex().encode()),
        encode(b"qRcmd," + b"frame 99999999999999".hex().encode()),
        encode(b"qRcmd," + b"frame 0xffffffff".hex().encode()),
        encode(b"qRcmd," + b"log x".hex().encode()),
        encode(b"qRcmd," + b"break-hypercall nonsense".hex().encode()),
        encode(b"c") + encode(b"g") + encode(b"c"),
        encode(b"s") * 50,
        encode(b"k"),
        encode(b"D") + encode(b"g") + encode(b"c"),
        b"".join(encode(b"Z2,%x,40" % at) for at in range(0xC0001000, 0xC0003000, 64)),
    ],
)
def test_nonsense_hurts_neither_the_guest_nor_the_server(bytes_sent: bytes) -> None:
    with made(SPIN) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        address = listeners.addresses()["guest"]

        def work() -> None:
            with RawClient(address) as client:
                client.socket.sendall(bytes_sent)
            is_served(guest, address)

        run_beside(guest.hypervisor, work)
        before = guest.word("counter")
        assert guest.run(until=lambda: guest.word("counter") > before)


def test_a_client_that_takes_no_answers_is_dropped() -> None:
    with made(SPIN) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        address = listeners.addresses()["guest"]

        def work() -> None:
            with RawClient(address) as client:
                client.socket.settimeout(5)
                try:
                    while True:
                        client.socket.sendall(encode(b"mc0000000,1ff0") * 64)
                except OSError:
                    pass
            is_served(guest, address)

        run_beside(guest.hypervisor, work)


def test_a_second_client_is_turned_away() -> None:
    with made(SPIN) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        address = listeners.addresses()["guest"]

        def work() -> None:
            with RawClient(address) as first:
                assert first.ask(b"?").startswith(b"T")
                with RawClient(address) as second:
                    assert second.is_closed()
                assert first.ask(b"qC") == b"QC1"

        run_beside(guest.hypervisor, work)


def test_damaged_packets_are_asked_for_again() -> None:
    with made(SPIN) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        address = listeners.addresses()["guest"]

        def work() -> None:
            with RawClient(address) as client:
                client.socket.sendall(b"$qC#00")
                assert client.socket.recv(1) == b"-"
                client.socket.sendall(encode(b"qC"))
                assert client.next() == b"QC1"

        run_beside(guest.hypervisor, work)


def test_each_domain_has_a_socket_and_one_that_stands_stops_no_other(tmp_path: Path) -> None:
    with several([SPIN, SPIN]) as (first, second):
        names = {"one": first.domid, "two": second.domid}
        path = tmp_path / "gdb"
        with listening(first.hypervisor, names, address=str(path)) as listeners:
            assert listeners.addresses() == {"one": str(path), "two": f"{path}.two"}
            assert path.stat().st_mode & 0o077 == 0

            client_holds(first, second, f"{path}.two")
        assert not path.exists()


def client_holds(first: BootedGuest, second: BootedGuest, address: str) -> None:
    client: list[RawClient] = []

    def attach() -> None:
        client.append(RawClient(address))
        assert client[0].ask(b"?").startswith(b"T")

    run_beside(first.hypervisor, attach)
    held, moved = second.word("counter"), first.word("counter")
    assert first.run(until=lambda: first.word("counter") > moved + 1000)
    assert second.word("counter") == held
    client[0].socket.close()
    assert first.run(until=lambda: second.word("counter") > held)


@pytest.mark.parametrize("address", [":99999999", "/nonexistent/socket"])
def test_an_address_that_cannot_be_is_the_users_mistake(address: str) -> None:
    with (
        made(SPIN) as guest,
        pytest.raises(ConfigError, match="--gdb"),
        listening(guest.hypervisor, {"guest": guest.domid}, address=address),
    ):
        pass


def test_an_address_that_is_taken_is_the_users_mistake() -> None:
    with made(SPIN) as guest, listening(guest.hypervisor, {"guest": guest.domid}) as listeners:
        taken = listeners.addresses()["guest"]
        with (
            pytest.raises(ConfigError, match="--gdb"),
            listening(guest.hypervisor, {}, address=taken),
            listening(guest.hypervisor, {"guest": guest.domid}, address=taken),
        ):
            pass


WORDS = [
    b"?", b"g", b"G", b"p", b"P", b"m", b"M", b"X", b"H", b"T", b"Z0", b"Z1", b"Z2", b"Z3", b"Z4",
    b"z0", b"z2", b"z4", b"s", b"vCont;", b"vCont;s:", b"vCont?", b"vKill;", b"qSupported", b"qC",
    b"qXfer:features:read:target.xml:", b"qfThreadInfo", b"qThreadExtraInfo,", b"qRcmd,", b"Q",
    b"QStartNoAckMode", b"C", b"S", b"D", b",", b";", b":", b"=", b"0", b"1", b"4", b"-1", b"ff",
    b"c0001000", b"c0002000", b"ffffffff", b"fffffffffffffff", b"f5800000", b"zz", b"\0", b"\xff",
]  # fmt: skip
MONITOR = [
    b"domain", b"vcpus", b"walk", b"p2m", b"frame", b"ports", b"grants", b"log", b"why", b"help",
    b"break-hypercall", b"break-refused", b"break-crash", b" ", b"on", b"off", b"none", b"all",
    b"0", b"0x1", b"-1", b"0xffffffff", b"99999999999", b"mmu_update", b"\xe4", b"x",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_packets_are_answered_and_never_an_error_of_ours(seed: int) -> None:
    choose = random.Random(seed)
    with made(SPIN) as guest:
        sessions = 0
        while sessions < 20:
            sessions += 1
            sent: list[bytes] = []
            heard: list[DebugStop] = []
            debugger = guest.control.attach_debugger(guest.domid, heard.append)
            client = Client(sent.append, lambda: None)
            session = GdbSession(guest.control, guest.domid, debugger, client, exit_status)
            for _ in range(60):
                payload = b"".join(choose.choices(WORDS, k=choose.randrange(1, 7)))
                if choose.random() < 0.2:
                    words = b"".join(choose.choices(MONITOR, k=choose.randrange(1, 4)))
                    payload = b"qRcmd," + words.hex().encode()
                session.receive(encode(payload) + b"\x03")
                while heard:
                    session.hear(heard.pop(0))
            session.end()
        assert guest.reason is None
        assert guest.control.audit() == []
