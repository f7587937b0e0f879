# SPDX-License-Identifier: GPL-2.0-or-later
"""guestos is a well-ported kernel: this is read from its machine code, not from its intentions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import capstone
import pytest
from capstone import x86

from xenlite.devkit.assembler import AssembledKernel, assemble, assemble_fragment
from xenlite.devkit.sensitive import advice_name
from xenlite.toolstack.image import parse_kernel

GUESTOS = Path(__file__).resolve().parents[3] / "guestos"
PAGE = 4096


@cache
def kernel() -> AssembledKernel:
    return assemble(GUESTOS / "main.s")


def disassemble(code: bytes, address: int) -> Iterator[capstone.CsInsn]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    engine.detail = True
    done = 0
    for instruction in engine.disasm(code, address):
        done += instruction.size
        yield instruction
    assert done == len(code), f"no instruction at {address + done:#x}"


@cache
def instructions() -> list[capstone.CsInsn]:
    """Return every instruction of every routine."""
    found: list[capstone.CsInsn] = []
    for section in kernel().sections:
        if "x" not in section.flags:
            continue
        routines = [s for s in kernel().symbols if s.section == section.name and s.is_function]
        assert routines
        for routine in routines:
            start = routine.address - section.address
            code = section.data[start : start + routine.size]
            found += disassemble(code, routine.address)
    return found


def is_for_ring_0(instruction: capstone.CsInsn) -> bool:
    return advice_name(instruction.mnemonic, instruction.op_str) is not None


def text(found: list[capstone.CsInsn]) -> list[str]:
    return [f"{i.address:#x} {i.mnemonic} {i.op_str}" for i in found]


@pytest.mark.parametrize(
    "source",
    [
        *("sgdt [eax]", "sidt [eax]", "sldt eax", "smsw eax", "str eax", "lar eax, ecx"),
        *("lsl eax, ecx", "verr ax", "verw ax", "pushf", "popf", "mov eax, cs", "push cs"),
    ],
)
def test_the_check_knows_each_sensitive_instruction(source: str) -> None:
    assert any(is_for_ring_0(i) for i in disassemble(assemble_fragment(source).code, 0))


@pytest.mark.parametrize(
    "source", ["cli", "hlt", "iret", "mov eax, cr3", "mov dr7, eax", "in al, dx"]
)
def test_the_check_knows_privileged_instructions(source: str) -> None:
    assert any(is_for_ring_0(i) for i in disassemble(assemble_fragment(source).code, 0))


def test_no_sensitive_or_privileged_instruction_occurs() -> None:
    """Everywhere, not only where the linter finds a way to."""
    assert text([i for i in instructions() if is_for_ring_0(i)]) == []


def test_only_the_port_goes_to_the_hypercall_page() -> None:
    page = kernel().address_of("hypercall_page")
    port = range(kernel().address_of("port_start"), kernel().address_of("port_end"))
    callers = [
        i
        for i in instructions()
        for operand in i.operands
        if operand.type == x86.X86_OP_IMM
        and i.group(x86.X86_GRP_BRANCH_RELATIVE)
        and page <= operand.imm & 0xFFFFFFFF < page + PAGE
    ]
    assert callers
    assert text([i for i in callers if i.address not in port]) == []


def test_the_kernel_uses_no_software_interrupt() -> None:
    assert text([i for i in instructions() if i.mnemonic == "int"]) == []


@pytest.mark.parametrize("source", sorted(GUESTOS.glob("*.s")), ids=lambda path: path.name)
def test_only_the_port_names_hypercalls(source: Path) -> None:
    if source.name == "port.s":
        return
    code = [line.split("#")[0] for line in source.read_text().splitlines()]
    names = [
        line
        for line in code
        if re.search(r"\bHYPERCALL|\bHYPERVISOR_|\bhypercall_", line)
        and not line.startswith(".xen_note HYPERCALL_PAGE")
    ]
    assert names == []


def test_the_notes_say_what_the_builder_needs() -> None:
    image = parse_kernel(kernel().elf(), "guestos")
    assert image.guest_os == "guestos"
    assert image.virt_base == 0xC0000000
    assert image.start == image.virt_base
    assert image.entry == kernel().address_of("_start")
    assert image.hypercall_page == kernel().address_of("hypercall_page")
    assert "pae_pgdir_above_4gb" in image.features


def test_the_sections_lie_in_the_order_that_the_rights_rely_on() -> None:
    # memory_entry in memory.s tells code, constants and data apart by the sections' borders.
    names = [section.name for section in kernel().sections]
    assert names == [".text", ".rodata", ".bss"]
    assert all(section.address % PAGE == 0 for section in kernel().sections)
