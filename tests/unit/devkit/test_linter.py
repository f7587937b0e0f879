# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenlite lint` finds what does not work in ring 1, with its place, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenlite.cli.main import main
from xenlite.devkit.assembler import assemble
from xenlite.devkit.linter import Finding, lint
from xenlite.devkit.sensitive import ADVICE

NOTES = """
.include "xen_abi.inc"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note VIRT_BASE, 0xC0000000
.xen_note FEATURES, "pae_pgdir_above_4gb"
"""
PAGE_NOTE = ".xen_note HYPERCALL_PAGE, hypercall_page\n"
KERNEL = """
.text
.p2align 12
.type hypercall_page, @object
hypercall_page: .space 4096
.global _start
_start:
    \\code
    ret
"""
INSTRUCTIONS = {
    "pushfd": "pushfd", "popfd": "popfd", "iretd": "iretd", "sgdt": "sgdt [eax]",
    "sidt": "sidt [eax]", "sldt": "sldt eax", "str": "str eax", "smsw": "smsw eax",
    "lar": "lar eax, ecx", "lsl": "lsl eax, ecx", "verr": "verr ax", "verw": "verw ax",
    "cli": "cli", "sti": "sti", "clts": "clts", "rdmsr": "rdmsr", "wrmsr": "wrmsr",
    "wbinvd": "wbinvd", "in": "in al, dx", "out": "out dx, al", "hlt": "hlt",
    "lgdt": "lgdt [eax]", "lidt": "lidt [eax]", "lldt": "lldt ax", "ltr": "ltr ax",
    "lmsw": "lmsw ax", "invlpg": "invlpg [eax]", "invd": "invd", "rdpmc": "rdpmc",
    "sysexit": "sysexit", "sysret": "sysret", "monitor": "monitor",
    "mwait": "mwait", "string I/O": "rep insb", "mov from cs": "push cs",
    "mov cr0": "mov eax, cr0", "mov cr2": "mov eax, cr2", "mov cr3": "mov cr3, eax",
    "mov cr4": "mov cr4, eax", "mov dr": "mov dr7, eax",
}  # fmt: skip


def found_in(folder: Path, code: str, notes: str = NOTES + PAGE_NOTE) -> list[Finding]:
    source = folder / "kernel.s"
    source.write_text(notes + KERNEL.replace("\\code", code))
    return lint(assemble(source).elf(str(folder)), "kernel")


@pytest.mark.parametrize("name", ADVICE)
def test_each_instruction_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    (found,) = found_in(tmp_path, f"nop\n    {INSTRUCTIONS[name]}")
    assert found.name == name
    assert found.function == "_start+0x1"
    line = (NOTES + PAGE_NOTE + KERNEL).count("\n", 0, (NOTES + PAGE_NOTE + KERNEL).index("\\code"))
    assert found.place == f"kernel.s:{line + 2}"
    assert str(found).endswith(f"instead: {ADVICE[name].instead}")


@pytest.mark.parametrize(
    "code",
    [
        "mov eax, ds\n mov ecx, [eax]\n rdtsc\n cpuid\n int 0x82",
        'ud2\n .ascii "xen"\n cpuid',
        "jmp over\n.byte 0xFA, 0xF4, 0x9C\nover: nop",
        'mov eax, offset text\n ret\ntext: .ascii "Some text with \\xFA and \\x9C"',
    ],
    ids=["plain", "forced emulation", "data that is jumped over", "data that is spoken of"],
)
def test_nothing_else_is_named(code: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, code) == []


@pytest.mark.parametrize(
    "code",
    [
        "call far_away\n ret\n.byte 0xCC\nfar_away: cli",
        "mov eax, offset handler\n ret\n.byte 0xCC\nhandler: push ebp\n mov ebp, esp\n cli",
        "je behind\n ret\nbehind: cli",
    ],
    ids=["a call", "an address", "a branch"],
)
def test_code_is_followed(code: str, tmp_path: Path) -> None:
    assert [one.name for one in found_in(tmp_path, code)] == ["cli"]


def test_notes_and_rights_are_looked_at(tmp_path: Path) -> None:
    (found,) = found_in(tmp_path, "nop", NOTES)
    assert found.name == "no hypercall page"
    (found,) = found_in(
        tmp_path, "nop", NOTES.replace('MODE, "yes"', 'MODE, "bimodal"') + PAGE_NOTE
    )
    assert found.name == "CR3 below 4 GB"


def test_the_exit_status_is_for_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel, allow = tmp_path / "kernel.s", tmp_path / "allow"
    kernel.write_text(NOTES + PAGE_NOTE + KERNEL.replace("\\code", "cli\n hlt"))
    assert main(["lint", str(kernel)]) == 1
    printed = capsys.readouterr()
    assert [line.split(": ")[1] for line in printed.out.splitlines()] == ["cli", "hlt"]
    assert printed.err.endswith("2 to look at\n")
    allow.write_text("_start: cli  # before anything runs\n\n# and\n_start: hlt\n")
    assert main(["lint", str(kernel), "--allow", str(allow)]) == 0
    assert capsys.readouterr().err.endswith("nothing to look at\n")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"text"])
def test_what_is_no_kernel_is_one_line(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(data)
    assert main(["lint", str(kernel)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
