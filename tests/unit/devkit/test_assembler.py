# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from xenlite.abi.x86_32p import (
    XEN_ELFNOTE_ENTRY,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
    HYPERVISOR_mmu_update,
)
from xenlite.devkit import kernel_cache, keystone_child
from xenlite.devkit.assembler import assemble, assemble_fragment
from xenlite.devkit.assembly_text import AssemblyError
from xenlite.devkit.kernel_cache import build_kernel
from xenlite.errors import ConfigError

KERNEL = """
.include "part.s"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note VIRT_BASE, 0xC0000000
.xen_note ENTRY, _start
.text
.global _start
_start: mov eax, message
    call helper
    mov dword ptr [counter], 5
.rodata
message: .asciz "hi"
.data
table: .long helper, message
.bss
counter: .space 8192
"""
PART = """
.text
helper: ret
"""


def code(text: str, origin: int = 0) -> str:
    return assemble_fragment(text, origin).code.hex()


def fault(text: str) -> str:
    with pytest.raises(AssemblyError) as caught:
        assemble_fragment(text)
    return str(caught.value)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "part.s").write_text(PART)
    (tmp_path / "main.s").write_text(KERNEL)
    return tmp_path / "main.s"


# What Keystone 0.9.2 gets wrong unless it is led around it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mov al, 10", "b00a"),
        ("mov eax, 256", "b800010000"),
        ("mov eax, 0FFh", "b8ff000000"),
        ("mov eax, 0b101", "b805000000"),
        (".byte 10, 0x10, 'a', '\\n'", "0a10610a"),
        (".word -2", "feff"),
    ],
)
def test_a_bare_number_is_decimal(text: str, expected: str) -> None:
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".equ N, 8\nand eax, ~N", "83e0f7"),
        (".equ N, 8\nmov eax, -N", "b8f8ffffff"),
        (".equ N, 8\nmov eax, (N << 3) + 1", "b841000000"),
        ("N = 8\nmov eax, [ebx + ecx*8 + N - 4]", "8b44cb04"),
        (".equ N, 4\nmov eax, [ebx + ecx*N]", "8b048b"),
        ("mov eax, [ebp - 4]", "8b45fc"),
        ("mov eax, 7 / 2 * 2 | 1 & 3", "b807000000"),
    ],
)
def test_constants_are_computed_before_keystone_sees_them(text: str, expected: str) -> None:
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: push a", "6800100000"),
        ("push 256", "6800010000"),
        ("push 0xffff", "68ffff0000"),
        ("push 0xff80", "6880ff0000"),
        ("push -1", "6aff"),
        ("a: push a + 4", "6804100000"),
        ("iret", "cf"),
        ("pushf\npopf", "9c9d"),
        ("push ds\npop ds\npush es\npop es\npush cs\npush ss\npop ss", "1e1f06070e1617"),
        ("rep movsd", "f3a5"),
        ("call a + 128\na: nop", "e88000000090"),
        ("a: ljmp 0xe019:a", "ea0010000019e0"),
        ("mov eax, a - b\nb: nop\na:", "b80100000090"),
        ("b: nop\na: mov dword ptr [ebx], a - b + 1", "90c70302000000"),
        ("a: mov esi, offset a", "be00100000"),
        ("size: mov eax, [size]", "a100100000"),
        ("mov ecx, dword ptr gs:4", "658b0d04000000"),
        ("lcall 7:0", "9a000000000700"),
    ],
)
def test_an_instruction_is_encoded_as_it_reads(text: str, expected: str) -> None:
    assert code(text, 0x1000) == expected


def test_alignment_fills_code_with_nops_and_data_with_zeros() -> None:
    assert code("nop\n.align 4\nnop") == "900f1f0090"
    assert code(".data\n.byte 1\n.align 4\n.byte 2") == "0100000002"


def test_strings_take_escapes_and_keep_comment_characters() -> None:
    assert code('.ascii "a;b#c//\\n\\0\\x41\\033"').startswith("613b62236" + "32f2f0a00411b")


# The front end


def test_a_macro_takes_arguments_defaults_and_a_number_of_its_own() -> None:
    text = """
    .macro again register, count=2
        mov \\register, \\count
    .Lloop\\@: dec \\register
        jnz .Lloop\\@
    .endm
    again eax
    again ecx, 3
    """
    assert code(text) == "b80200000048" + "75fd" + "b903000000" + "49" + "75fd"


