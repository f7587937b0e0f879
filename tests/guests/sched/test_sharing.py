# SPDX-License-Identifier: GPL-2.0-or-later
"""Several domains in one hypervisor: nobody starves, the idle cost nothing (SECURITY R11, E2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.guest import START, BootedGuest
from tests.support.guests import SMP, TIME, TIMER_EVENTS, several
from xenlite.doors import RunState
from xenlite.hypervisor import Hypervisor
from xenlite.machine.clock import ManualClock

SPIN = "spin: inc dword ptr [count]\njmp spin\n.data\ncount: .long 0\n.text\n"
HOGS = {
    "spins": SPIN,
    "yields": "again: mov ebx, SCHEDOP_yield\nxor ecx, ecx\nXEN sched_op\njmp again\n",
    "makes short calls": "again: mov ebx, 0\nmov ecx, 0\nXEN xen_version\njmp again\n",
    "makes long calls": (
        "again: mov ebx, offset table\nXEN set_trap_table\njmp again\n"
        ".data\n.p2align 12\ntable: .fill 510, 4, 0x01010101\n.fill 4, 4, 0\n.text\n"
    ),
    "sends itself events": """
        MAP_SHARED_INFO
        mov ebx, EVTCHNOP_bind_ipi
        mov ecx, offset ipi
        XEN event_channel_op
    again:
        mov ebx, EVTCHNOP_send
        mov ecx, offset ipi + EVTCHN_BIND_IPI_PORT
        XEN event_channel_op
        jmp again
    .data
    ipi: .long 0, 0
    .text
    """,
    "blocks with an event pending": """
        MAP_SHARED_INFO
        mov ebx, FLAT_RING1_CS
        mov ecx, offset back
        mov edx, FLAT_RING1_CS
        mov esi, offset back
        XEN set_callbacks
    again:
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 1
        mov ebx, SCHEDOP_block
        xor ecx, ecx
        XEN sched_op
        jmp again
    back:
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
        push eax
        XEN iret
    """,
    "sets timers for the past": """
        mov esi, 1
    again:
        mov ebx, 1
        xor ecx, ecx
        XEN set_timer_op
        jmp again
    """,
}
# Sleeps ten times for 2 ms and ends.
SLEEPER = (
    SMP
    + TIME
    + START
    + TIMER_EVENTS
    + """
    mov dword ptr [left], 10
again:
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
    add eax, 2000000
    adc edx, 0
    SET_TIMER
    SCHED_OP block
    dec dword ptr [left]
    jnz again
    FINISH 7
.data
left: .long 0
.text
"""
)


@pytest.mark.parametrize("hog", HOGS)
def test_no_hog_keeps_a_sleeper_from_its_timers(hog: str) -> None:
    with several([HOGS[hog], SLEEPER]) as (hogging, sleeper):
        ran = sleeper.run(seconds=20.0)
        assert hogging.reason is None, hogging.crash
        assert ran
        assert sleeper.reason == 7, sleeper.crash
        assert sleeper.word("ticks") == 10


def test_a_domain_that_dies_beside_others_disturbs_nobody() -> None:
    with several(["ud2", SLEEPER, "FINISH 5", SPIN]) as (crashing, sleeper, ending, spinning):
        assert sleeper.run(seconds=20.0)
        assert (sleeper.reason, ending.reason, spinning.reason) == (7, 5, None)
        assert crashing.crash_rule == "traps.no-handler"


def rounds(hypervisor: Hypervisor, until: Callable[[], bool]) -> int:
    """Run until something holds; count how often the loop came round."""
    count = 0

    def counted() -> bool:
        nonlocal count
        count += 1
        return until()

    hypervisor.run(counted, hypervisor.machine.clock.monotonic_ns() + 200_000_000)
    return count


def test_idle_domains_cost_nothing() -> None:
    block = "MAP_SHARED_INFO\nmov ebx, SCHEDOP_block\nxor ecx, ecx\nXEN sched_op\nint3\n"
    with several([block] * 8) as guests:
        first = guests[0]

        def all_blocked() -> bool:
            return all(
                guest.control.info(guest.domid).state is RunState.BLOCKED for guest in guests
            )

        assert first.run(until=all_blocked)
        first.run(seconds=0.03)  # the tick that each had under way
        assert rounds(first.hypervisor, lambda: False) <= 3, "once, and at the deadline"


def test_spinners_share_by_weight() -> None:
    """Shares of time charged; the slices are real, what they are worth is accounted."""
    with several([SPIN] * 3) as guests:
        hypervisor = guests[0].hypervisor
        for guest, weight in zip(guests, (128, 256, 512), strict=True):
            hypervisor.scheduler.set(guest.domid, weight, 0)
        hypervisor.run(lambda: False, hypervisor.machine.clock.monotonic_ns() + 700_000_000)
        spent = [running_ns(guest) for guest in guests]
        total = sum(spent)
        # Coarse: a slice that a busy host stretches to 40 ms must not fail the test.
        assert spent[0] < spent[1] < spent[2]
        assert spent[2] / total == pytest.approx(4 / 7, abs=0.15)


def running_ns(guest: BootedGuest) -> int:
    """Return how long the guest's first vCPU has run."""
    return guest.domain.vcpus[0].runstate.times_ns[0]


