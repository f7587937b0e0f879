# SPDX-License-Identifier: GPL-2.0-or-later
"""The run loop: turns, deadlines, other threads, crashes, and errors of our own."""

from __future__ import annotations

import threading

import pytest

from tests.support.guest import boot, made
from xenlite.abi.x86_32p import ENOSYS, HYPERVISOR_xen_version
from xenlite.doors import RunState
from xenlite.hypervisor import Hypervisor
from xenlite.machine.memory import PAGE_SHIFT, PAGE_SIZE

SPIN = "spin: jmp spin\n"
VERSION = """
    mov ebx, XENVER_version
    xor ecx, ecx
    XEN xen_version
"""
BLOCK = """
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    XEN sched_op
    jmp spin
"""
MESSAGE = """
    mov ebx, CONSOLEIO_write
    mov ecx, 5
    mov edx, offset text
    XEN console_io
    FINISH
.data
text: .ascii "hello"
"""


def test_a_spinning_domain_leaves_at_the_deadline() -> None:
    with made(SPIN) as guest:
        assert not guest.run(seconds=0.02)
        assert guest.control.info(guest.domid).state is RunState.RUNNING


def test_work_of_another_thread_runs_although_a_domain_spins() -> None:
    with made(SPIN) as guest:
        ran: list[str] = []
        guest.hypervisor.run(lambda: True)
        thread = threading.Thread(
            target=lambda: guest.hypervisor.defer(
                lambda: ran.append(threading.current_thread().name)
            )
        )
        thread.start()
        assert guest.run(until=lambda: bool(ran))
        thread.join()
        assert ran == [threading.main_thread().name]


def test_a_blocked_domain_is_not_entered_and_the_loop_waits() -> None:
    with made("wait:" + BLOCK.replace("jmp spin", "jmp wait")) as guest:
        guest.run(until=lambda: guest.control.info(guest.domid).state is RunState.BLOCKED)
        calls = len(guest.domain.engine.trail.newest())
        assert not guest.run(seconds=0.02)
        assert len(guest.domain.engine.trail.newest()) == calls


def test_a_paused_domain_does_not_run_until_it_is_unpaused() -> None:
    with made("    FINISH 0") as guest:
        guest.control.pause(guest.domid)
        assert not guest.run(seconds=0.01)
        assert guest.control.info(guest.domid).state is RunState.PAUSED
        guest.control.unpause(guest.domid)
        assert guest.run()


def test_a_crash_report_has_the_last_calls_with_their_results() -> None:
    source = VERSION + "    mov eax, 50\n    int HYPERCALL_VECTOR\n    ud2\n"
    with boot(source) as guest:
        assert guest.crash is not None
        assert guest.crash.rule == "traps.no-handler"
        version, unknown = guest.crash.hypercalls[-2:]
        assert (version.number, version.result) == (HYPERVISOR_xen_version, 4 << 16 | 17)
        assert (unknown.number, unknown.result) == (50, -ENOSYS & 0xFFFFFFFF)


def test_a_call_that_does_not_return_is_recorded_without_a_result() -> None:
    source = """
    mov esp, 0xFBADC0D0
    XEN iret
"""
    with boot(source) as guest:
        assert guest.crash is not None
        assert guest.crash.hypercalls[-1].result is None
        assert guest.crash.registers["esp"] == 0xFBADC0D0


def test_an_error_of_ours_ends_the_run_and_is_not_the_guests() -> None:
    def broken(_domid: int, _text: bytes) -> None:
        raise ZeroDivisionError("ours")

    with made(MESSAGE) as guest:
        guest.hypervisor.console_output = broken
        with pytest.raises(ZeroDivisionError, match="ours"):
            guest.run()
        assert guest.crash is None


def test_console_io_reaches_whoever_listens() -> None:
    with boot(MESSAGE) as guest:
        assert guest.console == b"hello"


def test_a_domid_is_not_used_again() -> None:
    hypervisor = Hypervisor(16 << 20)
    control = hypervisor.control()
    first = control.create_domain("first", max_pages=1, max_vcpus=1)
    control.destroy_domain(first)
    assert control.create_domain("second", max_pages=1, max_vcpus=1) != first
    hypervisor.close()


def test_frames_of_a_destroyed_domain_come_back_empty_and_without_a_name() -> None:
    hypervisor = Hypervisor(16 << 20)
    control = hypervisor.control()
    domid = control.create_domain("first", max_pages=64, max_vcpus=1)
    mfns = control.populate(domid, 64)
    control.set_m2p(domid, mfns)
    for mfn in mfns:
        control.write_frame(domid, mfn, 0, b"secret" * 600)
    control.destroy_domain(domid)
    machine = hypervisor.machine
    for mfn in mfns:
        assert machine.memory.read(mfn << PAGE_SHIFT, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert machine.frames.m2p[mfn] == 0xFFFFFFFF
    assert control.audit() == []
    hypervisor.close()


def test_creating_and_destroying_leaves_nothing() -> None:
    hypervisor = Hypervisor(32 << 20)
    control = hypervisor.control()
    before = sum(hypervisor.machine.frames.refs)
    for _ in range(10):
        domid = control.create_domain("again", max_pages=256, max_vcpus=2)
        control.populate(domid, 256)
        control.alloc_unbound(domid, 0)
        control.destroy_domain(domid)
        assert sum(hypervisor.machine.frames.refs) == before
    assert control.domains() == [0]
    hypervisor.close()
