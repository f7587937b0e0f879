# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos boots, shows what it can do, and obeys its console: the whole house, from file to text.

Most tests hold the machine in this process and look into it; the last ones use the command line as
a user does, with a pipe and with a terminal.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pexpect
import pytest

from tests.support.guestos import DOM, LIMIT_S, PROMPT, ROOT, Machine
from xenlite.abi.x86_32p import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    TRAP_page_fault,
)
from xenlite.core.vcpu import VcpuState
from xenlite.machine.clock import ManualClock
from xenlite.machine.x86_32p import PTE_NX, PTE_RW, PTE_US

USER_BASE = 0x08000000


@pytest.fixture
def machine() -> Iterator[Machine]:
    running = Machine()
    yield running
    running.close()


@pytest.fixture
def shell(machine: Machine) -> Machine:
    machine.wait_for(PROMPT)
    return machine


def test_boot_shows_what_the_kernel_finds(machine: Machine) -> None:
    text = machine.wait_for(PROMPT)
    assert text.startswith("guestos 0.1: ")
    assert "  magic xen-3.0-x86_32p\n" in text
    assert "  nr_pages 2048\n" in text
    assert "  console.evtchn 2\n" in text
    assert '  cmd_line ""\n' in text
    assert "capabilities xen-3.0-x86_32p\n" in text
    assert "features mmu_pt_update_preserve_ad" in text
    assert "memory: 8 MB, 2048 pages; 2048 mapped by 11 page tables of our own" in text


def test_each_line_of_the_boot_comes_once(machine: Machine) -> None:
    lines = [line for line in machine.wait_for(PROMPT).splitlines() if line]
    assert len(lines) == len(set(lines))


def test_a_page_fault_brings_its_address_on_the_stack(shell: Machine) -> None:
    for page in (1, 2):
        answer = shell.command("fault")
        assert f"page fault at {0xE000048C + page * 4096:#x} (address on the stack)" in answer
        assert "after the fault the word there is 42\n" in answer


def test_a_program_runs_in_ring_3_as_often_as_asked(shell: Machine) -> None:
    for _ in range(2):
        answer = shell.command("run")
        assert "ring 3: hello; getpid says 1\n" in answer
        assert "refused to print its own memory" in answer
        assert "process 1: ended with status 0\n" in answer


def test_a_program_that_reads_the_kernels_memory_is_ended(shell: Machine) -> None:
    answer = shell.command("trespass")
    assert "process 1: killed: page fault at 0xc0000000, error 0x5, eip 0x8000" in answer
    assert f"ended with status {128 + TRAP_page_fault}\n" in answer
    assert "ended with status 0\n" in shell.command("run")


def test_it_can_do_without_the_address_on_the_stack() -> None:
    machine = Machine("cmdline=plainfaults")
    assert "leave their address in shared_info\n" in machine.wait_for(PROMPT)
    answer = machine.command("fault")
    assert "page fault at 0xe000148c: mapping a zero page\n" in answer
    assert "after the fault the word there is 42\n" in answer
    assert "killed: page fault at 0xc0000000, error 0x5" in machine.command("trespass")
    # The handler was entered with events masked; a key still arrives.
    assert "memory: " in machine.command("mem")
    machine.close()


def test_only_the_programs_pages_are_open_to_ring_3(shell: Machine) -> None:
    pages = {address: entry for address, entry in shell.entries() if entry & PTE_US}
    code, stack = sorted(pages)
    assert code == USER_BASE
    assert not pages[code] & PTE_RW
    assert not pages[code] & PTE_NX
    assert pages[stack] & PTE_RW
    assert pages[stack] & PTE_NX


def test_no_page_is_both_writable_and_executable(shell: Machine) -> None:
    entries = list(shell.entries())
    assert len(entries) > 2000
    assert [hex(a) for a, entry in entries if entry & PTE_RW and not entry & PTE_NX] == []


def test_the_kernels_constants_are_not_writable(shell: Machine) -> None:
    entries = dict(shell.entries())
    shown = shell.guest.image.segments
    writable = [bool(entries[segment.vaddr] & PTE_RW) for segment in shown]
    executable = [not entries[segment.vaddr] & PTE_NX for segment in shown]
    assert writable == [False, False, False, True, True]
    # The program's pages are executable only where the program has them.
    assert executable == [True, False, False, False, False]


def test_the_builders_page_tables_are_given_back(shell: Machine) -> None:
    before = shell.command("mem")
    assert "2048 mapped by 11 page tables of our own" in before
    domain = shell.guest.domain
    assert domain is not None
    entries = dict(shell.entries())
    for pfn in domain.layout.page_tables:
        assert entries[domain.layout.vaddr(pfn)] & PTE_RW


