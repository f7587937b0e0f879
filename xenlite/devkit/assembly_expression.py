# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the expressions of an assembler source: numbers, labels and what can be made of them.

A value is linear: a constant plus or minus labels. That is what an x86 instruction and a
data directive can carry; every other operator wants constants. The order of precedence is C's.

Numbers are 10, 0x10, 10h, 0b11 and 'c'. They are read here and never by Keystone 0.9.2, which takes
a bare `10` for sixteen and says nothing
(tests/unit/devkit/test_assembler.py, test_a_bare_number_is_decimal).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

NAME = r"[A-Za-z_.$][A-Za-z0-9_.$]*"
LABEL = "L."
"""Comes before each label that Keystone sees: some plain words are operators to it."""

_ESCAPES = {"n": 10, "t": 9, "r": 13, "0": 0, "b": 8, "f": 12, "e": 27, "\\": 92, '"': 34, "'": 39}
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<number>0[xX][0-9a-fA-F]+|0[bB][01]+|[0-9][0-9a-fA-F]*[hH]|[0-9]+)(?P<tail>\w*)
    | (?P<character>'(?:\\.|[^'\\])')
    | (?P<name>{NAME})
    | (?P<operator><<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>()])
    )""",
    re.VERBOSE,
)
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_CONSTANT_ONLY: dict[str, Callable[[int, int], int]] = {
    "||": lambda a, b: int(bool(a or b)),
    "&&": lambda a, b: int(bool(a and b)),
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "&": lambda a, b: a & b,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_LARGEST_SHIFT = 64


class ExpressionError(ValueError):
    """Say what is wrong with an expression; the caller adds where it stands."""


@dataclass(frozen=True, slots=True)
class Value:
    """A constant plus labels, each with the number of times it counts (1 or -1 in the end)."""

    constant: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Value, sign: int = 1) -> Value:
        """Add `other`, or take it away for a `sign` of -1."""
        labels = dict(self.labels)
        for name, count in other.labels.items():
            labels[name] = labels.get(name, 0) + sign * count
        return Value(
            self.constant + sign * other.constant,
            {n: count for n, count in labels.items() if count},
        )

    @property
    def is_constant(self) -> bool:
        """No label takes part."""
        return not self.labels

    @property
    def is_address(self) -> bool:
        """One label, perhaps with an offset."""
        return list(self.labels.values()) == [1]

    def resolve(self, addresses: Mapping[str, int]) -> int:
        """Return the number once every label has an address."""
        return self.constant + sum(n * addresses[name] for name, n in self.labels.items())

    def text(self) -> str:
        """Write it for Keystone: labels first, numbers in hexadecimal."""
        parts: list[str] = []
        for name, count in sorted(self.labels.items(), key=lambda item: -item[1]):
            if abs(count) != 1:
                raise ExpressionError(f"label {name} counted {count} times")
            parts += ["+" if count > 0 else "-", LABEL + name]
        if self.constant or not parts:
            parts += ["+" if self.constant >= 0 else "-", hex(abs(self.constant))]
        first = "" if parts[0] == "+" else "-"
        return first + " ".join(parts[1:])


def parse(text: str, lookup: Callable[[str], Value]) -> Value:
    """Read the whole of `text`; `lookup` gives each name's value. Raise `ExpressionError`."""
    parser = _Parser(text, lookup)
    value = parser.level(0)
    if parser.tokens[parser.position :]:
        raise ExpressionError(f"{parser.tokens[parser.position][1]!r} unexpected in {text!r}")
    return value


def character(literal: str) -> int:
    r"""Return the code of a quoted character such as 'a' or '\n'."""
    body = literal[1:-1]
    if not body.startswith("\\"):
        return ord(body)
    if body[1] not in _ESCAPES:
        raise ExpressionError(f"unknown escape {literal}")
    return _ESCAPES[body[1]]


