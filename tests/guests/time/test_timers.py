# SPDX-License-Identifier: GPL-2.0-or-later
"""Timers of a guest: any deadline, once or again and again, asleep or not (SECURITY E3).

The clock moves only when the machine is idle, straight to what comes next: no test waits.
"""

from __future__ import annotations

import pytest

from tests.support.guest import BootedGuest, boot, made
from tests.support.guests import SMP, TIME, TIMER_EVENTS
from xenlite.abi.x86_32p import EINVAL, ETIME, SHUTDOWN_watchdog
from xenlite.doors import RunState
from xenlite.machine.clock import ManualClock

WORD = 1 << 32
MS = 1_000_000


def kernel(text: str) -> str:
    """Write a kernel that takes timer events and keeps the time in ``before`` and ``after``."""
    data = "\n.data\nbefore: .quad 0\nafter: .quad 0\nstructure: .fill 8, 4, 0\n.text\n"
    macros = """
    .macro KEEP_TIME label
        mov ebx, offset shared_info + VCPU_INFO_TIME
        call system_time
        mov [\\label], eax
        mov [\\label + 4], edx
    .endm
    """
    start = "start:\n mov eax, [esi + START_INFO_MFN_LIST]\n mov [p2m], eax\n"
    return SMP + TIME + macros + start + TIMER_EVENTS + text + data


def quad(guest: BootedGuest, label: str) -> int:
    low, high = guest.words(label, 2)
    return low | high << 32


SLEEP = """
    KEEP_TIME before
    mov ebx, {low}
    mov ecx, {high}
    XEN set_timer_op
    mov [result], eax
    SCHED_OP block
    KEEP_TIME after
    FINISH 7
"""


@pytest.mark.parametrize(
    ("deadline_ns", "comes_at_ns"),
    [
        (5 * MS, 5 * MS),
        (1, 1),
        ((1 << 50) - 1, (1 << 50) - 1),
        (1 << 50, 100 * MS),
        (1 << 63, 100 * MS),
        ((1 << 64) - 1, 100 * MS),
    ],
)
def test_a_sleeper_wakes_at_its_deadline(deadline_ns: int, comes_at_ns: int) -> None:
    text = SLEEP.format(low=deadline_ns % WORD, high=deadline_ns >> 32)
    with boot(kernel(text), clock=ManualClock(), seconds=1e9) as guest:
        assert guest.reason == 7, guest.crash
        assert (guest.word("result"), guest.word("ticks")) == (0, 1)
        assert quad(guest, "before") == 0
        assert quad(guest, "after") == comes_at_ns


def test_no_deadline_is_none_and_takes_one_back() -> None:
    text = SLEEP.format(low=5 * MS, high=0).replace("SCHED_OP block", "{again}\nSCHED_OP block")
    text = text.format(again="xor ebx, ebx\nxor ecx, ecx\nXEN set_timer_op")
    with made(kernel(text), clock=ManualClock()) as guest:
        assert not guest.run(seconds=1000.0)
        assert guest.control.info(guest.domid).state is RunState.BLOCKED
        assert guest.word("ticks") == 0


def test_an_event_of_a_spinning_guest_comes_although_the_deadline_is_past() -> None:
    text = """
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
        mov ebx, 1
        xor ecx, ecx
        XEN set_timer_op
        mov edi, 1000
    again:
        cmp dword ptr [ticks], 0
        jne done
        dec edi
        jnz again
        FINISH 8
    done:
        FINISH 7
    """
    clock = ManualClock()
    clock.advance(MS)
    with boot(kernel(text), clock=clock) as guest:
        assert guest.reason == 7, guest.crash


PERIODIC = """
    mov dword ptr [structure], {period_ns}
    VCPU_OP set_periodic_timer, 0, offset structure
    mov [result], eax
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
again:
    cmp dword ptr [ticks], 3
    jb again
    VCPU_OP stop_periodic_timer, 0
    FINISH 7
"""


