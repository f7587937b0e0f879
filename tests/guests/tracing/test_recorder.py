# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest does is recorded as the hypervisor saw it, all of it, and costs others nothing."""

from __future__ import annotations

import pytest

from tests.support.guest import KERNEL_AND_PROGRAM, boot, made, traps
from tests.support.guests import TIME, TIMER_EVENTS
from tests.support.recorded import recorded
from xenlite.errors import Refused
from xenlite.machine.clock import ManualClock
from xenlite.trace_format import Hypercall, Kind, view

CALLS = 20
SYSTEM_CALLS = KERNEL_AND_PROGRAM.replace("\\before", "").replace(
    "\\handler",
    """
    push eax
    XEN iret
ended:
    FINISH 0
    """,
).replace(
    "\\program",
    f"""
    mov ecx, {CALLS}
again:
    int 0x80
    dec ecx
    jnz again
    int 0x81
    """,
) + traps("0x80, 3, handler", "0x81, 3, ended")


def test_every_trap_is_seen_also_those_that_need_no_python() -> None:
    """Without a recorder the stub serves all but the first few alone."""
    with recorded(SYSTEM_CALLS) as (seen,):
        assert seen.guest.reason == 0
        assert seen.names.count("int 0x80") == CALLS
        assert seen.names.count("iret") == CALLS
        assert seen.names[-2:] == ["int 0x81", "sched_op"]


def test_a_domain_that_is_not_recorded_keeps_its_own_handlers() -> None:
    with boot(SYSTEM_CALLS) as plain, recorded(SYSTEM_CALLS) as (seen,):
        cpu, recorded_cpu = plain.domain.engine, seen.guest.domain.engine
        assert not cpu.traps.sees_all  # type: ignore[attr-defined]
        assert cpu.ways._memory is not None
        assert recorded_cpu.ways._memory is None
        assert plain.domain.events.receive.__module__ == "xenlite.core.evtchn"
        assert seen.guest.domain.events.receive.__module__ == "xenlite.recorder"
        assert plain.control.recorded() == (b"", 0)


def test_lists_are_those_that_the_hypervisor_read() -> None:
    """The call's own effect takes the right to the list away; the record has it all the same."""
    source = """
    mov ebx, offset list
    mov ecx, 2
    mov edx, offset done
    mov esi, DOMID_SELF
    XEN mmu_update
    mov dword ptr [list], 0x77777000
    FINISH 0
.data
.p2align 4
list: .quad 0x12345003, 0x1111, 0x12345000, 0x2222
done: .long 0
"""
    with recorded(source) as (seen,):
        line = seen.line("mmu_update")
        assert "ureqs=[{ptr=0x12345003, val=0x1111}, {ptr=0x12345000, val=0x2222}]" in line
        assert "foreigndom=DOMID_SELF) = -EINVAL: frames.not-owned (0x12345)" in line
        assert "in entry 0" in line


def test_what_a_call_writes_is_shown_beside_what_it_read() -> None:
    source = """
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, offset asked
    XEN event_channel_op
    FINISH 0
.data
asked: .word DOMID_SELF, 0
    .long 99
"""
    with recorded(source) as (seen,):
        line = seen.line("event_channel_op")
        assert (
            "cmd=EVTCHNOP_alloc_unbound, arg={dom=DOMID_SELF, remote_dom=0x0, port=0x63 =>" in line
        )


def test_the_caller_is_named_and_so_is_a_page_faults_way() -> None:
    source = """
    SET_TRAPS traps
    call ask
fault_here:
    mov eax, [0xE0000000]
ask:
    mov ebx, XENVER_version
    XEN xen_version
behind:
    ret
handler:
    FINISH 0
""" + traps("14, 0, handler")
    with recorded(source) as (seen,):
        assert seen.line("xen_version").endswith("<fault_here>")
        line = seen.line("#PF")
        assert "#PF read 0xe0000000 (error 0x0) at" in line
        assert "<fault_here> -> " in line
        assert line.endswith("<handler>")


def test_the_caller_is_read_from_the_stack_as_it_is_mapped_now() -> None:
    """The page of the stack is remembered between calls; the guest maps another one there."""
    source = """
    mov esp, offset kernel_stack_top - 16
    mov dword ptr [esp], 0x1111
    mov dword ptr [user_stack_top - 16], 0x2222
    xor ebx, ebx
    XEN xen_version
    mov eax, offset user_stack_top - 4096
    sub eax, VIRT_BASE
    shr eax, 12
    mov edx, [p2m]
    mov ecx, [edx + eax * 4]
    mov edx, ecx
    shl ecx, 12
    or ecx, PTE_RW_DATA
    shr edx, 20
    mov ebx, offset kernel_stack_top - 4096
    mov esi, UVMF_INVLPG
    XEN update_va_mapping
    xor ebx, ebx
    XEN xen_version
    FINISH 0
"""
    with recorded(source) as (seen,):
        calls = [view(Hypercall, x) for x in seen.records if x.kind is Kind.HYPERCALL]
        assert [call.caller for call in calls] == [0x1111, 0x1111, 0x2222, 0x2222]


