# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that every instruction and every file of guestos keeps, read from what is assembled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import capstone
import pytest
from capstone.x86 import X86_OP_REG, X86_REG_CS

from xenlite.abi.x86_32p import HYPERCALL_VECTOR
from xenlite.devkit.assembler import AssembledKernel, AssembledSection, assemble

GUESTOS = Path(__file__).parents[3] / "guestos"
FILES = sorted(GUESTOS.glob("*.s"))
# They neither fault in ring 1 nor do there what they do in ring 0.
SENSITIVE = {
    *("sgdt", "sidt", "sldt", "smsw", "str", "lar", "lsl", "verr", "verw"),
    *("pushf", "popf", "pushfd", "popfd", "sahf", "iret", "iretd", "retf"),
}
# They fault in ring 1: a ported kernel has no use for them.
PRIVILEGED = {
    *("cli", "sti", "hlt", "clts", "lmsw", "invlpg", "wbinvd", "invd", "rdmsr", "wrmsr", "rdpmc"),
    *("in", "out", "insb", "insd", "outsb", "outsd", "lgdt", "lidt", "lldt", "ltr"),
}


@cache
def kernel() -> AssembledKernel:
    return assemble(GUESTOS / "main.s")


def code_of(section: AssembledSection) -> Iterator[tuple[int, bytes]]:
    """Give the pieces of a section that are code: the functions, without objects among them."""
    for symbol in kernel().symbols:
        if symbol.section == section.name and symbol.is_function:
            start = symbol.address - section.address
            yield symbol.address, section.data[start : start + symbol.size]


def instructions() -> Iterator[capstone.CsInsn]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    decoder.detail = True
    for section in kernel().sections:
        if "x" not in section.flags:
            continue
        for address, code in code_of(section):
            decoded = 0
            for instruction in decoder.disasm(code, address):
                decoded += instruction.size
                yield instruction
            assert decoded == len(code), f"cannot decode at {address + decoded:#x}"


def test_no_instruction_reads_privileged_state_without_faulting() -> None:
    found = [f"{i.address:#x} {i.mnemonic} {i.op_str}" for i in instructions()]
    assert len(found) > 1000
    assert [text for text in found if text.split()[1] in SENSITIVE] == []


def test_the_ring_is_never_read_from_cs() -> None:
    readers = [
        f"{i.address:#x} {i.mnemonic} {i.op_str}"
        for i in instructions()
        if any(operand.type == X86_OP_REG and operand.reg == X86_REG_CS for operand in i.operands)
    ]
    assert readers == []


def test_no_instruction_needs_ring_0() -> None:
    wrong = [
        f"{i.address:#x} {i.mnemonic} {i.op_str}"
        for i in instructions()
        if i.mnemonic in PRIVILEGED or re.search(r"\b[cd]r[0-7]\b", i.op_str)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_the_port_makes_hypercalls(path: Path) -> None:
    statements = [line.split("#")[0] for line in path.read_text().splitlines()]
    calls = [text for text in statements if re.search(r"\bHYPERCALL\w*|hypercall_page", text)]
    notes = [text for text in calls if text.startswith(".xen_note HYPERCALL_PAGE")]
    assert calls == notes or path.name == "port.s"
    traps = [text for text in statements if re.search(rf"\bint\s+({HYPERCALL_VECTOR}|0x82)", text)]
    assert traps == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# SPDX-License-Identifier: GPL-2.0-or-later"
    assert lines[1] == "#"
    assert len(lines[2]) > 20


def test_main_includes_every_file_once() -> None:
    included = re.findall(r'^\.include "(.+)"', (GUESTOS / "main.s").read_text(), re.MULTILINE)
    assert sorted(included) == sorted(
        ["xen_abi.inc", *(path.name for path in FILES if path.name != "main.s")]
    )


def test_code_is_not_writable_and_data_is_not_executable() -> None:
    flags = {section.name: section.flags for section in kernel().sections}
    assert flags == {".text": "ax", ".user": "ax", ".rodata": "a", ".data": "aw", ".bss": "aw"}