def test_conditions_and_repetitions_nest() -> None:
    text = """
    .equ A, 1
    .rept 2
    .if A == 2
        int3
    .elseif A
        .ifdef B
            int3
        .else
            nop
        .endif
    .else
        int3
    .endif
    .endr
    .irp r, eax, ecx
        push \\r
    .endr
    """
    assert code(text) == "90905051"


def test_numeric_labels_reach_back_and_forward() -> None:
    assert code("1: jmp 1f\n1: jmp 1b") == "eb00ebfe"


def test_a_fragment_knows_the_abi_and_its_labels() -> None:
    fragment = assemble_fragment("mov eax, HYPERVISOR_mmu_update\nhere: jmp here", 0x5000)
    assert fragment.code == bytes([0xB8, HYPERVISOR_mmu_update, 0, 0, 0, 0xEB, 0xFE])
    assert fragment.symbols["here"] == 0x5005
    assert fragment.origin == 0x5000


def test_sections_of_a_fragment_follow_each_other() -> None:
    fragment = assemble_fragment(".data\nd: .long d\n.text\nmov eax, [d]\nret", 0x100)
    assert fragment.code.hex() == "a106010000c3" + "06010000"


def test_a_fragment_takes_constants() -> None:
    assert assemble_fragment("mov al, N", defines={"N": 5}).code == b"\xb0\x05"


# Faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nop\nbogus eax", "fragment:2: invalid mnemonic: 'bogus eax'"),
        ("nop; mov al, bl, cl", "fragment:1: invalid operand: 'mov al, bl, cl'"),
        ("nop\n\nmov eax, nowhere", "fragment:3: no symbol is called 'nowhere'"),
        ("mov al, 300", "fragment:1: 0x12c does not fit byte"),
        (".byte 256", "fragment:1: 256 does not fit 1 bytes"),
        ("mov eax, 5 +", "fragment:1: a value is missing in '5 +'"),
        ("mov eax, 10z", "fragment:1: '10z' is not a number"),
        ("mov eax, [ebx*3]", "fragment:1: '3' is no scale: 1, 2, 4 or 8"),
        (".include", "fragment:1: a string in double quotes expected, not ''"),
        ('.include "no.s"', 'fragment:1: no file "no.s" beside this one or in the include dir'),
        ("x:\nx:", "fragment:2: 'x' is already defined at fragment:1"),
        (".nonsense", "fragment:1: unknown directive .nonsense"),
        ("nop\n.if 1\nnop", "fragment:2: .endif is missing"),
        (".macro m\nnop", "fragment:1: .endm is missing"),
        (".macro m a:req\n.endm\nm", "fragment:3: m needs its argument a"),
        (
            ".macro m\nbad\n.endm\nnop\nm",
            "fragment:5: in the macro at fragment:2: invalid mnemonic",
        ),
        ('say "hi"', "fragment:1: no macro 'say' above this line, no instruction takes text"),
        ('.error "no luck"', "fragment:1: no luck"),
        ("(", "fragment:1: '(' is no instruction"),
        ("jecxz x\n.space 512\nx:", "fragment:1: the label is too far away: 'jecxz x'"),
        (".rept 1 << 40\n.endr", "fragment:1: more than 500000 statements"),
        (".space 1 << 40", "fragment:1: 1099511627776 times 1 bytes cannot be filled"),
        (".align 1 << 30", "fragment:1: 1073741824 is above the largest boundary"),
        ("\u00e9", "fragment:1: '\u00e9' is no instruction"),
        (".macro R\nR\n.endm\nR", "macros or includes are nested more than 64 deep"),
    ],
)
def test_a_fault_says_where_and_why(text: str, expected: str) -> None:
    assert expected in fault(text)


def test_nothing_assembles_to_nothing() -> None:
    assert assemble_fragment("# only a comment").code == b""
    assert code("lock") == "f0"


def test_every_fault_that_keystone_finds_is_reported() -> None:
    assert fault("bad eax\nnop\nworse").splitlines() == [
        "fragment:1: invalid mnemonic: 'bad eax'",
        "fragment:3: invalid mnemonic: 'worse'",
    ]


def test_a_keystone_that_hangs_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystone_child, "TIME_LIMIT_S", 0.3)
    assert keystone_child.ask({"text": "(", "origin": 0}) is None
    assert keystone_child.ask({"each": ["nop", "["], "symbols": []}) is None
    assert keystone_child.last_index() == 1
    monkeypatch.undo()
    assert code("nop ; nop") == "9090"


def test_a_keystone_that_dies_is_replaced() -> None:
    assert keystone_child.ask({"text": ".text", "origin": 0}) is None
    assert code("nop ; ret") == "90c3"


