# SPDX-License-Identifier: GPL-2.0-or-later
"""Every hypercall number with hostile arguments (SECURITY.md A15, E1, E5).

The answer is a number or the end of that domain alone: never an exception of ours, a hang, or harm
to the domain beside it, whose memory keeps its contents and whose work goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from struct import pack

import pytest

from tests.support.guest import BootedGuest
from tests.support.paging_guest import FREE, PAGE, Lab, lab
from xenlite.abi.x86_32p import (
    DOMID_SELF,
    EFAULT,
    EPERM,
    MMU_UPDATE_PREEMPTED,
    HYPERVISOR_domctl,
    HYPERVISOR_kexec_op,
    HYPERVISOR_memory_op,
    HYPERVISOR_mmu_update,
    HYPERVISOR_mmuext_op,
    HYPERVISOR_platform_op,
    HYPERVISOR_sched_op,
    HYPERVISOR_sysctl,
    HYPERVISOR_xsm_op,
    XENMEM_machphys_mapping,
    XENMEM_maximum_ram_page,
)
from xenlite.doors import RunState

Call = tuple[int, int, int, int, int, int]

ZEROS, ONES, MIXED, READ_ONLY, CALLS = (FREE + n * PAGE for n in (0, 1, 2, 3, 0x100))
MOST_CALLS = 0x40 * PAGE // 24
RESULTS = FREE + 0x180 * PAGE
POINTERS = (
    *(ZEROS, ONES, MIXED, MIXED + 1, MIXED + PAGE - 4, READ_ONLY, READ_ONLY - 8),
    *(0, 1, 0xC0800000, 0xF57FFFF8, 0xF57FFFFC, 0xF5800000, 0xFC000000, 0xFFFFFFF8, 0xFFFFFFFF),
)
NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 0x7FF0, 0x7FF1, 0x8000, 0xFFFF, 0x10000),
    *(0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, MMU_UPDATE_PREEMPTED | 1),
)

# Makes the calls of a table, [progress] of them so far, and keeps their results.
ATTACKER = f"""
    RIGHTS {READ_ONLY}, RO
next:
    mov ebp, [progress]
    cmp ebp, [total]
    jae finished
    inc dword ptr [progress]
    imul ebp, ebp, 24
    add ebp, {CALLS}
    mov eax, [ebp]
    mov ebx, [ebp + 4]
    mov ecx, [ebp + 8]
    mov edx, [ebp + 12]
    mov esi, [ebp + 16]
    mov edi, [ebp + 20]
    int HYPERCALL_VECTOR
    mov ebp, [progress]
    mov [{RESULTS} + ebp * 4 - 4], eax
    jmp next
finished:
    FINISH 0
    .data
    .p2align 2
progress: .long 0
total: .long 0
    .text
"""
VICTIM = """
    mov edi, FREE
    mov ecx, 64 * 1024
fill:
    mov [edi], edi
    add edi, 4
    dec ecx
    jnz fill
work:
    inc dword ptr [progress]
    CALL sched_op, SCHEDOP_yield
    jmp work
    .data
progress: .long 0
    .text
"""


@dataclass
class Scene:
    """An attacker's calls beside a victim."""

    made: Lab
    victim: BootedGuest
    results: dict[Call, int]
    crashes: dict[Call, str]

    def attack(self, calls: Sequence[Call], most_deaths: int = 10) -> None:
        """Make the calls; where one ends the domain, another domain goes on behind it."""
        left = list(calls)
        for _ in range(most_deaths):
            left = self._attack_once(left)
            self.check_victim()
            if not left:
                return

    def _attack_once(self, calls: list[Call]) -> list[Call]:
        guest = self.made.add(ATTACKER, maxmem_mb=5)
        assert len(calls) <= MOST_CALLS
        made, control = self.made, self.made.control
        mixed = random.Random(1).choices(POINTERS + NUMBERS, k=1024)
        made.poke(guest, ONES, b"\xff" * PAGE)
        made.poke(guest, MIXED, pack("<1024I", *mixed))
        made.poke(guest, CALLS, b"".join(pack("<6I", *call) for call in calls))
        made.poke(guest, guest.symbols["total"], pack("<I", len(calls)))

        def is_over() -> bool:
            blocked = control.info(guest.domid).state is RunState.BLOCKED
            return blocked or guest.reason is not None

        # Its own page tables may be gone at the end, so the frames are looked up now.
        places = [control.translate(guest.domid, 0, RESULTS + n * PAGE) for n in range(0x10)]
        progress_at = control.translate(guest.domid, 0, guest.symbols["progress"])
        assert progress_at is not None
        ended = guest.run(20.0, until=is_over)
        memory = made.hypervisor.machine.memory
        progress = memory.m32[progress_at >> 2]
        last = calls[min(progress, len(calls)) - 1]
        assert ended, f"still running in call {[hex(word) for word in last]}"
        assert control.audit() == [], [hex(word) for word in last]
        for index, call in enumerate(calls[:progress]):
            place = places[index >> 10]
            assert place is not None
            self.results[call] = memory.m32[(place >> 2) + (index & 1023)]
        if guest.crash is not None:
            self.crashes[last] = guest.crash.rule
        made.remove(guest)
        return calls[progress:]

    def check_victim(self) -> None:
        """Demand that the victim's memory is as it was, and that it goes on working."""
        victim = self.victim
        before = victim.word("progress")
        assert victim.run(5.0, until=lambda: victim.word("progress") > before)
        data = self.made.control.read_virtual(victim.domid, 0, FREE, 64 * PAGE)
        assert data == b"".join(pack("<I", FREE + 4 * n) for n in range(16 * PAGE))


