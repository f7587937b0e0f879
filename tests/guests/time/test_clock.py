# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests are told of the time: system time, time of day, and how their vCPUs spent it."""

from __future__ import annotations

import pytest

from tests.support.guest import START, BootedGuest, boot, made
from tests.support.guests import SMP, TIME
from xenlite.abi.x86_32p import EFAULT, ENOENT, RUNSTATE_blocked, RUNSTATE_running
from xenlite.machine.clock import HostClock, ManualClock

WORD = 1 << 32
MS = 1_000_000
GIGA = 10**9
MAP = "MAP_SHARED_INFO\n"


def quad(guest: BootedGuest, label: str, index: int = 0) -> int:
    low, high = guest.word(label, 2 * index), guest.word(label, 2 * index + 1)
    return low | high << 32


# Reads the time again and again and keeps the greatest step back, the first and the last.
LOOP = """
    mov dword ptr [reads], 0
again:
    mov ebx, offset {info}
    call system_time
    cmp edx, [last + 4]
    jb back
    ja forward
    cmp eax, [last]
    jae forward
back:
    inc dword ptr [steps_back]
forward:
    mov [last], eax
    mov [last + 4], edx
    inc dword ptr [reads]
    cmp dword ptr [stop], 0
    je again
    FINISH 7
.data
last: .quad 0
reads: .long 0
steps_back: .long 0
stop: .long 0
.text
"""


def test_system_time_never_goes_back_and_agrees_with_the_clock() -> None:
    source = SMP + TIME + START + MAP + LOOP.format(info="shared_info + VCPU_INFO_TIME")
    with made(source) as guest:
        clock = guest.hypervisor.machine.clock
        assert isinstance(clock, HostClock)
        turns = 0

        def look() -> bool:
            """Compare at each return from the guest: its last read is younger than its slice."""
            nonlocal turns
            turns += 1
            assert quad(guest, "last") <= clock.monotonic_ns() + 20_000
            return turns > 300

        assert guest.run(until=look)
        assert guest.word("reads") > 1000
        assert guest.word("steps_back") == 0
        assert clock.monotonic_ns() - quad(guest, "last") < 2 * GIGA


def test_a_clock_that_is_moved_by_hand_is_seen_exactly() -> None:
    text = """
        mov ebx, offset shared_info + VCPU_INFO_TIME
        call system_time
        mov [first], eax
        mov [first + 4], edx
        SCHED_OP poll, offset poll
        mov ebx, offset shared_info + VCPU_INFO_TIME
        call system_time
        mov [second], eax
        mov [second + 4], edx
        mov eax, [shared_info + SHARED_INFO_WC_SEC]
        mov [wall], eax
        mov eax, [shared_info + SHARED_INFO_WC_NSEC]
        mov [wall + 4], eax
        mov eax, [shared_info + SHARED_INFO_WC_VERSION]
        mov [wall + 8], eax
        FINISH 7
    .data
    first: .quad 0
    second: .quad 0
    wall: .fill 3, 4, 0
    poll: .long 0, 0, 0x12345678, 3
    """
    clock = ManualClock(wall_start_ns=1_700_000_000 * GIGA + 5)
    clock.advance(77)
    with boot(SMP + TIME + START + MAP + text, clock=clock, seconds=100.0) as guest:
        assert guest.reason == 7, guest.crash
        assert quad(guest, "first") == 77
        assert quad(guest, "second") == 0x3_1234_5678
        assert guest.words("wall", 2) == [1_700_000_000, 5]
        assert guest.word("wall", 2) % 2 == 0


RUNSTATE = """
    VCPU_OP register_runstate_memory_area, 0, offset structure
    mov [result], eax
    SCHED_OP poll, offset poll
    mov esi, offset area
    mov edi, offset kept
    mov ecx, SIZEOF_VCPU_RUNSTATE_INFO
    cld
    rep movsb
    VCPU_OP get_runstate_info, 0, offset asked
    FINISH 7
.data
structure: .long area, 0
poll: .long 0, 0, 5000000, 0
area: .fill SIZEOF_VCPU_RUNSTATE_INFO, 1, 0xEE
kept: .fill SIZEOF_VCPU_RUNSTATE_INFO, 1, 0xEE
asked: .fill SIZEOF_VCPU_RUNSTATE_INFO, 1, 0xEE
"""


@pytest.mark.parametrize("label", ["kept", "asked"])
def test_a_vcpu_is_told_how_it_has_spent_its_time(label: str) -> None:
    with boot(SMP + START + MAP + RUNSTATE, clock=ManualClock()) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0
        words = guest.words(label, 11)
        assert words[0] == RUNSTATE_running
        assert words[1] | words[2] << 32 == 5 * MS, "since it runs again"
        times = [words[3 + 2 * n] | words[4 + 2 * n] << 32 for n in range(4)]
        assert sum(times) == 5 * MS
        assert times[RUNSTATE_blocked] == 5 * MS


class LaterClock(ManualClock):
    """A clock on which time passes with every look at it."""

    def monotonic_ns(self) -> int:
        self.advance(1000)
        return super().monotonic_ns()


