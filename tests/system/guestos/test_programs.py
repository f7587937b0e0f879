# SPDX-License-Identifier: GPL-2.0-or-later
"""Every program of guestos, as its user meets it: what it does, and how it fails."""

from __future__ import annotations

import re

import pytest

from tests.support.guestos import LOOKS, NAP, PROMPT, Machine, lines, ramdisk

PROGRAMS = sorted(name.removeprefix("bin/") for name in ramdisk() if name.startswith("bin/"))
# Words that the program does not understand.
WRONG = {
    "balloon": ["", "x", "1 2", "-"],
    "bench": ["nothing", "getpid x", "getpid 1 2"],
    "cowtest": ["x"],
    "crash": ["x"],
    "dd": ["x", "bs=x", "bs=0", "bs=3M", "bs=K", "bs=4096M", "count=-1", "if"],
    "dhcp": ["x", "eth0 x", "eth"],
    "faulttest": ["nothing", "99", "1 2"],
    "forktest": ["x", "-1", "99999999999"],
    "fputest": ["x", "0", "17", "1 0", "1 2 3"],
    "halt": ["x"],
    "hello": ["x"],
    "help": ["x"],
    "hog": ["x", "0", "1 2"],
    "hostile": ["x", "1 2 3"],
    "ifconfig": ["x", "eth0 x", "eth0 1.2.3.4", "eth0 1.2.3/8", "eth0 1.2.3.4/33", "eth0 0/0 x"],
    "kill": ["", "x", "-9", "-x 1", "1x", "1 x", "-9 -", "-9 -x"],
    "ls": ["disk disk"],
    "mem": ["x"],
    "ping": ["", "x", "1.2.3", "1.2.3.4.5", "1.2.3.256", "-c", "-c 0 1.2.3.4", "-s 1473 1.2.3.4"],
    "pktgen": ["", "1.2.3.4", "1.2.3.4 0", "1.2.3.4 65536", "1.2.3.4 9 -n", "1.2.3.4 9 -s 15"],
    "primes": ["x", "1", "1 2"],
    "ps": ["x"],
    "reboot": ["x"],
    "sh": ["-x y", "1 2 3"],
    "sleep": ["", "x", "1x", "1.", ".1", "1.x", "1.1234567890", "1 2", "4294967296"],
    "spin": ["x"],
    "stress": ["", "x", "0", "1 2 3"],
    "sync": ["x"],
    "udpecho": ["x", "0", "65536", "7 7"],
    "udpsend": ["", "1.2.3.4 7", "x 7 x", "1.2.3.4 x x", "1.2.3.4 7 -n 1 -s", "1.2.3.4 7 -s 1473"],
    "udpsink": ["x", "0", "65536", "9 9"],
    "uptime": ["x"],
    "vcpu": ["x", "up", "up x", "sideways 1", "up 1 2"],
    "wc": ["1 2"],
}
NEVER_WRONG = {"cat", "echo", "false", "sum", "true"}


def test_every_program_is_tried_with_wrong_words() -> None:
    assert set(PROGRAMS) == set(WRONG) | NEVER_WRONG


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_words_bring_the_usage_on_the_error_output(shell: Machine, name: str) -> None:
    for words in WRONG[name]:
        answer = lines(shell.command(f"/bin/{name} {words} | wc"))
        assert answer[0].startswith(f"usage: {name}"), (words, answer)
        assert answer[1] == "0 lines, 0 words, 0 bytes"
    assert shell.status(f"/bin/{name} {WRONG[name][0]}") == 2


def test_help_names_every_program(shell: Machine) -> None:
    listed = [line.split()[0] for line in lines(shell.command("help")) if line.startswith("  ")]
    assert listed == PROGRAMS


def test_ls_lists_the_ram_disk(shell: Machine) -> None:
    expected = [
        f"{size:8} {name}{'*' if name.startswith('bin/') else ''}"
        for name, size in ramdisk().items()
    ]
    assert lines(shell.command("ls")) == expected


