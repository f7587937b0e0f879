# SPDX-License-Identifier: GPL-2.0-or-later
"""Debuggers with whole kernels, as a user starts them: guestos by its sources, and GNU Mach."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gdb import LIMIT_S, gdb_process, needs_gdb

ROOT = Path(__file__).resolve().parents[2]
GUESTOS = ROOT / "guestos/dom.yaml"
MACH = ROOT / "tests/compat/gnumach.yaml"
MACH_KERNEL = ROOT / "build/kernels/gnumach-1.8-xen-486.gz"
SOURCE_LINE = re.compile(r"^Line (\d+) of \"([^\"]+)\" starts at address (0x[0-9a-f]+)", re.M)


class Running:
    """An ``xenlite run --gdb``: the commands that it names, by domain, and its end."""

    def __init__(self, process: subprocess.Popen[str], count: int) -> None:
        assert process.stderr is not None
        self.process = process
        self.commands: dict[str, list[str]] = {}
        while len(self.commands) < count:
            _, about, *command = process.stderr.readline().split(": ", 2)
            if command:
                self.commands[about] = shlex.split(command[0])

    def kernel(self, name: str) -> Path:
        return Path(self.commands[name][1])

    def target(self, name: str) -> str:
        return self.commands[name][3]

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and what was on the consoles."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out


@contextmanager
def running(*words: str, count: int = 1) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "xenlite.cli.main", "run", "--gdb-wait", *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process, count)
    finally:
        process.kill()
        process.communicate()


@needs_gdb
def test_gdb_shows_guestos_by_its_sources() -> None:
    with running("--gdb", ":0", str(GUESTOS)) as run:
        said = gdb_process(
            f"""
            {run.target("guestos")}
            info line *$eip
            list *$eip
            printf "ring %d\\n", $cs & 3
            step
            step
            info line *$eip
            """,
            [run.kernel("guestos")],
        )
        (line, file, address), (later, _, _) = SOURCE_LINE.findall(said)[:2]
        again = gdb_process(
            f"{run.target('guestos')}\n", [run.kernel("guestos")]
        )  # it was let go, and can be held again
        assert "Remote debugging" in again or "Remote" in again
    source = ROOT / "guestos" / file
    assert source.is_file()
    assert source.read_text().splitlines()[int(line) - 2].startswith("_start:")
    assert int(later) > int(line)
    assert int(address, 16) >= 0xC0000000
    assert "ring 1" in said


@needs_gdb
def test_a_breakpoint_by_file_and_line_stops_there(tmp_path: Path) -> None:
    source = tmp_path / "kernel.s"
    source.write_text(
        """\
.include "xen_abi.inc"
.xen_note LOADER, "generic"
.xen_note PAE_MODE, "yes"
.xen_note XEN_VERSION, "xen-3.0"
.xen_note VIRT_BASE, 0xC0000000
.text
_start:
    mov ecx, 3
again:
    inc eax
    loop again
    mov ebx, SCHEDOP_shutdown
    mov ecx, offset reason
    mov eax, HYPERVISOR_sched_op
    int 0x82
.data
reason: .long SHUTDOWN_poweroff
"""
    )
    config = tmp_path / "dom.yaml"
    config.write_text("name: lines\nkernel: kernel.s\nmemory: 4\n")
    with running("--gdb", str(tmp_path / "socket"), str(config)) as run:
        said = gdb_process(
            f"""
            {run.target("lines")}
            break kernel.s:10
            continue
            printf "ecx %d\\n", $ecx
            continue
            printf "ecx %d\\n", $ecx
            delete
            continue
            """,
            [run.kernel("lines")],
        )
        status, _ = run.end()
    assert [f"ecx {n}\n" in said for n in (3, 2)] == [True] * 2
    assert "kernel.s:10" in said
    assert "exited normally" in said
    assert status == 0


@needs_gdb
def test_several_domains_have_a_port_each_and_one_waits_for_no_other(tmp_path: Path) -> None:
    config = tmp_path / "dom.yaml"
    kernel = ROOT / "tests/system/kernels/obedient.s"
    config.write_text(f"kernel: {kernel}\nmemory: 4\ncmdline: poweroff\n")
    words = [str(config), "name=one", str(config), "name=two"]
    with running("--gdb", str(tmp_path / "socket"), *words, count=2) as run:
        first, second = run.target("one"), run.target("two")
        assert first != second
        said = gdb_process(f"{second}\ncontinue\n", [run.kernel("two")])
        assert "exited" in said, said
        said = gdb_process(f"{first}\ncontinue\n", [run.kernel("one")])
        assert "exited" in said, said
        run.end()


@needs_gdb
def test_gdb_drives_gnu_mach() -> None:
    """A kernel without symbols, to its panic: by its hypercalls, a breakpoint and a watchpoint."""
    assert MACH_KERNEL.exists(), "run tools/fetch_kernels first (tools/check does)"
    with running("--gdb", ":0", str(MACH)) as run:
        said = gdb_process(
            f"""
            {run.target("gnumach")}
            monitor break-hypercall set_trap_table
            continue
            x/i $eip
            monitor break-hypercall none
            break *($eip + 2)
            continue
            printf "made, eax %d, ring %d\\n", $eax, $cs & 3
            delete
            watch -location *(unsigned*)($esp - 4)
            continue
            delete
            monitor break-hypercall sched_op_compat
            continue
            monitor log 1
            monitor break-hypercall none
            monitor vcpus
            continue
            """
        )
    assert "before set_trap_table(" in said, said
    assert "int    $0x82" in said
    assert "made, eax 0, ring 1" in said
    assert "Hardware watchpoint 2" in said
    assert "by the instruction at" in said
    assert "vcpu 0: " in said
    assert "before sched_op_compat(cmd=" in said
    assert "exited with code" in said, "it has no bootstrap program, and panics"


@pytest.mark.skipif(
    shutil.which("lldb") is None and shutil.which("lldb-14") is None,
    reason="LLDB is not installed (apt-get install lldb): half a gigabyte, too much for each run",
)
def test_lldb_attaches_stops_and_steps(tmp_path: Path) -> None:
    program = shutil.which("lldb") or shutil.which("lldb-14")
    assert program is not None
    with running("--gdb", ":0", str(GUESTOS)) as run:
        port = run.target("guestos").rpartition(":")[2]
        done = subprocess.run(
            [
                program,
                "--batch",
                "--no-lldbinit",
                "-o",
                f"gdb-remote 127.0.0.1:{port}",
                "-o",
                "register read eip cs",
                "-o",
                "thread step-inst",
                "-o",
                "thread list",
                "-o",
                "memory read --size 4 --count 2 --format x $esp-8",
                "-o",
                "detach",
                str(run.kernel("guestos")),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=tmp_path,
        )
    assert "stop reason" in done.stdout, done.stdout + done.stderr
    assert "_start" in done.stdout
    assert "cs = 0x0000e019" in done.stdout
    assert "instruction step into" in done.stdout
