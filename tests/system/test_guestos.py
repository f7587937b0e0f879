# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos boots, keeps its memory as it promises, and tells the time: the kernel seen from outside.

What its programs and its shell do stands in tests/system/guestos.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.guestos import PROMPT, Machine
from xenlite.abi.x86_32p import SHUTDOWN_crash, SHUTDOWN_poweroff
from xenlite.core.vcpu import VcpuState
from xenlite.machine.clock import ManualClock
from xenlite.machine.x86_32p import PTE_NX, PTE_RW, PTE_US

KERNEL_BASE = 0xC0000000


@pytest.fixture
def machine() -> Iterator[Machine]:
    running = Machine()
    yield running
    running.close()


@pytest.fixture
def shell(machine: Machine) -> Machine:
    machine.wait_for(PROMPT)
    return machine


@pytest.fixture
def timeless() -> Iterator[Machine]:
    """A shell on a clock that moves only where the test, or a wait, moves it."""
    running = Machine(clock=ManualClock())
    running.wait_for(PROMPT)
    yield running
    running.close()


# Boot


def test_boot_shows_what_the_kernel_finds(machine: Machine) -> None:
    text = machine.wait_for(PROMPT)
    assert text.startswith("guestos 0.2: ")
    assert "  magic xen-3.0-x86_32p\n" in text
    assert "  nr_pages 2048\n" in text
    assert "  console.evtchn 2\n" in text
    assert '  cmd_line ""\n' in text
    assert "capabilities xen-3.0-x86_32p\n" in text
    assert "features mmu_pt_update_preserve_ad" in text
    assert "memory: 8 MB, 2048 pages; 2048 mapped by 10 page tables of our own" in text
    assert re.search(r"^ramdisk: \d+ files, \d+ bytes$", text, re.MULTILINE)


def test_each_line_of_the_boot_comes_once(machine: Machine) -> None:
    lines = [line for line in machine.wait_for(PROMPT).splitlines() if line]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("line", ["autohalt", "quiet autohalt", "autohalt x=1"])
def test_autohalt_is_a_word_of_the_command_line(line: str) -> None:
    machine = Machine(f"cmdline={line}")
    assert machine.wait_for_end() == SHUTDOWN_poweroff
    assert "20 children forked and waited for\n" in machine.output
    machine.close()


@pytest.mark.parametrize("line", ["autohalted", "noautohalt", "auto halt"])
def test_a_part_of_a_word_is_not_autohalt(line: str) -> None:
    machine = Machine(f"cmdline={line}")
    machine.wait_for(PROMPT)
    machine.close()


@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("words", ["plainfaults", "nobatch", "assist", "assist plainfaults"])
def test_every_way_of_the_port_runs_the_same_kernel(words: str, vcpus: int) -> None:
    machine = Machine(f"cmdline={words} autohalt", f"vcpus={vcpus}")
    assert machine.wait_for_end() == SHUTDOWN_poweroff
    assert "20 children forked and waited for\n" in machine.output
    assert "WRONG" not in machine.output
    assert "kernel-read  vector 14: ended by signal 11, as it should\n" in machine.output
    machine.close()


@pytest.mark.parametrize("size", [4, 5, 33])
def test_any_memory_size_boots(size: int) -> None:
    machine = Machine(f"memory={size}", "cmdline=autohalt")
    assert machine.wait_for_end() == SHUTDOWN_poweroff
    assert f"memory: {size} MB, {size * 256} pages; {size * 256} mapped" in machine.output
    machine.close()


def test_without_a_ram_disk_it_says_so_and_ends() -> None:
    machine = Machine("ramdisk=guestos/include/xen_abi.inc")
    assert machine.wait_for_end() == SHUTDOWN_crash
    assert "ramdisk: 0 files, 0 bytes\n" in machine.output
    assert "bin/sh" in machine.output
    machine.close()


# Memory


def test_no_page_is_both_writable_and_executable(shell: Machine) -> None:
    entries = list(shell.entries())
    assert len(entries) > 2000
    assert [hex(a) for a, entry in entries if entry & PTE_RW and not entry & PTE_NX] == []


def test_only_pages_of_programs_are_open_to_ring_3(shell: Machine) -> None:
    pages = {address: entry for address, entry in shell.entries() if entry & PTE_US}
    assert pages
    assert max(pages) < KERNEL_BASE


def test_the_kernels_constants_are_not_writable(shell: Machine) -> None:
    entries = dict(shell.entries())
    shown = [entries[segment.vaddr] for segment in shell.guest.image.segments]
    # Code, constants, variables.
    assert [bool(entry & PTE_RW) for entry in shown] == [False, False, True]
    assert [not entry & PTE_NX for entry in shown] == [True, False, False]


# Time


def uptime_ms(machine: Machine) -> int:
    match = re.fullmatch(r"up (\d+)\.(\d{3}) s\n", machine.command("uptime"))
    assert match is not None
    return int(match[1]) * 1000 + int(match[2])


def test_the_clock_goes_with_the_machines(shell: Machine) -> None:
    start_ns = shell.clock.monotonic_ns()
    before = uptime_ms(shell)
    shell.command("sleep 0.1")
    after = uptime_ms(shell)
    passed_ms = (shell.clock.monotonic_ns() - start_ns) // 1_000_000
    assert 100 <= after - before <= passed_ms + 1


def test_the_clock_counts_what_passes(timeless: Machine) -> None:
    assert isinstance(timeless.clock, ManualClock)
    before = uptime_ms(timeless)
    timeless.clock.advance(123_456_000_000)
    after = uptime_ms(timeless)
    assert after - before == 123_456


@pytest.mark.parametrize("seconds", ["0.001", "1", "5.25", "86400", "1000000"])
def test_sleep_ends_when_its_time_has_come(timeless: Machine, seconds: str) -> None:
    before = uptime_ms(timeless)
    assert timeless.command(f"sleep {seconds}") == ""
    assert uptime_ms(timeless) - before == float(seconds) * 1000


def test_a_key_does_not_shorten_a_sleep(timeless: Machine) -> None:
    before = uptime_ms(timeless)
    vcpu = timeless.hypervisor.domains[timeless.domid].current
    timeless.type("sleep 3\r")
    timeless.wait_for("sleep 3\n")
    timeless.type("x")
    timeless.wait_for(PROMPT)
    timeless.run_until(lambda: vcpu.state is VcpuState.BLOCKED, "a sleeping kernel")
    timeless.type("\x15")
    assert uptime_ms(timeless) - before == 3000


def test_the_kernel_sleeps_while_nothing_is_typed(shell: Machine) -> None:
    vcpu = shell.hypervisor.domains[shell.domid].current
    shell.run_until(lambda: vcpu.state is VcpuState.BLOCKED, "a sleeping kernel")