def test_a_missing_keystone_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keystone.py").write_text("raise ImportError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keystone_child, "_keystone", type(keystone_child._keystone)())
    with pytest.raises(ConfigError, match=r"^assembler: Keystone does not load: no such library$"):
        assemble_fragment("nop ; hlt")


def test_keystone_stays_out_of_this_process() -> None:
    code("hlt")
    assert "keystone" not in sys.modules or "tests.support.asm" in sys.modules


# Kernels


def test_a_kernel_resolves_labels_across_sections(kernel: Path) -> None:
    image = assemble(kernel)
    by_name = {section.name: section for section in image.sections}
    assert [section.name for section in image.sections] == [".text", ".rodata", ".data", ".bss"]
    assert all(section.address % 4096 == 0 for section in image.sections)
    assert by_name[".bss"].size == 8192
    assert by_name[".bss"].data == b""
    assert image.entry == image.address_of("_start") == 0xC0000001
    message = image.address_of("message").to_bytes(4, "little")
    assert by_name[".text"].data[2:6] == message
    assert by_name[".data"].data == (0xC0000000).to_bytes(4, "little") + message


def test_the_elf_file_carries_segments_notes_and_symbols(kernel: Path) -> None:
    elf = ELFFile(BytesIO(assemble(kernel).elf()))
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s["p_vaddr"], s["p_paddr"], s["p_flags"]) for s in loads] == [
        (0xC0000000, 0, 5),
        (0xC0001000, 0x1000, 4),
        (0xC0002000, 0x2000, 6),
        (0xC0003000, 0x3000, 6),
    ]
    assert (loads[3]["p_filesz"], loads[3]["p_memsz"]) == (0, 8192)
    (note_segment,) = (s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE")
    assert note_segment["p_filesz"] > 0
    raw = note_segment.data()
    assert (
        raw[:16] == b"\x04\0\0\0\x08\0\0\0" + bytes([XEN_ELFNOTE_XEN_VERSION, 0, 0, 0]) + b"Xen\0"
    )
    for number, value in ((XEN_ELFNOTE_VIRT_BASE, 0xC0000000), (XEN_ELFNOTE_ENTRY, 0xC0000001)):
        wanted = number.to_bytes(4, "little") + b"Xen\0" + value.to_bytes(4, "little")
        assert wanted in raw
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    symbols = {s.name: s for s in table.iter_symbols()}
    assert symbols["_start"]["st_info"] == {"bind": "STB_GLOBAL", "type": "STT_FUNC"}
    assert symbols["helper"]["st_size"] == 1
    assert symbols["counter"]["st_info"]["type"] == "STT_OBJECT"
    assert elf["e_entry"] == 0xC0000001


def test_a_label_before_an_instruction_is_a_function(kernel: Path) -> None:
    kernel.write_text("_start: nop\na: b: push ds\nc: .byte 1\n.type d, @function\nd: .byte 0x90")
    kinds = {symbol.name: symbol.is_function for symbol in assemble(kernel).symbols}
    assert kinds == {"_start": True, "a": True, "b": True, "c": False, "d": True}


def test_a_fault_in_an_included_file_names_that_file(kernel: Path) -> None:
    kernel.with_name("part.s").write_text("helper: nop\nwrong\n")
    with pytest.raises(AssemblyError, match=r"part\.s:2: invalid mnemonic"):
        assemble(kernel)


def test_a_kernel_needs_a_start(kernel: Path) -> None:
    kernel.write_text("nop")
    with pytest.raises(AssemblyError, match="no label _start"):
        assemble(kernel)


def test_a_missing_kernel_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match=r"gone\.s: No such file"):
        build_kernel(tmp_path / "gone.s")


