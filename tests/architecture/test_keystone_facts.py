# SPDX-License-Identifier: GPL-2.0-or-later
"""What Keystone 0.9.2 really does, where the assembler goes round it.

A failure after an upgrade means that a detour in xenlite/devkit can go, or has become wrong.
"""

from __future__ import annotations

import pytest

from xenlite.devkit import keystone_child


def raw(text: str) -> dict[str, object]:
    answer = keystone_child.ask({"text": text, "origin": 0x1000})
    assert answer is not None, "Keystone died or hung"
    return answer


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("mov al, 10", "b010"),  # a bare number is hexadecimal
        (".byte 10", "10"),
        ("mov al, 0x1ff", "b0ff"),  # upper bits are dropped
        (".equ N, 8\nmov eax, -N", "a108000000"),  # a load
        (".equ N, 8\nand eax, ~N", "230508000000"),
        ("push a\na:", "66680410"),  # 16 bits
        ("iret", "66cf"),
        ("pushf", "669c"),
        ("push ds", "661e"),
        ("mov eax, (", "b800000000"),
    ],
)
def test_some_statements_are_encoded_wrongly_without_a_word(text: str, wrong: str) -> None:
    assert raw(text)["code"] == wrong
    assert raw(text)["error"] == ""


@pytest.mark.parametrize(
    "text",
    ["mov eax, 5 == 5", "call a + 0x80\na:", "movsd", "mov eax, offset a\na:", "1: jmp 1b"],
)
def test_some_plain_statements_are_refused(text: str) -> None:
    assert raw(text)["error"] != ""


def test_an_include_is_ignored() -> None:
    assert raw('.include "/does/not/exist"') == {"code": "", "count": 1, "error": ""}


def test_a_value_that_does_not_fit_vanishes() -> None:
    assert raw(".word 0x12345")["code"] == ""


@pytest.mark.parametrize("text", [".text", ".cfi_startproc"])
def test_some_directives_end_the_process(text: str) -> None:
    assert keystone_child.ask({"text": text, "origin": 0}) is None


@pytest.mark.parametrize("text", ["(", '.ascii "', ".macro L\n.Lx\\@: jmp .Lx\\@\n.endm\nL"])
def test_some_statements_never_return(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystone_child, "TIME_LIMIT_S", 0.3)
    assert keystone_child.ask({"text": text, "origin": 0}) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("nop", 1), ("a: nop", 2), ("rep stosb", 2), (".equ N, 1", 1), ("nop;nop", 2)],
)
def test_labels_and_prefixes_count_as_statements(text: str, count: int) -> None:
    assert raw(text)["count"] == count
