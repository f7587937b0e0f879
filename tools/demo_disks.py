# SPDX-License-Identifier: GPL-2.0-or-later
"""Make two disks to try things with: one that GRUB boots from, and one with files to look at.

boot.img (ext2) has GRUB's menu, guestos with its programs, and GNU Mach where `tools/fetch_kernels`
has brought it; files.img (FAT) has this project's documents and a MiB of numbers. They are made
anew each time. `tools/xenlite create tests/compat/demo.yaml` boots them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from xenlite.devkit.kernel_cache import build_kernel
from xenlite.devkit.program_cache import build_archive
from xenlite.errors import ConfigError

ROOT: Final = Path(__file__).resolve().parents[1]
MACH: Final = ROOT / "build/kernels/gnumach-1.8-xen-486.gz"
NUMBERS_BYTES: Final = 1 << 20
MENU: Final = """\
set timeout=5
set default=0
menuentry "guestos" {
  linux /boot/guestos
  initrd /boot/programs.tar
}
menuentry "guestos, which halts by itself" {
  linux /boot/guestos autohalt
  initrd /boot/programs.tar
}
"""
MACH_ENTRY: Final = """\
menuentry "GNU Mach" {
  linux /boot/gnumach root=device:hd0
}
"""
LAST_ENTRIES: Final = """\
menuentry "Reboot" {
  reboot
}
menuentry "Power off" {
  halt
}
"""


def make_disks(directory: Path) -> list[Path]:
    """Make both disks in a directory, in place of older ones; return them."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as kept:
        boot, files = Path(kept, "boot-disk"), Path(kept, "files-disk")
        _lay_out_boot(boot / "boot")
        _lay_out_files(files)
        return [
            make_disk(directory / "boot.img", "ext2", "32M", boot),
            make_disk(directory / "files.img", "fat", "16M", files),
        ]


def _lay_out_boot(boot: Path) -> None:
    (boot / "grub").mkdir(parents=True)
    shutil.copyfile(build_kernel(ROOT / "guestos/main.s"), boot / "guestos")
    shutil.copyfile(build_archive(ROOT / "guestos/programs").path, boot / "programs.tar")
    menu = MENU
    if MACH.is_file():
        shutil.copyfile(MACH, boot / "gnumach")
        menu += MACH_ENTRY
    (boot / "grub/grub.cfg").write_text(menu + LAST_ENTRIES)


def _lay_out_files(files: Path) -> None:
    shutil.copytree(ROOT / "docs", files / "docs", ignore=shutil.ignore_patterns("*.png"))
    shutil.copyfile(ROOT / "README.md", files / "README.md")
    numbers = "".join(f"{number}\n" for number in range(NUMBERS_BYTES // 6))
    (files / "numbers.txt").write_text(numbers[:NUMBERS_BYTES])


def make_disk(image: Path, kind: str, size: str, directory: Path) -> Path:
    """Make an image of a directory's files, in place of an older one."""
    image.unlink(missing_ok=True)
    command = [str(ROOT / "tools/make_disk"), "--type", kind, str(image), size, str(directory)]
    subprocess.run(command, check=True)
    return image


def main() -> int:
    """Make the disks where the user wants them."""
    parser = argparse.ArgumentParser(
        prog="make_demo_disks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = ROOT / "build/demo"
    parser.add_argument("directory", nargs="?", type=Path, default=where, help="build/demo")
    try:
        for image in make_disks(parser.parse_args().directory):
            print(image)
    except (ConfigError, OSError) as error:
        print(f"make_demo_disks: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:
        return 1  # make_disk has said why
    return 0


if __name__ == "__main__":
    sys.exit(main())