def string(literal: str) -> bytes:
    r"""Return the bytes of a double-quoted string: \n \t \r \b \f \e, \x41, \0 or \033."""
    text = literal.strip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ExpressionError(f"a string in double quotes expected, not {literal!r}")
    out = bytearray()
    pieces = re.findall(r"\\x[0-9a-fA-F]{1,2}|\\[0-7]{1,3}|\\.|[^\\\"]+|.", text[1:-1], re.DOTALL)
    for piece in pieces:
        if not piece.startswith("\\") or piece == "\\":
            if piece in ('"', "\\"):
                raise ExpressionError(f"{piece} must be written as \\{piece} in {literal}")
            out += piece.encode()
        elif piece[1] == "x" and len(piece) > 2:
            out.append(int(piece[2:], 16))
        elif piece[1] in "01234567":
            out.append(int(piece[1:], 8) & 0xFF)
        elif piece[1] in _ESCAPES:
            out.append(_ESCAPES[piece[1]])
        else:
            raise ExpressionError(f"unknown escape {piece} in {literal}")
    return bytes(out)


class _Parser:
    def __init__(self, text: str, lookup: Callable[[str], Value]) -> None:
        self.text = text
        self.lookup = lookup
        self.tokens = self._split(text)
        self.position = 0

    @staticmethod
    def _split(text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise ExpressionError(f"cannot read {text[position:].strip()!r}")
            if match["tail"]:
                raise ExpressionError(f"{match['number'] + match['tail']!r} is not a number")
            kind = "number" if match["number"] else str(match.lastgroup)
            tokens.append((kind, match[kind]))
            position = match.end()
        return tokens

    def level(self, depth: int) -> Value:
        if depth == len(_LEVELS):
            return self.unary()
        left = self.level(depth + 1)
        while self.position < len(self.tokens):
            kind, operator = self.tokens[self.position]
            if kind != "operator" or operator not in _LEVELS[depth]:
                break
            self.position += 1
            left = self.combine(operator, left, self.level(depth + 1))
        return left

    def combine(self, operator: str, left: Value, right: Value) -> Value:
        if operator in "+-":
            return left.plus(right, 1 if operator == "+" else -1)
        a, b = self.constant(left, operator), self.constant(right, operator)
        if operator in ("/", "%") and b == 0:
            raise ExpressionError(f"division by zero in {self.text!r}")
        if operator in ("<<", ">>") and not 0 <= b <= _LARGEST_SHIFT:
            raise ExpressionError(f"shift by {b} in {self.text!r}")
        return Value(_CONSTANT_ONLY[operator](a, b))

    def unary(self) -> Value:
        if self.position >= len(self.tokens):
            raise ExpressionError(f"a value is missing in {self.text!r}")
        kind, token = self.tokens[self.position]
        self.position += 1
        if kind == "number":
            return Value(_number(token))
        if kind == "character":
            return Value(character(token))
        if kind == "name":
            return self.lookup(token)
        if token == "(":
            value = self.level(0)
            if self.position >= len(self.tokens) or self.tokens[self.position][1] != ")":
                raise ExpressionError(f"')' is missing in {self.text!r}")
            self.position += 1
            return value
        if token in ("+", "-"):
            return Value().plus(self.unary(), 1 if token == "+" else -1)
        if token in ("~", "!"):
            operand = self.constant(self.unary(), token)
            return Value(~operand if token == "~" else int(not operand))
        raise ExpressionError(f"{token!r} unexpected in {self.text!r}")

    def constant(self, value: Value, operator: str) -> int:
        if not value.is_constant:
            names = ", ".join(value.labels)
            raise ExpressionError(f"{operator!r} needs constants, and {names} is a label")
        return value.constant


def _number(token: str) -> int:
    if token[-1] in "hH" and not token.lower().startswith("0x"):
        return int(token[:-1], 16)
    return int(token, 0) if token[:2].lower() in ("0x", "0b") else int(token, 10)
