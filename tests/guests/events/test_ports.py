# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest can do to ports, its own and others' (SECURITY C1 to C3)."""

from __future__ import annotations

from struct import Struct

import pytest

from tests.support.guest import boot, made
from xenlite.abi.x86_32p import (
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EPERM,
    ESRCH,
    NR_VIRQS,
    VIRQ_CONSOLE,
    VIRQ_DEBUG,
    VIRQ_DOM_EXC,
    VIRQ_TIMER,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenlite.core.evtchn import PortState

WORD = 1 << 32
STEP = Struct("<8I")
SELF = 0x7FF0
# Runs a list of operations: each is a command and a structure of 24 bytes; the result replaces
# the command, and what Xen wrote replaces the structure. The first word counts them.
KERNEL = """
    mov ebp, offset steps
    mov edi, [count]
again:
    mov ebx, [ebp]
    lea ecx, [ebp + 4]
    XEN event_channel_op
    mov [ebp], eax
    add ebp, 32
    dec edi
    jnz again
    FINISH 1
.data
count: .long \\count
steps: .long \\steps
"""


def run(*steps: tuple[int, ...]) -> list[list[int]]:
    """Do the operations in a guest; return result and structure of each."""
    words = []
    for step in steps:
        words += [*step, *(0,) * (8 - len(step))]
    source = KERNEL.replace("\\count", str(len(steps)))
    with boot(source.replace("\\steps", ", ".join(map(str, words)))) as guest:
        assert guest.reason == 1, guest.crash
        return [guest.words("steps", 8 * len(steps))[8 * i : 8 * i + 8] for i in range(len(steps))]


def results(*steps: tuple[int, ...]) -> list[int]:
    """Do the operations in a guest; return their results, errors as negative numbers."""
    return [step[0] - WORD if step[0] >> 31 else step[0] for step in run(*steps)]


def alloc(dom: int = SELF, remote: int = SELF) -> tuple[int, ...]:
    """Make alloc_unbound."""
    return (EVTCHNOP_alloc_unbound, dom | remote << 16)


def test_ports_come_lowest_first_and_never_0() -> None:
    """Ports 1 and 2 belong to the store and the console."""
    found = run(alloc(), alloc(), (EVTCHNOP_close, 3), alloc(), alloc())
    assert [step[0] for step in found] == [0] * 5
    assert [found[i][2] for i in (0, 1, 3, 4)] == [3, 4, 3, 5]


def test_a_loopback_pair_names_each_other() -> None:
    status = (EVTCHNOP_status, SELF)
    found = run(
        alloc(),
        (*status, 3),
        (EVTCHNOP_bind_interdomain, SELF, 3),
        (*status, 3),
        (*status, 4),
        (EVTCHNOP_send, 3),
        (EVTCHNOP_close, 4),
        (*status, 3),
        (*status, 4),
    )
    assert [step[0] for step in found] == [0] * 9
    assert found[1][3:6] == [EVTCHNSTAT_unbound, 0, 1]
    assert found[2][3] == 4
    assert found[3][3:7] == [EVTCHNSTAT_interdomain, 0, 1, 4]
    assert found[4][3:7] == [EVTCHNSTAT_interdomain, 0, 1, 3]
    assert found[7][3:7] == [EVTCHNSTAT_unbound, 0, 1, 0]
    assert found[8][3] == EVTCHNSTAT_closed


@pytest.mark.parametrize("port", [0, 3, 1023, 1024, 0x7FFFFFFF, 0xFFFFFFFF])
def test_no_operation_takes_a_port_that_is_none(port: int) -> None:
    found = results((EVTCHNOP_send, port), (EVTCHNOP_close, port))
    assert found == [-EINVAL, -EINVAL]
    status, unmask = results((EVTCHNOP_status, SELF, port), (EVTCHNOP_unmask, port))
    assert (status, unmask) == ((0, 0) if port < 1024 else (-EINVAL, -EINVAL))


def test_a_port_must_be_offered_to_who_binds_it() -> None:
    assert results(
        alloc(remote=0),  # for Dom0
        (EVTCHNOP_bind_interdomain, SELF, 3),
        (EVTCHNOP_bind_interdomain, SELF, 1),  # the store's, for Dom0
        (EVTCHNOP_bind_interdomain, SELF, 0),
        (EVTCHNOP_bind_interdomain, SELF, 99999),
        (EVTCHNOP_bind_interdomain, 0, 1),
        (EVTCHNOP_bind_interdomain, 42, 1),
        (EVTCHNOP_bind_interdomain, 0x7FF2, 1),
    ) == [0, *[-EINVAL] * 5, -ESRCH, -ESRCH]


def test_a_bound_port_cannot_be_bound_again() -> None:
    bind = (EVTCHNOP_bind_interdomain, SELF, 3)
    assert results(alloc(), bind, bind) == [0, 0, -EINVAL]


def test_another_domains_ports_need_privilege() -> None:
    assert results(
        alloc(dom=0), (EVTCHNOP_status, 0, 1), alloc(dom=9), (EVTCHNOP_status, 9, 1)
    ) == [-EPERM, -EPERM, -ESRCH, -ESRCH]


def test_sending_into_the_void_is_no_error() -> None:
    assert results(alloc(remote=0), (EVTCHNOP_send, 3)) == [0, 0]


def test_ports_of_virtual_interrupts_and_ipis_say_what_they_are() -> None:
    status = (EVTCHNOP_status, SELF)
    found = run(
        (EVTCHNOP_bind_virq, VIRQ_DEBUG, 0),
        (EVTCHNOP_bind_ipi, 0),
        (*status, 3),
        (*status, 4),
        (EVTCHNOP_bind_vcpu, 1, 0),
    )
    assert [step[0] for step in found] == [0] * 5
    assert (found[0][3], found[1][2]) == (3, 4)
    assert found[2][3:7] == [EVTCHNSTAT_virq, 0, VIRQ_DEBUG, 0]
    assert found[3][3:7] == [EVTCHNSTAT_ipi, 0, 0, 0]


def test_a_vcpu_binds_a_virtual_interrupt_once() -> None:
    bind = (EVTCHNOP_bind_virq, VIRQ_TIMER, 0)
    assert results(bind, bind, (EVTCHNOP_close, 3), bind) == [0, -EEXIST, 0, 0]


def test_virtual_interrupts_that_are_none_or_not_its_own_are_refused() -> None:
    virq = EVTCHNOP_bind_virq
    assert results(
        (virq, NR_VIRQS, 0),
        (virq, 0xFFFFFFFF, 0),
        (virq, VIRQ_DEBUG, 1),
        (virq, VIRQ_DEBUG, 99),
        (virq, VIRQ_CONSOLE, 0),
        (virq, VIRQ_DOM_EXC, 0),
        (EVTCHNOP_bind_ipi, 1),
        (EVTCHNOP_bind_ipi, 0xFFFFFFFF),
        (EVTCHNOP_bind_pirq, 1, 0),
    ) == [-EINVAL, -EINVAL, -ENOENT, -ENOENT, -EPERM, -EPERM, -ENOENT, -ENOENT, -EPERM]


def test_a_port_that_belongs_to_a_vcpu_stays_there() -> None:
    bind = EVTCHNOP_bind_vcpu
    assert results(
        (EVTCHNOP_bind_virq, VIRQ_TIMER, 0),
        (EVTCHNOP_bind_ipi, 0),
        (bind, 3, 0),
        (bind, 4, 0),
        (bind, 5, 0),
        (bind, 1024, 0),
        (bind, 1, 1),
        (bind, 1024, 1),
    ) == [0, 0, *[-EINVAL] * 4, -ENOENT, -ENOENT]


def test_a_virtual_interrupt_cannot_be_sent_and_an_ipi_can() -> None:
    assert results(
        (EVTCHNOP_bind_virq, VIRQ_TIMER, 0),
        (EVTCHNOP_bind_ipi, 0),
        (EVTCHNOP_send, 3),
        (EVTCHNOP_send, 4),
    ) == [0, 0, -EINVAL, 0]


def test_priorities_and_the_fifo_form_are_not_there() -> None:
    """As Xen answers a domain without the FIFO form; what it names is not looked at."""
    assert results(
        (EVTCHNOP_set_priority, 1, 0),
        (EVTCHNOP_set_priority, 1024, 0),
        (EVTCHNOP_init_control, WORD - 2, WORD - 1),
        (EVTCHNOP_expand_array, WORD - 2, WORD - 1),
        (EVTCHNOP_alloc_unbound, SELF | SELF << 16),
        (0xFFFFFFFF,),
    ) == [-ENOSYS, -EINVAL, -ENOSYS, -ENOSYS, 0, -ENOSYS]


def test_a_reset_closes_every_port_and_clears_its_bits() -> None:
    source = f"""
        MAP_SHARED_INFO
        mov ebx, EVTCHNOP_bind_virq
        mov ecx, offset virq
        XEN event_channel_op
        mov ebp, 200
    again:
        mov ebx, EVTCHNOP_bind_ipi
        mov ecx, offset ipi
        XEN event_channel_op
        mov ebx, EVTCHNOP_send
        mov ecx, offset ipi + EVTCHN_BIND_IPI_PORT
        XEN event_channel_op
        dec ebp
        jnz again
        mov ebx, EVTCHNOP_reset
        mov ecx, offset reset
        XEN event_channel_op
        mov [result], eax
        mov eax, [shared_info + SHARED_INFO_EVTCHN_PENDING]
        or eax, [shared_info + SHARED_INFO_EVTCHN_PENDING + 4]
        or eax, [shared_info + SHARED_INFO_EVTCHN_PENDING + 24]
        mov [result + 4], eax
        mov ebx, {EVTCHNOP_reset_cont}  # nothing to go on with
        mov ecx, offset reset
        XEN event_channel_op
        mov [result + 8], eax
        mov word ptr [reset], 0
        mov ebx, EVTCHNOP_reset
        mov ecx, offset reset
        XEN event_channel_op
        mov [result + 12], eax
        FINISH 1
    .data
    virq: .long VIRQ_TIMER, 0, 0
    ipi: .long 0, 0
    reset: .word DOMID_SELF
    .p2align 2
    result: .long 9, 9, 9, 9
    """
    with boot(source) as guest:
        assert guest.reason == 1, guest.crash
        assert guest.words("result", 4) == [0, 0, WORD - EBUSY, WORD - EPERM]
        assert guest.word("ipi", 1) == 203
        assert all(guest.domain.events.channel(port) is None for port in range(1024))


def test_a_reset_in_a_multicall_goes_on_where_it_was() -> None:
    source = """
        mov ebp, 300
    again:
        mov ebx, EVTCHNOP_bind_ipi
        mov ecx, offset ipi
        XEN event_channel_op
        dec ebp
        jnz again
        mov ebx, offset calls
        mov ecx, 2
        XEN multicall
        mov [result], eax
        FINISH 1
    .data
    ipi: .long 0, 0
    reset: .word DOMID_SELF
    .p2align 2
    calls: .long HYPERVISOR_event_channel_op, 9, EVTCHNOP_reset, reset, 0, 0, 0, 0
        .long HYPERVISOR_event_channel_op, 9, EVTCHNOP_bind_ipi, ipi, 0, 0, 0, 0
    result: .long 9
    """
    with boot(source) as guest:
        assert guest.word("result") == 0
        assert [guest.word("calls", 1), guest.word("calls", 9)] == [0, 0]
        assert guest.word("ipi", 1) == 1


def test_a_reset_while_the_peer_sends_leaves_the_peer_waiting() -> None:
    source = """
    again:
        mov ebx, EVTCHNOP_reset
        mov ecx, offset reset
        XEN event_channel_op
        or [result], eax
        mov ebx, EVTCHNOP_alloc_unbound
        mov ecx, offset offered
        XEN event_channel_op
        or [result], eax
        mov ebx, SCHEDOP_yield
        XEN sched_op
        dec dword ptr [rounds]
        jnz again
        FINISH 1
    .data
    rounds: .long 50
    reset: .word DOMID_SELF
    .p2align 2
    offered: .word DOMID_SELF, 0
        .long 0
    result: .long 0
    """
    with made(source) as guest:
        link = guest.hypervisor.link(0)
        bound: list[int] = []

        def step() -> None:
            channel = guest.domain.events.channel(1)
            if channel is not None and channel.state is PortState.UNBOUND and channel.remote == 0:
                bound.append(link.bind_interdomain(guest.domid, 1))
            for port in bound:
                link.notify(port)
            if guest.reason is None:
                link.defer(step)

        link.defer(step)
        assert guest.run(10)
        assert (guest.reason, guest.word("result")) == (1, 0)
        assert len(bound) > 1
        for port in bound:
            link.close(port)


@pytest.mark.parametrize(
    ("count", "port"), [(1, 0), (1, 3), (1, 1024), (1, 0xFFFFFFFF), (129, 1), (0xFFFFFFFF, 1)]
)
def test_only_open_ports_can_be_polled_and_not_too_many(count: int, port: int) -> None:
    source = f"""
        mov ebx, SCHEDOP_poll
        mov ecx, offset poll
        XEN sched_op
        mov [result], eax
        FINISH 1
    .data
    poll: .long ports, {count}, 0, 0
    result: .long 0
    ports: .fill 129, 4, {port}
    """
    with boot(source) as guest:
        assert (guest.reason, guest.word("result")) == (1, WORD - EINVAL)


def test_a_full_table_has_no_room_for_a_virtual_interrupt() -> None:
    source = """
    again:
        mov ebx, EVTCHNOP_bind_ipi
        mov ecx, offset ipi
        XEN event_channel_op
        test eax, eax
        jz again
        mov [result], eax
        mov ebx, EVTCHNOP_bind_virq
        mov ecx, offset virq
        XEN event_channel_op
        mov [result + 4], eax
        mov ebx, EVTCHNOP_close
        mov ecx, offset ipi + EVTCHN_BIND_IPI_PORT
        XEN event_channel_op
        mov ebx, EVTCHNOP_bind_virq
        mov ecx, offset virq
        XEN event_channel_op
        mov [result + 8], eax
        FINISH 1
    .data
    ipi: .long 0, 0
    virq: .long VIRQ_DEBUG, 0, 0
    result: .long 9, 9, 9
    """
    with boot(source) as guest:
        assert guest.words("result", 3) == [WORD - ENOSPC, WORD - ENOSPC, 0]
        assert (guest.word("ipi", 1), guest.word("virq", 2)) == (1023, 1023)


def test_a_storm_of_events_costs_little() -> None:
    source = """
        mov ebx, EVTCHNOP_bind_ipi
        mov ecx, offset ipi
        XEN event_channel_op
        mov ebp, 100000
    again:
        mov ebx, EVTCHNOP_send
        mov ecx, offset ipi + EVTCHN_BIND_IPI_PORT
        XEN event_channel_op
        dec ebp
        jnz again
        FINISH 1
    .data
    ipi: .long 0, 0
    """
    with boot(source, seconds=20) as guest:
        assert guest.reason == 1


def test_there_are_1023_ports() -> None:
    source = """
    again:
        mov ebx, EVTCHNOP_alloc_unbound
        mov ecx, offset alloc_unbound
        XEN event_channel_op
        test eax, eax
        jz again
        mov [result], eax
        FINISH 1
    .data
    alloc_unbound: .word DOMID_SELF, DOMID_SELF
        .long 0
    result: .long 0
    """
    with boot(source) as guest:
        assert guest.word("result") == WORD - ENOSPC
        assert guest.word("alloc_unbound", 1) == 1023


@pytest.mark.parametrize("address", ["0xF57FFFFE", "0xF5800000", "0x10000000", "0xFFFFFFFE"])
def test_a_structure_that_cannot_be_read_is_refused(address: str) -> None:
    source = f"""
        mov ebx, \\command
        mov ecx, {address}
        XEN event_channel_op
        mov [result], eax
        FINISH 1
    .data
    result: .long 0
    """
    for command in (EVTCHNOP_send, EVTCHNOP_alloc_unbound, EVTCHNOP_status, EVTCHNOP_close):
        with boot(source.replace("\\command", str(command))) as guest:
            assert guest.word("result") == WORD - EFAULT


def test_nothing_is_allocated_where_the_result_cannot_be_written() -> None:
    source = """
        REMAP offset alloc_unbound, PTE_RO_DATA
        mov ebx, EVTCHNOP_alloc_unbound
        mov ecx, offset alloc_unbound
        XEN event_channel_op
        mov [result], eax
        FINISH 1
    .data
    result: .long 0
    .p2align 12
    alloc_unbound: .word DOMID_SELF, DOMID_SELF
        .long 0
    .p2align 12
    """
    with boot(source) as guest:
        assert guest.word("result") == WORD - EFAULT
        assert guest.domain.events.channel(3) is None


def test_the_old_number_takes_command_and_structure_in_one() -> None:
    source = """
        mov ebx, offset op
        XEN event_channel_op_compat
        mov [result], eax
        mov dword ptr [op], 99
        mov ebx, offset op
        XEN event_channel_op_compat
        mov [result + 4], eax
        mov dword ptr [op], EVTCHNOP_reset  # which is younger than the old number
        mov ebx, offset op
        XEN event_channel_op_compat
        mov [result + 8], eax
        FINISH 1
    .data
    result: .long 9, 9, 9
    op: .long EVTCHNOP_alloc_unbound
        .word DOMID_SELF, DOMID_SELF
        .long 0, 0, 0, 0, 0
    """
    with boot(source) as guest:
        assert guest.words("result", 3) == [0, WORD - ENOSYS, WORD - ENOSYS]
        assert guest.word("op", 2) == 3


def test_a_guests_close_leaves_dom0s_end_waiting() -> None:
    source = """
        mov ebx, EVTCHNOP_close
        mov ecx, offset port
        XEN event_channel_op
        mov [result], eax
        FINISH 1
    .data
    port: .long 2
    result: .long 9
    """
    with made(source) as guest:
        link = guest.hypervisor.link(0)
        theirs = link.bind_interdomain(guest.domid, 2)
        assert guest.run(5)
        assert guest.word("result") == 0
        channel = guest.hypervisor.domains[0].events.channel(theirs)
        assert channel is not None
        assert channel.state.value == EVTCHNSTAT_unbound
        link.notify(theirs)
        link.close(theirs)


@pytest.mark.parametrize("word", [0, SELF, 1, 2, SELF | SELF << 16, 0xFFFFFFFF])
def test_no_command_on_any_domain_does_harm(word: int) -> None:
    """What each may do is told above; here it only has to end, and to leave the audit content."""
    found = results(*((command, word, word, word, word, word) for command in range(65)))
    known = range(EVTCHNOP_reset_cont + 1)
    assert [result for result in found if result > 0] == []
    assert set(found[len(known) :]) == {-ENOSYS}
