# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewrite one Intel-syntax instruction so that Keystone 0.9.2 encodes what was meant.

Keystone accepts much that it then encodes wrongly without a word: `mov eax, -NAME` becomes a load,
`push label` a 16-bit push, `iret` the 16-bit form, `mov al, 256` loses its upper bits. So every
operand is read here; constants are computed, labels go out in forms that were measured to work,
and what cannot be said is refused. Each rewriting has a test in tests/unit/devkit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from xenlite.devkit.assembly_expression import ExpressionError, Value

Evaluate = Callable[[str], Value]
Name = Callable[[Value], str]

PREFIXES = frozenset({"lock", "rep", "repe", "repz", "repne", "repnz", "data16"})
_BYTE = frozenset({"al", "ah", "bl", "bh", "cl", "ch", "dl", "dh"})
_WORD = frozenset({"ax", "bx", "cx", "dx", "si", "di", "bp", "sp"})
_DWORD = frozenset({"eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp"})
_SEGMENT = frozenset({"cs", "ds", "es", "fs", "gs", "ss"})
REGISTERS = (
    _BYTE
    | _WORD
    | _DWORD
    | _SEGMENT
    | {f"{kind}{n}" for kind in ("cr", "dr", "mm", "xmm") for n in range(8)}
    | {"st"}
)
_SAME_BUT_FOR_NAME = {
    "iret": "iretd",  # Keystone's iret is the 16-bit one, so are its pushf and popf
    "pushf": "pushfd",
    "popf": "popfd",
    "lret": "retf",
    "retn": "ret",
    "ud2a": "ud2",
}
_STRING_MOVE = "movsd dword ptr es:[edi], dword ptr [esi]"  # a bare movsd is only SSE's to it
# Keystone pushes and pops these as 16 bits.
_SEGMENT_STACK = {
    ("push", "es"): 0x06,
    ("pop", "es"): 0x07,
    ("push", "cs"): 0x0E,
    ("push", "ss"): 0x16,
    ("pop", "ss"): 0x17,
    ("push", "ds"): 0x1E,
    ("pop", "ds"): 0x1F,
}
_FAR = {"ljmp": 0xEA, "lcall": 0x9A, "jmp": 0xEA, "call": 0x9A}
_SIZED = re.compile(r"(?i)(byte|word|dword|fword|qword|tbyte|oword|xmmword)\s+ptr\s+(.*)")
_MEMORY = re.compile(r"(?i)(?:(cs|ds|es|fs|gs|ss)\s*:\s*)?\[(.*)\]")
_SEGMENT_OFFSET = re.compile(r"(?i)(cs|ds|es|fs|gs|ss)\s*:\s*(.+)")
_STACK_REGISTER = re.compile(r"(?i)st\s*\(\s*[0-7]\s*\)")
_MNEMONIC = re.compile(r"[a-z][a-z0-9]*")
_BRANCH = re.compile(r"j[a-z]+|call|loop[a-z]*")
_IMMEDIATE = range(-(1 << 31), 1 << 32)
_NARROW = {"byte": range(-0x80, 0x100), "word": range(-0x8000, 0x10000)}


def instruction(text: str, evaluate: Evaluate, name: Name) -> list[str]:
    """Return the lines that Keystone encodes as the instruction `text`.

    `evaluate` reads an expression; `name` gives a value that is not plainly one label a symbol of
    its own. Raise `ExpressionError`.
    """
    prefix, mnemonic, rest = _divide(text)
    if not _MNEMONIC.fullmatch(mnemonic):
        raise ExpressionError(f"{text!r} is no instruction")  # some of these hang Keystone
    operands = [operand.strip() for operand in split(rest, ",")] if rest else []
    if any(not operand for operand in operands):
        raise ExpressionError(f"an operand is missing in {text!r}")
    mnemonic = _SAME_BUT_FOR_NAME.get(mnemonic, mnemonic)
    if mnemonic == "movsd" and not operands:
        return [prefix + _STRING_MOVE]
    if len(operands) == 1:
        special = _alone(mnemonic, operands[0], evaluate)
        if special is not None:
            return special
    if any(operand.startswith('"') for operand in operands):
        raise ExpressionError(f"no macro {mnemonic!r} above this line, no instruction takes text")
    branch = _BRANCH.fullmatch(mnemonic) is not None
    narrow = _narrow(operands)
    rendered = [_operand(operand, evaluate, name, branch, narrow) for operand in operands]
    return [prefix + mnemonic + (" " + ", ".join(rendered) if rendered else "")]


def split(text: str, separator: str) -> list[str]:
    """Split at `separator` outside quotes, parentheses and brackets."""
    pieces, depth, start = [], 0, 0
    for index, char in _unquoted(text):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == separator and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    return [*pieces, text[start:]]