SLEEPS = """
    VCPU_OP stop_periodic_timer, 0, 0
    VCPU_OP register_runstate_memory_area, 0, offset structure
    mov [result], eax
    mov dword ptr [left], 50
again:
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
    add eax, 5000000
    adc edx, 0
    mov [poll + 8], eax
    mov [poll + 12], edx
    SCHED_OP poll, offset poll
    dec dword ptr [left]
    jnz again
    FINISH 7
.data
structure: .long area, 0
poll: .long 0, 0, 0, 0
left: .long 0
area: .fill SIZEOF_VCPU_RUNSTATE_INFO, 1, 0xEE
"""


def test_a_vcpu_that_sleeps_often_has_waited_for_no_less_than_nothing() -> None:
    with boot(SMP + TIME + START + MAP + SLEEPS, clock=LaterClock()) as guest:
        assert (guest.reason, guest.word("result")) == (7, 0), guest.crash
        words = guest.words("area", 11)
        times = [words[3 + 2 * n] | words[4 + 2 * n] << 32 for n in range(4)]
        assert times[RUNSTATE_blocked] > 50 * 4 * MS
        assert max(times) < 50 * 6 * MS


@pytest.mark.parametrize("address", ["0xF5800000", "0xFFFFFFFC", "0x10000000", "0xF57FFFF0"])
def test_a_runstate_area_that_cannot_be_written_is_refused(address: str) -> None:
    text = f"""
        mov dword ptr [structure], {address}
        VCPU_OP register_runstate_memory_area, 0, offset structure
        mov [result], eax
        VCPU_OP register_vcpu_time_memory_area, 0, offset structure
        mov [result2], eax
        VCPU_OP get_runstate_info, 7, offset structure
        mov [structure], eax
        FINISH 7
    .data
    structure: .long 0, 0
    result2: .long 0
    """
    with boot(SMP + START + MAP + text) as guest:
        assert guest.word("result") == WORD - EFAULT
        assert guest.word("result2") == WORD - EFAULT
        assert guest.word("structure") == WORD - ENOENT


def test_an_area_that_was_unmapped_since_is_left_alone() -> None:
    text = """
        VCPU_OP register_runstate_memory_area, 0, offset structure
        VCPU_OP register_vcpu_time_memory_area, 0, offset time_structure
        mov ebx, offset area
        xor ecx, ecx
        xor edx, edx
        mov esi, UVMF_INVLPG
        XEN update_va_mapping
        mov [result], eax
        SCHED_OP yield
        SCHED_OP yield
        FINISH 7
    .data
    structure: .long area, 0
    time_structure: .long area + 256, 0
    .p2align 12
    area: .fill 1024, 4, 0
    """
    with boot(SMP + START + MAP + text) as guest:
        assert (guest.reason, guest.word("result")) == (7, 0), guest.crash


def test_a_second_copy_of_the_time_tells_the_same() -> None:
    text = """
        VCPU_OP register_vcpu_time_memory_area, 0, offset structure
        mov [result], eax
        SCHED_OP poll, offset poll
        mov ebx, offset copy
        call system_time
        mov [seen], eax
        mov [seen + 4], edx
        mov dword ptr [structure], 0
        VCPU_OP register_vcpu_time_memory_area, 0, offset structure
        SCHED_OP poll, offset later
        FINISH 7
    .data
    structure: .long copy, 0
    poll: .long 0, 0, 5000000, 0
    later: .long 0, 0, 9000000, 0
    seen: .quad 0
    copy: .fill SIZEOF_VCPU_TIME_INFO, 1, 0xEE
    behind: .long 0xEEEEEEEE
    """
    with boot(SMP + TIME + START + MAP + text, clock=ManualClock()) as guest:
        assert guest.reason == 7, guest.crash
        assert guest.word("result") == 0
        assert quad(guest, "seen") == 5 * MS
        assert quad(guest, "copy", 2) == 5 * MS, "nothing came after it was taken back"
        assert guest.word("behind") == 0xEEEEEEEE


def test_the_time_of_a_vcpu_info_that_moved_goes_on() -> None:
    text = """
        mov eax, [p2m]
        mov ecx, offset moved
        sub ecx, VIRT_BASE
        shr ecx, 12
        mov eax, [eax + ecx * 4]
        mov [structure], eax
        VCPU_OP register_vcpu_info, 0, offset structure
        SCHED_OP poll, offset poll
        mov ebx, offset moved + VCPU_INFO_TIME
        call system_time
        mov [seen], eax
        mov [seen + 4], edx
        FINISH 7
    .data
    structure: .fill 4, 4, 0
    poll: .long 0, 0, 5000000, 0
    seen: .quad 0
    .p2align 12
    moved: .fill 1024, 4, 0
    """
    clock = ManualClock()
    with boot(SMP + TIME + START + MAP + text, clock=clock) as guest:
        assert guest.reason == 7, guest.crash
        # its events are marked pending by the move: the poll ends at once
        assert quad(guest, "seen") in (0, 5 * MS)