def test_a_multicalls_entries_are_seen_each_before_it() -> None:
    source = """
    mov ebx, offset calls
    mov ecx, 3
    XEN multicall
    FINISH 0
.data
.p2align 5
calls:
    .long HYPERVISOR_xen_version, 0, XENVER_version, 0, 0, 0, 0, 0
    .long 200, 0, 1, 2, 3, 4, 5, 0
    .long HYPERVISOR_sched_op, 0, SCHEDOP_yield, 0, 0, 0, 0, 0
"""
    with recorded(source) as (seen,):
        wanted = ["xen_version", "hypercall 200", "sched_op", "multicall", "sched_op"]
        assert seen.names == wanted
        assert "-ENOSYS: hypercall.unimplemented" in seen.line("hypercall 200")
        assert "op=xen_version" in seen.line("multicall")


def test_events_and_upcalls_are_seen() -> None:
    source = f"""
{TIME}
start:
    {TIMER_EVENTS}
    mov ebx, 1
    xor ecx, ecx
    XEN set_timer_op
    mov byte ptr [shared_info + VCPU_INFO_EVTCHN_UPCALL_MASK], 0
wait:
    cmp dword ptr [ticks], 0
    je wait
    FINISH 0
"""
    with recorded(source) as (seen,):
        assert "event at port 3, a VIRQ" in seen.line("event")
        assert seen.line("upcall").endswith("<on_event>")
        assert seen.names.index("event") < seen.names.index("upcall")


def test_an_ipi_is_seen_once() -> None:
    source = """
    mov ebx, EVTCHNOP_bind_ipi
    mov ecx, offset bound
    XEN event_channel_op
    mov eax, [bound + EVTCHN_BIND_IPI_PORT]
    mov [port], eax
    mov ebx, EVTCHNOP_send
    mov ecx, offset port
    XEN event_channel_op
    FINISH 0
.data
bound: .long 0, 0
port: .long 0
"""
    with recorded(source) as (seen,):
        assert seen.names == ["event_channel_op", "event", "event_channel_op", "sched_op"]
        assert seen.line("event").endswith(", an IPI")


def test_a_crash_is_the_last_that_is_seen() -> None:
    with recorded("    ud2\n") as (seen,):
        assert seen.names == ["#UD", "crash"]
        assert "crashed: traps.no-handler: vector 6" in seen.line("crash")


def test_a_call_that_ends_the_domain_is_seen_as_unfinished() -> None:
    with recorded("    mov esp, 0x10\n    XEN iret\n") as (seen,):
        assert seen.names == ["iret", "crash"]
        assert "iret() = ? (the domain crashed)" in seen.line("iret")


def test_a_full_buffer_loses_events_and_says_how_many() -> None:
    with recorded(SYSTEM_CALLS, buffer_bytes=1024) as (seen,):
        assert len(seen.data) <= 1024
        assert len(seen.records) + seen.lost > 2 * CALLS
        assert seen.guest.reason == 0


def test_a_page_table_write_that_is_emulated_shows_its_two_traps() -> None:
    source = """
    mov ebp, esi
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_writable_pagetables
    XEN vm_assist
    mov ebx, [ebp + START_INFO_NR_PT_FRAMES]
    dec ebx
    shl ebx, 12
    add ebx, [ebp + START_INFO_PT_BASE]
    mov eax, [ebx]
    mov [ebx], eax
    FINISH 0
"""
    # On this clock no turn ends between the two, after which the store would begin again.
    with recorded(source, clock=ManualClock()) as (seen,):
        assert seen.names == ["vm_assist", "#PF", "step", "sched_op"]
        assert "#PF write 0x" in seen.line("#PF")
        assert seen.line("#PF").endswith("(no handler entered)")


def test_the_times_of_traps_are_within_their_turn() -> None:
    with recorded(SYSTEM_CALLS) as (seen,):
        turns = [one for one in seen.records if one.kind is Kind.TURN]
        spans = [(one.time_ns, one.end_ns) for one in turns]
        for one in seen.records:
            if one.kind is Kind.TRAP:
                assert any(a <= one.time_ns <= one.end_ns <= b for a, b in spans)


def test_a_machine_has_one_recorder() -> None:
    with made("    FINISH 0\n") as guest:
        guest.control.record(1 << 16)
        with pytest.raises(Refused, match=r"control\.records-already"):
            guest.control.record(1 << 16)
