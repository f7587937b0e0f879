# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that come and go under Debian's GRUB, a frontend that never answers a wish to close one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.gdb import gdb_process, needs_gdb

ROOT = Path(__file__).resolve().parents[2]
GRUB = ROOT / "build/kernels/grub-i386-xen.bin"
XENLITE = [sys.executable, "-m", "xenlite.cli.main"]


class Prompt:
    """A GRUB at its prompt, that is typed to."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.wait()

    def wait(self) -> bytes:
        """Wait for the prompt; return what came before it."""
        assert self._process.stdout is not None
        seen = b""
        while not seen.endswith(b"grub> "):
            piece = os.read(self._process.stdout.fileno(), 4096)
            assert piece, seen
            seen += piece
        return seen

    def types(self, line: bytes) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\r")
        self._process.stdin.flush()

    def do(self, line: bytes) -> bytes:
        """Type a line; return what it shows."""
        self.types(line)
        return self.wait()


def test_grub_sees_an_attached_disk_when_it_starts_again(tmp_path: Path) -> None:
    assert GRUB.exists(), "run tools/fetch_kernels first (tools/check does)"
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "hello.txt").write_text("from a disk that came later\n")
    image, files = str(tmp_path / "disk.img"), str(tmp_path / "files")
    make = [str(ROOT / "tools/make_disk"), image, "1M", files]
    subprocess.run(make, check=True)
    config = tmp_path / "dom.yaml"
    config.write_text(f"name: grub\nkernel: {GRUB}\nmemory: 64\nassists: writable_pagetables\n")
    sockets = tmp_path / "sockets"
    where = ["--socket-dir", str(sockets)]

    def do(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*XENLITE, verb, "grub", *words, *where]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    process = subprocess.Popen(
        [*XENLITE, "run", "--audit", "--timeout", "100", str(config), *where],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    prompt = Prompt(process)
    assert b"xen/xvdb" not in prompt.do(b"ls")
    assert do("block-attach", f"{tmp_path}/disk.img,raw,xvdb,r").returncode == 0
    prompt.types(b"reboot")
    prompt.wait()
    assert b"(xen/xvdb)" in prompt.do(b"ls")
    assert b"from a disk that came later" in prompt.do(b"cat (xen/xvdb)/hello.txt")
    asked = do("block-detach", "xvdb", "--timeout", "0")
    assert asked.returncode == 1
    assert asked.stderr.startswith("xenlite: xvdb: the guest has not closed it within 0 s")
    assert b"from a disk that came later" in prompt.do(b"cat (xen/xvdb)/hello.txt")
    assert do("block-detach", "xvdb", "--force").returncode == 0
    assert do("block-list").stdout.count("\n") == 1
    prompt.types(b"halt")
    _, said = process.communicate()
    assert process.returncode == 0
    assert b"broke" not in said


@needs_gdb
def test_a_debugger_is_told_what_the_devices_are_doing(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    config = tmp_path / "dom.yaml"
    config.write_text(
        f"name: grub\nkernel: {GRUB}\nmemory: 64\nassists: writable_pagetables\n"
        "disk: disk.img,raw,xvda,r\nconsole: [terminal, pty]\n"
    )
    process = subprocess.Popen(
        [*XENLITE, "run", "--gdb", ":0", "--timeout", "100", str(config)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while b"target remote" not in line:
            line = process.stderr.readline()
        target = line.decode().rsplit("target remote ", 1)[1].strip().strip("'")
        prompt = Prompt(process)
        assert b"Total size" in prompt.do(b"ls (xen/xvda)")
        said = gdb_process(f"target remote {target}\nmonitor devices\ndetach\n")
        prompt.types(b"halt")
        process.communicate()
    finally:
        process.kill()
        process.communicate()
    first, vbd = said[said.index("console 0\n") :].split("vbd 51712: ")
    assert "console 1: backend 2 init_wait, frontend 1 initialising\n" in first
    assert re.search(r"in_cons 0x(\w+), in_prod 0x\1, out_cons 0x(\w+), out_prod 0x\2\n", first)
    assert re.search(r"input waiting 0, printed [1-9]\d+\n", first)
    assert vbd.startswith("backend 4 connected, frontend 3 initialised\n")
    found = re.search(
        r"req_prod 0x(\w+), req_cons 0x\1, rsp_prod 0x\1\n"
        r"  port \d+, in work 0, requests (\d+), events (\d+), notifications \d+\n",
        vbd,
    )
    assert found, vbd
    assert int(found[1], 16) == int(found[2]) > 0
