# SPDX-License-Identifier: GPL-2.0-or-later
"""Events between two guests that run, block, die and come back (SECURITY C1, E3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

from tests.support.guest import MEGABYTE, BootedGuest, add_guest
from tests.support.guests import SMP, several
from xenlite.abi.x86_32p import EVTCHNSTAT_interdomain, EVTCHNSTAT_unbound
from xenlite.core.vcpu import VcpuState
from xenlite.hypervisor import Hypervisor

PORT = 3  # ports 1 and 2 are the store's and the console's; domids begin at 1
# The first guest offers a port to the second, which takes it as soon as it is there.
OFFERING = """
    mov word ptr [offered + EVTCHN_ALLOC_UNBOUND_DOM], DOMID_SELF
    mov word ptr [offered + EVTCHN_ALLOC_UNBOUND_REMOTE_DOM], 2
    EVENT_OP alloc_unbound, offered
    mov eax, [offered + EVTCHN_ALLOC_UNBOUND_PORT]
    mov [port], eax
"""
BINDING = """
bind:
    EVENT_OP bind_interdomain, bound
    test eax, eax
    jz is_bound
    SCHED_OP yield
    jmp bind
is_bound:
    mov eax, [bound + EVTCHN_BIND_INTERDOMAIN_LOCAL_PORT]
    mov [port], eax
"""
DATA = """
.data
offered: .long 0, 0
bound: .word 1, 0
    .long 3, 0
port: .long 0
polled: .long port, 1, 0, 0
rounds: .long \\rounds
count: .long 0
.text
"""


def wait(name: str) -> str:
    """Sleep until the port is pending, and take the event; events stay masked."""
    return f"""
    wait_{name}:
        lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], {PORT}
        jc came_{name}
        SCHED_OP poll, offset polled
        jmp wait_{name}
    came_{name}:
    """


def data(rounds: int = 0) -> str:
    """Write the kernels' data; ``rounds`` is a word that they count in."""
    return DATA.replace("\\rounds", str(rounds))


def ping(rounds: int) -> str:
    """Send first, then wait, so many times."""
    return f"""
        MAP_SHARED_INFO
        {OFFERING}
        {wait("start")}
    again:
        EVENT_OP send, port
        {wait("reply")}
        inc dword ptr [count]
        dec dword ptr [rounds]
        jnz again
        FINISH 1
    {data(rounds)}
    """


def pong(rounds: int) -> str:
    """Bind, say so, then answer so many times."""
    return f"""
        MAP_SHARED_INFO
        {BINDING}
        lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
        EVENT_OP send, port
    again:
        {wait("call")}
        inc dword ptr [count]
        EVENT_OP send, port
        dec dword ptr [rounds]
        jnz again
        FINISH 2
    {data(rounds)}
    """


def run(guests: list[BootedGuest], until: Callable[[], bool], seconds: float = 20) -> bool:
    """Run the guests together."""
    hypervisor = guests[0].hypervisor
    deadline = hypervisor.machine.clock.monotonic_ns() + int(seconds * 1e9)
    return hypervisor.run(until, deadline)


def kernel(text: str) -> str:
    """Put the macros before a kernel."""
    return SMP + "start:\n    mov eax, [esi + START_INFO_MFN_LIST]\n    mov [p2m], eax\n" + text


def test_two_guests_wake_each_other_and_lose_no_event() -> None:
    rounds = 2000
    with several([kernel(ping(rounds)), kernel(pong(rounds))]) as guests:
        assert run(guests, lambda: all(guest.reason is not None for guest in guests))
        assert [guest.reason for guest in guests] == [1, 2], [guest.crash for guest in guests]
        assert [guest.word("count") for guest in guests] == [rounds, rounds]


def test_a_peer_that_has_shut_down_keeps_its_end() -> None:
    waits_for_ever = kernel(ping(10**6))
    dies = kernel(f"MAP_SHARED_INFO\n{BINDING}\nFINISH 0\n{data()}")
    with several([waits_for_ever, dies]) as guests:
        one, two = guests
        assert run(guests, lambda: two.reason is not None)
        channel = one.domain.events.channel(PORT)
        assert channel is not None
        assert channel.state.value == EVTCHNSTAT_interdomain


def test_a_guest_destroyed_while_it_polls_leaves_its_peer_unbound() -> None:
    """The peer goes on sending to nobody, which is no error."""
    storm = f"""
        MAP_SHARED_INFO
        {BINDING}
        lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
        EVENT_OP send, port
    again:
        EVENT_OP send, port
        or [count], eax
        inc dword ptr [rounds]
        SCHED_OP yield
        jmp again
    {data()}
    """
    polls = f"""
        MAP_SHARED_INFO
        {OFFERING}
        {wait("start")}
        mov dword ptr [polled + SCHED_POLL_NR_PORTS], 0
        SCHED_OP poll, offset polled
        FINISH 1
    {data()}
    """
    hypervisor = Hypervisor(64 * MEGABYTE)
    with closing(hypervisor), ExitStack() as life_of_two, ExitStack() as life_of_one:
        control = hypervisor.control()
        one = add_guest(hypervisor, kernel(polls), life_of_one, name="one")
        two = add_guest(hypervisor, kernel(storm), life_of_two, name="two")
        for guest in (one, two):
            control.unpause(guest.domid)
        assert run([one], lambda: one.domain.events.pollers == {0: frozenset()})
        assert one.domain.current.state is VcpuState.BLOCKED
        life_of_one.close()
        assert control.audit() == []
        channel = two.domain.events.channel(PORT)
        assert channel is not None
        assert channel.state.value == EVTCHNSTAT_unbound
        sent = two.word("rounds")
        assert run([two], lambda: two.word("rounds") > sent + 50)
        assert two.word("count") == 0


def test_a_storm_does_not_keep_its_target_from_running() -> None:
    storm = f"""
        MAP_SHARED_INFO
        {BINDING}
    again:
        EVENT_OP send, port
        inc dword ptr [count]
        jmp again
    {data()}
    """
    works = f"""
        MAP_SHARED_INFO
        {OFFERING}
    again:
        inc dword ptr [count]
        lock btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 3
        adc dword ptr [rounds], 0
        jmp again
    {data()}
    """
    with several([kernel(works), kernel(storm)]) as guests:
        run(guests, lambda: False, seconds=0.5)
        one, two = guests
        assert one.word("count") > 10_000
        assert two.word("count") > 1000
        assert 0 < one.word("rounds") <= two.word("count") + 1
