# SPDX-License-Identifier: GPL-2.0-or-later
"""Slices that end anywhere: between a store to a page table and its check, in a list of calls."""

from __future__ import annotations

import pytest

from tests.support.guest import START, made
from tests.support.guests import SMP
from xenlite.machine.clock import ManualClock

# Two vCPUs change unused bits of entries of one L1 by plain stores, each an odd number of times.
STORES = """
    mov ebp, [esi + START_INFO_PT_BASE]
    MAP_SHARED_INFO
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_writable_pagetables
    XEN vm_assist
    # The L1 of the first 2 MiB, by its frame's number among the guest's.
    mov eax, [ebp + 24]
    call address_of
    mov eax, [eax]
    call address_of
    mov ecx, offset target0
    sub ecx, VIRT_BASE
    shr ecx, 12
    lea eax, [eax + ecx * 8]
    mov [slot], eax
    START_VCPU 1, worker, stack1_top
    mov edi, [slot]
    mov ebp, offset done
    call toggle
wait:
    SCHED_OP yield
    cmp dword ptr [done + 4], 0
    je wait
    mov edi, [slot]
    mov eax, [edi]
    mov [seen], eax
    mov eax, [edi + 8]
    mov [seen + 4], eax
    FINISH 7
worker:
    mov edi, [slot]
    add edi, 8
    mov ebp, offset done + 4
    call toggle
idle:
    SCHED_OP yield
    jmp idle
toggle:
    xor esi, esi
again:
    xor dword ptr [edi], 0x200
    inc esi
    cmp esi, 101
    jne again
    mov [ebp], esi
    ret
address_of:
    shr eax, 12
    mov eax, [HYPERVISOR_VIRT_START_PAE + eax * 4]
    shl eax, 12
    add eax, VIRT_BASE
    ret
.data
slot: .long 0
done: .long 0, 0
seen: .long 0, 0
.p2align 12
target0: .space 4096
target1: .space 4096
"""


# A trap counts as a block, so less than three would end every slice before the store is through.
@pytest.mark.parametrize("blocks", [3, 5, 7, 1000])
def test_a_slice_may_end_in_the_middle_of_a_page_table_write(blocks: int) -> None:
    with made(SMP + START + STORES, vcpus=2, clock=ManualClock()) as guest:
        # No other way leads to slices as short as that.
        guest.hypervisor._guests[guest.domid].slice_blocks = blocks
        turns = iter(range(100_000))
        guest.run(until=lambda: guest.reason is not None or next(turns, None) is None)
        assert guest.reason == 7, guest.crash
        assert guest.words("done", 2) == [101, 101]
        assert [word & 0xE00 for word in guest.words("seen", 2)] == [0x200, 0x200]


# A list of calls in which the vCPU yields, sleeps and goes down, while another one spins.
LIST = """
    START_VCPU 1, worker, stack1_top
    mov ebx, offset list
    mov ecx, 5
    XEN multicall
    mov [result], eax
    FINISH 7
worker:
    VCPU_OP up, 0
    jmp worker
.data
list:
    .long HYPERVISOR_sched_op, 99, SCHEDOP_yield, 0, 0, 0, 0, 0
    .long HYPERVISOR_vcpu_op, 99, VCPUOP_is_up, 0, 0, 0, 0, 0
    .long HYPERVISOR_vcpu_op, 99, VCPUOP_down, 0, 0, 0, 0, 0
    .long HYPERVISOR_vcpu_op, 99, VCPUOP_is_up, 1, 0, 0, 0, 0
    .long HYPERVISOR_vcpu_op, 99, VCPUOP_is_up, 7, 0, 0, 0, 0
"""


def test_a_list_of_calls_goes_on_where_its_vcpu_stopped() -> None:
    with made(SMP + START + "MAP_SHARED_INFO\n" + LIST, vcpus=2) as guest:
        assert guest.run()
        assert (guest.reason, guest.word("result")) == (7, 0), guest.crash
        results = [guest.word("list", 8 * n + 1) for n in range(5)]
        assert results == [0, 1, 0, 1, 0xFFFFFFFE]
