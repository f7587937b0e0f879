# SPDX-License-Identifier: GPL-2.0-or-later
"""hypercall_abi.yaml agrees with Xen's public headers, as a C compiler reads them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xenlite.abi import x86_32p

ROOT = Path(__file__).resolve().parents[2]
NEEDED = "this test needs Debian's packages libxen-dev and gcc-multilib"
XEN = "/usr/include/xen/"


def gcc(*arguments: str | Path, target: str = "-m32") -> str:
    """Run the compiler for x86 and return its output; fail when it or the headers fail."""
    assert shutil.which("gcc"), NEEDED
    command = ["gcc", target, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{NEEDED}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the C program that compares every number of the description with the headers."""
    command = [sys.executable, str(ROOT / "tools/gen_abi.py"), "--probe"]
    path = tmp_path_factory.mktemp("abi") / "probe.c"
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return path


@pytest.fixture(scope="module")
def macros(probe: Path) -> dict[str, str]:
    """Return the number-like macros of the headers, each with the header that defines it."""
    header = ""
    found = {}
    for line in gcc("-E", "-dD", probe).splitlines():
        if match := re.match(r'# \d+ "(.*?)"', line):
            header = match[1]
        elif (match := re.match(r"#define (\w+) +[^ {]", line)) and header.startswith(XEN):
            found[match[1]] = header.removeprefix(XEN)
    return found


def test_every_size_offset_and_constant_is_the_headers(probe: Path) -> None:
    program = probe.with_suffix("")
    gcc("-w", "-o", program, probe)
    report = subprocess.run([program], capture_output=True, text=True, check=True).stdout

    *differences, last = report.splitlines()

    assert not differences, "\n".join(differences)
    expected = len(x86_32p.STRUCTURES) + len(x86_32p.HYPERCALL_NAMES)
    assert int(last.removesuffix(" checks")) > expected


def test_no_number_of_a_named_family_is_left_out(macros: dict[str, str]) -> None:
    families = [
        name.removesuffix("NAMES")
        for name in vars(x86_32p)
        if name.endswith("_NAMES") and name not in ("MMU_UPDATE_NAMES", "HYPERCALL_NAMES")
    ]
    families += ["MMU_", "__HYPERVISOR_", "UVMF_", "SIF_", "VGCF_", "GTF_", "GNTMAP_", "XENMEMF_"]

    missing = [
        name
        for name in macros
        if name.startswith(tuple(families))
        and "HYPERVISOR_VIRT_START" not in name
        and not hasattr(x86_32p, name.removeprefix("__"))
    ]

    assert not missing, " ".join(missing)


def test_sources_named_by_the_reference_page_define_the_constants(macros: dict[str, str]) -> None:
    source = ""
    wrong = []
    for line in (ROOT / "docs/abi.md").read_text().splitlines():
        if line.startswith("### "):
            source = ""
        elif match := re.search(r"Source: ([\w/.-]+\.h)\.", line):
            source = match[1]
        elif source and (match := re.match(r"\| `(\w+)` \|", line)):
            name = match[1]
            if macros.get(name, source) != source:
                wrong.append(f"{name}: not in {source} but in {macros[name]}")

    assert not wrong, "\n".join(wrong)


def test_generated_c_header_compiles_and_holds_its_own_assertions() -> None:
    header = ROOT / "guestos/include/xen_abi.h"
    gcc("-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", header)


def test_block_requests_of_64_bit_frontends_are_laid_out_as_their_compiler_does(
    tmp_path: Path,
) -> None:
    asked = {}
    for one in (
        x86_32p.BlkifX8664Request,
        x86_32p.BlkifX8664RequestDiscard,
        x86_32p.BlkifX8664RequestIndirect,
        x86_32p.BlkifX8664Response,
    ):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", one.__name__.replace("X8664", "")).lower()
        prefix = name.replace("blkif", "blkif_x86_64").upper()
        asked[f"sizeof(struct {name})"] = getattr(x86_32p, f"SIZEOF_{prefix}")
        for field in one.__slots__:
            asked[f"offsetof(struct {name}, {field})"] = getattr(
                x86_32p, f"{prefix}_{field.upper()}"
            )
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    lines = [f'printf("%zu\\n", {expression});' for expression in asked]
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <xen/xen.h>\n"
        "#include <xen/io/ring.h>\n#include <xen/grant_table.h>\n#include <xen/io/blkif.h>\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )

    gcc("-w", "-o", program, source, target="-m64")

    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert list(map(int, found.split())) == list(asked.values())
