# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of the command line; what the verbs do is seen in tests/system/test_cli.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.kernel_file import KernelFile
from xenlite.cli.main import main


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    (tmp_path / "k").write_bytes(KernelFile().build())
    path = tmp_path / "dom.yaml"
    path.write_text("name: d\nkernel: k\n")
    return path


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xenlite ")


@pytest.mark.parametrize(
    "words", [[], ["nosuch"], ["run"], ["schema", "x"], ["--nosuch"], ["run", "d.yaml", "--nosuch"]]
)
def test_wrong_words_cost_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert "usage: xenlite" in capsys.readouterr().err


def test_help_of_create_says_what_it_does_today(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--help"]) == 0
    text = capsys.readouterr().out
    assert "background host" in text
    assert "124" in text


def test_overrides_may_stand_anywhere(domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["create", str(domain), "memory=8", "-n", "--timeout", "3", "memory=16", "-c"]
    assert main(words) == 0
    assert "of 4096 pages" in capsys.readouterr().out


def test_check_refuses_what_run_would(domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(domain), "ramdisk=/dev/null"]) == 1
    assert capsys.readouterr().err == "xenlite: /dev/null: not a regular file\n"


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["name"]
    one_of_both = [{"required": ["kernel"]}, {"required": ["firmware"]}]
    assert schema["allOf"] == [{"oneOf": one_of_both}]
    assert schema["properties"]["on_reboot"]["default"] == "restart"


def test_explain_tells_a_rules_purpose_and_its_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "paging.writable-page-table", "multicall.nested"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("paging.writable-page-table\n  Rule: A frame is never a page table")
    assert "\n\nmulticall.nested\n" in text
    assert text.count("\n  Mend: ") == 2


def test_explain_alone_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert "frames.not-owned" in names
    assert len(names) > 100


def test_explain_guesses_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "paging.writable-table"]) == 1
    error = capsys.readouterr().err
    assert "paging.writable-table: no such rule; did you mean paging.writable-page-table" in error


@pytest.mark.parametrize("words", [["--gdb"], ["--gdb", ":0"], ["--gdb=:1234"], ["--gdb-wait"]])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_file_may_follow_gdb(domain: Path, words: list[str], is_first: bool) -> None:
    """The file is one, not an address; -n: nothing runs."""
    file = [str(domain)]
    assert main(["create", "-n", *(words + file if is_first else file + words)]) == 0


@pytest.mark.parametrize("address", ["1234", ":", ":x", ":70000", "socket"])
def test_an_address_of_gdb_that_is_none_is_refused(
    domain: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "-n", f"--gdb={address}", str(domain)]) == 1
    assert "neither :PORT nor" in capsys.readouterr().err
