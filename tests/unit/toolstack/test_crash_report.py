# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a refusal; whole crash reports are seen in tests/system/test_cli.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xenlite.abi.x86_32p import (
    EBUSY,
    EFAULT,
    HYPERVISOR_sched_op,
    HYPERVISOR_update_va_mapping,
    HYPERVISOR_vm_assist,
    SCHEDOP_shutdown,
)
from xenlite.doors import Refusal
from xenlite.toolstack.crash_report import refusal_line
from xenlite.toolstack.symbols import Symbols

SYMBOLS = Symbols({0x1000: "stub", 0x2000: "caller"}, [range(0x1000, 0x3000)])
REFUSAL = Refusal(
    domid=1,
    vcpu=0,
    number=HYPERVISOR_sched_op,
    arguments=(SCHEDOP_shutdown, 0xFFFFF000, 1, 2, 3),
    errno=EFAULT,
    rule="memory.bad-pointer",
    argument=0xFFFFF000,
    entry=None,
    eip=0x1007,
    caller=0x2010,
)


def test_a_refusal_names_call_result_rule_argument_and_caller() -> None:
    assert refusal_line(REFUSAL, SYMBOLS) == (
        "sched_op(cmd=SCHEDOP_shutdown, arg=0xfffff000) = -EFAULT: memory.bad-pointer (0xfffff000),"
        " from 00002010 <caller+0x10>"
    )


def test_a_refusal_within_a_list_says_which_entry_it_was() -> None:
    line = refusal_line(replace(REFUSAL, entry=3), SYMBOLS)
    assert "memory.bad-pointer (0xfffff000) in entry 3, from" in line


@pytest.mark.parametrize("caller", [None, 0x5000])
def test_a_bare_int_is_named_by_its_own_address(caller: int | None) -> None:
    line = refusal_line(replace(REFUSAL, caller=caller), SYMBOLS)
    assert line.endswith("from 00001007 <stub+0x7>")


def test_wide_arguments_take_two_registers() -> None:
    refusal = replace(
        REFUSAL,
        number=HYPERVISOR_update_va_mapping,
        arguments=(0xC0000000, 0x12345067, 0x80000000, 2, 0),
        errno=EBUSY,
        rule="paging.writable-page-table",
        argument=None,
    )
    assert refusal_line(refusal, SYMBOLS).startswith(
        "update_va_mapping(va=0xc0000000, val=0x8000000012345067, flags=0x2) = -EBUSY:"
        " paging.writable-page-table, from"
    )


def test_strange_numbers_stay_numbers() -> None:
    strange = replace(REFUSAL, number=63, errno=4095)
    assert refusal_line(strange, SYMBOLS).startswith("hypercall 63(0x2, 0xfffff000, 0x1, 0x2, 0x3)")
    unknown = replace(REFUSAL, number=HYPERVISOR_vm_assist, arguments=(0, 31, 0, 0, 0))
    assert refusal_line(unknown, SYMBOLS).startswith("vm_assist(cmd=VMASST_CMD_enable, type=")
