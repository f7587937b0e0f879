# SPDX-License-Identifier: GPL-2.0-or-later
r"""Turn assembler sources into lines that Keystone encodes one by one.

Keystone sees plain instructions, labels and data; all else is done here, because it ignores, hangs
on or dies of it: `.include`, sections, macros (`\@` never returns), conditions, constants. The
gain is that every line keeps the file and line that it came from.

Directives: .include .section .text .rodata .data .bss .equ .set .macro .rept .irp .if .ifdef
.ifndef .ifb .ifnb .elseif .else .byte .word .long .quad .ascii .asciz .space .fill .align .p2align
.global .type .error and, ours, `.xen_note NAME, value`. A macro takes `name`, `name=default` or
`name:req`; in its body `\name` is the argument and `\@` a number that no other use has. Numeric
labels `1:` are reached as `1b` and `1f`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from xenlite.devkit import assembly_expression, assembly_operands
from xenlite.devkit.assembly_expression import LABEL, NAME, ExpressionError, Value
from xenlite.devkit.assembly_text import (
    AssemblyError,
    Place,
    Statement,
    find_include,
    statements_of,
    text_of,
)
from xenlite.errors import Fault

_MAX_STATEMENTS = 500_000
_MAX_DEPTH = 64
_MAX_FILL = 64 << 20
_MAX_ALIGNMENT = 4 << 20
_LABEL = re.compile(rf"({NAME}|[0-9]+)\s*:(?!:)\s*(.*)", re.DOTALL)
_ASSIGNMENT = re.compile(rf"({NAME})\s*=(?!=)\s*(.+)")
_NUMERIC_REFERENCE = re.compile(r"(?<![\w.$])([0-9]+)([bf])(?![\w.$])")
_PLAIN_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_NAME_ONLY = re.compile(NAME)
_SECTION_NAME = re.compile(r"[A-Za-z0-9_.]+")
_SUBSTITUTION = re.compile(r"\\(@|\(\)|[A-Za-z_]\w*)")
_BLOCKS = {".macro": ".endm", ".rept": ".endr", ".irp": ".endr"}
_WIDTHS = {
    ".byte": 1, ".word": 2, ".short": 2, ".hword": 2, ".long": 4, ".int": 4, ".quad": 8,
}  # fmt: skip
_EMITTED = {1: ".byte", 2: ".word", 4: ".long", 8: ".quad"}
_BUILTIN_SECTIONS = {".text": "ax", ".rodata": "a", ".data": "aw", ".bss": "aw"}
_NO_EFFECT = frozenset({".intel_syntax", ".code32", ".size", ".file", ".ident"})


@dataclass(frozen=True, slots=True)
class Line:
    """One line for Keystone; `statements` is what Keystone counts for it."""

    place: Place
    text: str
    statements: int
    is_code: bool = False


@dataclass(slots=True)
class Section:
    """The lines of one section, in order; `flags` as in `.section name, "awx"`."""

    name: str
    flags: str
    nobits: bool
    alignment: int = 1
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Note:
    """A Xen ELF note: a string, or a number that may be an address."""

    place: Place
    name: str
    value: bytes | Value


@dataclass(slots=True)
class _Macro:
    parameters: list[tuple[str, str | None]]
    body: Sequence[Statement]
    place: Place


class Source:
    """Everything that the sources say: sections of lines, labels, constants, notes."""

    def __init__(self, include_dirs: Sequence[Path], constants: Mapping[str, int]) -> None:
        self.include_dirs = include_dirs
        self.constants = constants
        self.symbols: dict[str, Value] = {}
        self.sections: dict[str, Section] = {}
        self.labels: dict[str, tuple[Place, str]] = {}
        self.globals: set[str] = set()
        self.types: dict[str, str] = {}
        self.notes: list[Note] = []
        self.files: dict[str, Path] = {}  # by the name that places and faults call them
        self._references: dict[str, Place] = {}
        self._macros: dict[str, _Macro] = {}
        self._directory = [Path()]
        self._depth = 0
        self._executed = 0
        self._unique = 0
        self._numeric: dict[str, int] = {}
        self._place = Place("", 0)
        self._section = self._enter(".text", "ax", nobits=False)
        self._directives: dict[str, Callable[[str], None]] = {
            ".include": self._include,
            ".section": self._select_section,
            ".equ": self._equ,
            ".set": self._equ,
            ".ascii": lambda text: self._ascii(text, b""),
            ".asciz": lambda text: self._ascii(text, b"\0"),
            ".string": lambda text: self._ascii(text, b"\0"),
            ".space": self._space,
            ".skip": self._space,
            ".zero": self._space,
            ".fill": self._fill,
            ".align": lambda text: self._align(text, power=False),
            ".balign": lambda text: self._align(text, power=False),
            ".p2align": lambda text: self._align(text, power=True),
            ".global": self._global,
            ".globl": self._global,
            ".type": self._type,
            ".error": self._error,
            ".xen_note": self._xen_note,
        }

    # Reading

    def read_file(self, path: Path) -> None:
        """Read a source and what it includes. Raise `AssemblyError`."""
        self._directory.append(path.parent)
        self.read_text(text_of(path, None), self._name_file(path))
        self._directory.pop()

    def read_text(self, text: str, name: str) -> None:
        """Read `text`; faults call it `name`. Raise `AssemblyError`."""
        self._execute(statements_of(text, name))

    def _name_file(self, path: Path) -> str:
        """Return what places call a file: its name, or its path where another has that name."""
        name = path.name if self.files.get(path.name, path) == path else str(path)
        self.files[name] = path
        return name

    def finish(self, provided: Iterable[str]) -> None:
        """Check that every name used is a label, a constant or one of `provided`."""
        known = {*self.labels, *provided}
        late = [name for name in self._references if name in self.symbols and name not in known]
        for name in late:
            # A constant used above its .equ went out by name, so Keystone has to know it.
            text = self.symbols[name].text()
            self._section.lines.append(
                Line(self._references[name], f".equ {LABEL}{name}, {text}", 1)
            )
            known.add(name)
        missing = [
            Fault(str(place), f"no symbol is called {name!r}")
            for name, place in self._references.items()
            if name not in known
        ]
        if missing:
            raise AssemblyError(*missing)

    # Statements

    def _execute(self, statements: Sequence[Statement]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._fault(f"macros or includes are nested more than {_MAX_DEPTH} deep")
        index = 0
        while index < len(statements):
            statement = statements[index]
            self._place = statement.place
            self._count()
            try:
                index = self._step(statements, index)
            except ExpressionError as error:
                raise self._fault(str(error), statement.place) from None
        self._depth -= 1

    def _count(self) -> None:
        """Bound what macros and repetitions can make of a few lines."""
        self._executed += 1
        if self._executed > _MAX_STATEMENTS:
            raise self._fault(f"more than {_MAX_STATEMENTS} statements")

    def _step(self, statements: Sequence[Statement], index: int) -> int:
        """Carry out the statement at `index`; return the index of the next one."""
        text = statements[index].text
        word, _, rest = text.partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in _BLOCKS:
            end = self._matching(statements, index, _BLOCKS[word])
            body = statements[index + 1 : end]
            {".macro": self._macro, ".rept": self._rept, ".irp": self._irp}[word](rest, body)
            return end + 1
        if word.startswith(".if"):
            return self._condition(statements, index)
        self._statement(text)
        return index + 1

    def _statement(self, text: str) -> None:
        label = _LABEL.fullmatch(text)
        if label and label[1].lower() not in assembly_operands.REGISTERS:
            self._define_label(label[1])
            if label[2]:
                self._execute([Statement(self._place, label[2])])
            return
        if assignment := _ASSIGNMENT.fullmatch(text):
            self._equ(f"{assignment[1]}, {assignment[2]}")
            return
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word in self._macros:
            self._use_macro(self._macros[word], word, rest)
        elif word.startswith("."):
            self._directive(word.lower(), rest)
        else:
            for line in assembly_operands.instruction(text, self._evaluate, self._named):
                self._emit(line, is_code=True)

    def _directive(self, word: str, rest: str) -> None:
        if word in self._directives:
            self._directives[word](rest)
        elif word in _WIDTHS:
            self._data(rest, _WIDTHS[word])
        elif word in _BUILTIN_SECTIONS:
            self._section = self._enter(word, _BUILTIN_SECTIONS[word], nobits=word == ".bss")
        elif word not in _NO_EFFECT:
            raise ExpressionError(f"unknown directive {word}")

    def _emit(self, text: str, *, is_code: bool = False) -> None:
        *before, _ = text.split(" ")
        prefixes = sum(word in assembly_operands.PREFIXES for word in before)
        # Keystone counts a prefix as a statement of its own.
        self._section.lines.append(Line(self._place, text, 1 + prefixes, is_code))

    def _fault(self, what: str, place: Place | None = None) -> AssemblyError:
        return AssemblyError(Fault(str(place or self._place), what))

    # Values

    def _evaluate(self, text: str) -> Value:
        text = text.strip()
        if _PLAIN_NUMBER.fullmatch(text):
            return Value(int(text, 16) if text[:2] == "0x" else int(text))
        if "b" in text or "f" in text:
            text = _NUMERIC_REFERENCE.sub(self._numeric_name, text)
        return assembly_expression.parse(text, self._lookup)

    def _constant(self, text: str) -> int:
        value = self._evaluate(text)
        if not value.is_constant:
            raise ExpressionError(f"{', '.join(value.labels)} is not a constant here")
        return value.constant

    def _lookup(self, name: str) -> Value:
        if name == ".":
            self._unique += 1
            name = f".Lhere{self._unique}"
            self._define_label(name)
        if name in self.symbols:
            return self.symbols[name]
        if name in self.constants:
            return Value(self.constants[name])
        if name.lower() in assembly_operands.REGISTERS:
            raise ExpressionError(f"the register {name} cannot stand here")
        self._references.setdefault(name, self._place)
        return Value(0, {name: 1})

    def _named(self, value: Value) -> str:
        """Give `value` a symbol of its own, for forms where Keystone takes only a bare name."""
        self._unique += 1
        symbol = f"{LABEL}.Lvalue{self._unique}"
        self._emit(f".equ {symbol}, {value.text()}")
        return symbol

    def _numeric_name(self, match: re.Match[str]) -> str:
        number, direction = match[1], match[2]
        count = self._numeric.get(number, 0) + (direction == "f")
        if count == 0:
            raise ExpressionError(f"no label {number}: above this line")
        return f".Lnumeric{number}.{count}"

    def _define_label(self, name: str) -> None:
        if name.isdigit():
            self._numeric[name] = self._numeric.get(name, 0) + 1
            name = f".Lnumeric{name}.{self._numeric[name]}"
        if name in self.labels:
            raise ExpressionError(f"{name!r} is already defined at {self.labels[name][0]}")
        if name in self.symbols or name in self.constants:
            raise ExpressionError(f"{name!r} is already a constant")
        self.labels[name] = (self._place, self._section.name)
        self._emit(f"{LABEL}{name}:")

    def _equ(self, rest: str) -> None:
        name, comma, text = rest.partition(",")
        name = name.strip()
        if not comma or not _NAME_ONLY.fullmatch(name):
            raise ExpressionError("write `.equ NAME, value`")
        if name in self.labels or name.lower() in assembly_operands.REGISTERS:
            raise ExpressionError(f"{name!r} is already a label or a register")
        self.symbols[name] = self._evaluate(text)

    # Blocks

    def _matching(self, statements: Sequence[Statement], start: int, end: str) -> int:
        openers = {opener for opener, closer in _BLOCKS.items() if closer == end}
        depth = 0
        for index in range(start, len(statements)):
            word = statements[index].text.partition(" ")[0].lower()
            depth += (word in openers) - (word == end)
            if depth == 0:
                return index
        raise ExpressionError(f"{end} is missing")

    def _condition(self, statements: Sequence[Statement], start: int) -> int:
        """Execute the branch that holds; return the index after `.endif`."""
        borders = [start]
        depth = 0
        for index in range(start, len(statements)):
            word = statements[index].text.partition(" ")[0].lower()
            depth += word.startswith(".if") - (word == ".endif")
            if depth == 1 and word in (".else", ".elseif"):
                borders.append(index)
            if depth == 0:
                borders.append(index)
                break
        else:
            raise ExpressionError(".endif is missing")
        for border, following in pairwise(borders):
            self._place = statements[border].place
            if self._holds(statements[border].text):
                self._execute(statements[border + 1 : following])
                break
        return borders[-1] + 1

    def _holds(self, text: str) -> bool:
        word, _, rest = text.partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in (".if", ".elseif"):
            return self._constant(rest) != 0
        if word in (".ifdef", ".ifndef"):
            known = rest in self.symbols or rest in self.constants or rest in self.labels
            return known == (word == ".ifdef")
        if word in (".ifb", ".ifnb"):
            return (not rest) == (word == ".ifb")
        if word == ".else":
            return True
        raise ExpressionError(f"unknown directive {word}")

    def _macro(self, rest: str, body: Sequence[Statement]) -> None:
        name, _, parameters = rest.partition(" ")
        if not _NAME_ONLY.fullmatch(name):
            raise ExpressionError("write `.macro NAME parameter, ...`")
        parsed: list[tuple[str, str | None]] = []
        for parameter in filter(None, (p.strip() for p in parameters.split(","))):
            word, equals, default = parameter.partition("=")
            word, _, required = word.strip().partition(":")
            parsed.append((word, default.strip() if equals else None if required else ""))
        self._macros[name] = _Macro(parsed, body, self._place)

    def _use_macro(self, macro: _Macro, name: str, rest: str) -> None:
        given = [piece.strip() for piece in assembly_operands.split(rest, ",")] if rest else []
        names = [parameter for parameter, _ in macro.parameters]
        if len(given) > len(names):
            raise ExpressionError(f"{name} takes {len(names)} arguments, not {len(given)}")
        values: dict[str, str] = {}
        for position, argument in enumerate(given):
            word, equals, text = argument.partition("=")
            if equals and word.strip() in names:
                values[word.strip()] = text.strip()
            else:
                values[names[position]] = argument
        for parameter, default in macro.parameters:
            if values.get(parameter, "") == "":
                if default is None:
                    raise ExpressionError(f"{name} needs its argument {parameter}")
                values[parameter] = default
        self._unique += 1
        values["@"] = str(self._unique)
        self._expand(macro.body, values)

    def _rept(self, rest: str, body: Sequence[Statement]) -> None:
        for _ in range(self._constant(rest)):
            self._count()
            self._execute(body)

    def _irp(self, rest: str, body: Sequence[Statement]) -> None:
        name, *values = (piece.strip() for piece in assembly_operands.split(rest, ","))
        for value in values:
            self._expand(body, {name: value})

    def _expand(self, body: Sequence[Statement], values: Mapping[str, str]) -> None:
        used_at = self._place

        def replace(match: re.Match[str]) -> str:
            return "" if match[1] == "()" else values.get(match[1], match[0])

        self._execute(
            [
                Statement(
                    Place(line.place.file, line.place.line, used_at),
                    _SUBSTITUTION.sub(replace, line.text).strip(),
                )
                for line in body
            ]
        )

    def _include(self, rest: str) -> None:
        path = find_include(
            assembly_expression.string(rest).decode(), self._directory[-1], self.include_dirs
        )
        if path is None:
            raise ExpressionError(f"no file {rest} beside this one or in the include directories")
        place = self._place
        self._directory.append(path.parent)
        self._execute(statements_of(text_of(path, place), self._name_file(path)))
        self._directory.pop()

    # Sections and symbols

    def _enter(self, name: str, flags: str, *, nobits: bool) -> Section:
        return self.sections.setdefault(name, Section(name, flags, nobits))

    def _select_section(self, rest: str) -> None:
        name, *more = (piece.strip() for piece in assembly_operands.split(rest, ","))
        family = ".".join(name.split(".")[:2])
        default = _BUILTIN_SECTIONS.get(family, "a")
        flags = assembly_expression.string(more[0]).decode() if more else default
        if not _SECTION_NAME.fullmatch(name) or set(flags) - set("awx"):
            raise ExpressionError('write `.section name, "flags"` with flags out of a, w, x')
        nobits = more[1:] == ["@nobits"] or family == ".bss"
        section = self._enter(name, flags, nobits=nobits)
        if more and section.flags != flags:
            raise ExpressionError(f"{name} already has the flags {section.flags!r}")
        self._section = section

    def _global(self, rest: str) -> None:
        self.globals.update(piece.strip() for piece in rest.split(","))

    def _type(self, rest: str) -> None:
        name, _, kind = rest.partition(",")
        self.types[name.strip()] = kind.strip().lstrip("@%")

    def _error(self, rest: str) -> None:
        raise ExpressionError(assembly_expression.string(rest).decode())

    def _xen_note(self, rest: str) -> None:
        name, comma, text = rest.partition(",")
        name, text = name.strip(), text.strip()
        if not comma:
            raise ExpressionError('write `.xen_note NAME, "text"` or `.xen_note NAME, value`')
        value = assembly_expression.string(text) if text[:1] == '"' else self._evaluate(text)
        self.notes.append(Note(self._place, name, value))

    # Data

    def _data(self, rest: str, width: int) -> None:
        texts = []
        for piece in assembly_operands.split(rest, ","):
            value = self._evaluate(piece)
            if value.is_constant:
                if value.constant not in range(-(1 << (8 * width - 1)), 1 << (8 * width)):
                    raise ExpressionError(f"{piece.strip()} does not fit {width} bytes")
                value = Value(value.constant % (1 << 8 * width))
            texts.append(value.text())
        self._emit(f"{_EMITTED[width]} {', '.join(texts)}")

    def _ascii(self, rest: str, end: bytes) -> None:
        for piece in assembly_operands.split(rest, ","):
            self._bytes(assembly_expression.string(piece) + end)

    def _bytes(self, data: bytes) -> None:
        if data:
            self._emit(f".byte {', '.join(map(hex, data))}")

    def _space(self, rest: str) -> None:
        size, _, fill = rest.partition(",")
        self._repeat(self._constant(size), 1, self._constant(fill) if fill.strip() else 0)

    def _fill(self, rest: str) -> None:
        numbers = [self._constant(piece) for piece in rest.split(",")]
        if len(numbers) > 3:
            raise ExpressionError("write `.fill count, size, value`")
        count, size, value = numbers + [1, 0][len(numbers) - 1 :]
        self._repeat(count, size, value)

    def _repeat(self, count: int, size: int, value: int) -> None:
        if size not in _EMITTED or not 0 <= count * size <= _MAX_FILL:
            raise ExpressionError(f"{count} times {size} bytes cannot be filled")
        if count:
            self._emit(f".fill {count:#x}, {size:#x}, {value % (1 << 8 * size):#x}")

    def _align(self, rest: str, *, power: bool) -> None:
        text, _, fill = rest.partition(",")
        number = self._constant(text)
        boundary = 1 << number if power and 0 <= number < 32 else number
        if boundary <= 0 or boundary & (boundary - 1):
            raise ExpressionError(f"{boundary} is not a power of two")
        if boundary > _MAX_ALIGNMENT:
            raise ExpressionError(f"{boundary} is above the largest boundary, {_MAX_ALIGNMENT}")
        self._section.alignment = max(self._section.alignment, boundary)
        if boundary == 1:
            return
        if fill.strip():
            self._emit(f".balign {boundary:#x}, {self._constant(fill) & 0xFF:#x}")
        elif "x" in self._section.flags:
            self._emit(f".balign {boundary:#x}")
        else:
            self._emit(f".balign {boundary:#x}, 0x0")
