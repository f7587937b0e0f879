# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's GRUB for Xen, unmodified: it reads its menu from a disk and boots kernels from there.

It is a hard frontend to please: it polls, it connects and leaves again for the kernel that it
boots, and it takes the first free grant.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xenlite.devkit.assembler import build_kernel

ROOT = Path(__file__).resolve().parents[2]
GRUB = ROOT / "build/kernels/grub-i386-xen.bin"
MACH = ROOT / "build/kernels/gnumach-1.8-xen-486.gz"
MENU = """
set timeout=0
set default={default}
menuentry "GNU Mach" {{
  linux /boot/mach root=device:hd0
}}
menuentry "guestos" {{
  linux /boot/guestos halt
}}
menuentry "Power off" {{
  halt
}}
"""


def run(tmp_path: Path, default: int, *, access: str = "rw") -> subprocess.CompletedProcess[str]:
    """Boot GRUB with a disk whose menu goes on with that entry."""
    assert GRUB.exists(), "run tools/fetch_kernels first (tools/check does)"
    boot = tmp_path / "files/boot"
    (boot / "grub").mkdir(parents=True)
    (boot / "grub/grub.cfg").write_text(MENU.format(default=default))
    (boot / "mach").write_bytes(MACH.read_bytes())
    (boot / "guestos").write_bytes(build_kernel(ROOT / "guestos/main.s").read_bytes())
    image = tmp_path / "disk.img"
    subprocess.run([ROOT / "tools/make_disk", image, "16M", tmp_path / "files"], check=True)
    config = tmp_path / "dom.yaml"
    config.write_text(
        f"name: grub\nkernel: {GRUB}\nmemory: 64\nassists: writable_pagetables\n"
        f"on_reboot: destroy\ndisk: disk.img,raw,xvda,{access}\n"
    )
    command = [sys.executable, "-m", "xenlite.cli.main", "run", "--audit", "--timeout", "60"]
    return subprocess.run([*command, config], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("access", ["rw", "ro"])
def test_grub_shows_its_menu_from_a_disk_and_powers_off(tmp_path: Path, access: str) -> None:
    ended = run(tmp_path, 2, access=access)
    assert ended.returncode == 0, ended.stderr
    assert "Welcome to GRUB!" in ended.stdout
    assert "Reading (xen/xvda)/boot/grub/grub.cfg" in ended.stdout
    assert "broke" not in ended.stderr


def test_grub_boots_gnu_mach_which_connects_to_the_same_disk(tmp_path: Path) -> None:
    """The disk changes hands: GRUB has left it, and its grants and port, when Mach comes."""
    ended = run(tmp_path, 0)
    assert "Booting `GNU Mach'" in ended.stdout
    assert "GNU Mach 1.8" in ended.stdout
    assert "xvd0: dom0's VBD 51712 (aio:" in ended.stdout
    assert "broke" not in ended.stderr


def test_grub_boots_guestos(tmp_path: Path) -> None:
    ended = run(tmp_path, 1)
    assert "Booting `guestos'" in ended.stdout
    assert "guestos" in ended.stdout.split("Booting", 1)[1].split("\n", 1)[1]
