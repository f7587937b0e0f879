# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/make_disk makes sound file systems of both kinds, or says what is wrong and leaves none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.disk import checked, contents

ROOT = Path(__file__).resolve().parents[2]
CONTENT = {
    "hello.txt": b"hello\n",
    "boot/grub/grub.cfg": b"set timeout=0\n",
    "A long name, with a blank.bin": bytes(range(256)) * 300,
}


def make_disk(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "tools/make_disk", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "some files"
    for name, content in CONTENT.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.mark.parametrize("kind", ["ext2", "fat"])
def test_a_disk_holds_the_files_and_is_sound(kind: str, files: Path, tmp_path: Path) -> None:
    image = tmp_path / "a disk.img"
    made = make_disk("--type", kind, image, "4M", files)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert image.stat().st_size == 4 << 20
    assert checked(image, kind) == []
    assert contents(image, kind, list(CONTENT)) == CONTENT


def test_ext2_is_what_comes_when_nothing_is_said(files: Path, tmp_path: Path) -> None:
    assert make_disk(tmp_path / "disk.img", "4096K", files).returncode == 0
    assert checked(tmp_path / "disk.img", "ext2") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("IMAGE", "4M"), "usage: tools/make_disk [--type ext2|fat] IMAGE SIZE DIRECTORY"),
        (("--type",), "usage: tools/make_disk [--type ext2|fat] IMAGE SIZE DIRECTORY"),
        (("--type", "ntfs", "IMAGE", "4M", "FILES"), "make_disk: ntfs: no type of file system"),
        (("IMAGE", "lots", "FILES"), "make_disk: lots: no size; write 16M"),
        (("IMAGE", "0", "FILES"), "make_disk: 0: no size; write 16M"),
        (("IMAGE", "-4M", "FILES"), "make_disk: -4M: no size; write 16M"),
        (("IMAGE", "9999999G", "FILES"), "make_disk: IMAGE: cannot be written with 9999999G"),
        (("IMAGE", "4M", "NONE"), "make_disk: NONE: no such directory"),
        (("NONE/disk.img", "4M", "FILES"), "make_disk: NONE/disk.img: cannot be written with 4M"),
        (("IMAGE", "64K", "FILES"), "make_disk: FILES: its files do not fit into 64K of ext2"),
        (("--type", "fat", "IMAGE", "64K", "FILES"), "make_disk: FILES: its files do not fit"),
        (("--type", "fat", "IMAGE", "1K", "FILES"), "make_disk: 1K: too small for FAT"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, files: Path, tmp_path: Path
) -> None:
    names = {"IMAGE": str(tmp_path / "disk.img"), "FILES": str(files), "NONE": str(tmp_path / "no")}

    def full(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path) if not text.startswith("usage") else text
        return text

    before = sorted(tmp_path.rglob("*"))
    made = make_disk(*map(full, words))
    assert (made.returncode, made.stdout) == (1, "")
    (line,) = made.stderr.splitlines()
    assert line.startswith(full(said))
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_fat_takes_for_one_are_refused(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "readme").write_text("one")
    (files / "README").write_text("two")
    made = make_disk("--type", "fat", tmp_path / "disk.img", "1M", files)
    assert made.returncode == 1
    assert "or their names do not" in made.stderr
    assert not (tmp_path / "disk.img").exists()


def test_an_image_that_is_there_is_left_alone(files: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"precious")
    made = make_disk(image, "4M", files)
    assert (made.returncode, made.stderr) == (1, f"make_disk: {image}: is there already\n")
    assert image.read_bytes() == b"precious"
