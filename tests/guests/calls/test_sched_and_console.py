# SPDX-License-Identifier: GPL-2.0-or-later
"""console_io and sched_op as a guest uses and misuses them (SECURITY H1, E2)."""

from __future__ import annotations

import pytest

from tests.support.guest import boot, made
from xenlite.abi.x86_32p import EFAULT, EINVAL, ENOSYS, EPERM, SHUTDOWN_crash

WORD = 1 << 32
CONSOLE = """
    mov ebx, \\command
    mov ecx, \\count
    mov edx, \\buffer
    XEN console_io
    mov [result], eax
    FINISH 1
.data
result: .long 9
text: .ascii "hello, world"
.bss
.p2align 12
long: .space 5 * 4096
"""


def console(command: int, count: int, buffer: str) -> tuple[int, bytes]:
    """Call console_io; return its result and what came out."""
    source = CONSOLE.replace("\\command", str(command)).replace("\\count", str(count))
    with boot(source.replace("\\buffer", buffer)) as guest:
        assert guest.reason == 1, guest.crash
        return guest.word("result"), guest.console


def test_text_comes_out_as_it_is() -> None:
    assert console(0, 12, "offset text") == (0, b"hello, world")
    assert console(0, 0, "0") == (0, b"")


def test_long_text_comes_out_whole() -> None:
    assert console(0, 20000, "offset long") == (0, bytes(20000))


@pytest.mark.parametrize(
    ("command", "count", "buffer", "expected"),
    [
        (0, 1 << 31, "offset text", -EINVAL),
        (0, 0xFFFFFFFF, "offset text", -EINVAL),
        (0, 4, "0xF5800000", -EFAULT),
        (0, 8, "0xF57FFFFC", -EFAULT),
        (0, 1, "0x10000000", -EFAULT),
        (2, 1, "offset text", -ENOSYS),
        (0xFFFFFFFF, 1, "offset text", -ENOSYS),
        (1, 16, "offset text", 0),
    ],
)
def test_what_console_io_refuses_prints_nothing(
    command: int, count: int, buffer: str, expected: int
) -> None:
    assert console(command, count, buffer) == (expected % WORD, b"")


def test_endless_text_stops_where_the_memory_does() -> None:
    result, text = console(0, 0x7FFFFFFF, "offset long")
    assert result == WORD - EFAULT
    assert 0 < len(text) < 4 << 20


@pytest.mark.parametrize(
    ("call", "argument", "expected"),
    [
        ("sched_op", "offset reason", 5),
        ("sched_op_compat", "5", 5),
        ("sched_op_compat", "offset reason", None),  # as GNU Mach does: any byte will do
        ("sched_op", "offset big_reason", 0xFE),
    ],
)
def test_shutdown_tells_its_reason_as_a_byte(
    call: str, argument: str, expected: int | None
) -> None:
    source = f"""
        mov ebx, SCHEDOP_shutdown
        mov ecx, {argument}
        XEN {call}
        int3
    .data
    reason: .long 5
    big_reason: .long 0xFFFFFFFE
    """
    with boot(source) as guest:
        wanted = guest.symbols["reason"] & 0xFF if expected is None else expected
        assert guest.reason == wanted


def test_a_crash_by_its_own_word_is_a_crash() -> None:
    with boot("    FINISH SHUTDOWN_crash\n") as guest:
        assert guest.reason == SHUTDOWN_crash


@pytest.mark.parametrize(
    ("call", "command", "expected"),
    [
        ("sched_op", "SCHEDOP_yield", 0),
        ("sched_op_compat", "SCHEDOP_yield", 0),
        ("sched_op", "SCHEDOP_poll", -EFAULT),
        ("sched_op", "SCHEDOP_watchdog", -EFAULT),
        ("sched_op", "SCHEDOP_remote_shutdown", -EFAULT),
        ("sched_op", "SCHEDOP_shutdown_code", -EFAULT),
        ("sched_op", "SCHEDOP_pin_override", -EPERM),
        ("sched_op", "99", -ENOSYS),
        ("sched_op_compat", "SCHEDOP_poll", -ENOSYS),
        ("sched_op", "SCHEDOP_shutdown", -EFAULT),
    ],
)
def test_other_commands_return(call: str, command: str, expected: int) -> None:
    source = f"""
        mov ebx, {command}
        mov ecx, 0xF5800000
        XEN {call}
        mov [result], eax
        FINISH 1
    .data
    result: .long 9
    """
    with boot(source) as guest:
        assert (guest.reason, guest.word("result")) == (1, expected % WORD)


def test_yield_lets_deferred_work_run() -> None:
    source = """
    again:
        mov ebx, SCHEDOP_yield
        XEN sched_op
        cmp dword ptr [flag], 0
        je again
        FINISH 1
    .data
    flag: .long 0
    """
    with made(source) as guest:
        address = guest.symbols["flag"]
        maddr = guest.control.translate(guest.domid, 0, address)
        assert maddr is not None
        memory = guest.hypervisor.machine.memory
        assert not guest.run(0.02)
        guest.hypervisor.link(0).defer(lambda: memory.write(maddr, b"\1"))
        assert guest.run(5)
        assert guest.reason == 1