def _unquoted(text: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|(.)', text, re.DOTALL):
        if match[1]:
            yield match.start(), match[1]


def _divide(text: str) -> tuple[str, str, str]:
    prefix, words = "", text
    while True:
        first, _, words = words.strip().partition(" ")
        if first.lower() not in PREFIXES or not words.strip():
            return prefix, first.lower(), words.strip()
        prefix += first.lower() + " "


def _alone(mnemonic: str, operand: str, evaluate: Evaluate) -> list[str] | None:
    """Encode what Keystone cannot: some pushes, far jumps to labels."""
    opcode = _SEGMENT_STACK.get((mnemonic, operand.lower()))
    if opcode is not None:
        return [f".byte {opcode:#x}"]
    far = split(operand, ":")
    if mnemonic in _FAR and len(far) == 2 and "[" not in operand:
        selector = evaluate(far[0])
        if not selector.is_constant or selector.constant not in range(0x10000):
            raise ExpressionError(f"{far[0].strip()!r} is no selector")
        target = evaluate(far[1]).text()
        return [f".byte {_FAR[mnemonic]:#x}", f".long {target}", f".word {selector.constant:#x}"]
    if mnemonic == "push" and not _is_memory(operand) and operand.lower() not in REGISTERS:
        value = evaluate(_immediate_text(operand))
        # Keystone takes 0xff80 to 0xffff for a 16-bit number, and pushes its sign extended.
        if not value.is_constant or value.constant in range(0xFF80, 0x10000):
            return [".byte 0x68", f".long {value.text()}"]
    return None


def _is_memory(operand: str) -> bool:
    return "[" in operand or _SIZED.fullmatch(operand) is not None or ":" in operand


def _immediate_text(operand: str) -> str:
    return operand[7:] if operand.lower().startswith("offset ") else operand


def _narrow(operands: list[str]) -> str | None:
    """Return `byte` or `word` when an operand says that the operation is that wide."""
    for operand in operands[:1]:
        lower = operand.lower()
        if lower in _BYTE or lower.startswith("byte"):
            return "byte"
        if lower in _WORD or lower.startswith("word"):
            return "word"
    return None


def _operand(operand: str, evaluate: Evaluate, name: Name, branch: bool, narrow: str | None) -> str:
    lower = operand.lower()
    if lower in REGISTERS or _STACK_REGISTER.fullmatch(lower):
        return lower
    sized = _SIZED.fullmatch(operand)
    size = f"{sized[1].lower()} ptr " if sized else ""
    inner = sized[2].strip() if sized else operand
    memory = _MEMORY.fullmatch(inner)
    offset = _SEGMENT_OFFSET.fullmatch(inner)
    if memory:
        segment = f"{memory[1].lower()}:" if memory[1] else ""
        return f"{size}{segment}[{_address(memory[2], evaluate, name)}]"
    if offset:
        return f"{size}{offset[1].lower()}:[{_address(offset[2], evaluate, name)}]"
    if sized:
        return f"{size}[{_address(inner, evaluate, name)}]"
    if "[" in operand:
        raise ExpressionError(f"cannot read {operand!r}: write it as `dword ptr [...]`")
    return _immediate(evaluate(_immediate_text(operand)), name, branch, narrow)


def _immediate(value: Value, name: Name, branch: bool, narrow: str | None) -> str:
    if value.is_constant:
        allowed = _NARROW.get(narrow or "", _IMMEDIATE)
        if value.constant not in allowed:
            raise ExpressionError(f"{value.constant:#x} does not fit {narrow or '32 bits'}")
        return value.text()
    if value.is_address and not (branch and value.constant):
        return value.text()
    return name(value)


def _address(text: str, evaluate: Evaluate, name: Name) -> str:
    registers: list[str] = []
    rest: list[str] = []
    for sign, term in _terms(text):
        register = _scaled(term, evaluate)
        if register is None:
            rest.append(sign + term)
        elif sign == "-":
            raise ExpressionError(f"a register is taken away in [{text}]")
        else:
            registers.append(register)
    value = evaluate("".join(rest)) if rest else Value()
    if value.constant not in _IMMEDIATE:
        raise ExpressionError(f"{value.constant:#x} does not fit 32 bits in [{text}]")
    if not value.is_constant and not value.is_address:
        return " + ".join([*registers, name(value)])
    if not registers:
        return value.text()
    shown = " + ".join(registers)
    if value == Value():
        return shown
    if value.is_constant and value.constant < 0:
        return f"{shown} - {-value.constant:#x}"
    return f"{shown} + {value.text()}"


def _terms(text: str) -> Iterator[tuple[str, str]]:
    """Give the sign and text of each summand."""
    depth, start, sign = 0, 0, "+"
    for index, char in _unquoted(text):
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char in "+-" and depth == 0:
            if text[start:index].strip():
                yield sign, text[start:index].strip()
            elif index != start or start:
                raise ExpressionError(f"a term is missing in [{text}]")
            sign, start = char, index + 1
    if not text[start:].strip():
        raise ExpressionError(f"a term is missing in [{text}]")
    yield sign, text[start:].strip()


def _scaled(term: str, evaluate: Evaluate) -> str | None:
    """Return a term that is a register, scaled or not; None for anything else."""
    if term.lower() in REGISTERS:
        return term.lower()
    left, star, right = term.partition("*")
    if not star:
        return None
    left, right = left.strip(), right.strip()
    if right.lower() in REGISTERS:
        left, right = right, left
    if left.lower() not in REGISTERS:
        return None
    scale = evaluate(right)
    if not scale.is_constant or scale.constant not in (1, 2, 4, 8):
        raise ExpressionError(f"{right!r} is no scale: 1, 2, 4 or 8")
    return f"{left.lower()}*{scale.constant}"
