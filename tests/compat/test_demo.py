# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/make_demo_disks makes two sound disks: GRUB boots from one, guestos reads the other."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.disk import checked, contents
from tests.support.terminal import Terminal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOWN = "\x1b[B"


def make(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "tools/make_demo_disks", directory]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_boots_what_is_chosen_from_disks_that_are_sound(tmp_path: Path) -> None:
    boot, files = tmp_path / "boot.img", tmp_path / "files.img"
    for _ in range(2):  # the second time in place of the first ones
        assert make(tmp_path).stdout.splitlines() == [str(boot), str(files)]
    assert [checked(boot, "ext2"), checked(files, "fat")] == [[], []]
    readme = (ROOT / "README.md").read_bytes()
    assert contents(files, "fat", ["README.md"]) == {"README.md": readme}
    domain = tmp_path / "demo.yaml"
    domain.write_text((HERE / "demo.yaml").read_text().replace("../../build/demo", str(tmp_path)))
    with Terminal(domain) as terminal:
        terminal.wait_for("*guestos")
        for entry in ("*guestos, which halts by itself", "*GNU Mach", "*Reboot", "*Power off"):
            terminal.type(DOWN)
            terminal.wait_for(entry)
        terminal.type("\r")
        assert terminal.end()[0] == 0
    wanted = subprocess.run(["cksum"], input=readme, capture_output=True, check=True).stdout
    with Terminal(domain) as terminal:
        terminal.wait_for("*guestos")
        terminal.type("\r")
        terminal.wait_for("guestos> ")
        terminal.type("sum disk/README.md\r")
        terminal.wait_for(f"{wanted.decode().strip()} disk/README.md")
        terminal.type("halt\r")
        assert terminal.end()[0] == 0
    assert [checked(boot, "ext2"), checked(files, "fat")] == [[], []]


def test_where_no_disks_can_be_made_it_says_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = make(tmp_path / "file")
    assert made.returncode == 1
    *setting_up, line = made.stderr.splitlines()
    assert line.startswith("make_demo_disks: ")
    assert not any("Traceback" in each for each in setting_up)