@pytest.fixture
def scene() -> Iterator[Scene]:
    with lab(host_mb=32) as made:
        victim = made.add(VICTIM)
        assert victim.run(5.0, until=lambda: victim.word("progress") > 0)
        yield Scene(made, victim, {}, {})


def boundary_calls(number: int) -> list[Call]:
    """Mix pointers and numbers in every argument; the first two take each value at least once."""
    chance = random.Random(number)
    values = POINTERS + NUMBERS
    calls = []
    for first, second in product(values, repeat=2):
        if chance.random() < 0.35:
            third, fourth, fifth = chance.choices((0, 1, DOMID_SELF, *values), k=3)
            calls.append((number, first, second, third, fourth, fifth))
    # A list of entries or a structure, with a plausible size and domain.
    for pointer, size in product(POINTERS, (1, 2, 64, 4096, 65535)):
        calls.append((number, pointer, size, MIXED + 512, DOMID_SELF, 0))
        calls.append((number, size, pointer, 0, DOMID_SELF, 0))
    return calls


@pytest.mark.parametrize("number", range(64))
def test_a15_hostile_arguments_harm_nobody(scene: Scene, number: int) -> None:
    calls = boundary_calls(number)
    scene.attack(calls)
    assert scene.results


def test_e5_every_command_for_every_domain(scene: Scene) -> None:
    """Numbers 0..63 x commands 0..64 x domids, each as an argument and all through a structure."""
    domids = (0, scene.victim.domid, *range(0x7FF0, 0x8000))
    results = scene.results
    for number in range(64):
        calls = [
            (number, command, ZEROS, domid, domid, domid)
            for command in range(65)
            for domid in domids
        ]
        scene.attack(calls, most_deaths=3)
    privileged = {
        HYPERVISOR_platform_op,
        HYPERVISOR_sysctl,
        HYPERVISOR_domctl,
        HYPERVISOR_kexec_op,
        HYPERVISOR_xsm_op,
    }
    for call, result in results.items():
        if call[0] in privileged:
            assert result >= 0xFFFFF000, call


@pytest.mark.parametrize("pointer", [0xF5800000, 0xC0800000])
def test_e5_privilege_comes_before_pointers(scene: Scene, pointer: int) -> None:
    """Whoever names another domain learns nothing about a bad pointer, not even that it is bad."""
    foreign = (0, scene.victim.domid, 0x7FF1, 0x7FF2)
    scene.attack(
        [
            (number, pointer, 1, 0, domid, 0)
            for number in (HYPERVISOR_mmu_update, HYPERVISOR_mmuext_op)
            for domid in foreign
        ]
    )
    assert set(scene.results.values()) == {-EPERM & 0xFFFFFFFF}
    scene.results.clear()
    scene.attack(
        [
            (number, command, pointer, pointer, pointer, pointer)
            for number in (HYPERVISOR_domctl, HYPERVISOR_sysctl, HYPERVISOR_platform_op)
            for command in range(65)
        ]
    )
    assert -EFAULT & 0xFFFFFFFF not in scene.results.values()
    assert all(result >= 0xFFFFF000 for result in scene.results.values())


def test_e5_memory_of_another_domain_is_not_asked_about(scene: Scene) -> None:
    """Structures with the domid in every half word, so wherever an operation looks for it."""
    harmless = {XENMEM_maximum_ram_page, XENMEM_machphys_mapping}
    for domid in (0, scene.victim.domid, 0x7FF2):
        scene.results.clear()
        guest_calls = [
            (HYPERVISOR_memory_op, command, ONES, 0, 0, domid)
            for command in range(65)
            if command not in harmless
        ]
        scene.attack(guest_calls)
        assert all(result >= 0xFFFFF000 for result in scene.results.values())


def test_the_attacks_reach_what_they_are_meant_to(scene: Scene) -> None:
    """A check of this file: results are kept, deaths are seen, and another domain goes on."""
    shutdown = (HYPERVISOR_sched_op, 2, ZEROS, 0, 0, 0)
    unknown = (63, 0, 0, 0, 0, 0)
    iret = (23, 0, 0, 0, 0, 0)
    scene.attack([unknown, shutdown, iret, (63, 0, 0, 0, 0, 1)])
    assert scene.results[unknown] == scene.results[(63, 0, 0, 0, 0, 1)] == -38 & 0xFFFFFFFF
    assert iret in scene.crashes
