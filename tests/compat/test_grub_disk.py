# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's GRUB for Xen, unmodified, at its disk: somebody sits there, looks around, and boots.

It is a hard frontend to please: it polls, it connects and leaves again for the kernel that it
boots, and it takes the first free grant. Each test checks the disk afterwards, with the tools of
its file system and byte for byte: nobody here writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.disk import checked, make_disk
from tests.support.terminal import Terminal
from xenlite.devkit.kernel_cache import build_kernel
from xenlite.devkit.program_cache import build_archive

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GRUB = ROOT / "build/kernels/grub-i386-xen.bin"
MACH = ROOT / "build/kernels/gnumach-1.8-xen-486.gz"
KINDS = ("ext2", "fat")
LETTER = "Dear reader,\nthis is the second line, and the last.\n"
NUMBERS = bytes(number * number >> 8 & 0xFF for number in range(100_000))
DOWN = "\x1b[B"
CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MENU = """
set timeout={timeout}
set default={default}
menuentry "Power off" {{
  halt
}}
menuentry "guestos" {{
  linux /boot/guestos autohalt
  initrd /boot/programs.tar
}}
menuentry "GNU Mach" {{
  linux /boot/mach root=device:hd0
}}
menuentry "GNU Mach and a task" {{
  linux /boot/mach root=device:hd0
  module /boot/hello hello '${{device-port}}' '$(task-create)' '$(task-resume)'
}}
"""
POWER_OFF, GUESTOS, MACH_ALONE, MACH_AND_TASK = range(4)
EXT2_MAGIC = b"\x53\xef"
COUNTS = "The highlighted entry will be executed automatically in"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out what is on the disks, but for the menu."""
    assert GRUB.exists(), "run tools/fetch_kernels first (tools/check does)"
    directory = tmp_path_factory.mktemp("files")
    boot = directory / "boot"
    (boot / "grub").mkdir(parents=True)
    shutil.copyfile(MACH, boot / "mach")
    shutil.copyfile(build_kernel(ROOT / "guestos/main.s"), boot / "guestos")
    shutil.copyfile(build_archive(ROOT / "guestos/programs").path, boot / "programs.tar")
    with tarfile.open(build_archive(HERE / "mach_task").path) as tasks:
        hello = tasks.extractfile("bin/hello")
        assert hello is not None
        (boot / "hello").write_bytes(hello.read())
    (directory / "letters").mkdir()
    (directory / "letters/to the reader.txt").write_text(LETTER)
    (directory / "numbers").write_bytes(NUMBERS)
    return directory


@contextmanager
def grub(
    files: Path,
    tmp_path: Path,
    kind: str,
    *,
    default: int = POWER_OFF,
    timeout: int = -1,
    access: str = "rw",
    options: tuple[str, ...] = (),
) -> Iterator[Terminal]:
    """Start GRUB with a disk whose menu waits so many seconds, -1 for ever, for another choice."""
    (files / "boot/grub/grub.cfg").write_text(MENU.format(default=default, timeout=timeout))
    image = tmp_path / "disk.img"
    make_disk(image, kind, "16M", files)
    before = hashlib.sha256(image.read_bytes()).digest()
    config = tmp_path / "dom.yaml"
    config.write_text(
        f"name: grub\nfirmware: {GRUB}\nmemory: 64\nassists: writable_pagetables\n"
        f"on_reboot: destroy\ndisk: disk.img,raw,xvda,{access}\n"
    )
    with Terminal(config, *options) as terminal:
        yield terminal
    assert checked(image, kind) == []
    assert hashlib.sha256(image.read_bytes()).digest() == before


def shell(terminal: Terminal) -> None:
    """Leave the menu for the command line."""
    terminal.wait_for("Use the ^ and v keys to select which entry")
    terminal.type("c")
    terminal.wait_for("grub> ")


def command(terminal: Terminal, line: str) -> list[str]:
    """Type a command; return the lines that it prints.

    The cursor goes to each key of the echo by itself, and back and forth to show the progress.
    """
    terminal.type(line + "\r")
    shown = CURSOR.sub("\n", terminal.wait_for("grub> ")).replace("\r", "")
    lines = [line.strip() for line in shown.split("\n")]
    return [line for line in lines if len(line) > 1 and not line.startswith("[ ")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shell_lists_and_prints_files_and_halts(kind: str, files: Path, tmp_path: Path) -> None:
    with grub(files, tmp_path, kind) as terminal:
        shell(terminal)
        assert command(terminal, "ls") == ["(memdisk) (proc) (xen/xvda)"]
        assert f"Filesystem type {kind[:3]}" in command(terminal, "ls (xen/xvda)")[0]
        (names,) = command(terminal, "ls (xen/xvda)/")
        assert set(names.split()) >= {"boot/", "letters/", "numbers"}
        assert command(terminal, "ls (xen/xvda)/letters") == ["to the reader.txt"]
        letter = command(terminal, '''cat "(xen/xvda)/letters/to the reader.txt"''')
        assert letter == LETTER.splitlines()
        assert command(terminal, "cat (xen/xvda)/nothing") == ["error: file `/nothing' not found."]
        summed = "".join(command(terminal, "sha256sum (xen/xvda)/numbers"))  # it wraps the line
        assert summed.startswith(hashlib.sha256(NUMBERS).hexdigest())
        terminal.type("halt\r")
        status, _, said = terminal.end()
        assert (status, "broke" in said) == (0, False)


@pytest.mark.parametrize("access", ["rw", "ro"])
def test_the_menus_default_is_taken_when_its_time_is_up(
    access: str, files: Path, tmp_path: Path
) -> None:
    with grub(files, tmp_path, "ext2", timeout=1, access=access) as terminal:
        assert "Reading (xen/xvda)/boot/grub/grub.cfg" in terminal.wait_for(COUNTS)
        status, shown, said = terminal.end()
        assert (status, "broke" in said) == (0, False)
        assert "Booting `Power off'" in shown


def test_reboot_reboots(files: Path, tmp_path: Path) -> None:
    with grub(files, tmp_path, "fat") as terminal:
        shell(terminal)
        terminal.type("reboot\r")
        status, _, _ = terminal.end()
        assert status == 17


def test_reboot_starts_it_again_and_the_disk_is_there(files: Path, tmp_path: Path) -> None:
    with grub(files, tmp_path, "ext2", options=("on_reboot=restart",)) as terminal:
        shell(terminal)
        terminal.type("reboot\r")
        shell(terminal)
        (names,) = command(terminal, "ls (xen/xvda)/")
        assert "numbers" in names.split()
        terminal.type("halt\r")
        status, _, said = terminal.end()
        assert (status, "broke" in said) == (0, False)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_choose_guestos_which_boots_from_the_disk(
    kind: str, files: Path, tmp_path: Path
) -> None:
    with grub(files, tmp_path, kind) as terminal:
        terminal.wait_for("Power off")
        terminal.type(DOWN)
        terminal.wait_for("*guestos")
        terminal.type("\r")
        terminal.wait_for("guestos 0.")
        terminal.wait_for("ramdisk: ")
        status, shown, said = terminal.end()
        assert (status, "broke" in said) == (0, False)
        assert "powering off" in shown


@pytest.mark.parametrize("kind", KINDS)
def test_gnu_mach_boots_from_the_disk_and_finds_it(kind: str, files: Path, tmp_path: Path) -> None:
    """The disk changes hands: GRUB has left it, and its grants and port, when Mach comes.

    Without a first task Mach ends behind its drivers, on Xen as here: this line is its last.
    """
    with grub(files, tmp_path, kind, default=MACH_ALONE, timeout=0) as terminal:
        terminal.wait_for("Booting `GNU Mach'")
        terminal.wait_for("GNU Mach 1.8")
        terminal.wait_for("xvd0: dom0's VBD 51712 (aio:")
        assert terminal.wait_for("\n").rstrip().endswith("disk.img,w) 16MB")
        _, shown, said = terminal.end()
        last = [line for line in shown.splitlines() if line][-1]
        assert last.startswith("panic ")
        assert last.endswith("bootstrap_create: No bootstrap code loaded with the kernel!")
        assert "broke" not in said


def test_gnu_mach_starts_a_task_that_reads_from_the_disk(files: Path, tmp_path: Path) -> None:
    """GRUB loads it as Mach's module. It is ours: Debian 12 has Mach, but no Hurd to run on it.

    Its system calls come through a call gate in Mach's LDT, from ring 3 to ring 1; the sector comes
    by Mach's own driver, and out of line into the task's memory.
    """
    with grub(files, tmp_path, "ext2", default=MACH_AND_TASK, timeout=0) as terminal:
        terminal.wait_for("xvd0: dom0's VBD 51712 (aio:")
        terminal.wait_for("module 0: hello ${device-port} $(task-create) $(task-resume)")
        terminal.wait_for("start hello: ")
        terminal.wait_for("hello from a task of Mach")
        terminal.wait_for("sector 2 has ")
        shown = bytes.fromhex(terminal.wait_for("\n"))
        assert shown[:2] == EXT2_MAGIC
        at = 2 * 512 + 56
        assert shown == (tmp_path / "disk.img").read_bytes()[at : at + len(shown)]


def test_debians_xenstore_ls_shows_the_tree_while_grub_runs(files: Path, tmp_path: Path) -> None:
    assert shutil.which("xenstore-ls"), "this test needs Debian's package xenstore-utils"
    sockets = tmp_path / "sockets"
    with grub(files, tmp_path, "ext2", options=("--socket-dir", str(sockets))) as terminal:
        shell(terminal)
        command(terminal, "ls (xen/xvda)/")
        environment = {**os.environ, "XENSTORED_PATH": str(sockets / "xenstore.sock")}
        tree = subprocess.run(
            ["xenstore-ls", "-f", "/local/domain"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for node in (
            '/local/domain/1/name = "grub"',
            '/local/domain/1/device/vbd/51712/protocol = "x86_32-abi"',
            '/local/domain/1/device/vbd/51712/state = "3"',
            '/local/domain/0/backend/vbd/1/51712/state = "4"',
        ):
            assert node in tree.splitlines()
        terminal.type("halt\r")
        assert terminal.end()[0] == 0