def test_what_is_typed_is_echoed(shell: Machine) -> None:
    shell.type("mem")
    assert shell.wait_for("mem") == ""
    shell.type("\r")
    assert "2048 pages" in shell.wait_for(PROMPT)


@pytest.mark.parametrize("key", ["\b", "\x7f"])
def test_backspace_takes_back_a_character(shell: Machine, key: str) -> None:
    answer = shell.command(f"mex{key}m")
    assert answer.startswith("mex\b \bm\n")
    assert "2048 pages" in answer


def test_backspace_stops_at_the_prompt(shell: Machine) -> None:
    assert shell.command("a\b\b\bmem").startswith("a\b \bmem\nmemory: ")


def test_control_u_takes_back_the_line(shell: Machine) -> None:
    assert shell.command("junk\x15mem").startswith("junk" + 4 * "\b \b" + "mem\nmemory: ")


def test_control_c_gives_a_new_line(shell: Machine) -> None:
    shell.type("junk\x03")
    assert shell.wait_for(PROMPT) == "junk^C\n"
    assert "memory: " in shell.command("mem")


def test_cursor_keys_are_ignored(shell: Machine) -> None:
    assert shell.command("m\x1b[A\x1b[1;5Cem").startswith("mem\nmemory: ")


def test_cr_lf_is_one_enter(shell: Machine) -> None:
    shell.type("mem\r\nmem\n")
    shell.wait_for(PROMPT)
    assert shell.wait_for(PROMPT).startswith("mem\nmemory: ")
    assert shell.output == ""


def test_a_line_has_an_end(shell: Machine) -> None:
    answer = shell.command("x" * 100)
    assert answer.startswith("x" * 71 + "\a" * 29 + "\n")
    assert f"no command is called {'x' * 71};" in answer


def test_more_input_than_the_ring_holds_arrives(shell: Machine) -> None:
    shell.type("fault\r" * 500 + "halt\r")
    assert shell.wait_for_end() == SHUTDOWN_poweroff
    assert shell.output.count("after the fault the word there is 42\n") == 500


def test_help_names_every_command(shell: Machine) -> None:
    answer = shell.command("help")
    names = [line.split()[0] for line in answer.splitlines()[1:]]
    assert names == [
        *("help", "mem", "info", "uptime", "sleep", "run", "trespass", "race", "fault"),
        *("crash", "halt", "reboot"),
    ]


def uptime(machine: Machine) -> tuple[int, int]:
    """Ask for the time since boot: (milliseconds, ticks)."""
    answer = machine.command("uptime")
    match = re.search(r"^up (\d+)\.(\d{3}) s, (\d+) ticks$", answer, re.MULTILINE)
    assert match is not None, answer
    seconds, milliseconds, ticks = map(int, match.groups())
    return seconds * 1000 + milliseconds, ticks


def test_the_clock_and_the_tick_go_with_the_machines(shell: Machine) -> None:
    start_ns = shell.clock.monotonic_ns()
    before, ticks_before = uptime(shell)
    shell.command("race")
    after, ticks_after = uptime(shell)
    passed_ms = (shell.clock.monotonic_ns() - start_ns) // 1_000_000
    assert 0 < after - before <= passed_ms + 1
    assert 20 <= ticks_after - ticks_before <= passed_ms // 10 + 2


@pytest.fixture
def timeless() -> Iterator[Machine]:
    """A shell on a clock that moves only where the test, or a wait, moves it."""
    running = Machine(clock=ManualClock())
    running.wait_for(PROMPT)
    yield running
    running.close()


def test_the_clock_counts_what_passes(timeless: Machine) -> None:
    assert isinstance(timeless.clock, ManualClock)
    before, _ = uptime(timeless)
    timeless.clock.advance(123_456_000_000)
    after, _ = uptime(timeless)
    assert after - before == 123_456
    timeless.clock.advance((1 << 40) * 1_000_000)
    assert uptime(timeless)[0] - after == 1 << 40


@pytest.mark.parametrize("seconds", [1, 5, 86_400, 1_000_000])
def test_sleep_ends_when_its_time_has_come(timeless: Machine, seconds: int) -> None:
    before, _ = uptime(timeless)
    assert timeless.command(f"sleep {seconds}") == f"sleep {seconds}\n"
    after, ticks = uptime(timeless)
    assert after - before == seconds * 1000
    # A kernel that sleeps is not woken by ticks.
    assert ticks <= 4