def test_a_built_kernel_is_kept_until_a_source_changes(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_kernel(kernel)
    data = first.read_bytes()

    def fail(_: object) -> None:
        raise AssertionError("Keystone was asked")

    with monkeypatch.context() as patch:
        patch.setattr(keystone_child, "ask", fail)
        assert build_kernel(kernel) == first
    kernel.with_name("part.s").write_text(".text\nhelper: nop\nret\n")
    second = build_kernel(kernel)
    assert second != first
    assert second.read_bytes() != data
    assert [path.suffix for path in first.parent.iterdir()] == [".elf", ".elf"]


def test_the_hash_covers_every_file_of_the_assembler() -> None:
    directory = Path(kernel_cache.__file__).parent
    own = {path.name for path in directory.glob("assembl*.py")}
    others = {"dwarf_writer.py", "elf_writer.py", "kernel_cache.py", "keystone_child.py"}
    assert own | others == set(kernel_cache._DRIVER)


def test_the_hash_covers_every_include_of_a_line(kernel: Path) -> None:
    for name in ("a.s", "b.s"):
        kernel.with_name(name).write_text("nop")
    kernel.write_text('_start: .include "a.s"; .include "b.s"')
    before = kernel_cache.kernel_name(kernel)
    kernel.with_name("b.s").write_text("hlt")
    assert kernel_cache.kernel_name(kernel) != before


# What debuggers are told

LINES = """\
.xen_note XEN_VERSION, "xen-3.0"
.text
.macro TWICE register
    inc \\register
    inc \\register
.endm
_start:
    mov eax, 1
    nop; nop
    TWICE eax
.include "part.s"
.rept 2
    push eax
.endr
    .byte 0x90
    ret
"""


def line_rows(kernel: Path) -> list[tuple[str, int, int]]:
    """Return (file, line, address) of each row, as pyelftools reads it."""
    dwarf = ELFFile(BytesIO(assemble(kernel).elf("/somewhere"))).get_dwarf_info()
    (unit,) = dwarf.iter_CUs()
    program = dwarf.line_program_for_CU(unit)
    assert program is not None
    files = program["file_entry"]
    folders = [b"", *program["include_directory"]]
    rows = []
    for entry in program.get_entries():
        state = entry.state
        if state is not None and not state.end_sequence:
            file = files[state.file - 1]
            folder = folders[file.dir_index]
            name = (folder + b"/" if folder else b"") + file.name
            rows.append((name.decode(), state.line, state.address))
    return rows


def test_each_line_with_instructions_has_its_first_address(kernel: Path) -> None:
    folder = kernel.parent / "inner"
    folder.mkdir()
    (folder / "part.s").write_text(PART)
    source = kernel.parent / "lines.s"
    source.write_text(LINES.replace('"part.s"', '"inner/part.s"'))
    start = assemble(source).address_of("_start")
    assert line_rows(source) == [
        ("lines.s", 8, start),
        ("lines.s", 9, start + 5),
        ("lines.s", 10, start + 7),
        ("inner/part.s", 3, start + 9),
        ("lines.s", 13, start + 10),
        ("lines.s", 16, start + 13),
    ]


def test_the_unit_names_the_source_its_place_and_all_its_code(kernel: Path) -> None:
    made = assemble(kernel)
    dwarf = ELFFile(BytesIO(made.elf("/somewhere"))).get_dwarf_info()
    (unit,) = dwarf.iter_CUs()
    attributes = {name: value.value for name, value in unit.get_top_DIE().attributes.items()}
    code = [section for section in made.sections if "x" in section.flags]
    assert attributes["DW_AT_name"] == kernel.name.encode()
    assert attributes["DW_AT_comp_dir"] == b"/somewhere"
    assert attributes["DW_AT_low_pc"] == code[0].address
    assert attributes["DW_AT_high_pc"] == code[-1].address + code[-1].size - code[0].address


def test_what_debuggers_are_told_is_not_loaded(kernel: Path) -> None:
    elf = ELFFile(BytesIO(assemble(kernel).elf("/somewhere")))
    assert elf.get_section_by_name(".debug_line") is not None
    for section in elf.iter_sections():
        if section.name.startswith(".debug"):
            assert section["sh_addr"] == section["sh_flags"] == 0
            assert not any(segment.section_in_segment(section) for segment in elf.iter_segments())


def test_line_numbers_far_apart_and_backwards_are_right(kernel: Path) -> None:
    source = kernel.parent / "far.s"
    gap = "\n" * 500
    source.write_text(f"""\
.text
_start: nop
{gap}    nop
    .space 4000
    nop
.section .late, "ax"
early: nop
""")
    rows = line_rows(source)
    start = assemble(source).address_of("_start")
    assert [(line, address - start) for _, line, address in rows[:3]] == [
        (2, 0),
        (503, 1),
        (505, 4002),
    ]
    assert rows[3][1] == 507


def test_a_kernel_in_another_directory_is_another_file(kernel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in (kernel.name, "part.s"):
        (other / name).write_bytes((kernel.parent / name).read_bytes())
    assert build_kernel(kernel) != build_kernel(other / kernel.name)
    assert kernel_cache.kernel_name(kernel) == kernel_cache.kernel_name(other / kernel.name)