def test_echo_prints_its_words(shell: Machine) -> None:
    assert lines(shell.command("echo a 'b  c' d")) == ["a b  c d"]
    assert lines(shell.command("echo")) == [""]
    assert lines(shell.command("echo ''")) == [""]


@pytest.mark.parametrize(("name", "status"), [("true", 0), ("false", 1)])
def test_true_and_false_are_statuses(shell: Machine, name: str, status: int) -> None:
    assert shell.status(name) == status
    assert shell.status(f"{name} with words") == status


def test_hello_comes_from_ring_3(shell: Machine) -> None:
    (line,) = lines(shell.command("hello"))
    assert re.fullmatch(r"hello from ring 3, process \d+", line)


def test_cat_prints_files(shell: Machine) -> None:
    once = lines(shell.command("cat README"))
    assert once[0].startswith("These files come from")
    assert lines(shell.command("cat README /README")) == once * 2


def test_cat_goes_on_behind_a_file_that_is_missing(shell: Machine) -> None:
    once = lines(shell.command("cat README"))
    answer = lines(shell.command("cat nothing README"))
    assert answer == ["cat: nothing: no such file", *once]
    assert shell.status("cat nothing README") == 1
    assert lines(shell.command("cat " + "x" * 120)) == [f"cat: {'x' * 120}: name too long"]


def test_cat_prints_what_is_typed_until_ctrl_d(shell: Machine) -> None:
    shell.type("cat\r")
    shell.wait_for("cat\n")
    shell.type("one\rtwx\b\x7fwo\x15three\r\x04")
    answer = shell.wait_for(PROMPT)
    assert answer == f"one\none\ntwx\b \b\b \bwo{3 * (chr(8) + ' ' + chr(8))}three\nthree\n"


def test_ps_shows_itself_and_the_shell(shell: Machine) -> None:
    head, *rows = lines(shell.command("ps"))
    assert head.split() == ["ID", "PARENT", "S", "VCPU", "PAGES", "TICKS", "NAME"]
    processes = {row.split()[-1]: row.split() for row in rows}
    assert set(processes) == {"sh", "ps"}
    assert processes["ps"][2] == "R"
    assert processes["sh"][:2] == ["1", "0"]
    assert processes["sh"][2] in "RS"  # with a processor to itself it may not sleep yet
    assert processes["ps"][1] == "1"


def test_mem_tells_what_a_process_takes(shell: Machine) -> None:
    before = shell.memory()
    assert before["pages"] == 2048
    assert before["processes"] == 2
    shell.command("sleep 100 &")
    during = shell.memory()
    assert during["processes"] == 3
    assert during["free"] < before["free"]
    sleeper = shell.process_named("sleep")
    shell.command(f"kill {sleeper}")
    shell.command("wait")
    shell.command("")


@pytest.mark.parametrize("kill", ["kill", "/bin/kill"])
def test_kill_ends_and_probes(shell: Machine, kill: str) -> None:
    shell.command("spin &")
    spinner = shell.process_named("spin")
    assert shell.status(f"{kill} -0 {spinner}") == 0
    assert shell.status(f"{kill} {spinner}") == 0
    answer = lines(shell.command("wait"))
    assert answer in ([], [f"sh: process {spinner} was ended by signal 15"])
    shell.wait_for_quiet()
    shell.command("")
    assert lines(shell.command(f"{kill} -0 {spinner}")) == [f"{kill}: {spinner}: no such process"]
    assert shell.status(f"{kill} {spinner} 99999") == 1


def test_kill_ends_a_group(shell: Machine) -> None:
    (line,) = lines(shell.command("sleep 100 | sleep 100 | cat &"))
    assert shell.status(f"kill -9 -{line[1:-2]}") == 0
    shell.wait_for_quiet()
    shell.command("")


def test_the_shells_own_kill_tells_its_usage(shell: Machine) -> None:
    usage = "sh: usage: kill [-SIGNAL] ID... (-GROUP for a group)"
    for words in WRONG["kill"]:
        assert lines(shell.command(f"kill {words}")) == [usage]
    assert shell.status("kill x") == 2


