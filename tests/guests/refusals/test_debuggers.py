# SPDX-License-Identifier: GPL-2.0-or-later
"""What a debugger and its client are refused; the guest does not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.guest import BootedGuest, made
from xenlite.debug_doors import Access, Debugger, DebugStop
from xenlite.devkit.gdb_packets import Packet, PacketReader, encode
from xenlite.devkit.gdb_server import Client, GdbSession
from xenlite.errors import Refused
from xenlite.machine.probes import MAX_CELLS
from xenlite.toolstack.lifecycle import exit_status

SPIN = """
spin:
    jmp spin
"""
KERNEL = 0xC0001000


@pytest.fixture
def guest() -> Iterator[BootedGuest]:
    with made(SPIN, vcpus=2) as built:
        yield built


@pytest.fixture
def debugger(guest: BootedGuest) -> Debugger:
    return guest.control.attach_debugger(guest.domid, lambda _stop: None)


def assert_refused(rule: str, call: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.rule == rule


# -- the door -------------------------------------------------------------------------------------


def test_a_domain_has_one_debugger(guest: BootedGuest, debugger: Debugger) -> None:
    def attach() -> Debugger:
        return guest.control.attach_debugger(guest.domid, lambda _stop: None)

    assert_refused("debug.has-a-debugger", attach)
    debugger.detach()
    attach()


def test_a_debugger_that_has_let_go_does_nothing_more(debugger: Debugger) -> None:
    debugger.detach()
    assert_refused("debug.not-attached", debugger.resume)


def test_a_running_domain_is_not_stepped(debugger: Debugger) -> None:
    debugger.resume()
    assert_refused("debug.not-held", lambda: debugger.step(0))


def test_a_vcpu_that_is_down_has_nothing_to_step_or_watch(debugger: Debugger) -> None:
    assert_refused("debug.vcpu-is-down", lambda: debugger.step(1))
    assert_refused(
        "debug.vcpu-is-down", lambda: debugger.set_watchpoint(1, KERNEL, 4, Access.CHANGE)
    )


def test_a_vcpu_that_has_not_run_has_no_registers(debugger: Debugger) -> None:
    assert_refused("debug.vcpu-has-not-run", lambda: debugger.write_registers(1, {"eax": 1}))


@pytest.mark.parametrize("name", ["cs", "cr3"])
def test_selectors_and_control_registers_are_not_written(
    guest: BootedGuest, debugger: Debugger, name: str
) -> None:
    before = guest.control.registers(guest.domid, 0)
    change = {"eax": 1, name: 0}
    assert_refused("debug.register-is-read-only", lambda: debugger.write_registers(0, change))
    assert guest.control.registers(guest.domid, 0) == before


def test_the_fpus_image_is_whole(debugger: Debugger) -> None:
    before = debugger.read_fpu(0)
    assert_refused("debug.fpu-image-size", lambda: debugger.write_fpu(0, before[:-1]))
    assert debugger.read_fpu(0) == before


def test_a_hypercall_to_stop_at_exists(debugger: Debugger) -> None:
    assert_refused("debug.no-such-hypercall", lambda: debugger.break_on_hypercalls([64]))


@pytest.mark.parametrize(("vaddr", "size"), [(KERNEL, 0), (KERNEL, 65), (0xFFFFFFFE, 4)])
def test_a_watchpoint_has_a_size_and_an_end(debugger: Debugger, vaddr: int, size: int) -> None:
    def watch() -> None:
        debugger.set_watchpoint(0, vaddr, size, Access.CHANGE)

    assert_refused("debug.watchpoint-size", watch)
    assert_refused(
        "debug.no-such-watchpoint",
        lambda: debugger.clear_watchpoint(vaddr, size, Access.CHANGE),
    )


def test_words_are_watched_up_to_a_limit(debugger: Debugger) -> None:
    def watch_many() -> None:
        for n in range(MAX_CELLS + 1):
            debugger.set_watchpoint(0, KERNEL + 8 * n, 4, Access.CHANGE)

    assert_refused("debug.too-many-watchpoints", watch_many)
    debugger.clear_watchpoint(KERNEL, 4, Access.CHANGE)
    debugger.set_watchpoint(0, KERNEL, 4, Access.CHANGE)


def test_a_write_needs_a_mapping(guest: BootedGuest) -> None:
    control = guest.control
    assert control.translate(guest.domid, 0, 0x1000) is None
    assert_refused(
        "control.not-mapped", lambda: control.write_virtual(guest.domid, 0, 0x1000, b"\xff")
    )


# -- gdb's protocol -------------------------------------------------------------------------------


class Asked:
    """A client in the test's own process."""

    def __init__(self, guest: BootedGuest) -> None:
        self._sent = bytearray()
        self._reader = PacketReader()
        stops: list[DebugStop] = []
        self.debugger = guest.control.attach_debugger(guest.domid, stops.append)
        client = Client(self._sent.extend, lambda: None)
        self._session = GdbSession(guest.control, guest.domid, self.debugger, client, exit_status)

    def ask(self, payload: bytes) -> bytes | None:
        """Send a packet; return the answer, None where there is none yet."""
        self._session.receive(encode(payload))
        answers = [one for one in self._reader.feed(bytes(self._sent)) if isinstance(one, Packet)]
        self._sent.clear()
        return answers[0].payload if answers else None

    def why(self) -> str:
        """Return the last error, in words."""
        answer = self.ask(b"qRcmd," + b"why".hex().encode())
        assert answer is not None
        return bytes.fromhex(answer.decode()).decode()


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"m0", "gdb.bad-packet"),
        (b"mxyz,4", "gdb.not-a-number"),
        (b"m" + b"0" * 17 + b",4", "gdb.not-a-number"),
        (b"m1000,4", "control.not-mapped"),
        (b"P0=zz", "gdb.not-hexadecimal"),
        (b"P0=00", "debug.register-size"),
        (b"P99=00000000", "debug.no-such-register"),
        (b"Mc0001000,2:00", "gdb.size-differs"),
        (b"vCont;r:1", "gdb.no-such-action"),
        (b"Hg63", "gdb.no-such-thread"),
    ],
)
def test_a_bad_packet_is_refused_and_monitor_why_names_the_rule(
    guest: BootedGuest, payload: bytes, rule: str
) -> None:
    before = guest.control.registers(guest.domid, 0)
    client = Asked(guest)
    answer = client.ask(payload)
    assert answer is not None
    assert answer.startswith(b"E")
    assert client.why().startswith(rule)
    assert guest.control.registers(guest.domid, 0) == before


def test_a_domain_that_runs_has_no_reason_to_have_stopped(guest: BootedGuest) -> None:
    client = Asked(guest)
    assert client.ask(b"c") is None
    answer = client.ask(b"?")
    assert answer is not None
    assert answer.startswith(b"E")
    assert client.why() == "gdb.running\n"
