# SPDX-License-Identifier: GPL-2.0-or-later
"""What `pip install` brings: guestos, its kernel and its programs, all of it built."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of an unpacked wheel, built as pip builds it."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_S)
    (wheel,) = directory.glob("xenlite-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    return directory / "site"


def test_the_wheel_holds_guestos_its_kernel_and_its_programs(installed: Path) -> None:
    guestos = installed / "xenlite/share/guestos"
    shipped = {path.name for path in guestos.iterdir()}
    assert {path.name for path in (ROOT / "guestos").iterdir()} <= shipped
    assert (guestos / "include/xen_abi.inc").is_file()
    assert len(list(guestos.glob("main-*.elf"))) == 1
    (programs,) = guestos.glob("programs-*.tar")
    with tarfile.open(programs) as archive:
        assert {"bin/sh", "bin/primes", "README"} <= set(archive.getnames())


def test_what_is_shipped_boots_without_an_assembler_and_a_compiler(
    installed: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "xenlite.cli.main", "run"]
    done = subprocess.run(
        [*command, str(installed / "xenlite/share/guestos/dom.yaml"), "cmdline=autohalt"],
        cwd=tmp_path,
        env={
            "PATH": str(tmp_path),
            "HOME": str(tmp_path),
            "PYTHONPATH": str(installed),
            "XDG_CACHE_HOME": str(cache),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"hello from ring 3" in done.stdout
    assert not cache.exists()
