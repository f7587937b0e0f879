# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that only look like programs, and archives that only look like RAM disks: none is believed.

Each broken file lies beside a good one in a RAM disk of its own making; the shell tries them all.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guestos import DOM, PROMPT, ROOT, Machine
from xenlite.abi.x86_32p import SHUTDOWN_crash
from xenlite.cli.run import load

BASE = 0x08048000
ENTRY, PHOFF, PHENTSIZE, PHNUM = 24, 28, 42, 44
HEADER = 52
OFFSET, VADDR, FILESZ, MEMSZ, FLAGS = 4, 8, 16, 20, 24
# exit(7): mov al, 1; mov bl, 7; int 0x80
CODE = bytes.fromhex("b001b307cd80")


def word(data: bytes, at: int, value: int, size: int = 4) -> bytes:
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def elf(*segments: tuple[int, int, int, int], size: int = 0) -> bytes:
    """Make a program of (offset, address, bytes in memory, flags); each has CODE as its bytes."""
    head = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, BASE + 0x200, HEADER, 0, 0, HEADER,
        32, len(segments), 0, 0, 0,
    )  # fmt: skip
    for offset, address, memory, flags in segments:
        length = min(memory, 0x206)
        head += struct.pack("<8I", 1, offset, address, address, length, memory, flags, 16)
    return head.ljust(0x200, b"\0") + CODE + bytes(size)


GOOD = elf((0, BASE, 0x206, 5))
PH = HEADER
BROKEN = {
    "empty": b"",
    "short": GOOD[:HEADER],
    "cut": GOOD[:0x205],
    "text": b"echo hello\n",
    "class": word(GOOD, 4, 2, 1),
    "endian": word(GOOD, 5, 2, 1),
    "type": word(GOOD, 16, 3, 2),
    "machine": word(GOOD, 18, 62, 2),
    "phentsize": word(GOOD, PHENTSIZE, 31, 2),
    "phnum-0": word(GOOD, PHNUM, 0, 2),
    "phnum-17": word(GOOD, PHNUM, 17, 2),
    "phnum-max": word(GOOD, PHNUM, 0xFFFF, 2),
    "phoff-end": word(GOOD, PHOFF, len(GOOD) - 31),
    "phoff-beyond": word(GOOD, PHOFF, len(GOOD) + 1),
    "phoff-wraps": word(GOOD, PHOFF, -32),
    "nothing": word(GOOD, PH, 4),
    "interpreter": word(elf((0, BASE, 0x206, 5), (0, BASE + 0x1000, 16, 4)), PH + 32, 3),
    "dynamic": word(elf((0, BASE, 0x206, 5), (0, BASE + 0x1000, 16, 4)), PH + 32, 2),
    "offset-beyond": word(GOOD, PH + OFFSET, len(GOOD) + 1),
    "offset-wraps": word(GOOD, PH + OFFSET, -1),
    "filesz-beyond": word(word(GOOD, PH + FILESZ, 0x207), PH + MEMSZ, 0x207),
    "filesz-wraps": word(word(GOOD, PH + FILESZ, -1), PH + MEMSZ, -1),
    "memsz-below-filesz": word(GOOD, PH + MEMSZ, 0x205),
    "memsz-wraps": word(GOOD, PH + MEMSZ, -BASE),
    "memsz-kernel": word(GOOD, PH + MEMSZ, 0xC0001000 - BASE),
    "page-0": word(GOOD, PH + VADDR, 0),
    "low": word(GOOD, PH + VADDR, 0xFFFF),
    "stack": word(GOOD, PH + VADDR, 0xBFFFE000),
    "kernel": word(GOOD, PH + VADDR, 0xC0000000),
    "hole": word(GOOD, PH + VADDR, 0xF5800000),
    "top": word(GOOD, PH + VADDR, 0xFFFFF000),
    "writable-code": word(GOOD, PH + FLAGS, 7),
    "shared-page": elf((0, BASE, 0x206, 5), (0, BASE + 0x300, 16, 6)),
    "overlap": elf((0, BASE, 0x2000, 5), (0, BASE + 0x1000, 16, 6)),
    "backwards": elf((0, BASE + 0x1000, 16, 6), (0, BASE, 0x206, 5)),
}
RUNS = {
    "good": GOOD,
    "unaligned": elf((0, BASE, 0x206, 5), (0, BASE + 0x1234, 16, 6)),
    "zeros": elf((0, BASE, 0x206, 5), (0, BASE + 0x1000, 0x5000, 6)),
    "zeros-within": elf(
        (0, BASE, 0x3000, 5), (0, BASE + 0x4000, 0x3000, 6), (0, 0x3FFFF000, 16, 4)
    ),
}
ENDS = {
    "nowhere": word(GOOD, ENTRY, 0x1000),
    "in-kernel": word(GOOD, ENTRY, 0xC0000000),
    "in-data": word(elf((0, BASE, 0x206, 4)), ENTRY, BASE + 0x200),
}
TOO_LARGE = elf((0, BASE, 0x206, 5), (0, BASE + 0x1000, 0x2000000, 4), (0, 0x20000000, 16, 6))


