# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure how domains share a CPU, in real time: a report, run by hand for its full length.

``python -m tests.system.test_fairness`` lets three spinning domains of weights 1, 2 and 4 and one
that sleeps 10 ms at a time run for 10 seconds, and prints what each got and how late the sleeper
was. As a test it runs briefly, and holds only what a busy host can't spoil.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.support.guest import START
from tests.support.guests import SMP, TIME, TIMER_EVENTS, several

_WEIGHTS = (128, 256, 512)
_SPIN = "spin: inc dword ptr [count]\njmp spin\n.data\ncount: .long 0\n.text\n"
_SLEEPER = (
    SMP
    + TIME
    + START
    + TIMER_EVENTS
    + """
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
    mov [due], eax
    mov [due + 4], edx
again:
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 1
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
    add eax, 10000000
    adc edx, 0
    mov [due], eax
    mov [due + 4], edx
    SET_TIMER
    SCHED_OP block
    mov ebx, offset shared_info + VCPU_INFO_TIME
    call system_time
    sub eax, [due]
    sbb edx, [due + 4]
    jz late_known
    mov eax, 0xFFFFFFFF
late_known:
    mov ecx, [sleeps]
    and ecx, 1023
    mov [late + ecx * 4], eax
    inc dword ptr [sleeps]
    jmp again
.bss
due: .space 8
sleeps: .space 4
late: .space 4096
.text
"""
)


@dataclass(frozen=True, slots=True)
class Fairness:
    """What came of it: the spinners' shares of their time, and how late the sleeper was."""

    shares: list[float]
    late_ns: list[int]


def measure(seconds: float) -> Fairness:
    """Let them run."""
    with several([*[_SPIN] * len(_WEIGHTS), _SLEEPER]) as (*spinners, sleeper):
        hypervisor = sleeper.hypervisor
        for guest, weight in zip(spinners, _WEIGHTS, strict=True):
            hypervisor.control().set_scheduling(guest.domid, weight=weight, cap=0)
        sleeper.run(seconds)
        spent = [guest.domain.vcpus[0].runstate.times_ns[0] for guest in spinners]
        sleeps = min(sleeper.word("sleeps"), 1024)
        return Fairness([one / sum(spent) for one in spent], sleeper.words("late", sleeps))


def test_spinners_share_by_weight_and_a_sleeper_wakes() -> None:
    fairness = measure(0.7)
    assert fairness.shares == sorted(fairness.shares)
    assert len(fairness.late_ns) > 10


def main() -> None:
    """Print the report."""
    fairness = measure(10.0)
    wanted = [weight / sum(_WEIGHTS) for weight in _WEIGHTS]
    for weight, share, want in zip(_WEIGHTS, fairness.shares, wanted, strict=True):
        sys.stdout.write(f"weight {weight}: {share:.1%}, entitled to {want:.1%}\n")
    late = sorted(ns / 1e6 for ns in fairness.late_ns)
    sys.stdout.write(
        f"sleeper: {len(late)} times, late by {late[len(late) // 2]:.2f} ms (median), "
        f"{late[len(late) * 99 // 100]:.2f} ms (99 of 100), {late[-1]:.2f} ms (most)\n"
    )


if __name__ == "__main__":
    main()