def test_a_period_ticks_while_its_vcpu_runs() -> None:
    with made(kernel(PERIODIC.format(period_ns=20 * MS)), clock=ManualClock()) as guest:
        seen = passing(guest, 20 * MS)
        assert guest.run(), seen
        assert (guest.reason, guest.word("result")) == (7, 0)
        assert sorted(set(seen)) == [0, 1, 2, 3]


def test_every_vcpu_ticks_a_hundred_times_a_second_from_the_start() -> None:
    text = """
        mov dword ptr [structure], 0
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
    again:
        cmp dword ptr [ticks], 2
        jb again
        FINISH 7
    """
    source = kernel(text).replace("mov ebx, VCPUOP_stop_periodic_timer", "mov ebx, VCPUOP_is_up")
    with made(source, clock=ManualClock()) as guest:
        seen = passing(guest, 10 * MS)
        assert guest.run(), seen
        assert guest.reason == 7


def test_a_period_wakes_nobody() -> None:
    text = PERIODIC.format(period_ns=20 * MS).replace("again:", "SCHED_OP block\nagain:")
    with made(kernel(text), clock=ManualClock()) as guest:
        assert not guest.run(seconds=10.0)
        assert guest.control.info(guest.domid).state is RunState.BLOCKED
        assert guest.hypervisor.machine.timers.next_deadline_ns() is None


@pytest.mark.parametrize(
    ("period_ns", "expected"), [(0, -EINVAL), (1, -EINVAL), (MS - 1, -EINVAL), (1 << 63, -EINVAL)]
)
def test_a_period_that_is_none_is_refused(period_ns: int, expected: int) -> None:
    text = f"""
        mov dword ptr [structure], {period_ns % WORD}
        mov dword ptr [structure + 4], {period_ns >> 32}
        VCPU_OP set_periodic_timer, 0, offset structure
        mov [result], eax
        FINISH 7
    """
    with boot(kernel(text), clock=ManualClock()) as guest:
        assert guest.word("result") == expected % WORD


@pytest.mark.parametrize(
    ("timeout_ns", "flags", "vcpu", "expected"),
    [
        (5 * MS, "0", 0, 0),
        (5 * MS, "VCPU_SSHOTTMR_future", 0, 0),
        (MS - 1, "VCPU_SSHOTTMR_future", 0, -ETIME),
        (MS - 1, "0", 0, 0),
        ((1 << 64) - 1, "0", 0, 0),
        (5 * MS, "0", 1, -EINVAL),
    ],
)
def test_a_single_shot_is_the_vcpus_own_and_may_ask_for_the_future(
    timeout_ns: int, flags: str, vcpu: int, expected: int
) -> None:
    text = f"""
        mov dword ptr [structure], {timeout_ns % WORD}
        mov dword ptr [structure + 4], {timeout_ns >> 32}
        mov dword ptr [structure + 8], {flags}
        VCPU_OP set_singleshot_timer, {vcpu}, offset structure
        mov [result], eax
        FINISH 7
    """
    clock = ManualClock()
    clock.advance(MS)
    with boot(kernel(text), clock=clock, vcpus=2) as guest:
        assert guest.word("result") == expected % WORD


POLL = """
    mov eax, [bind_timer + EVTCHN_BIND_VIRQ_PORT]
    mov [ports], eax
    mov ebp, offset ports
    mov dword ptr [structure + SCHED_POLL_PORTS], ebp
    mov dword ptr [structure + SCHED_POLL_NR_PORTS], {count}
    mov dword ptr [structure + SCHED_POLL_TIMEOUT], {timeout}
    {before}
    KEEP_TIME before
    SCHED_OP poll, offset structure
    mov [result], eax
    KEEP_TIME after
    FINISH 7
.data
ports: .long 0
.text
"""
MASK_PORT = "bts dword ptr [shared_info + SHARED_INFO_EVTCHN_MASK], eax\n"
TIMER_IN_3_MS = "mov ebx, 3000000\nxor ecx, ecx\nXEN set_timer_op\n"