def test_a_signal_shows_in_the_status(shell: Machine) -> None:
    shell.command("sleep 100 &")
    sleeper = shell.process_named("sleep")
    answer = shell.command(f"kill -9 {sleeper}")
    for _ in range(LOOKS):
        if f"[{sleeper}] ended, status {128 + 9}: sleep 100\n" in answer:
            return
        answer = shell.command(NAP)
    raise AssertionError(answer)


def test_forktest_forks(shell: Machine) -> None:
    assert lines(shell.command("forktest 25")) == ["25 children forked and waited for"]
    assert lines(shell.command("forktest 0")) == ["0 children forked and waited for"]


def test_a_thousand_forks_leave_nothing(shell: Machine) -> None:
    assert lines(shell.command("forktest")) == ["1000 children forked and waited for"]


def test_cowtest_finds_nothing_wrong(shell: Machine) -> None:
    answer = lines(shell.command("cowtest"))
    assert len(answer) == 5
    assert all(line.endswith(": well") for line in answer)
    assert shell.status("cowtest") == 0


def test_every_exception_ends_who_makes_it(shell: Machine) -> None:
    answer = lines(shell.command("faulttest"))
    verdicts = [line for line in answer if "vector" in line]
    reports = [line for line in answer if "killed: " in line]
    assert len(verdicts) == len(reports) == 26
    assert [line for line in verdicts if not line.endswith(", as it should")] == []
    assert shell.status("faulttest") == 0


def test_faults_are_chosen_by_name_and_by_vector(shell: Machine) -> None:
    (report, verdict) = lines(shell.command("faulttest kernel-write"))
    assert "(faulttest): killed: page fault at 0xc0000000, error 0x7, eip 0x80" in report
    assert verdict == "kernel-write vector 14: ended by signal 11, as it should"
    assert shell.command("faulttest 13").count("as it should") == 8


def test_fputest_finds_nothing_wrong(shell: Machine) -> None:
    assert lines(shell.command("fputest 3 20000")) == ["3 processes kept their registers"]


def test_primes_counts(shell: Machine) -> None:
    assert lines(shell.command("primes 2")) == ["1 primes up to 2, the last is 2"]
    assert lines(shell.command("primes 50000")) == ["5133 primes up to 50000, the last is 49999"]
    assert lines(shell.command("primes 99999999")) == ["primes: out of memory"]


def test_wc_counts(shell: Machine) -> None:
    assert lines(shell.command("echo a bb '' ccc | wc")) == ["1 lines, 3 words, 10 bytes"]
    size = ramdisk()["README"]
    assert lines(shell.command("wc README"))[0].endswith(f" {size} bytes")
    assert lines(shell.command("wc nothing")) == ["wc: nothing: no such file"]


def test_memory_can_be_used_up(shell: Machine) -> None:
    free = shell.memory()["free"]
    (line,) = lines(shell.command("hog"))
    used = int(line.split()[0])
    assert free - 100 < used <= free
    assert shell.memory()["free"] == free


def test_two_that_want_all_memory_end_and_the_shell_lives(shell: Machine) -> None:
    answer = shell.command("hog & hog; wait")
    assert PROMPT not in answer
    shell.command("")
    assert shell.status("true") == 0


def test_hog_takes_what_it_is_told(shell: Machine) -> None:
    assert lines(shell.command("hog 100")) == ["100 pages used"]


def test_bench_measures_everything(shell: Machine) -> None:
    for name in (
        *("getpid", "fork", "fork_exit_wait", "fork_exec_wait", "demand_fault", "cow_fault"),
        *("pipe_round_trip", "switch"),
    ):
        answer = shell.command(f"bench {name} 20")
        assert re.fullmatch(rf"{name} 20 times\n  [1-9]\d* ns each\n", answer)