STORM = """
    MAP_SHARED_INFO
    mov ebx, EVTCHNOP_bind_ipi
    mov ecx, offset ipi
    XEN event_channel_op
    mov edi, {count}
again:
    mov ebx, EVTCHNOP_send
    mov ecx, offset ipi + EVTCHN_BIND_IPI_PORT
    push edi
    XEN event_channel_op
    pop edi
    dec edi
    jnz again
    FINISH 7
.data
ipi: .long 0, 0
"""


def test_a_storm_of_a_million_events_ends_and_a_neighbour_lives() -> None:
    with several([STORM.replace("{count}", "1000000"), SLEEPER]) as (storm, sleeper):
        assert sleeper.run(seconds=20.0)
        assert storm.run(seconds=60.0)
        assert (storm.reason, sleeper.reason) == (7, 7)


PEERS = """
    MAP_SHARED_INFO
    mov ebx, FLAT_RING1_CS
    mov ecx, offset on_event
    mov edx, FLAT_RING1_CS
    mov esi, offset shutdown
    XEN set_callbacks
    {join}
    jmp joined
on_event:
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
    mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
    mov dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], 0
    inc dword ptr [rounds]
    push eax
    XEN iret
joined:
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    XEN event_channel_op
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    XEN sched_op
    cmp dword ptr [rounds], {rounds}
    jb joined
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    XEN event_channel_op
    FINISH 7
.data
rounds: .long 0
port: .long 1
.text
"""
OFFER = """
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset offer
    XEN event_channel_op
    mov eax, [offer + 4]
    mov [port], eax
.data
offer: .word DOMID_SELF, 2
    .long 0
.text
"""
ACCEPT = """
try:
    mov ebx, EVTCHNOP_bind_interdomain
    mov ecx, offset accept
    XEN event_channel_op
    test eax, eax
    jz bound
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    XEN sched_op
    jmp try
bound:
    mov eax, [accept + 8]
    mov [port], eax
.data
accept: .word 1, 0
    .long 3, 0
.text
"""


def peers(join: str, rounds: int) -> str:
    return PEERS.replace("{join}", join).replace("{rounds}", str(rounds))


def test_two_domains_wake_each_other_and_no_wake_is_lost() -> None:
    with several([peers(OFFER, 2000), peers(ACCEPT, 2000)]) as (one, other):
        assert one.run(seconds=30.0, until=lambda: None not in (one.reason, other.reason))
        assert (one.reason, other.reason) == (7, 7), (one.crash, other.crash)


def test_a_domain_whose_peer_is_destroyed_sleeps_on() -> None:
    endless = 1 << 30
    with several([peers(OFFER, endless), peers(ACCEPT, endless)]) as (one, other):
        assert one.run(until=lambda: one.word("rounds") > 20)
        other.destroy()
        assert not one.run(seconds=0.05)
        assert one.control.info(one.domid).state is RunState.BLOCKED
        assert one.control.audit() == []


def test_the_time_that_dom0_works_for_a_guest_is_that_guests() -> None:
    """The clock stands still but for a backend that takes 50 ms for an event."""
    clock = ManualClock()
    sender = """
    mov eax, [esi + START_INFO_STORE_EVTCHN]
    mov [port], eax
again:
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    XEN event_channel_op
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    XEN sched_op
    jmp again
.data
port: .long 0
"""
    with several([sender, SPIN], clock=clock) as (asking, other):
        hypervisor = asking.hypervisor
        link = hypervisor.link(0)
        account = hypervisor.scheduler.account
        port = link.bind_interdomain(asking.domid, asking.built.store_port)
        link.on_event(port, lambda: clock.advance(50_000_000))
        assert asking.run(until=lambda: clock.monotonic_ns() > 0)
        assert account(asking.domid).virtual_ns == 50_000_000
        assert account(other.domid).virtual_ns == 0
        link.close(port)