@pytest.mark.parametrize(
    ("count", "timeout", "before", "comes_at_ns"),
    [
        (0, 5 * MS, "", 5 * MS),
        (1, 5 * MS, "", 5 * MS),
        (1, 5 * MS, TIMER_IN_3_MS, 3 * MS),
        (1, 0, TIMER_IN_3_MS, 3 * MS),
        (1, 5 * MS, MASK_PORT + TIMER_IN_3_MS, 3 * MS),
        (0, 5 * MS, MASK_PORT + TIMER_IN_3_MS, 5 * MS),
    ],
)
def test_a_poll_ends_with_its_port_masked_or_not_or_its_time(
    count: int, timeout: int, before: str, comes_at_ns: int
) -> None:
    text = POLL.format(count=count, timeout=timeout, before=before)
    with boot(kernel(text), clock=ManualClock()) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0
        assert (quad(guest, "before"), quad(guest, "after")) == (0, comes_at_ns)
        assert guest.word("ticks") == 0, "events are masked all the time"


def test_a_poll_without_a_time_is_not_ended_by_an_older_one() -> None:
    text = POLL.format(count=1, timeout=50 * MS, before=TIMER_IN_3_MS)
    again = """
        mov eax, [ports]
        btr dword ptr [shared_info + SHARED_INFO_EVTCHN_PENDING], eax
        mov dword ptr [shared_info + VCPU_INFO_EVTCHN_PENDING_SEL], 0
        mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_PENDING], 0
        mov dword ptr [structure + SCHED_POLL_TIMEOUT], 0
        SCHED_OP poll, offset structure
        FINISH 8
    """
    with made(kernel(text.replace("FINISH 7", again)), clock=ManualClock()) as guest:
        assert not guest.run(seconds=10.0)
        assert guest.control.info(guest.domid).state is RunState.BLOCKED


WATCHDOG = """
    mov dword ptr [structure], {number}
    mov dword ptr [structure + 4], {seconds}
    SCHED_OP watchdog, offset structure
    mov [result], eax
"""


def test_a_watchdog_bites_one_who_spins_or_sleeps() -> None:
    for rest in ("spin: jmp spin", "SCHED_OP block"):
        text = WATCHDOG.format(number=0, seconds=2) + rest
        with made(kernel(text), clock=ManualClock()) as guest:
            passing(guest, 100 * MS)
            assert guest.run(), rest
            assert (guest.reason, guest.word("result")) == (SHUTDOWN_watchdog, 1)
            assert guest.hypervisor.machine.clock.monotonic_ns() >= 2000 * MS


def test_a_watchdog_that_was_renewed_or_stopped_does_not_bite() -> None:
    renew = WATCHDOG.format(number=1, seconds=9)
    stop = WATCHDOG.format(number=1, seconds=0)
    sleep = "mov ebx, 0xEE6B2800\nxor ecx, ecx\nXEN set_timer_op\nSCHED_OP block\n"  # 4 s
    text = WATCHDOG.format(number=0, seconds=3) + renew + sleep + stop + "FINISH 7"
    with boot(kernel(text), clock=ManualClock(), seconds=100.0) as guest:
        assert (guest.reason, guest.word("result")) == (7, 0)
        assert guest.hypervisor.machine.timers.next_deadline_ns() is None


def passing(guest: BootedGuest, step_ns: int) -> list[int]:
    """Let time pass by a step each time the machine's loop comes round; return the ticks seen."""
    clock = guest.hypervisor.machine.clock
    assert isinstance(clock, ManualClock)
    seen = []

    def pass_time() -> None:
        clock.advance(step_ns)
        seen.append(guest.word("ticks"))
        if guest.reason is None:
            guest.hypervisor.defer(pass_time)

    guest.hypervisor.defer(pass_time)
    return seen
