# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from xenlite.cli.main import main
from xenlite.devkit import keystone_child, program_archive, program_cache, program_compiler
from xenlite.devkit.program_cache import archive_names, build_archive
from xenlite.devkit.program_compiler import BASE, find_compiler
from xenlite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
ASSEMBLY = '.include "lib/start.inc"\nmain: ret\n'
START = ".text\n.global _start\n_start: call main\nhlt\n"
C = '#include "shared.h"\nint main(void) { return answer(); }\n'
LIBRARY = '#include "shared.h"\nint answer(void) { return 42; }\nvoid _start(void) { main(); }\n'
HEADER = "int answer(void);\nint main(void);\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "programs"
    (directory / "lib").mkdir(parents=True)
    (directory / "one.s").write_text(ASSEMBLY)
    (directory / "lib/start.inc").write_text(START)
    (directory / "two.c").write_text(C)
    (directory / "lib/shared.c").write_text(LIBRARY)
    (directory / "lib/shared.h").write_text(HEADER)
    (directory / "text").write_bytes(b"read me\n")
    return directory


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def faults(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_archive(directory)
    return [str(fault) for fault in caught.value.faults]


def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def test_programs_become_static_elf_files_and_other_files_stay(programs: Path) -> None:
    archive = build_archive(programs)
    assert archive.left_out == ()
    packed = members(archive.path)
    assert list(packed) == ["bin/one", "bin/two", "text"]
    assert packed["text"] == b"read me\n"
    for name in ("bin/one", "bin/two"):
        elf = ELFFile(BytesIO(packed[name]))
        loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        assert loads[0]["p_vaddr"] == BASE
        assert BASE <= elf["e_entry"] < BASE + 0x10000
        assert elf["e_type"] == "ET_EXEC"
        assert all(segment["p_flags"] & 3 != 3 for segment in loads)
        assert not [s for s in elf.iter_segments() if s["p_type"] in ("PT_INTERP", "PT_DYNAMIC")]


def test_a_program_carries_no_padding_and_no_xen_notes(programs: Path) -> None:
    packed = members(build_archive(programs).path)
    assert len(packed["bin/one"]) < 1000
    assert not [
        s for s in ELFFile(BytesIO(packed["bin/one"])).iter_segments() if s["p_type"] == "PT_NOTE"
    ]


def test_the_same_directory_gives_the_same_bytes(programs: Path, tmp_path: Path) -> None:
    compiler = find_compiler()
    first = program_archive.pack(programs, compiler)
    elsewhere = programs.rename(tmp_path / "elsewhere")
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    assert program_archive.pack(elsewhere, compiler) == first


def test_an_archive_is_ustar_without_traces_of_its_maker(programs: Path) -> None:
    with tarfile.open(build_archive(programs).path) as tar:
        for entry in tar:
            assert (entry.uid, entry.gid, entry.mtime, entry.uname) == (0, 0, 0, "")
            assert entry.mode == (0o755 if entry.name.startswith("bin/") else 0o644)
            assert entry.get_info()["type"] == tarfile.REGTYPE


def test_an_unchanged_directory_is_found_by_hashing(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_archive(programs)

    def fail(*_: object) -> None:
        raise AssertionError("something is built again")

    monkeypatch.setattr(keystone_child, "ask", fail)
    monkeypatch.setattr(program_compiler, "_run", fail)
    assert build_archive(programs) == first


@pytest.mark.parametrize(
    "name", ["one.s", "two.c", "text", "lib/start.inc", "lib/shared.c", "lib/shared.h", "new"]
)
def test_every_file_of_the_directory_counts(programs: Path, name: str) -> None:
    before = archive_names(programs)
    path = programs / name
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    assert archive_names(programs) != before


def test_a_renamed_file_counts(programs: Path) -> None:
    before = archive_names(programs)
    (programs / "text").rename(programs / "text2")
    assert archive_names(programs) != before


def test_an_include_from_outside_counts(programs: Path) -> None:
    outside = programs.parent / "numbers.inc"
    outside.write_text(".equ N, 1\n")
    (programs / "one.s").write_text('.include "../numbers.inc"\n.text\n_start: mov eax, N\n')
    before = archive_names(programs)
    outside.write_text(".equ N, 2\n")
    assert archive_names(programs) != before


@pytest.mark.parametrize("name", [".hidden", "one.s~", ".git/config"])
def test_hidden_files_and_copies_do_not_count(programs: Path, name: str) -> None:
    before = archive_names(programs)
    (programs / name).parent.mkdir(exist_ok=True)
    (programs / name).write_text("x")
    assert archive_names(programs) == before


def test_the_hash_covers_every_file_of_the_builder() -> None:
    directory = Path(program_cache.__file__).parent
    assert {path.name for path in directory.glob("program_*.py")} == set(program_cache._DRIVER)


def test_hashing_imports_no_builder(programs: Path) -> None:
    build_archive(programs)
    code = (
        "import sys; from pathlib import Path\n"
        "from xenlite.devkit.program_cache import build_archive\n"
        f"build_archive(Path({str(programs)!r}))\n"
        "heavy = {'tarfile', 'subprocess', 'shutil', 'tempfile', 'xenlite.devkit.assembler'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr


def test_without_a_compiler_c_is_left_out_and_said(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        without_compiler(patch, tmp_path)
        archive = build_archive(programs)
        assert archive.left_out == ("two.c",)
        assert list(members(archive.path)) == ["bin/one", "text"]
        assert build_archive(programs) == archive
    # It is built again, and whole, where there is one.
    assert "bin/two" in members(build_archive(programs).path)


def test_a_gcc_that_cannot_make_32_bit_programs_counts_as_none(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "fake/gcc"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'error: -m32 is not supported' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/bin:/usr/bin")
    assert build_archive(programs).left_out == ("two.c",)


def test_a_directory_without_c_needs_no_compiler(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (programs / "two.c").unlink()
    without_compiler(monkeypatch, tmp_path)
    assert build_archive(programs).left_out == ()


def test_a_shipped_archive_needs_neither_compiler_nor_cache(
    programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = build_archive(programs).path
    shipped = made.rename(programs.parent / made.name)
    without_compiler(monkeypatch, tmp_path)
    assert build_archive(programs).path == shipped


def test_a_mistake_in_assembly_is_one_line(programs: Path) -> None:
    (programs / "one.s").write_text(".text\n_start: nop\n mov eax, nowhere\n")
    assert faults(programs) == ["one.s:3: no symbol is called 'nowhere'"]


def test_a_mistake_in_c_is_one_line(programs: Path) -> None:
    (programs / "two.c").write_text("int main(void)\n{\n    return nothing;\n}\n")
    (fault,) = faults(programs)
    assert fault.startswith("two.c:3: ")
    assert "nothing" in fault


def test_a_name_that_c_does_not_define_is_one_line(programs: Path) -> None:
    (programs / "two.c").write_text("int no(void);\nint main(void)\n{\n    return no();\n}\n")
    (fault,) = faults(programs)
    assert fault.startswith("two.c:4: undefined reference")


def test_the_mistakes_of_all_programs_are_told(programs: Path) -> None:
    (programs / "one.s").write_text("wrong\n")
    (programs / "two.c").write_text("wrong\n")
    assert [fault.split(":")[0] for fault in faults(programs)] == ["one.s", "two.c"]


def test_two_programs_of_one_name_are_refused(programs: Path) -> None:
    (programs / "one.c").write_text(C)
    (fault,) = faults(programs)
    assert "bin/one is packed already" in fault


def test_a_name_too_long_for_the_archive_is_refused(programs: Path) -> None:
    (programs / ("x" * 101)).write_text("")
    (fault,) = faults(programs)
    assert "longer than 100 bytes" in fault


def test_a_name_that_is_no_text_is_packed(programs: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    (programs / name).write_text("x")
    assert name in members(build_archive(programs).path)


def test_too_many_files_are_no_programs(programs: Path) -> None:
    for number in range(4096):
        (programs / f"{number}").touch()
    (fault,) = faults(programs)
    assert fault.endswith("more than 4096 files; this is no directory of programs")


def test_the_current_directory_may_be_the_one(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build_archive(programs)
    monkeypatch.chdir(programs)
    assert build_archive(Path()) == made


def dom_yaml(programs: Path) -> Path:
    path = programs.parent / "dom.yaml"
    kernel = ROOT / "guestos/main.s"
    path.write_text(f"name: x\nkernel: {kernel}\nmemory: 8\nramdisk: programs\n")
    return path


def test_check_builds_the_ramdisk(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dom_yaml(programs))]) == 0
    (programs / "one.s").write_text("wrong\n")
    assert main(["check", str(dom_yaml(programs))]) == 1
    assert "xenlite: one.s:1: invalid mnemonic" in capsys.readouterr().err


def test_check_says_what_is_left_out(
    programs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    without_compiler(monkeypatch, tmp_path)
    assert main(["check", str(dom_yaml(programs))]) == 0
    assert "no gcc -m32 here; left out: two.c\n" in capsys.readouterr().out


def test_mistakes_of_kernel_and_ramdisk_are_told_together(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dom_yaml(programs)
    (programs / "one.s").write_text("wrong\n")
    (programs.parent / "kernel.s").write_text("worse\n")
    assert main(["check", str(path), f"kernel={programs.parent / 'kernel.s'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 2
