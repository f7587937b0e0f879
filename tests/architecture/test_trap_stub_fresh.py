# SPDX-License-Identifier: GPL-2.0-or-later
"""The trap stub's bytes are those of its source, and its offsets those of the tables."""

from __future__ import annotations

import re

from tools.gen_stub import SOURCE, TARGET, render
from xenlite.abi.x86_32p import (
    SIZEOF_VCPU_INFO,
    VCPU_INFO_EVTCHN_UPCALL_MASK,
    VCPU_INFO_EVTCHN_UPCALL_PENDING,
)
from xenlite.machine import trap
from xenlite.machine.engine import TrapTable
from xenlite.machine.memory import PAGE_SIZE
from xenlite.machine.trap_stub import TRAP_STUB
from xenlite.machine.ways import UPCALL, WAY_SIZE_BYTES, WayKind


def equates(prefix: str = "") -> dict[str, int]:
    found = re.findall(rf"^\.equ {prefix}(\w+), (\w+)", SOURCE.read_text(), re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def test_the_bytes_are_fresh() -> None:
    assert TARGET.read_text() == render(SOURCE.read_text()), "run python tools/gen_stub.py"


def test_no_operand_is_computed_outside_brackets() -> None:
    """The assembler takes ``0x1000 - NAME`` for a place in memory, and says nothing."""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        outside = re.sub(r"\[.*?\]", "", line.split("#", 1)[0])
        assert not re.search(r"\w\s*[-+*/]\s*\w", outside), f"line {number}: {line}"


def test_a_frame_within_the_kernel_ends_in_its_page() -> None:
    found = equates()
    assert found["LAST_INNER_FRAME"] + found["INNER_FRAME"] == PAGE_SIZE


def test_the_stub_fits_beside_the_others() -> None:
    assert len(TRAP_STUB) <= PAGE_SIZE - 128


def test_offsets_of_the_table() -> None:
    found = equates()
    names = [name for name, *_ in TrapTable._fields_ if name not in ("handlers", "nothing_pending")]
    for name in names:
        offset = getattr(TrapTable, name).offset
        assert found[{"ways": "RETURN"}.get(name, name.upper())] == offset, name
    assert found["RETURN_INSIDE"] == found["RETURN"] + 8
    assert found["GATES"] == found["RETURN"] + 16
    assert found["UPCALL_VECTOR"] == UPCALL
    assert found["UPCALL"] == found["HANDLERS"] + 8 * UPCALL
    assert found["GATES_OF_RING_1"] == UPCALL + 1


def test_offsets_of_the_state() -> None:
    registers = equates("R_")
    for name in ("EAX", "ECX", "EDX", "EBX", "ESP", "ESI", "EDI", "EIP", "EFLAGS", "HFLAGS"):
        assert registers[name] == 4 * getattr(trap, name), name
    for name in ("CC_SRC", "CC_OP", "DF", "IS_INT", "CR2", "ERROR_CODE"):
        assert registers[name] == 4 * getattr(trap, name), name
    for name in ("ES", "CS", "SS", "DS", "FS", "GS"):
        selector = trap.SEG0 + trap.SEGMENT_WORDS * getattr(trap, name)
        assert registers[name] == 4 * selector, name


def test_masks_of_flags() -> None:
    found = equates()
    assert found["SIZEOF_INFO"] == SIZEOF_VCPU_INFO
    assert VCPU_INFO_EVTCHN_UPCALL_PENDING == 0
    assert VCPU_INFO_EVTCHN_UPCALL_MASK == 1
    entry = trap.EFLAGS_TF | trap.EFLAGS_NT | trap.EFLAGS_RF | trap.EFLAGS_VM
    assert found["CLEARED_ON_ENTRY"] == entry
    assert found["PUSHED"] == 0x3FFFFF & ~(trap.EFLAGS_IF | trap.EFLAGS_IOPL)
    assert found["NOT_PLAIN"] == trap.EFLAGS_DF | trap.EFLAGS_VM | trap.EFLAGS_IOPL
    assert found["ARITHMETIC"] == trap.EFLAGS_ARITHMETIC
    assert found["FLAG_IF"] == trap.EFLAGS_IF
    assert found["ALWAYS_SET"] == trap.EFLAGS_IF | trap.EFLAGS_FIXED
    assert found["RING_AND_ADDSEG"] == trap.HF_CPL | trap.HF_ADDSEG
    segments = trap.HF_CPL | trap.HF_CS32 | trap.HF_SS32
    assert found["NOT_SEGMENTS"] == 0xFFFFFFFF & ~segments


def test_ways_are_as_long_as_the_stub_thinks() -> None:
    assert equates("WAY_")["LIMIT"] + 4 == WAY_SIZE_BYTES


def test_kinds_of_ways() -> None:
    found = equates()
    prefixes = {WayKind.ADDRESS: "HAS_", WayKind.ERROR_CODE: "HAS_", WayKind.MASKS_EVENTS: ""}
    for kind in WayKind:
        assert found[prefixes.get(kind, "IS_") + str(kind.name)] == kind