def test_keys_typed_into_a_sleep_wait_for_its_end(timeless: Machine) -> None:
    before, _ = uptime(timeless)
    timeless.type("sleep 3\rmem\r")
    assert timeless.wait_for(PROMPT) == "sleep 3\n"
    assert "2048 pages" in timeless.wait_for(PROMPT)
    assert uptime(timeless)[0] - before == 3000


def test_a_key_does_not_shorten_a_sleep(timeless: Machine) -> None:
    before, _ = uptime(timeless)
    vcpu = timeless.hypervisor.domains[timeless.domid].current
    timeless.type("sleep 3\r")
    timeless.wait_for("sleep 3\n")
    timeless.type("x")
    timeless.wait_for(PROMPT)
    timeless.run_until(lambda: vcpu.state is VcpuState.BLOCKED, "a sleeping kernel")
    timeless.type("\x15")
    assert uptime(timeless)[0] - before == 3000


@pytest.mark.parametrize("line", ["sleep", "sleep x", "sleep -1", "sleep 1x", "sleep 12345678"])
def test_sleep_wants_a_number(timeless: Machine, line: str) -> None:
    assert timeless.command(line).endswith("sleep how long? a number of seconds up to 1000000\n")


def test_two_programs_share_the_processor_though_neither_gives_way(shell: Machine) -> None:
    for _ in range(2):
        answer = shell.command("race")
        found = re.findall(r"^  program (\d): 10 turns, counted to (\d+)$", answer, re.MULTILINE)
        assert [number for number, _ in found] == ["1", "2"]
        assert all(int(count) > 0 for _, count in found)
        assert "ended with status 0\n" in shell.command("run")


def test_info_shows_start_info_again(shell: Machine) -> None:
    assert "  nr_pages 2048\n" in shell.command("info")


def test_halt_powers_off(shell: Machine) -> None:
    shell.type("halt\r")
    assert shell.wait_for_end() == SHUTDOWN_poweroff


def test_reboot_asks_for_a_reboot(shell: Machine) -> None:
    shell.type("reboot\r")
    assert shell.wait_for_end() == SHUTDOWN_reboot


def test_crash_reports_the_fault_and_its_place(shell: Machine) -> None:
    shell.type("crash\r")
    assert shell.wait_for_end() == SHUTDOWN_crash
    assert "panic: page fault at 0x0, error 0x10, eip 0x0\n" in shell.output
    assert "cs 0xe019\n" in shell.output


def test_the_kernel_sleeps_while_nothing_is_typed(shell: Machine) -> None:
    vcpu = shell.hypervisor.domains[shell.domid].current
    shell.run_until(lambda: vcpu.state is VcpuState.BLOCKED, "a sleeping kernel")


@pytest.mark.parametrize("line", ["autohalt", "quiet autohalt", "autohalt x=1"])
def test_autohalt_is_a_word_of_the_command_line(line: str) -> None:
    machine = Machine(f"cmdline={line}")
    assert machine.wait_for_end() == SHUTDOWN_poweroff
    machine.close()


@pytest.mark.parametrize("line", ["autohalted", "noautohalt", "auto halt"])
def test_a_part_of_a_word_is_not_autohalt(line: str) -> None:
    machine = Machine(f"cmdline={line}")
    machine.wait_for(PROMPT)
    machine.close()


@pytest.mark.parametrize("size", [4, 5, 33])
def test_any_memory_size_boots(size: int) -> None:
    machine = Machine(f"memory={size}", "cmdline=autohalt")
    assert machine.wait_for_end() == SHUTDOWN_poweroff
    assert f"memory: {size} MB, {size * 256} pages; {size * 256} mapped" in machine.output
    machine.close()


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "xenlite.cli.main", "run", DOM, *arguments]


def test_the_command_runs_it_without_input() -> None:
    done = subprocess.run(
        command_line("cmdline=autohalt", "--timeout", str(LIMIT_S)),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.startswith(b"xenlite: sockets in ")
    assert done.stderr.count(b"\n") == 1
    assert b"autohalt: powering off" in done.stdout


@pytest.mark.parametrize(
    ("command", "status"), [("halt", 0), ("reboot", 16 + SHUTDOWN_reboot), ("crash", 19)]
)
def test_the_commands_status_is_the_guests(command: str, status: int) -> None:
    program, *arguments = command_line("on_reboot=destroy", "--timeout", str(LIMIT_S))
    child = pexpect.spawn(program, arguments, cwd=str(ROOT), timeout=LIMIT_S)
    child.delaybeforesend = None
    child.expect_exact(PROMPT)
    child.send(f"{command}\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == status