def archive(files: dict[str, bytes]) -> bytes:
    """Pack files behind the programs of the ordinary RAM disk."""
    ordinary = load(ROOT / DOM, []).ramdisk
    assert ordinary is not None
    out = io.BytesIO()
    with (
        tarfile.open(ordinary) as before,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as after,
    ):
        for entry in before:
            after.addfile(entry, before.extractfile(entry))
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            after.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    path = tmp_path_factory.mktemp("ramdisk") / "ramdisk.tar"
    files = {**BROKEN, **RUNS, **ENDS, "too-large": TOO_LARGE}
    path.write_bytes(archive({f"t/{name}": data for name, data in files.items()}))
    machine = Machine(f"ramdisk={path}", "memory=16")
    machine.wait_for(PROMPT)
    yield machine
    machine.close()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_refused(shell: Machine, name: str) -> None:
    before = shell.memory()
    assert shell.command(f"t/{name}; echo $?") == f"bin/sh: t/{name}: not a program\n126\n"
    assert shell.memory() == before


@pytest.mark.parametrize("name", RUNS)
def test_a_good_program_runs(shell: Machine, name: str) -> None:
    before = shell.memory()
    assert shell.command(f"t/{name}; echo $?") == "7\n"
    assert shell.memory() == before


@pytest.mark.parametrize("name", ENDS)
def test_a_program_that_begins_nowhere_is_ended(shell: Machine, name: str) -> None:
    before = shell.memory()
    assert f"({name}): killed: page fault" in shell.command(f"t/{name}")
    assert shell.memory() == before


def test_a_program_larger_than_memory_is_refused(shell: Machine) -> None:
    before = shell.memory()
    assert shell.command("t/too-large; echo $?") == "bin/sh: t/too-large: out of memory\n126\n"
    assert shell.memory() == before


# RAM disks


def boots(tmp_path: Path, data: bytes) -> Machine:
    path = tmp_path / "ramdisk.tar"
    path.write_bytes(data)
    return Machine(f"ramdisk={path}")


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (257, b"nothing"),  # the magic
        (124, b"77777777777\0"),  # a size beyond the archive
        (124, b"37777777777\0"),
        (124, b"0000000000x\0"),
        (124, b"\x80" + bytes(11)),
    ],
)
def test_an_archive_ends_where_it_makes_no_sense(tmp_path: Path, at: int, value: bytes) -> None:
    data = archive({"t/good": GOOD, "t/after": GOOD})
    header = data.index(b"t/good")
    broken = data[: header + at] + value + data[header + at + len(value) :]
    machine = boots(tmp_path, broken)
    machine.wait_for(PROMPT)
    assert machine.command("t/good") == "sh: no command is called t/good; try help\n"
    assert machine.command("t/after") == "sh: no command is called t/after; try help\n"
    machine.close()


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    data = archive({"t/good": GOOD, "t/after": GOOD})
    header = data.index(b"t/good")
    machine = boots(tmp_path, word(data, header + 156, ord("5"), 1))
    machine.wait_for(PROMPT)
    assert machine.command("t/good") == "sh: no command is called t/good; try help\n"
    assert machine.command("t/after; echo $?") == "7\n"
    machine.close()


def test_a_name_of_a_hundred_letters_is_found(tmp_path: Path) -> None:
    name = "t/" + "x" * 98
    machine = boots(tmp_path, archive({name: GOOD}))
    machine.wait_for(PROMPT)
    assert machine.command(f"{name}; echo $?") == "7\n"
    assert machine.command("ls").endswith(f" {name}\n")
    machine.close()


@pytest.mark.parametrize("data", [b"x", b"\0" * 1024, b"x" * 511, b"x" * 100000])
def test_without_a_shell_it_says_so_and_ends(tmp_path: Path, data: bytes) -> None:
    machine = boots(tmp_path, data)
    assert machine.wait_for_end() == SHUTDOWN_crash
    assert "ramdisk: 0 files" in machine.output
    machine.close()