def test_balloon_gives_and_takes(shell: Machine) -> None:
    before = shell.memory()
    assert lines(shell.command("balloon 200")) == ["200 pages given to the hypervisor"]
    during = shell.memory()
    assert during["ballooned"] == before["ballooned"] + 200
    assert during["free"] == before["free"] - 200
    assert shell.control.info(shell.domid).pages == 2048 - 200
    assert lines(shell.command("balloon -200")) == ["200 pages taken back"]
    assert shell.memory() == before


def test_balloon_leaves_what_a_command_needs(shell: Machine) -> None:
    before = shell.memory()
    (line,) = lines(shell.command("balloon 100000"))
    given = int(line.split()[0])
    assert before["free"] - 100 < given < before["free"]
    assert shell.memory()["ballooned"] == given
    assert lines(shell.command("balloon -100000")) == [f"{given} pages taken back"]
    assert shell.memory() == before


def test_every_program_bears_a_lack_of_memory(shell: Machine) -> None:
    before = shell.memory()
    shell.command("balloon 100000")
    short = shell.memory()["free"]
    for line in (
        *("primes 300000", "hog", "forktest 20", "cowtest", "fputest 8 100", "bench demand 500"),
        *("hostile 8", "faulttest", "ls | cat | cat | cat | wc", "sh -c 'sh -c \"sh -c hello\"'"),
        *("sleep 0.1 & " * 7, "stress 1 3"),
    ):
        answer = shell.command(line)
        assert "panic" not in answer
        shell.command("wait")
        shell.wait_for_quiet()
        assert shell.memory()["free"] == short, line
    shell.command("balloon -100000")
    assert shell.memory() == before


def test_more_processes_than_there_is_room_for(shell: Machine) -> None:
    before = shell.memory()
    shell.command("balloon 1200")
    # No longer than a row: news from children between two drawings of a line would confuse us.
    crowd = "sleep 9|" * 7 + "sleep 9&"
    jobs: list[str] = []
    answer = ""
    while "out of memory" not in answer:
        answer = shell.command(crowd)
        jobs += re.findall(r"^\[(\d+)\] $", answer, re.MULTILINE)
        assert len(jobs) < LOOKS
    for job in jobs:  # those that could not start have ended by themselves
        shell.command(f"kill -9 -{job}")
    shell.wait_for_quiet()
    shell.command("balloon -1200")
    assert shell.memory() == before


def test_vcpu_lists_what_there_is(shell: Machine) -> None:
    count = shell.guest.config.vcpus
    expected = [f"{number} up" for number in range(count)]
    assert lines(shell.command("vcpu")) == expected
    assert lines(shell.command("vcpu list")) == expected


def test_vcpus_go_down_and_come_up(shell: Machine) -> None:
    count = shell.guest.config.vcpus
    for number in range(1, count):
        assert shell.status(f"vcpu down {number}") == 0
        assert f"{number} down" in lines(shell.command("vcpu"))
        assert lines(shell.command("forktest 5")) == ["5 children forked and waited for"]
    for number in range(1, count):
        assert shell.status(f"vcpu up {number}") == 0
    assert lines(shell.command("vcpu")) == [f"{number} up" for number in range(count)]


def test_vcpu_refuses_what_cannot_be(shell: Machine) -> None:
    count = shell.guest.config.vcpus
    assert shell.status(f"vcpu up {count}") == 1
    assert shell.status("vcpu down 99") == 1
    assert shell.status("vcpu down 0") == 1


def test_uptime_has_milliseconds(shell: Machine) -> None:
    (line,) = lines(shell.command("uptime"))
    assert re.fullmatch(r"up \d+\.\d{3} s", line)


def test_spin_counts_and_leaves_the_processor_to_others(shell: Machine) -> None:
    shell.command("spin 1 &")
    assert lines(shell.command("primes 1000")) == ["168 primes up to 1000, the last is 997"]
    assert re.search(r"^counted to \d+$", shell.command("wait"), re.MULTILINE)


def test_stress_ends_and_leaves_nothing(shell: Machine) -> None:
    answer = shell.command("stress 1 7")
    assert re.search(r"^\d+ commands run, \d+ of them ended from outside$", answer, re.MULTILINE)
